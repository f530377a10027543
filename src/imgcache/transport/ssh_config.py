"""What of ``~/.ssh/config`` is honoured, and how a host's SSH settings come together.

Honoured, each as OpenSSH does (the first value found wins; files add up): ``Host`` with patterns,
``Match all``, ``Include``, ``HostName``, ``User``, ``Port``, ``IdentityFile``, ``CertificateFile``,
``IdentitiesOnly``, ``ProxyJump``, ``UserKnownHostsFile``, ``GlobalKnownHostsFile``, ``RevokedHostKeys``.

Everything else is ignored, on purpose: ``ProxyCommand``, ``LocalCommand``, ``RemoteCommand``,
``KnownHostsCommand``, ``SetEnv``, ``SendEnv``, ``ForwardAgent``, ``ForwardX11``,
``StrictHostKeyChecking``, algorithms. A
section with any other ``Match`` than ``all`` is skipped whole; ``Match exec`` never runs anything. Only
the user's own file is read, not ``/etc/ssh/ssh_config``.

The inventory's settings win over the file's, the file's over OpenSSH's defaults.

Source: ssh_config(5) of OpenSSH 9.2.
"""

from __future__ import annotations

import getpass
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from imgcache.errors import ConfigError, ErrorCode, HostError, Problem
from imgcache.text import printable
from imgcache.transport.base import ResolvedAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.model import Host

_SINGLE = frozenset({"hostname", "user", "port", "identitiesonly", "proxyjump"})
_WORD_LISTS = frozenset({"userknownhostsfile", "globalknownhostsfile", "revokedhostkeys"})
_ADDING = frozenset({"identityfile", "certificatefile"})
_MAX_INCLUDE_DEPTH = 16
_MAX_FILE_BYTES = 1024 * 1024
_GLOBAL_KNOWN_HOSTS = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))
_LINE = re.compile(r"\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*?)\s*$")


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How to reach one SSH server, all sources put together."""

    hostname: str
    port: int
    user: str
    key_files: tuple[Path, ...]
    """Keys named by inventory or config; empty: the agent's, then OpenSSH's default files."""
    certificate_files: tuple[Path, ...]
    only_named_keys: bool
    """Whether keys that are merely in the agent are left alone."""
    proxy_jump: str | None
    known_hosts: tuple[Path, ...]
    """Files to look host keys up in; the first is the user's own."""
    revoked_host_keys: tuple[Path, ...] = ()


class SshConfig:
    """The honoured part of one ssh config file, parsed once."""

    def __init__(self, path: Path | None = None) -> None:
        self._home = _home()
        self._sections: list[tuple[tuple[str, ...], list[tuple[str, list[str]]]]] = []
        start = path or self._home / ".ssh" / "config"
        self._read(start, ("*",), 0)
        self._cache: dict[str, dict[str, list[str]]] = {}

    def _read(self, path: Path, patterns: tuple[str, ...], depth: int) -> tuple[str, ...]:
        section = self._begin(patterns)
        for number, line in _lines(path):
            parsed = _LINE.match(line)
            keyword, rest = (parsed[1].lower(), parsed[2]) if parsed else ("", line)
            try:
                words = shlex.split(rest, comments=False)
            except ValueError as exc:
                raise _problem(path, number, f"cannot be parsed: {exc}") from exc
            if not words:
                continue
            if keyword == "host":
                patterns = tuple(words)
                section = self._begin(patterns)
            elif keyword == "match":
                patterns = ("*",) if [word.lower() for word in words] == ["all"] else ()
                section = self._begin(patterns)
            elif keyword == "include":
                if depth >= _MAX_INCLUDE_DEPTH:
                    raise _problem(path, number, "includes are nested too deeply")
                for included in self._included(words):
                    self._read(included, patterns, depth + 1)
                section = self._begin(patterns)
            elif keyword in _SINGLE | _WORD_LISTS | _ADDING:
                if keyword == "port" and not _valid_port(words[0]):
                    raise _problem(path, number, f"no port: {printable(words[0], 40)}")
                section.append((keyword, words))
        return patterns

    def _begin(self, patterns: tuple[str, ...]) -> list[tuple[str, list[str]]]:
        section: list[tuple[str, list[str]]] = []
        self._sections.append((patterns, section))
        return section

    def _included(self, words: list[str]) -> Iterator[Path]:
        for word in words:
            path = _expand(word, self._home)
            base = path if path.is_absolute() else self._home / ".ssh" / path
            yield from sorted(Path("/").glob(str(base).lstrip("/")))

    def values(self, name: str) -> dict[str, list[str]]:
        """Return keyword -> words for the host that is called ``name`` in the inventory."""
        if (found := self._cache.get(name)) is not None:
            return found
        found = {}
        for patterns, settings in self._sections:
            if not matches(name, patterns):
                continue
            for keyword, words in settings:
                if keyword in _ADDING:
                    found.setdefault(keyword, []).extend(words[:1])
                else:
                    found.setdefault(keyword, words)
        self._cache[name] = found
        return found

    def settings_for(self, host: Host) -> SshSettings:
        """Return how to reach ``host``: inventory, then this file, then OpenSSH's defaults.

        Raises:
            HostError: code ``connect``: an address or user that cannot be one.
        """
        given = host.settings
        return self._settings(
            host.address,
            port=given.port,
            user=given.user,
            key=given.ssh_key,
            known_hosts=given.known_hosts,
            jump=given.proxy_jump,
        )

    def settings_for_jump(self, spec: str, like: SshSettings) -> SshSettings:
        """Return how to reach a jump host, given as ``[user@]host[:port]``.

        A jump host without keys of its own in the config gets those of the host behind it.
        """
        user, _, rest = spec.rpartition("@")
        host, port = split_port(rest)
        found = self._settings(
            host, port=port, user=user or None, key=None, known_hosts=None, jump="none"
        )
        keys = found.key_files or like.key_files
        return SshSettings(
            hostname=found.hostname,
            port=found.port,
            user=found.user,
            key_files=keys,
            certificate_files=found.certificate_files or like.certificate_files,
            only_named_keys=found.only_named_keys or (like.only_named_keys and not found.key_files),
            proxy_jump=None,
            known_hosts=tuple(dict.fromkeys((*like.known_hosts, *found.known_hosts))),
            revoked_host_keys=found.revoked_host_keys,
        )

    def _settings(
        self,
        name: str,
        *,
        port: int | None,
        user: str | None,
        key: Path | None,
        known_hosts: Path | None,
        jump: str | None,
    ) -> SshSettings:
        found = self.values(name)
        hostname = found.get("hostname", [name])[0].replace("%h", name).replace("%%", "%")
        user = user or (found["user"][0] if "user" in found else _local_user())
        check_address(hostname, user)
        tokens = {
            "%h": hostname,
            "%n": name,
            "%r": user,
            "%u": _local_user(),
            "%d": str(self._home),
        }
        proxy_jump = jump or found.get("proxyjump", ["none"])[0]
        key_files = [key] if key else self._paths(found.get("identityfile", []), tokens)
        certificates = [] if key else self._paths(found.get("certificatefile", []), tokens)
        only_named = key is not None or found.get("identitiesonly", ["no"])[0].lower() == "yes"
        return SshSettings(
            hostname=hostname,
            port=port or int(found.get("port", ["22"])[0]),
            user=user,
            key_files=tuple(key_files),
            certificate_files=tuple(certificates),
            only_named_keys=only_named,
            proxy_jump=None if proxy_jump.lower() == "none" else proxy_jump,
            known_hosts=self._known_hosts(found, known_hosts, tokens),
            revoked_host_keys=tuple(self._paths(found.get("revokedhostkeys", []), tokens)),
        )

    def _known_hosts(
        self, found: dict[str, list[str]], given: Path | None, tokens: dict[str, str]
    ) -> tuple[Path, ...]:
        if given:
            return (given,)
        ssh = self._home / ".ssh"
        own = [ssh / "known_hosts", ssh / "known_hosts2"]
        if "userknownhostsfile" in found:
            own = self._paths(found["userknownhostsfile"], tokens)
        system = list(_GLOBAL_KNOWN_HOSTS)
        if "globalknownhostsfile" in found:
            system = self._paths(found["globalknownhostsfile"], tokens)
        return (*own, *system)

    def _paths(self, words: list[str], tokens: dict[str, str]) -> list[Path]:
        paths = []
        for word in words:
            if word.lower() == "none":
                continue
            text = re.sub(
                "%.",
                lambda token: tokens.get(token[0], token[0][1:] if token[0] == "%%" else token[0]),
                word,
            )
            path = _expand(text, self._home)
            paths.append(path if path.is_absolute() else self._home / ".ssh" / path)
        return paths


