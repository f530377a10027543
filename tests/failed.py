"""Writes the ids of failed tests into a file (``--failed-to``), for ``tools/run_tests.sh``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_failed: dict[str, None] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--failed-to", type=Path, default=None, help="write the failed tests' ids here"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed[_plain(report.nodeid)] = None


def _plain(node_id: str) -> str:
    """Return the id without the group that pytest-xdist adds at its end, after an ``@``."""
    head, bracket, tail = node_id.rpartition("]")
    return head + bracket + tail.partition("@")[0]


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--failed-to")
    if path is not None and not hasattr(session.config, "workerinput"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{node_id}\n" for node_id in _failed))
