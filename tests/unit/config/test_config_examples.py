"""Every example loads, and docs/inventory.md names every key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgcache.config.load import load_inventory
from imgcache.config.schema import AggregateEntry, ImageServiceEntry, SiteEntry
from imgcache.images.directory import DirectoryImageService

if TYPE_CHECKING:
    from imgcache.model import Inventory

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("inventory*.yaml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the examples that belongs to us."""
    target = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", target, copy_function=shutil.copyfile)
    return target


def load(folder: Path, name: str) -> Inventory:
    return load_inventory(folder / name, {})


@pytest.mark.parametrize("name", [path.name for path in EXAMPLES])
def test_every_example_loads(folder: Path, name: str) -> None:
    assert load(folder, name).aggregates


def test_what_the_first_example_says(folder: Path) -> None:
    aggregates = load(folder, "inventory.yaml").aggregates
    counts = {name: len(aggregate.hosts) for name, aggregate in aggregates.items()}
    assert counts == {"edge-oslo": 20, "edge-bergen": 13, "core": 120, "ssd": 4}
    assert aggregates["core"].hosts[0].settings.become == "sudo"


def test_the_directory_example_finds_its_images(folder: Path) -> None:
    service = load(folder, "inventory-directory.yaml").image_service
    assert service.path == folder / "images"
    for name in ("cirros-0.6.qcow2", "appliance.raw"):
        (folder / "images" / name).write_bytes(b"x" * 512)
    with DirectoryImageService(service.path) as images:
        found = images.find_images(["cirros-0.6", "0b8c6c0a-3c0f-4b1e-8a62-5d6f2f7d9e42"])
    assert [(image.name, image.disk_format) for image in found] == [
        ("cirros-0.6", "qcow2"),
        ("appliance", "raw"),
    ]


def test_the_readme_names_every_example() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in EXAMPLES)


def test_the_reference_names_every_key() -> None:
    text = (ROOT / "docs" / "inventory.md").read_text()
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    named |= set(re.findall(r"^    (\w+):", text, re.MULTILINE))
    keys = {
        *AggregateEntry.model_fields,
        *ImageServiceEntry.model_fields,
        *SiteEntry.model_fields,
    }
    assert keys <= named
    states = {"new", "known", "changed", "error", "skipped"}
    assert named - keys - states == {"imgcache"}  # the quoted error message
