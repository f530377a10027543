"""What commands have in common: ``@command`` gives one its shared options, and hands it a ``Call``.

A command declares its own options only. The options for hosts, limits and output are data here. What they
say arrives in the ``Call``, checked, before the command does anything.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    get_args,
)

import typer
from typer.models import ArgumentInfo

from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    Hosts,
    LogFile,
    OutputFormat,
    Quiet,
    Retries,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import Output, begin_output, invocation_of
from imgcache.errors import ConfigError, ExitCode
from imgcache.ui.formats import Columns, Format, Listing

if TYPE_CHECKING:
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Inventory
    from imgcache.operations.selection import Selection

P = ParamSpec("P")


class _Request(Protocol):
    """What every command about hosts is asked with; see ``operations.fleet.FleetRequest``."""

    @property
    def selection(self) -> "Selection":
        """Which hosts."""


Request = TypeVar("Request", bound=_Request)
Report = TypeVar("Report")


class Common(TypedDict):
    """The fields that every request has; see ``operations.fleet.FleetRequest``."""

    selection: "Selection"
    concurrency: int
    retries: int
    timeout_s: float
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a command: what its shared options say, and where its output goes."""

    ctx: typer.Context
    common: Common
    output: Output
    removes: bool = False
    """It may remove files, so that hosts are worked on with their settings for that."""

    def inventory(self) -> "Inventory":
        """Return the inventory that the global options name, with the users to become in this run.

        Raises:
            ConfigError: there is none, or it has errors.
            UsageError: the options contradict each other.
        """
        from imgcache.config.become import users_to_become
        from imgcache.config.load import load_inventory

        called = invocation_of(self.ctx)
        change = users_to_become(called.become, called.become_user, removes=self.removes)
        inventory = load_inventory(called.inventory)
        return inventory.with_settings(change) if change else inventory

    def run(
        self,
        task: "Callable[[Request, Inventory, ImageService | None, EventSink], Report]",
        request: Request,
        *,
        with_service: bool = False,
        wants_service: bool = False,
        shows_names: bool = False,
    ) -> Report:
        """Load the inventory, open the image service if it is needed, and run the task.

        Args:
            task: what is run.
            request: what it is asked.
            with_service: it needs the image service; so does any host that is a node of it.
            wants_service: it uses the image service where one is configured.
            shows_names: it asks the image service for names alone, and goes without when there is none.

        Raises:
            ImgcacheError: see ``task``.
        """
        inventory = self.inventory()
        needed = with_service or _hosts_need_service(inventory, request.selection)
        with ExitStack() as stack:
            service, missing = None, None
            if needed or wants_service or shows_names:
                try:
                    service = stack.enter_context(self._image_service(inventory))
                except ConfigError as error:
                    if needed:
                        raise
                    missing = error if wants_service else None
            sink = stack.enter_context(self.output.sink())
            _emit_notes(service, sink)
            if missing:
                from imgcache.events import Notice

                text = f"without the image service: {missing.message}"
                sink.emit(Notice(text, hint=missing.hint))
            return task(request, inventory, service, sink)

    def run_with_service(
        self,
        task: "Callable[[Request, Inventory, ImageService, EventSink], Report]",
        request: Request,
    ) -> Report:
        """As ``run``, for a task that cannot do without the image service."""
        inventory = self.inventory()
        with self._image_service(inventory) as service, self.output.sink() as sink:
            _emit_notes(service, sink)
            return task(request, inventory, service, sink)

    def show(self, listing: Listing, code: ExitCode) -> ExitCode:
        """Write a result to standard output and return ``code``."""
        return self.output.show(listing, code)

    def _image_service(self, inventory: "Inventory") -> "ImageService":
        from imgcache.images.open import open_image_service
        from imgcache.images.options import CloudOptions

        called = invocation_of(self.ctx)
        options = CloudOptions(called.cloud, called.cloud_values)
        return open_image_service(inventory.image_service, options)


def _emit_notes(service: "ImageService | None", sink: "EventSink") -> None:
    from imgcache.events import Notice

    for note in service.notes if service else ():
        sink.emit(Notice(note, level="info"))


