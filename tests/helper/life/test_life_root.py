"""A helper that was started as root is led nowhere by the user who owns the instances, nor by a guest."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import ctypes
import itertools
import os
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from helper.controller import Controller, let_others_reach
from helper.life.test_life_use import NOBODY, give_away, qcow2, system_python
from helper.life.tree import Life, Tree
from imgcache.helper import cache as caches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("needs_root")

OTHER = 64102
_IN_OPEN = 0x20


@pytest.fixture
def nova(tmp_path: Path) -> Path:
    """Return Nova's home, which other users may enter, as usual packages have it."""
    let_others_reach(tmp_path)
    tmp_path.chmod(0o755)
    home = tmp_path / "nova"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    return home


@contextmanager
def opens_of(*paths: Path) -> Iterator[Callable[[], int]]:
    """Count how often these are opened, by anybody."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0
    for path in paths:
        assert libc.inotify_add_watch(fd, os.fsencode(path), _IN_OPEN) > 0

    def count() -> int:
        try:
            return len(os.read(fd, 1 << 16)) // 16
        except BlockingIOError:
            return 0

    try:
        yield count
    finally:
        os.close(fd)


def refused(path: Path) -> str | None:
    """Open a cache as root; return the code that it is refused with."""
    with Controller(system_python()) as helper:
        frame = helper.answer(helper.open(path))
    code: str | None = frame.get("code")
    return code


@pytest.mark.parametrize("owner", [0, OTHER])
@pytest.mark.parametrize("replaced", ["instances", "state", "state/instances"])
def test_a_folder_on_the_way_that_nova_replaced_by_a_link_is_refused(
    owner: int, replaced: str, nova: Path, tmp_path: Path
) -> None:
    """Root would make a cache there, and remove what looks like a base file."""
    victim = tmp_path / "victim"
    (victim / "instances").mkdir(parents=True)
    for path in (victim, victim / "instances"):
        os.chown(path, owner, owner)
    given = nova / replaced
    if "/" in replaced:
        given.parent.mkdir()
        os.chown(given.parent, NOBODY, NOBODY)
    target = victim / "instances" if replaced.endswith("instances") else victim
    given.symlink_to(target)
    os.chown(given, NOBODY, NOBODY, follow_symlinks=False)
    path = given if replaced.endswith("instances") else given / "instances"
    assert refused(path) == "symlink"
    assert os.listdir(victim / "instances") == []


def test_a_folder_that_others_may_write_to_on_the_way_is_refused(tmp_path: Path) -> None:
    let_others_reach(tmp_path)
    shared = tmp_path / "shared"
    (shared / "instances").mkdir(parents=True)
    shared.chmod(0o777)
    assert refused(shared / "instances") == "symlink"


@pytest.mark.parametrize("link", ["root's", "nova's own, inside its home"])
def test_links_that_lead_nova_to_its_own_folder_work(link: str, nova: Path, tmp_path: Path) -> None:
    instances = nova / "volume/instances"
    instances.mkdir(parents=True)
    give_away(nova)
    way = (tmp_path if link == "root's" else nova) / "way"
    way.symlink_to(instances)
    if link != "root's":
        os.chown(way, NOBODY, NOBODY, follow_symlinks=False)
    assert refused(way) is None


@pytest.mark.parametrize(
    "how", ["header", "header, closed folder", "link", "flips", "flips, device"]
)
def test_what_only_root_may_read_outside_is_never_opened(
    how: str, nova: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "closed/secret"
    secret.parent.mkdir(mode=0o700 if how == "header, closed folder" else 0o755)
    if how == "flips, device":
        os.mknod(secret, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    else:
        secret.write_bytes(qcow2(b"x"))
        secret.chmod(0o644 if how == "header, closed folder" else 0o600)
    tree = Tree(nova / "instances")
    base = tree.image("image")
    disk = tree.instances / "vm-1/disk"
    disk.parent.mkdir()
    disk.write_bytes(qcow2(str(secret).encode()))
    if how == "link":
        disk.unlink()
        disk.symlink_to(secret)
    give_away(nova)
    stop = threading.Event()

    def flip() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            new = tmp_path / f"new{number % 2}"  # out of sight until it is Nova's
            new.unlink(missing_ok=True)
            if number % 2:
                new.symlink_to(secret)
            else:
                new.write_bytes(bytes(4096))
                new.chmod(0)
            os.chown(new, NOBODY, NOBODY, follow_symlinks=False)
            new.rename(disk)

    racer = threading.Thread(target=flip if how.startswith("flips") else stop.wait)
    racer.start()
    try:
        with opens_of(secret) as count, Life(system_python()) as life:
            life.start_on(tree.instances)
            for _ in range(20 if how.startswith("flips") else 1):
                life.look()
            assert count() == 0
            if how.startswith("header"):
                assert life.look()[1]["problems"] == [], "a guest must not block a host"
            if how == "link":
                assert life.remove_one(base) == "evidence"
    finally:
        stop.set()
        racer.join()


def test_a_pipe_where_a_manifest_is_written_holds_nobody_up(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "instances")
    values = {
        "instances_path": str(tree.instances), "cache_subdirectory": "_base", "images_type": "qcow2",
    }  # fmt: skip
    base = "0" * 40
    os.mkfifo(tree.own / f"{base}.json.new")
    cache = caches.Cache(values)
    manifest = {"version": 1, "base": base, "stored": {"size": 1}}
    writer = threading.Thread(target=cache.write_manifest, args=(manifest,), daemon=True)
    writer.start()
    writer.join(10)
    assert not writer.is_alive()
    assert cache.read_manifest(base) == manifest


def test_a_python_for_root_alone_is_found_at_the_start(nova: Path) -> None:
    """It would fail at its first import as Nova's user, and be taken for a bug."""
    (nova / "instances").mkdir()
    give_away(nova)
    hide = (
        "folder=$(\"$1\" -c 'import os; print(os.path.dirname(os.__file__))') && copy=$(mktemp -d)"
        ' && mount -t tmpfs -o mode=700 none "$copy" && cp -a "$folder/." "$copy" && chmod 700 "$copy"'
        ' && mount --bind "$copy" "$folder" && exec "$@"'
    )
    prefix = ("unshare", "--mount", "sh", "-euc", hide, "sh")
    with Controller(system_python(), prefix=prefix) as helper:
        frame = helper.answer(helper.open(nova / "instances"))
    assert frame["code"] == "python"
    assert "/usr/bin/python3" in frame["message"]
