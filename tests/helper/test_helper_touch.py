"""Opening the cache and touching finals, beside a live Nova."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import PUSH, Controller, Frame, base_name, image_of, let_others_reach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BASE = base_name("an image")
#: Users that need no account.
NOVA, QEMU, OTHER = 64101, 64102, 64103
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of several users need root")


@pytest.fixture
def cache(instances: Path) -> Path:
    path = instances / "_base"
    path.mkdir()
    return path


def final_in(cache: Path, data: bytes = b"x" * 100, age_s: float = 90000) -> Path:
    path = cache / BASE
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def touch(helper: Controller, sizes: list[int] | None = None, *, dry: bool = False) -> Frame:
    return helper.answer(helper.order("touch", base=BASE, sizes=sizes or [], dry=dry))


def test_absent_takes_no_lock(helper: Controller, instances: Path, cache: Path) -> None:
    helper.open(instances)
    assert touch(helper)["state"] == "absent"
    assert os.listdir(cache) == []
    assert os.listdir(instances) == ["_base"]


@pytest.mark.row("R24")
def test_touch_renews(helper: Controller, instances: Path, cache: Path) -> None:
    final = final_in(cache)
    helper.open(instances)
    answer = touch(helper, [7, 100])
    assert (answer["state"], answer["touched"], answer["managed"], answer["size"]) == (
        "existing",
        True,
        False,
        100,
    )
    assert answer["mtime"] < time.time() - 80000
    assert final.stat().st_mtime > time.time() - 100
    assert (instances / "locks" / f"nova-{BASE}").stat().st_mode & 0o777 == 0o644
    assert (instances / "locks").stat().st_mode == instances.stat().st_mode


def test_dry_changes_nothing(helper: Controller, instances: Path, cache: Path) -> None:
    final = final_in(cache)
    before = final.stat().st_mtime
    helper.open(instances)
    answer = touch(helper, dry=True)
    assert (answer["state"], answer["touched"]) == ("existing", False)
    assert final.stat().st_mtime == before
    assert os.listdir(instances) == ["_base"]


@pytest.mark.row("R26")
@pytest.mark.parametrize(
    ("size", "sizes"), [(100, [99, 101]), (0, []), (0, [100]), (0, [100, 0]), (511, [100, 0])]
)
def test_a_wrong_size_is_damaged_and_not_renewed(
    helper: Controller, instances: Path, cache: Path, size: int, sizes: list[int]
) -> None:
    final = final_in(cache, b"x" * size)
    before = final.stat().st_mtime
    helper.open(instances)
    answer = touch(helper, sizes)
    assert (answer["event"], answer["code"], answer["fields"]["size"]) == ("error", "damaged", size)
    assert final.stat().st_mtime == before


@pytest.mark.row("R14")
@pytest.mark.parametrize(
    "base", ["..", "a" * 39, "A" * 40, "a" * 41, "../../../../../etc/passwd", "a" * 39 + "\n", ""]
)
def test_only_base_names_are_names(
    helper: Controller, instances: Path, cache: Path, base: str
) -> None:
    helper.open(instances)
    assert helper.error(helper.order("touch", base=base, sizes=[], dry=False))["code"] == "protocol"


@pytest.mark.row("H10")
@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_a_final_that_is_no_file_is_left_alone(
    helper: Controller, instances: Path, cache: Path, kind: str
) -> None:
    final = cache / BASE
    if kind == "symlink":
        (instances / "target").write_bytes(b"x")
        final.symlink_to(instances / "target")
    elif kind == "fifo":
        os.mkfifo(final)
    else:
        final.mkdir()
    before = final.lstat()
    helper.open(instances)
    assert touch(helper)["code"] == "foreign"
    image = image_of(b"data", id="an image")
    assert helper.error(helper.fetch(image, PUSH))["code"] == "foreign"
    assert final.lstat() == before


@pytest.mark.row("H10")
def test_instances_path_may_be_a_symlink(
    helper: Controller, instances: Path, cache: Path, tmp_path: Path
) -> None:
    final_in(cache)
    link = tmp_path / "link"
    link.symlink_to(instances)
    opened = helper.result(helper.open(link))
    assert opened["cache_path"] == str(cache)
    assert touch(helper)["touched"] is True


@pytest.mark.row("H10")
@pytest.mark.parametrize("name", ["_base", "locks", "_base/.imgcache"])
def test_symlinks_inside_are_refused(
    helper: Controller, instances: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if name != "_base":
        (instances / "_base").mkdir()
        final_in(instances / "_base")
    (instances / name).symlink_to(elsewhere)
    opened = helper.answer(helper.open(instances))
    answer = touch(helper) if name == "locks" else opened
    assert (answer["event"], answer["code"]) == ("error", "symlink")
    assert f"is a symlink, to {elsewhere}, and links are not followed" in answer["message"]
    assert "mount --bind" in answer["message"]
    assert os.listdir(elsewhere) == []
    assert touch(helper)["code"] == "symlink"  # sent ahead of a failed open: fails as that did


@pytest.mark.row("H11")
def test_missing_instances_path_is_never_made(helper: Controller, tmp_path: Path) -> None:
    answer = helper.error(helper.open(tmp_path / "nowhere"))
    assert answer["code"] == "nopath"
    assert not (tmp_path / "nowhere").exists()
    assert helper.error(helper.open("relative/path"))["code"] == "nopath"
    (tmp_path / "file").write_bytes(b"")
    assert helper.error(helper.open(tmp_path / "file"))["code"] == "nopath"


@pytest.mark.parametrize("name", ["/etc", "../other", "a/../../b", "", "."])
def test_cache_subdirectory_must_lie_inside(helper: Controller, instances: Path, name: str) -> None:
    assert helper.error(helper.open(instances, cache_subdirectory=name))["code"] == "config"


def test_cache_subdirectory_may_be_deeper(helper: Controller, instances: Path) -> None:
    opened = helper.result(helper.open(instances, cache_subdirectory="cache/_base"))
    assert (opened["cache_path"], opened["cache_exists"]) == (f"{instances}/cache/_base", False)
    fetch = helper.fetch(image_of(b"data"), PUSH)
    helper.event(fetch, "ready")
    helper.push(fetch, b"data")
    assert helper.result(fetch)["state"] == "cached"
    assert (instances / "cache/_base" / base_name(image_of(b"data")["id"])).read_bytes() == b"data"


@pytest.mark.parametrize("kind", ["rbd", "ploop"])
def test_back_ends_without_cache_are_guarded(
    helper: Controller, instances: Path, cache: Path, kind: str
) -> None:
    final = final_in(cache)
    before = final.stat().st_mtime
    assert helper.result(helper.open(instances, images_type=kind))["images_type"] == kind
    assert touch(helper)["code"] == "backend"
    assert helper.error(helper.fetch(image_of(b"data"), PUSH))["code"] == "backend"
    assert final.stat().st_mtime == before


# ---- locks


@pytest.fixture
def held(instances: Path, cache: Path) -> Iterator[int]:
    """Hold Nova's lock, as nova-compute would: opened for append, POSIX, whole file."""
    (instances / "locks").mkdir()
    with (instances / "locks" / f"nova-{BASE}").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield file.fileno()


