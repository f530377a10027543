"""What cannot be measured here is told, and is no failure: the next script has its turn."""

from __future__ import annotations

import sys
from typing import NoReturn


def skip(reason: str) -> NoReturn:
    """End the script in good order."""
    sys.stderr.write(f"skipped: {reason}\n")
    sys.exit(0)
