"""The life of a Hyper-V host's cache, under a real Windows Python in wine: from list to pin."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from helper.test_hyperv_helper import DATA, DAY_S, IMAGE, age, fetch, rows_of
from servers.vhd_files import differencing_vhd, fixed_vhd, vhdx_with_parent
from servers.wine import windows_path

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Controller
    from servers.wine_fixtures import WindowsHost

pytestmark = [pytest.mark.wine, pytest.mark.xdist_group("wine")]

IMAGE_ID = IMAGE["id"]
#: How long the helper waits for what others hold.
WAITS: dict[str, Any] = {"lock_wait_s": 0.3, "sharing_s": 0.3}


def listed(helper: Controller, *, use: bool = True) -> dict[str, dict[str, Any]]:
    """Return name -> row."""
    number = helper.order("hyperv_list", formats=True, use=use, settings={"nova_conf": None})
    return {row["name"]: row for row in rows_of(helper, number)}


def remove(helper: Controller, row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Order the removal of a listed entry; return its row."""
    item = {
        "name": row["name"], "inode": row["inode"], "mtime_ns": row["mtime_ns"], "min_age_s": 0,
        "ours_ok": False, "pinned_ok": False, **changes,
    }  # fmt: skip
    (answer,) = rows_of(helper, helper.order("hyperv_remove", items=[item], **WAITS))
    return answer


def aged_final(host: WindowsHost, helper: Controller) -> Path:
    """Cache the image as of two days ago; return its file."""
    assert fetch(helper)["state"] == "cached"
    final = host.base / f"{IMAGE_ID}.vhd"
    age(final)
    return final


def disk_of(host: WindowsHost, parent: Path, name: str = "vm1/root.vhd") -> Path:
    """Make an instance's disk whose parent is that file."""
    path = host.instances / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(differencing_vhd(windows_path(parent)))
    return path