@pytest.mark.row("R21")
@pytest.mark.row("H15")
def test_waits_for_novas_lock_and_then_goes_on(
    helper: Controller, instances: Path, cache: Path, held: int
) -> None:
    final = final_in(cache)
    helper.open(instances)
    order = helper.order("touch", base=BASE, sizes=[], dry=False)
    time.sleep(0.5)
    assert final.stat().st_mtime < time.time() - 80000
    fcntl.lockf(held, fcntl.LOCK_UN)
    assert helper.result(order)["touched"] is True


@pytest.mark.row("H15")
def test_a_lock_that_stays_held_is_busy(helper: Controller, instances: Path, held: int) -> None:
    data = b"y" * 1000
    helper.open(instances)
    fetch = helper.fetch(image_of(data, id="an image"), PUSH, lock_wait_s=1)
    helper.event(fetch, "ready")
    helper.push(fetch, data)
    assert helper.error(fetch)["code"] == "busy"
    assert os.listdir(instances / "_base/.imgcache") == []
    assert not (instances / "_base" / BASE).exists()


@pytest.mark.row("R21")
def test_a_lock_file_that_nova_deleted_meanwhile_does_not_count(
    helper: Controller, instances: Path, cache: Path, held: int
) -> None:
    final = final_in(cache)
    lock = instances / "locks" / f"nova-{BASE}"
    helper.open(instances)
    order = helper.order("touch", base=BASE, sizes=[], dry=False)
    time.sleep(0.3)  # the helper polls the held file
    lock.unlink()
    with lock.open("a") as second:
        fcntl.lockf(second, fcntl.LOCK_EX)
        fcntl.lockf(held, fcntl.LOCK_UN)
        time.sleep(0.5)
        assert final.stat().st_mtime < time.time() - 80000
    assert helper.result(order)["touched"] is True


