"""The first look of a run that has limits: what is to be done at each site, and whether it fits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from imgcache.distribution import PAYLOAD, SitePlan
from imgcache.drivers.capabilities import supports
from imgcache.errors import ErrorCode, UnsafePlanError
from imgcache.model import ImageId
from imgcache.operations.fleet import driver_of
from imgcache.plan import OutcomeWord
from imgcache.units import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from imgcache.distribution import PrecachePlan
    from imgcache.model import Host
    from imgcache.operations.precache import PrecacheRequest
    from imgcache.operations.window import Gate, Schedule
    from imgcache.plan import Outcome

RELAY_POLICIES = frozenset({"auto", "relay", "push-relay"})
_NO_ROOM = frozenset({ErrorCode.SPACE, ErrorCode.QUOTA, ErrorCode.INODES})
#: The host was not there, or did not answer.
UNREACHED = frozenset(
    {
        ErrorCode.CONNECT,
        ErrorCode.JUMP,
        ErrorCode.LOGIN,
        ErrorCode.HOSTKEY_UNKNOWN,
        ErrorCode.HOSTKEY_CHANGED,
        ErrorCode.SESSION,
        ErrorCode.HANG,
        ErrorCode.LOST,
        ErrorCode.TIMEOUT,
    }
)


def is_needed(plan: PrecachePlan, request: PrecacheRequest, schedule: Schedule) -> bool:
    """Return whether anything limits the run; without, no host is looked at beforehand."""
    if schedule.bounded or request.rate_limit is not None:
        return True
    limited = {name for name, site in plan.sites.items() if site.bytes_per_s is not None}
    return any(host.site in limited for host in plan.hosts)


def by_host(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Return host name -> its outcomes."""
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        found.setdefault(one.host, []).append(one)
    return found


def plan_sites(
    plan: PrecachePlan,
    outcomes: Iterable[Outcome],
    request: PrecacheRequest,
    schedule: Schedule,
    concurrency: int,
) -> tuple[SitePlan, ...]:
    """Return what is before the run, one per site, in the order of their first hosts.

    Args:
        plan: what is wanted.
        outcomes: of a dry run.
        request: what else was asked for.
        schedule: the windows.
        concurrency: hosts at work at a time.
    """
    found = by_host(outcomes)
    by_site: dict[str | None, list[Host]] = {}
    for host in plan.hosts:
        by_site.setdefault(host.site, []).append(host)
    return tuple(
        _SiteSurvey(plan, request, schedule, hosts, found).plan(site, concurrency)
        for site, hosts in by_site.items()
    )


def refuse_what_does_not_fit(plans: Iterable[SitePlan], schedule: Schedule) -> None:
    """Refuse a plan that cannot be done in time, as far as that is known.

    Raises:
        UnsafePlanError: says which sites need how long, and how long they have.
    """
    now = schedule.clock.now()
    late = []
    for one in plans:
        if one.fits is False and one.ends_at and one.available_s is not None and one.bytes_per_s:
            gate = schedule.gates[one.site]
            late.append(
                f"{gate.name}: {size_text(one.bytes_outside)} at {size_text(one.bytes_per_s)}/s take "
                f"{duration_text(one.expected_s or 0)}, and until {gate.clock_text(one.ends_at, now)} there "
                f"are {duration_text(one.available_s)}"
            )
    if late:
        message = f"not everything can be done in time: {'; '.join(late)}"
        hint = (
            "give it more time or bandwidth, fewer images or hosts, or do what fits with --partial"
        )
        raise UnsafePlanError(message, hint=hint)


def too_short_timeouts(plans: Iterable[SitePlan], timeout_s: float) -> list[str]:
    """Return, in a sentence per site, where one host's time ends before it can have all its bytes."""
    return [
        f"{f'site {one.site}' if one.site else 'hosts without a site'}: a host needs "
        f"{duration_text(one.host_s)} at this rate, and --timeout ends it after {duration_text(timeout_s)}"
        for one in plans
        if one.host_s is not None
        and one.host_s > timeout_s
        and (one.available_s is None or one.available_s > timeout_s)
    ]


