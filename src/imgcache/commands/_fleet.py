"""What the commands about the life of the cache have in common: hosts, image service, report."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, TypeVar

import typer

from imgcache.commands._output import Output, invocation_of

if TYPE_CHECKING:
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Inventory
    from imgcache.operations.selection import Selection


class _Request(Protocol):
    """What every command about hosts is asked with; see ``operations.fleet.FleetRequest``."""

    @property
    def selection(self) -> "Selection":
        """Which hosts."""


Request = TypeVar("Request", bound=_Request)
Report = TypeVar("Report")


def selection_of(
    aggregates: Sequence[str] | None,
    hosts: Sequence[str] | None,
    exclude: Sequence[str] | None,
    all_hosts: bool,
) -> "Selection":
    """Return what the command line says about hosts."""
    from imgcache.operations.selection import Selection  # noqa: PLC0415 - `--help` loads none of it

    return Selection(tuple(aggregates or ()), tuple(hosts or ()), tuple(exclude or ()), all_hosts)


def all_ids(names: Sequence[str]) -> bool:
    """Return whether all are image ids, so that no image service is needed to tell the images."""
    from imgcache.images.records import is_image_id  # noqa: PLC0415

    return all(is_image_id(name) for name in names)


def run_on_hosts(
    ctx: typer.Context,
    output: Output,
    run: "Callable[[Request, Inventory, ImageService | None, EventSink], Report]",
    request: Request,
    *,
    with_service: bool,
    wants_service: bool = False,
) -> Report:
    """Load the inventory, open the image service if asked to or a selected host is a node of it, and run.

    ``wants_service``: the run can do without it, and does where it is not configured.

    Raises:
        ImgcacheError: see ``run``.
    """
    from imgcache.config.load import load_inventory  # noqa: PLC0415
    from imgcache.errors import ConfigError  # noqa: PLC0415

    called = invocation_of(ctx)
    inventory = load_inventory(called.inventory)
    with ExitStack() as stack:
        service, missing = None, None
        needed = with_service or _hosts_need_service(inventory, request.selection)
        if needed or wants_service:
            from imgcache.images.open import open_image_service  # noqa: PLC0415
            from imgcache.images.options import CloudOptions  # noqa: PLC0415

            options = CloudOptions(called.cloud, called.cloud_values)
            try:
                service = stack.enter_context(open_image_service(inventory.image_service, options))
            except ConfigError as error:
                if needed:
                    raise
                missing = error
        sink = stack.enter_context(output.sink())
        if missing:
            from imgcache.events import Notice  # noqa: PLC0415

            sink.emit(Notice(f"without the image service: {missing.message}", hint=missing.hint))
        return run(request, inventory, service, sink)


def _hosts_need_service(inventory: "Inventory", selection: "Selection") -> bool:
    from imgcache.operations.fleet import driver_of  # noqa: PLC0415
    from imgcache.operations.selection import select_hosts  # noqa: PLC0415

    return any(driver_of(host).needs_service for host in select_hosts(inventory, selection))
