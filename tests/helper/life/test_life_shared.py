"""Caches that other hosts may see: what a host can know of that, and what it must leave alone."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from helper.life.tree import DAY, Life, Tree
from servers.network_storage import mounting

if TYPE_CHECKING:
    from pathlib import Path

ME = socket.gethostname()


def register(tree: Tree, **hosts: float) -> None:
    """Write Nova's registry: host -> seconds since its last sign."""
    now = time.time()
    seen = {host: now - ago for host, ago in hosts.items()}
    (tree.instances / "compute_nodes").write_text(json.dumps(seen))


def on(tree: Tree, folder: Path, **mounts: Path) -> Life:
    """Return a helper that sees these mounts, type -> place; to be used as a context manager."""
    helper = Life(prefix=mounting(folder, **mounts))
    helper.start_on(tree.instances)
    return helper


def files(tree: Tree) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in tree.instances.rglob("*")}


@pytest.mark.row("H14")
@pytest.mark.row("D11")
@pytest.mark.parametrize("kind", ["nfs4", "cifs", "ceph", "fuse.glusterfs", "ocfs2", "lustre"])
def test_a_base_folder_alone_on_network_storage_is_never_removed_from(
    kind: str, tree: Tree, tmp_path: Path
) -> None:
    """Nova registers who shares ``instances_path``; instances, and locks, of others are elsewhere."""
    path = tree.image("image")
    part = tree.base(f"{path.name}.part")
    register(tree, **{ME: 60})
    with on(tree, tmp_path / "mounts", **{kind: tree.cache}) as life:
        rows, facts = life.look()
        assert rows[path.name]["users"] is None
        (problem,) = facts["problems"]
        assert f"{tree.cache} is on {kind}" in problem
        assert "instances_path" in problem
        assert life.remove_one(path) == "evidence"
        assert life.clean() == {part.name: ("kept", "evidence")}
    assert path.exists()


@pytest.mark.row("H14")
@pytest.mark.parametrize("said", [{}, {"h1": 2 * DAY}, None])
def test_network_storage_that_nobody_is_registered_on_is_not_removed_from(
    said: dict[str, float] | None, tree: Tree, tmp_path: Path
) -> None:
    path = tree.image("image")
    if said is not None:
        register(tree, **said)
    with on(tree, tmp_path / "mounts", nfs=tree.instances) as life:
        (problem,) = life.look()[1]["problems"]
        assert f"{tree.instances}/compute_nodes" in problem
        assert "manager_interval" in problem
        assert life.remove_one(path) == "evidence"
        # As soon as Nova says who shares it, that can be gone by.
        register(tree, **{ME: 0})
        assert life.look()[1]["problems"] == []
        assert life.remove_one(path) is None


@pytest.mark.row("H14")
@pytest.mark.parametrize("hosts", [{ME: 60.0}, {ME: 60.0, "other": 60.0}])
def test_shared_instances_that_nova_registers_are_removed_from(
    hosts: dict[str, float], tree: Tree, tmp_path: Path
) -> None:
    """Whether all registered hosts were examined is the controller's to see."""
    path = tree.image("image")
    register(tree, **hosts)
    with on(tree, tmp_path / "mounts", nfs4=tree.instances) as life:
        rows, facts = life.look()
        assert (rows[path.name]["users"], facts["problems"]) == (0, [])
        assert facts["shares_with"] == [host for host in hosts if host != ME]
        assert life.remove_one(path) is None


@pytest.mark.parametrize("name", ["another-name.example.net", f"{ME}.example.net", ME.upper()])
def test_one_host_registered_on_a_local_disk_is_this_one(
    name: str, tree: Tree, tmp_path: Path
) -> None:
    """Deployments give nova-compute another name than the machine's (edpm-ansible #587, rpc-openstack #9)."""
    path = tree.image("image")
    register(tree, **{name: 60, "before": 2 * DAY})
    with on(tree, tmp_path / "mounts", ext4=tree.instances) as life:
        facts = life.look()[1]
        assert (facts["shares_with"], facts["storage_id"], facts["problems"]) == ([], None, [])
        assert life.remove_one(path) is None


@pytest.mark.parametrize(
    "names", [[f"{ME}.example.net"], [ME.upper()], [ME, f"{ME.capitalize()}.Example.net"]]
)
def test_short_and_full_names_are_of_one_host(names: list[str], tree: Tree, tmp_path: Path) -> None:
    tree.image("image")
    register(tree, **dict.fromkeys([*names, "other.example.net"], 60.0))
    with on(tree, tmp_path / "mounts", nfs4=tree.instances) as life:
        assert life.look()[1]["shares_with"] == ["other.example.net"]


def test_two_hosts_on_a_local_disk_share_it(tree: Tree, tmp_path: Path) -> None:
    """This host exports its own disk."""
    tree.image("image")
    register(tree, **{f"{ME}.a.example": 60, f"{ME}.b.example": 60, "other": 60})
    with on(tree, tmp_path / "mounts", ext4=tree.instances) as life:
        facts = life.look()[1]
    assert "other" in facts["shares_with"]
    assert facts["storage_id"]


