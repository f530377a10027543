"""Glance v2 as an image service, with or without Keystone."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import requests

from imgcache.errors import (
    AuthenticationError,
    ImageProblemsError,
    ImageServiceError,
    ImageServiceUnreachableError,
    Problem,
)
from imgcache.images.base import ImageService
from imgcache.images.client import ServiceClient, answer_detail, error_from, request_id
from imgcache.images.cloud import service_root
from imgcache.images.node import GlanceNode
from imgcache.images.records import image_from_record, is_image_id
from imgcache.model import Image, ImageId, ServiceAccess
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from imgcache.images.base import HostAccess
    from imgcache.images.cloud import Cloud

BLOCK_BYTES = 1024 * 1024
#: 37 characters an id: a hundred stay below the 8 KiB that proxies take for a line.
IDS_PER_REQUEST = 100
PAGE_SIZE = 500
_MAX_RESTARTS = 3
_MAX_CANDIDATES = 1000
_SHOWN_CANDIDATES = 10

#: What a first byte of a file answers, and what that means; None: it can be read.
#: 400: the store cannot seek (all but file and cinder), which is found out only after policy and lookup.
_FILE_ANSWERS: dict[int, tuple[str, str | None] | None] = {
    200: None,
    206: None,
    400: None,
    204: ("has no data in the image service", "its object is gone from the store; upload it again"),
    401: ("may not be downloaded with this token", None),
    403: (
        "may not be downloaded",
        "the role reader cannot download: the user needs the role member",
    ),
    404: ("is gone from the image service", None),
    410: ("is gone from the image service", None),
    416: ("has no data in the image service", "its object is gone from the store; upload it again"),
}

Record = dict[str, Any]


class GlanceImageService(ImageService):
    """See ``ImageService``. Tokens are renewed by themselves; nothing is logged."""

    serves_hosts = True

    def __init__(
        self,
        cloud: Cloud,
        *,
        host_endpoint: str | None = None,
        host_interface: str | None = None,
        page_size: int = PAGE_SIZE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cloud = cloud
        self.notes = cloud.notes
        self._host_endpoint = host_endpoint
        self._host_interface = host_interface
        self._page_size = page_size
        self._client = ServiceClient(cloud.session, "Glance", sleep=sleep)
        self._no_ranges: set[ImageId] = set()
        """Images whose requests for a range were of no use."""

    def describe(self) -> str:
        """See ``ImageService.describe``."""
        return self._cloud.describe()

    def close(self) -> None:
        """See ``ImageService.close``."""
        self._cloud.session.session.close()

    # ----------------------------------------------------------------------------------------- finding

    def find_images(self, names: Sequence[str]) -> tuple[Image, ...]:
        """See ``ImageService.find_images``."""
        wanted = tuple(dict.fromkeys(names))
        records = self._records([name for name in wanted if is_image_id(name)])
        found: dict[str, Image] = {}
        problems: list[Problem] = []
        for name in wanted:
            record = records[name] if name in records else self._named(name)
            result = record if isinstance(record, Problem) else image_from_record(name, record)
            if isinstance(result, Image) and result.id not in found:
                result = self._unreadable(name, result) or result
            if isinstance(result, Problem):
                problems.append(result)
            else:
                found.setdefault(result.id, result)
        if problems:
            message = (
                f"{len(problems)} of {len(wanted)} images cannot be cached from {self.describe()}"
            )
            raise ImageProblemsError(message, problems)
        return tuple(found.values())

    def _url(self, path: str = "") -> str:
        return f"{self._cloud.image_endpoint()}/v2/images{path}"

    def _records(self, ids: Sequence[str]) -> dict[str, Record | Problem]:
        """Return id as given -> record.

        What the list hides (hidden, shared and not yet accepted) is asked for one by one.
        """
        listed: dict[str, Record] = {}
        for start in range(0, len(ids), IDS_PER_REQUEST):
            part = ids[start : start + IDS_PER_REQUEST]
            if len(part) > 1:
                rows = self._list({"id": "in:" + ",".join(part), "visibility": "all"})
                listed.update({str(row.get("id")): row for row in rows})
        return {image_id: listed.get(image_id) or self._record(image_id) for image_id in ids}

    def _record(self, image_id: str) -> Record | Problem:
        request = ""
        for form in dict.fromkeys((image_id, image_id.lower())):
            with self._client.request("GET", self._url(f"/{form}"), ok=(200, 404)) as answer:
                if answer.status_code == 200:
                    return _object(answer)
                request = request_id(answer)
        what = f"no such image, or it is not visible to you{request}"
        return Problem(
            printable(image_id), what, "check the id and the project: openstack image show"
        )

    def _named(self, name: str) -> Record | Problem:
        where = printable(name)
        if not name or "\0" in name:
            return Problem(where, "is no name of an image")
        rows = self._by_name(name) or self._by_name(name, visibility="all")
        if len(rows) == 1:
            return rows[0]
        if rows:
            shown = "; ".join(_candidate(row) for row in rows[:_SHOWN_CANDIDATES])
            more = (
                f"; and {len(rows) - _SHOWN_CANDIDATES} more"
                if len(rows) > _SHOWN_CANDIDATES
                else ""
            )
            what = f"{len(rows)} images have this name: {shown}{more}"
            return Problem(where, what, "name the one you mean by its id")
        hidden = self._by_name(name, os_hidden="true")
        if hidden:
            ids = ", ".join(printable(str(row.get("id"))) for row in hidden[:_SHOWN_CANDIDATES])
            return Problem(where, f"is hidden (os_hidden): {ids}", "name a hidden image by its id")
        return Problem(where, "no such image, or it is not visible to you", self._nearest(name))

    def _by_name(self, name: str, **more: str) -> list[Record]:
        # eq: always, or a colon in the name would be read as an operator. The database may compare
        # without regard to case, so names are compared again.
        rows = self._list({"name": "eq:" + name, **more})
        return [row for row in rows if row.get("name") == name]

    def _nearest(self, name: str) -> str | None:
        """Return a hint with similar names among the newest images; one request."""
        from difflib import get_close_matches  # noqa: PLC0415 - only when something is wrong

        with self._client.request("GET", self._url(), params={"limit": 200}) as answer:
            rows = _rows(_object(answer))
        near = get_close_matches(name, [str(row.get("name")) for row in rows], n=3)
        return f"did you mean {' or '.join(printable(word) for word in near)}?" if near else None

    def _list(self, query: dict[str, str]) -> list[Record]:
        """Return all rows. When an image that ended a page is deleted meanwhile, the walk begins anew."""
        for _ in range(_MAX_RESTARTS):
            rows = self._walk(query)
            if rows is not None:
                return rows
        message = "Glance's list of images changed too often while it was read"
        raise ImageServiceError(message, hint="run again, or name images by their ids")

    def list_images(self) -> Iterator[tuple[ImageId, str, str]]:
        """See ``ImageService.list_images``. Page by page: a big cloud has tens of thousands."""
        for hidden in ("false", "true"):
            yield from self._listed({"visibility": "all", "os_hidden": hidden})

    def _listed(self, query: dict[str, str]) -> Iterator[tuple[ImageId, str, str]]:
        for _ in range(_MAX_RESTARTS):
            whole = True
            for page in self._pages(query):
                if page is None:
                    whole = False
                    break
                for row in page:
                    if is_image_id(str(row.get("id"))):
                        name, status = str(row.get("name") or ""), str(row.get("status") or "")
                        yield ImageId(str(row["id"])), name, status
            if whole:
                return
        message = "Glance's list of images changed too often while it was read"
        raise ImageServiceError(message, hint="run again")

    def is_gone(self, image_id: ImageId) -> bool:
        """See ``ImageService.is_gone``."""
        return isinstance(self._record(image_id), Problem)

    def _walk(self, query: dict[str, str]) -> list[Record] | None:
        rows: list[Record] = []
        for page in self._pages(query):
            if page is None:
                return None
            rows += page
            if len(rows) >= _MAX_CANDIDATES:
                break
        return rows

    def _pages(self, query: dict[str, str]) -> Iterator[list[Record] | None]:
        """Give page after page; None, and no more, when the image that ended a page is gone meanwhile."""
        first: dict[str, str | int] = {**query, "limit": self._page_size}
        params: dict[str, str | int] | None = first
        while params is not None:
            # A marker that is gone is a 400; so is a filter that Glance does not know.
            ok = (200,) if params is first else (200, 400)
            with self._client.request("GET", self._url(), params=params, ok=ok) as answer:
                if answer.status_code == 400:
                    yield None
                    return
                page = _object(answer)
            yield _rows(page)
            following = page.get("next")
            # only its query: the path lacks the prefix that a proxy may have added
            params = (
                dict(parse_qsl(urlsplit(following).query)) if isinstance(following, str) else None
            )

    # ----------------------------------------------------------------------------------------- reading

    def _unreadable(self, name: str, image: Image) -> Problem | None:
        return _file_problem(name, probe_file(self._client, self._url(f"/{image.id}/file")))

    @contextmanager
    def read(self, image: Image, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """See ``ImageService.read``. A store that cannot seek is read from its start, and skipped."""
        if offset >= image.size_bytes:
            yield iter(())
            return
        answer, start = self._open(image, offset)
        with answer:
            _check_length(answer, image, start)
            yield self._noting_ranges(
                _blocks(answer, image, start=start, offset=offset), image, start
            )

    def _noting_ranges(self, blocks: Iterator[bytes], image: Image, start: int) -> Iterator[bytes]:
        """Give the blocks; ask for no range again when that one brings nothing."""
        came = False
        try:
            for block in blocks:
                came = True
                yield block
        except ImageServiceError:
            if start and not came:
                self._no_ranges.add(image.id)
            raise

    def _open(self, image: Image, offset: int) -> tuple[requests.Response, int]:
        """Return an answer with the image's bytes, and the number of the first one."""
        if offset and image.id not in self._no_ranges:
            answer = self._range(image, offset)
            if answer is not None:
                return answer, offset if answer.status_code == 206 else 0
        url = self._url(f"/{image.id}/file")
        answer = self._client.request("GET", url, ok=(200, 204), stream=True)
        if answer.status_code == 204:
            with answer:
                message = f"{self.describe()} has no data for image {image.id}{request_id(answer)}"
            raise ImageServiceError(
                message, hint="its object is gone from the store; upload it again"
            )
        return answer, 0

    def _range(self, image: Image, offset: int) -> requests.Response | None:
        """Return an answer with the rest of an image (206) or all of it; None: one that cannot be used.

        Whatever else it answers, also that the image is gone, may hold for ranges alone.
        """
        headers = {"Range": f"bytes={offset}-"}
        url = self._url(f"/{image.id}/file")
        try:
            answer = self._client.request("GET", url, ok=(200, 206), headers=headers, stream=True)
        except AuthenticationError:
            raise
        except ImageServiceUnreachableError as error:
            if error.__cause__ is not None:
                raise  # it did not answer at all
            return None
        except ImageServiceError:
            self._no_ranges.add(image.id)
            return None
        if _serves_range(answer, image.size_bytes, offset):
            return answer
        self._no_ranges.add(image.id)
        if answer.status_code == 200:
            return answer
        answer.close()
        return None

    # ---------------------------------------------------------------------------------------- for hosts

    def host_access(
        self, images: Sequence[Image], run_id: str, lifetime_s: float
    ) -> AbstractContextManager[HostAccess]:
        """See ``ImageService.host_access``."""
        from imgcache.images.access import open_host_access  # noqa: PLC0415 - pushed runs need none

        return open_host_access(
            self._cloud,
            self._client,
            self._host_url(),
            images,
            run_id=run_id,
            lifetime_s=lifetime_s,
        )

    def access_without_token(self) -> ServiceAccess | None:
        """See ``ImageService.access_without_token``."""
        cloud = self._cloud
        url = service_root(self._host_url())
        return ServiceAccess(url=url, token=None, ca_pem=cloud.ca_pem, insecure=cloud.insecure)

    def node(self, endpoint: str) -> GlanceNode:
        """See ``ImageService.node``."""
        return GlanceNode(self._cloud.session, endpoint)

    def _host_url(self) -> str:
        return self._host_endpoint or self._cloud.image_endpoint(self._host_interface)


