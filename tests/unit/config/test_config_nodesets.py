"""Host names and node sets: what is accepted is safe everywhere (S11), and never expanded unseen (C8)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgcache.config.groups import _open
from imgcache.config.nodesets import MAX_HOSTS, check_host_name, count_hosts, expand_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        "fe80::1%-", "a\x00", "\x1b[31m", "a*", "a?", "a!", "a&", "^b", "@", "@@g", "a%d",
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
        "a[01-100]", "a[1-2][3-4]", "a,,b", ",a", "a,", "[1:10^9]", "a[1-2],b c", "a[1-2]!!a1",
        "a[1-2]&&a1", "a[1-2]^", "!a", "@x;id", "@$(id)", "@-x", "@x y", "@@x", "@a:@b", "@x*", "a*", "a!u@h",
        "a[[1-2]]", "-[1-2]", "a[1-2]/b", "-a,b", "a,-b", f"a[{'0' * 70000}1-9]",
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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a[1-4]!a2", ["a1", "a3", "a4"]),
        ("a[1-4]!a[2-3]", ["a1", "a4"]),
        ("a[1-4]&a[3-9]", ["a3", "a4"]),
        ("a[1-3]^a[3-4]", ["a1", "a2", "a4"]),
        # From left to right, without precedence.
        ("a[1-3]!a2,a2", ["a1", "a2", "a3"]),
        ("a1,a2&a2", ["a2"]),
        ("a[1,3,5]!a[1,5]", ["a3"]),
        ("a1!a1", []),
    ],
)
def test_operators(text: str, names: list[str]) -> None:
    assert list(expand_hosts(text)) == names


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("compute[01:40]", "did you mean '[01-40]'?"),
        ("compute[01:40].example.net", "did you mean '[01-40]'?"),
        ("compute[1:40:2]", "did you mean '[1-40/2]'?"),
        ("db-[a:f]", "no ranges of letters"),
    ],
)
def test_ranges_as_ansible_writes_them(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"as Ansible writes it") as caught:
        count_hosts(text)
    assert hint in str(caught.value)


GROUPS = """
compute: node[01-04]
spare: node04
all: node[01-04],ctl
both: @compute,ctl
loop: @loop
empty:
rack1: node01
rack2: node[02-03]
many: node[1-2000000000]
odd: -evil
laughs0: ctl
""" + "".join(f"laughs{n}: {','.join([f'@laughs{n - 1}'] * 9)}\n" for n in range(1, 9))


@pytest.fixture
def groups_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "groups.conf").write_text(
        "[Main]\ndefault: local\n"
        "[local]\nmap: sed -n 's/^$GROUP: *//p' $CFGDIR/groups\n"
        "all: sed -n 's/^all: *//p' $CFGDIR/groups\nlist: sed 's/:.*//' $CFGDIR/groups\n"
        "[sites]\nmap: test $GROUP = oslo && echo ctl\n"
    )
    (tmp_path / "groups").write_text(GROUPS)
    monkeypatch.setenv("CLUSTERSHELL_CFGDIR", str(tmp_path))
    _open.cache_clear()
    yield tmp_path
    _open.cache_clear()


@pytest.mark.usefixtures("groups_conf")
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("@compute", ["node01", "node02", "node03", "node04"]),
        ("@compute!@spare", ["node01", "node02", "node03"]),
        ("@both&ctl,b7", ["b7", "ctl"]),
        ("@rack[1-2]", ["node01", "node02", "node03"]),
        ("@local:spare", ["node04"]),
        ("@sites:oslo", ["ctl"]),
        ("@*!@compute", ["ctl"]),
        ("@empty", []),
    ],
)
def test_groups_of_clustershell(text: str, names: list[str]) -> None:
    assert list(expand_hosts(text)) == names
    # What its own tool says, with the same file.
    nodeset = Path(sys.executable).with_name("nodeset")
    said = subprocess.run([nodeset, "-e", text], capture_output=True, text=True, check=True)
    assert sorted(said.stdout.split()) == sorted(names)
    if len(names) > 1:
        assert count_hosts(text) == len(names)


@pytest.mark.usefixtures("groups_conf")
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("@nosuch", "there is no group @nosuch"),
        ("@nosuch:x", "cannot be resolved"),
        ("@sites:paris", "is not a node set|cannot be resolved"),
        ("@loop", "recursion|without end"),
        ("@laughs8", "without end"),
        ("@many", f"has more than {MAX_HOSTS} hosts"),
        ("@odd", "starts with '-'"),
    ],
)
def test_groups_that_cannot_be_used(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        expand_hosts(text)


def test_groups_that_others_can_change(groups_conf: Path) -> None:
    (groups_conf / "groups.conf").chmod(0o666)
    with pytest.raises(ValueError, match="can be written by other users"):
        expand_hosts("@compute")


def test_a_group_is_no_user() -> None:
    with pytest.raises(ValueError, match="'@compute' is a group of hosts"):
        check_host_name("@compute")
    with pytest.raises(ValueError, match="names a user"):
        count_hosts("root@compute")
