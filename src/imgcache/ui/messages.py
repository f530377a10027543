"""Events as sentences: what is said once, at once, above the progress display.

Of many hosts with the same trouble the first few are named as they come, the rest in one line at the end.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from imgcache.events import (
    EntryEnded,
    HostEnded,
    HostFailed,
    HostStarted,
    ItemEnded,
    ItemRetry,
    Notice,
    Planned,
    RunEnded,
)
from imgcache.plan import FAILED_ENTRY_WORDS, FAILED_WORDS, EntryWord, OutcomeWord
from imgcache.text import printable
from imgcache.units import duration_text, size_text

if TYPE_CHECKING:
    from imgcache.distribution import SitePlan
    from imgcache.events import Event
    from imgcache.plan import EntryOutcome, HostFailure, Outcome
    from imgcache.ui.tally import Tally

#: Hosts that are named at once for one and the same trouble.
_NAMED_AT_ONCE = 3
#: Troubles of one kind that are told at once; what differs in every host's wording is told in the end, too.
_TOLD_AT_ONCE = 20
#: A reason ends with what to do, which must not be cut off: that of a changed host key takes 500 characters.
_REASON_LIMIT = 1000

_Kind = tuple[str, str]


class Messages:
    """Says what there is to say about events; remembers what it held back.

    ``verbosity`` 0: warnings and failures; 1: repetitions, too; 2: every step of every host.
    """

    def __init__(self, verbosity: int) -> None:
        self._verbosity = verbosity
        self._named: dict[_Kind, int] = {}
        self._told: dict[str, int] = {}
        self._held_back: dict[_Kind, dict[str, None]] = {}

    def lines(self, event: Event) -> list[str]:
        """Return what to say about this event now: lines without control characters, mostly none."""
        match event:
            case Notice():
                return self._notice(event)
            case ItemEnded():
                return self._outcome(event.outcome)
            case EntryEnded():
                return self._entry(event.outcome)
            case HostFailed():
                return self._failure(event.failure)
            case RunEnded():
                return self._rest()
            case _:
                return self._step(event)

    def _step(self, event: Event) -> list[str]:
        if isinstance(event, Planned):
            return [site_line(one) for one in event.sites]
        line = None
        match event:
            case ItemRetry() if self._verbosity >= 1:
                line = retry_line(event)
            case HostStarted() if self._verbosity >= 2:
                line = f"{printable(event.host)}: contacting"
            case HostEnded() if self._verbosity >= 2:
                line = f"{printable(event.host)}: {'failed' if event.failed else 'done'}"
            case _:
                pass
        return [line] if line else []

    def _notice(self, notice: Notice) -> list[str]:
        message = notice_text(notice)
        if notice.host is None:
            return [message]
        return self._tell(
            notice.host, (notice.level, message), f"{printable(notice.host)}: {message}"
        )

    def _outcome(self, outcome: Outcome) -> list[str]:
        if outcome.outcome not in FAILED_WORDS:
            return [outcome_line(outcome)] if self._verbosity >= 2 else []
        kind = (outcome.outcome.value, outcome.code.value if outcome.code else "")
        return self._tell(outcome.host, kind, outcome_line(outcome))

    def _entry(self, outcome: EntryOutcome) -> list[str]:
        if outcome.outcome not in FAILED_ENTRY_WORDS:
            return [entry_line(outcome)] if self._verbosity >= 2 else []
        kind = (outcome.outcome.value, outcome.code.value if outcome.code else "")
        return self._tell(outcome.host, kind, entry_line(outcome))

    def _failure(self, failure: HostFailure) -> list[str]:
        if failure.outcome not in FAILED_WORDS:  # the warning was told when it happened
            return [failure_line(failure)] if self._verbosity >= 2 else []
        kind = (failure.outcome.value, failure.code.value)
        return self._tell(failure.host, kind, failure_line(failure))

    def _tell(self, host: str, kind: _Kind, line: str) -> list[str]:
        named, told = self._named.get(kind, 0), self._told.get(kind[0], 0)
        if self._verbosity >= 1 or (named < _NAMED_AT_ONCE and told < _TOLD_AT_ONCE):
            self._named[kind] = named + 1
            self._told[kind[0]] = told + 1
            return [line]
        self._held_back.setdefault(kind, {})[host] = None
        return []

    def _rest(self) -> list[str]:
        from imgcache.ui.folding import fold_hosts  # noqa: PLC0415 - ClusterShell, for many hosts only

        lines = []
        for (what, detail), hosts in self._held_back.items():
            more = "1 more host" if len(hosts) == 1 else f"{len(hosts)} more hosts"
            failed = what in {word.value for word in FAILED_WORDS}
            said = f"{what} ({detail})" if failed and detail else detail or what
            lines.append(f"{more}: {printable(fold_hosts(list(hosts)), 2000)}: {said}")
        self._held_back.clear()
        return lines


def notice_text(notice: Notice) -> str:
    """Return a notice in one line, without its host."""
    level = "" if notice.level == "info" else f"{printable(notice.level)}: "
    hint = f" ({printable(notice.hint)})" if notice.hint else ""
    return f"{level}{printable(notice.message, _REASON_LIMIT)}{hint}"


def site_line(plan: SitePlan) -> str:
    """Return what is before the run at one site, in one line."""
    name = f"site {printable(plan.site)}" if plan.site else "hosts without a site"
    counts = [
        f"{count} {one if count == 1 else more}"
        for count, one, more in (
            (plan.warm, "has all", "have all"),
            (plan.cold, "lacks images", "lack images"),
            (plan.no_room, "lacks the room", "lack the room"),
            (plan.not_reached, "not reached", "not reached"),
            (plan.other, *("in other trouble, or unsupported",) * 2),
        )
        if count
    ]
    hosts = "1 host" if plan.hosts == 1 else f"{plan.hosts} hosts"
    parts = [f"{name}: {hosts}: {', '.join(counts)}"]
    moved = f"{size_text(plan.bytes_outside)} from outside"
    if plan.bytes_outside and plan.expected_s is not None and plan.bytes_per_s:
        time, rate = duration_text(plan.expected_s), size_text(plan.bytes_per_s)
        moved += f", about {time} at {rate}/s"
    parts.append(moved)
    if plan.available_s is not None:
        opens = f" once its window opens ({printable(plan.window or '')})" if plan.opens_at else ""
        late = "" if plan.fits is not False else ": too little"
        parts.append(f"{duration_text(plan.available_s)} to do it{opens}{late}")
    return "; ".join(parts)


def retry_line(event: ItemRetry) -> str:
    """Return one line about a repetition."""
    return (
        f"{printable(event.host)}: repetition {event.attempt} in {duration_text(event.delay_s)}: "
        f"{printable(event.reason)}"
    )


def outcome_line(outcome: Outcome) -> str:
    """Return one line about how an item ended."""
    code = f" ({outcome.code.value})" if outcome.code else ""
    reason = f": {printable(outcome.reason, _REASON_LIMIT)}" if outcome.reason else ""
    item = f"{printable(outcome.host)}: {printable(outcome.image_name)}"
    return f"{item}: {outcome.outcome.value}{code}{reason}"


def entry_line(outcome: EntryOutcome) -> str:
    """Return one line about how an entry, or a host as a whole, ended."""
    names = (outcome.image_name, outcome.image_id, outcome.entry)
    name = next((printable(name) for name in names if name), None)
    kind = f" ({outcome.kind.value})" if outcome.kind else ""
    code = f" ({outcome.code.value})" if outcome.code else ""
    reason = f": {printable(outcome.reason, _REASON_LIMIT)}" if outcome.reason else ""
    item = f"{printable(outcome.host)}: {name}{kind}" if name else printable(outcome.host)
    return f"{item}: {outcome.outcome.value}{code}{reason}"


def failure_line(failure: HostFailure) -> str:
    """Return one line about why there is nothing to say about a host."""
    said = f"{failure.outcome.value} ({failure.code.value}): {printable(failure.reason, _REASON_LIMIT)}"
    return f"{printable(failure.host)}: {said}"


def summary_line(tally: Tally, *, interrupted: bool) -> str:
    """Return the run's last line: how many items ended how, bytes, time, run id."""
    words = dict.fromkeys(word.value for word in (*OutcomeWord, *EntryWord))
    counts = [f"{tally.words[word]} {word}" for word in words if tally.words[word]]
    if not counts:  # a command without items, such as check
        counts = [f"{tally.hosts_done} hosts, {tally.hosts_failed} failed"]
    began = "interrupted after" if interrupted else "done in"
    moved = f"; {size_text(tally.fetched_bytes)} fetched" if tally.fetched_bytes else ""
    if tally.relayed_bytes:
        moved += f", {size_text(tally.relayed_bytes)} of it from hosts of the same site"
    if tally.freed_bytes:
        moved += f"; {size_text(tally.freed_bytes)} freed"
    if tally.freeable_bytes:
        moved += f"; {size_text(tally.freeable_bytes)} would be freed"
    return (
        f"{began} {duration_text(tally.elapsed_s)}: {', '.join(counts)}{moved}; "
        f"run {printable(tally.run_id)}"
    )


def status_line(tally: Tally) -> str:
    """Return where the run stands: hosts, bytes, rate, time left."""
    rate = tally.rate()
    hosts = f"{tally.hosts_done}/{tally.hosts} hosts done"
    parts = [f"{hosts}, {len(tally.active)} active, {tally.hosts_failed} failed"]
    if tally.done_bytes or rate:
        parts.append(
            f"{size_text(tally.done_bytes)} of {size_text(tally.expected_bytes)}, {size_text(rate)}/s"
        )
    if tally.waiting:
        parts.append(printable(tally.waiting))
    # While no host is at work, the time left is that of the clock on the wall.
    left = None if tally.waiting and not tally.active else tally.eta_s()
    if left is not None:
        # Tenths of seconds would promise too much.
        parts.append(f"about {duration_text(left) if left > 10 else f'{ceil(left)}s'} left")
    return "; ".join(parts)
