"""The secrets with which hosts read from each other: one key per transfer, one ticket per reader."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from imgcache.model import Secret

_KEY_BYTES = 32
_NONCE_BYTES = 16


class RelayKey:
    """The key of one file that one host offers. It does not show itself in reprs, logs or tracebacks."""

    __slots__ = ("_key",)

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)

    @property
    def hex(self) -> Secret:
        """The key as the orders ``fetch`` and ``serve`` bring it to the host that offers the file."""
        return Secret(self._key.hex())

    def ticket(self, name: str) -> Secret:
        """Return a new ticket, which lets one reader read one file: the token of a source ``relay``.

        It tells nothing of the key, and the host that offers the file knows it without being told.
        """
        nonce = secrets.token_hex(_NONCE_BYTES)
        proof = hmac.new(self._key, f"{name}/{nonce}".encode(), hashlib.sha256).hexdigest()
        return Secret(f"{nonce}.{proof}")

    def __repr__(self) -> str:
        return "<relay key>"
