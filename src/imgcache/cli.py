"""The command line: global options, the table of commands, and ``main``.

``main`` is the only place where an error becomes an exit code. Commands are imported when they are
called, so that ``imgcache --help`` pays for none of them.
"""

import logging
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from imgcache.commands._argv import asks_json, hoist_global_options, refuse_secrets
from imgcache.commands._output import Invocation
from imgcache.errors import ExitCode, ImgcacheError, UsageError
from imgcache.text import printable
from imgcache.ui.failures import end_document, error_document, error_lines, say
from imgcache.ui.log import RunLog, traceback_lines
from imgcache.ui.stream import settle

#: Command -> where its function is, and its line in ``imgcache --help`` (the docstring's first line).
COMMANDS = {
    "precache": (
        "imgcache.commands.precache:precache",
        "Put images into the caches of hosts before they are needed, or renew those that are there.",
    ),
    "list": (
        "imgcache.commands.list:list_entries",
        "Show what is in the caches of hosts.",
    ),
    "status": (
        "imgcache.commands.status:status",
        "Show the room that the caches of hosts take.",
    ),
    "prune": (
        "imgcache.commands.prune:prune",
        "Remove cached images that nothing uses and that are old, or in the way.",
    ),
    "clean": (
        "imgcache.commands.clean:clean",
        "Remove what broken transfers left behind.",
    ),
    "verify": (
        "imgcache.commands.verify:verify",
        "Read the cached images again and compare them with what was noted.",
    ),
    "delete": (
        "imgcache.commands.delete:delete",
        "Remove these images from the caches of hosts now.",
    ),
    "pin": (
        "imgcache.commands.pin:pin",
        "Keep these images in the caches of hosts.",
    ),
    "unpin": (
        "imgcache.commands.unpin:unpin",
        "Let these images age as any other.",
    ),
    "refresh": (
        "imgcache.commands.refresh:refresh",
        "Renew the age of all pinned images.",
    ),
    "trust": (
        "imgcache.commands.trust:trust",
        "Show the hosts' key fingerprints and, after a yes, add the keys to known_hosts.",
    ),
    "check": (
        "imgcache.commands.check:check",
        "Tell per host whether precache would work there.",
    ),
    "drivers": (
        "imgcache.commands.drivers:drivers",
        "Show which drivers there are, and which commands each can serve.",
    ),
}

_EPILOG = (
    "Secrets are never taken from the command line, where others can see them: set OS_PASSWORD, OS_TOKEN or "
    "OS_APPLICATION_CREDENTIAL_SECRET, or use clouds.yaml. Exit codes: 0 all as asked; 1 some item failed; "
    "2 usage or configuration; 3 refused for safety; 4 image service or image; 5 the answer is no; "
    "70 a bug in imgcache; 130 and 143 interrupted."
)
_HELP_NAMES = {"help_option_names": ["-h", "--help"]}


def format_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """List options by topic: those of one ``rich_help_panel`` together."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            plain = "Arguments" if param.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(param, "rich_help_panel", None) or plain, []).append(record)
    for title, records in panels.items():
        with formatter.section(title):
            formatter.write_dl(records)


class PanelCommand(TyperCommand):
    """A command whose help lists its options by topic."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options."""
        format_panels(self, ctx, formatter)


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Import a command; None when there is no such."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Find the command that was called, or say which one is nearest."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            near = get_close_matches(args[0], COMMANDS, 1)
            hint = (
                f"did you mean {near[0]}?" if near else f"the commands are: {', '.join(COMMANDS)}"
            )
            message = f"no such command: {args[0]}"
            raise UsageError(message, hint=hint)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the library itself would swallow a Ctrl-C without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            raise typer.Abort from exc

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first: few options matter to those who look for a command."""
        self.format_commands(ctx, formatter)
        format_panels(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def load_command(name: str) -> Any:
    """Import one command and return it as the command line's library wants it."""
    module, _, function = COMMANDS[name][0].partition(":")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_HELP_NAMES)
    app.command(name, cls=PanelCommand)(getattr(import_module(module), function))
    return typer.main.get_command(app)


def _show_version(asked: bool) -> None:
    if asked:
        from imgcache import __version__  # noqa: PLC0415
        from imgcache.transport.launch import helper_digest  # noqa: PLC0415 - reads the helper's source

        typer.echo(f"imgcache {__version__} (helper sha256:{helper_digest()})")
        raise typer.Exit


class Become(StrEnum):
    """How to become another user on a host."""

    NONE = "none"
    SUDO = "sudo"


def _os(text: str) -> Any:
    return typer.Option(help=text, metavar="TEXT", rich_help_panel="Cloud")


