"""The one way to the inventory: find the file, read it, check it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgcache.config.files import find_inventory_file, read_guarded
from imgcache.config.inventory import parse_inventory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from imgcache.model import Inventory


def load_inventory(
    named: Path | None = None, environ: Mapping[str, str] | None = None
) -> Inventory:
    """Find, read and check the inventory; see ``find_inventory_file`` for where it is looked for.

    Raises:
        ConfigError: there is none, others could change it, or it is wrong; lists every problem.
    """
    path = find_inventory_file(named, os.environ if environ is None else environ)
    return parse_inventory(path, read_guarded(path))
