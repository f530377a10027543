"""The options that commands share: one name, one meaning and one help text each."""

import re
from pathlib import Path
from typing import Annotated

import typer

from imgcache.ui.formats import Format

_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)(?![a-z])"
#: A number of seconds, or numbers with their units; the library that reads them takes one at a time.
_DURATION = re.compile(rf"{_NUMBER}|(?:{_NUMBER}\s*{_UNIT}\s*)+", re.ASCII)
_DURATION_PART = re.compile(rf"{_NUMBER}\s*[a-z]*", re.ASCII)
#: Longer than any run makes sense.
_MAX_DURATION_S = 30 * 86_400.0


def parse_duration(value: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``30m``, ``1.5h``, ``1h30m`` or ``2d``; at least 1.

    Raises:
        typer.BadParameter: it is none of these, or too short or too long; names the option by itself.
    """
    from humanfriendly import parse_timespan  # noqa: PLC0415 - only for who gives a duration

    text = value.strip().lower()
    if not _DURATION.fullmatch(text):
        message = f"{value!r} is not a duration; write 90s, 30m, 1h30m or 2d"
        raise typer.BadParameter(message)
    total = float(sum(parse_timespan(part) for part in _DURATION_PART.findall(text)))
    if not 1 <= total <= _MAX_DURATION_S:
        message = f"{value!r} is out of bounds; give 1 second to 30 days"
        raise typer.BadParameter(message)
    return total


ImageNames = Annotated[
    list[str],
    typer.Argument(metavar="IMG", help="Images, by UUID or by name.", show_default=False),
]
Aggregates = Annotated[
    list[str] | None,
    typer.Option(
        "--aggregate", "-a", metavar="NAME", help="All hosts of this aggregate; may be repeated."
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NODESET", help="These hosts, such as edge1-[01-17]; may be repeated."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="NODESET",
        help="Not these hosts, whatever selects them; may be repeated.",
    ),
]
AllHosts = Annotated[bool, typer.Option("--all", help="All hosts of the inventory.")]
Concurrency = Annotated[
    int,
    typer.Option("--concurrency", min=1, max=1000, metavar="N", help="Hosts at work at a time."),
]
Retries = Annotated[
    int,
    typer.Option(
        "--retries", min=0, max=100, metavar="N", help="Repetitions of what fails for the moment."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        parser=parse_duration,
        metavar="DURATION",
        help="Longest time for one host, such as 90s, 30m or 1h30m.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be done; change nothing.")
]
OutputFormat = Annotated[
    Format, typer.Option("--format", "-f", help="How the result is written to standard output.")
]
ShownColumns = Annotated[
    list[str] | None,
    typer.Option("--column", "-c", metavar="NAME", help="Show this column only; may be repeated."),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, help="Tell more; -vv tells every step."
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no messages, only the result.")
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        metavar="FILE",
        dir_okay=False,
        help="Append every event of the run to this file.",
    ),
]
