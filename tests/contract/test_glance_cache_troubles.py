"""What the glance-cache driver does when a node's cache worker is dead, forgetful, or in its own way."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from contract.glance_bench import HASTY, WATCHFUL, NodeBench, items_of, node_bench, service_of
from contract.life_suite import look
from imgcache.drivers.glance_cache import GlanceCacheDriver
from imgcache.errors import ErrorCode
from imgcache.guards import Rules, held_by
from imgcache.model import EntryKind
from imgcache.plan import SourceKind
from servers.glance_nodes import GlanceNode, NodeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from contract.driver_suite import Context
    from imgcache.images.base import ImageService
    from imgcache.model import Image
    from servers.glance_nodes_fixtures import GlanceNodes
    from servers.openstack import KeystoneAndGlance

pytestmark = pytest.mark.openstack


@pytest.fixture(scope="module")
def service(cloud: KeystoneAndGlance) -> Iterator[ImageService]:
    with service_of(cloud) as opened:
        yield opened


@pytest.fixture
def bench(service: ImageService, cloud: KeystoneAndGlance, tmp_path: Path) -> Iterator[NodeBench]:
    """A node of the test's own."""
    with GlanceNode(cloud, tmp_path / "node") as node:
        node.wait_ready()
        yield node_bench(service, cloud, node, HASTY)


@pytest.fixture(scope="module")
def dead(
    service: ImageService, cloud: KeystoneAndGlance, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NodeBench, Image]]:
    """A node whose worker is dead, and the image that it died of, which stays queued."""
    with GlanceNode(cloud, tmp_path_factory.mktemp("dead") / "node") as node:
        node.wait_ready()
        bench = node_bench(service, cloud, node, HASTY)
        yield bench, with_dead_worker(bench)


def with_dead_worker(bench: NodeBench) -> Image:
    """Kill the worker by an image whose object is lost, which stays queued; return that image."""
    lost = bench.stock.add(os.urandom(5000))
    bench.stock.lose(lost)
    bench.wait = False
    bench.precache(lost)
    bench.wait = True
    return lost


def test_behind_a_dead_worker_images_are_pulled_through(dead: tuple[NodeBench, Image]) -> None:
    bench, lost = dead
    first, second = (bench.stock.add(os.urandom(300_000)) for _ in range(2))
    told = bench.precache(first, lost, second)
    assert told.outcomes == {
        first.name: ("cached", None),
        lost.name: ("error", ErrorCode.DOWNLOAD),
        second.name: ("cached", None),
    }
    for image in (first, second):
        assert bench.cached(image) == bench.stock.data[image.id]
        details = told.details[image.name]
        assert details["source"] is SourceKind.SERVICE
        assert details["bytes_fetched"] == image.size_bytes
        assert "restart glance-api" in details["reason"]
    assert "restart glance-api" in told.details[lost.name]["reason"]
    # The next run finds them there.
    assert bench.precache(first, second).outcomes == {
        first.name: ("existing", None),
        second.name: ("existing", None),
    }


def test_a_restarted_node_is_handed_its_queue_again(bench: NodeBench) -> None:
    with_dead_worker(bench)
    image = bench.stock.add(os.urandom(200_000))
    bench.wait = False
    assert bench.precache(image).outcomes == {image.name: ("skipped", ErrorCode.QUEUED)}
    bench.wait = True
    bench.driver = GlanceCacheDriver(WATCHFUL)
    bench.node.restart()
    # Its files remember what was to be fetched, and nobody is at work on it.
    assert image.id in bench.node.state()["queued_images"]
    told = bench.precache(image)
    assert told.outcomes == {image.name: ("cached", None)}
    assert told.details[image.name]["reason"] is None


def test_a_node_that_restarts_meanwhile_is_waited_for(bench: NodeBench) -> None:
    with_dead_worker(bench)
    image = bench.stock.add(os.urandom(100_000))
    bench.driver = GlanceCacheDriver(WATCHFUL)
    bench.retries = 1000
    missed = threading.Event()
    bench.on_back_off = missed.set
    told: list[Context] = []
    thread = threading.Thread(target=lambda: told.append(bench.precache(image)))
    thread.start()
    deadline = time.monotonic() + 60
    while image.id not in bench.node.state()["queued_images"] and time.monotonic() < deadline:
        time.sleep(0.05)
    bench.node.stop()
    assert missed.wait(60)
    bench.node.restart()
    thread.join(150)
    assert told[0].outcomes == {image.name: ("cached", None)}
    assert told[0].details[image.name]["reason"] is None
    # It was handed over again at once, not after a minute in which nothing moved.
    assert not [message for call, message in told[0].calls if call == "notice"]


