"""The one way to the inventory: find the file, read it and what it includes, check it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgcache.config.files import drop_ins_of, find_inventory_file, is_there, read_guarded
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
    environ = os.environ if environ is None else environ
    path = find_inventory_file(named, environ)
    drop_ins = drop_ins_of(path, environ)
    content = b"{}" if drop_ins and not is_there(path) else read_guarded(path)
    return parse_inventory(path, content, drop_ins=drop_ins)
