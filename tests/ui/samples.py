"""Values that many tests of the display use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.distribution import PrecacheReport
from imgcache.model import Digest, Image, ImageId
from imgcache.plan import Outcome, OutcomeWord, SourceKind

if TYPE_CHECKING:
    from imgcache.errors import ErrorCode

#: ANSI colour, OSC title, CR overwrite, bidi, line separator, C1, DEL, NUL, newline, piled-up marks.
HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07\rover\u202ebidi\u2028line\x9bc1\x7fdel\x00nul\nnext"
    + "e"
    + "\u0301" * 50
)
#: What of it must never be in any output, save for newlines that end lines.
FORBIDDEN = "\x1b\x07\r\u202e\u2028\x9b\x7f\x00"

IMAGE = Image(
    id=ImageId("6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11"),
    name="debian-12",
    size_bytes=1_250_000_000,
    disk_format="qcow2",
    container_format="bare",
    digest=Digest("sha512", "ab" * 64),
)


def outcome(
    host: str,
    word: OutcomeWord = OutcomeWord.CACHED,
    *,
    code: ErrorCode | None = None,
    reason: str | None = None,
    image_name: str = IMAGE.name,
    bytes_fetched: int = 0,
) -> Outcome:
    """Return an outcome of IMAGE."""
    return Outcome(
        host=host,
        aggregate="edge-1",
        cell=None,
        image_id=IMAGE.id,
        image_name=image_name,
        outcome=word,
        code=code,
        reason=reason,
        source=SourceKind.SERVICE if bytes_fetched else None,
        bytes_fetched=bytes_fetched,
        duration_s=1.23456,
    )


def report(*outcomes: Outcome, interrupted: int | None = None) -> PrecacheReport:
    """Return a report of these outcomes."""
    return PrecacheReport(
        run_id="20261121T080000Z-0a1b2c3d",
        command="precache",
        started_at=datetime(2026, 11, 21, 8, 0, 0, tzinfo=UTC),
        finished_at=datetime(2026, 11, 21, 8, 1, 2, 345_678, tzinfo=UTC),
        images=(IMAGE,),
        outcomes=outcomes,
        interrupted=interrupted,
    )


def assert_clean(text: str, *, allowed: str = "\n") -> None:
    """Fail when the text holds anything that a terminal or a viewer would act on."""
    bad = sorted(
        {
            repr(char)
            for char in text
            if (ord(char) < 32 or char in FORBIDDEN) and char not in allowed
        }
    )
    assert not bad, f"{bad} in {text!r}"
    assert "\u0301" * 5 not in text