def all_ids(names: Sequence[str]) -> bool:
    """Return whether all are image ids, so that they are known without the image service."""
    from imgcache.images.records import is_image_id

    return all(is_image_id(name) for name in names)


def _hosts_need_service(inventory: "Inventory", selection: "Selection") -> bool:
    from imgcache.operations.fleet import driver_of
    from imgcache.operations.selection import select_hosts

    return any(driver_of(host).needs_service for host in select_hosts(inventory, selection))


def command(
    columns: Columns | Callable[[Mapping[str, Any]], Columns],
    *,
    hosts: bool = True,
    timeout: str | None = "5m",
    retries: bool = True,
    dry_run: bool = False,
    removes: bool | str = False,
) -> "Callable[[Callable[Concatenate[Call, P], ExitCode]], Callable[..., ExitCode]]":
    """Give a command the options that commands share.

    Args:
        columns: what its result may show; a function of its own options where these decide.
        hosts: it visits hosts: it can select them, and bound the work on them.
        timeout: the default of ``--timeout``; None: it has none.
        retries: it has ``--retries``.
        dry_run: it has ``--dry-run``.
        removes: it removes files; or the name of its option that makes it do so.
    """
    shared = [
        *(_SELECTION if hosts else ()),
        *([_option("dry_run", DryRun, False)] if dry_run else ()),
        *([_option("concurrency", Concurrency, 10)] if hosts else ()),
        *([_option("retries", Retries, 3)] if hosts and retries else ()),
        *([_option("timeout", Timeout, timeout)] if hosts and timeout else ()),
        *_OUTPUT,
    ]

    def decorate(
        function: Callable[Concatenate[Call, P], ExitCode],
    ) -> Callable[..., ExitCode]:
        own = list(inspect.signature(function).parameters.values())[1:]
        names = {parameter.name for parameter in own}

        @wraps(function)
        def called(ctx: typer.Context, **given: Any) -> ExitCode:
            mine: dict[str, Any] = {name: given[name] for name in names}
            chosen = columns(mine) if callable(columns) else columns
            removing = bool(mine[removes]) if isinstance(removes, str) else removes
            return function(_call(ctx, given, chosen, removes=removing), **mine)  # type: ignore[call-arg]

        parameters = [_CONTEXT, *_in_order(own, shared)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return decorate


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


_CONTEXT = inspect.Parameter(
    "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
)
_SELECTION = (
    _option("aggregate", Aggregates, None),
    _option("host", Hosts, None),
    _option("exclude", Exclude, None),
    _option("all_hosts", AllHosts, False),
)
_OUTPUT = (
    _option("form", OutputFormat, Format.TABLE),
    _option("column", ShownColumns, None),
    _option("verbose", Verbose, 0),
    _option("quiet", Quiet, False),
    _option("log_file", LogFile, None),
)


def _in_order(
    own: Sequence[inspect.Parameter], shared: Sequence[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Return a command's parameters as its help lists them: arguments, hosts, its own options, the others."""
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    arguments = [one for one in own if _is_argument(one)]
    options = [one for one in own if not _is_argument(one)]
    selection = [one for one in shared if one in _SELECTION]
    return [*arguments, *selection, *options, *(one for one in shared if one not in _SELECTION)]


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(one, ArgumentInfo) for one in get_args(parameter.annotation))


def _call(ctx: typer.Context, given: Mapping[str, Any], columns: Columns, *, removes: bool) -> Call:
    """Check the shared options and open the log file.

    Raises:
        UsageError: they contradict each other, or name an unknown column.
        ConfigError: the log file cannot be opened.
    """
    output = begin_output(
        ctx,
        columns,
        form=given["form"],
        wanted=given["column"],
        verbose=given["verbose"],
        quiet=given["quiet"],
        log_file=given["log_file"],
    )
    from imgcache.operations.selection import Selection

    selection = Selection(
        tuple(given.get("aggregate") or ()),
        tuple(given.get("host") or ()),
        tuple(given.get("exclude") or ()),
        given.get("all_hosts", False),
    )
    common = Common(
        selection=selection,
        concurrency=given.get("concurrency", 1),
        retries=given.get("retries", 0),
        timeout_s=given.get("timeout", 0.0),
        dry_run=given.get("dry_run", False),
    )
    return Call(ctx, common, output, removes)
