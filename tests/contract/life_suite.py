"""What every driver that can tell what is cached promises, as far as it can do more than that."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contract.rows import collected
from imgcache.drivers.base import NoteState, RemovalItem, RemovalState, Verdict, VerdictState
from imgcache.drivers.capabilities import supports
from imgcache.guards import base_of, is_pinned
from imgcache.model import EntryKind

if TYPE_CHECKING:
    from contract.driver_suite import Bench, Context
    from imgcache.drivers.base import NoteRow, RemovalRow
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


def entries_of(bench: Bench, *images: Image) -> list[CacheEntry]:
    """Return the one original of each image."""
    found = [entry for entry in look(bench).entries if entry.kind is EntryKind.ORIGINAL]
    by_name = {base_of(entry): entry for entry in found}
    assert len(by_name) == len(found)
    return [by_name[bench.driver.entry_name(image.id)] for image in images]


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
        # Users and formats are left out when nobody asks.
        told = look(bench, formats=False, use=False)
        assert {base_of(one) for one in told.entries} == {base_of(one) for one in cache.entries}

    def test_an_entry_is_removed_when_it_is_still_as_it_was_decided(self, bench: Bench) -> None:
        need(bench, "remove")
        going, staying = bench.stock.add(os.urandom(900)), bench.stock.add(os.urandom(800))
        young = bench.stock.add(os.urandom(700))
        bench.precache(going, staying, young)
        first, _, second = entries_of(bench, going, staying, young)
        item = item_of(first)
        too_young = item_of(second, min_age_s=86400.0, ours_ok=False)
        rows = self._rows(bench, item, too_young)
        states = {row.name: row.state for row in rows}
        assert states == {item.name: RemovalState.REMOVED, too_young.name: RemovalState.KEPT}
        assert [bool(row.code) for row in rows if row.name == too_young.name] == [True]
        assert bench.cached(going) is None
        assert bench.cached(staying) is not None
        assert bench.cached(young) is not None
        (again,) = self._rows(bench, item)
        assert (again.name, again.state) == (item.name, RemovalState.GONE)

    @staticmethod
    def _rows(bench: Bench, *items: RemovalItem) -> list[RemovalRow]:
        rows: list[RemovalRow] = []

        async def work(context: Context) -> None:
            rows.extend(await collected(bench.driver.remove(context, items)))

        bench.run(work)
        return rows

    def test_what_is_intact_verifies_and_can_be_made_young_again(self, bench: Bench) -> None:
        if not supports(bench.driver, "renew"):
            need(bench, "verify")
        image = bench.stock.add(os.urandom(90_000))
        bench.precache(image)
        (entry,) = entries_of(bench, image)
        verdicts: list[Verdict] = []
        rows: list[NoteRow] = []

        async def verify(context: Context) -> None:
            found = bench.driver.verify(context, [entry.name], adopt={}, bytes_per_s=None)
            verdicts.extend(one for one in await collected(found) if isinstance(one, Verdict))

        async def renew(context: Context) -> None:
            sizes = [(entry.name, entry.size_bytes)]
            rows.extend(await collected(bench.driver.renew(context, sizes)))

        if supports(bench.driver, "verify"):
            bench.run(verify)
            assert [(one.base_name, one.state) for one in verdicts] == [
                (entry.name, VerdictState.INTACT)
            ]
        if supports(bench.driver, "renew"):
            bench.run(renew)
            assert [(row.base_name, row.state) for row in rows] == [(entry.name, NoteState.RENEWED)]
            assert entries_of(bench, image)[0].mtime_ns >= entry.mtime_ns

    def test_verifying_in_a_dry_run_writes_nothing(self, bench: Bench) -> None:
        need(bench, "verify")
        image = bench.stock.add(os.urandom(90_000))
        bench.precache(image)
        (entry,) = entries_of(bench, image)
        verdicts: list[Verdict] = []

        async def verify(context: Context) -> None:
            found = bench.driver.verify(context, [entry.name], adopt={}, bytes_per_s=None)
            verdicts.extend(one for one in await collected(found) if isinstance(one, Verdict))

        before = bench.tree()
        bench.run(verify, dry_run=True)
        assert [one.state for one in verdicts] == [VerdictState.INTACT]
        assert bench.tree() == before
        bench.run(verify)
        assert bench.tree() != before, "that it was verified is noted"

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
        assert is_pinned(*entries_of(bench, image))
        assert self._pin(bench, [name], None) == [(name, NoteState.UNPINNED)]
        assert not is_pinned(*entries_of(bench, image))

    @staticmethod
    def _pin(bench: Bench, names: list[str], until: datetime | None) -> list[tuple[str, NoteState]]:
        rows: list[NoteRow] = []

        async def work(context: Context) -> None:
            rows.extend(await collected(bench.driver.pin(context, names, until)))

        bench.run(work)
        return [(row.base_name, row.state) for row in rows]

    def test_cleaning_a_clean_cache_removes_nothing(self, bench: Bench) -> None:
        need(bench, "clean")
        image = bench.stock.add(os.urandom(900))
        bench.precache(image)
        rows: list[RemovalRow] = []

        async def work(context: Context) -> None:
            rows.extend(await collected(bench.driver.clean(context, 3600.0)))

        bench.run(work)
        assert not [row for row in rows if row.state is RemovalState.REMOVED]
        assert bench.cached(image) is not None


def item_of(entry: CacheEntry, *, min_age_s: float = 0.0, ours_ok: bool = True) -> RemovalItem:
    """Return an order to remove an entry."""
    return RemovalItem(entry.name, entry.inode, entry.mtime_ns, min_age_s, ours_ok=ours_ok)
