"""How the words of a command line become values: durations, ages, sizes, shares, dates.

Each ``parse_…`` raises ``typer.BadParameter``, which names the option by itself, for what it cannot read.
What can be read but would be unsafe (an age of 0) is for ``policy`` to refuse, with exit code 3.
"""

import re
from datetime import UTC, datetime, timedelta

import typer

from imgcache.policy import Amount

_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)(?![a-z])"
_LONG_UNIT = rf"(?:{_UNIT}|(?:weeks?|w)(?![a-z]))"
#: A number of seconds, or numbers with their units; the library that reads them takes one at a time.
_DURATION = re.compile(rf"{_NUMBER}|(?:{_NUMBER}\s*{_UNIT}\s*)+", re.ASCII)
_AGE = re.compile(rf"0|(?:{_NUMBER}\s*{_LONG_UNIT}\s*)+", re.ASCII)
_PART = re.compile(rf"{_NUMBER}\s*[a-z]*", re.ASCII)
_SIZE = re.compile(rf"{_NUMBER}\s*(?:[kmgtp]?b?|[kmgtp]ib)", re.ASCII)
_PERCENT = re.compile(rf"({_NUMBER})\s*%", re.ASCII)
#: Longer than any run makes sense.
_MAX_DURATION_S = 30 * 86_400.0
#: More than any disk holds; beyond it, a slip of the pen.
_MAX_SIZE_BYTES = 10**18


def parse_duration(value: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``30m``, ``1.5h``, ``1h30m`` or ``2d``; at least 1."""
    text = value.strip().lower()
    if not _DURATION.fullmatch(text):
        message = f"{value!r} is not a duration; write 90s, 30m, 1h30m or 2d"
        raise typer.BadParameter(message)
    total = _seconds(text)
    if not 1 <= total <= _MAX_DURATION_S:
        message = f"{value!r} is out of bounds; give 1 second to 30 days"
        raise typer.BadParameter(message)
    return total


def parse_age(value: str) -> float:
    """Return the seconds of ``24h``, ``90m``, ``7d`` or ``2w``; a number alone is no age, save 0."""
    text = value.strip().lower()
    if not _AGE.fullmatch(text):
        message = f"{value!r} is not an age; write 90m, 24h, 7d or 2w"
        raise typer.BadParameter(message)
    return _seconds(text)


def _seconds(text: str) -> float:
    from humanfriendly import parse_timespan

    return float(sum(parse_timespan(part) for part in _PART.findall(text)))


def parse_span(value: str) -> float:
    """Return the seconds of an age above 0, at most 100 years: how long a pin lasts."""
    span = parse_age(value)
    if not 0 < span <= 100 * 366 * 86_400.0:
        message = f"{value!r} is out of bounds; give up to 100 years, or --forever"
        raise typer.BadParameter(message)
    return span


def parse_size(value: str) -> int:
    """Return the bytes of ``200G`` or ``200GB`` (decimal), ``200GiB`` (binary), or a plain number."""
    from humanfriendly import parse_size as size_of

    text = value.strip().lower()
    size = int(size_of(text)) if _SIZE.fullmatch(text) else -1
    if not 0 <= size <= _MAX_SIZE_BYTES:
        message = f"{value!r} is not a size; write 500M, 200G, 1.5T (decimal) or 200GiB (binary)"
        raise typer.BadParameter(message)
    return size


def parse_rate(value: str) -> int:
    """Return the bytes per second of ``50M`` or ``50MB/s``."""
    rate = parse_size(value.strip().removesuffix("/s"))
    if rate < 1:
        message = f"{value!r}: at this rate nothing moves; write 50M"
        raise typer.BadParameter(message)
    return rate


def parse_link_rate(value: str) -> int:
    """Return the bytes per second of ``50M``, ``50MB/s``, ``48MiB/s`` (bytes) or ``100Mbit/s`` (bits)."""
    from imgcache.config.rates import bytes_per_s

    try:
        return bytes_per_s(value)
    except ValueError as exc:
        message = f"{value!r} {exc}"
        raise typer.BadParameter(message) from exc


def parse_share(value: str) -> float:
    """Return ``80%`` as 0.8; above 0 and at most 1."""
    share = _share(value)
    if share is None or not 0 < share <= 1:
        message = f"{value!r} is not a share; write 80%"
        raise typer.BadParameter(message)
    return share


def parse_room(value: str) -> Amount:
    """Return a size, or a share such as ``15%``."""
    share = _share(value)
    return Amount(share=share) if share is not None else Amount(count=parse_size(value))


def parse_ceiling(value: str) -> Amount:
    """Return a number of entries, or a share such as ``25%``."""
    return _amount(value, "entries")


def _amount(value: str, what: str) -> Amount:
    share = _share(value)
    if share is not None:
        return Amount(share=share)
    text = value.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        message = f"{value!r} is neither a number of {what} nor a share; write 20 or 25%"
        raise typer.BadParameter(message)
    return Amount(count=int(text))


def _share(value: str) -> float | None:
    found = _PERCENT.fullmatch(value.strip())
    return float(found[1]) / 100 if found else None


def parse_moment(value: str) -> datetime:
    """Return a moment in the future from ``2027-01-31``, ``2027-01-31T18:00`` (UTC), or with an offset."""
    try:
        moment = datetime.fromisoformat(value.strip())
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        message = f"{value!r} is not a date; write 2027-01-31 or 2027-01-31T18:00+01:00 (without offset: UTC)"
        raise typer.BadParameter(message) from exc
    if moment <= datetime.now(UTC):
        message = f"{value!r} is in the past"
        raise typer.BadParameter(message)
    return moment


def parse_window_text(value: str) -> str:
    """Return a window such as ``22:00-05:00`` or ``22:00-05:00 Europe/Oslo``, checked, as it is written."""
    from imgcache.config.windows import parse_window

    try:
        parse_window(value)
    except ValueError as exc:
        message = f"{value!r} {exc}"
        raise typer.BadParameter(message) from exc
    return value


def parse_deadline(value: str) -> datetime:
    """Return the moment of ``6h`` from now, of the next ``05:00`` here, or of ``2027-01-31T05:00+01:00``."""
    from imgcache.config.windows import next_time

    now = datetime.now(UTC)
    moment = next_time(value, now)
    if moment is not None:
        return moment
    if _AGE.fullmatch(value.strip().lower()):
        return now + timedelta(seconds=parse_duration(value))
    try:
        moment = datetime.fromisoformat(value.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        message = f"{value!r} is no deadline; write 6h, 05:00, or 2027-01-31T05:00+01:00"
        raise typer.BadParameter(message) from exc
    if moment <= now:
        message = f"{value!r} is in the past"
        raise typer.BadParameter(message)
    return moment


def parse_hosts(value: str) -> Amount:
    """Return a number of hosts, or a share such as ``10%``; above 0."""
    amount = _amount(value, "hosts")
    if amount.count == 0 or (amount.share is not None and not 0 < amount.share <= 1):
        message = f"{value!r}: write a number of hosts above 0, or a share such as 10%"
        raise typer.BadParameter(message)
    return amount


def parse_failures(value: str) -> Amount:
    """Return a number of hosts, or a share such as ``5%``; 0 is fine: the first failure is one too many."""
    amount = _amount(value, "hosts")
    if amount.share is not None and amount.share > 1:
        message = f"{value!r} is more than all hosts"
        raise typer.BadParameter(message)
    return amount
