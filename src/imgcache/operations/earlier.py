"""What failed in an earlier run, read from the result it has written (``-f json``)."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any, NoReturn

from imgcache.errors import ErrorCode, UsageError
from imgcache.plan import FAILED_WORDS, OutcomeWord
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: The result of 100,000 hosts with several images is smaller.
MAX_FILE_BYTES = 256 * 1024 * 1024
#: Skipped by the run itself, not by the operator's wish or because nothing was to be done.
_NOT_TRIED = frozenset(
    {ErrorCode.HALTED, ErrorCode.WINDOW, ErrorCode.DEADLINE, ErrorCode.INTERRUPTED}
)
_HINT = "name a file that 'imgcache precache -f json' has written, without --column"


def read_failed(path: Path) -> Mapping[str, frozenset[str]]:
    """Return host name -> ids of the images that failed there, or were not begun; at least one.

    Raises:
        UsageError: it cannot be read, is no such result, or nothing has failed.
    """
    document = _load(path)
    if not isinstance(document, dict) or document.get("command") != "precache":
        _refuse(path, "is not the result of a precache run")
    rows = document.get("outcomes")
    if not isinstance(rows, list):
        _refuse(path, "has no list of outcomes")
    found: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        host, image_id, failed = _item(path, number, row)
        if failed:
            found.setdefault(host, set()).add(image_id)
    if not found:
        _refuse(path, "nothing has failed there", "there is nothing to do")
    return {host: frozenset(ids) for host, ids in found.items()}


def _item(path: Path, number: int, row: object) -> tuple[str, str, bool]:
    values: list[Any] = [None] * 4
    if isinstance(row, dict):
        values = [row.get(key) for key in ("host", "image_id", "outcome", "code")]
    host, image_id, outcome, code = values
    texts = all(isinstance(one, str) and one for one in (host, image_id, outcome))
    if not texts or outcome not in set(OutcomeWord) or not isinstance(code, str | None):
        _refuse(path, f"outcomes[{number}] is not an outcome")
    failed = outcome in FAILED_WORDS
    not_tried = outcome == OutcomeWord.SKIPPED and code in _NOT_TRIED
    return host, image_id, failed or not_tried


def _load(path: Path) -> object:
    try:
        # Non-blocking, so that a fifo put there cannot hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                _refuse(path, "is not a regular file")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        _refuse(path, f"cannot be read: {exc.strerror or exc}")
    if len(content) > MAX_FILE_BYTES:
        _refuse(path, f"is larger than {MAX_FILE_BYTES // 1024**2} MiB")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as exc:
        what = exc.msg if isinstance(exc, json.JSONDecodeError) else "too deep, or not UTF-8"
        _refuse(path, f"is not JSON: {what}")


def _refuse(path: Path, what: str, hint: str = _HINT) -> NoReturn:
    message = f"--limit-failed: {printable(str(path))}: {what}"
    raise UsageError(message, hint=hint)
