"""``imgcache precache``: the main job."""

from imgcache.commands._options import KeepFor, NoWait
from imgcache.commands._run import Call, command
from imgcache.commands._when import (
    Canary,
    Deadline,
    FetchRateLimit,
    FleetSource,
    FleetSourceOption,
    ImageNamesOrEarlier,
    LimitFailed,
    MaxFailures,
    MinCoverage,
    Partial,
    Seeds,
    WaveOption,
    WindowOption,
)
from imgcache.errors import ExitCode, UsageError
from imgcache.ui.report import OUTCOME_COLUMNS, report_listing


@command(OUTCOME_COLUMNS, timeout="30m", dry_run=True)
def precache(
    call: Call,
    images: ImageNamesOrEarlier = None,
    source: FleetSourceOption = FleetSource.AUTO,
    seeds: Seeds = 1,
    rate_limit: FetchRateLimit = None,
    window: WindowOption = None,
    no_wait: NoWait = False,
    deadline: Deadline = None,
    partial: Partial = False,
    canary: Canary = 0,
    wave: WaveOption = None,
    max_failures: MaxFailures = None,
    min_coverage: MinCoverage = None,
    limit_failed: LimitFailed = None,
    keep_for: KeepFor = None,
) -> ExitCode:
    """Put images into the caches of hosts before they are needed, or renew those that are there.

    An image that a host has is not fetched again: its age is renewed, so that Nova keeps it for another 24h.
    Each image that it lacks is downloaded there (or pushed over SSH), verified against the image service's
    digest, inspected, converted to raw where the host's nova.conf wants that, and published under the name
    at which Nova looks, whole or not at all. --keep-for pins the images as it goes; see imgcache pin.

    \b
    Examples:
      imgcache precache --aggregate edge-1 debian-12 rescue
      imgcache precache --all --keep-for 72h debian-12
      imgcache precache --host edge1-[01-05] --dry-run debian-12
      imgcache precache --all --window 22:00-05:00 --canary 2 --wave 10% --max-failures 5% debian-12
      imgcache precache --limit-failed run.json
    """
    if not images and limit_failed is None:
        message = "Missing argument 'IMG'"
        raise UsageError(
            message, hint="name images, by UUID or by name; see 'imgcache precache --help'"
        )
    from imgcache.operations.earlier import read_failed
    from imgcache.operations.precache import PrecacheRequest, run_precache
    from imgcache.operations.rollout import Waves

    request = PrecacheRequest(
        **call.common,
        names=tuple(images or ()),
        source=source.value,
        seeds=seeds,
        rate_limit=rate_limit,
        keep_for_s=keep_for,
        window=window,
        wait=not no_wait,
        deadline=deadline,
        partial=partial,
        waves=Waves(canary, wave, max_failures),
        min_coverage=min_coverage,
        only=read_failed(limit_failed) if limit_failed else None,
    )
    report = call.run_with_service(run_precache, request)
    return call.show(report_listing(report), report.exit_code())
