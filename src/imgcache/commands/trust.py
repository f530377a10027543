"""``imgcache trust``: make hosts known to SSH."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode, UnsafePlanError, UsageError
from imgcache.ui.failures import say
from imgcache.ui.formats import Cell, Columns, Format, Listing, render
from imgcache.ui.report import time_text

if TYPE_CHECKING:
    from imgcache.operations.trust import HostTrust, TrustPlan

TRUST_COLUMNS = Columns(
    known=(
        "host",
        "aggregate",
        "cell",
        "state",
        "algorithm",
        "fingerprint",
        "known_fingerprint",
        "known_hosts",
        "added",
        "code",
        "reason",
    ),
    shown=("host", "state", "algorithm", "fingerprint", "added", "reason"),
    detailed=(
        "host",
        "state",
        "algorithm",
        "fingerprint",
        "known_fingerprint",
        "known_hosts",
        "added",
        "reason",
    ),
    folded="host",
)

Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Add the keys without asking; for who checks them otherwise."),
]


@command(TRUST_COLUMNS, timeout=None, retries=False, dry_run=True)
def trust(call: Call, yes: Yes = False) -> ExitCode:
    """Show the hosts' key fingerprints and, after a yes, add the keys to known_hosts."""
    from imgcache.operations.trust import TrustRequest, execute_trust, plan_trust

    request = TrustRequest(call.common["selection"], call.common["concurrency"])
    plan = plan_trust(request, call.inventory())
    if not call.common["dry_run"] and _confirmed(plan, call, yes=yes):
        plan = execute_trust(plan)
    return call.show(_listing(plan), plan.exit_code())


def _confirmed(plan: "TrustPlan", call: Call, *, yes: bool) -> bool:
    """Return whether keys are to be added; shows them and asks, once.

    Raises:
        UnsafePlanError: a key has changed, or the answer is no.
        UsageError: there is nobody to ask.
    """
    from imgcache.operations.trust import TrustState, check_safe

    try:
        check_safe(plan)
    except UnsafePlanError:
        call.show(_listing(plan), ExitCode.REFUSED)
        raise
    new = plan.in_state(TrustState.NEW)
    if not new or yes:
        return bool(new)
    count = "1 host is" if len(new) == 1 else f"{len(new)} hosts are"
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr):
        call.show(_listing(plan), ExitCode.USAGE)
        message = f"no key was added: {count} new, and there is no terminal to ask"
        raise UsageError(message, hint="compare the fingerprints, then run it again with --yes")
    files = ", ".join(dict.fromkeys(str(item.known_hosts) for item in new))
    shown = render(_listing(plan), Format.TABLE)
    say([*shown.splitlines(), "", f"{count} new; the keys go into {files}."], sys.stderr)
    if not _says_yes("Are these the fingerprints of your hosts, and shall they be added?"):
        message = "no key was added: the answer was no"
        raise UnsafePlanError(message)
    return True


def _says_yes(question: str) -> bool:
    """Ask on standard error; the library's own prompt puts a blank on standard output."""
    sys.stderr.write(f"{question} [y/N]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _listing(plan: "TrustPlan") -> Listing:
    rows = [row for item in plan.hosts for row in _rows(item)]
    document: dict[str, object] = {
        "command": "trust",
        "started_at": time_text(plan.started_at),
        "finished_at": time_text(datetime.now(UTC)),
        "keys": rows,
        "totals": plan.totals(),
    }
    return Listing(document, "keys", rows, TRUST_COLUMNS)


def _rows(item: "HostTrust") -> Iterator[dict[str, Cell]]:
    """Return one row per key that the host showed, or one when it showed none."""
    for key in item.keys or [None]:
        yield {
            "host": item.host.name,
            "aggregate": item.host.aggregate,
            "cell": item.host.cell,
            "state": item.state.value,
            "algorithm": key.algorithm if key else None,
            "fingerprint": key.fingerprint if key else None,
            "known_fingerprint": ", ".join(item.known_fingerprints) or None,
            "known_hosts": str(item.known_hosts) if item.known_hosts else None,
            "added": item.added,
            "code": item.code.value if item.code else None,
            "reason": item.reason,
        }
