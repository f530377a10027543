"""``imgcache drivers``: which back ends there are, and what can be done with each."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode
from imgcache.ui.failures import say
from imgcache.ui.formats import Cell, Columns, Format, Listing

if TYPE_CHECKING:
    from imgcache.operations.drivers import Capability, DriverList

CAPABILITY_COLUMNS = Columns(
    known=("driver", "package", "version", "helper_sha256", "command", "supported", "reason"),
    shown=("driver", "command", "supported", "reason"),
    detailed=("driver", "package", "version", "command", "supported", "reason"),
)
_REASON_COLUMNS = Columns(
    known=("driver", "cannot", "reason"),
    shown=("driver", "cannot", "reason"),
    detailed=("driver", "cannot", "reason"),
)
_PACKAGE_COLUMNS = Columns(
    known=("driver", "package", "version", "helper_sha256"),
    shown=("driver", "package", "version", "helper_sha256"),
    detailed=("driver", "package", "version", "helper_sha256"),
    titles={"helper_sha256": "HELPER SHA256"},
)


@command(CAPABILITY_COLUMNS, hosts=False)
def drivers(call: Call) -> ExitCode:
    """Show which drivers there are, and which commands each can serve.

    The inventory names a host's driver with driver:. A host whose driver cannot serve a command ends as
    unsupported, with the reason, which is a warning. Drivers that other packages register come last, with the
    package and the digest of the code that they send to hosts; one that cannot be used is told on standard
    error. Contacts nothing and needs no inventory.

    \b
    Examples:
      imgcache drivers
      imgcache drivers -f json
      imgcache drivers -f value -c driver -c command -c supported
    """
    from imgcache.operations.drivers import list_drivers

    found = list_drivers()
    if call.output.verbosity >= 0:
        say([f"imgcache: warning: {line}" for line in _problem_lines(found)], sys.stderr)
    as_matrix = call.output.form is Format.TABLE and not call.output.wanted
    return call.show(driver_matrix(found) if as_matrix else driver_listing(found), ExitCode.OK)


def _problem_lines(found: "DriverList") -> list[str]:
    return [
        f"the driver {one.driver} of the package {one.package} cannot be used: {one.problem}"
        for one in found.problems
    ]


def driver_listing(found: "DriverList") -> Listing:
    """Return one row per driver and command; see ``docs/schemas/drivers.json``."""
    rows = [_row(one) for one in found.capabilities]
    document: dict[str, object] = {
        "command": "drivers",
        "capabilities": rows,
        "problems": [asdict(one) for one in found.problems],
    }
    return Listing(document, "capabilities", rows, CAPABILITY_COLUMNS)


def _row(one: "Capability") -> dict[str, Cell]:
    return {name: getattr(one, name) for name in CAPABILITY_COLUMNS.known}


def driver_matrix(found: "DriverList") -> Listing:
    """Return one row per command and a column per driver, for people; below, why not, and whose they are."""
    names = tuple(dict.fromkeys(one.driver for one in found.capabilities))
    by_command: dict[str, dict[str, Cell]] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    packages: dict[str, dict[str, Cell]] = {}
    for one in found.capabilities:
        by_command.setdefault(one.command, {"command": one.command})[one.driver] = one.supported
        if one.reason:
            reasons.setdefault((one.driver, one.reason), []).append(one.command)
        if one.package:
            packages[one.driver] = {name: _row(one)[name] for name in _PACKAGE_COLUMNS.known}
    columns = ("command", *names)
    titles = {name: name for name in names}
    matrix = Columns(known=columns, shown=columns, detailed=columns, titles=titles)
    why: list[dict[str, Cell]] = [
        {"driver": driver, "cannot": ", ".join(commands), "reason": reason}
        for (driver, reason), commands in reasons.items()
    ]
    below = (
        Listing({}, "reasons", why, _REASON_COLUMNS),
        Listing({}, "packages", list(packages.values()), _PACKAGE_COLUMNS),
    )
    return Listing({}, "commands", list(by_command.values()), matrix, below)
