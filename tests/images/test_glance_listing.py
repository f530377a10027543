"""All images of Glance: page after page, hidden ones too; which are gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from imgcache.errors import ImageServiceError
from imgcache.images.glance import GlanceImageService
from imgcache.images.keystone import open_cloud
from imgcache.images.options import CloudOptions
from imgcache.model import ImageId, ImageServiceSettings
from servers.scripted_http import Answer, Request, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable

IDS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(7)]
#: The last two are hidden.
SHOWN, HIDDEN = IDS[:5], IDS[5:]


def service_at(url: str) -> GlanceImageService:
    cloud = open_cloud(ImageServiceSettings(endpoint=url), CloudOptions())
    return GlanceImageService(cloud, page_size=2, sleep=lambda _: None)


def glance(*, lose_marker: int = 0) -> Callable[[Request], Answer]:
    """A Glance with two images a page; an image that ended a page is gone so many times."""
    lost: list[str] = []

    def answer(request: Request) -> Answer:
        query = {key: values[0] for key, values in parse_qs(urlsplit(request.path).query).items()}
        assert query["visibility"] == "all"
        assert query["limit"] == "2"
        marker = query.get("marker")
        if marker and len(lost) < lose_marker:
            lost.append(marker)
            return Answer(400, b"No image found with ID")
        ids = HIDDEN if query["os_hidden"] == "true" else SHOWN
        start = ids.index(marker) + 1 if marker else 0
        page = ids[start : start + 2]
        content: dict[str, Any] = {
            "images": [{"id": one, "name": None, "status": "queued"} for one in page]
        }
        if start + 2 < len(ids):
            hidden = query["os_hidden"]
            content["next"] = (
                f"/v2/images?visibility=all&os_hidden={hidden}&limit=2&marker={page[-1]}"
            )
        return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    return answer


def test_every_page_of_shown_and_hidden_images_is_read() -> None:
    with ScriptedServer(glance()) as server, service_at(server.url) as service:
        assert [one for one, _, _ in service.list_images()] == IDS
        assert len(server.requests) == 4


def test_only_as_many_pages_are_asked_for_as_are_read() -> None:
    with ScriptedServer(glance()) as server, service_at(server.url) as service:
        images = service.list_images()
        assert next(images) == (IDS[0], "", "queued")
        assert len(server.requests) == 1


def test_a_marker_that_was_deleted_begins_the_walk_anew() -> None:
    with ScriptedServer(glance(lose_marker=2)) as server, service_at(server.url) as service:
        assert {one for one, _, _ in service.list_images()} == set(IDS)


def test_a_list_that_never_holds_still_is_given_up() -> None:
    with ScriptedServer(glance(lose_marker=99)) as server, service_at(server.url) as service:
        with pytest.raises(ImageServiceError, match="changed too often"):
            list(service.list_images())
        assert len(server.requests) < 10


@pytest.mark.parametrize(
    ("status", "gone"), [(200, False), (404, True), (403, None), (500, None), (401, None)]
)
def test_only_a_404_means_that_an_image_is_gone(status: int, gone: bool | None) -> None:
    body = json.dumps({"id": IDS[0]}).encode()
    with (
        ScriptedServer(lambda _: Answer(status, body)) as server,
        service_at(server.url) as service,
    ):
        if gone is None:
            with pytest.raises(ImageServiceError):
                service.is_gone(ImageId(IDS[0]))
        else:
            assert service.is_gone(ImageId(IDS[0])) is gone
