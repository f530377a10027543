"""Glance nodes that answer what no healthy one does, and those that are older than ours."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from contract.driver_suite import Context, Stock
from contract.glance_bench import HASTY
from imgcache.drivers.base import RemovalItem, RemovalRow, UnsupportedError
from imgcache.drivers.glance_cache import GlanceCacheDriver
from imgcache.errors import ErrorCode, HostError
from imgcache.images import node as node_module
from imgcache.images.glance import GlanceImageService
from imgcache.images.keystone import open_cloud
from imgcache.images.options import CloudOptions
from imgcache.model import Host, HostSettings, ImageServiceSettings
from imgcache.operations import node_access
from imgcache.plan import CheckState
from imgcache.transport.local import LocalTransport
from servers import misbehaving_http as http
from servers.scripted_http import Answer, Request, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgcache.model import HostCache

ID = "b9a1a2f0-6f39-4f0d-9b0c-0d2f0e6d5c11"
NOW = 1_800_000_000.0
VERSIONS = {"versions": [{"id": "v2.18", "status": "CURRENT"}, {"id": "v2.0"}, {"id": 3}]}


def as_json(content: object, status: int = 200, **headers: str) -> Answer:
    plain = {"Content-Type": "application/json", "Date": formatdate(NOW, usegmt=True)}
    return Answer(status, json.dumps(content).encode(), {**plain, **headers})


def state(cached: Any = (), queued: Any = ()) -> Answer:
    return as_json({"cached_images": list(cached), "queued_images": list(queued)})


def row(**more: Any) -> dict[str, Any]:
    return {"image_id": ID, "size": 100, "hits": 2, "last_accessed": NOW - 3600.5, **more}


def run(
    answer: Callable[[Request], Answer],
    work: Callable[[GlanceCacheDriver, Context], Awaitable[object]],
) -> tuple[Context, list[Request]]:
    """Do some work on a node that answers so."""
    with ScriptedServer(answer) as server:
        cloud = open_cloud(ImageServiceSettings(endpoint=server.url), CloudOptions())
        settings = HostSettings(driver="glance-cache", endpoint=server.url + "/v2")
        host = Host("g1", "nodes", None, None, settings)
        with GlanceImageService(cloud) as service:
            context = Context(host, LocalTransport(), Stock(), service=service)

            async def all_of_it() -> None:
                await work(GlanceCacheDriver(HASTY), context)

            asyncio.run(all_of_it())
        return context, server.requests


def inspect(answer: Callable[[Request], Answer]) -> HostCache:
    found: list[HostCache] = []

    async def work(driver: GlanceCacheDriver, context: Context) -> None:
        found.append(await driver.inspect(context, formats=False, use=False))

    run(answer, work)
    return found[0]


def refused(answer: Callable[[Request], Answer]) -> HostError:
    with pytest.raises(HostError) as caught:
        inspect(answer)
    return caught.value


# ------------------------------------------------------------------------------------------------- rows


def test_a_row_of_any_cache_driver_is_read() -> None:
    other = ID.replace("b9", "00")
    third = ID.replace("b9", "01")
    cache = inspect(
        lambda _: state(
            cached=[
                row(id=7, checksum=None),
                {"image_id": other, "size": 0, "hits": 0, "last_accessed": int(NOW)},
                {"image_id": third},
            ],
            queued=[ID.replace("b9", "02"), ID],
        )
    )
    by_id = {entry.name: entry for entry in cache.entries}
    assert (by_id[ID].size_bytes, by_id[ID].hits) == (100, 2)
    assert by_id[ID].age_s == pytest.approx(3600.5)
    assert by_id[other].age_s == 0
    # what the node does not tell is not old
    assert (by_id[third].size_bytes, by_id[third].hits, by_id[third].age_s) == (0, None, 0.0)
    # cached wins
    assert [entry.kind.value for entry in cache.entries].count("queued") == 1


@pytest.mark.parametrize("ahead_s", [0.9, 50, 8 * 3600])
def test_an_entry_used_just_now_is_not_of_the_future(ahead_s: float) -> None:
    """``Date`` has whole seconds only, and nodes tell other zones' times."""
    (entry,) = inspect(lambda _: state([row(last_accessed=NOW + ahead_s)])).entries
    assert entry.age_s == 0


def test_a_node_without_a_clock_is_judged_by_ours() -> None:
    def answer(_: Request) -> Answer:
        return as_json(
            {"cached_images": [row(last_accessed=time.time() - 60)], "queued_images": []},
            Date="yesterday",
        )

    (entry,) = inspect(answer).entries
    assert 59 < entry.age_s < 600


@pytest.mark.parametrize(
    "odd",
    [
        {"image_id": "../../etc/passwd"},
        {"image_id": "x\x1b[31m"},
        {"image_id": ""},
        {"image_id": 7},
    ],
)
def test_ids_that_are_none_never_become_part_of_a_url(odd: dict[str, object]) -> None:
    cache = inspect(lambda _: state([row(**odd), row()], queued=[odd["image_id"]]))
    assert [entry.name for entry in cache.entries] == [ID]


