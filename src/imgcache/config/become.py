"""Which user the helper runs as on hosts: what the command line asks for, and what a command needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from imgcache.config.fields import check_account
from imgcache.errors import UsageError
from imgcache.model import HostSettings
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable


def users_to_become(
    become: Literal["none", "sudo"] | None, user: str | None, *, removes: bool
) -> Callable[[HostSettings], HostSettings] | None:
    """Return how the settings of hosts change for one run; None: not at all.

    Args:
        become: ``--become``.
        user: ``--become-user``; alone, it means sudo.
        removes: the command may remove files, so that the settings for that count; the options win over them.

    Raises:
        UsageError: the options contradict each other, or name no user.
    """
    if become is None and user is None:
        return HostSettings.for_removal if removes else None
    if become == "none" and user is not None:
        message = "--become none and --become-user contradict each other"
        raise UsageError(message, hint="give one of them")
    if user is not None:
        try:
            check_account(user)
        except ValueError as exc:
            message = f"--become-user: '{printable(user, 80)}' {exc}"
            raise UsageError(message) from exc
    method = become or "sudo"

    def change(settings: HostSettings) -> HostSettings:
        if not removes:
            return replace(settings, become=method, become_user=user or settings.become_user)
        user_then = user or settings.removal_become_user
        return replace(settings, removal_become=method, removal_become_user=user_then).for_removal()

    return change
