"""Inventories of several files: what is included, what each file may say, and whose place a fault has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgcache.config import files
from imgcache.config.load import load_inventory
from imgcache.errors import ConfigError

if TYPE_CHECKING:
    from imgcache.model import Inventory

LISTED = Path(__file__).parent / "ansible-list.json"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def refusals(path: Path, environ: dict[str, str] | None = None) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load_inventory(path, environ or {})
    return [(problem.where, problem.what) for problem in caught.value.problems]


def hosts(inventory: Inventory) -> dict[str, list[str]]:
    return {name: [host.name for host in one.hosts] for name, one in inventory.aggregates.items()}


def test_aggregates_of_several_files(tmp_path: Path) -> None:
    main = write(
        tmp_path / "inventory.yaml",
        "include: ['more/*.yaml', extra.yaml]\ndefaults: {user: nova, reserve: 1GiB}\n"
        "aggregates: {own: {hosts: [a]}}\n",
    )
    write(
        tmp_path / "more/20-oslo.yaml",
        "sites: {oslo: {bandwidth: 1Gbit/s}}\naggregates: {oslo: {site: oslo, hosts: [b]}}\n",
    )
    write(
        tmp_path / "more/10-bergen.yaml",
        "defaults: {user: ops, ssh_key: key}\naggregates: {bergen: {hosts: [c]}}\n",
    )
    write(tmp_path / "more/.hidden.yaml", "nonsense")
    write(tmp_path / "more/30-old.yaml~", "nonsense")
    write(
        tmp_path / "extra.yaml", "x-d: &d {port: 2222}\naggregates: {extra: {<<: *d, hosts: [d]}}\n"
    )
    inventory = load_inventory(main, {})
    assert hosts(inventory) == {"own": ["a"], "bergen": ["c"], "oslo": ["b"], "extra": ["d"]}
    assert inventory.sites["oslo"].bytes_per_s == 125_000_000
    of = {name: one.hosts[0].settings for name, one in inventory.aggregates.items()}
    # A file's defaults are for its own hosts, over those of the main file; its paths are beside it.
    assert [of[name].user for name in of] == ["nova", "ops", "nova", "nova"]
    assert {settings.reserve_bytes for settings in of.values()} == {1024**3}
    assert of["bergen"].ssh_key == tmp_path / "more/key"
    assert of["extra"].port == 2222


def test_an_ansible_inventory_is_included_like_any_other(tmp_path: Path) -> None:
    shutil.copyfile(LISTED, tmp_path / "ansible.json")
    main = write(
        tmp_path / "inventory.yaml",
        "include: ansible.json\nimage_service: {cloud: edge}\ndefaults: {user: nova}\n"
        "sites: {oslo: {bandwidth: 1Gbit/s}}\n",
    )
    inventory = load_inventory(main, {})
    assert inventory.image_service.cloud == "edge"
    (one, *_) = inventory.aggregates["control"].hosts
    assert one.settings.user == "nova"
    assert "oslo" in inventory.sites


def test_all_faults_of_all_files_at_once_each_with_its_place(tmp_path: Path) -> None:
    main = write(
        tmp_path / "inventory.yaml",
        "include: [a.yaml, b.yaml, c.yaml, hosts.ini, missing.yaml]\naggregates:\n  own: {hosts: [a]}\n",
    )
    a = write(
        tmp_path / "a.yaml",
        "aggregates:\n  own: {hosts: [b], prot: 1}\ninclude: x\nimage_service: {}\n",
    )
    b = write(tmp_path / "b.yaml", "aggregates: [\n")
    c = write(tmp_path / "c.yaml", "aggregates: {c: {hosts: [c]}}\n")
    c.chmod(0o666)
    ini = write(tmp_path / "hosts.ini", "[compute]\nh1\n")
    found = refusals(main)
    belongs = "belongs into the file that includes this one"
    assert sorted(found) == sorted(
        [
            (f"{a}:2:21: aggregates.own.prot", "unknown key"),
            (f"{a}:3:1: include", belongs),
            (f"{a}:4:1: image_service", belongs),
            (f"{b}:2:1", next(what for where, what in found if str(b) in where)),
            (str(c), "can be written by other users"),
            (f"{ini}:1:1", "this is an Ansible inventory (INI)"),
            (f"{main}:1:46: include[4]", f"there is no file {tmp_path}/missing.yaml"),
        ]
    )


def test_what_two_files_name_has_both_places(tmp_path: Path) -> None:
    main = write(
        tmp_path / "inventory.yaml",
        "include: a.yaml\nsites: {oslo: {}}\naggregates:\n  own: {site: oslo, hosts: [a]}\n",
    )
    a = write(
        tmp_path / "a.yaml", "sites: {oslo: {}}\naggregates:\n  own: {site: oslo, hosts: [b]}\n"
    )
    assert refusals(main) == [
        (f"{a}:1:9: sites.oslo", f"given twice, first at {main}:2:9: sites.oslo"),
        (f"{a}:3:3: aggregates.own", f"given twice, first at {main}:4:3: aggregates.own"),
    ]
    write(a, "aggregates:\n  other: {hosts: [{name: a, port: 7}, {name: b, address: a}]}\n")
    ((one, what), (other, same)) = refusals(main)
    assert (one, other) == (
        f"{a}:2:19: aggregates.other.hosts[0]",
        f"{a}:2:39: aggregates.other.hosts[1]",
    )
    assert f"other settings here (port) than at {main}:4:29: aggregates.own.hosts[0]" in what
    assert f"b is the same machine and cache as a at {main}:4:29" in same


def test_patterns_without_a_match_are_fine_and_each_file_counts_once(tmp_path: Path) -> None:
    text = "include: ['nothing.d/*', '*.yaml', 'a.yaml']\naggregates: {own: {hosts: [a]}}\n"
    main = write(tmp_path / "inventory.yaml", text)
    write(tmp_path / "a.yaml", "aggregates: {a: {hosts: [b]}}\n")
    assert hosts(load_inventory(main, {})) == {"own": ["a"], "a": ["b"]}


def test_inventory_d_belongs_to_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    place = tmp_path / "imgcache/inventory.yaml"
    write(place, "image_service: {cloud: edge}\n")
    write(tmp_path / "imgcache/inventory.d/b.yaml", "aggregates: {b: {hosts: [b]}}\n")
    write(tmp_path / "imgcache/inventory.d/a.yaml", "aggregates: {a: {hosts: [a]}}\n")
    write(tmp_path / "imgcache/inventory.d/README", "nonsense")
    assert hosts(load_inventory(None, environ)) == {"a": ["a"], "b": ["b"]}
    # Named or found: the same.
    assert hosts(load_inventory(place, environ)) == {"a": ["a"], "b": ["b"]}
    # It needs no file beside it.
    place.unlink()
    assert hosts(load_inventory(None, environ)) == {"a": ["a"], "b": ["b"]}
    # Elsewhere a file includes what it says, and no more.
    elsewhere = write(tmp_path / "inventory.yaml", "aggregates: {c: {hosts: [c]}}\n")
    write(tmp_path / "inventory.d/x.yaml", "nonsense")
    assert hosts(load_inventory(elsewhere, environ)) == {"c": ["c"]}
    system = tmp_path / "etc/inventory.yaml"
    monkeypatch.setattr(files, "_SYSTEM_INVENTORY", system)
    write(system.parent / "inventory.d/s.yaml", "aggregates: {s: {hosts: [s]}}\n")
    assert hosts(load_inventory(None, {"XDG_CONFIG_HOME": "/nowhere"})) == {"s": ["s"]}


def test_without_any_aggregate_the_main_file_is_told(tmp_path: Path) -> None:
    main = write(tmp_path / "inventory.yaml", "include: a.yaml\n")
    write(tmp_path / "a.yaml", "defaults: {}\n")
    assert refusals(main) == [(f"{main}:1:1", "'aggregates' is missing")]
