"""Entries that are not what they should be: found by what was noted about them, removed under all guards.

Of an entry that nothing is noted about, which Nova fetched, the image service knows the size: that tells a
fetch that was cut off.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.drivers.base import HashProgress, VerdictState
from imgcache.drivers.capabilities import supports
from imgcache.errors import ImageProblemsError, ImageServiceError
from imgcache.events import ItemProgress, Notice
from imgcache.guards import Rules, held_by, size_fault
from imgcache.model import EntryKind
from imgcache.operations.catalogue import Catalogue, Lookup, image_of, read_catalogue
from imgcache.operations.removal import plan_hosts
from imgcache.policy import HostPlan, plan_invalid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence

    from imgcache.drivers.base import Driver, Verdict
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import CacheEntry, Host, HostCache
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.removal import PlannedHost

#: Formats that a header tells for sure. The content of kernels and ramdisks may be anything.
_TOLD_BY_HEADER = frozenset({"raw", "qcow2", "vmdk", "vdi", "vhdx"})
_ANY_CONTENT = frozenset({"ami", "ari", "aki"})
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one entry, and which file it was."""

    inode: int
    mtime_ns: int
    reason: str


@dataclass(slots=True)
class Faults:
    """What is wrong, by host; and which hosts see their cache together with others."""

    by_host: dict[str, dict[str, Fault]] = field(default_factory=dict)
    """Host name -> entry name -> fault."""
    blind: dict[str, str] = field(default_factory=dict)
    """Host name -> what of the evidence could not be read, so that nothing may be looked for."""
    sharing: set[str] = field(default_factory=set)
    _claimed: dict[str, str] = field(default_factory=dict)

    def is_first(self, host: str, cache: HostCache) -> bool:
        """Whether this host is to read the files: of those that share a storage, the first only."""
        if cache.storage_id is None:
            return True
        self.sharing.add(host)
        return self._claimed.setdefault(cache.storage_id, host) == host

    def add(self, host: str, entry: CacheEntry, reason: str) -> None:
        """Note a fault."""
        fault = Fault(entry.inode, entry.mtime_ns, reason)
        self.by_host.setdefault(host, {})[entry.name] = fault

    def hosts(self, selected: Sequence[Host]) -> list[Host]:
        """Return the hosts to look at before something is removed: sharers always together."""
        concerned = set(self.by_host)
        if concerned & self.sharing:
            concerned |= self.sharing
        return [host for host in selected if host.name in concerned]