@dataclass(frozen=True, slots=True)
class FileProbe:
    """What Glance answered when asked for the first byte of an image's file."""

    status: int
    detail: str
    """Empty, or why not, as Glance says it, and the request's id."""

    @property
    def readable(self) -> bool:
        """Whether the file can be read."""
        return _FILE_ANSWERS[self.status] is None


def probe_file(client: ServiceClient, url: str, token: str | None = None) -> FileProbe:
    """Ask for the first byte of an image's file, and close at once. HEAD is not supported by Glance."""
    headers = {"Range": "bytes=0-0"}
    ok = tuple(_FILE_ANSWERS)
    with client.request("GET", url, ok=ok, headers=headers, token=token, stream=True) as answer:
        detail = answer_detail(answer) if answer.status_code > 400 else ""
        return FileProbe(
            answer.status_code, f"{f': {detail}' if detail else ''}{request_id(answer)}"
        )


def _file_problem(name: str, probe: FileProbe) -> Problem | None:
    meaning = _FILE_ANSWERS[probe.status]
    if meaning is None:
        return None
    what, hint = meaning
    return Problem(printable(name), f"{what} ({probe.status}{probe.detail})", hint)


def _object(answer: requests.Response) -> Record:
    try:
        content = answer.json()
    except (requests.exceptions.JSONDecodeError, RecursionError) as error:
        message = f"Glance answered no JSON{request_id(answer)}"
        raise ImageServiceError(
            message, hint="is the endpoint that of an image service?"
        ) from error
    if not isinstance(content, dict):
        message = f"Glance answered something else than an object{request_id(answer)}"
        raise ImageServiceError(message, hint="is the endpoint that of an image service?")
    return content


