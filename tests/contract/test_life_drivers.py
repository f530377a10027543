"""The life of what drivers that look for users keep; apart from tests with files of the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from contract.life_suite import LifeSuite
from contract.test_drivers import libvirt_bench

if TYPE_CHECKING:
    from pathlib import Path

    from contract.driver_suite import Bench


class TestLibvirtLife(LifeSuite):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return libvirt_bench(tmp_path)
