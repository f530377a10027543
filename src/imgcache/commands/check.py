"""``imgcache check``: would precache work on these hosts?"""

from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode
from imgcache.ui.checks import CHECK_COLUMNS, check_listing


@command(CHECK_COLUMNS, timeout="2m", retries=False)
def check(call: Call) -> ExitCode:
    """Tell per host whether precache would work there: login, sudo, Python, cache, room, Glance.

    Changes nothing. Exit code 5 when something fails on some host.
    """
    from imgcache.operations.check import CheckRequest, run_check

    report = call.run_with_service(run_check, CheckRequest(**call.common))
    return call.show(check_listing(report), report.exit_code())