@pytest.mark.row("H14")
@pytest.mark.parametrize("kind", ["ext4", "nfs4"])
@pytest.mark.parametrize(
    ("text", "word"),
    [("", "is empty"), ("{", "no JSON object"), ('{"h": null}', "no JSON object"), ("[]", "no")],
)
def test_an_empty_or_broken_registry_keeps_all_and_is_told(
    kind: str, text: str, word: str, tree: Tree, tmp_path: Path
) -> None:
    path = tree.image("image")
    (tree.instances / "compute_nodes").write_text(text)
    with on(tree, tmp_path / "mounts", **{kind: tree.instances}) as life:
        (problem,) = life.look()[1]["problems"]
        assert f"{tree.instances}/compute_nodes, where Nova registers them, " in problem
        assert word in problem
        assert "nova-compute writes it again" in problem
        assert life.remove_one(path) == "evidence"


@pytest.mark.row("H14")
def test_hosts_that_share_their_instances_and_have_a_base_folder_each_share_no_cache(
    tree: Tree, tmp_path: Path
) -> None:
    path = tree.image("image")
    register(tree, **{ME: 60, "other": 60})
    with on(tree, tmp_path / "mounts", nfs4=tree.instances, xfs=tree.cache) as life:
        facts = life.look()[1]
        assert (facts["problems"], facts["shares_with"], facts["storage_id"]) == ([], [], None)
        assert life.remove_one(path) is None


@pytest.mark.row("H14")
def test_a_registry_that_cannot_be_read_is_one_problem_and_keeps(
    tree: Tree, tmp_path: Path
) -> None:
    path = tree.image("image")
    (tree.instances / "compute_nodes").write_text("[1]")
    with on(tree, tmp_path / "mounts", nfs4=tree.instances) as life:
        (problem,) = life.look()[1]["problems"]
        assert "compute_nodes" in problem
        assert life.remove_one(path) == "evidence"


@pytest.mark.row("H14")
def test_a_cache_on_no_file_system_that_is_known_is_not_removed_from(
    tree: Tree, tmp_path: Path
) -> None:
    path = tree.image("image")
    start = mounting(tmp_path / "mounts")
    (tmp_path / "mounts" / "mountinfo").unlink()
    with Life(prefix=start) as life:
        life.start_on(tree.instances)
        (problem,) = life.look()[1]["problems"]
        assert "mountinfo" in problem
        assert life.remove_one(path) == "evidence"


def test_a_cache_that_is_not_there_yet_is_no_problem(tree: Tree, tmp_path: Path) -> None:
    tree.own.rmdir()
    tree.cache.rmdir()
    with on(tree, tmp_path / "mounts", nfs4=tree.instances) as life:
        rows, facts = life.look()
    assert (rows, facts["problems"], facts["storage_id"]) == ({}, [], None)


@pytest.mark.row("H14")
def test_a_look_at_shared_storage_writes_nothing(tree: Tree, tmp_path: Path) -> None:
    tree.image("image")
    register(tree, **{ME: 60, "other": 60})
    before = files(tree)
    with (
        on(tree, tmp_path / "first", nfs4=tree.instances) as first,
        on(tree, tmp_path / "second", nfs4=tree.instances) as second,
    ):
        seen = {helper.look()[1]["storage_id"] for helper in (first, second)}
        assert files(tree) == before
        # Not marked yet, and known to be one by what both see of it.
        assert len(seen) == 1
        assert None not in seen
        marked = [helper.look(mark=True)[1]["storage_id"] for helper in (first, second)]
        assert len(set(marked)) == 1
        assert len(marked[0]) == 32
        assert os.listdir(tree.own) == ["storage-id"]
        assert first.look()[1]["storage_id"] == marked[0]


@pytest.mark.row("H14")
def test_unmarked_storages_of_several_hosts_are_not_taken_for_one(
    tree: Tree, tmp_path: Path
) -> None:
    other = Tree(tmp_path / "there" / "instances")
    for one in (tree, other):
        register(one, **{ME: 60, "other": 60})
    with (
        on(tree, tmp_path / "first", nfs4=tree.instances) as first,
        on(other, tmp_path / "second", nfs4=other.instances) as second,
    ):
        words = [helper.look()[1]["storage_id"] for helper in (first, second)]
    assert len(set(words)) == 2
    # Folders of the hosts' own below shared instances.
    with on(tree, tmp_path / "third", nfs4=tree.instances, xfs=tree.cache) as third:
        assert third.look()[1]["storage_id"] is None


@pytest.mark.row("H14")
def test_a_base_folder_alone_on_network_storage_is_told_to_those_who_fetch(
    tree: Tree, tmp_path: Path
) -> None:
    """Else each host fetches what one of them could for all."""
    words = []
    for name in ("first", "second"):
        with on(tree, tmp_path / name, nfs4=tree.cache) as life:
            answer = life.event(life.order("storage"), "result")
            words.append(answer["storage_id"])
    assert len(words[0] or "") == 32
    assert len(set(words)) == 1
