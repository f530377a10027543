"""What the helper's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helper.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Return an instances_path as nova-compute leaves it before its first boot."""
    path = tmp_path / "instances"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def helper() -> Iterator[Controller]:
    """Return a started helper under the tests' own Python."""
    with Controller() as controller:
        yield controller
