"""Access for hosts to the images of one run: the narrowest token that the cloud allows.

Best first:

- an application credential made for the run: GET of exactly these files, an expiry, removed at the end;
- a fresh token of the operator's own, where the cloud does not allow the first;
- the token that was given, where no other can be had (``admin_token``); none for an open Glance.

Secrets stay in memory.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keystoneauth1 import plugin
from keystoneauth1.identity.base import BaseIdentityPlugin

from imgcache.errors import AuthenticationError, ImageServiceError
from imgcache.images.client import ServiceClient, repeated
from imgcache.images.cloud import service_root
from imgcache.images.credential import (
    CredentialMaker,
    CredentialRefusedError,
    Token,
    new_token,
)
from imgcache.images.glance import probe_file
from imgcache.model import Secret, ServiceAccess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imgcache.images.cloud import Cloud
    from imgcache.model import Image

#: A token that expires sooner is renewed before it is handed out.
MIN_LIFE_S = 120.0
#: Between two renewals: hosts that refuse every token must not make us flood Keystone.
MIN_RENEWAL_INTERVAL_S = 10.0


class GlanceHostAccess:
    """See ``HostAccess``. Its warnings are complete when the context of ``open_host_access`` is left."""

    def __init__(
        self,
        cloud: Cloud,
        host_url: str,
        warnings: list[str],
        first: Token | None,
        source: Callable[[], Token] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cloud = cloud
        self._host_url = host_url
        self._warnings = warnings
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._token = first
        self._made_at = clock()

    @property
    def warnings(self) -> tuple[str, ...]:
        """See ``HostAccess.warnings``."""
        return tuple(self._warnings)

    def for_image(self, image: Image, *, refused: Secret | None = None) -> ServiceAccess:
        """See ``HostAccess.for_image``."""
        with self._lock:
            token = self._fresh(refused)
        return ServiceAccess(
            url=f"{self._host_url}/v2/images/{image.id}/file",
            token=token.secret if token else None,
            ca_pem=self._cloud.ca_pem,
            insecure=self._cloud.insecure,
        )

    def _fresh(self, refused: Secret | None) -> Token | None:
        token, age = self._token, self._clock() - self._made_at
        if token is None:
            if refused is None:
                return None
            message = "Glance refuses hosts that have no token"
            raise AuthenticationError(
                message, hint="authenticate with Keystone, or use --source push"
            )
        is_current = refused is not None and refused.reveal() == token.secret.reveal()
        if is_current and (self._source is None or age < MIN_RENEWAL_INTERVAL_S):
            what = (
                "that was given, and no other can be had" if self._source is None else "that is new"
            )
            message = f"Glance refuses hosts a token {what}"
            raise AuthenticationError(message, hint="its log says why; or use --source push")
        expires = token.life_s - age < MIN_LIFE_S and age >= MIN_RENEWAL_INTERVAL_S
        if self._source is not None and (is_current or expires):
            self._token = self._source()
            self._made_at = self._clock()
        return self._token


@contextmanager
def open_host_access(
    cloud: Cloud,
    client: ServiceClient,
    host_url: str,
    images: Sequence[Image],
    *,
    run_id: str,
    lifetime_s: float,
) -> Iterator[GlanceHostAccess]:
    """Give hosts access; see ``ImageService.host_access``.

    Raises:
        AuthenticationError: no token can be had.
        ImageServiceUnreachableError: Keystone or Glance does not answer.
    """
    if not images:
        message = "access for hosts to no image at all"
        raise ValueError(message)
    host_url = service_root(host_url)
    warnings = _tls_warnings(cloud)
    with ExitStack() as stack:
        if cloud.kind == "none":
            first, source = None, None
        elif cloud.kind == "token":
            first, source = _given(cloud, warnings), None
        else:
            wanted = _Wanted(images, _paths(cloud, host_url, images), run_id, lifetime_s)
            first, source = _from_keystone(cloud, client, wanted, warnings, stack)
        yield GlanceHostAccess(cloud, host_url, warnings, first, source)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a credential for the run must allow."""

    images: Sequence[Image]
    paths: tuple[str, ...]
    run_id: str
    lifetime_s: float


def _tls_warnings(cloud: Cloud) -> list[str]:
    warnings = []
    if cloud.insecure:
        warnings.append(
            "certificates are not checked, neither here nor by hosts, as was asked for (insecure)"
        )
    if cloud.ca_problem:
        warnings.append(
            f"{cloud.ca_problem}: hosts use the certificates that they trust themselves"
        )
    return warnings


