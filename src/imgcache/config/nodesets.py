"""Host names and node sets (``edge1-[01-20],edge2-07``), checked before anything is expanded.

Node sets are ClusterShell's: ranges with steps, groups (``@name``, ``@source:name``, ``@*``) and the
operators ``,`` (and), ``!`` (without), ``&`` (common) and ``^`` (either), from left to right. Wildcards
are refused.
Source: ClusterShell's documentation, tools/nodeset.
"""

from __future__ import annotations

import ipaddress
import math
import re

from imgcache.text import printable

#: A run has at most 10,000 hosts in practice; ten times that is a mistyped range.
MAX_HOSTS = 100_000
_MAX_NAME_CHARS = 253  # RFC 1035, 2.3.4
_MAX_SET_CHARS = 65536
_MAX_DIGITS = 9

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,32}\Z")
_SET_CHARS = re.compile(r"[A-Za-z0-9_.,/\[\]@:*!&^-]+\Z")
_OPERATOR = re.compile(r"[,!&^](?![^\[]*\])")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:/(\d+))?)?\Z", re.ASCII)
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
#: The name may become a part of a command that groups.conf names, so nothing that a shell could see.
_GROUP = re.compile(r"@(?:[A-Za-z0-9_][A-Za-z0-9_.-]*:)?(?:\*|[A-Za-z0-9_][A-Za-z0-9_.:-]*)\Z")
#: How Ansible writes ranges.
_COLONS = re.compile(r"\[(\w+):(\w+)(?::(\d+))?\]", re.ASCII)


def check_host_name(name: str) -> str:
    """Return ``name`` when it is a host name, an IPv4 or an IPv6 address that is safe everywhere.

    Raises:
        ValueError: it is not; says why.
    """
    if ":" in name:
        return _check_ipv6(name)
    if name.startswith("-"):
        message = f"{_shown(name)} starts with '-': it would be taken for an option"
        raise ValueError(message)
    if name.startswith("@"):
        message = f"{_shown(name)} is a group of hosts, where one host is to be named"
        raise ValueError(message)
    if "@" in name:
        message = f"{_shown(name)} names a user: give it as 'user:'"
        raise ValueError(message)
    if not _NAME.match(name) or ".." in name or len(name) > _MAX_NAME_CHARS:
        message = f"{_shown(name)} is not a host name or address"
        raise ValueError(message)
    return name


def _check_ipv6(name: str) -> str:
    address, percent, scope = name.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        message = (
            f"{_shown(name)} is neither a host name nor an IPv6 address (a port goes to 'port:')"
        )
        raise ValueError(message) from None
    if percent and not _SCOPE.match(scope):
        message = f"{_shown(name)} has an odd scope after '%'"
        raise ValueError(message)
    return name


def _shown(name: str) -> str:
    return f"'{printable(name, 80)}'"


def count_hosts(text: str) -> int:
    """Return how many names a node set stands for at most; only groups are looked up for that.

    Raises:
        ValueError: not a node set; more than ``MAX_HOSTS`` names; or a group that cannot be resolved.
    """
    if not _is_set(text):
        check_host_name(text)
        return 1
    _refuse_colons(text)
    if len(text) > _MAX_SET_CHARS or not _SET_CHARS.match(text):
        message = f"{_shown(text)} is not a node set such as edge1-[01-20],edge2-07"
        raise ValueError(message)
    parts = _OPERATOR.split(text)
    total = sum(_count_part(part) for part in parts)
    if total > MAX_HOSTS:
        message = f"{_shown(text)} stands for {total} hosts, more than {MAX_HOSTS}"
        raise ValueError(message)
    return len(_resolve(text)) if any(part.startswith("@") for part in parts) else total


def _is_set(text: str) -> bool:
    return text.startswith("@") or any(char in text for char in "[],!&^")


def _refuse_colons(text: str) -> None:
    found = _COLONS.search(text)
    if not found:
        return
    first, last, step = found.groups()
    if first.isdigit() and last.isdigit():
        right = f"did you mean '[{first}-{last}{f'/{step}' if step else ''}]'?"
    else:
        right = "name each: there are no ranges of letters"
    message = f"'{found[0]}' is a range as Ansible writes it: {right}"
    raise ValueError(message)


def _count_part(part: str) -> int:
    if "][" in part:
        message = f"{_shown(part)} has two ranges side by side"
        raise ValueError(message)
    ranges = _BRACKETS.findall(part)
    count = math.prod(sum(_count_range(text) for text in one.split(",")) for one in ranges)
    # What is left must be a name with any number in place of each range.
    name = _BRACKETS.sub("0", part)
    if not part.startswith("@"):
        if ":" in name:
            message = f"{_shown(part)}: an IPv6 address cannot be part of a node set"
            raise ValueError(message)
        check_host_name(name)
    elif not _GROUP.match(name):
        message = f"{_shown(part)} is not a group such as @compute or @racks:r7"
        raise ValueError(message)
    return count


def _count_range(text: str) -> int:
    found = _RANGE.match(text)
    if not found:
        message = f"'[{printable(text, 80)}]' is not a range such as [01-20] or [1-9/2,12]"
        raise ValueError(message)
    if any(len(number or "") > _MAX_DIGITS for number in found.groups()):
        message = (
            f"the range '[{printable(text, 80)}]' has numbers of more than {_MAX_DIGITS} digits"
        )
        raise ValueError(message)
    padded = any(
        number and number.startswith("0") and len(number) > 1 for number in found.groups()[:2]
    )
    if padded and found[2] and len(found[1]) != len(found[2]):
        message = f"the range '[{text}]' needs as many digits in its last number as in its first"
        raise ValueError(message)
    first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
    if last < first or step < 1:
        message = f"the range '[{text}]' runs backwards or has a step of 0"
        raise ValueError(message)
    return (last - first) // step + 1


def expand_hosts(text: str) -> tuple[str, ...]:
    """Return the names that a node set stands for, each once, in ClusterShell's order; there may be none.

    Raises:
        ValueError: see ``count_hosts``.
    """
    count_hosts(text)
    return _resolve(text) if _is_set(text) else (text,)


def _resolve(text: str) -> tuple[str, ...]:
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException  # noqa: PLC0415
    from ClusterShell.NodeUtils import GroupResolverError, GroupSourceError  # noqa: PLC0415

    from imgcache.config.groups import open_groups  # noqa: PLC0415

    try:
        resolver = open_groups(MAX_HOSTS) if "@" in text else RESOLVER_NOGROUP
        names = tuple(str(name) for name in NodeSet(text, resolver=resolver))
    except (GroupResolverError, GroupSourceError) as exc:
        message = f"{_shown(text)} cannot be resolved: {printable(str(exc), 200)} (see groups.conf)"
        raise ValueError(message) from exc
    except NodeSetException as exc:
        message = f"{_shown(text)} is not a node set: {printable(str(exc), 200)}"
        raise ValueError(message) from exc
    for name in names:
        check_host_name(name)
    return names
