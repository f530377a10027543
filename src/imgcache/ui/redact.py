"""The last net under secrets: what goes into a traceback or the log file passes it.

Secrets have no repr and are in no message of ours. Messages of libraries are not ours, though: they
are shown for bugs only, and then without anything that looks like a secret or is known to be one.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from imgcache.text import without_user_info

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECRET_VARIABLES = (
    "OS_PASSWORD",
    "OS_TOKEN",
    "OS_AUTH_TOKEN",
    "OS_APPLICATION_CREDENTIAL_SECRET",
    "OS_PASSCODE",
    "OS_CLIENT_SECRET",
    "OS_ACCESS_TOKEN",
)
#: Shorter values would blot out harmless words.
_SHORTEST = 4
_PATTERNS = (
    # Fernet tokens, as Keystone makes them: version byte 0x80 and a time stamp give this beginning.
    (re.compile(r"gAAAAA[\w-]{20,}=*"), "<secret>"),
    (
        re.compile(
            r"(?i)((?:x-auth-token|x-subject-token|authorization|password|passcode|secret|token)['\"]?\s*[:=]\s*)"
            r"(?:b?(['\"])(?:(?!\2).)*\2|(?:Bearer\s+|Basic\s+)?[^\s,;}'\"]+)"
        ),
        r"\1<secret>",
    ),
)


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return ``text`` without secrets of the environment and without what looks like one."""
    for name in _SECRET_VARIABLES:
        value = environ.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, "<secret>")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return without_user_info(text)
