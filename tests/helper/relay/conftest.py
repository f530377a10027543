"""What the relay's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helper.controller import Controller, pythons
from helper.relay.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["tls", "plain"])
def rig(request: pytest.FixtureRequest, helper: Controller, instances: Path) -> Iterator[Rig]:
    """Return a relay with the real times."""
    with Rig(helper, instances, tls=request.param == "tls") as rig:
        yield rig


@pytest.fixture(params=pythons())
def each_rig(request: pytest.FixtureRequest, instances: Path) -> Iterator[Rig]:
    """Return a relay under each Python that is here."""
    with Controller(request.param) as helper, Rig(helper, instances) as rig:
        yield rig
