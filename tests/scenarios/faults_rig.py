"""Whole runs in the test's own process: real engine, real driver, real helper, a server that breaks.

The image service is one more implementation of ``ImageService``: hosts download from a scripted server,
and pushes read from it with the Python library's own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imgcache.errors import ErrorCode, ImageServiceError, ImageServiceUnreachableError
from imgcache.events import ItemRetry, Notice
from imgcache.images.base import ImageService
from imgcache.model import Digest, Host, HostSettings, Image, ImageId, Secret, ServiceAccess
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.interrupt import Interrupt
from imgcache.operations.precache import _precache_host
from imgcache.operations.rollout import Rollout
from imgcache.operations.sources import RunSources, SourcePolicy, source_kinds
from imgcache.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imgcache.events import Event
    from imgcache.operations.rollout import Waves
    from imgcache.operations.sites import Sites
    from imgcache.plan import Outcome
    from imgcache.transport.base import Transport
    from servers.misbehaving_http import Behaviour, HttpServer


def image_of(number: int, data: bytes, **changes: Any) -> Image:
    """Return image ``number``, whose bytes are ``data``."""
    values: dict[str, Any] = {
        "id": ImageId(f"00000000-0000-4000-8000-{number:012}"),
        "name": f"image-{number}",
        "size_bytes": len(data),
        "disk_format": "raw",
        "container_format": "bare",
        "digest": Digest("sha512", hashlib.sha512(data).hexdigest()),
    }
    return Image(**{**values, **changes})


class Access:
    """Hands out ``token-1``, ``token-2`` … ``last`` of them; each refused one brings the next."""

    def __init__(self, service: Service) -> None:
        self.warnings: tuple[str, ...] = ()
        self._service = service

    def for_image(self, image: Image, *, refused: Secret | None = None) -> ServiceAccess:
        service = self._service
        with service.lock:
            service.granted += 1
            if refused is not None and refused.reveal() == f"token-{service.tokens}":
                service.tokens += 1
            token = Secret(f"token-{service.tokens}")
        url = service.base + service.target(image)
        return ServiceAccess(url=url, token=token, ca_pem=service.ca_pem, insecure=service.insecure)


@dataclass
class Service(ImageService):
    """See the module."""

    server: HttpServer
    base: str = ""
    """Where hosts look for it, when not at the server."""
    ca_pem: str | None = None
    insecure: bool = False
    tokens: int = 1
    granted: int = 0
    """How often a host was given access."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    serves_hosts: bool = True

    def __post_init__(self) -> None:
        self.base = self.base or self.server.url

    def describe(self) -> str:
        return f"the server at {self.base}"

    def find_images(self, names: Sequence[str]) -> tuple[Image, ...]:
        raise NotImplementedError

    def list_images(self) -> Any:
        raise NotImplementedError

    def is_gone(self, image_id: ImageId) -> bool:
        raise NotImplementedError

    @staticmethod
    def target(image: Image) -> str:
        return f"/v2/images/{image.id}/file"

    @contextlib.contextmanager
    def host_access(
        self, images: Sequence[Image], run_id: str, lifetime_s: float
    ) -> Iterator[Access]:
        yield Access(self)

    @contextlib.contextmanager
    def read(self, image: Image, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        where = urlsplit(self.server.url)
        connection = http.client.HTTPConnection(where.netloc, timeout=20)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        closing = contextlib.ExitStack()
        try:
            connection.request("GET", self.target(image), headers=headers)
            answer = closing.enter_context(connection.getresponse())
            if answer.status not in {200, 206}:
                message = f"the service answered {answer.status}"
                kind = ImageServiceUnreachableError if answer.status >= 500 else ImageServiceError
                raise kind(message)
            yield _blocks(answer, image.size_bytes - offset)
        except OSError as error:
            message = f"the service cannot be read: {error}"
            raise ImageServiceUnreachableError(message) from error
        finally:
            closing.close()
            connection.close()


def _blocks(answer: http.client.HTTPResponse, left: int) -> Iterator[bytes]:
    while left:
        try:
            block = answer.read1(min(left, 1 << 16))
        except (OSError, http.client.HTTPException) as error:
            message = f"the service broke off: {error}"
            raise ImageServiceUnreachableError(message) from error
        if not block:
            message = f"the service ended {left} bytes early"
            raise ImageServiceUnreachableError(message)
        left -= len(block)
        yield block


class Events:
    """An ``EventSink`` that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def emit(self, event: Event) -> None:
        self.seen.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def retries(self) -> list[ItemRetry]:
        return self.of(ItemRetry)

    @property
    def notices(self) -> list[str]:
        return [notice.message for notice in self.of(Notice)]


@dataclass
class Rig:
    """Hosts below a folder, and a server."""

    folder: Path
    server: HttpServer
    events: Events = field(default_factory=Events)
    images: list[Image] = field(default_factory=list)
    service: Service = field(init=False)
    settings: dict[str, Any] = field(default_factory=dict)
    """More settings for all hosts."""
    transport: Transport = field(default_factory=LocalTransport)

    def __post_init__(self) -> None:
        self.service = Service(self.server)

    def add(self, data: bytes, *script: Behaviour, **changes: Any) -> Image:
        """Put an image on the server that answers as ``script`` says."""
        image = image_of(len(self.images) + 1, data, **changes)
        self.images.append(image)
        self.server.route(Service.target(image), data, *script)
        return image

    def host(self, number: int = 1, **settings: Any) -> Host:
        path = self.folder / f"h{number}"
        path.mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "transport": "local",
            "python": (sys.executable,),
            "images_type": "qcow2",
            "reserve_bytes": 0,
            "instances_path": str(path),
        }
        return Host(
            f"h{number}",
            "edge",
            None,
            None,
            HostSettings(**{**values, **self.settings, **settings}),
        )

    def run(self, *hosts: Host, policy: SourcePolicy = "service", **limits: Any) -> list[Outcome]:
        """Pre-cache all images on the hosts (one by default); return the outcomes."""
        return asyncio.run(self.execute(*hosts, policy=policy, **limits))

    async def execute(
        self,
        *hosts: Host,
        policy: SourcePolicy = "service",
        concurrency: int = 4,
        retries: int = 3,
        timeout_s: float = 60.0,
        dry_run: bool = False,
        interrupt: Interrupt | None = None,
        sites: Sites | None = None,
        waves: Waves | None = None,
    ) -> list[Outcome]:
        """As ``run``, in a loop that runs."""
        chosen = hosts or (self.host(),)
        sources = RunSources(
            self.service,
            self.images,
            kinds=source_kinds(policy, self.service),
            run_id="test",
            lifetime_s=60,
            sink=self.events,
            sites=sites,
        )
        async with sources:
            engine = Engine(
                run_id="test",
                transport=self.transport,
                sources=sources,
                limits=Limits(concurrency, retries, timeout_s),
                sink=self.events,
                interrupt=interrupt or Interrupt(),
                dry_run=dry_run,
            )
            return await engine.run(
                chosen,
                self.images,
                sources.telling(_precache_host),
                rollout=Rollout(chosen, waves=waves),
            )

    def final(self, image: Image, number: int = 1) -> Path:
        """Return where Nova on a host looks for the image."""
        return self.folder / f"h{number}" / "_base" / image.base_name

    def leftovers(self) -> list[str]:
        """Return what lies below the hosts that is neither a final, a manifest nor a lock of Nova's."""
        return [
            str(path)
            for path in self.folder.rglob("*")
            if path.is_file()
            and path.suffix != ".json"
            and len(path.name) != 40
            and path.parent.name != "locks"
        ]

    def assert_absent(self, *images: Image) -> None:
        """No final, no staging file."""
        assert [image.name for image in images if self.final(image).exists()] == []
        assert self.leftovers() == []

    def assert_resumable(self, *images: Image) -> None:
        """No final; at most what the next run goes on with: staging files with their journals."""
        assert [image.name for image in images if self.final(image).exists()] == []
        left = self.leftovers()
        assert all(path.endswith(".staging") and Path(f"{path}.json").exists() for path in left)
        assert len(left) <= len(images)

    def tokens_seen(self) -> list[str | None]:
        return [request.header("x-auth-token") for request in self.server.requests]


def failed_with(outcome: Outcome, code: ErrorCode) -> bool:
    """Whether an outcome is an error with this code and says why."""
    return (outcome.outcome, outcome.code) == ("error", code) and bool(outcome.reason)
