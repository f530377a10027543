"""HTTP to OpenStack services: bounded repetition, no redirects, and the one place that maps errors."""

from __future__ import annotations

import json
import random
import re
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.request import getproxies

import requests
import urllib3
from keystoneauth1 import exceptions as ksa
from keystoneauth1.session import Session

from imgcache import __version__
from imgcache.errors import (
    AuthenticationError,
    ImageServiceError,
    ImageServiceUnreachableError,
)
from imgcache.images.reasons import plain_reason
from imgcache.text import printable, without_user_info

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from keystoneauth1.plugin import BaseAuthPlugin

T = TypeVar("T")

#: For connecting, and for each wait for bytes: idle times, not totals.
TIMEOUTS_S = (10.0, 60.0)
#: Keystoneauth's own requests (tokens, discovery) take one number for both.
AUTH_TIMEOUT_S = 30.0
ATTEMPTS = 4
_FIRST_DELAY_S = 0.4
_MAX_DELAY_S = 10.0
_REPEATED_STATUSES = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 305, 307, 308})
_MAX_ERROR_BODY = 16 * 1024
_POOL_SIZE = 64
_TAGS = re.compile(r"<title>.*?</title>|<h1>.*?</h1>|<[^>]*>", re.DOTALL | re.IGNORECASE)

TLS_HINT = (
    "name the CA with OS_CACERT or cacert: in clouds.yaml; check the certificate's name and dates,"
    " and this machine's clock"
)
_PROXY_HINT = (
    "; no proxy is asked over http://, since it would read the password and the token: use https://"
)


class _HttpSession(requests.Session):
    """Asks the environment's proxies for https:// alone, where they see nothing but the host's name."""

    def merge_environment_settings(self, url: Any, *settings: Any, **more: Any) -> Any:
        merged = super().merge_environment_settings(url, *settings, **more)
        if not str(url).lower().startswith("https://"):
            merged["proxies"] = {}
        return merged


