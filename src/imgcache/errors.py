"""What can go wrong, split by what a caller can do about it.

    ImgcacheError                  a message (what, where), a hint (what to do), an exit code
    ├─ UsageError            2     the command line asks for something that makes no sense
    ├─ ConfigError           2     the inventory or another file of ours is wrong; lists every problem
    ├─ UnsafePlanError       3     refused for safety, nothing done
    ├─ ImageServiceError     4     the image service cannot be used
    │  ├─ AuthenticationError      it does not accept who we are
    │  ├─ ImageServiceUnreachableError
    │  └─ ImageProblemsError       images missing, ambiguous, not active, not cacheable; lists every one
    └─ HostError             1     bound to one host; the engine turns it into outcomes, it never ends a run
       └─ ContactLostError         the host stopped answering: what happened there is unknown

An exception that is none of these is a bug in imgcache: it ends the run with exit code 70.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExitCode(IntEnum):
    """The exit codes, an API of ours: see ``docs/errors.md``."""

    OK = 0
    ITEMS_FAILED = 1
    USAGE = 2
    REFUSED = 3
    IMAGE_SERVICE = 4
    ANSWER_IS_NO = 5
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


class ErrorCode(StrEnum):
    """Why an item ended ``error``, ``unknown``, ``skipped``, ``unsupported`` or ``kept``: the closed list.

    Codes are an API: scripts compare them, ``docs/errors.md`` says what to do about each.
    """

    # reaching the host
    CONNECT = "connect"
    JUMP = "jump"
    LOGIN = "login"
    HOSTKEY_UNKNOWN = "hostkey-unknown"
    HOSTKEY_CHANGED = "hostkey-changed"
    SESSION = "session"
    # starting and talking with the helper
    SHELL = "shell"
    PYTHON = "python"
    SUDO = "sudo"
    PROTOCOL = "protocol"
    HANG = "hang"
    CRASH = "crash"
    LOST = "lost"
    # the cache on the host
    NOPATH = "nopath"
    SYMLINK = "symlink"
    FOREIGN = "foreign"
    PERMISSION = "permission"
    LOCK = "lock"
    BUSY = "busy"
    DAMAGED = "damaged"
    CONFIG = "config"
    NOT_TOUCHED = "not-touched"
    # room and disk
    SPACE = "space"
    QUOTA = "quota"
    INODES = "inodes"
    TOOBIG = "toobig"
    IO = "io"
    # getting the bytes
    DOWNLOAD = "download"
    STALL = "stall"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    REDIRECT = "redirect"
    AUTH = "auth"
    FORBIDDEN = "forbidden"
    GONE = "gone"
    NODATA = "nodata"
    CHANGED = "changed"
    SOURCE = "source"
    PEER = "peer"
    PEER_BAD = "peer-bad"
    SWITCHED = "switched"
    # what the bytes are
    SIZE = "size"
    DIGEST = "digest"
    FORMAT = "format"
    QEMU = "qemu"
    UNCONFIRMED = "unconfirmed"
    # the life of the cache: why an entry is kept, or nothing is removed
    IN_USE = "in-use"
    YOUNG = "young"
    PINNED = "pinned"
    KEEP = "keep"
    POLICY = "policy"
    TEMPLATE = "template"
    TRANSFER = "transfer"
    EVIDENCE = "evidence"
    SHARED = "shared"
    MAX_DELETE = "max-delete"
    UNMANAGED = "unmanaged"
    UNHASHED = "unhashed"
    UNPROVEN = "unproven"
    ABSENT = "absent"
    # decisions
    BACKEND = "backend"
    DRIVER = "driver"
    DRY_RUN = "dry-run"
    QUEUED = "queued"
    TIMEOUT = "timeout"
    WINDOW = "window"
    DEADLINE = "deadline"
    HALTED = "halted"
    INTERRUPTED = "interrupted"


class ImgcacheError(Exception):
    """Base of all errors we expect: ``message`` says what and where, ``hint`` what to do."""

    exit_code: ClassVar[ExitCode] = ExitCode.ITEMS_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ImgcacheError):
    """The command line asks for something that makes no sense."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault among several that are reported together."""

    where: str
    """``inventory.yaml:8:5: aggregates.edge-1.hosts``, or an image as the user named it."""
    what: str
    hint: str | None = None


class _ProblemsError(ImgcacheError):
    """An error that lists all of its problems at once."""

    def __init__(
        self, message: str, problems: Sequence[Problem], *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class ConfigError(_ProblemsError):
    """The inventory, or another file of ours, is wrong; lists every problem found."""

    exit_code = ExitCode.USAGE


class UnsafePlanError(ImgcacheError):
    """Refused for safety; nothing was done."""

    exit_code = ExitCode.REFUSED


class ImageServiceError(ImgcacheError):
    """The image service cannot be used; nothing was done on hosts."""

    exit_code = ExitCode.IMAGE_SERVICE


class AuthenticationError(ImageServiceError):
    """The image service, or Keystone before it, does not accept who we are."""


class ImageServiceUnreachableError(ImageServiceError):
    """No answer, one that broke off, no connection, or no trust (TLS) to the image service."""


class ImageProblemsError(_ProblemsError, ImageServiceError):
    """Images are missing, ambiguous, not active or not cacheable; lists every one."""

    exit_code = ExitCode.IMAGE_SERVICE


class HostError(ImgcacheError):
    """Something went wrong on one host; the engine turns it into outcomes."""

    def __init__(self, code: ErrorCode, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ContactLostError(HostError):
    """The host stopped answering in the middle of work: what happened there is unknown."""
