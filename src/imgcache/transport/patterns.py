"""OpenSSH's patterns: ``*`` and ``?``, and ``!`` before one that must not match.

Source: ssh_config(5), "PATTERNS".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the patterns and none of the negated ones; by case."""
    found = False
    for pattern in patterns:
        negated = pattern.startswith("!")
        if _compiled(pattern.removeprefix("!")).fullmatch(name):
            if negated:
                return False
            found = True
    return found


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Runs of stars are one: otherwise a pattern could take very long.
    text = re.escape(re.sub(r"\*+", "*", pattern)).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(text, re.DOTALL)
