"""An application credential made for one run: GET of exactly the run's files, until it expires.

Source: keystone ``api/users.py`` and ``application_credential/``; what was seen on a real one is in the tests
of this module. No secret is kept but in memory, and none is logged: Keystone answers the creation with the
secret in its body.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from keystoneauth1.identity.v3 import ApplicationCredential

from imgcache.errors import AuthenticationError, ImageServiceError
from imgcache.images.client import ServiceClient, answer_detail, repeated, request_id
from imgcache.model import Secret
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import requests
    from keystoneauth1.access.access import AccessInfo
    from keystoneauth1.session import Session

    from imgcache.images.cloud import Cloud

#: Ours are named ``imgcache-<run id>``; expired ones of this name are removed by the next run.
NAME_PREFIX = "imgcache-"
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


class CredentialRefusedError(ImageServiceError):
    """The cloud does not let this operator make or use such a credential; another way is needed."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token for hosts."""

    secret: Secret
    life_s: float
    """For how long it is valid, from now on."""


class CredentialMaker:
    """Makes, uses and removes the credentials of one run. Not thread safe."""

    def __init__(self, cloud: Cloud, access: AccessInfo, keystone_url: str) -> None:
        self._cloud = cloud
        self._client = ServiceClient(cloud.session, "Keystone")
        self._keystone_url = keystone_url
        self._user_url = f"{keystone_url}/users/{access.user_id}"
        self._made: list[dict[str, Any]] = []
        self._current: tuple[ApplicationCredential, datetime] | None = None
        self._server_ahead = timedelta()
        self._old_rules: frozenset[str] = frozenset()

    # ------------------------------------------------------------------------------------------ making

    def make(self, run_id: str, paths: Sequence[str], lifetime_s: float) -> None:
        """Make a credential for GET of these paths; a second one of the run gets a number.

        Raises:
            CredentialRefusedError: Keystone does not make one.
            ImageServiceUnreachableError: Keystone does not answer.
        """
        rules = [{"service": "image", "method": "GET", "path": path} for path in paths]
        if not rules:
            # to Keystone an empty list means: no restriction at all
            message = "refusing to make an application credential without access rules"
            raise ValueError(message)
        name = f"{NAME_PREFIX}{run_id}" + (f"-{len(self._made) + 1}" if self._made else "")
        ends_at = datetime.now(UTC) + self._server_ahead + timedelta(seconds=lifetime_s)
        secret = secrets.token_urlsafe(48)
        body = {
            "name": name,
            "description": "made by imgcache for one run; may be deleted",
            "secret": secret,
            "expires_at": ends_at.strftime(_TIME),
            "unrestricted": False,
            "access_rules": rules,
        }
        made = self._create(body)
        if {rule.get("path") for rule in _rules(made)} != set(paths):
            # A Keystone older than Train ignores what it does not know.
            message = "Keystone made the application credential without its access rules"
            raise CredentialRefusedError(message)
        plugin = ApplicationCredential(
            self._keystone_url,
            application_credential_id=str(made.get("id")),
            application_credential_secret=secret,
        )
        self._current = (plugin, ends_at)

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._call(
                "POST", "/application_credentials", {"application_credential": body}
            )
        except ImageServiceError:
            # An answer that got lost may have made one all the same.
            with contextlib.suppress(ImageServiceError):
                found = self._call("GET", "/application_credentials?name=" + str(body["name"]))
                self._made += _objects(found, "application_credentials")
            raise
        made = _json(answer).get("application_credential")
        if not isinstance(made, dict):
            message = "Keystone answered without an application credential"
            raise CredentialRefusedError(message)
        self._made.append(made)
        return made

    def ends_within(self, seconds: float) -> bool:
        """Tell whether the credential made last, and so every token of it, ends that soon."""
        if self._current is None:
            return True
        now = datetime.now(UTC) + self._server_ahead
        return self._current[1] - now < timedelta(seconds=seconds)

    def new_token(self) -> Token:
        """Return a new token of the credential made last.

        Raises:
            AuthenticationError: Keystone makes none.
            ImageServiceUnreachableError: Keystone does not answer.
        """
        if self._current is None:
            message = "no application credential was made"
            raise AuthenticationError(message)
        return new_token(self._current[0], self._cloud.session)

    # ---------------------------------------------------------------------------------------- removing

    def remove_stale(self) -> list[str]:
        """Remove what earlier runs left and what has expired; return warnings. Also learns the clock."""
        answer = self._call("GET", "/application_credentials")
        self._server_ahead = _ahead(answer)
        now = datetime.now(UTC) + self._server_ahead
        credentials = _objects(answer, "application_credentials")
        stale = [row for row in credentials if _is_ours(row) and _expired(row, now)]
        warnings = [warning for row in stale for warning in self._remove(row, _rule_ids(row))]
        rules = _objects(self._call("GET", "/access_rules"), "access_rules")
        self._old_rules = frozenset(str(rule.get("id")) for rule in rules)
        return warnings

    def remove_all(self) -> list[str]:
        """Remove all that was made: each credential, then its rules; return warnings."""
        made, self._made, self._current = self._made, [], None
        # A rule is shared by all credentials that have the same one: what was there before stays.
        return [
            warning
            for row in made
            for warning in self._remove(
                row, [rule for rule in _rule_ids(row) if rule not in self._old_rules]
            )
        ]

    def _remove(self, credential: dict[str, Any], rules: Sequence[str]) -> list[str]:
        name, ident = printable(str(credential.get("name"))), str(credential.get("id"))
        try:
            self._delete(f"/application_credentials/{ident}", ok=(204, 404))
        except ImageServiceError as error:
            return [
                f"the application credential {name} could not be removed ({error.message}); it expires by "
                f"itself, or: openstack application credential delete {printable(ident)}"
            ]
        warnings = []
        for rule in rules:
            try:
                # 403: another credential, that of a run at the same time, has the same rule
                self._delete(f"/access_rules/{rule}", ok=(204, 403, 404))
            except ImageServiceError as error:
                warnings.append(
                    f"an access rule of {name} could not be removed ({error.message}); it gives no "
                    f"access by itself; to remove it: openstack access rule delete {printable(rule)}"
                )
        return warnings

    def _delete(self, path: str, ok: tuple[int, ...]) -> None:
        self._client.request("DELETE", self._user_url + path, ok=ok).close()

    def _call(self, method: str, path: str, body: Any = None) -> requests.Response:
        ok = (200, 201, 400, 401, 403, 404, 409)
        answer = self._client.request(method, self._user_url + path, ok=ok, json=body)
        if answer.status_code >= 400:
            detail = answer_detail(answer)
            said = f"{answer.status_code}{f': {detail}' if detail else ''}{request_id(answer)}"
            message = f"Keystone answered {said}"
            raise CredentialRefusedError(message)
        return answer


