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

    # It looks at no image: of a directory service there is nothing to check on a host.
    by_glance = call.inventory().image_service.kind == "glance"
    report = call.run(run_check, CheckRequest(**call.common), with_service=by_glance)
    return call.show(check_listing(report), report.exit_code())
