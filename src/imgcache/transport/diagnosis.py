"""Why a helper did not start, or ended: the most telling cause, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.text import printable

if TYPE_CHECKING:
    from imgcache.model import Host
    from imgcache.transport.wire import Fields

WRONG_SOURCE, TOO_OLD, CRASHED = 96, 97, 99
NOT_EXECUTABLE, NOT_FOUND = 126, 127

_SUDO_HINT = (
    "let the SSH user become {user} without a password for this one command: in sudoers, "
    "'USER ALL=({user}) NOPASSWD: NOLOG_INPUT: NOLOG_OUTPUT: /usr/bin/python3'; "
    "or log in as {user} with become: none"
)


def crash_error(fields: Fields) -> HostError:
    """Return the error for a helper that crashed; its traceback is in the message's tail."""
    trace = fields.get_str("traceback", limit=4000)
    message = f"the helper crashed, which is a bug in imgcache: {trace[-1500:]}"
    return HostError(ErrorCode.CRASH, message, hint="please report it")


def explain_end(
    host: Host, status: int | None, stderr: str, noise: str, *, started: bool
) -> HostError:
    """Return why the helper ended when it should not have.

    Args:
        host: where.
        status: the exit status, None when killed or never told.
        stderr: the tail of its standard error, sanitised.
        noise: what came on its standard output instead of frames, sanitised.
        started: whether it had said hello.
    """
    if started:
        return _ended_midway(status, stderr)
    if host.settings.become == "sudo" and "sudo" in stderr:
        message = f"sudo refused: {_tail(stderr, noise)}"
        return HostError(
            ErrorCode.SUDO, message, hint=_SUDO_HINT.format(user=host.settings.become_user)
        )
    if status in {NOT_FOUND, NOT_EXECUTABLE}:
        return _no_python(host, status, stderr)
    return _by_status(status, stderr, noise)


def _by_status(status: int | None, stderr: str, noise: str) -> HostError:
    if status == TOO_OLD:
        message = f"the Python on the host is too old: {_tail(stderr, noise)}"
        return HostError(
            ErrorCode.PYTHON, message, hint="python: the command of a Python 3.6 or newer there"
        )
    if status == WRONG_SOURCE:
        message = "the helper's code did not arrive whole on the host"
        hint = "something there reads standard input before Python does: an rc file, or a wrapper in python:"
        return HostError(ErrorCode.SHELL, message, hint=hint)
    if status == CRASHED:
        message = f"the helper crashed at its start: {_tail(stderr, noise)}"
        return HostError(ErrorCode.CRASH, message, hint="please report it")
    return _not_python(status, stderr, noise)


def _ended_midway(status: int | None, stderr: str) -> HostError:
    how = "was killed or lost its connection" if status is None else f"ended with status {status}"
    said = f": {stderr[-300:]}" if stderr else ""
    message = f"the helper {how} in the middle of its work{said}"
    return ContactLostError(
        ErrorCode.LOST, message, hint="run again: what is done is found as existing"
    )


def _no_python(host: Host, status: int, stderr: str) -> HostError:
    command = printable(" ".join(host.settings.python), 100)
    reason = "not found" if status == NOT_FOUND else "not executable"
    message = f"{command}: {reason} on the host{': ' + stderr[-300:] if stderr else ''}"
    return HostError(
        ErrorCode.PYTHON, message, hint="install Python 3.6 or newer there, or set python:"
    )


def _not_python(status: int | None, stderr: str, noise: str) -> HostError:
    said = _tail(stderr, noise)
    if "Unknown option: -I" in stderr or "SyntaxError" in stderr:
        message = f"python: starts a Python that is too old: {said}"
        return HostError(
            ErrorCode.PYTHON, message, hint="python: the command of a Python 3.6 or newer there"
        )
    if "Traceback" in stderr or "imgcache-helper" in stderr:
        message = f"the helper's code does not run there: {said}"
        return HostError(
            ErrorCode.PYTHON, message, hint="python: the command of a whole Python 3.6 or newer"
        )
    # A shell tells of a signal by 128 and its number.
    if (status is None or status > 128) and not noise:
        message = f"the helper was killed, or its connection ended, before it answered: {said}"
        hint = "run again; if it repeats, look for limits and lack of memory in the host's log"
        return ContactLostError(ErrorCode.LOST, message, hint=hint)
    how = "was killed" if status is None else f"ended with status {status}"
    message = (
        f"the login shell started something other than the helper, which {how}: {said or 'no word'}"
    )
    hint = "the account needs a normal shell: no nologin, no forced command in authorized_keys"
    return HostError(ErrorCode.SHELL, message, hint=hint)


def _tail(stderr: str, noise: str) -> str:
    return (stderr[-400:] or noise[-400:]) or "it said nothing"