def _rows(page: Record) -> list[Record]:
    rows = page.get("images")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _candidate(row: Record) -> str:
    facts = ", ".join(
        printable(str(row.get(key))) for key in ("status", "visibility", "created_at")
    )
    return f"{printable(str(row.get('id')))} ({facts})"


def _serves_range(answer: requests.Response, size: int, offset: int) -> bool:
    """Whether an answer brings the bytes from ``offset`` on, all of them and as they are."""
    known = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return (
        answer.status_code == 206
        and answer.headers.get("Content-Encoding", "identity") == "identity"
        and answer.headers.get("Content-Length", str(size - offset)) == str(size - offset)
        and answer.headers.get("Content-Range") == f"bytes {offset}-{size - 1}/{known}"
        and known in {str(size), "*"}
    )


def _check_length(answer: requests.Response, image: Image, start: int) -> None:
    stated = answer.headers.get("Content-Length")
    expected = image.size_bytes - start
    if stated is not None and stated != str(expected):
        announced = f"{printable(stated)} bytes of image {image.id}, not {expected}"
        message = f"Glance announces {announced}{request_id(answer)}"
        raise ImageServiceError(message, hint="its object in the store is damaged")


def _blocks(answer: requests.Response, image: Image, *, start: int, offset: int) -> Iterator[bytes]:
    position = start
    try:
        for block in answer.iter_content(BLOCK_BYTES):
            fresh = block[max(0, offset - position) :]
            position += len(block)
            if position > image.size_bytes:
                message = f"Glance sent more than the {image.size_bytes} bytes of image {image.id}"
                raise ImageServiceError(message, hint="its object in the store is damaged")
            if fresh:
                yield fresh
    except (requests.RequestException, OSError) as error:
        told = error_from(error, f"Glance, at byte {position} of image {image.id}")
        raise ImageServiceUnreachableError(told.message, hint=told.hint) from error
    if position < image.size_bytes:
        reached = f"{position} of {image.size_bytes} bytes"
        message = f"Glance ended image {image.id} at {reached}{request_id(answer)}"
        hint = "its object in the store is damaged, or Glance was stopped"
        raise ImageServiceUnreachableError(message, hint=hint)
