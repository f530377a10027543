"""Hosts down, images across, one sign each: which host has what, on one screen. ASCII, save for names."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from imgcache.guards import base_of, is_pinned, size_fault
from imgcache.model import EntryKind
from imgcache.text import printable
from imgcache.ui.folding import group_equal
from imgcache.ui.formats import width_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imgcache.model import CacheEntry
    from imgcache.plan import ListReport

    Key: TypeAlias = str
    """An image's id; of an unknown image, its base file's name."""

#: Sign -> what it says; the legend lists those that occur, in this order.
SIGNS = {
    "u": "in use",
    "p": "pinned",
    "b": "in use and pinned",
    "d": "there, but its size cannot be right",
    "x": "there, unused",
    "?": "there, use not known",
    "r": "only a resized copy",
    "q": "queued, not there yet",
    ".": "not there",
    "!": "host not examined",
}
_GONE_MARK = "*"
_GAP = "  "
_CORNER = "HOST"
#: Names longer than this are cut in the middle.
_MAX_NAME = 24
#: Narrower than this, wrapping does not help any more.
_MIN_WIDTH = 40


@dataclass(frozen=True, slots=True)
class _Column:
    key: Key
    name: str
    gone: bool

    @property
    def title(self) -> str:
        """The name, cut, marked when its image is gone."""
        name = printable(self.name, 200)
        if width_of(name) > _MAX_NAME:
            half = (_MAX_NAME - 2) // 2
            name = f"{name[:half]}..{name[-half:]}"
        return name + (_GONE_MARK if self.gone else "")


def matrix_text(report: ListReport, width: int) -> str:
    """Return the matrix for a screen that is ``width`` columns wide; empty when there is no host.

    Images have their names above where all fit, else numbers and a list of names below.
    """
    columns = _columns(report)
    rows = group_equal(_rows(report, columns))
    if not rows:
        return ""
    width = max(width, _MIN_WIDTH)
    host_width = min(
        max(len(_CORNER), *(width_of(printable(hosts, 10_000)) for hosts, _ in rows)),
        width * 2 // 5,
    )
    titles = [column.title for column in columns]
    room = width - host_width
    numbered = sum(len(_GAP) + width_of(title) for title in titles) > room
    heads = [str(index) for index in range(1, len(titles) + 1)] if numbered else titles
    blocks = [
        _block(rows, heads, part, host_width)
        for part in _parts([width_of(one) for one in heads], room)
    ]
    legend = _legend({sign for _, signs in rows for sign in signs}, columns, width)
    names = _names(titles, width) if numbered else ""
    return "\n".join(part for part in (*blocks, names, legend) if part)


# ------------------------------------------------------------------------------------------- the contents


def _columns(report: ListReport) -> list[_Column]:
    """Return a column per image that some host has or was asked for: known names first, in order."""
    names: dict[Key, tuple[bool, str, bool]] = {}
    for one in report.missing:
        names[one.image_id] = (False, one.image_name or one.image_id, False)
    for listed in report.entries:
        base = base_of(listed.entry)
        if base is not None:
            key = listed.image_id or base
            unknown = listed.image_name is None
            title = listed.image_name or (listed.image_id or f"({base[:8]})")
            names.setdefault(key, (unknown, title, bool(listed.gone)))
    ordered = sorted(names.items(), key=lambda item: (item[1][0], item[1][1], item[0]))
    return [_Column(key, name, gone) for key, (_, name, gone) in ordered]


def _rows(report: ListReport, columns: Sequence[_Column]) -> list[tuple[str, tuple[str, ...]]]:
    """Return (host, its signs) for every host, in the report's order, those that failed last."""
    found: dict[str, dict[Key, list[CacheEntry]]] = {host: {} for host in report.hosts}
    for listed in report.entries:
        base = base_of(listed.entry)
        if base is not None:
            of_host = found.setdefault(listed.host, {})
            of_host.setdefault(listed.image_id or base, []).append(listed.entry)
    rows = [
        (host, tuple(_sign(entries.get(column.key, ())) for column in columns))
        for host, entries in found.items()
    ]
    return rows + [(failure.host, ("!",) * len(columns)) for failure in report.failures]