@pytest.mark.parametrize("value", [-1, 1e300, float("inf"), "12", True, None, [], {}])
@pytest.mark.parametrize("key", ["size", "hits", "last_accessed"])
def test_numbers_that_are_none_count_as_unknown(key: str, value: object) -> None:
    (entry,) = inspect(lambda _: state([row(**{key: value})])).entries
    assert entry.size_bytes >= 0
    assert entry.hits is None or entry.hits >= 0
    assert entry.age_s >= 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"cached_images": 1, "queued_images": []}',
        b'{"cached_images": [[]], "queued_images": []}',
        b'{"cached_images": [{}], "queued_images": []}',
        b'{"cached_images": [], "queued_images": null}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_state_is_refused(body: bytes) -> None:
    error = refused(lambda _: Answer(200, body))
    assert error.code is ErrorCode.PROTOCOL
    assert "127.0.0.1" in error.message


def test_endless_lists_are_refused() -> None:
    many = [f"00000000-0000-4000-8000-{number:012}" for number in range(50_001)]
    assert "more than 50000 images" in refused(lambda _: state(queued=many)).message


def test_an_endless_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MAX_BODY_BYTES", 1 << 20)
    error = refused(lambda _: Answer(200, b" " * (3 << 20)))
    assert error.code is ErrorCode.PROTOCOL
    assert "more than 1048576 bytes" in error.message


# --------------------------------------------------------------------------------------------- statuses


@pytest.mark.row("M7")
def test_a_node_that_drips_is_not_listened_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_access, "ANSWER_S", 1.0)
    monkeypatch.setattr(node_access, "LEAVE_READ_S", 0.5)
    with http.HttpServer() as server:
        server.route("/v2/cache", b"x" * 10_000, http.drip(20))
        server.route(f"/v2/images/{ID}/file", b"x" * 10_000, http.drip(20))
        cloud = open_cloud(ImageServiceSettings(endpoint=server.url), CloudOptions())
        with GlanceImageService(cloud) as service:

            async def read(node: node_access.NodeAccess) -> None:
                async with node.blocks(f"/v2/images/{ID}/file") as blocks:
                    async for _ in blocks:
                        pass

            async def ask() -> None:
                node = node_access.NodeAccess(service, server.url)
                with pytest.raises(HostError) as caught:
                    await node.request("GET", "/v2/cache")
                assert caught.value.code is ErrorCode.STALL
                with pytest.raises(HostError) as caught:
                    await read(node)
                assert caught.value.code is ErrorCode.STALL
                server.closing.set()  # what was left alone ends by itself

            asyncio.run(ask())


def test_a_redirect_is_named_and_not_followed() -> None:
    with ScriptedServer(lambda _: state()) as other:
        target = f"{other.url}/\x1b[31mred"
        error = refused(lambda _: Answer(302, headers={"Location": target}))
        assert other.requests == []
    assert error.code is ErrorCode.REDIRECT
    assert "\x1b" not in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, ErrorCode.AUTH), (403, ErrorCode.FORBIDDEN), (409, ErrorCode.PROTOCOL)],
)
def test_statuses(status: int, code: ErrorCode) -> None:
    headers = {"x-openstack-request-id": "req-canary"}
    error = refused(lambda _: Answer(status, b"<title>x</title>\x1b[2Jwhy", headers))
    assert error.code is code
    assert "why" in error.message
    assert "req-canary" in error.message
    assert "\x1b" not in error.message


def test_a_node_without_the_api_is_unsupported() -> None:
    def answer(request: Request) -> Answer:
        if request.path == "/versions":
            return as_json({"versions": [{"id": "v2.13"}, {"id": "v2.0"}]})
        return Answer(404, b"Caching via API is not supported at this site.")

    error = refused(answer)
    assert isinstance(error, UnsupportedError)
    assert "not supported at this site" in error.message


def test_a_wrong_endpoint_is_no_node_without_a_cache() -> None:
    """Its 404 would else end as a warning, with nothing cached and exit code 0."""
    error = refused(lambda _: Answer(404, b"<title>404</title>no such page"))
    assert not isinstance(error, UnsupportedError)
    assert error.code is ErrorCode.PROTOCOL
    assert "does not answer as an image service" in error.message
    assert error.hint is not None
    assert "endpoint:" in error.hint


# ------------------------------------------------------------------------------------------ older nodes


@pytest.mark.parametrize("newest", ["v2.17", "v2.14"])
def test_an_older_node_is_not_asked_to_clean(newest: str) -> None:
    rows: list[RemovalRow] = []

    def answer(request: Request) -> Answer:
        assert request.method == "GET"
        if request.path == "/versions":
            return as_json({"versions": [{"id": newest}, {"id": "v2.0"}]})
        return state()

    async def clean(driver: GlanceCacheDriver, context: Context) -> None:
        rows.extend([row async for row in driver.clean(context, 1.0)])

    with pytest.raises(UnsupportedError) as caught:
        run(answer, clean)
    assert caught.value.hint == "run glance-cache-cleaner on the node"
    assert rows == []

    checks: dict[str, tuple[CheckState, str]] = {}

    async def check(driver: GlanceCacheDriver, context: Context) -> None:
        found = await driver.check(context, None)
        checks.update({name: (ok, detail) for name, ok, detail in found})

    run(answer, check)
    assert checks["clean"][0] is CheckState.WARN
    assert checks["clock"][0] is CheckState.WARN  # the scripted node's clock stands still
    assert checks["cache"] == (CheckState.OK, "0 images cached, 0 queued")


