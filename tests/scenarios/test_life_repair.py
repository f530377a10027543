"""Verify, repair, adopt, clean, pin, refresh over real sshd."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import yaml

from imgcache.errors import ExitCode, UnsafePlanError
from imgcache.model import PIN_FOREVER, Site
from imgcache.operations.removal import PlanRefusedError
from imgcache.operations.selection import Selection
from imgcache.plan import SourceKind
from imgcache.policy import Amount
from imgcache.ui.matrix import matrix_text
from scenarios.life_rig import DAY, IDS, Rig, words

if TYPE_CHECKING:
    from pathlib import Path

    from servers.fleet_fixtures import Fleet

pytestmark = pytest.mark.sshd
ONE = Selection(hosts=("edge1-01",))


@pytest.fixture
def rig(fleet: Fleet) -> Rig:
    made = Rig(fleet)
    made.selection = ONE
    return made


def damage(path: Path, age_s: float = 2 * DAY) -> None:
    """Turn one bit round, and leave the file's time as it was wished."""
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))
    Rig.aged(path, age_s)


def manifest(path: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(
        (path.parent / ".imgcache" / f"{path.name}.json").read_text()
    )
    return loaded


def test_verify_tells_intact_damaged_unmanaged_and_absent(rig: Rig) -> None:
    rig.precache("img0", "img1")
    damage(rig.fleet.final("edge1-01", IDS[1]))
    before = manifest(rig.fleet.final("edge1-01", IDS[1]))
    rig.base(0, 2)
    report = rig.verify()
    assert words(report)["01", "img0"] == ("intact", None)
    assert words(report)["01", "img1"] == ("damaged", "damaged")
    unmanaged = [one for one in report.outcomes if one.outcome == "unmanaged"]
    assert [one.entry for one in unmanaged] == [rig.fleet.final("edge1-01", IDS[2]).name]
    assert report.exit_code() is ExitCode.ANSWER_IS_NO
    assert manifest(rig.fleet.final("edge1-01", IDS[0]))["verified_at"]
    assert manifest(rig.fleet.final("edge1-01", IDS[1])) == before
    assert words(rig.verify("img0", "img3")) == {
        ("01", "img0"): ("intact", None),
        ("01", "img3"): ("absent", "absent"),
    }


@pytest.mark.parametrize("size", [0, 1, 511])
def test_a_size_that_cannot_be_right_is_judged_alike_by_all_commands(rig: Rig, size: int) -> None:
    """A fetch of Nova's that was cut off: nothing is noted about it."""
    final = rig.base(0, 0, data=bytes(size))
    told = rig.verify()
    assert [(one.outcome.value, one.code) for one in told.outcomes] == [("damaged", "damaged")]
    assert told.exit_code() is ExitCode.ANSWER_IS_NO
    listed = rig.list(missing=("img0",))
    assert [one.image_name for one in listed.missing] == ["img0"]
    rows = matrix_text(listed, 80).splitlines()
    assert rows[1].split() == ["edge1-01", "d"]
    assert "d there, but its size cannot be right" in rows[-1]
    assert words(rig.clean(invalid=True, dry_run=True)) == {("01", "img0"): ("skipped", "dry-run")}
    refused = rig.precache("img0")
    (outcome,) = refused.outcomes
    assert (outcome.outcome.value, outcome.code) == ("error", "damaged")
    assert "imgcache verify --repair" in str(outcome.reason)
    assert words(rig.verify(repair=True)) == {("01", "img0"): ("repaired", None)}
    assert final.read_bytes() == rig.content + bytes([0])
    assert not rig.list(missing=("img0",)).missing


def test_the_hint_names_a_command_that_helps(rig: Rig) -> None:
    """Long enough for a disk, and yet not the image's size: only who knows the image can tell."""
    final = rig.base(0, 0, data=bytes(1024))
    (outcome,) = rig.precache("img0").outcomes
    assert (outcome.outcome.value, outcome.code) == ("error", "damaged")
    assert "imgcache delete removes it" in str(outcome.reason)
    assert words(rig.delete("img0")) == {("01", "img0"): ("removed", None)}
    assert rig.precache("img0").outcomes[0].outcome == "cached"
    with final.open("ab") as file:
        file.write(b"more")
    rig.aged(final, 2 * DAY)
    (outcome,) = rig.precache("img0").outcomes
    assert "imgcache verify --repair" in str(outcome.reason)
    assert words(rig.verify(repair=True)) == {("01", "img0"): ("repaired", None)}


def test_repair_fetches_what_nothing_uses_and_tells_why_the_rest_stays(rig: Rig) -> None:
    rig.precache("img0", "img1", "img2", "img3")
    finals = [rig.fleet.final("edge1-01", IDS[number]) for number in range(4)]
    for path in finals:
        damage(path)
    rig.boot(0, finals[1])
    rig.pin("img2", until=PIN_FOREVER)
    listing = rig.fleet.folder / "images/images.yaml"
    listing.write_text(listing.read_text().replace(IDS[3], IDS[3][:-1] + "9"))
    kept = [path.read_bytes() for path in finals]

    report = rig.verify(repair=True)
    assert words(report) == {
        ("01", "img0"): ("repaired", None),
        ("01", "img1"): ("damaged", "in-use"),
        ("01", "img2"): ("damaged", "pinned"),
        ("01", "img3"): ("damaged", "damaged"),
    }
    assert report.exit_code() is ExitCode.ANSWER_IS_NO
    assert finals[0].read_bytes() == rig.content + b"\0"
    assert [path.read_bytes() for path in finals[1:]] == kept[1:]
    reasons = {one.image_id: one.reason or "" for one in report.outcomes}
    assert "vm-1" in reasons[IDS[1]]
    assert "cannot be fetched again" in reasons[IDS[3]]
    assert words(rig.verify("img0")) == {("01", "img0"): ("intact", None)}


def test_what_is_repaired_is_fetched_within_the_bandwidth_of_the_site(rig: Rig) -> None:
    rig.precache("img0")
    damage(rig.fleet.final("edge1-01", IDS[0]))
    rig.site = Site("oslo", 20_000)
    began = time.monotonic()
    report = rig.verify(repair=True)
    assert words(report) == {("01", "img0"): ("repaired", None)}
    # The first half second's worth comes at once.
    assert time.monotonic() - began > 0.9 * (len(rig.content) - 10_000) / 20_000


def test_a_dry_run_repairs_nothing(rig: Rig) -> None:
    rig.precache("img0")
    final = rig.fleet.final("edge1-01", IDS[0])
    damage(final)
    before = final.read_bytes()
    assert words(rig.verify(repair=True, dry_run=True)) == {("01", "img0"): ("damaged", "damaged")}
    assert final.read_bytes() == before


def test_what_nova_fetched_is_adopted_when_its_bytes_are_the_images(rig: Rig) -> None:
    rig.base(0, 0)
    rig.base(0, 1, data=b"converted, or something else entirely")
    odd = rig.fleet.final("edge1-01", IDS[0]).with_name("f" * 40)
    odd.write_bytes(b"x")
    report = rig.verify(adopt=True)
    assert words(report) == {
        ("01", "img0"): ("adopted", None),
        ("01", "img1"): ("unmanaged", "unproven"),
        ("01", odd.name): ("unmanaged", "unproven"),
    }
    adopted = manifest(rig.fleet.final("edge1-01", IDS[0]))
    assert (adopted["image_id"], adopted["source"]) == (IDS[0], "adopted")
    # Its age is Nova's business still.
    assert rig.fleet.final("edge1-01", IDS[0]).stat().st_mtime < time.time() - DAY
    assert words(rig.verify("img0")) == {("01", "img0"): ("intact", None)}
    assert words(rig.pin("img0", until=PIN_FOREVER)) == {("01", "img0"): ("pinned", None)}


def nova_converted(rig: Rig, number: int, host: int = 0) -> Path:
    """Let an image be one that hosts convert; return the base file as Nova would have made it."""
    folder = rig.fleet.folder / "images"
    made = folder / f"img{number}.img"
    plain = rig.fleet.folder / "plain"
    plain.write_bytes(rig.content + bytes(1 << 20) + bytes([number]) * 512)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, made], check=True)
    listing = yaml.safe_load((folder / "images.yaml").read_text())
    listing["images"][number]["disk_format"] = "qcow2"
    (folder / "images.yaml").write_text(yaml.safe_dump(listing))
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", made, plain], check=True)
    return rig.base(host, number, data=plain.read_bytes())


