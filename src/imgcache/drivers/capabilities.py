"""What each driver can do, derived from the methods that it overrides; nothing is declared twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.base import Driver, UnsupportedError
from imgcache.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A command, or an option that asks for more, as it is typed -> the methods that a driver needs for it.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "precache": ("precache",),
    "precache --keep-for": ("precache", "pin"),
    "check": ("check",),
    "list": ("inspect",),
    "status": ("inspect",),
    "prune": ("inspect", "remove"),
    "clean": ("clean",),
    "clean --invalid": ("clean", "inspect", "remove"),
    "verify": ("inspect", "verify"),
    "verify --adopt": ("inspect", "verify"),
    "verify --repair": ("inspect", "verify", "remove", "precache"),
    "delete": ("inspect", "remove"),
    "pin": ("inspect", "pin"),
    "unpin": ("inspect", "pin"),
    "refresh": ("inspect", "renew"),
}


def supports(driver: Driver, method: str) -> bool:
    """Return whether a driver has this method of ``Driver``."""
    return getattr(type(driver), method) is not getattr(Driver, method)


def why_not(driver: Driver, command: str) -> str | None:
    """Return why a driver cannot serve a command of ``COMMANDS``, in one sentence; None: it can."""
    for method in COMMANDS[command]:
        if not supports(driver, method):
            return driver.why_not(method)
    return None


def require(driver: Driver, command: str) -> None:
    """Refuse a command that a driver cannot serve, before its host is contacted.

    Raises:
        UnsupportedError: it cannot.
    """
    if reason := why_not(driver, command):
        raise UnsupportedError(ErrorCode.DRIVER, reason)
