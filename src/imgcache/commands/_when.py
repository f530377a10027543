"""The options of precache about sources, times and order."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from imgcache.commands._values import (
    parse_deadline,
    parse_failures,
    parse_hosts,
    parse_link_rate,
    parse_share,
    parse_window_text,
)
from imgcache.policy import Amount


class FleetSource(StrEnum):
    """Where many hosts get the bytes."""

    AUTO = "auto"
    SERVICE = "service"
    PUSH = "push"
    RELAY = "relay"
    PUSH_RELAY = "push-relay"


FleetSourceOption = Annotated[
    FleetSource,
    typer.Option(
        "--source",
        help="All hosts download from the image service, or imgcache pushes the bytes over SSH; or (relay, "
        "push-relay) only the --seeds of each site do, and the other hosts read from those of their site. "
        "auto: relay where two or more hosts of a site lack an image.",
        rich_help_panel="Source",
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        min=1,
        max=1000,
        metavar="N",
        help="With relay: hosts per site that get the bytes from outside.",
        rich_help_panel="Source",
    ),
]
FetchRateLimit = Annotated[
    int | None,
    typer.Option(
        "--rate-limit",
        parser=parse_link_rate,
        metavar="RATE",
        help="No host takes more per second, from wherever it reads: such as 50M (bytes) or 100Mbit/s. The "
        "bandwidth of its site holds besides.",
        rich_help_panel="Source",
    ),
]
ImageNamesOrEarlier = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMG",
        help="Images, by UUID or by name; with --limit-failed, without any: those of that run.",
        show_default=False,
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        parser=parse_window_text,
        metavar="TIMES",
        help="Move images only then, such as 22:00-05:00 (by the site's clock) or '22:00-05:00 Europe/Oslo'; "
        "instead of the sites' own windows. A closed window is waited for.",
        rich_help_panel="Schedule",
    ),
]
Deadline = Annotated[
    datetime | None,
    typer.Option(
        "--deadline",
        parser=parse_deadline,
        metavar="TIME",
        show_default=False,
        help="Move no image after it: 6h (from now), 05:00 (the next one here) or 2027-01-31T05:00; exit "
        "code 5 when something is left.",
        rich_help_panel="Schedule",
    ),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Begin also when not everything can be done before the window closes or the deadline.",
        rich_help_panel="Schedule",
    ),
]
Canary = Annotated[
    int,
    typer.Option(
        "--canary",
        min=0,
        metavar="N",
        help="Do so many hosts first; when one of them fails, begin no other.",
        rich_help_panel="Rollout",
    ),
]
WaveOption = Annotated[
    Amount | None,
    typer.Option(
        "--wave",
        parser=parse_hosts,
        metavar="N|PERCENT",
        show_default=False,
        help="Then so many hosts at a time, each wave when the one before has ended.",
        rich_help_panel="Rollout",
    ),
]
MaxFailures = Annotated[
    Amount | None,
    typer.Option(
        "--max-failures",
        parser=parse_failures,
        metavar="N|PERCENT",
        show_default=False,
        help="Begin no other host when more than this have failed.",
        rich_help_panel="Rollout",
    ),
]
MinCoverage = Annotated[
    float | None,
    typer.Option(
        "--min-coverage",
        parser=parse_share,
        metavar="PERCENT",
        show_default=False,
        help="End with 5 when in the end fewer of the images asked for are there.",
        rich_help_panel="Rollout",
    ),
]
LimitFailed = Annotated[
    Path | None,
    typer.Option(
        "--limit-failed",
        metavar="FILE",
        dir_okay=False,
        help="Only what failed, or was not begun, in an earlier run, by its -f json result.",
        rich_help_panel="Rollout",
    ),
]