def test_lock_files_stay(helper: Controller, instances: Path, cache: Path) -> None:
    final_in(cache)
    helper.open(instances)
    inode = None
    for _ in range(3):
        touch(helper)
        now = (instances / "locks" / f"nova-{BASE}").stat().st_ino
        assert inode in {None, now}
        inode = now


@pytest.mark.row("H17")
def test_finals_that_vanish_while_touched(helper: Controller, instances: Path, cache: Path) -> None:
    helper.open(instances)
    ended = threading.Event()

    def purge() -> None:
        while not ended.is_set():
            final_in(cache)
            (cache / BASE).unlink()

    thread = threading.Thread(target=purge)
    thread.start()
    try:
        orders = [helper.order("touch", base=BASE, sizes=[], dry=False) for _ in range(300)]
        answers = [helper.answer(order) for order in orders]
    finally:
        ended.set()
        thread.join()
    assert {answer.get("state") for answer in answers if answer["event"] == "result"} <= {
        "absent",
        "existing",
    }
    # Between creation and content a final may be seen empty: damaged. Anything else would be a bug.
    assert {answer.get("code") for answer in answers if answer["event"] == "error"} <= {"damaged"}


# ---- users


@pytest.fixture
def common() -> Iterator[Controller]:
    """Return a helper under a Python that all users may run: root's own may be for root alone."""
    with Controller(system_python()) as controller:
        yield controller


def system_python() -> str:
    """Return a Python that every user may run."""
    found = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    if not found:
        pytest.skip("no Python outside of a private folder")
    return found


def opened_by(user: int, instances: Path) -> Controller:
    helper = Controller(system_python(), user=user)
    helper.open(instances)
    return helper


@needs_root
@pytest.mark.row("H23")
@pytest.mark.row("R22")
def test_root_makes_everything_as_novas_user(instances: Path) -> None:
    os.chown(instances, NOVA, NOVA)
    let_others_reach(instances)
    data = os.urandom(100_000)
    image = image_of(data)
    with Controller(system_python()) as helper:
        helper.open(instances)
        fetch = helper.fetch(image, PUSH)
        helper.event(fetch, "ready")
        helper.push(fetch, data)
        helper.result(fetch)
    found = [instances, *instances.rglob("*")]
    assert len(found) == 7
    assert {(path.stat().st_uid, path.stat().st_gid) for path in found} == {(NOVA, NOVA)}


@needs_root
@pytest.mark.row("T13")
@pytest.mark.parametrize(("owner", "mode"), [(NOVA, 0o600), (0, 0o660), (0, 0o606)])
def test_root_takes_no_other_users_word_for_a_folder_of_roots(
    common: Controller, instances: Path, tmp_path: Path, owner: int, mode: int
) -> None:
    """Else Nova's user could have root put an image's bytes anywhere, /etc/cron.d say."""
    conf = tmp_path / "nova.conf"
    conf.write_text(f"[DEFAULT]\nstate_path = {instances.parent}\n")
    given: dict[str, Any] = {
        "nova_conf": [str(conf)],
        "instances_path": None,
        "cache_subdirectory": None,
    }
    conf.chmod(0o640)
    assert common.result(common.open(instances, **given))["event"] == "result"
    os.chown(conf, owner, owner)
    conf.chmod(mode)
    error = common.error(common.open(instances, **given))
    assert error["code"] == "config"
    assert str(conf) in error["message"]
    touch_again = common.order("touch", base=BASE, sizes=[], dry=False)
    assert common.error(touch_again)["code"] == "config"
    given.update(instances_path=str(instances), cache_subdirectory="_base")
    common.result(common.open(instances, **given))
    os.chown(instances, NOVA, NOVA)  # what Nova's user may write anyway
    let_others_reach(instances)
    given.update(instances_path=None)
    common.result(common.open(instances, **given))