class _SiteSurvey:
    """Adds up what hosts of one site said."""

    def __init__(
        self,
        plan: PrecachePlan,
        request: PrecacheRequest,
        schedule: Schedule,
        hosts: Sequence[Host],
        found: Mapping[str, list[Outcome]],
    ) -> None:
        self._plan = plan
        self._request = request
        self._schedule = schedule
        self._hosts = hosts
        self._found = found
        self._states = Counter(_state(found.get(host.name, ())) for host in hosts)

    def plan(self, site: str | None, concurrency: int) -> SitePlan:
        """Return the site's plan."""
        gate = self._schedule.gates[site]
        total, downloads = self._outside()
        ends_at = self._schedule.ends_at(gate)
        together = max(min(downloads, concurrency), 1)
        rate = self._rate(site, together)
        return SitePlan(
            site=site,
            hosts=len(self._hosts),
            warm=self._states["warm"],
            cold=self._states["cold"],
            no_room=self._states["no_room"],
            not_reached=self._states["not_reached"],
            other=self._states["other"],
            bytes_outside=total,
            bytes_per_s=rate,
            window=str(gate.window) if gate.window else None,
            opens_at=gate.opens_at,
            ends_at=ends_at,
            available_s=self._available_s(gate, ends_at),
            host_s=self._most_bytes() * together / (rate * PAYLOAD) if rate else None,
        )

    def _outside(self) -> tuple[int, int]:
        """Return the bytes from outside, and how many hosts get them at a time at most."""
        lacking: Counter[tuple[str | None, str]] = Counter()
        for host in self._hosts:
            group = self._group(host)
            for one in self._found.get(host.name, ()):
                if one.code is ErrorCode.DRY_RUN:
                    lacking[group, one.image_id] += 1
        sizes = self._sizes()
        total, downloads = 0, 0
        for (group, image_id), hosts in lacking.items():
            copies = hosts if group is None else min(self._request.seeds, hosts)
            total += copies * sizes[ImageId(image_id)]
            downloads = max(downloads, copies)
        return total, downloads

    def _most_bytes(self) -> int:
        """Return the bytes of the host that lacks most."""
        sizes = self._sizes()
        lacking = (
            sum(sizes[ImageId(one.image_id)] for one in outcomes if one.code is ErrorCode.DRY_RUN)
            for outcomes in (self._found.get(host.name, ()) for host in self._hosts)
        )
        return max(lacking, default=0)

    def _sizes(self) -> dict[ImageId, int]:
        return {image.id: image.size_bytes for image in self._plan.images}

    def _group(self, host: Host) -> str | None:
        """Return those whose members fill each other; None: each gets the bytes by itself."""
        if self._request.source not in RELAY_POLICIES or not supports(driver_of(host), "serving"):
            return None
        if host.site is not None:
            return f"site {host.site}"
        return None if self._request.source == "auto" else f"aggregate {host.aggregate}"

    def _rate(self, site: str | None, downloads: int) -> int | None:
        known = self._plan.sites.get(site or "")
        rates = [known.bytes_per_s if known else None]
        if self._request.rate_limit is not None:
            rates.append(self._request.rate_limit * downloads)
        return min((rate for rate in rates if rate is not None), default=None)

    def _available_s(self, gate: Gate, ends_at: datetime | None) -> float | None:
        if ends_at is None:
            return None
        now = self._schedule.clock.now()
        begins = max(now, gate.opens_at) if gate.opens_at else now
        return max((ends_at - begins).total_seconds(), 0.0)


def _state(outcomes: Sequence[Outcome]) -> str:
    """Return what is with a host, by its outcomes of a dry run."""
    codes = {one.code for one in outcomes}
    if codes & UNREACHED or not outcomes:
        return "not_reached"
    if codes & _NO_ROOM:
        return "no_room"
    if ErrorCode.DRY_RUN in codes:
        return "cold"
    return "warm" if all(one.outcome is OutcomeWord.EXISTING for one in outcomes) else "other"
