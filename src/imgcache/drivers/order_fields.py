"""What a helper is told with an order that brings bytes: see ``docs/helper-protocol.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgcache.drivers.feed import Listener, Ticket
    from imgcache.model import Image

DEFAULT_LIMITS: dict[str, object] = {
    "stall_s": 30,
    "min_rate_window_s": 60,
    "connect_s": 10,
    "max_virtual_size": 2 << 40,
    "lock_wait_s": 60,
    "alive_s": 15,
}


def image_fields(image: Image) -> dict[str, object]:
    """Return what a helper is told about an image."""
    return {
        "id": image.id,
        "name": image.name,
        "size": image.size_bytes,
        "disk_format": image.disk_format,
        "virtual_size": image.virtual_size_bytes,
        "digest": {"algo": image.digest.algo, "value": image.digest.value},
    }


def source_fields(ticket: Ticket) -> dict[str, object]:
    """Return what a helper is told about a source; the only place where its secret is revealed."""
    access = ticket.access
    if access is None:
        return {"kind": ticket.kind.value}
    return {
        "kind": ticket.kind.value,
        "url": access.url,
        "token": access.token.reveal() if access.token else None,
        "ca_pem": access.ca_pem,
        "insecure": access.insecure,
    }


def listener_fields(listener: Listener) -> dict[str, object]:
    """Return what the order ``relay`` takes."""
    return {
        "address": listener.address,
        "ports": list(listener.ports) if listener.ports else None,
        "cert_pem": listener.cert_pem,
        "key_pem": listener.key_pem.reveal() if listener.key_pem else None,
        "max_readers": listener.max_readers,
        "alive_s": DEFAULT_LIMITS["alive_s"],
    }