def _root(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    inventory: Annotated[
        Path | None,
        typer.Option(
            help="The inventory file; without it IMGCACHE_INVENTORY, ~/.config/imgcache/inventory.yaml, "
            "/etc/imgcache/inventory.yaml.",
            metavar="FILE",
        ),
    ] = None,
    become: Annotated[
        Become | None,
        typer.Option(
            help="How to become another user on the hosts, whatever the inventory says: none, or sudo.",
            show_choices=False,
            metavar="METHOD",
        ),
    ] = None,
    become_user: Annotated[
        str | None,
        typer.Option(
            help="The user to become with sudo, whatever the inventory says, such as root.",
            metavar="USER",
        ),
    ] = None,
    os_cloud: Annotated[str | None, _os("The entry of clouds.yaml; else OS_CLOUD.")] = None,
    os_auth_type: Annotated[
        str | None, _os("How to log in: password, v3applicationcredential, …")
    ] = None,
    os_auth_url: Annotated[str | None, _os("Keystone's URL.")] = None,
    os_username: Annotated[str | None, _os("User name.")] = None,
    os_user_id: Annotated[str | None, _os("User id.")] = None,
    os_user_domain_name: Annotated[str | None, _os("Domain of the user, by name.")] = None,
    os_user_domain_id: Annotated[str | None, _os("Domain of the user, by id.")] = None,
    os_project_name: Annotated[str | None, _os("Project, by name.")] = None,
    os_project_id: Annotated[str | None, _os("Project, by id.")] = None,
    os_project_domain_name: Annotated[str | None, _os("Domain of the project, by name.")] = None,
    os_project_domain_id: Annotated[str | None, _os("Domain of the project, by id.")] = None,
    os_system_scope: Annotated[str | None, _os("System scope: all.")] = None,
    os_application_credential_id: Annotated[
        str | None, _os("Application credential, by id.")
    ] = None,
    os_application_credential_name: Annotated[
        str | None, _os("Application credential, by name.")
    ] = None,
    os_region_name: Annotated[str | None, _os("Region.")] = None,
    os_interface: Annotated[str | None, _os("Interface: public, internal or admin.")] = None,
    os_image_endpoint_override: Annotated[
        str | None, _os("Glance's URL, instead of the catalogue's.")
    ] = None,
    os_cacert: Annotated[str | None, _os("File of the certificates to trust.")] = None,
    os_cert: Annotated[str | None, _os("File of the client certificate.")] = None,
    os_key: Annotated[str | None, _os("File of the client certificate's key.")] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Do not check the cloud's certificates.",
            rich_help_panel="Cloud",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Put images into the image caches of OpenStack compute hosts before they are needed, over plain SSH."""
    given = {name: value for name, value in locals().items() if name.startswith("os_") and value}
    called = ctx.ensure_object(Invocation)
    called.inventory = inventory
    called.become = become.value if become else None
    called.become_user = become_user
    called.cloud = given.pop("os_cloud", None)
    called.cloud_values = {name.removeprefix("os_"): value for name, value in given.items()}
    if insecure:
        called.cloud_values["insecure"] = True


def root_command() -> Any:
    """Build the whole command line; also for the man page and for tests."""
    app = typer.Typer(
        cls=LazyGroup,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_HELP_NAMES,
        epilog=_EPILOG,
    )
    app.callback()(_root)
    return typer.main.get_command(app)


def main(argv: Sequence[str]) -> int:
    """Run the command line and return the exit code; raises nothing.

    With ``-f json`` an error's last line on standard error is ``docs/schemas/error.json``.
    """
    # Libraries may log what they like; nothing of it belongs on the operator's terminal.
    logging.getLogger().addHandler(logging.NullHandler())
    called = Invocation()
    as_json = asks_json(argv)
    try:
        return _call(list(argv), called)
    except ImgcacheError as exc:
        return _fail(exc, as_json=as_json)
    except typer.TyperException as exc:
        return _fail(_usage_error(exc), as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        document = end_document("Interrupted", "interrupted", ExitCode.INTERRUPTED)
        say(["imgcache: interrupted"], sys.stderr, document if as_json else None)
        return ExitCode.INTERRUPTED
    except Exception as exc:  # noqa: BLE001 - the one place: what is not expected is a bug of ours
        return _bug(exc, called, as_json=as_json)
    finally:
        if called.log:
            _close(called.log)
        # What a closed stream still holds would make Python end with a code of its own.
        settle(sys.stderr)


def _call(argv: list[str], called: Invocation) -> int:
    command = root_command()
    refuse_secrets(argv)
    try:
        code = command.main(
            hoist_global_options(argv, command),
            prog_name="imgcache",
            standalone_mode=False,
            obj=called,
        )
    except (
        SystemExit
    ) as exc:  # the library's way out after a completion script, or when nobody reads
        return exc.code if isinstance(exc.code, int) else ExitCode.OK
    return int(code or 0)


def _close(log: RunLog) -> None:
    try:
        log.close()
    except OSError as exc:
        say(
            [f"imgcache: warning: the log file {printable(str(log.path))}: {exc.strerror}"],
            sys.stderr,
        )


def _usage_error(exc: typer.TyperException) -> UsageError:
    """Say what the command line's library says, in our shape."""
    ctx = getattr(exc, "ctx", None)
    hint = f"see '{ctx.command_path} --help'" if ctx else "see 'imgcache --help'"
    return UsageError(exc.format_message(), hint=hint)


def _fail(error: ImgcacheError, *, as_json: bool) -> int:
    say(error_lines(error), sys.stderr, error_document(error) if as_json else None)
    return int(error.exit_code)


def _bug(exc: Exception, called: Invocation, *, as_json: bool) -> int:
    """Tell of a bug: where the traceback is, or how to get it. It may end on a public tracker."""
    summary = f"a bug in imgcache: {type(exc).__name__}; this run ended early"
    lines = [f"imgcache: {summary}"]
    if called.log:
        called.log.bug(exc)
        lines.append(f"  the traceback is in {printable(str(called.log.path))}; please report it")
    elif called.verbosity < 2:
        lines.append(
            "  hint: run it again with -vv or --log-file FILE to get the traceback, and report it"
        )
    if called.verbosity >= 2:
        lines += traceback_lines(exc)
    say(lines, sys.stderr, end_document("Bug", summary, ExitCode.BUG) if as_json else None)
    return ExitCode.BUG
