"""What the tests of the cache's life share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helper.life.tree import Life, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return a host's files with an empty cache."""
    return Tree(tmp_path / "instances")


@pytest.fixture
def life(tree: Tree) -> Iterator[Life]:
    """Return a helper whose cache is open."""
    with Life() as helper:
        helper.start_on(tree.instances)
        yield helper