@needs_root
@pytest.mark.row("R22")
def test_root_renews_files_in_use_by_qemu(common: Controller, instances: Path, cache: Path) -> None:
    for path in (instances, cache):
        os.chown(path, NOVA, NOVA)
    let_others_reach(instances)
    final = final_in(cache)
    os.chown(final, QEMU, QEMU)
    common.open(instances)
    assert touch(common)["touched"] is True
    assert final.stat().st_mtime > time.time() - 100
    assert final.stat().st_uid == QEMU


@needs_root
def test_files_of_qemus_user_are_left_to_nova(instances: Path, cache: Path) -> None:
    for path in (instances, cache):
        os.chown(path, NOVA, NOVA)
    let_others_reach(instances)
    final = final_in(cache)
    os.chown(final, QEMU, QEMU)
    with opened_by(NOVA, instances) as helper:
        answer = touch(helper)
    assert (answer["state"], answer["touched"]) == ("existing", False)
    assert str(QEMU) in answer["reason"]


@needs_root
@pytest.mark.row("R22")
def test_a_group_members_lock_file_is_open_to_nova(instances: Path, cache: Path) -> None:
    for path in (instances, cache):
        os.chown(path, NOVA, OTHER)
        path.chmod(0o775)
    let_others_reach(instances)
    final_in(cache).chmod(0o664)
    os.chown(cache / BASE, NOVA, OTHER)
    with opened_by(OTHER, instances) as helper:
        assert touch(helper)["touched"] is True
    lock = (instances / "locks" / f"nova-{BASE}").stat()
    assert lock.st_mode & 0o060 == 0o060
    assert lock.st_gid == OTHER


@needs_root
@pytest.mark.row("H9")
def test_no_permission_says_whose_and_who(instances: Path, cache: Path) -> None:
    os.chown(instances, NOVA, NOVA)
    let_others_reach(instances)
    final_in(cache)
    with opened_by(OTHER, instances) as helper:
        answer = touch(helper)
        assert answer["code"] == "permission"
        assert answer["fields"]["user"] == str(OTHER)
        assert answer["fields"]["owner"] == str(NOVA)
        assert "mode" in answer["fields"]
        assert str(NOVA) in answer["message"]
        assert helper.error(helper.fetch(image_of(b"data"), PUSH))["code"] == "permission"


@needs_root
@pytest.mark.row("H9")
@pytest.mark.parametrize("user", [None, NOVA])
def test_a_lock_file_that_cannot_be_opened_is_found_before_the_download(
    instances: Path, user: int | None
) -> None:
    """As root's own tools leave it; a helper that is root works as Nova's user."""
    image = image_of(b"data")
    lock = instances / "locks" / f"nova-{base_name(image['id'])}"
    lock.parent.mkdir()
    lock.touch(0o600)
    for path in (instances, lock.parent):
        os.chown(path, NOVA, NOVA)
    let_others_reach(instances)
    with Controller(system_python(), user=user) as helper:
        helper.result(helper.open(instances))
        fetch = helper.fetch(image, PUSH)
        answer = helper.error(fetch)  # nothing was pushed
        assert answer["code"] == "permission"
        assert f"{lock} (of root:0, mode 0600; we are {NOVA})" in answer["message"]
        assert "Nova's user" in answer["message"]
        lock.unlink()
        again = helper.fetch(image, PUSH)
        helper.push_when_ready(again, b"data")
        assert helper.result(again)["state"] == "cached"


@needs_root
def test_a_locks_folder_that_cannot_be_written_is_found_before_the_download(
    instances: Path,
) -> None:
    (instances / "locks").mkdir()
    os.chown(instances, NOVA, NOVA)
    let_others_reach(instances)
    (instances / "locks").chmod(0o755)
    with Controller(system_python(), user=NOVA) as helper:
        helper.result(helper.open(instances))
        answer = helper.error(helper.fetch(image_of(b"data"), PUSH))
    assert answer["code"] == "permission"
    assert "in a folder of root:0, mode 0755" in answer["message"]


