"""``imgcache verify``: are the files in the caches still what was put there?"""

from imgcache.commands._options import (
    Adopt,
    RateLimit,
    Repair,
    SomeImageNames,
    Source,
    SourceOption,
)
from imgcache.commands._run import Call, all_ids, command
from imgcache.errors import ExitCode
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, timeout="12h", dry_run=True, removes="repair")
def verify(
    call: Call,
    images: SomeImageNames = None,
    repair: Repair = False,
    adopt: Adopt = False,
    rate_limit: RateLimit = None,
    source: SourceOption = Source.AUTO,
) -> ExitCode:
    """Read the cached images again and compare them with what was noted when they were put there.

    Each file is hashed on its host, at low priority, and no faster than --rate-limit. Ends with 5 when an
    image is damaged. Without further options it changes nothing but the note of when it was last verified.

    With --repair, a damaged image that nothing uses is removed and fetched again, under all guards of
    imgcache prune: nothing that is in use by any evidence there is, nothing pinned, nothing younger than one
    hour, nothing on a host where not all evidence can be read, and only when the image service still has the
    image. One that must stay is reported as damaged. With --adopt, an image that imgcache did not put there,
    or was cut off with before it had noted its digest, is noted as its own when its content is proven to be
    the image service's; then it can be verified, pinned and repaired like any other. An image that was
    converted is fetched again for that, converted, compared and dropped.

    \b
    Examples:
      imgcache verify --aggregate edge-1 --rate-limit 100M
      imgcache verify --all --adopt debian-12
      imgcache verify --host edge1-07 --repair
    """
    from imgcache.operations.verify import VerifyRequest, run_verify

    names = tuple(images or ())
    request = VerifyRequest(
        **call.common,
        names=names,
        bytes_per_s=rate_limit,
        adopt=adopt,
        repair=repair,
        source=source.value,
    )
    with_service = adopt or repair or not all_ids(names)
    report = call.run(run_verify, request, with_service=with_service, shows_names=True)
    return call.show(outcome_listing(report), report.exit_code())
