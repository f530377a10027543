"""Make docs/imgcache.1 from the command line itself: ``python tools/make_man.py [--check]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from imgcache import __version__
from imgcache.cli import COMMANDS, load_command, root_command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "imgcache.1"

_TAIL = r""".SH ENVIRONMENT
.TP
.B IMGCACHE_INVENTORY
The inventory file, when \-\-inventory is not given.
.TP
.BR OS_CLOUD ", " OS_*
Who we are to the cloud, as for every OpenStack client; the only place for secrets beside clouds.yaml.
.TP
.B NO_COLOR
When set, progress is shown as plain lines.
.SH FILES
.TP
.I ~/.config/imgcache/inventory.yaml
The inventory, when not named otherwise; after it
.IR /etc/imgcache/inventory.yaml .
.TP
.I ~/.ssh/config
HostName, User, Port, IdentityFile, ProxyJump and UserKnownHostsFile are honoured.
.SH EXIT STATUS
.TP
.B 0
All as asked.
.TP
.B 1
The run ended, but some item is error or unknown.
.TP
.B 2
Usage, inventory or configuration error; nothing was contacted.
.TP
.B 3
Refused for safety; nothing was done.
.TP
.B 4
The image service cannot be used, or an image is missing, ambiguous or not active.
.TP
.B 5
The run worked and the answer is no.
.TP
.B 70
A bug in imgcache.
.TP
.BR 130 ", " 143
Interrupted.
"""


def make_page() -> str:
    """Return the manual page as roff."""
    root = root_command()
    ctx = root.context_class(root, info_name="imgcache", **root.context_settings)
    parts = [
        f'.TH IMGCACHE 1 "" "imgcache {__version__}" "User Commands"\n',
        ".SH NAME\nimgcache \\- fills the image caches of OpenStack compute hosts over plain SSH\n",
        ".SH SYNOPSIS\n.B imgcache\n[\\fIoptions\\fR] \\fIcommand\\fR [\\fIoptions\\fR] "
        "[\\fIarguments\\fR]\n",
        f".SH DESCRIPTION\n{_roff(root.help)}\n{_roff(root.epilog)}\n",
        ".SH GLOBAL OPTIONS\nThese may stand before or behind the command.\n",
        _options(root, ctx),
        ".SH COMMANDS\n",
    ]
    for name in COMMANDS:
        command = load_command(name)
        parts += [f".SS {_roff(_synopsis(name, command))}\n{_paragraphs(command.help)}\n"]
        own = command.context_class(command, info_name=name, parent=ctx, **command.context_settings)
        parts += [_options(command, own)]
    return "".join(parts) + _TAIL


def _synopsis(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    return " ".join(
        [
            "imgcache",
            name,
            "[options]",
            *(f"{p.metavar}..." if p.required else f"[{p.metavar}...]" for p in arguments),
        ]
    )


def _paragraphs(text: str) -> str:
    """Return a help text as roff; a paragraph that begins with a backspace keeps its lines."""
    made = []
    for part in text.strip().split("\n\n"):
        if part.startswith("\b\n"):
            lines = [_roff(line) for line in part.splitlines()[1:]]
            made.append("\n".join([".nf", *lines, ".fi"]))
        else:
            made.append(_roff(part))
    return "\n.PP\n".join(made)


def _options(command: Any, ctx: Any) -> str:
    out = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            names = param.metavar if param.param_type_name == "argument" else record[0]
            text = record[1]
            out.append(f".TP\n.B {_roff(names)}\n{_roff(text)}\n")
    return "".join(out)


def _roff(text: str | None) -> str:
    """Return text that roff shows as it is."""
    escaped = (
        " ".join((text or "").split()).replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    )
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> int:
    """Write the page, or with --check only say whether it is up to date."""
    page = make_page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
