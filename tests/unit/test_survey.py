"""What a first look at hosts says about a site: bytes from outside, and how long one host takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgcache.distribution import PAYLOAD, PrecachePlan
from imgcache.errors import ErrorCode
from imgcache.model import Digest, Host, HostSettings, Image, ImageId, Site
from imgcache.operations.precache import PrecacheRequest
from imgcache.operations.selection import Selection
from imgcache.operations.survey import plan_sites, too_short_timeouts
from imgcache.operations.window import Schedule
from imgcache.plan import Outcome, OutcomeWord

if TYPE_CHECKING:
    from imgcache.distribution import SitePlan

IMAGE = Image(ImageId("1" * 36), "debian-12", 1000_000, "raw", "bare", Digest("sha512", "0" * 128))
OTHER = replace(IMAGE, id=ImageId("2" * 36), size_bytes=500_000)
REQUEST = PrecacheRequest(selection=Selection(all=True), names=())


def look(
    drivers: list[str],
    images: tuple[Image, ...] = (IMAGE,),
    request: PrecacheRequest = REQUEST,
    site: Site | None = None,
) -> SitePlan:
    """Return the plan of one site whose hosts, of these drivers, lack all images."""
    site = site or Site("oslo", 100_000)
    hosts = tuple(
        Host(f"h{number}", "edge", None, site.name, HostSettings(driver=driver))
        for number, driver in enumerate(drivers)
    )
    outcomes = [
        Outcome(
            host.name, "edge", None, image.id, image.name, OutcomeWord.SKIPPED, ErrorCode.DRY_RUN
        )
        for host in hosts
        for image in images
    ]
    plan = PrecachePlan(images=images, hosts=hosts, sites={site.name: site})
    schedule = Schedule(hosts, plan.sites, window=site.window)
    (found,) = plan_sites(plan, outcomes, request, schedule, 10)
    return found


@pytest.mark.parametrize(
    ("drivers", "source", "copies"),
    [
        (["libvirt"] * 4, "auto", 1),
        (["libvirt"] * 4, "service", 4),
        (["hyperv"] * 4, "auto", 4),
        (["vmwareapi"] * 3 + ["libvirt"] * 2, "relay", 4),
    ],
)
def test_hosts_that_do_not_read_from_each_other_get_a_copy_each(
    drivers: list[str], source: str, copies: int
) -> None:
    found = look(drivers, request=replace(REQUEST, source=source))  # type: ignore[arg-type]
    assert found.bytes_outside == copies * IMAGE.size_bytes


def test_how_long_one_host_takes_beside_others() -> None:
    both = (IMAGE, OTHER)
    assert look(["libvirt"] * 20, both).host_s == pytest.approx(15 / PAYLOAD)
    direct = look(["libvirt"] * 20, both, replace(REQUEST, source="service"))
    assert (direct.host_s, direct.expected_s) == pytest.approx((150 / PAYLOAD, 300 / PAYLOAD))
    limited = look(["libvirt"] * 20, both, replace(REQUEST, rate_limit=50_000), Site("oslo", None))
    assert (limited.host_s, limited.expected_s) == pytest.approx((30 / PAYLOAD, 30 / PAYLOAD))
    assert look(["libvirt"], site=Site("oslo", None)).host_s is None


def test_a_timeout_shorter_than_that_is_told_unless_the_window_is_shorter_still() -> None:
    found = look(["libvirt"] * 20, request=replace(REQUEST, source="service"))
    assert too_short_timeouts([found], 105) == []
    assert too_short_timeouts([found], 60) == [
        "site oslo: a host needs 1m 44s at this rate, and --timeout ends it after 1m 0s"
    ]
    assert too_short_timeouts([replace(found, available_s=50)], 60) == []
