"""The contract of drivers with the hyperv driver: SSH, cmd and a real Windows Python, under wine."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from contract.driver_suite import Bench, DriverSuite, Stock
from contract.life_suite import LifeSuite
from contract.test_drivers import _OverSsh
from imgcache.drivers.hyperv import HypervDriver
from imgcache.model import Host, HostSettings
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server
from servers.vhd_files import fixed_vhd
from servers.wine import INSTALLED, windows_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgcache.model import Image
    from imgcache.transport.base import Transport
    from servers.wine import Wine

pytestmark = [pytest.mark.wine, pytest.mark.xdist_group("wine")]


class VhdStock(Stock):
    """Images that Hyper-V can use: the bytes given, as a fixed VHD."""

    def add(self, data: bytes, **changes: Any) -> Image:
        return super().add(fixed_vhd(data), **{"disk_format": "vhd", **changes})


def hyperv_bench(tmp_path: Path, windows: Wine) -> Bench:
    """Return the hyperv driver with a host behind an SSH server whose shell is wine's cmd."""
    instances = tmp_path / "Instances"
    instances.mkdir()
    settings: dict[str, Any] = {
        "driver": "hyperv", "python": (INSTALLED,), "instances_path": windows_path(instances),
        "reserve_bytes": 0,
    }  # fmt: skip

    @asynccontextmanager
    async def transport() -> AsyncIterator[Transport]:
        shell = windows.login_shell()
        async with ssh_server(tmp_path / "sshd", shell=shell) as server, SshTransport() as ssh:
            yield _OverSsh(ssh, server.host_settings(**settings))

    def cached(image: Image) -> bytes | None:
        path = instances / "_base" / f"{image.id}.vhd"
        return path.read_bytes() if path.exists() else None

    host = Host("hv1", "edge", None, None, HostSettings(**settings))
    return Bench(HypervDriver(), host, transport, instances, cached, VhdStock())


class TestHypervUnderWine(DriverSuite, LifeSuite):
    cannot = frozenset({"prove"})

    @pytest.fixture
    def bench(self, tmp_path: Path, windows: Wine) -> Bench:
        return hyperv_bench(tmp_path, windows)
