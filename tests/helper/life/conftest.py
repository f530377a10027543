"""What the tests of the cache's life share."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helper.controller import let_others_reach
from helper.life.holders import BEGIN, HOLDERS
from helper.life.tree import Life, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.fixture
def needs_root() -> None:
    """Skip where the tests cannot become other users."""
    if os.geteuid():
        pytest.skip("needs root, to be two users")


@pytest.fixture(params=HOLDERS)
def holder(request: pytest.FixtureRequest) -> str:
    """Return the script of a process that has a file open in a way of its own."""
    return BEGIN + HOLDERS[request.param]


@pytest.fixture
def free_folder(tmp_path: Path) -> Path:
    """Return a folder that other users may enter, which pytest's own is not."""
    let_others_reach(tmp_path)
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that makes system calls fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).parents[1] / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library
