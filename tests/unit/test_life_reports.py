"""Reports of the life of the cache: totals and exit codes; images by name, id and hash; status sums."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imgcache.drivers.libvirt import LibvirtDriver
from imgcache.errors import ErrorCode, ExitCode, ImageProblemsError
from imgcache.model import Host, HostSettings, ImageId, base_file_name
from imgcache.operations.catalogue import Catalogue, KnownImages
from imgcache.operations.status import status_of, totals_of
from imgcache.plan import (
    EntryOutcome,
    EntryReport,
    EntryWord,
    HostFailure,
    ListReport,
    MissingImage,
    OutcomeWord,
    StatusReport,
)
from imgcache.policy import PrunePolicy
from unit.life_values import GIB, POLICY, base, cache, entry, image_id, manifest

NOW = datetime(2026, 11, 21, tzinfo=UTC)
HOST = Host("h1", "edge", "c1", None, HostSettings())


def outcome(word: EntryWord, freed: int = 0) -> EntryOutcome:
    return EntryOutcome("h1", "edge", None, base(1), None, None, None, word, bytes_freed=freed)


def report(command: str, *words: EntryWord, **more: object) -> EntryReport:
    plain = EntryReport("r", command, NOW, NOW, tuple(outcome(word, 5) for word in words))
    return replace(plain, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (report("prune"), ExitCode.OK),
        (report("prune", EntryWord.REMOVED, EntryWord.KEPT), ExitCode.OK),
        (report("delete", EntryWord.REMOVED, EntryWord.ABSENT), ExitCode.OK),
        (report("delete", EntryWord.REMOVED, EntryWord.KEPT), ExitCode.ITEMS_FAILED),
        (report("prune", EntryWord.ERROR), ExitCode.ITEMS_FAILED),
        (report("prune", EntryWord.UNKNOWN), ExitCode.ITEMS_FAILED),
        (report("prune", EntryWord.UNSUPPORTED), ExitCode.OK),
        (report("verify", EntryWord.INTACT, EntryWord.UNMANAGED), ExitCode.OK),
        (report("verify", EntryWord.DAMAGED), ExitCode.ANSWER_IS_NO),
        (report("verify", EntryWord.REPAIRED), ExitCode.OK),
        (report("verify", EntryWord.DAMAGED, EntryWord.ERROR), ExitCode.ITEMS_FAILED),
        (report("prune", interrupted=signal.SIGINT), ExitCode.INTERRUPTED),
        (report("prune", EntryWord.ERROR, interrupted=signal.SIGTERM), ExitCode.TERMINATED),
    ],
)
def test_exit_codes(made: EntryReport, code: ExitCode) -> None:
    assert made.exit_code() is code


def test_totals_hold_every_word_and_bytes_add_up() -> None:
    made = report("prune", EntryWord.REMOVED, EntryWord.REMOVED, EntryWord.KEPT)
    totals = made.totals()
    assert list(totals) == [word.value for word in EntryWord]
    assert (totals["removed"], totals["kept"], totals["error"]) == (2, 1, 0)
    assert made.bytes_freed == 15


def failure(word: OutcomeWord) -> HostFailure:
    return HostFailure("h2", "edge", None, word, ErrorCode.CONNECT, "gone")


def test_list_says_no_when_images_are_missing_and_fails_with_a_host() -> None:
    plain = ListReport("r", "list", NOW, NOW, ("h1",), (), (), ())
    missing = replace(plain, missing=(MissingImage("h1", "edge", None, image_id(1), None),))
    assert plain.exit_code() is ExitCode.OK
    assert missing.exit_code() is ExitCode.ANSWER_IS_NO
    failed = replace(missing, failures=(failure(OutcomeWord.ERROR),))
    assert failed.exit_code() is ExitCode.ITEMS_FAILED
    unsupported = replace(plain, failures=(failure(OutcomeWord.UNSUPPORTED),))
    assert unsupported.exit_code() is ExitCode.OK
    assert replace(plain, interrupted=signal.SIGINT).exit_code() is ExitCode.INTERRUPTED


def test_the_page_lists_exactly_the_words_for_entries() -> None:
    page = Path("docs/errors.md").read_text(encoding="utf-8")
    section = page.partition("\n## Outcomes of cache entries\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE) == [
        word.value for word in EntryWord
    ]


# ---- images


OTHER = ImageId("ABCDEF00-0000-4000-8000-000000000000")


def entries(images: KnownImages) -> set[str]:
    return set(images.by_entry(LibvirtDriver()))


def test_names_ids_and_capitals_are_resolved() -> None:
    known = Catalogue([(image_id(1), "one", "active"), (OTHER, "two", "deactivated")])
    assert entries(known.resolve(["one"])) == {base(1)}
    assert entries(known.resolve([image_id(1).upper()])) == {base(1)}
    assert entries(known.resolve([OTHER.lower()])) == {base_file_name(OTHER)}
    # An id that is not listed may be hashed either way.
    assert entries(Catalogue().resolve([OTHER])) == {
        base_file_name(OTHER),
        base_file_name(ImageId(OTHER.lower())),
    }


def test_all_names_that_cannot_be_told_are_told_at_once() -> None:
    known = Catalogue([(image_id(1), "one", "active"), (image_id(2), "one", "active")])
    with pytest.raises(ImageProblemsError) as wrong:
        known.resolve(["one", "none", image_id(3)])
    assert [problem.where for problem in wrong.value.problems] == ["one", "none"]
    assert image_id(2) in wrong.value.problems[0].what


# ---- status


def test_status_sums_what_is_used_pinned_and_reclaimable() -> None:
    from imgcache.model import PIN_FOREVER

    pinned = entry(3, manifest=manifest(3, pinned_until=PIN_FOREVER))
    found = cache([entry(1), entry(2, users=2), pinned], nova_usage_bytes=3 * GIB + 1)
    status = status_of(HOST, found, PrunePolicy())
    assert (status.cache_bytes, status.in_use_bytes) == (3 * GIB + 1, GIB)
    assert (status.pinned_bytes, status.reclaimable_bytes) == (GIB, GIB)
    assert status.cache_reserve_mb == 3 * 1024 + 1
    assert status.used_share == pytest.approx(0.5)
    assert status.cache_share == pytest.approx(0.03)


@pytest.mark.parametrize(
    "more",
    [{"own_filesystem": True}, {"policy": replace(POLICY, reserves_cache=True)}],
)
def test_nothing_need_be_reserved_where_nova_counts_it_or_it_takes_no_room(
    more: dict[str, object],
) -> None:
    assert status_of(HOST, cache([entry(1)], **more), PrunePolicy()).cache_reserve_mb == 0


def test_a_shared_storage_counts_once_in_each_total() -> None:
    def status(name: str, aggregate: str, cell: str | None, storage: str | None) -> object:
        host = Host(name, aggregate, cell, None, HostSettings())
        return status_of(host, cache([entry(1)], storage_id=storage), PrunePolicy())

    statuses = [
        status("h1", "a", "c1", "s"),
        status("h2", "a", "c1", "s"),
        status("h3", "b", "c1", None),
        status("h4", "b", None, None),
    ]
    totals = {(one.group, one.name): one for one in totals_of(statuses, {})}  # type: ignore[arg-type]
    assert [*totals] == [("aggregate", "a"), ("aggregate", "b"), ("cell", "c1")]
    assert totals["aggregate", "a"].cache_bytes == GIB
    assert totals["aggregate", "b"].cache_bytes == 2 * GIB
    assert (totals["cell", "c1"].cache_bytes, totals["cell", "c1"].hosts) == (2 * GIB, 3)


@pytest.mark.parametrize(
    ("max_used", "code"), [(None, ExitCode.OK), (0.5, ExitCode.OK), (0.49, ExitCode.ANSWER_IS_NO)]
)
def test_status_says_no_above_the_threshold(max_used: float | None, code: ExitCode) -> None:
    status = status_of(HOST, cache([]), PrunePolicy())
    made = StatusReport("r", "status", NOW, NOW, (status,), (), (), max_used)
    assert made.exit_code() is code
