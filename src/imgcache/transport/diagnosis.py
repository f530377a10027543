"""Why a helper did not start, or ended: the most telling cause, and what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.text import printable
from imgcache.transport.launch import SHELL_READS

if TYPE_CHECKING:
    from imgcache.model import Host
    from imgcache.transport.wire import Fields

WRONG_SOURCE, TOO_OLD, CRASHED = 96, 97, 99
WRAPPER_FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

#: Sudo goes on after these.
_SUDO_WARNING = re.compile(
    r"sudo(-rs)?: (unable to resolve host|setrlimit|warning)\b.*", re.IGNORECASE
)
#: Sudo and csh end with 1 when they find no command.
_FOUND_NOTHING = re.compile(r": command not found\.?$", re.IGNORECASE)
#: How login shells (sh, bash, csh; zsh; fish) say that there is no sudo.
_NO_SUDO = re.compile(
    r"\bsudo: (command |inaccessible or )?not found|command not found: sudo"
    r"|Unknown command:? '?sudo",
    re.IGNORECASE,
)
#: Sudo's reasons begin with its name, but for "Sorry, user nova is not allowed to execute …".
_SUDO_SAYS = re.compile(r"\bsudo\b|^Sorry, user |is not in the sudoers file|is not allowed to ")

_SUDO_HINT = (
    "let the SSH user become {user} without a password for this one command: in sudoers, "
    "'USER ALL=({user}) NOPASSWD: NOLOG_INPUT: NOLOG_OUTPUT: /usr/bin/python3'; "
    "or log in as {user} with become: none"
)


def crash_error(fields: Fields) -> HostError:
    """Return the error for a helper that crashed: where, the innermost place first."""
    kind, *places = fields.get_text("traceback", limit=4000).split(" | ")
    names = [place.removeprefix("<imgcache-helper>/") for place in reversed(places)]
    where = f" at {' < '.join(names)[:1500]}" if names else ""
    message = f"the helper crashed, which is a bug in imgcache: {kind}{where}"
    return HostError(ErrorCode.CRASH, message, hint="please report it")


def explain_end(
    host: Host, status: int | None, stderr: str, noise: str, *, started: bool
) -> HostError:
    """Return why the helper ended when it should not have.

    The status says which part of the command ended; then what the one that failed has said last.

    Args:
        host: where.
        status: the exit status, None when killed or never told.
        stderr: the tail of its standard error, sanitised, its lines separated by `` | ``.
        noise: what came on its standard output instead of frames, sanitised.
        started: whether it had said hello.
    """
    if started:
        return _ended_midway(status, stderr)
    stderr = _without_warnings(stderr)
    for explain in (_of_our_own, _missing, _of_sudo, _of_python, _of_wrapper):
        error = explain(host, status, stderr, noise)
        if error is not None:
            return error
    return _of_shell(status, stderr, noise)


def _without_warnings(stderr: str) -> str:
    """Leave out lines of sudo's that are no reason to end."""
    lines = [line for line in stderr.split(" | ") if not _SUDO_WARNING.match(line)]
    return " | ".join(lines)


def _of_our_own(host: Host, status: int | None, stderr: str, noise: str) -> HostError | None:
    """Read the statuses that only the boot line, the first line sent, and the helper have."""
    del host
    if status == TOO_OLD:
        message = f"the Python on the host is too old: {_tail(stderr, noise)}"
        return HostError(
            ErrorCode.PYTHON, message, hint="python: the command of a Python 3.6 or newer there"
        )
    if status == WRONG_SOURCE:
        message = "the helper's code did not arrive whole on the host"
        hint = "something there reads standard input before Python does: an rc file, or a wrapper in python:"
        return HostError(ErrorCode.SHELL, message, hint=hint)
    if status == SHELL_READS:
        message = "on the host a shell reads what is meant for Python, and was ended by it"
        hint = "an rc file there starts another shell (exec zsh): let it do so in interactive logins only"
        return HostError(ErrorCode.SHELL, message, hint=hint)
    if status == CRASHED:
        message = f"the helper crashed at its start: {_tail(stderr, noise)}"
        return HostError(ErrorCode.CRASH, message, hint="please report it")
    return None


def _missing(host: Host, status: int | None, stderr: str, noise: str) -> HostError | None:
    """Say which command was not found, or could not be started."""
    del noise
    if status not in {NOT_FOUND, NOT_EXECUTABLE} and not _FOUND_NOTHING.search(stderr):
        return None
    said = f": {stderr[-300:]}" if stderr else ""
    if host.settings.become == "sudo" and _NO_SUDO.search(stderr):
        hint = "install sudo there, or log in as the cache's owner with become: none"
        return HostError(ErrorCode.SUDO, f"sudo is not found on the host{said}", hint=hint)
    reason = "not executable" if status == NOT_EXECUTABLE else "not found"
    message = f"{_python_of(host)}: {reason} on the host{said}"
    hint = "install Python 3.6 or newer there, or set python:"
    return HostError(ErrorCode.PYTHON, message, hint=hint)


def _of_sudo(host: Host, status: int | None, stderr: str, noise: str) -> HostError | None:
    """Say that sudo refused: its reason is then the last that was said."""
    if host.settings.become != "sudo" or status == WRAPPER_FAILED:
        return None
    if not _SUDO_SAYS.search(stderr.rpartition(" | ")[2]):
        return None
    message = f"sudo refused: {_tail(stderr, noise)}"
    hint = _SUDO_HINT.format(user=host.settings.become_user)
    return HostError(ErrorCode.SUDO, message, hint=hint)


def _of_python(host: Host, status: int | None, stderr: str, noise: str) -> HostError | None:
    del host, status
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
    return None


def _of_wrapper(host: Host, status: int | None, stderr: str, noise: str) -> HostError | None:
    """Say that the command before Python failed, such as ``podman exec -i nova_compute``.

    Source: podman-exec(1): 125, the error is Podman's own; docker ends with 1.
    """
    wrapper = _wrapper_of(host)
    if wrapper is None or status is None or status > 128 or (status != WRAPPER_FAILED and noise):
        return None
    if status != WRAPPER_FAILED and not stderr:
        return None
    message = (
        f"{_python_of(host)}: {wrapper} ended with status {status} before it started Python: "
        f"{_tail(stderr, noise)}"
    )
    hint = (
        f"run '{wrapper}' by hand on the host, as the user who runs it there: "
        "the container must be running, and that user allowed to use it; or mend python:"
    )
    return HostError(ErrorCode.PYTHON, message, hint=hint)


def _of_shell(status: int | None, stderr: str, noise: str) -> HostError:
    said = _tail(stderr, noise)
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


def _ended_midway(status: int | None, stderr: str) -> HostError:
    how = "was killed or lost its connection" if status is None else f"ended with status {status}"
    said = f": {stderr[-300:]}" if stderr else ""
    message = f"the helper {how} in the middle of its work{said}"
    return ContactLostError(
        ErrorCode.LOST, message, hint="run again: what is done is found as existing"
    )


def _python_of(host: Host) -> str:
    return printable(" ".join(host.settings.python), 100)


def _wrapper_of(host: Host) -> str | None:
    """Return the first word of ``python:`` when that is not Python itself."""
    word = host.settings.python[0]
    return None if "python" in word.rpartition("/")[2] else printable(word, 60)


def _tail(stderr: str, noise: str) -> str:
    return (stderr[-400:] or noise[-400:]) or "it said nothing"
