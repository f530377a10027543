"""``imgcache list``: what is in the caches of the hosts."""

import sys

from imgcache.commands._options import Gone, Matrix, Missing, OlderThan, SomeImageNames, Unused
from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode, UsageError
from imgcache.ui.entries import (
    ENTRY_COLUMNS,
    MISSING_COLUMNS,
    entry_listing,
    failure_listing,
)
from imgcache.ui.formats import Format, render
from imgcache.ui.stream import screen_width


@command(lambda given: MISSING_COLUMNS if given["missing"] else ENTRY_COLUMNS)
def list_entries(
    call: Call,
    images: SomeImageNames = None,
    matrix: Matrix = False,
    unused: Unused = False,
    older_than: OlderThan = None,
    gone: Gone = False,
    missing: Missing = None,
) -> ExitCode:
    """Show what is in the caches of hosts: images, resized copies, templates, transfers, and foreign files.

    Per entry: which image it is, as far as the host noted it or the image service knows it; its size on the
    disk, format, and age since its last known use; how many instances and processes use it; until when it
    is pinned; whether imgcache put or adopted it (managed), and whether its image is gone from the image
    service. Filters add up. Changes nothing.

    With --missing it lists the hosts that lack an image instead, and ends with 5 when there are any: a gate
    for rollouts. A host that cannot be looked at makes the exit code 1.

    \b
    Examples:
      imgcache list --aggregate edge-1
      imgcache list --all --matrix
      imgcache list --all --unused --older-than 30d
      imgcache list --aggregate edge-1 --missing debian-12 --missing rescue
    """
    if matrix and (call.output.form is not Format.TABLE or call.output.wanted):
        message = "--matrix is drawn for people; it takes neither --format nor --column"
        raise UsageError(message, hint="leave --matrix out: -f json tells the same")
    from imgcache.operations.listing import ListRequest, run_list

    request = ListRequest(
        **call.common,
        names=tuple(images or ()),
        unused=unused,
        older_than_s=older_than,
        gone=gone,
        missing=tuple(missing or ()),
    )
    report = call.run(run_list, request, with_service=True)
    code = report.exit_code()
    if not matrix:
        return call.show(entry_listing(report, missing_only=bool(missing)), code)
    from imgcache.ui.matrix import matrix_text

    parts = (
        matrix_text(report, screen_width(sys.stdout)),
        render(failure_listing(report.failures, report.drivers), Format.TABLE),
    )
    return call.output.show_text("\n".join(part for part in parts if part), code)