def new_token(auth: Any, session: Session) -> Token:
    """Return a token that Keystone has issued just now.

    Raises:
        AuthenticationError: Keystone makes none.
        ImageServiceUnreachableError: Keystone does not answer.
    """
    auth.invalidate()
    access: AccessInfo = repeated(partial(auth.get_access, session), "Keystone")
    if not access.auth_token:
        message = "Keystone issued no token"
        raise AuthenticationError(message)
    life = timedelta(hours=1)
    if access.expires and access.issued:
        # both by Keystone's clock, so that ours does not matter
        life = access.expires - access.issued
    return Token(Secret(access.auth_token), life.total_seconds())


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError as error:
        message = f"Keystone answered no JSON{request_id(answer)}"
        raise CredentialRefusedError(message) from error
    return content if isinstance(content, dict) else {}


def _objects(answer: requests.Response, key: str) -> list[dict[str, Any]]:
    rows = _json(answer).get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _ahead(answer: requests.Response) -> timedelta:
    """Return how far Keystone's clock is ahead of ours."""
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")) - datetime.now(UTC)
    except (ValueError, TypeError):
        return timedelta()


def _is_ours(credential: dict[str, Any]) -> bool:
    return str(credential.get("name", "")).startswith(NAME_PREFIX)


def _expired(credential: dict[str, Any], now: datetime) -> bool:
    try:
        ends_at = datetime.fromisoformat(str(credential.get("expires_at")))
    except ValueError:
        return False
    return (ends_at if ends_at.tzinfo else ends_at.replace(tzinfo=UTC)) < now


def _rules(credential: dict[str, Any]) -> list[dict[str, Any]]:
    rules = credential.get("access_rules")
    return [rule for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []


def _rule_ids(credential: dict[str, Any]) -> list[str]:
    return [str(rule["id"]) for rule in _rules(credential) if rule.get("id")]
