"""A cloud as one operator uses it: a session, and where its image service is."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from keystoneauth1.identity.base import BaseIdentityPlugin

from imgcache.errors import ImageServiceError
from imgcache.images.client import repeated
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from keystoneauth1.access.access import AccessInfo
    from keystoneauth1.plugin import BaseAuthPlugin
    from keystoneauth1.session import Session

#: A frame for a host holds 64 KiB; a private CA takes 2, a whole system's bundle 200.
MAX_CA_BYTES = 32 * 1024
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_VERSION = re.compile(r"/v[0-9]+(\.[0-9]+)?$", re.ASCII)


@dataclass(slots=True, repr=False)
class Cloud:
    """A cloud as one operator uses it. Nothing is asked of the network before it is needed."""

    session: Session
    kind: Literal["identity", "token", "none"]
    """Keystone; a fixed token for a fixed endpoint; no authentication."""
    new_auth: Callable[[], BaseAuthPlugin]
    """Makes a plugin of the same operator that shares no token with the session's."""
    override: str | None
    interface: str | list[str]
    region: str | None
    auth_url: str | None
    insecure: bool
    ca_pem: str | None = None
    """Certificates for hosts to trust, at most ``MAX_CA_BYTES``."""
    ca_problem: str | None = None
    """Why ``ca_pem`` is None although a CA was named."""
    notes: tuple[str, ...] = ()
    """What the operator should know about how it was found."""
    _known: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def image_endpoint(self, interface: str | None = None) -> str:
        """Return the image service's URL without ``/v2`` and trailing slash.

        ``interface`` asks for that one of the catalogue, whatever endpoint was named.

        Raises:
            ImageServiceError: or a subclass: not in the catalogue, no token, no answer.
        """
        key = interface or ""
        with self._lock:
            if key not in self._known:
                self._known[key] = service_root(self._find(interface))
            return self._known[key]

    def _find(self, interface: str | None) -> str:
        if self.override and interface is None:
            return self.override
        find = partial(
            self.session.get_endpoint,
            service_type="image",
            interface=interface or self.interface,
            region_name=self.region,
            skip_discovery=True,
        )
        label = f"Keystone at {printable(self.auth_url or '?')}"
        try:
            url = repeated(find, label)
        except ValueError as error:
            # Said without its text, which may repeat the URL.
            message = (
                f"{label}: the image service's endpoint in the catalogue is no http or https URL"
            )
            hint = "correct the catalogue, or give endpoint: or OS_IMAGE_ENDPOINT_OVERRIDE"
            raise ImageServiceError(message, hint=hint) from error
        if not url:
            place = f"region {self.region or 'any'}, interface {interface or self.interface}"
            message = f"Keystone's catalogue has no image service ({place})"
            hint = "check OS_REGION_NAME and OS_INTERFACE, and that the token has a project scope"
            raise ImageServiceError(message, hint=hint)
        return str(url)

    def access(self) -> AccessInfo | None:
        """Return what the session's own token is and may; None without Keystone."""
        auth = self.session.auth
        if not isinstance(auth, BaseIdentityPlugin):
            return None
        label = f"Keystone at {printable(self.auth_url or '?')}"
        return repeated(partial(auth.get_access, self.session), label)

    def describe(self) -> str:
        """Return one line that names it; asks nothing of the network."""
        url = self._known.get("") or self.override
        region = f" (region {printable(self.region)})" if self.region else ""
        return (
            f"Glance at {printable(url)}{region}"
            if url
            else f"Glance of the cloud at {printable(self.auth_url or '?')}{region}"
        )


def service_root(url: str) -> str:
    """Return an image endpoint without version and trailing slash.

    Raises:
        ImageServiceError: it is no plain http or https URL.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, good = urlsplit(""), False
    if "@" in url or parts.query or parts.fragment:
        # Said without the URL: it may hold a password.
        place = f" at {printable(parts.hostname)}" if parts.hostname and "@" in parts.netloc else ""
        message = f"the image service's endpoint{place} has a user, query or fragment"
        raise ImageServiceError(message, hint="give scheme, host, port and path only")
    if not good:
        message = f"the image service's endpoint {printable(url)} is no http or https URL"
        raise ImageServiceError(
            message, hint="correct the catalogue, endpoint: or OS_IMAGE_ENDPOINT_OVERRIDE"
        )
    return _VERSION.sub("", url.rstrip("/")).rstrip("/")


def read_ca(path: str) -> tuple[str | None, str | None]:
    """Return the certificates in a CA file as PEM, and nothing else of it; or None and why not."""
    if Path(path).is_dir():
        return None, f"the CA {path} is a folder"
    try:
        text = Path(path).read_text(encoding="latin-1")
    except OSError as error:
        return None, f"the CA file {path} cannot be read: {error.strerror}"
    pem = "\n".join(_CERTIFICATE.findall(text)) + "\n"
    if len(pem) > MAX_CA_BYTES:
        return None, f"the CA file {path} is a large bundle"
    return (pem, None) if pem.strip() else (None, f"the CA file {path} holds no certificate")
