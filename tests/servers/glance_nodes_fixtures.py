"""Fixtures of Glance nodes with caches: registered for all tests, started when a test first asks for them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from servers.glance_nodes import GlanceNode, NodeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.openstack import KeystoneAndGlance


@dataclass(frozen=True)
class GlanceNodes:
    """Nodes of one cloud, as different as nodes can be."""

    central: GlanceNode
    """Driver ``centralized_db``, uWSGI."""
    second: GlanceNode
    """Driver ``centralized_db``, gunicorn."""
    sqlite: GlanceNode
    """Driver ``sqlite``, uWSGI."""
    without: GlanceNode
    """Without a cache."""


@pytest.fixture(scope="session")
def glance_nodes(
    cloud: KeystoneAndGlance, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GlanceNodes]:
    """Four nodes on the database and the store of ``cloud``."""
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        # Two at a time: four that start together on a busy machine keep each other waiting too long.
        pairs = [
            [NodeOptions(), NodeOptions(wsgi="gunicorn")],
            [NodeOptions(driver="sqlite"), NodeOptions(cache=False)],
        ]
        started: list[GlanceNode] = []
        for pair in pairs:
            fresh = [
                stack.enter_context(GlanceNode(cloud, folder / f"{len(started) + index}", options))
                for index, options in enumerate(pair)
            ]
            for node in fresh:
                node.wait_ready()
            started += fresh
        yield GlanceNodes(*started)
