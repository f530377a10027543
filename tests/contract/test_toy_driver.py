"""A driver of another package: the contract, in one file and a helper part of its own."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from contract.driver_suite import Bench, DriverSuite
from contract.life_suite import LifeSuite
from imgcache.model import Host, HostSettings
from imgcache.transport.local import LocalTransport
from toy_driver import ToyDriver
from toy_driver.install import install_toy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgcache.model import Image
    from imgcache.transport.base import Transport


class TestToyHere(DriverSuite, LifeSuite):
    cannot = frozenset({"clean", "verify", "prove", "pin", "renew"})

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        folder = tmp_path / "toys"
        folder.mkdir()
        settings = HostSettings(
            driver="toy", transport="local", python=(sys.executable,), instances_path=str(folder)
        )

        @asynccontextmanager
        async def transport() -> AsyncIterator[Transport]:
            yield LocalTransport()

        def cached(image: Image) -> bytes | None:
            path = folder / image.id
            return path.read_bytes() if path.exists() else None

        host = Host("h1", "edge", None, None, settings)
        bench = Bench(ToyDriver(), host, transport, folder, cached)
        bench.python_path = install_toy(tmp_path / "site")
        return bench
