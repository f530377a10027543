"""The contract of drivers, with the glance-cache driver and real Glance nodes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from contract.driver_suite import Bench, DriverSuite
from contract.glance_bench import NodeBench, items_of, node_bench, service_of
from contract.life_suite import LifeSuite
from imgcache.drivers.base import UnsupportedError
from imgcache.drivers.capabilities import why_not
from imgcache.drivers.glance_cache import GlanceCacheDriver
from imgcache.errors import ErrorCode, HostError
from imgcache.images import client
from imgcache.model import EntryKind
from imgcache.plan import CheckState, SourceKind
from servers.openstack import MEMBER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.images.base import ImageService
    from servers.glance_nodes import GlanceNode
    from servers.glance_nodes_fixtures import GlanceNodes
    from servers.openstack import KeystoneAndGlance

pytestmark = pytest.mark.openstack


@pytest.fixture(scope="module")
def service(cloud: KeystoneAndGlance) -> Iterator[ImageService]:
    with service_of(cloud) as opened:
        yield opened


@pytest.fixture
def bench(service: ImageService, cloud: KeystoneAndGlance, glance_nodes: GlanceNodes) -> NodeBench:
    return node_bench(service, cloud, glance_nodes.central)


class _Suite(DriverSuite, LifeSuite):
    """The shared suite; what is about bytes that come from us is about the node's own fetch here."""

    cannot = frozenset({"verify", "prove", "pin", "renew"})
    source = SourceKind.SERVICE
    connections = 0  # no helper, no SSH
    which: str

    @pytest.fixture
    def bench(
        self, service: ImageService, cloud: KeystoneAndGlance, glance_nodes: GlanceNodes
    ) -> NodeBench:
        node: GlanceNode = getattr(glance_nodes, self.which)
        node.call("DELETE", "/v2/cache").raise_for_status()
        return node_bench(service, cloud, node)

    def test_the_second_time_all_is_existing_and_renewed(self, bench: Bench) -> None:
        """Glance renews by downloads only."""
        image = bench.stock.add(os.urandom(5000))
        bench.precache(image)
        before = bench.tree()
        told = bench.precache(image)
        assert told.outcomes == {image.name: ("existing", None)}
        assert told.details[image.name].get("bytes_fetched", 0) == 0
        assert told.details[image.name].get("source") is None
        assert bench.tree() == before

    def test_one_images_trouble_leaves_the_rest_alone(self, bench: Bench) -> None:
        """An image that is gone from Glance, and one that is deactivated, after they were found."""
        assert isinstance(bench, NodeBench)
        gone, good, blocked = (bench.stock.add(os.urandom(9000)) for _ in range(3))
        glance, token = bench.stock.cloud.glance, bench.stock.cloud.admin_token
        glance.call("DELETE", f"/v2/images/{gone.id}", token=token, expect=204)
        deactivate = f"/v2/images/{blocked.id}/actions/deactivate"
        glance.call("POST", deactivate, token=token, expect=204)
        told = bench.precache(gone, good, blocked)
        assert told.outcomes == {
            gone.name: ("error", ErrorCode.GONE),
            good.name: ("cached", None),
            blocked.name: ("error", ErrorCode.NODATA),
        }
        assert "status active" in told.details[blocked.name]["reason"]

    def test_cleaning_a_clean_cache_removes_nothing(self, bench: Bench) -> None:
        """The node does not say what it removed, if anything: there is one row for the whole host."""
        assert isinstance(bench, NodeBench)
        image = bench.stock.add(os.urandom(900))
        bench.precache(image)
        assert [(row.name, row.bytes) for row in bench.clean()] == [("", 0)]
        assert bench.cached(image) is not None

    # About bytes and a connection that this driver does not have; the node's own troubles are in
    # test_glance_cache_troubles.
    test_too_few_bytes_are_never_an_image = None  # type: ignore[assignment]
    test_lost_contact_is_raised_with_what_was_done_reported = None  # type: ignore[assignment]


class TestCentralDatabase(_Suite):
    which = "central"


class TestCentralDatabaseBehindGunicorn(_Suite):
    which = "second"
    # the same whatever the node is
    test_a_command_that_it_cannot_serve_ends_unsupported_with_a_warning = None  # type: ignore[assignment]


class TestSqlite(_Suite):
    which = "sqlite"
    test_a_command_that_it_cannot_serve_ends_unsupported_with_a_warning = None  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------ what is there


def test_what_is_cached_and_queued_is_told_with_hits_and_last_use(bench: NodeBench) -> None:
    image = bench.stock.add(os.urandom(40_000))
    bench.precache(image)
    (fresh,) = [entry for entry in bench.inspect().entries if entry.name == image.id]
    assert (fresh.kind, fresh.image_id, fresh.hits) == (EntryKind.ORIGINAL, image.id, 0)
    assert fresh.size_bytes == fresh.allocated_bytes == 40_000
    assert fresh.users == 0
    assert 0 <= fresh.age_s < 600
    bench.node.hit(image.id)
    (used,) = [entry for entry in bench.inspect().entries if entry.name == image.id]
    assert used.hits == 1
    assert used.mtime_ns > fresh.mtime_ns
    cache = bench.inspect()
    assert cache.cache_path == bench.node.url
    assert cache.evidence_problems == ()


