"""Host names and node sets (``edge1-[01-20],edge2-07``), checked before anything is expanded."""

from __future__ import annotations

import ipaddress
import re

from imgcache.text import printable

#: A run has at most 10,000 hosts in practice; ten times that is a mistyped range.
MAX_HOSTS = 100_000
_MAX_NAME_CHARS = 253  # RFC 1035, 2.3.4
_MAX_SET_CHARS = 65536
_MAX_DIGITS = 9

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,32}\Z")
_SET_CHARS = re.compile(r"[A-Za-z0-9_.,/\[\]-]+\Z")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:/(\d+))?)?\Z", re.ASCII)
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


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
    """Return how many names a node set stands for at most, without expanding it.

    Accepted: names, ranges with steps (``[01-20]``, ``[1-9/2,12]``) and commas; none of ClusterShell's
    groups, wildcards and set operators, which could widen a set unseen.

    Raises:
        ValueError: not a node set; or more than ``MAX_HOSTS`` names.
    """
    if not _is_set(text):
        check_host_name(text)
        return 1
    if len(text) > _MAX_SET_CHARS or not _SET_CHARS.match(text):
        message = f"{_shown(text)} is not a node set such as edge1-[01-20],edge2-07"
        raise ValueError(message)
    total = sum(_count_part(part) for part in _split_outside(text))
    if total > MAX_HOSTS:
        message = f"{_shown(text)} stands for {total} hosts, more than {MAX_HOSTS}"
        raise ValueError(message)
    return total


def _is_set(text: str) -> bool:
    return "[" in text or "]" in text or "," in text


def _split_outside(text: str) -> list[str]:
    """Split at the commas that are not inside of brackets."""
    return re.split(r",(?![^\[]*\])", text)


def _count_part(part: str) -> int:
    count = 1
    if "][" in part:
        message = f"{_shown(part)} has two ranges side by side"
        raise ValueError(message)
    for ranges in _BRACKETS.findall(part):
        count *= sum(_count_range(text) for text in ranges.split(","))
    # What is left must be a host name with any number in place of each range.
    check_host_name(_BRACKETS.sub("0", part))
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
    """Return the names that a node set stands for, each once, in ClusterShell's order.

    Raises:
        ValueError: see ``count_hosts``.
    """
    count_hosts(text)
    if not _is_set(text):
        return (text,)
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException  # noqa: PLC0415

    try:
        names = tuple(str(name) for name in NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetException as exc:
        message = f"{_shown(text)} is not a node set: {printable(str(exc), 120)}"
        raise ValueError(message) from exc
    for name in names:
        check_host_name(name)
    return names