class ListedSizes:
    """Judges originals that nothing is noted about by their images' sizes in the image service.

    In doubt an entry is good: of formats that hosts may convert, of images that may not be cached today
    (signed, deactivated), and when the image service cannot be asked, nothing is said.
    """

    def __init__(self, service: ImageService | None, sink: EventSink) -> None:
        """Read what the service lists; blocks. When it cannot be asked, operators are told."""
        self._sink = sink
        self._catalogue = Catalogue()
        self._lookup: Lookup | None = None
        if service is None:
            return
        try:
            self._catalogue = read_catalogue(service)
        except ImageServiceError as error:
            self._give_up(error)
        else:
            self._lookup = Lookup(service, self._catalogue)

    def _give_up(self, error: ImageServiceError) -> None:
        self._lookup = None
        message = f"without the image service, what Nova fetched is not judged: {error.message}"
        self._sink.emit(Notice(message, hint=error.hint))

    async def fault(self, driver: Driver, entry: CacheEntry) -> str | None:
        """Return what is wrong with the size of an entry without a note; None: nothing, or not known."""
        if entry.kind is not EntryKind.ORIGINAL or entry.manifest or not driver.kept_as_is:
            return None
        known = image_of(driver, entry, {}, self._catalogue)
        if self._lookup is None or known is None or known.id not in self._catalogue:
            return None
        try:
            image = await self._lookup.image(known.id)
        except ImageProblemsError:
            return None
        except ImageServiceError as error:
            if self._lookup is not None:  # else another host's look has told
                self._give_up(error)
            return None
        # Tools other than Nova fill up the last sector: to whoever boots from it, that is the same disk.
        filled = -(-image.size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
        wrong = entry.size_bytes not in {image.size_bytes, filled}
        if image.disk_format not in driver.kept_as_is or not wrong:
            return None
        return f"it has {entry.size_bytes} bytes instead of the {image.size_bytes} of {image.name}"


async def find_faults(
    fleet: Fleet, hosts: Sequence[Host], listed: ListedSizes, *, bytes_per_s: int | None
) -> Faults:
    """Look for originals whose size, format or digest is not what was noted; reads only what may go.

    Of those that nothing was noted about, ``listed`` judges the size. Hosts that cannot be looked at are in
    ``fleet.failures``.
    """
    faults = Faults()

    async def look(context: HostRun, driver: Driver) -> None:
        name = context.host.name
        cache = await driver.inspect(context, formats=True, use=True)
        if cache.evidence_problems:
            faults.blind[name] = "; ".join(cache.evidence_problems[:3])
        if not faults.is_first(name, cache):
            return
        rules = Rules(policy=cache.policy, override_host=True)
        can_hash = supports(driver, "verify")
        candidates: dict[str, CacheEntry] = {}
        for entry in cache.entries:
            if reason := visible_fault(entry) or await listed.fault(driver, entry):
                faults.add(name, entry, reason)
            elif can_hash and entry.manifest and held_by(entry, rules) is None:
                candidates[entry.name] = entry

        if candidates:
            found = driver.verify(context, list(candidates), adopt={}, bytes_per_s=bytes_per_s)
            async for verdict in verdicts(fleet, name, candidates, found):
                if verdict.state is VerdictState.DAMAGED:
                    reason = verdict.reason or "its digest is wrong"
                    faults.add(name, candidates[verdict.base_name], reason)

    await fleet.each(hosts, look)
    return faults


def visible_fault(entry: CacheEntry) -> str | None:
    """Return what is wrong with an original by its size and header alone, or None."""
    if fault := size_fault(entry):
        return fault
    manifest = entry.manifest
    if entry.kind is not EntryKind.ORIGINAL or manifest is None:
        return None
    stored = manifest.stored_format
    sure = {entry.format, stored} <= _TOLD_BY_HEADER and manifest.disk_format not in _ANY_CONTENT
    if sure and entry.format != stored:
        return f"its header says {entry.format} instead of {stored}"
    return None


async def verdicts(
    fleet: Fleet,
    host: str,
    entries: Mapping[str, CacheEntry],
    found: AsyncGenerator[Verdict | HashProgress, None],
) -> AsyncIterator[Verdict]:
    """Yield the verdicts of a driver's ``verify``; its progress goes to the run's displays."""
    async with aclosing(found):
        async for one in found:
            if isinstance(one, HashProgress):
                manifest = entries[one.base_name].manifest
                name = manifest.image_name if manifest else one.base_name
                done, total = one.done_bytes, one.total_bytes
                fleet.sink.emit(ItemProgress(host, one.base_name, name, "hash", done, total))
            else:
                yield one


async def plan_faults(fleet: Fleet, hosts: Sequence[Host], faults: Faults) -> list[PlannedHost]:
    """Look at the hosts again and plan to remove the faulty entries that are still the same files."""

    async def decide(driver: Driver, cache: HostCache, names: Collection[str]) -> HostPlan:
        del driver
        found = {
            name: fault for host in names for name, fault in faults.by_host.get(host, {}).items()
        }
        reasons = {
            entry.name: found[entry.name].reason
            for entry in cache.entries
            if entry.name in found
            and (entry.inode, entry.mtime_ns)
            == (found[entry.name].inode, found[entry.name].mtime_ns)
        }
        return plan_invalid(cache, reasons)

    return await plan_hosts(fleet, faults.hosts(hosts), decide)
