"""The contract of drivers, with the libvirt driver and the real helper; and what the base class gives."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from contract.driver_suite import Bench, Context, DriverSuite, Stock, raised_by
from imgcache.drivers.base import Driver, UnsupportedError
from imgcache.drivers.capabilities import supports
from imgcache.drivers.libvirt import LibvirtDriver
from imgcache.drivers.registry import DRIVERS
from imgcache.errors import ErrorCode
from imgcache.model import Host, HostSettings
from imgcache.transport.local import LocalTransport
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgcache.model import Image
    from imgcache.transport.base import Session, Transport


def libvirt_bench(tmp_path: Path) -> Bench:
    """Return the libvirt driver with this machine as its host."""
    instances = tmp_path / "instances"
    instances.mkdir()
    settings = HostSettings(
        transport="local", python=(sys.executable,), instances_path=str(instances),
        images_type="qcow2", reserve_bytes=0,
    )  # fmt: skip

    @asynccontextmanager
    async def transport() -> AsyncIterator[Transport]:
        yield LocalTransport()

    def cached(image: Image) -> bytes | None:
        path = instances / "_base" / image.base_name
        return path.read_bytes() if path.exists() else None

    return Bench(
        LibvirtDriver(), Host("h1", "edge", None, None, settings), transport, instances, cached
    )


class _OverSsh:
    """A transport that reaches its server whatever the host's settings say."""

    def __init__(self, ssh: SshTransport, settings: dict[str, object]) -> None:
        self._ssh = ssh
        self._settings = settings

    @asynccontextmanager
    async def open(self, host: Host, command: str) -> AsyncIterator[Session]:
        reached = HostSettings(**self._settings)  # type: ignore[arg-type]
        there = Host(host.name, host.aggregate, host.cell, host.site, reached)
        async with self._ssh.open(there, command) as session:
            yield session


def test_packages_are_not_for_libvirt(tmp_path: Path) -> None:
    bench = libvirt_bench(tmp_path)
    package = bench.stock.add(b"x" * 4096, disk_format="vmdk", container_format="ova")
    good = bench.stock.add(b"y" * 4096)
    told = bench.precache(package, good)
    assert told.outcomes == {
        package.name: ("error", ErrorCode.FORMAT), good.name: ("cached", None),
    }  # fmt: skip
    assert bench.cached(package) is None


class TestLibvirtHere(DriverSuite):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return libvirt_bench(tmp_path)


class TestLibvirtOverSsh(DriverSuite):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        bench = libvirt_bench(tmp_path)

        @asynccontextmanager
        async def transport() -> AsyncIterator[Transport]:
            async with ssh_server(tmp_path / "sshd") as server, SshTransport() as ssh:
                yield _OverSsh(ssh, server.host_settings())

        bench.open_transport = transport
        return bench


class ToyDriver(Driver):
    """A driver that only has a name."""

    name = "toy"


def test_a_driver_is_unsupported_until_it_says_otherwise() -> None:
    driver = ToyDriver()
    context = Context(Host("h1", "edge", None, None, HostSettings()), LocalTransport(), Stock())
    for work in (driver.precache(context, ()), driver.check(context, None)):
        error = raised_by(work)
        assert isinstance(error, UnsupportedError)
        assert driver.name in error.message
    assert not supports(driver, "precache")
    assert context.connections == 0
    assert context.outcomes == {}


def test_every_driver_has_its_own_name_in_the_table() -> None:
    assert all(name == driver.name for name, driver in DRIVERS.items())
    assert {"libvirt", "glance-cache", "vmwareapi", "hyperv"} <= set(DRIVERS)
