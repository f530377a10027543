"""What the helper's tests share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helper.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build ``faults.c``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).parent / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library
