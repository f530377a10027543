"""Results as text: a table for people, JSON, YAML, CSV and bare values for programs.

Whatever a host or an image is called, no format lets it through raw: tables, CSV and values go through
the sanitizer, JSON and YAML have escapes of their own.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, assert_never

from imgcache.errors import UsageError
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

Cell = str | int | float | bool | None
"""What a column may hold."""
Row: TypeAlias = "Mapping[str, Cell]"
"""Column -> cell."""


class Format(StrEnum):
    """How a result is written to standard output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Columns:
    """What a command's rows hold, in order."""

    known: tuple[str, ...]
    shown: tuple[str, ...]
    """Those in a table, when none are asked for."""
    detailed: tuple[str, ...]
    """Those in a table with ``-v``."""
    folded: str | None = None
    """The column whose values are folded (``edge1-[01-17]``) where all others shown are equal."""
    units: Mapping[str, Callable[[float], str]] = field(default_factory=dict)
    """Column -> how a table writes its number; everything else gets the exact number."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Column -> its heading in a table, where its name does not do."""
    stand_ins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> what a table shows in its place, in parentheses, where there is none."""

    def check(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the wanted columns, each once.

        Raises:
            UsageError: there is no such column.
        """
        for name in wanted:
            if name not in self.known:
                near = get_close_matches(name, self.known, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                message = f"--column: no such column: {printable(name)}"
                raise UsageError(message, hint=f"{hint}the columns are: {', '.join(self.known)}")
        return tuple(dict.fromkeys(wanted))


@dataclass(frozen=True, slots=True)
class Listing:
    """A result: the whole document, and which part of it are rows."""

    document: Mapping[str, object]
    """What JSON and YAML show; plain values only."""
    rows_key: str
    """Where the rows are in the document."""
    rows: Sequence[Row]
    columns: Columns
    below: tuple[Listing, ...] = ()
    """Further parts of the document that a table shows under it, when no columns are asked for."""


def render(
    listing: Listing, form: Format, *, wanted: Sequence[str] = (), detailed: bool = False
) -> str:
    """Return the result as text that ends with a newline, or as nothing.

    ``wanted`` limits the columns, in JSON and YAML the rows' keys; ``detailed`` shows a table unfolded.
    """
    columns = listing.columns.check(wanted)
    match form:
        case Format.TABLE:
            return _table(listing, columns, detailed=detailed)
        case Format.JSON:
            return json_text(_document(listing, columns)) + "\n"
        case Format.YAML:
            return _yaml(_document(listing, columns))
        case Format.CSV:
            return _csv(listing.rows, columns or listing.columns.known)
        case Format.VALUE:
            return _values(listing.rows, columns or listing.columns.shown)
    assert_never(form)


def json_text(document: object, *, indent: int | None = 2) -> str:
    """Return JSON in printable ASCII only; the values are exact save for lone surrogates."""
    return json.dumps(_well_formed(document), indent=indent, ensure_ascii=True, allow_nan=False)


def _well_formed(value: object) -> object:
    """Return the value without lone surrogates, which strict readers of JSON refuse."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {str(key): _well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(item) for item in value]
    return value


def _document(listing: Listing, columns: Sequence[str]) -> object:
    if not columns:
        return dict(listing.document)
    rows = [{name: row[name] for name in columns} for row in listing.rows]
    return {**listing.document, listing.rows_key: rows}


def _yaml(document: object) -> str:
    import yaml  # noqa: PLC0415 - for this format only

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(
        _well_formed(document), Dumper=dumper, allow_unicode=False, sort_keys=False, width=10**9
    )
    return text


def _csv(rows: Iterable[Row], columns: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(row[name]) for name in columns] for row in rows)
    return out.getvalue()


def _csv_cell(cell: Cell) -> Cell:
    """Return the cell so that no spreadsheet takes a text for a formula."""
    if not isinstance(cell, str):
        return cell
    text = printable(cell, 2000)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _values(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return one line per row, tabs between the values, ``-`` for none."""
    return "".join(
        "\t".join(_cell_text(row[name], 2000) or "-" for name in columns) + "\n" for row in rows
    )


def _cell_text(cell: Cell, limit: int = 1000) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return printable(f"{cell:.1f}" if isinstance(cell, float) else str(cell), limit)


def _table(listing: Listing, wanted: Sequence[str], *, detailed: bool) -> str:
    known = listing.columns
    columns = wanted or _with_driver(known.detailed if detailed else known.shown, listing)
    cells = [tuple(_table_cell(row, name, known) for name in columns) for row in listing.rows]
    if not wanted:
        columns, cells = _without_empty(columns, cells, known.units)
    if known.folded in columns and not detailed:
        cells = _fold(cells, columns.index(known.folded))
    numbers = {index for index, name in enumerate(columns) if name in known.units}
    heading = tuple(_heading(name, known) for name in columns)
    parts = [_aligned([heading, *cells], numbers)] if cells else []
    if not wanted:
        parts += [_table(part, (), detailed=detailed) for part in listing.below]
    return "\n".join(part for part in parts if part)


def _with_driver(columns: Sequence[str], listing: Listing) -> Sequence[str]:
    """Show also the hosts' drivers where there are several."""
    if "driver" not in listing.columns.known or "host" not in columns:
        return columns
    if len({row["driver"] for row in listing.rows}) < 2:
        return columns
    at = columns.index("host") + 1
    return (*columns[:at], "driver", *columns[at:])


def _without_empty(
    columns: Sequence[str], rows: list[tuple[str, ...]], numbers: Container[str]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Leave out columns of numbers in which there is none."""
    filled = [
        index
        for index, name in enumerate(columns)
        if name not in numbers or any(row[index] for row in rows)
    ]
    kept = [tuple(row[index] for index in filled) for row in rows]
    return [columns[index] for index in filled], kept


def _table_cell(row: Row, name: str, columns: Columns) -> str:
    cell = row[name]
    if cell is None:
        others = (row[other] for other in columns.stand_ins.get(name, ()))
        instead = next((other for other in others if other not in {None, ""}), None)
        return "" if instead is None else f"({_cell_text(instead)})"
    if name in columns.units and isinstance(cell, int | float):
        return columns.units[name](cell)
    return _cell_text(cell)


def _heading(name: str, columns: Columns) -> str:
    """Return a column's name for people; a number that is shown with its unit needs none there."""
    if name in columns.titles:
        return columns.titles[name]
    if name in columns.units:
        name = re.sub(r"^bytes_|_(?:bytes|s)$", "", name)
    return name.upper().replace("_", " ")


def _fold(rows: Iterable[tuple[str, ...]], at: int) -> list[tuple[str, ...]]:
    """Return rows that differ in one place only as one row, in the order of their first.

    A row that is there twice stays twice: two entries of a host may look alike.
    """
    from imgcache.ui.folding import fold_hosts  # noqa: PLC0415 - ClusterShell, for tables only

    groups: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    times: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        groups.setdefault((times[row], row[:at] + row[at + 1 :]), []).append(row[at])
        times[row] += 1
    # The same few sets of hosts come again and again, and folding takes its time.
    folded = dict.fromkeys(map(tuple, groups.values()), "")
    for names in folded:
        folded[names] = printable(fold_hosts(names), 2000)
    return [(*rest[:at], folded[tuple(names)], *rest[at:]) for (_, rest), names in groups.items()]


def _aligned(rows: Sequence[tuple[str, ...]], right: Container[int] = ()) -> str:
    """Return the rows in columns; those at ``right`` end at the same place, the others begin there."""
    widths = [max(width_of(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        padded = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            room = " " * (width - width_of(cell))
            padded.append(room + cell if index in right else cell + room)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def width_of(text: str) -> int:
    """Return how many columns a terminal needs for it."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
