"""Verify: are the files in the caches still what was put there? Adopts and repairs when asked to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.drivers.base import VerdictState
from imgcache.drivers.capabilities import supports
from imgcache.errors import ErrorCode, ImageProblemsError, ImageServiceError, UsageError
from imgcache.guards import base_of, size_fault
from imgcache.model import RAW_DISK_FORMATS, EntryKind
from imgcache.operations.catalogue import (
    Catalogue,
    KnownImages,
    Lookup,
    image_of,
    noted_images,
    read_catalogue,
    resolve_images,
    with_names,
)
from imgcache.operations.delete import absent_rows
from imgcache.operations.fleet import FleetRequest, driver_of, open_fleet
from imgcache.operations.invalid import Faults, verdicts
from imgcache.operations.prove import prove
from imgcache.operations.removal import entry_outcome, host_outcome, report_of
from imgcache.operations.repair import repair
from imgcache.operations.selection import select_hosts
from imgcache.operations.sources import SourcePolicy, source_kinds
from imgcache.plan import EntryWord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgcache.drivers.base import Driver, Verdict
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import CacheEntry, Host, HostCache, Image, Inventory, Site
    from imgcache.operations.catalogue import KnownImage
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.removal import Ending
    from imgcache.plan import EntryOutcome, EntryReport


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest(FleetRequest):
    """What the operator asked for."""

    names: tuple[str, ...] = ()
    """Image ids and names; empty: all originals."""
    bytes_per_s: int | None = None
    """The most that a host reads per second; None: as fast as it goes, at low priority."""
    adopt: bool = False
    """Note entries without a noted digest whose content is that of the image in the image service.

    Proven by the digest; where the host may have converted the image, by fetching and converting it again.
    """
    repair: bool = False
    """Fetch damaged entries again that nothing uses."""
    source: SourcePolicy = "auto"
    """For ``adopt`` and ``repair``: as for precache."""


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """What the run works with; made without contacting any host."""

    hosts: tuple[Host, ...]
    wanted: KnownImages
    """Empty: all originals."""
    catalogue: Catalogue
    sites: Mapping[str, Site]
    """What ``adopt`` and ``repair`` fetch keeps within their bandwidths."""


def plan_verify(
    request: VerifyRequest, inventory: Inventory, service: ImageService | None
) -> VerifyPlan:
    """Return what is verified where; contacts no host.

    Raises:
        UsageError: the selection makes no sense, or the image service is needed and there is none.
        ImageProblemsError: an image cannot be told.
        ImageServiceError: the service cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    asked = request.adopt or request.repair
    if service is None and asked:
        message = "--adopt and --repair need the image service"
        raise UsageError(message, hint="see image_service in the inventory")
    if service is not None and asked:
        source_kinds(request.source, service)
    catalogue = read_catalogue(service) if asked else Catalogue()
    if not request.names:
        return VerifyPlan(hosts, KnownImages(), catalogue, inventory.sites)
    wanted = catalogue.resolve(request.names) if asked else resolve_images(request.names, service)
    return VerifyPlan(hosts, wanted, catalogue, inventory.sites)