def open_session(
    auth: BaseAuthPlugin, *, verify: bool | str, cert: str | tuple[str, str] | None = None
) -> Session:
    """Return a session that several threads may use, that follows no redirect and reads no netrc.

    Proxies of the environment (``https_proxy``, ``no_proxy`` …) hold for ``https://`` only.
    """
    if verify is False:
        # told once as a warning of ours, not at every request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    http = _HttpSession()
    for scheme in ("http://", "https://"):
        http.mount(
            scheme, requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=_POOL_SIZE)
        )
    # With an auth callable of our own, requests does not look for the host in ~/.netrc.
    http.auth = _unchanged
    return Session(
        auth=auth,
        session=http,
        verify=verify,
        cert=cert,
        timeout=AUTH_TIMEOUT_S,
        redirect=False,
        app_name="imgcache",
        app_version=__version__,
    )


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class ServiceClient:
    """Requests to one service. Thread safe."""

    def __init__(
        self, session: Session, label: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._session = session
        self._label = label
        self._sleep = sleep

    def request(
        self,
        method: str,
        url: str,
        *,
        ok: Collection[int] = (200,),
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        stream: bool = False,
        repeat: bool = True,
    ) -> requests.Response:
        """Make a request and return its answer, whose status is in ``ok``.

        With ``token`` that token is sent, otherwise the session's own. Nothing is logged, since bodies
        and headers hold secrets. ``stream``: the caller closes the answer.

        Raises:
            AuthenticationError: 401, or Keystone makes no token.
            ImageServiceUnreachableError: no connection, no trust, or only 5xx after all attempts.
            ImageServiceError: any other status.
        """
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if token is not None:
            sent["X-Auth-Token"] = token
        send = partial(
            self._session.request,
            url,
            method,
            headers=sent,
            params=params or {},
            json=json,
            stream=stream,
            timeout=TIMEOUTS_S,
            authenticated=token is None,
            raise_exc=False,
            redirect=False,
            connect_retries=0,
            log=False,
        )
        return repeated(
            partial(_checked, send, ok, self._label),
            self._label,
            attempts=ATTEMPTS if repeat else 1,
            sleep=self._sleep,
        )


class _BusyError(Exception):
    """A status that may be another one soon."""

    def __init__(self, error: ImageServiceError, retry_after: str | None) -> None:
        super().__init__()
        self.error = error
        self.retry_after = retry_after


def _checked(
    send: Callable[[], requests.Response], ok: Collection[int], label: str
) -> requests.Response:
    answer = send()
    if answer.status_code in ok:
        return answer
    with answer:
        error = error_from_answer(answer, label)
    if answer.status_code in _REPEATED_STATUSES:
        raise _BusyError(error, answer.headers.get("Retry-After"))
    raise error


def repeated(
    call: Callable[[], T],
    label: str,
    *,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return what ``call`` returns; repeats it, with growing pauses, when the fault may pass.

    Keystone's answers too are worth repeating: its server may close a kept connection just when the
    next request is sent, and nobody below repeats a POST.

    Raises:
        ImageServiceError: or a subclass, for every error of keystoneauth1 and requests.
    """
    for attempt in range(1, attempts):
        try:
            with _translated_but_passing(label):
                return call()
        except _BusyError as busy:
            sleep(_delay(attempt, busy.retry_after))
        except (ksa.RetriableConnectionFailure, ksa.HttpServerError):
            sleep(_delay(attempt, None))
    try:
        with translated(label):
            return call()
    except _BusyError as busy:
        raise busy.error from None


@contextmanager
def _translated_but_passing(label: str) -> Iterator[None]:
    try:
        yield
    except (ksa.RetriableConnectionFailure, ksa.HttpServerError):
        raise
    except (ksa.ClientException, requests.RequestException) as error:
        raise error_from(error, label) from error


def _delay(attempt: int, retry_after: str | None) -> float:
    delay: float = _FIRST_DELAY_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        # capped: a server may ask for years
        delay = max(delay, min(float(retry_after[:6]), _MAX_DELAY_S))
    return min(delay, _MAX_DELAY_S)


# --------------------------------------------------------------------------------------------- errors


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Turn errors of keystoneauth1 and requests inside the block into ours."""
    try:
        yield
    except (ksa.ClientException, requests.RequestException) as error:
        raise error_from(error, label) from error


def error_from(error: Exception, label: str) -> ImageServiceError:  # noqa: PLR0911 - a table
    """Return our error for one of keystoneauth1 or requests; the most telling type wins."""
    text = printable(without_user_info(plain_reason(error)), 500)
    match error:
        case ksa.SSLError() | requests.exceptions.SSLError():
            return ImageServiceUnreachableError(f"{label}: no trust (TLS): {text}", hint=TLS_HINT)
        case ksa.MissingAuthMethods() | ksa.AuthorizationFailure() | ksa.AuthPluginException():
            return AuthenticationError(f"{label}: cannot authenticate: {text}")
        case ksa.EmptyCatalog():
            hint = "the token has no project scope, and Glance needs one: set OS_PROJECT_NAME"
            return AuthenticationError(f"{label}: {text}", hint=hint)
        case ksa.EndpointNotFound():
            hint = "check OS_REGION_NAME and OS_INTERFACE; openstack catalog show image lists what there is"
            return ImageServiceError(
                f"{label}: the catalogue has no such endpoint: {text}", hint=hint
            )
        case ksa.HttpError() if error.response is not None:
            return error_from_answer(error.response, "Keystone")
        case ksa.InvalidResponse() if getattr(error.response, "status_code", 0) in _REDIRECTS:
            return error_from_answer(error.response, "Keystone")
        case ksa.DiscoveryFailure():
            hint = f"check OS_AUTH_URL; when it is https: {TLS_HINT}"
            return ImageServiceUnreachableError(f"{label}: {text}", hint=hint)
        case ksa.ConnectionError() | requests.ConnectionError() | requests.Timeout():
            hint = "check the URL, the network and whether the service runs"
            if "http://" in text and getproxies().keys() & {"http", "all"}:
                hint += _PROXY_HINT
            return ImageServiceUnreachableError(f"{label}: {text}", hint=hint)
        case _:
            return ImageServiceError(f"{label}: {text}")


def error_from_answer(answer: requests.Response, label: str) -> ImageServiceError:
    """Return our error for an answer with a status that is of no use."""
    status = answer.status_code
    detail = answer_detail(answer)
    message = f"{label} answered {status}{f': {detail}' if detail else ''}{request_id(answer)}"
    if status in _REDIRECTS:
        target = printable(without_user_info(answer.headers.get("Location", "nowhere")))
        message = (
            f"{label} redirects to {target}, which is not followed: the token is for one place only"
        )
        return ImageServiceError(message, hint="correct the endpoint or auth URL")
    if status == 401:
        hint = "check who you are: openstack token issue"
        return AuthenticationError(message, hint=hint)
    if status == 403:
        hint = "the user needs the role member, or another that the policy names, on the project"
        return ImageServiceError(message, hint=hint)
    if status >= 500 or status == 429:
        return ImageServiceUnreachableError(message, hint="try again later; its log knows more")
    return ImageServiceError(message)


def request_id(answer: requests.Response) -> str:
    """Return `` (request req-…)`` for the end of a message, or nothing."""
    value = answer.headers.get("x-openstack-request-id")
    return f" (request {printable(value, 80)})" if value else ""


def answer_detail(answer: requests.Response) -> str:
    """Return what an error's body says, as one safe line, possibly empty.

    Source: glance answers HTML with the text after the heading, keystone ``{"error": {"message"}}``.
    """
    try:
        body = next(answer.iter_content(_MAX_ERROR_BODY), b"").decode("utf-8", "replace")
    except (requests.RequestException, RuntimeError):
        return ""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = _TAGS.sub(" ", body)
    return printable(without_user_info(" ".join(str(message).split())))
