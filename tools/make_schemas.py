"""Make docs/schemas from what the commands can say: ``python tools/make_schemas.py [--check]``.

The schemas of the life of the cache are made whole; in the others, the lists of codes and words are kept
right. So a new code, word or column cannot be forgotten there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcache.commands.drivers import CAPABILITY_COLUMNS
from imgcache.drivers.capabilities import COMMANDS
from imgcache.errors import ErrorCode
from imgcache.model import EntryKind
from imgcache.plan import EntryWord, OutcomeWord
from imgcache.ui.entries import ENTRY_COLUMNS, FAILURE_COLUMNS, MISSING_COLUMNS
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS
from imgcache.ui.status import STATUS_COLUMNS, TOTAL_COLUMNS

if TYPE_CHECKING:
    from enum import StrEnum

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
_WIDTH = 110

#: Commands whose result is a list of outcomes of cache entries.
ENTRY_COMMANDS = ("prune", "clean", "verify", "delete", "pin", "unpin", "refresh")

Schema = dict[str, Any]


def make_all() -> dict[str, str]:
    """Return file name -> text of every schema."""
    made = {
        "list": list_schema(),
        "status": status_schema(),
        "drivers": drivers_schema(),
        **{name: outcome_schema(name) for name in ENTRY_COMMANDS},
    }
    for path in FOLDER.glob("*.json"):
        if path.stem not in made:
            made[path.stem] = refreshed(json.loads(path.read_text("utf-8")))
    return {f"{name}.json": _text(schema) + "\n" for name, schema in sorted(made.items())}


def refreshed(schema: Any) -> Any:
    """Return a schema made by hand with its lists of codes as they are now."""
    if isinstance(schema, list):
        return [refreshed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {**part, "enum": _codes()} if key == "code" and "enum" in part else refreshed(part)
        for key, part in schema.items()
    }


# ------------------------------------------------------------------------------------------ the commands


def outcome_schema(command: str) -> Schema:
    """Return the schema of a command whose result is a list of outcomes of cache entries."""
    outcome = {
        **_HOST,
        "entry": _text_field("The file's name in the cache; empty: the host as a whole."),
        "kind": _enum(EntryKind, none=True),
        "image_id": _maybe("string", "null: not known."),
        "image_name": _maybe("string", "null: not known."),
        "outcome": _enum(EntryWord, about="See docs/errors.md."),
        "code": _CODE,
        "reason": _REASON,
        "bytes": _bytes("Allocated on the disk."),
        "bytes_freed": _bytes("What its removal gave back; in a dry run, what it would."),
        "driver": _DRIVER,
    }
    return _document(
        command,
        "outcomes",
        {
            "dry_run": {"type": "boolean"},
            "outcomes": _rows("outcome", "One object per host and entry."),
            "totals": _counts("Outcome -> number of entries; every word is there.", EntryWord),
            "bytes_freed": _bytes("Of all entries together."),
        },
        {"outcome": _object(outcome, ENTRY_OUTCOME_COLUMNS.known)},
    )


def list_schema() -> Schema:
    """Return the schema of ``imgcache list``."""
    entry = {
        **_HOST,
        "entry": _text_field("The file's name in the cache."),
        "kind": _enum(EntryKind),
        "image_id": _maybe("string", "null: not known."),
        "image_name": _maybe("string", "null: not known."),
        "known_by": {
            "enum": [None, "name", "manifest", "hash"],
            "description": "How the image is known: by the entry's name, noted on the host, or by hashing "
            "the ids that the image service lists.",
        },
        "gone": _maybe(
            "boolean", "Whether its image is gone from the image service; null: not known."
        ),
        "managed": {"type": "boolean", "description": "Whether imgcache fetched or adopted it."},
        "format": _maybe("string", "By the file's header; null: not looked at."),
        "size_bytes": _bytes("Apparent size."),
        "allocated_bytes": _bytes("On the disk, as Nova counts."),
        "age_s": {
            "type": "number",
            "description": "Since its last known use, by the host's clock; negative: in its future.",
        },
        "users": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Instances and processes that use it; null: not all could be read.",
        },
        "used_by": _maybe("string", "A few of them, for people."),
        "live": {
            "type": "boolean",
            "description": "Of a transfer's file: someone is at work on it.",
        },
        "hits": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "How often it was used; null: the back end does not count.",
        },
        "pinned_until": _maybe("string", "UTC, or `forever`; null: not pinned, or not any more."),
        "cached_at": _maybe("string", "UTC, by the host's clock."),
        "verified_at": _maybe("string", "UTC, by the host's clock."),
        "source": _maybe("string", "Where its bytes came from."),
        "driver": _DRIVER,
    }
    missing = {
        **_HOST,
        "image_id": _text_field(),
        "image_name": _maybe("string", "null: not known."),
        "driver": _DRIVER,
    }
    return _document(
        "list",
        "entries` (with --missing: in `missing",
        {
            "hosts": {
                "type": "array",
                "items": {"type": "string"},
                "description": "All that answered, those without a matching entry, too.",
            },
            "entries": _rows("entry", "One object per host and entry."),
            "missing": _rows(
                "missing", "One object per host and image that it lacks, of those asked for."
            ),
            "failures": _rows("failure", "One object per host that did not answer."),
            "notices": {"type": "array", "items": {"type": "string"}},
        },
        {
            "entry": _object(entry, ENTRY_COLUMNS.known),
            "missing": _object(missing, MISSING_COLUMNS.known),
            "failure": _failure(),
        },
    )


def status_schema() -> Schema:
    """Return the schema of ``imgcache status``."""
    status = {
        **_HOST,
        "cache_path": _text_field(),
        "filesystem": _text_field("Its type, such as ext4, xfs or nfs."),
        "own_filesystem": {
            "type": "boolean",
            "description": "Whether the cache is on another file system than the instances.",
        },
        "storage_id": _maybe("string", "The same for hosts that share a cache; null: not shared."),
        "entries": _count(),
        "cache_bytes": _bytes("Allocated on the disk, as Nova counts."),
        "cache_share": _share("The cache's, of its file system."),
        "nova_usage_bytes": _bytes(
            "What Nova itself counts: 0 on a file system of the cache's own."
        ),
        "in_use_bytes": _bytes(),
        "pinned_bytes": _bytes(),
        "reclaimable_bytes": _bytes("What `imgcache prune` would free now."),
        "reclaimable_entries": _count(),
        "filesystem_size_bytes": _bytes(),
        "filesystem_free_bytes": _bytes(),
        "used_share": _share("How full the file system is, by whatever."),
        "over_threshold": _maybe("boolean", "Above --max-used; null: without --check."),
        "reserved_host_disk_mb": _count("What the host's nova.conf says, MiB."),
        "reserves_cache": {
            "type": "boolean",
            "description": "Whether the host's nova.conf says reserve_disk_resource_for_image_cache.",
        },
        "cache_reserve_mb": _count(
            "What reserved_host_disk_mb should hold for the cache alone, MiB; 0: nothing is needed."
        ),
        "evidence_problems": _maybe(
            "string",
            "What could not be read, or which sharers were not examined: then nothing is removed there.",
        ),
        "driver": _DRIVER,
    }
    total = {
        "group": {
            "enum": ["aggregate", "cell", "driver"],
            "description": "driver: where hosts have several.",
        },
        "name": _text_field(),
        "hosts": _count(),
        "cache_bytes": _bytes("A shared cache counts once."),
        "reclaimable_bytes": _bytes(),
        "filesystem_size_bytes": _bytes(),
        "filesystem_free_bytes": _bytes(),
    }
    return _document(
        "status",
        "hosts",
        {
            "max_used": {
                "type": ["number", "null"],
                "description": "The threshold; null: without --check.",
            },
            "hosts": _rows("status", "One object per host that answered."),
            "totals": _rows("total", "One object per aggregate, per cell, and per driver."),
            "failures": _rows("failure", "One object per host that did not answer."),
        },
        {
            "status": _object(status, STATUS_COLUMNS.known),
            "total": _object(total, TOTAL_COLUMNS.known),
            "failure": _failure(),
        },
    )


def drivers_schema() -> Schema:
    """Return the schema of ``imgcache drivers``."""
    package = {
        "driver": _text_field("As the inventory's `driver:` says it."),
        "package": _maybe("string", "The package that brings it; null: built in."),
        "version": _maybe("string", "The package's."),
    }
    capability = {
        **package,
        "helper_sha256": _maybe(
            "string", "Of the code of its own that it sends to hosts; null: only imgcache's."
        ),
        "command": {
            "enum": list(COMMANDS),
            "description": "A command, or one with an option that asks for more.",
        },
        "supported": {"type": "boolean"},
        "reason": _maybe("string", "Why not; for people, its wording may change."),
    }
    problem = {**package, "problem": _text_field("For people; its wording may change.")}
    parts = {
        "capability": _object(capability, CAPABILITY_COLUMNS.known),
        "problem": _object(problem, tuple(problem)),
    }
    properties = {
        "command": {"const": "drivers"},
        "capabilities": _rows("capability", "One object per driver and command."),
        "problems": _rows("problem", "Drivers that packages register and that cannot be used."),
    }
    return {
        **_about_file("drivers", "capabilities"),
        **_object(properties, tuple(properties)),
        "$defs": parts,
    }


# --------------------------------------------------------------------------------------------- the parts


def _codes() -> list[str | None]:
    return [None, *(code.value for code in ErrorCode)]


_HOST: Schema = {
    "host": {"type": "string"},
    "aggregate": {
        "type": "string",
        "description": "The first selected aggregate that names the host.",
    },
    "cell": {"type": ["string", "null"]},
}
_DRIVER: Schema = {"type": "string", "description": "The host's, as in the inventory."}
_REASON: Schema = {
    "type": ["string", "null"],
    "description": "For people; its wording may change.",
}
_CODE: Schema = {"description": "Why; the closed list is in docs/errors.md.", "enum": _codes()}


def _document(command: str, rows_key: str, fields: Schema, parts: Schema) -> Schema:
    properties = {
        "run_id": {"type": "string", "minLength": 1, "description": "Also in the log file."},
        "command": {"const": command},
        "started_at": {"$ref": "#/$defs/time"},
        "finished_at": {"$ref": "#/$defs/time"},
        **fields,
    }
    return {
        **_about_file(command, rows_key),
        **_object(properties, tuple(properties)),
        "$defs": {
            "time": {
                "type": "string",
                "description": "UTC, by the controller's clock.",
                "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
            },
            **parts,
        },
    }


def _about_file(command: str, rows_key: str) -> Schema:
    about = (
        f"Without --column; with it, the objects in `{rows_key}` hold only the columns asked for"
    )
    about += ")." if "(" in rows_key else "."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"The result of `imgcache {command} -f json`",
        "description": about,
    }


def _object(properties: Schema, names: tuple[str, ...]) -> Schema:
    """Return an object that holds exactly these; the names come from the program."""
    if tuple(properties) != names:
        message = f"described are {tuple(properties)}, the program has {names}"
        raise SystemExit(message)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(names),
        "properties": properties,
    }


def _failure() -> Schema:
    words = ("error", "unknown", "unsupported", "skipped")
    assert {OutcomeWord(word) for word in words}
    outcome = {"enum": list(words)}
    code = {**_CODE, "enum": _codes()[1:]}
    return _object(
        {
            **_HOST,
            "outcome": outcome,
            "code": code,
            "reason": {**_REASON, "type": "string"},
            "driver": _DRIVER,
        },
        FAILURE_COLUMNS.known,
    )


def _rows(part: str, about: str) -> Schema:
    return {"type": "array", "description": about, "items": {"$ref": f"#/$defs/{part}"}}


def _counts(about: str, words: type[StrEnum]) -> Schema:
    names = tuple(word.value for word in words)
    return {"description": about, **_object({name: _count() for name in names}, names)}


def _enum(words: type[StrEnum], *, none: bool = False, about: str | None = None) -> Schema:
    values: list[str | None] = [word.value for word in words]
    return {"enum": [None, *values] if none else values, **_about(about)}


def _about(text: str | None) -> Schema:
    return {"description": text} if text else {}


def _text_field(about: str | None = None) -> Schema:
    return {"type": "string", **_about(about)}


def _maybe(kind: str, about: str) -> Schema:
    return {"type": [kind, "null"], **_about(about)}


def _count(about: str | None = None) -> Schema:
    return {"type": "integer", "minimum": 0, **_about(about)}


_bytes = _count


def _share(about: str) -> Schema:
    return {"type": "number", "minimum": 0, "maximum": 1, "description": about}


# --------------------------------------------------------------------------------------------- the files


def _text(value: Any, indent: int = 0, before: int = 0) -> str:
    """Return JSON in which what fits on a line is on one; ``before`` is what stands before it there."""
    flat = json.dumps(value)
    if indent + before + len(flat) < _WIDTH and indent > 0:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict) and value:
        items = [
            f"{json.dumps(key)}: {_text(part, indent + 2, len(key) + 5)}"
            for key, part in value.items()
        ]
        return "{\n" + ",\n".join(inner + item for item in items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value:
        if any(isinstance(part, dict | list) for part in value):
            lines = [_text(part, indent + 2) for part in value]
            return "[\n" + ",\n".join(inner + line for line in lines) + "\n" + " " * indent + "]"
        return (
            "[\n" + _filled([json.dumps(part) for part in value], inner) + "\n" + " " * indent + "]"
        )
    return flat


def _filled(words: list[str], inner: str) -> str:
    lines = [inner]
    for number, word in enumerate(words):
        piece = word if number == len(words) - 1 else f"{word}, "
        if len(lines[-1]) + len(piece) > _WIDTH and lines[-1] != inner:
            lines[-1] = lines[-1].rstrip()
            lines.append(inner)
        lines[-1] += piece
    return "\n".join(lines)


def main() -> int:
    """Write the schemas, or with --check only say whether they are up to date."""
    made = make_all()
    if "--check" in sys.argv[1:]:
        wrong = [
            name
            for name, text in made.items()
            if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != text
        ]
        for name in wrong:
            print(f"docs/schemas/{name}: out of date", file=sys.stderr)
        return int(bool(wrong))
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