def resolve(host: Host, config: SshConfig | None = None) -> ResolvedAddress:
    """Return where ``host`` is reached and in which files its key is looked up.

    Raises:
        HostError, ConfigError: see ``SshConfig``.
    """
    settings = (config or SshConfig()).settings_for(host)
    return ResolvedAddress(
        hostname=settings.hostname,
        port=settings.port,
        known_hosts_files=settings.known_hosts,
        proxy_jump=settings.proxy_jump,
        revoked_files=settings.revoked_host_keys,
    )


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether ``name`` matches one of the patterns (``*``, ``?``) and none of those with ``!``."""
    found = False
    for pattern in patterns:
        negated = pattern.startswith("!")
        if _pattern(pattern.removeprefix("!")).fullmatch(name.lower()):
            if negated:
                return False
            found = True
    return found


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(text)


def split_port(text: str) -> tuple[str, int | None]:
    """Split ``host``, ``host:port``, ``[address]:port`` or a bare IPv6 address.

    Raises:
        HostError: code ``jump``: no port.
    """
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    if port is not None and not _valid_port(port):
        message = f"proxy_jump has no valid port: {printable(text, 80)}"
        raise HostError(ErrorCode.JUMP, message, hint="proxy_jump: [user@]host[:port]")
    return host, int(port) if port else None


def check_address(hostname: str, user: str) -> None:
    """Refuse addresses and users that could be taken for something else (S11).

    Raises:
        HostError: code ``connect``.
    """
    bad_host = not re.fullmatch(r"[\w.:%-]+", hostname) or hostname.startswith("-")
    if bad_host:
        message = f"not an address: {printable(hostname, 100)!r}"
        raise HostError(
            ErrorCode.CONNECT, message, hint="address: a host name or an IP address, nothing else"
        )
    if (
        not user
        or user.startswith("-")
        or not user.isprintable()
        or not set(user).isdisjoint(" @:/\\'\"")
    ):
        message = f"not a user name: {printable(user, 100)!r}"
        raise HostError(ErrorCode.CONNECT, message, hint="user: the login name on the host")


def _valid_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        data = path.read_bytes()[:_MAX_FILE_BYTES]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise _problem(path, 0, f"cannot be read: {exc.strerror}") from exc
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _problem(path: Path, number: int, what: str) -> ConfigError:
    where = f"{path}:{number}" if number else str(path)
    return ConfigError("the SSH client configuration is wrong", [Problem(where, what)])


def _expand(text: str, home: Path) -> Path:
    if text == "~" or text.startswith("~/"):
        return home / text[2:]
    return Path(text)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


@cache
def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        message = "who you are is not known here, so the SSH user is not known either"
        raise HostError(ErrorCode.LOGIN, message, hint="set user: in the inventory") from None
