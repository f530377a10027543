"""What a precache run over sites would do, and how it ended: values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, ExitCode
from imgcache.plan import OutcomeWord, Report

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from imgcache.model import Host, Image, Site

#: The part of a link's budget that an image's bytes may be: the rest is for headers of TCP, TLS and SSH.
PAYLOAD = 0.96
_THERE = frozenset({OutcomeWord.CACHED, OutcomeWord.EXISTING})
#: Codes with which the operator's own limits end a run that worked.
_CUT_SHORT = frozenset({ErrorCode.WINDOW, ErrorCode.DEADLINE})


@dataclass(frozen=True, slots=True)
class PrecachePlan:
    """Which images go to which hosts; made by reading only."""

    images: tuple[Image, ...]
    """In the order given, each once."""
    hosts: tuple[Host, ...]
    """Each once, grouped by cell."""
    only: Mapping[str, frozenset[str]] | None = None
    """Host name -> ids of the images that go there; None: all go to all."""
    sites: Mapping[str, Site] = field(default_factory=dict)
    """What the inventory says about sites."""
    neighbours: tuple[Host, ...] = ()
    """All hosts of the inventory that are not excluded: some may have what others need."""

    def images_of(self, host: Host) -> tuple[Image, ...]:
        """Return the images that go to a host."""
        if self.only is None:
            return self.images
        wanted = self.only.get(host.name, frozenset())
        return tuple(image for image in self.images if image.id in wanted)


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What a run has before it at one site, as a first look at its hosts found. Sizes in bytes."""

    site: str | None
    """None: the hosts that are in no site."""
    hosts: int
    warm: int
    """Hosts that have all images already."""
    cold: int
    """Hosts that lack some, and have the room."""
    no_room: int
    """Hosts that lack some, and lack the room for one of them."""
    not_reached: int
    other: int
    """Hosts that cannot be helped: unsupported, or in another kind of trouble."""
    bytes_outside: int
    """What comes to the site from outside at most."""
    bytes_per_s: int | None
    """What it may take from outside; None: no limit is known."""
    window: str | None
    opens_at: datetime | None
    """When its window opens; None: it is open, or there is none."""
    ends_at: datetime | None
    """When its window closes, or the deadline is, whichever comes first; None: never."""
    available_s: float | None
    """Seconds until then, counted from when it opens."""
    host_s: float | None = None
    """Seconds that the bytes of the host that lacks most take at least, beside others; None: not known."""

    @property
    def expected_s(self) -> float | None:
        """Seconds that the bytes take at least; None: not known."""
        if self.bytes_outside == 0:
            return 0.0
        return self.bytes_outside / (self.bytes_per_s * PAYLOAD) if self.bytes_per_s else None

    @property
    def fits(self) -> bool | None:
        """Whether it can be done in time; None: not known."""
        if self.available_s is None:
            return True
        return None if self.expected_s is None else self.expected_s <= self.available_s


@dataclass(frozen=True, slots=True)
class PrecacheReport(Report):
    """All outcomes of one precache run, with what was planned and asked for."""

    plan: tuple[SitePlan, ...] | None = None
    """None: no first look was made."""
    min_coverage: float | None = None
    """The share of items that must be there in the end, above 0 and at most 1."""
    would_be_refused: bool = False
    """Of a dry run: without ``--dry-run`` nothing would be done, for it does not fit."""
    drivers: Mapping[str, str] = field(default_factory=dict)
    """Host -> its driver."""

    @property
    def coverage(self) -> float:
        """The share of items that are there now, 0 to 1; what cannot be cached at all does not count."""
        words = [one.outcome for one in self.outcomes]
        possible = len(words) - words.count(OutcomeWord.UNSUPPORTED)
        return sum(word in _THERE for word in words) / possible if possible else 1.0

    def exit_code(self) -> ExitCode:
        """Return as ``Report``; and 5 where that is 0, but time ran out or too little is covered.

        Of a dry run whose plan does not fit, 3: as the run itself would end.
        """
        code = Report.exit_code(self)
        if self.would_be_refused and self.interrupted is None:
            return ExitCode.REFUSED
        if code is not ExitCode.OK:
            return code
        cut_short = any(one.code in _CUT_SHORT for one in self.outcomes)
        # The share is asked for in percent with few digits; rounding errors are far below.
        missed = self.min_coverage is not None and self.coverage < self.min_coverage - 1e-9
        return ExitCode.ANSWER_IS_NO if cut_short or missed else ExitCode.OK
