"""Other hosts read a file while it comes in: all of it, in order, and never more than there is."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from helper.relay.rig import TIMES, Rig

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Controller

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 12_345)


def test_bytes_come_as_they_arrive(each_rig: Rig) -> None:
    each_rig.grow("image", DATA)
    reader = each_rig.ask("image")
    assert reader.status == 200
    assert reader.headers["content-length"] == str(len(DATA))
    each_rig.append("image", MIB)
    assert reader.read(MIB) == DATA[:MIB]
    each_rig.append("image", 2 * MIB + 7)
    assert reader.read(MIB + 7) == DATA[MIB : 2 * MIB + 7]
    each_rig.append("image", len(DATA))
    each_rig.end("image", "complete")
    assert reader.read(len(DATA)) == DATA[2 * MIB + 7 :]
    assert each_rig.ask("image").read(len(DATA)) == DATA


def test_nothing_is_sent_that_has_not_arrived(rig: Rig) -> None:
    rig.grow("image", DATA)
    (path,) = (rig.instances / "_base/.imgcache").glob("*.grown")
    os.truncate(
        path, len(DATA)
    )  # the file is longer than what has come, as with room made beforehand
    rig.append("image", 1000)
    reader = rig.ask("image")
    assert reader.read(1000) == DATA[:1000]
    assert not reader.has_more()


def test_range(rig: Rig) -> None:
    rig.grow("image", DATA)
    rig.append("image", MIB)
    reader = rig.ask("image", start=2 * MIB)
    assert reader.status == 206
    assert reader.headers["content-range"] == f"bytes {2 * MIB}-{len(DATA) - 1}/{len(DATA)}"
    assert reader.headers["content-length"] == str(len(DATA) - 2 * MIB)
    rig.append("image", len(DATA))
    assert reader.read(len(DATA)) == DATA[2 * MIB :]
    assert rig.ask("image", start=0).read(10) == DATA[:10]
    assert rig.ask("image", start=len(DATA) - 1).read(10) == DATA[-1:]
    for start in (len(DATA), len(DATA) + 1, 10**18 - 1):
        reader = rig.ask("image", start=start)
        assert reader.status == 416
        assert reader.headers["content-range"] == f"bytes */{len(DATA)}"


def test_two_images_do_not_meet(rig: Rig) -> None:
    other = os.urandom(MIB)
    rig.grow("one", DATA)
    rig.grow("two", other)
    readers = rig.ask("one"), rig.ask("two")
    rig.append("two", MIB)
    assert readers[1].read(MIB) == other
    rig.append("one", len(DATA))
    assert readers[0].read(len(DATA)) == DATA


def test_a_name_that_is_not_known_yet_is_waited_for(rig: Rig) -> None:
    reader = rig.send("image")
    rig.wait_until(lambda held: held["connections"] == 1)
    rig.grow("image", DATA)
    rig.append("image", len(DATA))
    assert reader.read_head().read(len(DATA)) == DATA


def test_a_restart_ends_readers_and_gives_others_the_new_bytes(rig: Rig) -> None:
    rig.grow("image", bytes(len(DATA)))
    rig.append("image", MIB)
    reader = rig.ask("image")
    assert reader.read(MIB) == bytes(MIB)
    rig.end("image", "restart")
    assert reader.rest() == b""
    rig.sources["image"].write_bytes(DATA)
    reader = rig.ask("image", start=MIB)  # more than there is now
    rig.append("image", len(DATA))
    assert reader.read(len(DATA)) == DATA[MIB:]


@pytest.mark.row("N20")
def test_a_failure_ends_readers_and_the_offer(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances, times=TIMES) as rig:
        rig.grow("image", DATA)
        rig.append("image", MIB)
        reader = rig.ask("image")
        assert reader.read(MIB) == DATA[:MIB]
        rig.end("image", "fail")
        assert reader.rest() == b""
        assert rig.ask("image").status == 404
        assert rig.ask("image", "").status == 403


def test_what_is_offered_again_takes_the_place(rig: Rig) -> None:
    rig.grow("image", DATA)
    reader = rig.ask("image")
    (path,) = (rig.instances / "_base/.imgcache").glob("*.grown")
    path.rename(path.with_name("earlier"))
    rig.grow("image", DATA[::-1])
    assert reader.rest() == b""
    rig.append("image", len(DATA))
    assert rig.ask("image").read(len(DATA)) == DATA[::-1]


def test_an_unlinked_original_is_held_while_it_is_read(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances, times={**TIMES, "hold_s": 4.0}) as rig:
        before = rig.count()["descriptors"]
        rig.grow("image", DATA)
        rig.append("image", len(DATA))
        rig.end("image", "complete")
        reader = rig.ask("image")
        rig.end("image", "unlink")
        assert reader.read(len(DATA)) == DATA
        held = rig.wait_until(lambda held: not held["connections"] and not held["tended"])
        assert held["offers"] == []
        assert held["descriptors"] == before + 2  # those of the cache and of our folder in it
        assert rig.ask("image").status == 404


def test_an_original_whose_conversion_took_long_is_still_held_for_those_to_come(
    helper: Controller, instances: Path
) -> None:
    with Rig(helper, instances, times={**TIMES, "hold_s": 3.0}) as rig:
        rig.grow("image", DATA)
        rig.append("image", len(DATA))
        rig.end("image", "complete")
        time.sleep(3.5)  # the conversion; nobody reads meanwhile
        rig.end("image", "unlink")
        time.sleep(1.5)  # the relay has looked at it since
        assert rig.ask("image").read(len(DATA)) == DATA


def test_a_file_with_a_name_is_offered_on(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances, times={**TIMES, "hold_s": 0.0}) as rig:
        rig.grow("image", DATA)
        rig.append("image", len(DATA))
        rig.end("image", "complete")
        ticking = rig.ask("image", start=len(DATA) - 1)
        assert ticking.read(1)
        assert not ticking.read(1)
        assert rig.ask("other", "").status == 403  # has waited its time out
        assert rig.count()["offers"] == ["image"]


@pytest.mark.parametrize("how", ["complete", "fail"])
def test_the_writers_lock_stays(helper: Controller, instances: Path, how: str) -> None:
    """Any close() of a file drops the process's locks on it; another run would take it for a dead one's."""
    with Rig(helper, instances, times={**TIMES, "hold_s": 0.0}) as rig:
        rig.grow("image", DATA)
        rig.append("image", len(DATA))
        reader = rig.ask("image")
        rig.end("image", how)
        assert len(reader.rest()) <= len(DATA)
        reader.close()
        rig.wait_until(lambda held: held["connections"] == 0)
        assert rig.ask("other", "").status == 403  # time has passed
        (path,) = (instances / "_base/.imgcache").glob("*.grown")
        with path.open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)


def test_many_readers_at_once_get_the_same(rig: Rig) -> None:
    rig.grow("image", DATA)
    got: dict[int, bytes] = {}

    def read(number: int) -> None:
        got[number] = rig.ask("image").read(len(DATA))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for until in range(200_000, len(DATA), 200_000):
        rig.append("image", until)
    rig.append("image", len(DATA))
    for thread in threads:
        thread.join()
    assert [got[number] == DATA for number in range(4)] == [True] * 4


def test_the_descriptor_is_read_only(rig: Rig) -> None:
    rig.grow("image", DATA)
    pid = rig.helper.process.pid
    flags = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{name}").endswith("image.grown"):
            with open(f"/proc/{pid}/fdinfo/{name}") as file:
                flags += [int(line.split()[1], 8) for line in file if line.startswith("flags")]
    assert sorted(value & os.O_ACCMODE for value in flags) == [os.O_RDONLY, os.O_RDWR]
