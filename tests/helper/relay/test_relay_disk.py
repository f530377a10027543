"""What is on the disk is served when it is the original, and only then."""

from __future__ import annotations

import fcntl
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import HELPER, Controller, Frame, base_name, image_of, let_others_reach
from helper.life.tree import Tree
from helper.relay.rig import TIMES, Rig
from imgcache.transport.relay_secret import RelayKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = os.urandom(300_000)
RAW, QCOW2 = image_of(DATA), image_of(DATA, "qcow2")
BASE = base_name(RAW["id"])


@pytest.fixture
def tree(instances: Path) -> Tree:
    return Tree(instances)


@pytest.fixture
def rig(tree: Tree, helper: Controller) -> Iterator[Rig]:
    with Rig(helper, tree.instances, tls=False, times=TIMES) as rig:
        yield rig


def serve(rig: Rig, image: Frame = RAW, **changes: Any) -> Frame:
    rig.keys["it"] = key = RelayKey()
    fields = {"base": BASE, "image": image, "name": "it", "key": key.hex.reveal(), **changes}
    return rig.helper.answer(rig.helper.order("serve", **fields))


def assert_served(rig: Rig, image: Frame = RAW) -> None:
    answer = serve(rig, image)
    assert (answer["state"], answer["size"], answer["reason"]) == ("serving", len(DATA), None)
    assert rig.ask("it").read(len(DATA)) == DATA


@pytest.mark.parametrize("managed", [True, False])
def test_a_raw_final(rig: Rig, tree: Tree, managed: bool) -> None:
    final = tree.base(BASE, DATA)
    if managed:
        tree.manifest(final)
    assert_served(rig)


@pytest.mark.parametrize("disk_format", ["raw", "iso", "ami", "ari", "aki"])
def test_formats_that_nova_keeps_as_they_came(rig: Rig, tree: Tree, disk_format: str) -> None:
    tree.base(BASE, DATA)
    assert_served(rig, image_of(DATA, disk_format))


def test_the_formats_are_those_of_the_fetch() -> None:
    found = [
        re.findall(r"^_?RAW_FAMILY = (\(.*\))$", (HELPER / f"{name}.py").read_text(), re.MULTILINE)
        for name in ("relay", "formats")
    ]
    assert found[0] == found[1] != []


def test_a_final_that_was_kept_as_it_came(rig: Rig, tree: Tree) -> None:
    """A host that does not convert: the manifest says so, or the setting does."""
    final = tree.base(BASE, DATA)
    stored = {
        "algo": "sha512",
        "value": RAW["digest"]["value"],
        "size": len(DATA),
        "format": "qcow2",
    }
    manifest = tree.manifest(final, disk_format="qcow2", stored=stored)
    assert_served(rig, QCOW2)
    manifest.unlink()
    assert serve(rig, QCOW2)["state"] == "other"
    rig.helper.result(rig.helper.open(tree.instances, force_raw_images=False))
    assert_served(rig, QCOW2)


def test_a_converted_final_is_not_served(rig: Rig, tree: Tree) -> None:
    tree.manifest(tree.base(BASE, DATA), disk_format="qcow2")
    answer = serve(rig, QCOW2)
    assert (answer["state"], answer["size"]) == ("other", None)
    assert "converted" in answer["reason"]


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1, 0])
def test_another_size_is_not_served(rig: Rig, tree: Tree, size: int) -> None:
    tree.base(BASE, bytes(size))
    answer = serve(rig)
    assert answer["state"] == "other"
    assert str(size) in answer["reason"]


def test_a_final_of_other_bytes_is_not_served(rig: Rig, tree: Tree) -> None:
    tree.manifest(tree.base(BASE, DATA[::-1]))
    assert serve(rig)["state"] == "other"


def test_absent(rig: Rig) -> None:
    answer = serve(rig)
    assert (answer["state"], answer["reason"]) == ("absent", None)
    assert rig.ask("it").status == 403


def test_no_cache_folder_at_all(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances) as rig:
        assert serve(rig)["state"] == "absent"