@pytest.mark.qemu
def test_what_nova_converted_is_adopted_when_the_image_becomes_just_that(rig: Rig) -> None:
    rig.selection = Selection(hosts=("edge1-[01-02]",))
    finals = [nova_converted(rig, number) for number in range(4)]
    original = rig.base(0, 2, data=(rig.fleet.folder / "images/img2.img").read_bytes())
    second = rig.base(1, 0, data=finals[0].read_bytes())
    damage(finals[1])
    finals[3].write_bytes(b"another size")
    before = [(path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in finals]

    report = rig.verify(adopt=True)
    assert words(report) == {
        ("01", "img0"): ("adopted", None),
        ("01", "img1"): ("unmanaged", "unproven"),
        ("01", "img2"): ("adopted", None),  # as it is: its digest told
        ("01", "img3"): ("unmanaged", "unproven"),
        ("02", "img0"): ("adopted", None),
    }
    reasons = {one.image_id: one.reason for one in report.outcomes if one.reason}
    assert "content is not the image's: its sha" in str(reasons[IDS[1]])
    assert "content is not the image's: it has 12 bytes" in str(reasons[IDS[3]])
    assert report.exit_code() is ExitCode.OK
    after = [(path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in finals]
    assert after == before
    assert not rig.fleet.leftovers("edge1-01") + rig.fleet.leftovers("edge1-02")
    assert (manifest(second)["source"], manifest(original)["source"]) == ("adopted", "adopted")

    rig.selection = ONE
    assert words(rig.verify("img0", "img2"))["01", "img0"] == ("intact", None)
    damage(finals[0])
    assert words(rig.verify("img0", repair=True)) == {("01", "img0"): ("repaired", None)}
    assert finals[0].read_bytes() == before[0][0]


def cut_off(final: Path) -> None:
    """Leave the manifest as a run does that is killed while it hashes what it has converted."""
    place = final.parent / ".imgcache" / f"{final.name}.json"
    noted = json.loads(place.read_text())
    noted["stored"]["value"] = None
    place.write_text(json.dumps(noted))


@pytest.mark.qemu
@pytest.mark.row("H19")
def test_what_was_cut_off_while_it_was_hashed_is_told_and_adopted(rig: Rig) -> None:
    for number in range(4):
        nova_converted(rig, number).unlink()
    rig.precache("img0", "img1", "img2", "img3")
    finals = [rig.fleet.final("edge1-01", IDS[number]) for number in range(4)]
    for final in finals:
        cut_off(final)
    rig.pin("img0", until=PIN_FOREVER)
    damage(finals[1])
    finals[2].write_bytes(b"short")
    forget(rig, 3)

    report = rig.verify()
    assert words(report) == {
        ("01", "img0"): ("unmanaged", "unhashed"),
        ("01", "img1"): ("unmanaged", "unhashed"),
        ("01", "img2"): ("damaged", "damaged"),
        ("01", "img3"): ("unmanaged", "unhashed"),
    }
    reasons = {one.image_id: one.reason or "" for one in report.outcomes}
    assert ["cut off" in reasons[IDS[number]] for number in range(4)] == [True, True, False, True]
    assert report.exit_code() is ExitCode.ANSWER_IS_NO
    shown = words(rig.verify("img0", "img2", adopt=True, dry_run=True))
    assert shown["01", "img0"] == ("skipped", "dry-run")
    assert shown["01", "img2"] == ("damaged", "damaged")

    report = rig.verify(adopt=True)
    assert words(report) == {
        ("01", "img0"): ("adopted", None),
        ("01", "img1"): ("unmanaged", "unproven"),
        ("01", "img2"): ("damaged", "damaged"),
        ("01", "img3"): ("unmanaged", "unproven"),
    }
    assert manifest(finals[0])["pin"] == "forever"
    assert words(rig.verify("img0")) == {("01", "img0"): ("intact", None)}


def forget(rig: Rig, number: int) -> None:
    """Take an image out of the image service."""
    path = rig.fleet.folder / "images/images.yaml"
    listing = yaml.safe_load(path.read_text())
    del listing["images"][number]
    path.write_text(yaml.safe_dump(listing))


@pytest.mark.qemu
def test_an_image_that_cannot_be_fetched_again_proves_nothing(rig: Rig) -> None:
    final = nova_converted(rig, 0)
    rig.fleet.overrides["edge1-01"]["reserve"] = "1000T"
    report = rig.verify("img0", adopt=True)
    assert words(report) == {("01", "img0"): ("error", "space")}
    assert "could not be proven" in str(report.outcomes[0].reason)
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    assert not rig.fleet.leftovers("edge1-01")
    assert words(rig.verify("img0", adopt=True, dry_run=True)) == {
        ("01", "img0"): ("skipped", "dry-run")
    }
    assert not (final.parent / ".imgcache" / f"{final.name}.json").exists()


# ---- clean


@pytest.mark.row("D14")
def test_clean_takes_dead_transfers_and_leaves_live_and_young_ones(rig: Rig) -> None:
    base = rig.base(0, 0)
    own = base.parent / ".imgcache"
    own.mkdir()
    dead = own / f"{'a' * 40}.{'0' * 16}.staging"
    live = own / f"{'b' * 40}.{'0' * 16}.staging"
    novas = base.with_name(f"{'c' * 40}.part")
    young = base.with_name(f"{'d' * 40}.converted")
    for path in (dead, live, novas, young):
        path.write_bytes(b"x" * 5000)
    with live.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        shown = rig.clean(dry_run=True)
        assert words(shown)["01", dead.name] == ("skipped", "dry-run")
        assert dead.exists()
        report = rig.clean()
        found = words(report)
        assert found["01", dead.name] == ("removed", None)
        assert found["01", live.name] == ("kept", "busy")
        assert found["01", young.name] == ("kept", "young")
        assert live.exists()
        assert young.exists()
    assert base.exists()
    assert not dead.exists()
    assert report.exit_code() is ExitCode.OK
    assert report.bytes_freed == 8192
    assert words(rig.clean())["01", live.name] == ("removed", None)


@pytest.mark.row("D6")
def test_clean_removes_nothing_where_evidence_cannot_be_read_and_says_so(rig: Rig) -> None:
    base = rig.base(0, 0)
    own = base.parent / ".imgcache"
    own.mkdir()
    dead = own / f"{'a' * 40}.{'0' * 16}.staging"
    journal = own / f"{'b' * 40}.{'0' * 16}.staging.json"
    original = own / f"{'c' * 40}.original"
    lost = own / f"{'d' * 40}.json"
    part = base.with_name(f"{'e' * 40}.part")
    empty = rig.base(0, 1, data=b"")
    for path in (dead, journal, original, lost, part):
        path.write_bytes(b"x" * 5000)
        rig.aged(path, 3 * DAY)
    rig.blind("edge1-01")
    kept = {
        ("01", ""): ("error", "evidence"),
        **{("01", path.name): ("kept", "evidence") for path in (dead, original, part)},
    }
    for dry in (True, False):
        report = rig.clean(dry_run=dry)
        assert words(report) == kept
        assert report.exit_code() is ExitCode.ITEMS_FAILED
        assert report.bytes_freed == 0
    assert words(rig.clean(invalid=True)) == {**kept, ("01", "img1"): ("kept", "evidence")}
    assert all(path.exists() for path in (dead, journal, original, lost, part, empty))
    for path in (dead, original, part, empty):
        path.unlink()
    # For a note without its file nobody needs to be asked; for entries that may be invalid, somebody does.
    assert words(rig.clean()) == {}
    assert not journal.exists()
    assert not lost.exists()
    assert words(rig.clean(invalid=True)) == {("01", ""): ("error", "evidence")}


@pytest.mark.row("D15")
def test_clean_takes_invalid_entries_only_when_asked_and_never_what_is_used_or_pinned(
    rig: Rig,
) -> None:
    rig.precache(*(f"img{number}" for number in range(5)))
    finals = [rig.fleet.final("edge1-01", IDS[number]) for number in range(5)]
    for path in finals[:3]:
        damage(path)
    finals[3].write_bytes(b"short")
    rig.aged(finals[3], 2 * DAY)
    rig.aged(finals[4], 2 * DAY)
    empty = rig.base(0, 5, data=b"")
    rig.boot(0, finals[1])
    rig.pin("img2", until=datetime.now(UTC) + timedelta(days=1))

    assert words(rig.clean()) == {}
    with pytest.raises(PlanRefusedError):
        rig.clean(invalid=True, max_delete=Amount(count=1))
    assert all(path.exists() for path in [*finals, empty])
    shown = rig.clean(invalid=True, dry_run=True)
    assert words(shown)["01", "img0"] == ("skipped", "dry-run")
    report = rig.clean(invalid=True)
    found = words(report)
    # What is used, or pinned, is not even read: its digest is not known to be wrong.
    assert found == {
        ("01", "img0"): ("removed", None),
        ("01", "img3"): ("removed", None),
        ("01", "img5"): ("removed", None),
    }
    assert [path.exists() for path in finals] == [False, True, True, False, True]
    finals[1].write_bytes(b"short")
    rig.aged(finals[1], 2 * DAY)
    assert words(rig.clean(invalid=True)) == {("01", "img1"): ("kept", "in-use")}


@pytest.mark.row("D15")
@pytest.mark.row("R26")
def test_clean_takes_what_nova_fetched_only_in_part_under_all_guards(rig: Rig) -> None:
    wrong = [
        rig.base(0, 0, data=rig.content[:-5]),
        rig.base(0, 1, data=rig.content * 2),
        rig.base(0, 2, data=b"half"),
        rig.base(0, 3, data=b"half", age_s=600),
    ]
    rig.boot(0, wrong[2])
    size = len(rig.content) + 1
    right = rig.base(0, 4, data=rig.content + b"\4" + bytes(-size % 512))  # up to a whole sector
    resized, unknown = right.with_name(f"{right.name}_20"), right.with_name("f" * 40)
    for path in (resized, unknown):
        path.write_bytes(b"half" * 256)
        rig.aged(path, 2 * DAY)
    expected = {
        ("01", "img0"): ("removed", None),
        ("01", "img1"): ("removed", None),
        ("01", "img2"): ("kept", "in-use"),
        ("01", "img3"): ("kept", "young"),
    }
    assert words(rig.clean()) == {}
    shown = words(rig.clean(invalid=True, dry_run=True))
    assert shown.keys() == expected.keys()
    assert shown["01", "img0"] == ("skipped", "dry-run")
    lock = rig.fleet.instances("edge1-01") / "locks" / f"nova-{wrong[0].name}"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("a") as held:  # a fetch into the final's own name may be under way
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        report = rig.clean(invalid=True)
    assert words(report) == {**expected, ("01", "img0"): ("kept", "busy")}
    assert "instead of" in str({one.entry: one.reason for one in report.outcomes}[wrong[1].name])
    report = rig.clean(invalid=True)
    assert words(report) == {key: expected[key] for key in expected if key[1] != "img1"}
    assert [path.exists() for path in wrong] == [False, False, True, True]
    assert all(path.exists() for path in (right, resized, unknown))


@pytest.mark.qemu
@pytest.mark.row("D15")
def test_clean_leaves_what_the_image_service_cannot_tell_the_size_of(rig: Rig) -> None:
    converted = nova_converted(rig, 0)
    converted.write_bytes(b"x" * 1024)
    refused = rig.base(0, 1, data=b"half" * 256)
    listing = rig.fleet.folder / "images/images.yaml"
    document = yaml.safe_load(listing.read_text())
    document["images"][1]["status"] = "deactivated"
    listing.write_text(yaml.safe_dump(document))
    for path in (converted, refused):
        rig.aged(path, 2 * DAY)
    rig.base(0, 2, data=b"")
    assert words(rig.clean(invalid=True)) == {("01", "img2"): ("removed", None)}
    assert converted.exists()
    assert refused.exists()


@pytest.mark.row("D2")
@pytest.mark.parametrize("age_s", [0.0, -5.0, float("nan"), float("inf")])
def test_a_stall_age_that_makes_no_sense_is_refused(rig: Rig, age_s: float) -> None:
    with pytest.raises(UnsafePlanError):
        rig.clean(stall_age_s=age_s)


# ---- pins


def test_refresh_renews_what_is_pinned_and_nothing_else(rig: Rig) -> None:
    rig.precache("img0", "img1", "img2")
    rig.pin("img0", until=datetime.now(UTC) + timedelta(hours=1))
    rig.pin("img1", until=datetime.now(UTC) - timedelta(hours=1))
    finals = [rig.fleet.final("edge1-01", IDS[number]) for number in range(3)]
    for path in finals:
        rig.aged(path, DAY)
    assert words(rig.refresh(dry_run=True)) == {("01", "img0"): ("skipped", "dry-run")}
    assert finals[0].stat().st_mtime < time.time() - 3600
    assert words(rig.refresh()) == {("01", "img0"): ("renewed", None)}
    renewed = [path.stat().st_mtime > time.time() - 3600 for path in finals]
    assert renewed == [True, False, False]


def test_a_pin_needs_a_manifest_and_an_entry(rig: Rig) -> None:
    rig.precache("img0")
    rig.base(0, 1)
    report = rig.pin("img0", "img1", "img2", until=PIN_FOREVER)
    assert words(report) == {
        ("01", "img0"): ("pinned", None),
        ("01", "img1"): ("error", "unmanaged"),
        ("01", "img2"): ("error", "absent"),
    }
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    report = rig.pin("img0", "img1", "img2", until=None)
    assert words(report) == {
        ("01", "img0"): ("unpinned", None),
        ("01", "img1"): ("unmanaged", "unmanaged"),
        ("01", "img2"): ("absent", "absent"),
    }
    assert report.exit_code() is ExitCode.OK
    assert words(rig.pin("img0", until=PIN_FOREVER, dry_run=True)) == {
        ("01", "img0"): ("skipped", "dry-run")
    }
    assert manifest(rig.fleet.final("edge1-01", IDS[0]))["pin"] is None


def test_keep_for_pins_as_it_caches_and_never_shortens_a_pin(rig: Rig) -> None:
    rig.precache("img0")
    rig.pin("img0", until=PIN_FOREVER)
    rig.base(0, 2, age_s=60)
    report = rig.precache("img0", "img1", "img2", keep_for_s=3600.0)
    found = {one.image_name: (one.outcome.value, one.code) for one in report.outcomes}
    assert found["img0"] == ("existing", None)
    assert found["img1"] == ("cached", None)
    assert found["img2"] == ("error", "unmanaged")
    assert [one.source for one in report.outcomes] == [None, SourceKind.PUSH, None]
    assert manifest(rig.fleet.final("edge1-01", IDS[0]))["pin"] == "forever"
    pin = manifest(rig.fleet.final("edge1-01", IDS[1]))["pin"]
    assert isinstance(pin, float)
    assert abs(pin - time.time() - 3600) < 120
    assert os.path.exists(rig.fleet.final("edge1-01", IDS[2]))
    rig.precache("img1", keep_for_s=60.0)
    assert manifest(rig.fleet.final("edge1-01", IDS[1]))["pin"] == pin


# ---- list and status


def test_list_names_filters_and_tells_what_is_missing(rig: Rig) -> None:
    rig.selection = Selection(hosts=("edge1-[01-02]",))
    rig.precache("img0")
    rig.boot(0, rig.fleet.final("edge1-01", IDS[0]))
    rig.base(0, 1)
    rig.base(1, 2, data=b"")
    report = rig.list(missing=("img0", "img2"))
    names = {(one.host[-2:], one.image_name, one.known_by) for one in report.entries}
    assert names == {
        ("01", "img0", "manifest"),
        ("01", "img1", "hash"),
        ("02", "img0", "manifest"),
        ("02", "img2", "hash"),
    }
    # An empty file is no image.
    assert [(one.host[-2:], one.image_name) for one in report.missing] == [
        ("01", "img2"),
        ("02", "img2"),
    ]
    assert report.exit_code() is ExitCode.ANSWER_IS_NO
    used = {one.host[-2:]: one.entry.users for one in rig.list("img0").entries}
    assert used == {"01": 1, "02": 0}
    assert [one.image_name for one in rig.list(older_than_s=DAY).entries] == ["img1", "img2"]
    assert [one.host[-2:] for one in rig.list("img0", unused=True).entries] == ["02"]
    assert rig.list(gone=True).entries == ()


def test_status_of_hosts_that_answer_and_of_one_that_does_not(rig: Rig) -> None:
    rig.selection = Selection(all=True)
    rig.base(0, 0)
    rig.fleet.overrides["edge1-03"]["port"] = 1
    report = rig.status(max_used=0.000001)
    assert [one.host for one in report.hosts] == ["edge1-01", "edge1-02"]
    assert report.hosts[0].reclaimable_bytes == report.hosts[0].cache_bytes > 0
    assert [one.host for one in report.failures] == ["edge1-03"]
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    rig.selection = Selection(hosts=("edge1-01",))
    assert rig.status(max_used=0.000001).exit_code() is ExitCode.ANSWER_IS_NO