def _given(cloud: Cloud, warnings: list[str]) -> Token | None:
    given = cloud.session.get_token()
    warnings.append(
        "hosts get the very token that was given, with all its rights: it cannot be narrowed"
    )
    return Token(Secret(given), math.inf) if given else None


def _paths(cloud: Cloud, host_url: str, images: Sequence[Image]) -> tuple[str, ...]:
    """Return the files' paths as Glance may see them: with and without the prefix that a proxy may take off.

    Source: keystonemiddleware ``auth_token/__init__.py``: rules are matched with ``request.path``.
    """
    prefixes = dict.fromkeys(["", urlsplit(cloud.image_endpoint()).path, urlsplit(host_url).path])
    return tuple(f"{prefix}/v2/images/{image.id}/file" for image in images for prefix in prefixes)


def _from_keystone(
    cloud: Cloud,
    client: ServiceClient,
    wanted: _Wanted,
    warnings: list[str],
    stack: ExitStack,
) -> tuple[Token, Callable[[], Token]]:
    maker: CredentialMaker | None = None
    access = cloud.access()
    try:
        url = _keystone_url(cloud)
        if access is None or url is None:
            message = "Keystone v3 was not found"
            raise CredentialRefusedError(message)
        maker = CredentialMaker(cloud, access, url)
        stack.callback(lambda: warnings.extend(maker.remove_all()))
        warnings += maker.remove_stale()
        source = partial(_credential_token, maker, wanted)
        token = source()
        _try_out(cloud, client, wanted.images, token)
    except (CredentialRefusedError, AuthenticationError) as refusal:
        if maker is not None:
            warnings += maker.remove_all()
        warnings.append(
            f"hosts get a token of your own, which may do all that you may until it expires, since no "
            f"application credential could be used for this run: {refusal.message}"
        )
    else:
        return token, source
    if access is not None and "admin" in {str(role).lower() for role in access.role_names or ()}:
        warnings.append(
            "that token has the role admin: any host that gets it may do anything; see --source push"
        )
    return _own(cloud, stack, warnings)


def _keystone_url(cloud: Cloud) -> str | None:
    auth = cloud.session.auth
    if not isinstance(auth, BaseIdentityPlugin):
        return None
    where: Any = plugin.AUTH_INTERFACE
    find = partial(auth.get_endpoint, cloud.session, interface=where, version=(3, 0))
    url = repeated(find, "Keystone")
    return str(url).rstrip("/") if url else None


def _credential_token(maker: CredentialMaker, wanted: _Wanted) -> Token:
    # A run may outlast its credential, and no token outlasts the credential it is from.
    if maker.ends_within(MIN_LIFE_S):
        maker.make(wanted.run_id, wanted.paths, wanted.lifetime_s)
    return maker.new_token()


def _try_out(cloud: Cloud, client: ServiceClient, images: Sequence[Image], token: Token) -> None:
    for image in images:
        url = f"{cloud.image_endpoint()}/v2/images/{image.id}/file"
        probe = probe_file(client, url, token.secret.reveal())
        if not probe.readable:
            said = f"Glance answers {probe.status} to its token{probe.detail}"
            cause = (
                "; is service_type = image set under [keystone_authtoken]?"
                if probe.status == 401
                else ""
            )
            raise CredentialRefusedError(said + cause)


def _own(cloud: Cloud, stack: ExitStack, warnings: list[str]) -> tuple[Token, Callable[[], Token]]:
    """Return a token of the operator's own that nobody else has yet; made by a plugin of its own."""
    auth = cloud.new_auth()
    if not isinstance(auth, BaseIdentityPlugin):
        message = "no new token can be had"
        raise AuthenticationError(message, hint="use --source push")
    made: list[Token] = []

    def source() -> Token:
        made.append(new_token(auth, cloud.session))
        return made[-1]

    stack.callback(lambda: warnings.extend(_revoke(cloud, auth, made)))
    return source(), source


def _revoke(cloud: Cloud, auth: BaseIdentityPlugin, tokens: Sequence[Token]) -> list[str]:
    client = ServiceClient(cloud.session, "Keystone")
    warnings = []
    for token in tokens:
        headers = {"X-Subject-Token": token.secret.reveal()}
        try:
            url = _keystone_url(cloud)
            # 401, 403, 404: it is gone already, or this operator may not revoke it
            client.request(
                "DELETE", f"{url}/auth/tokens", ok=(204, 401, 403, 404), headers=headers
            ).close()
        except ImageServiceError as error:
            warnings.append(f"a token that hosts got could not be revoked: {error.message}")
    return warnings
