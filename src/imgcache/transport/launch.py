"""What starts the helper on a host: the command, and the first bytes on its standard input.

The command is constant for a host, so nothing of a run shows in argv; the helper's source travels over
standard input, exactly the bytes of the installed package (``docs/helper-protocol.md``).
"""

from __future__ import annotations

import hashlib
import json
import shlex
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, HostError
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.model import Host

#: Where the helper's source is.
_PACKAGE = "imgcache.helper"
#: The version of the protocol, sent with ``start``.
PROTOCOL = 1
#: The status of a shell that read the helper's source instead of Python.
SHELL_READS = 95
#: What the first line begins with. csh goes on with a line after ``exit``, and rbash refuses ``exec``.
_SHELL_STOPPER = f"exit {SHELL_READS} ; exec /bin/sh -c 'exit {SHELL_READS}'"

#: The statement that ``python -I -c`` runs on a host. Valid in every Python 3; one line of simple
#: statements, without the characters that some shell treats specially between double quotes.
#: 97: Python older than 3.6, its version on standard error. 96: the source is short or wrong.
BOOT_LINE = (
    "import sys,hashlib,types;"
    "sys.version_info<(3,6)and(sys.stderr.write('imgcache: found Python '+sys.version.split()[0]+chr(10)),"
    "sys.exit(97));"
    "i=sys.stdin.buffer;t=i.readline(200).split()[-2:];"
    "len(t)==2 and t[0].isdigit()or sys.exit(96);"
    "s=i.read(int(t[0]));hashlib.sha256(s).hexdigest()==t[1].decode('ascii','replace')or sys.exit(96);"
    "m=types.ModuleType('imgcache_helper.core');m.__file__='<imgcache-helper>/core.py';"
    "sys.modules[m.__name__]=m;exec(compile(s,m.__file__,'exec'),m.__dict__);m.main(i)"
)

#: Characters that one of sh, csh and fish treats specially even in a quoted word.
_UNQUOTABLE = frozenset("\\!")


def command_for(host: Host) -> str:
    """Return the command that starts the helper on ``host``, for its login shell to read.

    The same text works under POSIX shells (also restricted), csh and fish.

    Raises:
        HostError: code ``python`` or ``sudo``: a word of the settings cannot be put into a command.
    """
    settings = host.settings
    words: list[str] = []
    if settings.become == "sudo":
        user = _quoted(settings.become_user, "become_user", ErrorCode.SUDO)
        words += ["sudo", "-n", "-u", user, "--"]
    if not settings.python:
        message = "the setting python names no command"
        raise HostError(ErrorCode.PYTHON, message, hint="python: python3")
    words += [_quoted(word, "python", ErrorCode.PYTHON) for word in settings.python]
    return " ".join(words) + f' -I -c "{BOOT_LINE}"'


def _quoted(word: str, setting: str, code: ErrorCode) -> str:
    unsafe = not word.isprintable() or not word or not _UNQUOTABLE.isdisjoint(word)
    if unsafe or (word.startswith("-") and setting == "become_user"):
        message = f"the setting {setting} has a word that cannot be put into a command: {printable(word)!r}"
        raise HostError(
            code, message, hint="use words without backslash, '!' and control characters"
        )
    return shlex.quote(word)


@cache
def module_source(name: str) -> bytes:
    """Return the source of one of the helper's modules as the installed package has it.

    ``package:module`` is a module that another package brings: see ``Driver.helper_package``.

    Raises:
        KeyError: there is no such module, or it has the name of one of ours; a bug in the caller.
    """
    package, _, module = name.rpartition(":")
    if not module.isidentifier() or (package and module in helper_modules()):
        raise KeyError(name)
    try:
        return resources.files(package or _PACKAGE).joinpath(f"{module}.py").read_bytes()
    except (FileNotFoundError, ModuleNotFoundError):
        raise KeyError(name) from None


@cache
def helper_modules(package: str = _PACKAGE) -> tuple[str, ...]:
    """Return the names of all of the helper's modules, or of those that another package brings, sorted.

    Modules of other packages that are called as ours are never sent.

    Raises:
        KeyError: there is no such package.
    """
    try:
        names = [entry.name for entry in resources.files(package).iterdir()]
    except (ModuleNotFoundError, TypeError, OSError):
        raise KeyError(package) from None
    modules = sorted(name.removesuffix(".py") for name in names if name.endswith(".py"))
    never_sent = {"__init__", *(() if package == _PACKAGE else helper_modules())}
    return tuple(name for name in modules if name not in never_sent)


@cache
def helper_digest(package: str = _PACKAGE) -> str:
    """Return the SHA-256 (hex) of all code of a package that is ever sent to a host, in a fixed order.

    Constant per release: it covers each module's name, size and source, sorted by name. That of imgcache
    says nothing about what the drivers of other packages send, which have digests of their own.
    """
    digest = hashlib.sha256()
    for name in helper_modules(package):
        source = module_source(name if package == _PACKAGE else f"{package}:{name}")
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()


@cache
def core_bytes() -> bytes:
    """Return what the boot line reads: a header line, then the source of ``core``.

    An rc file can put another shell in Python's place (``exec zsh``), which takes what is sent for commands.
    The header line ends every shell before it reads the next one, with the status ``SHELL_READS``.
    """
    source = module_source("core")
    digest = hashlib.sha256(source).hexdigest()
    return f"{_SHELL_STOPPER} {len(source)} {digest}\n".encode() + source


@cache
def load_frame(name: str, order_id: int) -> bytes:
    """Return the ``load`` frame for a module with its source behind it."""
    source = module_source(name)
    header = {
        "op": "load",
        "id": order_id,
        "name": name.rpartition(":")[2],
        "size": len(source),
        "sha256": hashlib.sha256(source).hexdigest(),
    }
    return encode_frame(header) + source


@cache
def load_frames(names: Sequence[str], first_id: int) -> bytes:
    """Return the ``load`` frames of several modules (a tuple), with rising ids from ``first_id``."""
    return b"".join(load_frame(name, first_id + index) for index, name in enumerate(names))


def encode_frame(frame: dict[str, object]) -> bytes:
    """Return one frame as a line of JSON, at most 64 KiB."""
    line = json.dumps(frame, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > 65536:
        message = f"a frame for the helper is too long: {len(line)} bytes"
        raise AssertionError(message)
    return line
