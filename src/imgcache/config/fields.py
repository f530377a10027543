"""The types of the inventory's values: how text in the file becomes a setting."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from imgcache.config.files import expand_home
from imgcache.config.nodesets import check_host_name, count_hosts
from imgcache.config.rates import bytes_per_s
from imgcache.config.windows import parse_window, zone_of
from imgcache.model import DRIVER_NAME

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOGIN = re.compile(r"[^\s@:,/-][^\s:,/]*\Z")
#: It becomes an argument of sudo on the host, so nothing that a shell could see.
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?\Z", re.ASCII)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]")
_HOP = re.compile(
    r"(?:(?P<user>[^\s@,/-][^\s,/]*)@)?(?:\[(?P<ip>[^\]\s]+)\]|(?P<name>[^\s:@,/\[\]]+))(?::(?P<port>\d{1,5}))?\Z"
)
_PORT = re.compile(r"\s*\d{1,5}\s*", re.ASCII)
_MAX_TEXT = 4096
#: In an ``endpoint`` for several hosts: each one's name.
HOST_PLACEHOLDER = "{host}"


def _plain_text(value: str) -> str:
    if not value.strip():
        message = "must not be empty"
        raise ValueError(message)
    if _CONTROL.search(value) or len(value) > _MAX_TEXT:
        message = f"must be one line of at most {_MAX_TEXT} characters, without control characters"
        raise ValueError(message)
    return value


def _login(value: str) -> str:
    if not _LOGIN.match(value) or _CONTROL.search(value):
        message = "is not a user name"
        raise ValueError(message)
    return value


def _driver_name(value: str) -> str:
    # Which drivers there are is known to who looks for hosts: other packages bring some.
    if not DRIVER_NAME.fullmatch(value):
        message = "is not the name of a driver (lower-case letters, digits and hyphens)"
        raise ValueError(message)
    return value


def check_account(value: str) -> str:
    """Return the name of a user on a host.

    Raises:
        ValueError: it is none; the message begins with "is".
    """
    if not _ACCOUNT.match(value):
        message = "is not the name of a user on the host"
        raise ValueError(message)
    return value


def _node_set(value: str) -> str:
    count_hosts(value)
    return value


def _words(value: Any) -> Any:
    """Split a command given as one string the way a shell would; a list is taken as it is."""
    words = shlex.split(value) if isinstance(value, str) else value
    if isinstance(words, list) and (not words or not words[0]):
        message = "must name a command"
        raise ValueError(message)
    return words


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _local_path(value: str, info: ValidationInfo) -> Path:
    """Resolve a path on the controller: ``~`` is the home, relative means beside the inventory."""
    folder: Path = info.context["folder"] if info.context else Path.cwd()
    return folder / expand_home(Path(_plain_text(value)))


def _host_path(value: str) -> str:
    _plain_text(value)
    if not value.startswith("/") and not _WINDOWS_PATH.match(value):
        message = "must be an absolute path on the host"
        raise ValueError(message)
    if ".." in re.split(r"[\\/]", value):
        message = "must not contain '..'"
        raise ValueError(message)
    return value


def _folder_name(value: str) -> str:
    _plain_text(value)
    if "/" in value or "\\" in value or value in {".", ".."}:
        message = "must be the name of a folder inside instances_path, not a path"
        raise ValueError(message)
    return value


def _size_bytes(value: Any) -> int:
    """Parse ``10GiB`` (or a plain number of bytes); GiB is binary, GB is decimal."""
    from humanfriendly import InvalidSize, parse_size  # noqa: PLC0415

    try:
        size = int(parse_size(str(value)))
    except (InvalidSize, OverflowError) as exc:
        message = "is not a size such as 10GiB or 500MB"
        raise ValueError(message) from exc
    if size < 0:
        message = "must not be negative"
        raise ValueError(message)
    return size


def _url(value: str) -> str:
    if "@" in _plain_text(value):
        # Said without the value: it may hold a password. Wherever the @ is: a password may hold a slash.
        message = "the URL must be plain: no user, password, query or fragment"
        raise ValueError(message)
    try:
        parts = urlsplit(value)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, fine = urlsplit(""), False
    if not fine or any(char.isspace() for char in value):
        message = "must be a URL such as https://glance.example.net:9292"
        raise ValueError(message)
    if parts.query or parts.fragment:
        message = "the URL must be plain: no user, password, query or fragment"
        raise ValueError(message)
    return value.rstrip("/")


def _node_url(value: str) -> str:
    """Check the URL of a host; ``{host}`` in it stands for the host's name."""
    plain = value.replace(HOST_PLACEHOLDER, "host")
    if "{" in plain or "}" in plain:
        message = f"knows no placeholder but {HOST_PLACEHOLDER}, the host's name"
        raise ValueError(message)
    _url(plain)
    return value.rstrip("/")


def _jumps(value: str) -> str:
    """Check ``[user@]host[:port]``, several separated by commas, as OpenSSH's ProxyJump."""
    for hop in value.split(","):
        found = _HOP.match(hop)
        if not found or not 0 < int(found["port"] or 22) < 65536:
            message = "must be [user@]host[:port], several separated by commas"
            raise ValueError(message)
        check_host_name(found["ip"] or found["name"])
    return value


def _link_rate(value: Any) -> int:
    return bytes_per_s(str(value))


def _ports(value: Any) -> tuple[int, int]:
    """Return the first and last port of ``4900-4999``, of ``4900``, or of a list of the two."""
    words = value if isinstance(value, list) else str(value).split("-")
    message = "is not a port or a range of ports such as 4900-4999"
    if not 1 <= len(words) <= 2 or not all(_PORT.fullmatch(str(word)) for word in words):
        raise ValueError(message)
    first, last = int(words[0]), int(words[-1])
    if not 0 < first <= last < 65536:
        raise ValueError(message)
    return first, last


def _on_off(value: Any) -> Any:
    """Take ``on`` and ``off`` besides what YAML 1.1 takes for true and false."""
    return {"on": True, "off": False}.get(str(value).lower(), value)


def _window(value: str) -> str:
    parse_window(value)
    return value


def _timezone(value: str) -> str:
    zone_of(value)
    return value


Text = Annotated[str, AfterValidator(_plain_text)]
Login = Annotated[str, AfterValidator(_login)]
Account = Annotated[str, AfterValidator(check_account)]
HostName = Annotated[str, AfterValidator(check_host_name)]
DriverName = Annotated[str, AfterValidator(_driver_name)]
NodeSetText = Annotated[str, AfterValidator(_node_set)]
Words = Annotated[tuple[Text, ...], BeforeValidator(_words)]
LocalPath = Annotated[str, AfterValidator(_local_path)]
HostPath = Annotated[str, AfterValidator(_host_path)]
HostPaths = Annotated[tuple[HostPath, ...], BeforeValidator(_one_or_many)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_one_or_many)]
SizeBytes = Annotated[int, BeforeValidator(_size_bytes)]
Url = Annotated[str, AfterValidator(_url)]
NodeUrl = Annotated[str, AfterValidator(_node_url)]
Jumps = Annotated[str, AfterValidator(_jumps)]
LinkRate = Annotated[int, BeforeValidator(_link_rate)]
Ports = Annotated[tuple[int, int], BeforeValidator(_ports)]
Switch = Annotated[bool, BeforeValidator(_on_off)]
WindowText = Annotated[str, AfterValidator(_window)]
ZoneName = Annotated[str, AfterValidator(_timezone)]
