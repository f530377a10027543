"""Rates of data as people write them: links in bits, disks and files in bytes."""

from __future__ import annotations

import re

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(bit|b)?(?:/s|ps)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
#: Faster than any link; beyond it, a slip of the pen.
_MAX_BYTES_PER_S = 10**15
#: Slower than any link that images should go over.
_MIN_BYTES_PER_S = 1000


def bytes_per_s(text: str) -> int:
    """Return the bytes per second of ``100Mbit/s``, ``2.5 Gbit/s``, ``50M``, ``50MB/s`` or ``48MiB/s``.

    ``bit`` counts bits, everything else bytes; ``Ki``, ``Mi`` … are binary, ``k``, ``M`` … decimal.
    ``Mb/s`` and ``Mbps`` are refused: some write them for bits, others for bytes.

    Raises:
        ValueError: it is none of these, or absurd; the message begins with "is".
    """
    found = _RATE.fullmatch(text.strip())
    if not found or _is_ambiguous(text, found):
        message = "is not a rate such as 100Mbit/s (bits) or 50MB/s (bytes)"
        raise ValueError(message)
    number, prefix, binary, unit = found.groups()
    if binary and not prefix:
        message = "is not a rate such as 100Mbit/s (bits) or 50MB/s (bytes)"
        raise ValueError(message)
    base = 1024 if binary else 1000
    value = float(number) * base ** _POWERS[prefix.lower()]
    if (unit or "").lower() == "bit":
        value /= 8
    if not _MIN_BYTES_PER_S <= value <= _MAX_BYTES_PER_S:
        message = "is out of bounds; give 8 kbit/s to 8000 Tbit/s"
        raise ValueError(message)
    return int(value)


def _is_ambiguous(text: str, found: re.Match[str]) -> bool:
    bits_or_bytes = found[4] == "b" or text.strip().lower().endswith("ps")
    return bits_or_bytes and (found[4] or "").lower() != "bit"
