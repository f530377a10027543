"""The options that commands share: one name, one meaning and one help text each."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from imgcache.commands._values import (
    parse_age,
    parse_ceiling,
    parse_duration,
    parse_moment,
    parse_rate,
    parse_room,
    parse_share,
    parse_size,
    parse_span,
)
from imgcache.policy import Amount
from imgcache.ui.formats import Format


class Source(StrEnum):
    """Where single hosts get the bytes."""

    AUTO = "auto"
    SERVICE = "service"
    PUSH = "push"


SourceOption = Annotated[
    Source,
    typer.Option(
        "--source",
        help="Hosts download from the image service themselves, or imgcache pushes the bytes over SSH.",
    ),
]
ImageNames = Annotated[
    list[str],
    typer.Argument(metavar="IMG", help="Images, by UUID or by name.", show_default=False),
]
Aggregates = Annotated[
    list[str] | None,
    typer.Option(
        "--aggregate",
        "-a",
        metavar="NAME",
        help="All hosts of this aggregate; may be repeated.",
        rich_help_panel="Hosts",
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="NODESET",
        help="These hosts, such as edge1-[01-17]; may be repeated.",
        rich_help_panel="Hosts",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="NODESET",
        help="Not these hosts, whatever selects them; may be repeated.",
        rich_help_panel="Hosts",
    ),
]
AllHosts = Annotated[
    bool, typer.Option("--all", help="All hosts of the inventory.", rich_help_panel="Hosts")
]
Concurrency = Annotated[
    int,
    typer.Option(
        "--concurrency",
        min=1,
        max=1000,
        metavar="N",
        help="Hosts at work at a time; those that wait, or read from hosts of their site, are not counted.",
        rich_help_panel="Limits",
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        "--retries",
        min=0,
        max=100,
        metavar="N",
        help="Repetitions of what fails for the moment.",
        rich_help_panel="Limits",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        parser=parse_duration,
        metavar="DURATION",
        help="Longest time for one host, such as 90s, 30m or 1h30m.",
        rich_help_panel="Limits",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be done; change nothing.")
]
OutputFormat = Annotated[
    Format,
    typer.Option(
        "--format",
        "-f",
        help="How the result is written to standard output.",
        rich_help_panel="Output",
    ),
]
ShownColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        "-c",
        metavar="NAME",
        help="Show this column only; may be repeated. A wrong name lists them all.",
        rich_help_panel="Output",
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Tell more; -vv tells every step.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="No progress and no messages, only the result.",
        rich_help_panel="Output",
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        metavar="FILE",
        dir_okay=False,
        help="Append every event of the run to this file.",
        rich_help_panel="Output",
    ),
]

# ------------------------------------------------------------------------------- the life of the cache

SomeImageNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMG",
        help="Only these images, by UUID or by name; without any: all.",
        show_default=False,
    ),
]
Unused = Annotated[bool, typer.Option("--unused", help="Only entries that nothing uses.")]
OlderThan = Annotated[
    float | None,
    typer.Option(
        "--older-than",
        parser=parse_age,
        metavar="AGE",
        help="Only entries whose last known use is longer ago, such as 24h, 7d or 2w.",
    ),
]
Gone = Annotated[
    bool,
    typer.Option("--gone", help="Only entries whose image is gone from the image service."),
]
Missing = Annotated[
    list[str] | None,
    typer.Option(
        "--missing",
        metavar="IMG",
        help="List the hosts that lack this image instead; exit code 5 if there is any. May be repeated.",
    ),
]
Matrix = Annotated[
    bool,
    typer.Option("--matrix", help="Draw which host has what, hosts down and images across."),
]
CheckStatus = Annotated[
    bool,
    typer.Option("--check", help="End with 5 when a host is above --max-used; for monitoring."),
]
MaxUsed = Annotated[
    float | None,
    typer.Option(
        "--max-used",
        parser=parse_share,
        metavar="PERCENT",
        show_default=False,
        help="With --check: how full the cache's file system may be; without it, 80%.",
    ),
]
MinAge = Annotated[
    float | None,
    typer.Option(
        "--min-age",
        parser=parse_age,
        metavar="AGE",
        show_default=False,
        help="Remove images unused for so long, such as 24h or 7d; never below 1h. Without it, what the "
        "host's nova.conf says (Nova's default: 24h).",
    ),
]
ResizedMinAge = Annotated[
    float | None,
    typer.Option(
        "--resized-min-age",
        parser=parse_age,
        metavar="AGE",
        show_default=False,
        help="The same for Nova's resized copies. Without it, what the host's nova.conf says (Nova's "
        "default: 1h).",
    ),
]
MaxSize = Annotated[
    int | None,
    typer.Option(
        "--max-size",
        parser=parse_size,
        metavar="SIZE",
        help="Then go on, least recently used first, until each cache is at or under this, such as 200G "
        "(decimal) or 200GiB.",
    ),
]
MinFree = Annotated[
    Amount | None,
    typer.Option(
        "--min-free",
        parser=parse_room,
        metavar="SIZE|PERCENT",
        help="The same until the cache's file system has so much free: 50G or 15%.",
    ),
]
RemoveGone = Annotated[
    bool,
    typer.Option(
        "--gone",
        help="Remove also, one hour after its last use, what is gone from the image service.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="IMG", help="Never this image; may be repeated."),
]
MaxDelete = Annotated[
    Amount | None,
    typer.Option(
        "--max-delete",
        parser=parse_ceiling,
        metavar="N|PERCENT",
        help="Refuse the whole run (exit code 3) when on any host more images would be removed than "
        "this: 20 or 25%.",
    ),
]
IncludeTemplates = Annotated[
    bool,
    typer.Option(
        "--include-templates", help="Treat templates of swap and ephemeral disks as images, too."
    ),
]
OverrideHost = Annotated[
    bool,
    typer.Option(
        "--override-host-policy",
        help="Remove also where the host's nova.conf says remove_unused_base_images = false.",
    ),
]
StallAge = Annotated[
    float,
    typer.Option(
        "--stall-age",
        parser=parse_age,
        metavar="AGE",
        help="A transfer's file is dead when it has not changed for so long.",
    ),
]
Invalid = Annotated[
    bool,
    typer.Option(
        "--invalid",
        help="Also remove images whose size, format or digest is wrong; reads whole files.",
    ),
]
Repair = Annotated[
    bool,
    typer.Option("--repair", help="Fetch damaged images that nothing uses again."),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt",
        help="Note images as its own that imgcache did not fetch, or did not come to hash, if their content "
        "is proven to be the image service's.",
    ),
]
RateLimit = Annotated[
    int | None,
    typer.Option(
        "--rate-limit",
        parser=parse_rate,
        metavar="SIZE",
        help="Read no more per second and host, such as 50M; without it, as fast as the disk gives at "
        "low priority.",
    ),
]
PinFor = Annotated[
    float | None,
    typer.Option(
        "--for", parser=parse_span, metavar="AGE", help="Until so long from now: 12h, 30d, 8w."
    ),
]
PinUntil = Annotated[
    datetime | None,
    typer.Option(
        "--until",
        parser=parse_moment,
        metavar="DATE",
        help="Until then: 2027-01-31, 2027-01-31T18:00 (UTC) or 2027-01-31T18:00+01:00.",
    ),
]
PinForever = Annotated[bool, typer.Option("--forever", help="Until imgcache unpin.")]
KeepFor = Annotated[
    float | None,
    typer.Option(
        "--keep-for",
        parser=parse_span,
        metavar="AGE",
        help="Pin the images there for so long, such as 72h; see imgcache pin.",
    ),
]
NoWait = Annotated[
    bool,
    typer.Option(
        "--no-wait",
        help="Do not wait: not for a window to open, nor for hosts that fetch by themselves (Glance nodes).",
        rich_help_panel="Schedule",
    ),
]
Queued = Annotated[
    bool,
    typer.Option(
        "--queued", help="Only take back what waits to be fetched; what is cached there stays."
    ),
]
