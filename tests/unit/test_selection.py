"""Which hosts are selected: explicitly, each once, by cell; a typo never widens it (C8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcache.config.groups import _open
from imgcache.config.inventory import parse_inventory
from imgcache.errors import ExitCode, UsageError
from imgcache.operations.selection import Selection, select_hosts

INVENTORY = parse_inventory(
    Path("inventory.yaml"),
    b"""
aggregates:
  edge-1: {cell: c1, hosts: ["e[1-3]"]}
  edge-2: {cell: c2, hosts: ["e[4-5]"]}
  ssd: {hosts: [e5, e1, e9]}
  edge-3: {cell: c1, hosts: [e8]}
""",
)


def names(selection: Selection) -> list[str]:
    return [host.name for host in select_hosts(INVENTORY, selection)]


def refusal(selection: Selection) -> UsageError:
    with pytest.raises(UsageError) as caught:
        select_hosts(INVENTORY, selection)
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value


def test_all_hosts_each_once_grouped_by_cell() -> None:
    hosts = select_hosts(INVENTORY, Selection(all=True))
    assert [(host.name, host.cell) for host in hosts] == [
        ("e1", "c1"),
        ("e2", "c1"),
        ("e3", "c1"),
        ("e8", "c1"),
        ("e4", "c2"),
        ("e5", "c2"),
        ("e9", None),
    ]


def test_aggregates_and_hosts_add_up_and_exclude_takes_away() -> None:
    assert names(Selection(aggregates=("edge-1",))) == ["e1", "e2", "e3"]
    assert names(Selection(hosts=("e[2-4]",))) == ["e2", "e3", "e4"]
    assert names(Selection(aggregates=("edge-2",), hosts=("e1", "e4"))) == ["e1", "e4", "e5"]
    assert names(Selection(aggregates=("edge-1",), exclude=("e[1-2]", "e9"))) == ["e3"]
    assert names(Selection(all=True, exclude=("e[1-5]",))) == ["e9", "e8"]
    assert names(Selection(hosts=("e1",), all=True, exclude=("e[2-5],e[8-9]",))) == ["e1"]


def test_a_host_comes_as_member_of_the_first_selected_aggregate() -> None:
    def aggregates(*selected: str) -> list[tuple[str, str]]:
        hosts = select_hosts(INVENTORY, Selection(aggregates=selected))
        return [(host.name, host.aggregate) for host in hosts if host.name == "e1"]

    assert aggregates("edge-1", "ssd") == [("e1", "edge-1")]
    assert aggregates("ssd", "edge-1") == [("e1", "ssd")]
    (by_name,) = select_hosts(INVENTORY, Selection(hosts=("e1",)))
    assert by_name.aggregate == "edge-1"


@pytest.mark.row("C8")
@pytest.mark.parametrize("exclude", [(), ("e1",)])
def test_nothing_selected_is_not_everything(exclude: tuple[str, ...]) -> None:
    error = refusal(Selection(exclude=exclude))
    assert error.message == "no hosts selected"
    assert error.hint == "say which: --aggregate NAME, --host NODESET, or --all"


@pytest.mark.row("C8")
def test_unknown_names_are_all_told_with_the_nearest() -> None:
    error = refusal(
        Selection(aggregates=("edge-9", "x"), hosts=("e[3-6]", "a["), exclude=("e77",), all=True)
    )
    for part in (
        "aggregate 'edge-9' is not in the inventory",
        "aggregate 'x' is not in the inventory",
        "--host: host 'e6' is not in the inventory",
        "--host: 'a['",
        "--exclude: host 'e77' is not in the inventory",
    ):
        assert part in error.message
    assert error.hint is not None
    assert "did you mean edge-" in error.hint


@pytest.mark.row("C8")
def test_a_mistyped_exclusion_widens_nothing() -> None:
    assert "--exclude: host 'e0' is not" in refusal(Selection(all=True, exclude=("e0",))).message


@pytest.mark.row("C8")
@pytest.mark.parametrize("node_set", ["e[1-1000000000]", "*", "@all", "e[1-3]!e1!", "", "e1 e2"])
def test_no_node_set_beyond_names_and_ranges(node_set: str) -> None:
    refusal(Selection(hosts=(node_set,)))


def test_a_large_wrong_range_is_told_briefly() -> None:
    message = refusal(Selection(hosts=("f[1-50000]",))).message
    assert "and 49980 more" in message
    assert len(message) < 2000


def test_an_exclusion_that_leaves_nothing_is_refused() -> None:
    error = refusal(Selection(aggregates=("edge-3",), exclude=("e8",)))
    assert "no hosts left" in error.message


def test_node_sets_with_operators_select() -> None:
    assert names(Selection(hosts=("e[1-5]!e[2-4]",))) == ["e1", "e5"]


def test_groups_select_and_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "groups.conf").write_text(
        "[Main]\ndefault: l\n[l]\nmap: sed -n 's/^$GROUP: *//p' $CFGDIR/groups\n"
        "list: sed 's/:.*//' $CFGDIR/groups\n"
    )
    (tmp_path / "groups").write_text("one: e[1-2]\nmore: e[2-3],ctl\nnone:\n")
    monkeypatch.setenv("CLUSTERSHELL_CFGDIR", str(tmp_path))
    _open.cache_clear()
    try:
        assert names(Selection(hosts=("@one",))) == ["e1", "e2"]
        # A group to leave out may have more than the inventory; one to work on may not.
        assert names(Selection(hosts=("e[1-3]",), exclude=("@more",))) == ["e1"]
        assert "host 'ctl' is not in the inventory" in refusal(Selection(hosts=("@more",))).message
        assert "no group @moer" in refusal(Selection(all=True, exclude=("@moer",))).message
        assert names(Selection(hosts=("e1",), exclude=("@none",))) == ["e1"]
        assert "there are none in what was named" in refusal(Selection(hosts=("@none",))).message
    finally:
        _open.cache_clear()
