"""An error that ends a run, for people and, on request, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from imgcache.errors import ConfigError, ImageProblemsError, ImgcacheError
from imgcache.text import printable
from imgcache.ui.formats import json_text
from imgcache.ui.stream import discard, fit

if TYPE_CHECKING:
    from imgcache.errors import ExitCode, Problem

#: Room for a whole usage text in one message.
_LIMIT = 2000


def error_lines(error: ImgcacheError) -> list[str]:
    """Return what to show: the message, every problem on a line of its own, and what to do."""
    lines = [f"imgcache: error: {printable(error.message, _LIMIT)}"]
    lines += [f"  {line}" for problem in _problems(error) for line in _problem_lines(problem)]
    if error.hint:
        lines.append(f"  hint: {printable(error.hint, _LIMIT)}")
    return lines


def error_document(error: ImgcacheError) -> dict[str, object]:
    """Return the error as ``docs/schemas/error.json`` describes it."""
    return {
        "error": {
            "kind": _kind(error),
            "message": error.message,
            "hint": error.hint,
            "problems": [
                {"where": one.where, "what": one.what, "hint": one.hint} for one in _problems(error)
            ],
            "exit_code": int(error.exit_code),
        }
    }


def end_document(kind: str, message: str, code: ExitCode) -> dict[str, object]:
    """Return an end that is no ``ImgcacheError``, a ``Bug`` or ``Interrupted``, in the same shape."""
    detail: dict[str, object] = {
        "kind": kind,
        "message": message,
        "hint": None,
        "problems": [],
        "exit_code": int(code),
    }
    return {"error": detail}


def say(lines: list[str], stream: TextIO | None, document: dict[str, object] | None = None) -> None:
    """Write lines, and the document as the last one; quietly nothing when nobody reads any more."""
    if stream is None:
        return
    last = [json_text(document, indent=None)] if document else []
    try:
        stream.write(fit("".join(f"{line}\n" for line in [*lines, *last]), stream))
        stream.flush()
    except (OSError, ValueError):
        discard(stream)


def _kind(error: ImgcacheError) -> str:
    """Return the kind as ``errors`` has it, the closed list, also of kinds that an operation refines."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == ImgcacheError.__module__)
    return next(kinds).__name__.removesuffix("Error")


def _problems(error: ImgcacheError) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, ConfigError | ImageProblemsError) else ()


def _problem_lines(problem: Problem) -> list[str]:
    lines = [f"{printable(problem.where)}: {printable(problem.what, _LIMIT)}"]
    if problem.hint:
        lines.append(f"  hint: {printable(problem.hint, _LIMIT)}")
    return lines
