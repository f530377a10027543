"""Images that no selected host could have are refused before any host is contacted."""

from __future__ import annotations

import pytest

from imgcache.errors import ImageProblemsError
from imgcache.model import Digest, Host, HostSettings, Image, ImageId
from imgcache.operations.suitable import refuse_unsuitable


def image(disk_format: str, container_format: str = "bare") -> Image:
    image_id = ImageId("00000000-0000-4000-8000-000000000001")
    digest = Digest("sha256", "0" * 64)
    return Image(image_id, "disk", 512, disk_format, container_format, digest)


def host(driver: str) -> Host:
    return Host(driver, "all", None, None, HostSettings(driver=driver))


@pytest.mark.parametrize(
    ("disk_format", "container", "drivers", "why"),
    [
        ("vhd", "bare", ["libvirt"], "refuses to boot on libvirt"),
        ("vhd", "bare", ["libvirt", "vmwareapi"], "vmdk and iso only"),
        ("vmdk", "ova", ["libvirt"], "vSphere only"),
        ("qcow2", "bare", ["hyperv", "vmwareapi"], "vhd, vhdx and iso"),
    ],
)
def test_an_image_that_no_host_could_have_is_refused(
    disk_format: str, container: str, drivers: list[str], why: str
) -> None:
    with pytest.raises(ImageProblemsError) as caught:
        refuse_unsuitable([image(disk_format, container)], [host(name) for name in drivers])
    assert why in caught.value.problems[0].what


@pytest.mark.parametrize(
    ("disk_format", "container", "drivers"),
    [
        ("vhd", "bare", ["libvirt", "hyperv"]),
        ("vmdk", "ova", ["libvirt", "vmwareapi"]),
        ("qcow2", "bare", ["libvirt", "hyperv"]),
        ("vhd", "bare", ["glance-cache"]),
    ],
)
def test_an_image_that_some_host_could_have_is_judged_there(
    disk_format: str, container: str, drivers: list[str]
) -> None:
    refuse_unsuitable([image(disk_format, container)], [host(name) for name in drivers])
