"""Installs the toy driver into a folder, as a package manager would."""

from __future__ import annotations

import shutil
from pathlib import Path

ENTRY_POINTS = "[imgcache.drivers]\ntoy = toy_driver:ToyDriver\n"


def install_toy(
    folder: Path, *, entry_points: str = ENTRY_POINTS, name: str = "imgcache-toy"
) -> Path:
    """Return a folder for PYTHONPATH with the package and its metadata."""
    source = Path(__file__).parent
    if not (folder / "toy_driver").exists():
        shutil.copytree(
            source,
            folder / "toy_driver",
            ignore=shutil.ignore_patterns("install.py", "__pycache__"),
        )
    register(folder, name, entry_points)
    return folder


def register(folder: Path, name: str, entry_points: str) -> None:
    """Write the metadata of a package that registers drivers."""
    metadata = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (metadata / "entry_points.txt").write_text(entry_points)