def run_verify(
    request: VerifyRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Verify, adopt, repair; blocks until all hosts have ended or a signal ended the run.

    In a dry run files are hashed, and nothing is adopted or repaired.

    Raises:
        ImgcacheError: nothing was done; see ``plan_verify``.
    """
    plan = plan_verify(request, inventory, service)
    return asyncio.run(_execute(plan, request, service, sink))


async def _execute(
    plan: VerifyPlan, request: VerifyRequest, service: ImageService | None, sink: EventSink
) -> EntryReport:
    faults = Faults()
    lookup = Lookup(service, plan.catalogue) if service and request.adopt else None
    runs: dict[str, _HostVerify] = {}
    async with open_fleet("verify", request, plan.hosts, sink, service=service) as fleet:

        async def verify(context: HostRun, driver: Driver) -> None:
            run = runs.setdefault(
                context.host.name, _HostVerify(context.host, fleet, plan, request, lookup)
            )
            await run.look(context, driver, faults)

        await fleet.each(plan.hosts, verify)
        found = {name: run.outcomes() for name, run in runs.items()}
        unproven = {name: run.unproven for name, run in runs.items() if run.unproven}
        if unproven and service is not None:
            rate = request.bytes_per_s
            await prove(
                fleet,
                unproven,
                found,
                service,
                request.source,
                sites=plan.sites,
                bytes_per_s=rate,
                ending_of=_ending,
            )
        if request.repair and service is not None and not fleet.dry_run and faults.by_host:
            await repair(fleet, faults, found, service, request.source, sites=plan.sites)
        return report_of(fleet, await with_names(plan.hosts, found, service))


@dataclass(slots=True)
class _HostVerify:
    """One host's entries, and what was found about each."""

    host: Host
    fleet: Fleet
    plan: VerifyPlan
    request: VerifyRequest
    lookup: Lookup | None
    unproven: dict[str, Image] = field(default_factory=dict)
    """Name -> image, of entries without a noted digest that the host may have converted."""
    _images: dict[str, KnownImage] = field(default_factory=dict)
    _rows: dict[str, EntryOutcome] = field(default_factory=dict)
    _present: set[str | None] = field(default_factory=set)
    _first: bool = True

    async def look(self, context: HostRun, driver: Driver, faults: Faults) -> None:
        """Verify what has no outcome yet; may be called again when contact was lost."""
        cache = await driver.inspect(context, formats=False, use=False)
        self._images = noted_images(driver, cache.entries)
        self._first = faults.is_first(self.host.name, cache)
        entries = self._chosen(cache) if self._first else {}
        self._present.update(base_of(entry) for entry in entries.values())
        adoptable = await self._adoptable(entries)
        for name, entry in entries.items():
            # One whose size cannot be right is judged on the host, once no process writes it.
            judged = entry.manifest or name in adoptable or size_fault(entry)
            if not (judged or name in self._rows):
                self._note_unmanaged(entry)

        def judge(verdict: Verdict) -> None:
            name, entry = verdict.base_name, entries[verdict.base_name]
            if verdict.code is ErrorCode.UNPROVEN and self._may_be_converted(adoptable[name]):
                self._leave_unproven(entry, adoptable[name])
                return
            if verdict.state is VerdictState.DAMAGED:
                faults.add(self.host.name, entry, verdict.reason or "its digest is wrong")
            self._note(entry, verdict)

        left = [name for name in entries if name not in self._rows]
        if left:
            rate = self.request.bytes_per_s
            found = driver.verify(context, left, adopt=adoptable, bytes_per_s=rate)
            async for verdict in verdicts(self.fleet, self.host.name, entries, found):
                judge(verdict)

    def _chosen(self, cache: HostCache) -> dict[str, CacheEntry]:
        return {
            entry.name: entry
            for entry in cache.entries
            if entry.kind is EntryKind.ORIGINAL
            and (not self.plan.wanted or base_of(entry) in self._wanted())
        }

    async def _adoptable(self, entries: Mapping[str, CacheEntry]) -> dict[str, Image]:
        """Return name -> image of the entries that may be proven; notes why others cannot."""
        found: dict[str, Image] = {}
        for name, entry in entries.items():
            if self.lookup is None or name in self._rows or not self._needs_proof(entry):
                continue
            known = image_of(self._driver, entry, self._images, self.plan.catalogue)
            if known is None or known.id not in self.plan.catalogue:
                self._note_unmanaged(entry, "the image service lists no image of it")
                continue
            try:
                image = await self.lookup.image(known.id)
            except ImageProblemsError as error:
                self._note_unmanaged(entry, f"cannot be proven: the image {error.problems[0].what}")
                continue
            except ImageServiceError as error:
                self._note_unmanaged(entry, f"cannot be proven: {error.message}")
                continue
            if self.fleet.dry_run:
                ending = EntryWord.SKIPPED, ErrorCode.DRY_RUN, "dry run: would be compared"
                self._rows[name] = entry_outcome(self.host, entry, known, ending)
            elif entry.size_bytes != image.size_bytes and self._may_be_converted(image):
                self._leave_unproven(entry, image)
            else:
                found[name] = image
        return found

    def _needs_proof(self, entry: CacheEntry) -> bool:
        """Whether there is no digest to compare an entry with, and nothing else that tells damage.

        A back end that makes its entries of images without a conversion that could be done again notes
        their digest at the first look, by itself.
        """
        noted = entry.manifest
        if noted is None:
            return True
        unhashed = noted.stored_digest is None and supports(self._driver, "prove")
        return unhashed and noted.stored_size_bytes == entry.size_bytes

    def _leave_unproven(self, entry: CacheEntry, image: Image) -> None:
        """Leave an entry, which is not the image as it is, to the pass that fetches images to compare."""
        self.unproven[entry.name] = image
        self._note_unmanaged(entry, "it was not compared with the image")

    def _note_unmanaged(self, entry: CacheEntry, reason: str | None = None) -> None:
        code = ErrorCode.UNPROVEN if reason else ErrorCode.UNMANAGED
        text = reason or "nothing is noted about it"
        ending = EntryWord.UNMANAGED, code, text
        self._rows[entry.name] = entry_outcome(self.host, entry, self._image(entry), ending)

    def _note(self, entry: CacheEntry, verdict: Verdict) -> None:
        word, code, reason = _ending(verdict)
        if code is ErrorCode.UNMANAGED and entry.manifest:
            code = ErrorCode.UNHASHED
        ending = word, code, reason
        self._rows[entry.name] = entry_outcome(self.host, entry, self._image(entry), ending)

    def _image(self, entry: CacheEntry) -> KnownImage | None:
        known = image_of(self._driver, entry, self._images, self.plan.catalogue)
        return known or self._wanted().get(base_of(entry) or "")

    def outcomes(self) -> list[EntryOutcome]:
        """Return what was found on this host."""
        if not self._first:
            reason = "shares its cache with another host of this run, where the entries are shown"
            return [host_outcome(self.host, EntryWord.SKIPPED, ErrorCode.SHARED, reason)]
        if self.host.name in self.fleet.failures:
            return list(self._rows.values())
        return [
            *self._rows.values(),
            *absent_rows(self.host, self._wanted(), self._present),
        ]

    @property
    def _driver(self) -> Driver:
        return driver_of(self.host)

    def _wanted(self) -> Mapping[str, KnownImage]:
        return self.plan.wanted.by_entry(self._driver)

    def _may_be_converted(self, image: Image) -> bool:
        """Whether other bytes than the image's may be right, and can be proven to be."""
        return image.disk_format not in RAW_DISK_FORMATS and supports(self._driver, "prove")


def _ending(verdict: Verdict) -> Ending:
    word, code = _WORDS[verdict.state]
    return word, verdict.code or code, verdict.reason


_WORDS = {
    VerdictState.INTACT: (EntryWord.INTACT, None),
    VerdictState.DAMAGED: (EntryWord.DAMAGED, ErrorCode.DAMAGED),
    VerdictState.UNMANAGED: (EntryWord.UNMANAGED, ErrorCode.UNMANAGED),
    VerdictState.ADOPTED: (EntryWord.ADOPTED, None),
    VerdictState.ABSENT: (EntryWord.ABSENT, ErrorCode.ABSENT),
    VerdictState.FAILED: (EntryWord.ERROR, ErrorCode.IO),
}
