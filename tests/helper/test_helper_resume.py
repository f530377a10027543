"""What came of an image stays when a run ends early, and the next one goes on with it, or begins anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import PUSH, Controller, base_name, from_service, image_of, pythons
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helper.controller import Frame

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 12345)
IMAGE = image_of(DATA)
BASE = base_name(IMAGE["id"])
CUT = 2 * MIB + 777
KEEP = {"keep_partial": True}
JOURNAL = {
    "version": 1, "image_id": IMAGE["id"], "base": BASE, "size": len(DATA), "digest": IMAGE["digest"],
    "run": "run-1",
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[http.HttpServer]:
    with http.HttpServer() as server:
        yield server


@pytest.fixture
def own(instances: Path) -> Path:
    return instances / "_base/.imgcache"


def begun(helper: Controller, instances: Path, count: int = CUT, more: Frame = KEEP) -> int:
    """Push the first bytes of the image, and return the order once they are in the file."""
    helper.open(instances)
    number = helper.fetch(IMAGE, PUSH, more=more)
    helper.event(number, "ready")
    for at in range(0, count, 100_000):
        part = DATA[at : min(at + 100_000, count)]
        helper.tell("data", number, part, size=len(part))
    while helper.event(number, "progress")["done"] < count:
        pass
    return number


def killed(instances: Path) -> Path:
    """Have a run killed in the middle; return the file it left."""
    with Controller(ping=False) as helper:
        begun(helper, instances)
        helper.process.kill()
        helper.process.wait()
    [path] = (instances / "_base/.imgcache").glob("*.staging")
    assert path.stat().st_size == CUT
    return path


def left(instances: Path, count: int = CUT) -> Path:
    """Make what a killed run leaves; see ``test_after_a_kill``."""
    own = instances / "_base/.imgcache"
    own.mkdir(parents=True, exist_ok=True)
    path = own / f"{BASE}.{count:016x}.staging"
    path.write_bytes(DATA[:count])
    journal_of(path).write_text(json.dumps({**JOURNAL, "started_at": "2026-11-21T07:00:00Z"}))
    for file in (path, journal_of(path)):
        file.chmod(0o600)
    return path


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def resumed(instances: Path, python: str | None = None, more: Frame = KEEP) -> Frame:
    """Fetch by push, from where the helper wants; return the result."""
    with Controller(*[python] if python else []) as helper:
        helper.open(instances)
        number = helper.fetch(IMAGE, PUSH, more=more)
        offset = helper.event(number, "ready")["offset"]
        helper.push(number, DATA[offset:])
        result = helper.result(number)
    assert result["bytes_fetched"] == len(DATA) - offset
    assert result["resumed"] == offset
    assert_whole(instances)
    return result


def assert_whole(instances: Path) -> None:
    assert (instances / "_base" / BASE).read_bytes() == DATA
    assert os.listdir(instances / "_base/.imgcache") == [f"{BASE}.json"]


@pytest.mark.row("H19")
@pytest.mark.row("C3")
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
def test_after_a_kill(python: str, instances: Path) -> None:
    path = killed(instances)
    journal = json.loads(journal_of(path).read_text())
    assert journal.pop("started_at")
    assert journal == JOURNAL
    for file in (path, journal_of(path)):
        assert file.stat().st_mode & 0o7777 == 0o600
    assert resumed(instances, python)["resumed"] == 2 * MIB


def end_input(helper: Controller, number: int) -> None:
    assert helper.end() == 0


def send_stop(helper: Controller, number: int) -> None:
    helper.tell("stop", number)
    assert helper.error(number)["code"] == "interrupted"


def terminate(helper: Controller, number: int) -> None:
    helper.process.send_signal(signal.SIGTERM)
    assert helper.process.wait(20) == 0


ENDS = [end_input, send_stop, terminate]


@pytest.mark.row("H20")
@pytest.mark.row("C2")
@pytest.mark.parametrize("end", ENDS)
def test_after_an_early_end(instances: Path, end: Callable[[Controller, int], None]) -> None:
    with Controller() as helper:
        end(helper, begun(helper, instances))
    assert resumed(instances)["resumed"] == 2 * MIB


@pytest.mark.row("H20")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("count", "more"), [(CUT, {}), (MIB - 1, KEEP)])
def test_what_is_not_to_be_kept_or_not_worth_it_goes(
    instances: Path, own: Path, end: Callable[[Controller, int], None], count: int, more: Frame
) -> None:
    with Controller() as helper:
        end(helper, begun(helper, instances, count, more))
    assert os.listdir(own) == []


@pytest.mark.row("C3")
def test_the_same_helper_goes_on_too(helper: Controller, instances: Path) -> None:
    send_stop(helper, begun(helper, instances))
    number = helper.fetch(IMAGE, PUSH, more=KEEP)
    assert helper.event(number, "ready")["offset"] == 2 * MIB
    helper.push(number, DATA[2 * MIB :])
    assert helper.result(number)["resumed"] == 2 * MIB
    assert_whole(instances)


@pytest.mark.row("H21")
@pytest.mark.parametrize("size", [MIB, 2 * MIB - 1, 2 * MIB])
def test_a_power_cut_took_the_end(instances: Path, size: int) -> None:
    os.truncate(left(instances), size)
    assert resumed(instances)["resumed"] == size // MIB * MIB


@pytest.mark.row("H21")
def test_a_power_cut_spoiled_the_end(instances: Path) -> None:
    with left(instances).open("r+b") as file:
        file.seek(2 * MIB)
        file.write(bytes(777))
    assert resumed(instances)["resumed"] == 2 * MIB


def spoil(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([DATA[place] ^ 1]))


@pytest.mark.row("N6")
@pytest.mark.row("H21")
def test_wrong_bytes_of_an_earlier_run_start_once_from_zero(
    helper: Controller, instances: Path, own: Path, server: http.HttpServer
) -> None:
    spoil(left(instances), MIB + 5)
    helper.open(instances)
    number = helper.fetch(IMAGE, from_service(server.route("/i", DATA)), more=KEEP)
    retry = helper.event(number, "retry")
    assert (retry["code"], retry["offset"], retry["resumed"]) == ("digest", 0, 2 * MIB)
    helper.tell("again", number, token=None)
    result = helper.result(number)
    assert [request.offset for request in server.requests] == [2 * MIB, None]
    assert (result["bytes_fetched"], result["resumed"]) == (2 * len(DATA) - 2 * MIB, 0)
    assert_whole(instances)


@pytest.mark.row("N6")
def test_two_more_wrong_digests_are_two_of_the_service(
    helper: Controller, instances: Path, own: Path, server: http.HttpServer
) -> None:
    spoil(left(instances), 5)
    helper.open(instances)
    url = server.route("/i", DATA, http.serve(), http.flip_bit(7))
    number = helper.fetch(IMAGE, from_service(url), more=KEEP)
    for resumed_bytes in (2 * MIB, 0):
        assert helper.event(number, "retry")["resumed"] == resumed_bytes
        helper.tell("again", number, token=None)
    assert helper.error(number)["code"] == "digest"
    assert len(server.requests) == 3
    assert os.listdir(own) == []


@pytest.mark.row("N6")
def test_wrong_bytes_of_an_earlier_run_and_a_push(helper: Controller, instances: Path) -> None:
    spoil(left(instances), 0)
    helper.open(instances)
    number = helper.fetch(IMAGE, PUSH, more=KEEP)
    helper.push(number, DATA[helper.event(number, "ready")["offset"] :])
    retry = helper.event(number, "retry")
    assert (retry["code"], retry["resumed"]) == ("digest", 2 * MIB)
    helper.tell("again", number, token=None)
    assert helper.event(number, "ready")["offset"] == 0
    helper.push(number, DATA)
    assert helper.result(number)["resumed"] == 0
    assert_whole(instances)


#: What a request for a range may get where ranges do not work.
UNUSABLE = [
    "400", "403", "404", "302", "416", "ignore", "wrong", "whole-length", "short-length", "part", "encoded",
]  # fmt: skip


@pytest.mark.row("N11")
@pytest.mark.parametrize("ranges", UNUSABLE)
def test_a_range_that_cannot_be_used_is_followed_by_one_request_without(
    helper: Controller, instances: Path, server: http.HttpServer, ranges: http.Ranges
) -> None:
    left(instances)
    helper.open(instances)
    url = server.route("/i", DATA, http.serve(ranges=ranges))
    number = helper.fetch(IMAGE, from_service(url), more=KEEP)
    result = helper.result(number)
    assert (result["bytes_fetched"], result["resumed"]) == (len(DATA), 0)
    asked = [request.offset for request in server.requests]
    assert asked == ([2 * MIB] if ranges == "ignore" else [2 * MIB, None])
    assert_whole(instances)
    downloads = [frame for frame in helper.frames if frame.get("phase") == "download"]
    assert sorted(frame["done"] for frame in downloads) == [frame["done"] for frame in downloads]


@pytest.mark.row("N11")
@pytest.mark.parametrize("ranges", UNUSABLE)
def test_ranges_that_do_not_work_are_asked_for_once_and_nothing_is_kept_for_them(
    helper: Controller, instances: Path, own: Path, server: http.HttpServer, ranges: http.Ranges
) -> None:
    cut = http.truncate_after(CUT)
    helper.open(instances)
    url = server.route("/i", DATA, cut, http.serve(ranges=ranges), cut)
    if ranges == "ignore":
        url = server.route("/i", DATA, cut)
    number = helper.fetch(IMAGE, from_service(url), more=KEEP)
    for _ in range(3):
        assert helper.event(number, "retry")["offset"] == CUT
        helper.tell("again", number, token=None)
    helper.event(number, "retry")
    send_stop(helper, number)
    asked = [request.offset for request in server.requests]
    assert [offset for offset in asked if offset is not None] == [CUT]
    assert os.listdir(own) == []


@pytest.mark.row("N11")
@pytest.mark.parametrize("ranges", ["500", "503", "empty"])
def test_a_range_that_fails_again_and_again_is_followed_by_one_request_without(
    helper: Controller, instances: Path, server: http.HttpServer, ranges: http.Ranges
) -> None:
    left(instances)
    helper.open(instances)
    url = server.route("/i", DATA, http.serve(ranges=ranges))
    number = helper.fetch(IMAGE, from_service(url), more=KEEP)
    for _ in range(2):
        assert helper.event(number, "retry")["offset"] == 2 * MIB
        helper.tell("again", number, token=None)
    assert helper.result(number)["resumed"] == 0
    assert [request.offset for request in server.requests] == [2 * MIB, 2 * MIB, None]
    assert_whole(instances)


@pytest.mark.row("N14")
def test_what_came_outlives_a_service_that_is_down_for_a_while(
    helper: Controller, instances: Path, server: http.HttpServer
) -> None:
    left(instances)
    helper.open(instances)
    down = [http.status(503)] * 5
    number = helper.fetch(
        IMAGE, from_service(server.route("/i", DATA, *down, http.serve())), more=KEEP
    )
    for _ in down:
        assert helper.event(number, "retry")["offset"] == 2 * MIB
        helper.tell("again", number, token=None)
    assert helper.result(number)["resumed"] == 2 * MIB
    assert_whole(instances)


def test_all_bytes_are_there_already(helper: Controller, instances: Path) -> None:
    """A run died while it converted, or before it published."""
    data = os.urandom(2 * MIB)
    image = image_of(data)
    base = instances / "_base" / base_name(image["id"])
    with Controller(ping=False) as first:
        first.open(instances)
        number = first.fetch(image, PUSH, more=KEEP)
        first.event(number, "ready")
        for at in (0, MIB):
            for part in range(at, at + MIB, 256 << 10):
                first.tell("data", number, data[part : part + (256 << 10)], size=256 << 10)
        while first.event(number, "progress")["done"] < len(data):
            pass
    helper.open(instances)
    result = helper.result(helper.fetch(image, PUSH, more=KEEP))
    assert (result["state"], result["bytes_fetched"], result["resumed"]) == ("cached", 0, 2 * MIB)
    assert base.read_bytes() == data


@pytest.mark.row("N9")
@pytest.mark.row("N10")
@pytest.mark.parametrize(("status", "code"), [(403, "forbidden"), (404, "gone"), (204, "nodata")])
def test_a_failure_for_good_leaves_nothing(
    helper: Controller, instances: Path, own: Path, server: http.HttpServer, status: int, code: str
) -> None:
    left(instances)
    helper.open(instances)
    url = server.route("/i", DATA, http.status(status))
    assert helper.error(helper.fetch(IMAGE, from_service(url), more=KEEP))["code"] == code
    assert os.listdir(own) == []


@pytest.mark.row("N1")
def test_out_of_repetitions_what_came_stays(
    helper: Controller, instances: Path, server: http.HttpServer
) -> None:
    helper.open(instances)
    url = server.route("/i", DATA, http.truncate_after(CUT), http.status(500))
    number = helper.fetch(IMAGE, from_service(url), more=KEEP)
    assert helper.event(number, "retry")["offset"] == CUT
    helper.tell("again", number, token=None)
    helper.event(number, "retry")
    send_stop(helper, number)
    assert resumed(instances)["resumed"] == 2 * MIB


@pytest.mark.row("D14")
def test_the_longest_is_taken_and_the_others_go(instances: Path, own: Path, tmp_path: Path) -> None:
    for count in (1, 3, 2):
        left(instances, count * MIB)
    (own / f"{BASE}.{'0' * 16}.staging").write_bytes(DATA)  # without a journal it is nothing
    (own / f"{BASE}.{'1' * 16}.staging.json").write_text("{}")
    assert resumed(instances)["resumed"] == 3 * MIB


@pytest.mark.row("H18")
@pytest.mark.row("T8")
def test_two_helpers_race_for_one(instances: Path) -> None:
    left(instances)
    results: list[Frame] = []

    def fetch(helper: Controller) -> None:
        number = helper.fetch(IMAGE, from_service(url), more=KEEP, lock_wait_s=30)
        results.append(helper.result(number))

    with http.HttpServer() as server, Controller() as one, Controller() as two:
        url = server.route("/i", DATA)
        for helper in (one, two):
            helper.result(helper.open(instances))
        threads = [threading.Thread(target=fetch, args=(helper,)) for helper in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [request.offset for request in server.requests] == [2 * MIB]
    assert sorted(result["state"] for result in results) == ["cached", "existing"]
    assert sorted(result["resumed"] for result in results) == [0, 2 * MIB]
    assert_whole(instances)


@pytest.mark.row("H18")
@pytest.mark.row("D14")
def test_a_live_one_is_not_taken(helper: Controller, instances: Path) -> None:
    with Controller() as first:
        number = begun(first, instances)
        helper.open(instances)
        other = helper.fetch(IMAGE, PUSH, more=KEEP, lock_wait_s=1)
        assert helper.error(other)["code"] == "busy"
        first.push(number, DATA[CUT:])
        assert first.result(number)["state"] == "cached"
    assert_whole(instances)


# ---- journals and files that others made


def change(path: Path, **changes: Any) -> None:
    journal = journal_of(path)
    journal.write_text(json.dumps({**json.loads(journal.read_text()), **changes}))


def nest(path: Path) -> None:
    journal_of(path).write_text("[" * 2000)


def enlarge(path: Path) -> None:
    with journal_of(path).open("ab") as file:
        file.truncate(1 << 30)


def replace_by_link(path: Path) -> None:
    journal = journal_of(path)
    target = path.parents[2] / "elsewhere"
    journal.rename(target)
    journal.symlink_to(target)


def replace_by_fifo(path: Path) -> None:
    journal_of(path).unlink()
    os.mkfifo(journal_of(path))


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def open_journal_to_all(path: Path) -> None:
    journal_of(path).chmod(0o666)


def lengthen(path: Path) -> None:
    os.truncate(path, len(DATA) + 1)


def shorten(path: Path) -> None:
    os.truncate(path, MIB - 1)


def link_elsewhere(path: Path) -> None:
    os.link(path, path.parents[2] / "other-name")


def replace_file_by_link(path: Path) -> None:
    target = path.parents[2] / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


CHANGES: list[Frame] = [
    {"version": 2},
    {"image_id": "../../etc/passwd"},
    {"base": "../" + BASE},
    {"size": 1 << 62},
    {"size": str(len(DATA))},
    {"digest": {"algo": "md5", "value": "0" * 32}},
    {"digest": None},
]
POISON: list[Callable[[Path], None]] = [
    *(partial(change, **changes) for changes in CHANGES),
    *(nest, enlarge, replace_by_link, replace_by_fifo, open_to_all, open_journal_to_all),
    *(lengthen, shorten, link_elsewhere, replace_file_by_link),
]


@pytest.mark.row("H12")
@pytest.mark.row("H10")
@pytest.mark.row("T8")
@pytest.mark.parametrize("poison", POISON)
def test_what_is_not_surely_ours_is_not_continued(
    instances: Path, own: Path, poison: Callable[[Path], None]
) -> None:
    path = left(instances)
    poison(path)
    others = {
        name: (instances / name).read_bytes()
        for name in ("elsewhere", "other-name")
        if (instances / name).exists()
    }
    if path.is_symlink():  # neither followed nor removed: it is no file of ours
        assert resumed_beside(instances)["resumed"] == 0
        assert path.is_symlink()
    else:
        assert resumed(instances)["resumed"] == 0
    for name, content in others.items():
        assert (instances / name).read_bytes() == content


def resumed_beside(instances: Path) -> Frame:
    with Controller() as helper:
        helper.open(instances)
        number = helper.fetch(IMAGE, PUSH, more=KEEP)
        helper.push_when_ready(number, DATA)
        result = helper.result(number)
    assert (instances / "_base" / BASE).read_bytes() == DATA
    return result


@pytest.mark.row("T8")
@pytest.mark.parametrize("what", ["file", "journal"])
def test_what_another_user_made_is_not_continued(instances: Path, what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path = left(instances)
    os.chown(path if what == "file" else journal_of(path), 65534, 65534)
    assert resumed(instances)["resumed"] == 0


@pytest.mark.row("T8")
@pytest.mark.row("H19")
def test_a_published_final_is_not_cut(instances: Path) -> None:
    """A run died between giving the final its name and removing the other one."""
    path = left(instances)
    path.write_bytes(DATA)
    os.link(path, instances / "_base" / BASE)
    with Controller() as helper:
        helper.open(instances)
        assert helper.result(helper.fetch(IMAGE, PUSH, more=KEEP))["state"] == "existing"
    assert (instances / "_base" / BASE).read_bytes() == DATA


@pytest.mark.row("T8")
@pytest.mark.row("H18")
@pytest.mark.parametrize("number", [1, 2])
def test_what_is_published_just_before_it_is_locked_is_a_final(
    instances: Path, shim: Path, number: int
) -> None:
    path = left(instances)
    path.write_bytes(DATA)
    final = instances / "_base" / BASE
    faults = {
        "LD_PRELOAD": str(shim), "FAULT": f"lock:{number}:MOVE", "FAULT_PATH": str(path),
        "FAULT_TO": str(final),
    }  # fmt: skip
    if number == 2:  # the first lock is that of a file of its own
        path.chmod(0o644)
        journal_of(path).unlink()
    with Controller(env=faults) as helper:
        helper.open(instances)
        assert helper.result(helper.fetch(IMAGE, PUSH, more=KEEP))["state"] == "existing"
    assert final.read_bytes() == DATA


@pytest.mark.row("H15")
def test_without_locks_nothing_is_taken_over(instances: Path, shim: Path) -> None:
    left(instances)
    faults = {"LD_PRELOAD": str(shim), "FAULT": "lock:1:95", "FAULT_EVER": "1"}
    with Controller(env=faults) as helper:
        helper.open(instances)
        number = helper.fetch(IMAGE, PUSH, more=KEEP)
        assert helper.event(number, "ready")["offset"] == 0
        helper.push(number, DATA)
        assert helper.result(number)["resumed"] == 0


# ---- the original


@pytest.mark.qemu
def test_the_original_of_a_converted_image_is_kept(
    helper: Controller, instances: Path, own: Path, tmp_path: Path
) -> None:
    plain, made = tmp_path / "plain", tmp_path / "made"
    plain.write_bytes(DATA[: 2 * MIB])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, made], check=True)
    data = made.read_bytes()
    image = image_of(data, "qcow2")
    base = base_name(image["id"])
    helper.open(instances)
    for _ in range(2):  # once more, when the final was removed
        number = helper.fetch(image, PUSH, more={"keep_original": True, **KEEP})
        helper.push_when_ready(number, data)
        assert helper.result(number)["stored_format"] == "raw"
        original = own / f"{base}.original"
        final = instances / "_base" / base
        assert original.read_bytes() == data
        assert original.stat().st_mode == final.stat().st_mode
        assert sorted(os.listdir(own)) == sorted([f"{base}.json", original.name])
        final.unlink()


def test_of_an_image_that_stays_as_it_is_nothing_is_kept_besides(
    helper: Controller, instances: Path
) -> None:
    helper.open(instances)
    number = helper.fetch(IMAGE, PUSH, more={"keep_original": True, **KEEP})
    helper.push_when_ready(number, DATA)
    assert helper.result(number)["state"] == "cached"
    assert_whole(instances)
