"""Host names and node sets: what is accepted is safe everywhere (S11), and never expanded unseen (C8)."""

from __future__ import annotations

import pytest

from imgcache.config.nodesets import MAX_HOSTS, check_host_name, count_hosts, expand_hosts


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "edge1-01.example.net",
        "_x",
        "1",
        "192.0.2.1",
        "::1",
        "2001:db8::1",
        "fe80::1%eth0",
        "a" * 253,
    ],
)
def test_host_names(name: str) -> None:
    assert check_host_name(name) == name
    assert expand_hosts(name) == (name,)


@pytest.mark.row("S11")
@pytest.mark.parametrize(
    "name",
    [
        "", "-a", "-oProxyCommand=id", "a b", " a", "a ", "a\n", "a\n-x", "u@h", "a/b", "a\\b",
        "a;id", "$(id)",
        "a`id`", "ä", "\N{CYRILLIC SMALL LETTER A}", "a..b", ".a", "a" * 254, "a:22", "[::1]", "[::1]:22",
        "::1::", "fe80::1%", "fe80::1%a b",
        "fe80::1%-", "a\x00", "\x1b[31m", "a*", "a?", "a!b", "a&b", "a^b", "@g", "a%d",
    ],
)  # fmt: skip
def test_refused_host_names(name: str) -> None:
    if name == "fe80::1%-":
        assert expand_hosts(name) == (name,)
        return
    with pytest.raises(ValueError, match=r"."):
        expand_hosts(name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a[1-3]", ["a1", "a2", "a3"]),
        ("a[01-03].x", ["a01.x", "a02.x", "a03.x"]),
        ("a[1-7/3]", ["a1", "a4", "a7"]),
        ("a[1,3-4]", ["a1", "a3", "a4"]),
        ("a[1-2]b[1-2]", ["a1b1", "a1b2", "a2b1", "a2b2"]),
        ("a,b", ["a", "b"]),
        ("a[1-2],b", ["a1", "a2", "b"]),
        ("a[8-11]", ["a8", "a9", "a10", "a11"]),
        ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_node_sets(text: str, names: list[str]) -> None:
    assert list(expand_hosts(text)) == names
    assert count_hosts(text) == len(names)


@pytest.mark.row("C8")
@pytest.mark.parametrize(
    "text",
    [
        "a[", "a]", "a[]", "a[1-", "a]1[", "a[1-2", "a[x-y]", "a[5-1]", "a[1-3/0]", "a[1--3]", "a[-3]",
        "a[01-1]",
        "a[01-100]", "a[1-2][3-4]", "a,,b", ",a", "a,", "[1:10^9]", "a[1-2],b c", "a[1-2]!a1",
        "a[1-2]&a1", "a[1-2]^b",
        "@x,a", "a[[1-2]]", "-[1-2]", "a[1-2]/b", "-a,b", "a,-b", f"a[{'0' * 70000}1-9]",
        "a[1-1000000000]", "a[1-2],::1",
        "a[1\n-2]", "a[\N{ARABIC-INDIC DIGIT ONE}-3]",
    ],
)  # fmt: skip
def test_refused_node_sets(text: str) -> None:
    # By our own count already, before ClusterShell sees them.
    with pytest.raises(ValueError, match=r"."):
        count_hosts(text)


@pytest.mark.row("C8")
def test_the_cap_is_counted_not_expanded() -> None:
    assert count_hosts(f"a[1-{MAX_HOSTS}]") == MAX_HOSTS
    with pytest.raises(ValueError, match=f"stands for {MAX_HOSTS + 1} hosts"):
        count_hosts(f"a[0-{MAX_HOSTS}]")
    with pytest.raises(ValueError, match="stands for 998001000000 hosts"):
        count_hosts("a[1-999]b[1-999]c[0-999999]")