def test_what_is_no_image_service_fails_its_check() -> None:
    rows: list[tuple[str, CheckState, str]] = []

    async def check(driver: GlanceCacheDriver, context: Context) -> None:
        rows.extend(await driver.check(context, None))

    run(lambda _: Answer(200, b"It works!"), check)
    ((name, ok, detail),) = rows
    assert (name, ok) == ("api", CheckState.FAIL)
    assert "does not answer as an image service" in detail


# ---------------------------------------------------------------------------------------------- remove


@pytest.mark.row("D9")
def test_what_was_fetched_while_others_were_removed_is_no_longer_taken_back() -> None:
    """The node is asked again before each removal, unless it was just now."""
    cached, rows, dropped = [row()], list[RemovalRow](), list[str]()
    other = ID.replace("b9", "00")

    def answer(request: Request) -> Answer:
        if request.method == "DELETE":
            dropped.append(request.path)
            return Answer(204)
        return state(cached, queued=[other])

    async def remove(driver: GlanceCacheDriver, context: Context) -> None:
        async for done in driver.remove(context, items):
            rows.append(done)
            cached.append(row(image_id=other))
            await asyncio.sleep(1.1)

    items = [RemovalItem(ID, 0, 1, 0.0), RemovalItem(other, 0, 0, 0.0)]
    run(answer, remove)
    assert [(one.state, one.code) for one in rows] == [
        ("removed", None),
        ("kept", ErrorCode.CHANGED),
    ]
    assert dropped == [f"/v2/cache/{ID}"]


# ------------------------------------------------------------------------------------------------- fill


def test_a_cached_image_of_another_size_is_damaged() -> None:
    image = Stock().add(b"x" * 101, id=ID)
    told, asked = run(
        lambda _: state([row(size=100)]), lambda driver, context: driver.precache(context, [image])
    )
    assert told.outcomes == {image.name: ("error", ErrorCode.DAMAGED)}
    assert "100 of 101 bytes" in told.details[image.name]["reason"]
    assert [request.method for request in asked] == ["GET"]


def test_an_image_that_arrives_in_another_size_is_damaged() -> None:
    image = Stock().add(b"x" * 101, id=ID)
    put: list[str] = []

    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            put.append(request.path)
            return Answer(202)
        return state([row(size=100)] if put else [])

    told, _ = run(answer, lambda driver, context: driver.precache(context, [image]))
    assert told.outcomes == {image.name: ("error", ErrorCode.DAMAGED)}
    assert put == [f"/v2/cache/{ID}"]


def test_a_node_that_never_moves_sends_more_than_the_image() -> None:
    image = Stock().add(b"x" * 100, id=ID)

    def answer(request: Request) -> Answer:
        if request.path.endswith("/file"):
            return Answer(200, b"y" * 5_000_000)
        return Answer(202) if request.method == "PUT" else state(queued=[ID])

    told, asked = run(answer, lambda driver, context: driver.precache(context, [image]))
    assert told.outcomes == {image.name: ("error", ErrorCode.DOWNLOAD)}
    assert "of 100" in told.details[image.name]["reason"]
    assert [request.method for request in asked].count("PUT") == 2  # handed over, and again


def test_an_image_that_is_in_neither_is_reported_with_the_file_in_its_way() -> None:
    image = Stock().add(b"x" * 100, id=ID)

    def answer(request: Request) -> Answer:
        return Answer(202) if request.method == "PUT" else state()

    told, asked = run(answer, lambda driver, context: driver.precache(context, [image]))
    assert told.outcomes == {image.name: ("error", ErrorCode.STALL)}
    assert f"incomplete/{ID}" in told.details[image.name]["reason"]
    assert not [request for request in asked if request.path.endswith("/file")]
    assert [request.method for request in asked].count("PUT") == 2


def test_many_images_are_given_to_a_node_a_few_at_a_time() -> None:
    stock = Stock()
    images = [stock.add(b"x") for _ in range(30)]
    queue: list[str] = []
    cached: list[dict[str, object]] = []
    most = 0

    def answer(request: Request) -> Answer:
        nonlocal most
        if request.method == "PUT":
            queue.append(request.path.rpartition("/")[2])
            most = max(most, len(queue))
            return Answer(202)
        if queue:
            cached.append(row(image_id=queue.pop(0), size=1))
        return state(cached, queue)

    told, _ = run(answer, lambda driver, context: driver.precache(context, images))
    assert [name for call, name in told.calls if call == "report"] == [one.name for one in images]
    assert set(told.outcomes.values()) == {("cached", None)}
    assert most == 8