@needs_root
def test_an_unreadable_nova_conf_is_told(instances: Path, tmp_path: Path) -> None:
    conf = tmp_path / "nova.conf"
    conf.write_text("[DEFAULT]\n")
    conf.chmod(0o600)
    let_others_reach(instances)
    with Controller(system_python(), user=OTHER) as helper:
        answer = helper.error(helper.open(instances, images_type=None, nova_conf=[str(conf)]))
    assert answer["code"] == "config"
    assert str(conf) in answer["message"]


@pytest.mark.row("H11")
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o775])
def test_folders_get_the_mode_of_instances_path(
    helper: Controller, instances: Path, mode: int
) -> None:
    instances.chmod(mode)
    helper.open(instances)
    fetch = helper.fetch(image_of(b"data"), PUSH)
    helper.event(fetch, "ready")
    helper.push(fetch, b"data")
    helper.result(fetch)
    for name in ("_base", "_base/.imgcache", "locks"):
        assert (instances / name).stat().st_mode & 0o777 == mode, name


# ---- manifests


def manifest_in(cache: Path, **changes: Any) -> Path:
    (cache / ".imgcache").mkdir(exist_ok=True)
    path = cache / ".imgcache" / f"{BASE}.json"
    manifest = {
        "version": 1, "base": BASE, "stored": {"algo": "sha512", "value": "0", "size": 100, "format": "raw"},
        "touched_at": "2020-01-01T00:00:00Z", "pin": {"kept": "as it is"}, **changes,
    }  # fmt: skip
    path.write_text(json.dumps(manifest))
    return path


def test_touch_notes_itself_in_the_manifest(
    helper: Controller, instances: Path, cache: Path
) -> None:
    final_in(cache)
    path = manifest_in(cache)
    helper.open(instances)
    answer = touch(helper)
    assert (answer["managed"], answer["touched"], answer["reason"]) == (True, True, None)
    manifest = json.loads(path.read_text())
    assert manifest["touched_at"] > "2026"
    assert manifest["pin"] == {"kept": "as it is"}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"base": "f" * 40}, {"stored": None}, {"stored": {"size": 99}}]
)
def test_manifests_that_do_not_fit_are_left_alone(
    helper: Controller, instances: Path, cache: Path, changes: dict[str, Any]
) -> None:
    final_in(cache)
    path = manifest_in(cache, **changes)
    before = path.read_text()
    helper.open(instances)
    answer = touch(helper)
    assert (answer["managed"], answer["touched"]) == (False, True)
    assert path.read_text() == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1e999", '"x"', "\0", "[" * 60000, "{" * 100]
)
def test_damaged_manifests_break_nothing(
    helper: Controller, instances: Path, cache: Path, text: str
) -> None:
    final_in(cache)
    manifest_in(cache).write_text(text)
    helper.open(instances)
    answer = touch(helper)
    assert (answer["managed"], answer["touched"]) == (False, True)


def test_a_manifest_that_is_a_fifo_blocks_nothing(
    helper: Controller, instances: Path, cache: Path
) -> None:
    final_in(cache)
    path = manifest_in(cache)
    path.unlink()
    os.mkfifo(path)
    helper.open(instances)
    assert touch(helper)["managed"] is False


@needs_root
@pytest.mark.row("H8")
def test_read_only_file_system(helper: Controller, instances: Path, tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mount_rdonly, mount_remount = 1, 32
    if libc.mount(b"tmpfs", bytes(instances), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"mounting is not possible here: {errno.errorcode[ctypes.get_errno()]}")
    try:
        (instances / "_base").mkdir()
        final_in(instances / "_base")
        libc.mount(b"tmpfs", bytes(instances), b"tmpfs", mount_rdonly | mount_remount, b"size=1m")
        helper.open(instances)
        assert touch(helper)["code"] == "io"
        assert helper.error(helper.fetch(image_of(b"data"), PUSH))["code"] == "io"
        assert helper.end() == 0
    finally:
        libc.umount2(bytes(instances), 2)
