"""The fixture of a vCenter for tests; see ``vcenter``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from servers.vcenter import VCenter, build_vcenter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[VCenter]:
    """Return a running vCenter with two datastores."""
    with VCenter(build_vcenter(), tmp_path / "vcenter") as running:
        yield running
