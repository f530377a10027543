"""What every driver that can tell what is cached promises, as far as it can do more than that."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.drivers.base import NoteState, RemovalItem, RemovalState, VerdictState
from imgcache.drivers.capabilities import supports
from imgcache.guards import base_of, is_pinned
from imgcache.model import EntryKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from contract.driver_suite import Bench, Context
    from imgcache.drivers.base import NoteRow, RemovalRow, Verdict
    from imgcache.model import CacheEntry, HostCache, Image

ABSENT_ID = "00000000-0000-4000-8000-ffffffffffff"


def look(bench: Bench, **more: Any) -> HostCache:
    """Return what the driver says is in the host's cache."""
    found: list[HostCache] = []
    asked = {"formats": True, "use": True, **more}

    async def work(context: Context) -> None:
        found.append(await bench.driver.inspect(context, **asked))

    bench.run(work)
    return found[0]


def entry_of(bench: Bench, image: Image) -> CacheEntry:
    """Return the one original of an image."""
    name = bench.driver.entry_name(image.id)
    (entry,) = [
        entry
        for entry in look(bench).entries
        if entry.kind is EntryKind.ORIGINAL and base_of(entry) == name
    ]
    return entry


def need(bench: Bench, method: str) -> None:
    """Skip what the driver cannot: that it says so is tested elsewhere."""
    if not supports(bench.driver, method):
        pytest.skip(bench.driver.why_not(method))


class LifeSuite:
    """See the module."""

    def test_looking_reads_only_and_finds_each_image_by_its_name(self, bench: Bench) -> None:
        images = [bench.stock.add(os.urandom(size)) for size in (70_000, 1000)]
        bench.precache(*images)
        before = bench.tree()
        cache = look(bench)
        assert bench.tree() == before
        originals = [entry for entry in cache.entries if entry.kind is EntryKind.ORIGINAL]
        names = {bench.driver.entry_name(image.id) for image in images}
        assert {base_of(entry) for entry in originals} == names
        assert len({entry.name for entry in cache.entries}) == len(cache.entries)
        for entry in originals:
            assert entry.size_bytes > 0
            assert entry.users == 0, "nothing uses it, and that could be told"
            assert abs(entry.age_s) < 600
        assert cache.evidence_problems == ()

    def test_users_and_formats_are_left_out_when_nobody_asks(self, bench: Bench) -> None:
        bench.precache(bench.stock.add(os.urandom(1000)))
        told = look(bench, formats=False, use=False)
        assert {base_of(one) for one in told.entries} == {
            base_of(one) for one in look(bench).entries
        }

    def test_an_entry_is_removed_when_it_is_still_the_same(self, bench: Bench) -> None:
        need(bench, "remove")
        going, staying = bench.stock.add(os.urandom(900)), bench.stock.add(os.urandom(800))
        bench.precache(going, staying)
        item = item_of(entry_of(bench, going))
        rows = self._rows(bench, lambda on_row: ([item], on_row))
        assert [(row.name, row.state) for row in rows] == [(item.name, RemovalState.REMOVED)]
        assert bench.cached(going) is None
        assert bench.cached(staying) is not None
        (again,) = self._rows(bench, lambda on_row: ([item], on_row))
        assert (again.name, again.state) == (item.name, RemovalState.GONE)

    def test_what_is_younger_than_decided_is_kept(self, bench: Bench) -> None:
        need(bench, "remove")
        image = bench.stock.add(os.urandom(900))
        bench.precache(image)
        item = item_of(entry_of(bench, image), min_age_s=86400.0, ours_ok=False)
        (row,) = self._rows(bench, lambda on_row: ([item], on_row))
        assert row.state is RemovalState.KEPT
        assert row.code
        assert bench.cached(image) is not None

    @staticmethod
    def _rows(bench: Bench, arguments: Callable[[Any], Any]) -> list[RemovalRow]:
        rows: list[RemovalRow] = []

        async def work(context: Context) -> None:
            await bench.driver.remove(context, *arguments(rows.append))

        bench.run(work)
        return rows

    def test_what_is_intact_verifies(self, bench: Bench) -> None:
        need(bench, "verify")
        image = bench.stock.add(os.urandom(90_000))
        bench.precache(image)
        name = entry_of(bench, image).name
        verdicts: list[Verdict] = []

        async def work(context: Context) -> None:
            await bench.driver.verify(
                context, [name], adopt={}, bytes_per_s=None, on_verdict=verdicts.append,
                on_progress=lambda *_: None,
            )  # fmt: skip

        bench.run(work)
        assert [(one.base_name, one.state) for one in verdicts] == [(name, VerdictState.INTACT)]

    def test_pins_are_noted_and_taken_back(self, bench: Bench) -> None:
        need(bench, "pin")
        image = bench.stock.add(os.urandom(900))
        bench.precache(image)
        absent = bench.driver.entry_name(type(image.id)(ABSENT_ID))
        end = datetime.now(UTC) + timedelta(hours=5)
        name = bench.driver.entry_name(image.id)
        assert self._pin(bench, [name, absent], end) == [
            (name, NoteState.PINNED), (absent, NoteState.ABSENT),
        ]  # fmt: skip
        assert is_pinned(entry_of(bench, image))
        assert self._pin(bench, [name], None) == [(name, NoteState.UNPINNED)]
        assert not is_pinned(entry_of(bench, image))

    @staticmethod
    def _pin(bench: Bench, names: list[str], until: datetime | None) -> list[tuple[str, NoteState]]:
        rows: list[NoteRow] = []

        async def work(context: Context) -> None:
            await bench.driver.pin(context, names, until, rows.append)

        bench.run(work)
        return [(row.base_name, row.state) for row in rows]

    def test_renewing_makes_it_young(self, bench: Bench) -> None:
        need(bench, "renew")
        image = bench.stock.add(os.urandom(900))
        bench.precache(image)
        entry = entry_of(bench, image)
        rows: list[NoteRow] = []

        async def work(context: Context) -> None:
            sizes = [(entry.name, entry.size_bytes)]
            await bench.driver.renew(context, sizes, rows.append)

        bench.run(work)
        assert [(row.base_name, row.state) for row in rows] == [(entry.name, NoteState.RENEWED)]
        assert entry_of(bench, image).mtime_ns >= entry.mtime_ns

    def test_cleaning_a_clean_cache_removes_nothing(self, bench: Bench) -> None:
        need(bench, "clean")
        image = bench.stock.add(os.urandom(900))
        bench.precache(image)
        rows: list[RemovalRow] = []

        async def work(context: Context) -> None:
            await bench.driver.clean(context, 3600.0, rows.append)

        bench.run(work)
        assert not [row for row in rows if row.state is RemovalState.REMOVED]
        assert bench.cached(image) is not None


def item_of(entry: CacheEntry, *, min_age_s: float = 0.0, ours_ok: bool = True) -> RemovalItem:
    """Return an order to remove an entry."""
    return RemovalItem(entry.name, entry.inode, entry.mtime_ns, min_age_s, ours_ok=ours_ok)