def test_a_listing_tells_all_there_is(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    other = "0" * 8 + IMAGE_ID[8:]
    for name in (f"{IMAGE_ID}_20.vhd", f"{IMAGE_ID}.vhdx", other, "notes.txt", "x.vhd"):
        (hyperv_host.base / name).write_bytes(fixed_vhd(b""))
    (hyperv_host.base / f"{other}.imgcache-{'0' * 16}.part").write_bytes(b"")
    disk = disk_of(hyperv_host, hyperv_host.base / f"{IMAGE_ID}_20.vhd")
    rows = listed(helper)
    kinds = {name: row["kind"] for name, row in rows.items()}
    assert kinds == {
        IMAGE_ID: "original", f"{IMAGE_ID}_20": "resized", f"{IMAGE_ID}.vhdx": "foreign",
        f"{other} (download)": "staging", f"{other}.imgcache-{'0' * 16}.part": "staging",
        "notes.txt": "foreign", "x.vhd": "foreign",
    }  # fmt: skip
    row = rows[IMAGE_ID]
    assert (row["size"], row["format"], row["users"]) == (len(DATA), "vhd", 1)
    assert row["used_by"][0].endswith(windows_path(disk)[-20:])
    assert row["inode"] > 0
    final.write_bytes(bytes(len(DATA)))
    assert listed(helper)[IMAGE_ID]["format"] == "raw"
    age(final)
    assert row["mtime_ns"] == pytest.approx(final.stat().st_mtime_ns, abs=2e9)
    assert row["age"] == pytest.approx(2 * DAY_S, abs=120)
    assert row["manifest"]["image_id"] == IMAGE_ID


def test_an_unused_old_image_is_removed_with_its_manifest(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    disk_of(hyperv_host, hyperv_host.base / "11111111-1111-4111-8111-111111111111.vhd")
    row = listed(helper)[IMAGE_ID]
    assert row["users"] == 0
    assert remove(helper, row)["state"] == "removed"
    assert not final.exists()
    assert not (hyperv_host.base / ".imgcache" / f"{IMAGE_ID}.json").exists()
    locks = sorted(path.name for path in hyperv_host.base.glob("nova-*"))
    assert locks == [f"nova-{IMAGE_ID}-cache.lock", f"nova-{IMAGE_ID}.vhd-cache.lock"]
    assert remove(helper, row)["state"] == "gone"


def test_a_resized_copy_is_removed_alone(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    copy = hyperv_host.base / f"{IMAGE_ID}_20.vhd"
    copy.write_bytes(DATA)
    age(copy)
    disk_of(hyperv_host, final)
    assert remove(helper, listed(helper)[f"{IMAGE_ID}_20"])["state"] == "removed"
    assert final.exists()
    assert not copy.exists()


@pytest.mark.qemu
@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
@pytest.mark.parametrize("key", ["absolute_win32_path", "relative_path"])
def test_the_parent_of_a_vhdx_is_in_use(hyperv_host: WindowsHost, key: str) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    disk = hyperv_host.instances / "vm1" / "root.vhdx"
    disk.parent.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(disk), "4M"], check=True)
    named = f"..\\_base\\{final.name}" if key == "relative_path" else windows_path(final)
    disk.write_bytes(vhdx_with_parent(disk.read_bytes(), named, key))
    row = listed(helper)[IMAGE_ID]
    assert row["users"] == 1
    assert remove(helper, row)["code"] == "in-use"


@pytest.mark.parametrize("name", ["vm1/root.vhd", "vm1/snap/a.avhd", "vm2_revert/root.VHD"])
def test_the_parent_of_a_disk_is_in_use(hyperv_host: WindowsHost, name: str) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    disk_of(hyperv_host, final, name)
    row = listed(helper)[IMAGE_ID]
    answer = remove(helper, row)
    assert (answer["state"], answer["code"]) == ("kept", "in-use")
    assert final.exists()


def test_a_disk_that_cannot_be_read_keeps_everything(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    disk = disk_of(hyperv_host, hyperv_host.base / "another.vhd")
    row = listed(helper)[IMAGE_ID]
    code = EXCLUSIVE.format(path=windows_path(disk))
    running = hyperv_host.run_python(code)
    assert listed(helper)[IMAGE_ID]["users"] is None
    answer = remove(helper, row)
    assert (answer["state"], answer["code"]) == ("kept", "evidence")
    running.end()
    assert remove(helper, row)["state"] == "removed"
    assert not final.exists()


def test_what_somebody_has_open_is_kept(hyperv_host: WindowsHost) -> None:
    """Hyper-V holds the parents of running instances open, and shares them with readers only."""
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    row = listed(helper)[IMAGE_ID]
    reader = hyperv_host.run_python(f"held = open({windows_path(final)!r}, 'rb')")
    answer = remove(helper, row)
    assert (answer["state"], answer["code"]) == ("kept", "in-use")
    assert final.exists()
    touch = helper.order("hyperv_touch", base=IMAGE_ID, sizes=[len(DATA)], dry=False)
    assert helper.result(touch)["touched"] is True
    age(final)
    reader.end()
    assert remove(helper, listed(helper)[IMAGE_ID])["state"] == "removed"


def test_guards_are_checked_again(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    assert fetch(helper)["state"] == "cached"
    final = hyperv_host.base / f"{IMAGE_ID}.vhd"
    young = listed(helper)[IMAGE_ID]
    assert remove(helper, young)["code"] == "young"
    age(final)
    assert remove(helper, young)["code"] == "changed"
    row = listed(helper)[IMAGE_ID]
    assert remove(helper, row, min_age_s=3 * DAY_S)["code"] == "young"
    pin = helper.order("hyperv_pin", base=IMAGE_ID, until="forever")
    assert helper.result(pin)["state"] == "pinned"
    assert remove(helper, row)["code"] == "pinned"
    assert remove(helper, {**row, "name": "../x"})["code"] == "foreign"
    assert remove(helper, {**row, "name": f"nova-{IMAGE_ID}-cache.lock"})["code"] == "foreign"
    age(final, -DAY_S)
    assert remove(helper, listed(helper)[IMAGE_ID], pinned_ok=True)["code"] == "young"
    assert final.exists()


def test_what_imgcache_alone_has_touched_may_be_young(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    assert fetch(helper)["state"] == "cached"
    assert remove(helper, listed(helper)[IMAGE_ID], ours_ok=True)["state"] == "removed"


def test_an_entry_whose_lock_is_held_is_kept(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    lock = windows_path(hyperv_host.base / f"nova-{final.name}-cache.lock")
    hyperv_host.run_python(
        f"import msvcrt\nheld = open({lock!r}, 'a')\nmsvcrt.locking(held.fileno(), msvcrt.LK_NBLCK, 1)"
    )
    answer = remove(helper, listed(helper)[IMAGE_ID])
    assert (answer["state"], answer["code"]) == ("kept", "busy")


def test_clean_removes_what_nobody_writes(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    hyperv_host.base.mkdir()
    stale = hyperv_host.base / ("2" * 8 + IMAGE_ID[8:])
    young = hyperv_host.base / ("3" * 8 + IMAGE_ID[8:])
    for path in (stale, young, hyperv_host.base / f"{IMAGE_ID}.imgcache-{'0' * 16}.part"):
        path.write_bytes(b"rest")
    age(stale)
    rows = rows_of(helper, helper.order("hyperv_clean", stall_age_s=0, dry=False))
    assert {row["name"]: row["code"] or row["state"] for row in rows} == {
        f"{stale.name} (download)": "removed", f"{young.name} (download)": "young",
        f"{IMAGE_ID}.imgcache-{'0' * 16}.part": "removed",
    }  # fmt: skip
    assert hyperv_host.names() == [young.name]


def test_clean_forgets_manifests_of_what_nova_removed(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    manifest = hyperv_host.base / ".imgcache" / f"{IMAGE_ID}.json"
    rows_of(helper, helper.order("hyperv_clean", stall_age_s=0, dry=False))
    assert manifest.exists()
    final.unlink()
    rows_of(helper, helper.order("hyperv_clean", stall_age_s=0, dry=False))
    assert not manifest.exists()


def verify(helper: Controller, **more: Any) -> dict[str, Any]:
    """Hash the image's file again."""
    return helper.result(helper.order("hyperv_verify", base=IMAGE_ID, rate=None, **more))


def test_a_file_is_hashed_again(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    assert verify(helper)["state"] == "absent"
    final = aged_final(hyperv_host, helper)
    assert verify(helper)["state"] == "intact"
    with final.open("r+b") as file:
        file.seek(5000)
        file.write(b"rot")
    assert verify(helper)["state"] == "damaged"
    final.write_bytes(DATA[:-512])
    assert verify(helper)["state"] == "damaged"


def test_an_unmanaged_file_is_adopted_when_its_bytes_are_the_images(
    hyperv_host: WindowsHost,
) -> None:
    helper = hyperv_host.helper()
    hyperv_host.base.mkdir()
    final = hyperv_host.base / f"{IMAGE_ID}.vhd"
    final.write_bytes(DATA)
    pin = helper.order("hyperv_pin", base=IMAGE_ID, until="forever")
    assert helper.result(pin)["state"] == "unmanaged"
    found = verify(helper, algo="sha512")
    assert (found["state"], found["value"]) == ("unmanaged", hashlib.sha512(DATA).hexdigest())
    stored = {"algo": "sha512", "value": found["value"], "size": len(DATA)}
    fields = {"base": IMAGE_ID, "image": IMAGE, "tool": "t", "run": "r"}
    wrong = helper.order("hyperv_adopt", stored={**stored, "value": "0" * 128}, **fields)
    assert helper.result(wrong)["state"] == "changed"
    assert (
        helper.result(helper.order("hyperv_adopt", stored=stored, **fields))["state"] == "adopted"
    )
    manifest = json.loads((hyperv_host.base / ".imgcache" / f"{IMAGE_ID}.json").read_text())
    assert (manifest["source"], manifest["stored"]["format"]) == ("adopted", "vhd")
    assert verify(helper)["state"] == "intact"


def test_verify_hinders_nobody(hyperv_host: WindowsHost) -> None:
    """While a file is hashed, Nova may remove it."""
    helper = hyperv_host.helper()
    final = aged_final(hyperv_host, helper)
    number = helper.order("hyperv_verify", base=IMAGE_ID, rate=1 << 16)
    helper.event(number, "progress")
    status, _, errors = hyperv_host.windows.run(
        "C:\\Python38\\python.exe", "-I", "-c", f"import os; os.remove({windows_path(final)!r})"
    )
    assert status == 0, errors
    helper.tell("stop", number)
    helper.answer(number)


#: Opens a file as a running instance's disk is open: nobody else may even read it.
EXCLUSIVE = """
import ctypes
ctypes.windll.kernel32.CreateFileW.restype = ctypes.c_void_p
handle = ctypes.windll.kernel32.CreateFileW({path!r}, 0xC0000000, 0, None, 3, 0, None)
assert handle != ctypes.c_void_p(-1).value
class held:
    close = lambda: ctypes.windll.kernel32.CloseHandle(ctypes.c_void_p(handle))
"""
