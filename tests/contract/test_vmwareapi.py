"""The contract of drivers, with the vmwareapi driver, the real helper, and a simulated vCenter."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from contract.driver_suite import Bench, DriverSuite, Stock
from contract.life_suite import LifeSuite
from imgcache.drivers.vmwareapi import VmwareDriver
from imgcache.model import Host, HostSettings
from imgcache.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgcache.model import Image
    from imgcache.transport.base import Transport
    from servers.vcenter import VCenter


pytestmark = pytest.mark.vcenter


class WholeBlocks(dict[str, bytes]):
    """Contents of disks: what the suite makes has round sizes, and zeros follow it up to a whole KiB."""

    def __setitem__(self, key: str, data: bytes) -> None:
        round_size = len(data) % 1000 == 0
        super().__setitem__(key, whole(data) if round_size else data)


def whole(data: bytes) -> bytes:
    return data.ljust(max(1, -(-len(data) // 1024)) * 1024, b"\0")


class DiskStock(Stock):
    """Images as vSphere takes them: the plain content of preallocated disks."""

    def __init__(self) -> None:
        super().__init__()
        self.data = WholeBlocks()

    def add(self, data: bytes, **changes: Any) -> Image:
        """Add an image of these bytes, and zeros up to a whole KiB."""
        return super().add(whole(data), **{"disk_format": "vmdk", **changes})


def vmware_bench(vcenter: VCenter, tmp_path: Path) -> Bench:
    """Return the driver with this machine as the host of nova-compute."""
    conf = vcenter.nova_conf(tmp_path)
    settings = HostSettings(
        driver="vmwareapi", transport="local", python=(sys.executable,), nova_conf=(str(conf),),
        reserve_bytes=0,
    )  # fmt: skip

    @asynccontextmanager
    async def transport() -> AsyncIterator[Transport]:
        yield LocalTransport()

    def cached(image: Image) -> bytes | None:
        """Return the content, which must be the same on all datastores."""
        folders = vcenter.cached(image.id)
        contents = {
            (folder / f"{image.id}-flat.vmdk").read_bytes()
            for folder in folders
            if (folder / f"{image.id}.vmdk").exists()
        }
        assert len(contents) <= 1
        assert not contents or len(folders) == len(vcenter.stores)
        return contents.pop() if contents else None

    bench = Bench(
        VmwareDriver(), Host("h1", "edge", None, None, settings), transport, vcenter.folder, cached
    )
    bench.stock = DiskStock()
    return bench


class TestVmwareHere(DriverSuite, LifeSuite):
    cannot = frozenset({"prove"})

    cannot = frozenset({"prove"})

    @pytest.fixture
    def bench(self, vcenter: VCenter, tmp_path: Path) -> Bench:
        return vmware_bench(vcenter, tmp_path)
