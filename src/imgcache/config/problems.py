"""Says in plain words what pydantic found wrong, with the place in the file."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from imgcache.config.schema import keys_at
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import ValidationError

    from imgcache.document import Document

_KINDS = {
    "string_type": "must be text",
    "model_type": "must be a mapping (lines of 'key: value')",
    "model_attributes_type": "must be a mapping (lines of 'key: value')",
    "dict_type": "must be a mapping (lines of 'key: value')",
    "list_type": "must be a list (lines of '- item')",
    "tuple_type": "must be a list (lines of '- item')",
    "too_short": "must not be empty",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
}


def add_problems(document: Document, exc: ValidationError) -> None:
    """Add every fault that the schema found to the document's problems."""
    for error in exc.errors(include_url=False):
        keys = _known_path(error["loc"])
        if error["type"] == "extra_forbidden":
            hint = nearest(str(keys[-1]), keys_at(keys[:-1]))
            document.add(keys, "unknown key", hint, at_key=True)
        elif error["type"] == "missing":
            document.add(keys[:-1], f"'{keys[-1]}' is missing")
        elif error["input"] is None and error["type"] != "value_error":
            continue  # a value that is not there: the parser has said so
        else:
            document.add(document.deepest(keys), described(error))


def _known_path(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    # pydantic marks a fault in a mapping's key itself with one more element.
    return tuple(key for key in loc if key != "[key]")


def described(error: Mapping[str, Any]) -> str:
    """Return one fault that the schema found, in our words."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        text = str(context["error"])
        # "is …" and "must …" are about the value; other messages name what they are about.
        about_value = text.startswith(("is ", "must ")) and isinstance(value, str)
        return f"{_shown(value)} {text}" if about_value else text
    if kind == "literal_error":
        return f"{_shown(value)} is none of {str(context['expected']).replace(' or ', ', ')}"
    what = _KINDS.get(kind) or str(error["msg"]).replace("Input should be", "must be")
    return f"{what}, not {_shown(value)}" if kind != "too_short" else what


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"'{printable(value, 80)}'"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else printable(str(value), 80)


def nearest(given: str, known: Sequence[str]) -> str | None:
    """Return a hint with the known words most like ``given``, or with all when none is like it."""
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{word}'" for word in close) + "?"
    return "known here: " + ", ".join(known) if known else None