def test_a_file_that_broke_off_is_written_over_by_a_worker_that_lives(
    service: ImageService, cloud: KeystoneAndGlance, glance_nodes: GlanceNodes
) -> None:
    bench = node_bench(service, cloud, glance_nodes.central)
    image = bench.stock.add(os.urandom(70_000))
    (bench.node.cache / "incomplete" / image.id).write_bytes(b"half")
    assert bench.precache(image).outcomes == {image.name: ("cached", None)}
    assert bench.cached(image) == bench.stock.data[image.id]


def test_a_file_that_broke_off_before_a_dead_worker_is_named(
    dead: tuple[NodeBench, Image],
) -> None:
    bench, _ = dead
    image = bench.stock.add(os.urandom(70_000))
    (bench.node.cache / "incomplete" / image.id).write_bytes(b"half")
    told = bench.precache(image)
    assert told.outcomes == {image.name: ("error", ErrorCode.STALL)}
    reason = told.details[image.name]["reason"]
    assert f"incomplete/{image.id}" in reason
    assert "restart glance-api" in reason


def test_an_image_whose_object_is_damaged_is_never_cached(dead: tuple[NodeBench, Image]) -> None:
    bench, _ = dead
    short, changed = (bench.stock.add(os.urandom(400_000)) for _ in range(2))
    os.truncate(bench.stock.cloud.glance.stored(short.id), 1000)
    bench.stock.cloud.glance.stored(changed.id).write_bytes(os.urandom(400_000))
    told = bench.precache(short, changed)
    assert told.outcomes == {
        short.name: ("error", ErrorCode.DOWNLOAD),
        changed.name: ("error", ErrorCode.STALL),
    }
    assert "in the store is damaged" in told.details[changed.name]["reason"]
    assert bench.cached(short) is None
    assert bench.cached(changed) is None


def test_where_downloads_fill_nothing_the_worker_is_named_stuck(
    service: ImageService, cloud: KeystoneAndGlance, tmp_path: Path
) -> None:
    with GlanceNode(cloud, tmp_path / "node", NodeOptions(pipeline=False)) as node:
        node.wait_ready()
        bench = node_bench(service, cloud, node, HASTY)
        with_dead_worker(bench)
        image = bench.stock.add(os.urandom(1000))
        told = bench.precache(image)
        assert told.outcomes == {image.name: ("error", ErrorCode.STALL)}
        reason = told.details[image.name]["reason"]
        assert "restart glance-api there, and see its log" in reason
        assert told.details[image.name]["bytes_fetched"] == 1000


def test_what_waits_is_listed_and_can_be_taken_back(dead: tuple[NodeBench, Image]) -> None:
    bench, lost = dead
    waiting, fetched = (bench.stock.add(os.urandom(1000)) for _ in range(2))
    bench.wait = False
    bench.precache(waiting, fetched)
    bench.wait = True
    cache = bench.inspect()
    queued = {entry.name: entry for entry in cache.entries if entry.kind is EntryKind.QUEUED}
    assert {lost.id, waiting.id, fetched.id} <= queued.keys()
    assert queued[waiting.id].image_id == waiting.id
    # Somebody downloads one of them before the order to take it back comes.
    bench.node.call("GET", f"/v2/images/{fetched.id}/file").raise_for_status()
    assert bench.remove(*items_of(cache, waiting.id, fetched.id)) == [
        (name, *ending)
        for name, ending in sorted(
            {
                waiting.id: ("removed", None),
                fetched.id: ("kept", ErrorCode.CHANGED),
            }.items()
        )
    ]
    assert waiting.id not in bench.node.state()["queued_images"]
    assert bench.cached(fetched) == bench.stock.data[fetched.id]
    # What waits is not what clean is for, but it says so.
    kept = {row.name: row.code for row in bench.clean() if row.name}
    assert kept[lost.id] is ErrorCode.TRANSFER


def test_a_node_west_of_greenwich_lets_go_of_what_it_fetched_just_now(
    service: ImageService, cloud: KeystoneAndGlance, tmp_path: Path
) -> None:
    """Glance tells its times five hours ahead there."""
    with GlanceNode(cloud, tmp_path / "west", NodeOptions(zone="EST5")) as node:
        node.wait_ready()
        bench = node_bench(service, cloud, node)
        image = bench.stock.add(os.urandom(5000))
        assert bench.precache(image).outcomes == {image.name: ("cached", None)}
        (told,) = node.state()["cached_images"]
        assert told["last_accessed"] > time.time() + 4 * 3600
        cache = look(bench)
        (entry,) = cache.entries
        assert entry.age_s == 0
        assert held_by(entry, Rules(cache.policy)) is None