def test_removal_decides_again(bench: NodeBench) -> None:
    old, young, vanished = (bench.stock.add(os.urandom(1000)) for _ in range(3))
    bench.precache(old, young, vanished)
    cache = bench.inspect()
    bench.node.call("DELETE", f"/v2/cache/{vanished.id}").raise_for_status()
    items = [
        *items_of(cache, old.id),
        *items_of(cache, young.id, min_age_s=3600.0),
        *items_of(cache, vanished.id),
    ]
    assert bench.remove(*items) == [
        (old.id, "removed", None),
        (young.id, "kept", ErrorCode.YOUNG),
        (vanished.id, "gone", None),
    ]
    assert bench.cached(old) is None
    assert bench.cached(young) is not None


def test_an_orphan_is_told_and_can_be_removed(bench: NodeBench) -> None:
    image = bench.stock.add(os.urandom(1000))
    bench.precache(image)
    # through a Glance that has no part in this cache
    glance, token = bench.stock.cloud.glance, bench.stock.cloud.admin_token
    glance.call("DELETE", f"/v2/images/{image.id}", token=token, expect=204)
    cache = bench.inspect()
    assert image.id in {entry.image_id for entry in cache.entries}
    assert bench.remove(*items_of(cache, image.id)) == [(image.id, "removed", None)]
    assert bench.cached(image) is None


def test_clean_has_the_node_remove_what_broke_off(bench: NodeBench) -> None:
    invalid = bench.node.cache / "invalid" / "0c3e4a06-0000-4000-8000-000000000001"
    stalled = bench.node.cache / "incomplete" / "0c3e4a06-0000-4000-8000-000000000002"
    fresh = bench.node.cache / "incomplete" / "0c3e4a06-0000-4000-8000-000000000003"
    for path in (invalid, stalled, fresh):
        path.write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86400
    os.utime(stalled, (two_days_ago, two_days_ago))
    (planned,) = bench.clean(dry_run=True)
    assert (planned.state, planned.code) == ("kept", ErrorCode.DRY_RUN)
    assert invalid.exists()
    (done,) = bench.clean()
    assert (done.name, done.state, done.code) == ("", "removed", None)
    assert [path.exists() for path in (invalid, stalled, fresh)] == [False, False, True]
    fresh.unlink()


# ----------------------------------------------------------------------------------------- who and where


def test_a_member_is_told_that_it_takes_an_admin(
    cloud: KeystoneAndGlance, service: ImageService, bench: NodeBench
) -> None:
    image = bench.stock.add(os.urandom(100), visibility="public")
    with service_of(cloud, MEMBER) as as_member:
        bench.service = as_member
        for work in (lambda: bench.precache(image), bench.inspect, bench.clean):
            with pytest.raises(HostError) as caught:
                work()
            assert caught.value.code is ErrorCode.FORBIDDEN
            assert "role admin" in caught.value.message
            assert caught.value.hint is not None
        ((check, state, detail),) = bench.check()
    assert (check, state) == ("rights", CheckState.FAIL)
    assert "role admin" in detail
    assert bench.cached(image) is None


def test_a_node_without_a_cache_is_unsupported(
    service: ImageService, cloud: KeystoneAndGlance, glance_nodes: GlanceNodes
) -> None:
    bench = node_bench(service, cloud, glance_nodes.without)
    for work in (bench.precache, bench.inspect, bench.clean, bench.check):
        with pytest.raises(UnsupportedError) as caught:
            work()
        assert (
            "image_cache_dir is not set" in caught.value.message or "2.18" in caught.value.message
        )


def test_a_node_that_is_down_is_unreachable(
    bench: NodeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FIRST_DELAY_S", 0.01)
    settings = replace(bench.host.settings, endpoint="http://127.0.0.1:1")
    bench.host = replace(bench.host, settings=settings)
    ((check, state, detail),) = bench.check()
    assert (check, state) == ("api", CheckState.FAIL)
    assert "127.0.0.1:1" in detail


def test_an_endpoint_that_is_missing_is_asked_for(bench: NodeBench) -> None:
    bench.host = replace(bench.host, settings=replace(bench.host.settings, endpoint=None))
    with pytest.raises(HostError) as caught:
        bench.precache()
    assert caught.value.code is ErrorCode.CONFIG
    assert caught.value.hint is not None
    assert "endpoint: http://g1:9292" in caught.value.hint
    ((check, state, _),) = bench.check()
    assert (check, state) == ("endpoint", CheckState.FAIL)


def test_without_glance_there_are_no_nodes(bench: NodeBench) -> None:
    bench.service = None  # type: ignore[assignment]
    with pytest.raises(HostError) as caught:
        bench.inspect()
    assert caught.value.code is ErrorCode.CONFIG


def test_what_a_glance_cache_cannot_is_said_with_a_reason() -> None:
    driver = GlanceCacheDriver()
    for command in ("verify", "pin", "unpin", "refresh", "precache --keep-for"):
        reason = why_not(driver, command)
        assert reason is not None
        assert "Glance" in reason
