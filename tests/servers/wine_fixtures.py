"""Fixtures of tests that run the helper under a real Windows Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from servers import wine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def windows() -> Iterator[wine.Wine]:
    """Return a warm wine prefix with two Windows Pythons."""
    reason = wine.missing()
    if reason:
        pytest.skip(reason)
    with wine.Wine() as prefix:
        yield prefix