@pytest.mark.parametrize("converted", [True, False])
def test_a_kept_original(rig: Rig, tree: Tree, converted: bool) -> None:
    if converted:
        tree.manifest(tree.base(BASE, os.urandom(700_000)), disk_format="qcow2")
    (tree.own / f"{BASE}.original").write_bytes(DATA)
    assert_served(rig, QCOW2)


def test_a_kept_original_of_another_size(rig: Rig, tree: Tree) -> None:
    (tree.own / f"{BASE}.original").write_bytes(DATA[:-1])
    assert serve(rig, QCOW2)["state"] == "absent"


def test_no_symlink_is_followed(rig: Rig, tree: Tree, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    (tree.own / f"{BASE}.original").symlink_to(secret)
    assert serve(rig, QCOW2)["state"] == "absent"
    (tree.cache / BASE).symlink_to(secret)
    assert serve(rig)["code"] == "foreign"
    (tree.cache / BASE).unlink()
    os.mkfifo(tree.cache / BASE)
    assert serve(rig)["code"] == "foreign"


@pytest.mark.row("R26")
def test_a_final_that_nova_is_writing_is_not_served(rig: Rig, tree: Tree) -> None:
    tree.base(BASE, DATA)
    with (tree.instances / "locks" / f"nova-{BASE}").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert serve(rig)["code"] == "busy"
    assert_served(rig)


def test_the_lock_is_held_for_a_moment_only(rig: Rig, tree: Tree) -> None:
    tree.base(BASE, DATA)
    path = tree.instances / "locks" / f"nova-{BASE}"
    path.touch()
    serve(rig)
    reader = rig.ask("it")
    with path.open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert reader.read(len(DATA)) == DATA


def test_a_final_that_is_removed_is_read_to_its_end(rig: Rig, tree: Tree) -> None:
    data = os.urandom(1 << 20) * 16
    image = image_of(data)
    base = base_name(image["id"])
    final = tree.base(base, data)
    assert serve(rig, image, base=base)["state"] == "serving"
    reader = rig.ask("it", buffer=4096)
    final.unlink()
    assert reader.read(len(data)) == data


def test_a_final_that_shrinks_ends_the_connection(rig: Rig, tree: Tree) -> None:
    final = tree.base(BASE, DATA)
    serve(rig)
    os.truncate(final, 100_000)
    assert rig.ask("it").rest() == DATA[:100_000]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a/b"},
        {"name": ""},
        {"name": "x" * 101},
        {"key": "abc"},
        {"key": "00" * 8},
        {"base": "x"},
    ],
)
def test_orders_that_make_no_sense(rig: Rig, tree: Tree, changes: Frame) -> None:
    tree.base(BASE, DATA)
    assert serve(rig, **changes)["code"] == "protocol"


def test_serve_before_relay(helper: Controller, instances: Path) -> None:
    helper.load("conf", "cache", "watch", "staging", "offers", "relay")
    helper.open(instances)
    fields: Frame = {"base": BASE, "image": RAW, "name": "it", "key": "00" * 32}
    assert helper.error(helper.order("serve", **fields))["code"] == "protocol"


def test_a_back_end_without_a_cache(rig: Rig, tree: Tree) -> None:
    tree.base(BASE, DATA)
    rig.helper.result(rig.helper.open(tree.instances, images_type="rbd"))
    assert serve(rig)["code"] == "backend"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_final_of_another_user_is_served_by_root(tree: Tree) -> None:
    """Libvirt gives files in use to its own user; the helper works as the owner of instances_path."""
    final = tree.base(BASE, DATA)
    for path in (tree.instances, tree.cache, tree.own, tree.instances / "locks"):
        os.chown(path, 1234, 1234)
    os.chown(final, 4321, 4321)
    final.chmod(0o600)
    let_others_reach(tree.instances)
    with (
        Controller("/usr/bin/python3") as helper,
        Rig(helper, tree.instances, tls=False, times=TIMES) as rig,
    ):
        assert_served(rig)
