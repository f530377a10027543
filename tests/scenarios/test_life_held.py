"""All commands that remove take one way: what something has open stays, and what cannot go is an error."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from helper.life.holders import IN_FLIGHT
from helper.life.tree import child
from imgcache.errors import ExitCode
from imgcache.operations.selection import Selection
from imgcache.policy import PrunePolicy
from scenarios.life_rig import DAY, Rig, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from imgcache.plan import EntryReport
    from servers.fleet_fixtures import Fleet

pytestmark = pytest.mark.sshd

COMMANDS: dict[str, Callable[..., EntryReport]] = {
    "prune": lambda rig, **more: rig.prune(**more),
    "delete": lambda rig, **more: rig.delete("img0", **more),
    "clean --invalid": lambda rig, **more: rig.clean(invalid=True, **more),
    "verify --repair": lambda rig, **more: rig.verify(repair=True, **more),
}
#: How each command ends when nothing hinders it.
DONE = {"verify --repair": "repaired"}


@pytest.fixture
def rig(fleet: Fleet) -> Rig:
    made = Rig(fleet)
    made.selection = Selection(hosts=("edge1-01",))
    return made


def faulty(rig: Rig, image: int) -> Path:
    """Make a base file that every one of the commands would remove."""
    return rig.base(0, image, data=bytes(100))


@contextmanager
def fixed(path: Path) -> Iterator[None]:
    """Set an attribute that keeps even root from removing a file."""
    if subprocess.run(["chattr", "+i", path], check=False, capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.row("D5")
@pytest.mark.parametrize("command", COMMANDS)
def test_what_only_the_kernel_knows_to_be_open_stays(command: str, rig: Rig) -> None:
    final = faulty(rig, 0)
    with child(sys.executable, "-c", IN_FLIGHT, final):
        report = COMMANDS[command](rig)
        word = "damaged" if command == "verify --repair" else "kept"
        assert words(report) == {("01", "img0"): (word, "in-use")}
        assert "that no process or device shows" in str(report.outcomes[0].reason)
    assert final.read_bytes() == bytes(100)
    report = COMMANDS[command](rig)
    assert words(report) == {("01", "img0"): (DONE.get(command, "removed"), None)}
    assert report.exit_code() is ExitCode.OK


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_removed_is_an_error_and_not_promised(command: str, rig: Rig) -> None:
    final = faulty(rig, 0)
    with fixed(final):
        for dry in (True, False):
            report = COMMANDS[command](rig, dry_run=dry)
            if dry and command == "verify --repair":
                continue  # it only shows the damage
            assert words(report) == {("01", "img0"): ("error", "permission")}
            assert "it is immutable" in str(report.outcomes[0].reason)
            assert report.outcomes[0].bytes_freed == 0
            assert report.exit_code() is ExitCode.ITEMS_FAILED
    assert final.exists()


def test_a_transfers_file_that_cannot_be_removed_is_an_error(rig: Rig) -> None:
    part = rig.base(0, 0)
    part = part.rename(f"{part}.part")
    with fixed(part):
        for dry in (True, False):
            report = rig.clean(dry_run=dry)
            assert words(report) == {("01", part.name): ("error", "permission")}
            assert report.exit_code() is ExitCode.ITEMS_FAILED
    assert words(rig.clean()) == {("01", part.name): ("removed", None)}


def test_no_room_is_promised_by_what_cannot_be_removed(rig: Rig) -> None:
    """The next one in age goes in its place."""
    stuck, other = rig.base(0, 0, age_s=DAY / 2), rig.base(0, 1, age_s=DAY / 3)
    policy = PrunePolicy(max_size_bytes=other.stat().st_blocks * 512)
    with fixed(stuck):
        assert words(rig.prune(policy=policy)) == {
            ("01", "img0"): ("kept", "young"),
            ("01", "img1"): ("removed", None),
        }


def test_a_lock_that_cannot_be_taken_is_an_error(rig: Rig) -> None:
    final = rig.base(0, 0)
    lock = final.parents[1] / "locks" / f"nova-{final.name}"
    lock.mkdir(parents=True)
    report = rig.prune()
    assert [one.outcome.value for one in report.outcomes] == ["error"]
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    assert final.exists()
