"""How the helper is started on a Hyper-V host: cmd's quoting, and the search for a Python.

Win32-OpenSSH gives the command to the account's shell, cmd.exe unless the administrator chose PowerShell.
Source: Win32-OpenSSH ``shell-host.c``, ``session.c``; ``cmd /?`` on quotes; Cloudbase's installer, for paths.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers.base import UnsupportedError
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.model import HostSettings
from imgcache.text import printable
from imgcache.transport.conversation import Conversation
from imgcache.transport.launch import BOOT_LINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from imgcache.drivers.base import HostContext

_INSTALLED = "Cloudbase Solutions\\OpenStack\\Nova\\Python*"
_SERVICE = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\nova-compute"
#: Says which shell reads it, and what there is; cmd alone knows ``%OS%`` and runs all of it.
FIND_COMMAND = (
    "echo shell=%OS%"
    f'& echo folder=%ProgramFiles%& dir /b /ad "%ProgramFiles%\\{_INSTALLED}"'
    f'& echo folder=%ProgramFiles(x86)%& dir /b /ad "%ProgramFiles(x86)%\\{_INSTALLED}"'
    f"& echo service=& reg query {_SERVICE} /v ImagePath"
    "& echo end="
)
_FIND_TIMEOUT_S = 30.0
_FIND_BYTES = 64 * 1024
#: Python 3's launcher, which its installer puts on the PATH.
_LAUNCHER = ("py", "-3")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9._:=/-]+", re.ASCII)
#: What cmd expands also between double quotes, or what would end them.
_UNQUOTABLE = frozenset('"%!\r\n')
_FOLDER_NAME = re.compile(r"Python[0-9A-Za-z._-]{0,20}", re.ASCII | re.IGNORECASE)
#: ``…\Python\Scripts\nova-compute.exe``, or a Python itself, in the service's command line.
_SERVICE_PYTHONS = (
    re.compile(r'"?([A-Za-z]:\\[^"]*?)\\Scripts\\nova-compute[^"\\ ]*', re.ASCII | re.IGNORECASE),
    re.compile(r'"?([A-Za-z]:\\[^"]*?)\\python\.exe', re.ASCII | re.IGNORECASE),
)
_DEFAULT_PYTHON = HostSettings().python


@dataclass(frozen=True, slots=True)
class Found:
    """What ``FIND_COMMAND`` printed."""

    is_cmd: bool
    pythons: tuple[str, ...]
    """Paths of Pythons that came with Nova, the best first."""
    said: str
    """All of it, sanitised, for messages."""


def start_command(python: Sequence[str]) -> str:
    """Return the command that starts the helper, for cmd to read.

    The first word is always quoted: PowerShell then takes it for a string, and fails, where it would
    else start a Python whose standard input it breaks.

    Raises:
        HostError: code ``python``: a word cannot be put into a command.
    """
    words = []
    for index, word in enumerate(python):
        unsafe = not word.isprintable() or not word or word.endswith("\\")
        if unsafe or not _UNQUOTABLE.isdisjoint(word):
            message = f"the setting python has a word that cmd cannot take: {printable(word)!r}"
            raise HostError(ErrorCode.PYTHON, message, hint="give the plain path of a python.exe")
        words.append(word if index and _PLAIN_WORD.fullmatch(word) else f'"{word}"')
    return " ".join(words) + f' -I -c "{BOOT_LINE}"'


def read_found(text: str) -> Found:
    """Return what the output of ``FIND_COMMAND`` tells."""
    pythons: list[str] = []
    part = folder = ""
    for line in text.replace("\r", "").split("\n"):
        name, _, value = line.strip().partition("=")
        if name in {"shell", "folder", "service", "end"} and "=" in line:
            part, folder = name, value.strip()
        elif part == "folder" and _is_python3_folder(line.strip()) and ":" in folder:
            installed = _INSTALLED.removesuffix("Python*")
            pythons.append(f"{folder}\\{installed}{line.strip()}\\python.exe")
        elif part == "service":
            matches = [shape.search(line) for shape in _SERVICE_PYTHONS]
            pythons += [f"{match[1]}\\python.exe" for match in matches if match]
    is_cmd = re.search(r"^shell=Windows_NT\s*$", text, re.MULTILINE) is not None
    return Found(is_cmd, tuple(dict.fromkeys(pythons)) if is_cmd else (), printable(text, 300))


def _is_python3_folder(name: str) -> bool:
    return _FOLDER_NAME.fullmatch(name) is not None and not name.lower().startswith("python2")


async def find(context: HostContext) -> Found:
    """Ask the host's login shell what it is and which Pythons there are.

    Raises:
        HostError: see ``Transport.open``; code ``hang``: no end within 30 s.
    """
    output = bytearray()
    try:
        async with context.session(FIND_COMMAND) as session, asyncio.timeout(_FIND_TIMEOUT_S):
            await session.close_stdin()
            while len(output) < _FIND_BYTES and (data := await session.read(8192)):
                output += data
            stderr = session.stderr_tail()
    except TimeoutError:
        message = f"logged in, but cmd did not answer within {_FIND_TIMEOUT_S:.0f} s"
        raise HostError(ErrorCode.HANG, message, hint="log in by hand and see what hangs") from None
    text = output.decode("utf-8", "replace")
    found = read_found(text)
    return found if found.is_cmd else Found(False, (), printable(text + stderr, 300))


@asynccontextmanager
async def converse(context: HostContext, modules: Sequence[str]) -> AsyncIterator[Conversation]:
    """Start the helper on the host, under the configured Python or one that is found there.

    Without a configured one this costs a connection more.

    Raises:
        UnsupportedError: the login shell is not cmd.
        HostError: see ``HostContext.converse``.
    """
    python = context.host.settings.python
    found = None
    if python == _DEFAULT_PYTHON:
        found = await find(context)
        _refuse_other_shells(found)
        python = (found.pythons[0],) if found.pythons else _LAUNCHER
    async with context.session(start_command(python)) as session:
        talk = Conversation(session, context.host, modules)
        try:
            try:
                await talk.ready()
            except ContactLostError:
                raise
            except HostError as error:
                raise await _explained(context, error, python, found) from error
            yield talk
        finally:
            await talk.end()


def _refuse_other_shells(found: Found) -> None:
    if found.is_cmd:
        return
    message = (
        "the login shell of this account is not cmd.exe, and PowerShell is not supported yet: "
        f"it answered {found.said or 'nothing'}"
    )
    hint = "set DefaultShell in HKLM\\SOFTWARE\\OpenSSH to C:\\Windows\\System32\\cmd.exe, or remove it"
    raise UnsupportedError(ErrorCode.SHELL, message, hint=hint)


async def _explained(
    context: HostContext, error: HostError, python: Sequence[str], found: Found | None
) -> HostError:
    """Return why the helper did not start: the shell is another, or there is no such Python.

    Raises:
        UnsupportedError: the login shell is not cmd.
        HostError: the host cannot be asked any more.
    """
    if error.code not in {ErrorCode.SHELL, ErrorCode.PYTHON}:
        return error
    if found is None:
        found = await find(context)
        _refuse_other_shells(found)
    tried = printable(" ".join(python), 200)
    message = f"{tried} did not start as Python 3.6 or newer: {error.message}"
    known = f"; there is {', '.join(found.pythons)}" if found.pythons else ""
    hint = f"python: the path of the python.exe that runs nova-compute{printable(known, 300)}"
    return HostError(ErrorCode.PYTHON, message, hint=hint)
