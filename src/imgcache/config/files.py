"""Finding the inventory file, and reading it without trusting where it lies."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from imgcache.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

#: No inventory of 100,000 hosts needs more; reading more would only serve to exhaust us.
MAX_FILE_BYTES = 10 * 1024 * 1024
#: What Ansible prints has all variables of each host, most of which mean nothing here.
MAX_JSON_BYTES = 128 * 1024 * 1024
_SYSTEM_INVENTORY = Path("/etc/imgcache/inventory.yaml")


def find_inventory_file(named: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the inventory file to use; the working directory is never searched.

    In this order: ``named`` (from ``--inventory``), ``IMGCACHE_INVENTORY``, then the first that
    exists of ``$XDG_CONFIG_HOME/imgcache/inventory.yaml`` (``~/.config`` when unset) and
    ``/etc/imgcache/inventory.yaml``; ``inventory.d/*.yaml`` beside it is enough. A file that
    was named is returned whether it exists or not.

    Raises:
        ConfigError: none was named and none exists.
    """
    if named is not None:
        return expand_home(named)
    if environ.get("IMGCACHE_INVENTORY"):
        return expand_home(Path(environ["IMGCACHE_INVENTORY"]))
    places = _places(environ)
    for place in places:
        if is_there(place) or drop_ins_of(place, environ):
            return place
    message = "no inventory: looked for " + " and ".join(str(place) for place in places)
    raise ConfigError(message, (), hint="name one with --inventory FILE or IMGCACHE_INVENTORY")


def drop_ins_of(path: Path, environ: Mapping[str, str]) -> list[Path]:
    """Return the files that belong to an inventory in one of the usual places: ``inventory.d/*.yaml``."""
    if path.absolute() not in _places(environ):
        return []
    return sorted(path.absolute().parent.glob("inventory.d/*.yaml"))


def _places(environ: Mapping[str, str]) -> list[Path]:
    return [*_user_inventory(environ), _SYSTEM_INVENTORY]


def is_there(path: Path) -> bool:
    """Return whether there is a file, or something that keeps us from seeing whether there is one."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _user_inventory(environ: Mapping[str, str]) -> tuple[Path, ...]:
    # The XDG base directory specification: a relative path there is invalid and to be ignored.
    given = Path(environ.get("XDG_CONFIG_HOME", ""))
    folder = given if given.is_absolute() else expand_home(Path("~/.config"))
    return (folder / "imgcache" / "inventory.yaml",) if folder.is_absolute() else ()


def expand_home(path: Path) -> Path:
    """Return ``path`` with a leading ``~`` or ``~user`` resolved; as it is when there is no such home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def read_guarded(path: Path) -> bytes:
    """Return the content of a configuration file that only we and root can change.

    Raises:
        ConfigError: it is missing, unreadable, no regular file, too large, or others could write it.
    """
    try:
        # Non-blocking, so that a fifo put there cannot hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check_guarded(path, status)
            content = file.read(MAX_FILE_BYTES + 1)
            limit = MAX_JSON_BYTES if content.lstrip()[:1] == b"{" else MAX_FILE_BYTES
            if len(content) <= limit:
                content += file.read(limit + 1 - len(content))
    except IsADirectoryError as exc:
        hint = "name a file; of an Ansible inventory, what ansible-inventory -i DIR --list prints"
        raise _refusal(path, "is a folder", hint) from exc
    except OSError as exc:
        raise _refusal(path, f"cannot be read: {exc.strerror or exc}") from exc
    if len(content) > limit:
        what = f"is larger than {limit // 1024**2} MiB"
        raise _refusal(path, what, "split it: see 'include'")
    return content


def _refusal(path: Path, what: str, hint: str | None = None) -> ConfigError:
    return ConfigError("the inventory cannot be used", (Problem(str(path), what, hint),))


def _check_guarded(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "is not a regular file", "write it to a file first")
    if status.st_uid not in _trusted_owners():
        owner = f"belongs to another user (uid {status.st_uid}), who can change it"
        raise _refusal(path, owner, f"take it over: chown {os.geteuid()} {path}")
    if others_can_write(status):
        raise _refusal(path, "can be written by other users", f"chmod go-w {path}")
    for folder in {path.absolute().parent, path.resolve().parent}:
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            what = f"lies in {folder}, where every user can replace it"
            raise _refusal(path, what, f"chmod o-w {folder}, or move the file")


def _trusted_owners() -> set[int]:
    owners = {0, os.geteuid()}
    invoker = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and invoker.isdecimal():
        # The one who became root with sudo is the operator; the environment is theirs too.
        owners.add(int(invoker))
    return owners


def others_can_write(status: os.stat_result) -> bool:
    """Return whether anybody but the owner may write a file of this status.

    A group write bit is fine for a group that is the owner's alone (user private groups, as Debian
    and Red Hat make them: same name as the user, no other members).
    """
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _private_group(status.st_uid, status.st_gid)


def _private_group(uid: int, gid: int) -> bool:
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    members = set(group.gr_mem) - {user.pw_name}
    return user.pw_gid == gid and group.gr_name == user.pw_name and not members