def _sign(entries: Sequence[CacheEntry]) -> str:
    """Return the sign of one image on one host: of its base file and the resized copies together."""
    if not entries:
        return "."
    in_use = any(entry.users or entry.live for entry in entries)
    pinned = any(is_pinned(entry) for entry in entries)
    if in_use or pinned:
        return "b" if in_use and pinned else "u" if in_use else "p"
    if any(size_fault(entry) for entry in entries):
        return "d"
    if any(entry.users is None for entry in entries):
        return "?"
    kinds = {entry.kind for entry in entries}
    if EntryKind.ORIGINAL in kinds:
        return "x"
    return "q" if EntryKind.QUEUED in kinds else "r"


# --------------------------------------------------------------------------------------------- the drawing


def _parts(widths: Sequence[int], room: int) -> list[range]:
    """Return which columns stand side by side: as many as fit, at least one."""
    parts: list[range] = []
    start, used = 0, 0
    for index, width in enumerate(widths):
        if index > start and used + len(_GAP) + width > room:
            parts.append(range(start, index))
            start, used = index, 0
        used += len(_GAP) + width
    return [*parts, range(start, len(widths))]


def _block(
    rows: Iterable[tuple[str, tuple[str, ...]]], heads: Sequence[str], part: range, host_width: int
) -> str:
    lines = [_line(_CORNER, [(heads[index], heads[index]) for index in part], host_width)]
    for hosts, signs in rows:
        first, *more = _wrap(printable(hosts, 10_000), host_width)
        lines.append(_line(first, [(heads[index], signs[index]) for index in part], host_width))
        lines += more
    return "\n".join(lines) + "\n"


def _line(first: str, cells: Iterable[tuple[str, str]], host_width: int) -> str:
    """Return one line; ``cells`` are (head, what stands below its middle)."""
    line = first + " " * (host_width - width_of(first))
    for head, cell in cells:
        room = width_of(head) - width_of(cell)
        line += _GAP + " " * (room // 2) + cell + " " * (room - room // 2)
    return line.rstrip()


def _wrap(node_set: str, width: int) -> list[str]:
    """Break a node set behind commas, or anywhere when a part is too long."""
    lines = [""]
    for number, part in enumerate(node_set.split(",")):
        piece = part if number == 0 else f",{part}"
        if lines[-1] and width_of(lines[-1]) + width_of(piece) + 1 > width:
            lines[-1] += ","
            piece = f" {part}"
            lines.append("")
        lines[-1] += piece
        while width_of(lines[-1]) > width:
            cut = width if lines[-1].isascii() else width // 2
            lines[-1:] = [lines[-1][:cut], f" {lines[-1][cut:]}"]
    return lines


def _names(titles: Sequence[str], width: int) -> str:
    """Return the numbered names, in as many columns as fit."""
    items = [f"{number:>{len(str(len(titles)))}} {title}" for number, title in enumerate(titles, 1)]
    widest = max(width_of(item) for item in items)
    across = max((width + len(_GAP)) // (widest + len(_GAP)), 1)
    down = -(-len(items) // across)
    lines = []
    for row in range(down):
        cells = items[row::down]
        lines.append(_GAP.join(cell + " " * (widest - width_of(cell)) for cell in cells).rstrip())
    return "\n".join(lines) + "\n"


def _legend(signs: set[str], columns: Sequence[_Column], width: int) -> str:
    if not columns:
        return "no images there\n"
    said = [f"{sign} {text}" for sign, text in SIGNS.items() if sign in signs]
    if any(column.gone for column in columns):
        said.append(f"{_GONE_MARK} gone from the image service")
    return "\n".join(textwrap.wrap(", ".join(said), width)) + "\n"
