"""Each order about the life of the cache once, as it goes well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helper.controller import pythons
from helper.life.tree import DAY, Life, Tree, sha1

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.qemu
@pytest.mark.parametrize("python", pythons())
def test_every_order(python: str, tree: Tree, tmp_path: Path) -> None:
    used, unused = tree.image("used"), tree.image("unused")
    tree.manifest(unused)
    tree.disk(used)
    with Life(python) as life:
        life.start_on(tree.instances)
        rows, facts = life.look()
        assert facts["problems"] == []
        assert facts["policy"]["original_min_age_s"] == DAY
        assert {name: row["users"] for name, row in rows.items()} == {used.name: 1, unused.name: 0}
        assert rows[used.name]["used_by"] == ["vm-1"]
        assert rows[unused.name]["manifest"]["image_name"] == "name"
        answer = life.result(life.order("verify", base=unused.name, rate=None))
        assert (answer["state"], answer["size"]) == ("intact", 8192)
        answer = life.result(life.order("verify", base=used.name, rate=None, algo="sha512"))
        assert answer["state"] == "unmanaged"
        stored = {"algo": answer["algo"], "value": answer["value"]}
        image = {"id": "used", "name": "n", "disk_format": "raw", "digest": stored}
        adopt = life.order("adopt", base=used.name, image=image, stored=stored, tool="t", run="r")
        assert life.result(adopt)["state"] == "adopted"
        pin = life.order("pin", base=used.name, until="forever")
        assert life.result(pin)["state"] == "pinned"
        manifest = json.loads((tree.own / f"{used.name}.json").read_text())
        assert (manifest["pin"], manifest["image_id"]) == ("forever", "used")
        assert life.remove(used, unused) == [("kept", "pinned"), ("removed", None)]
        assert life.clean() == {}
        life.order("bye")
        assert life.process.wait(10) == 0
    assert sorted(path.name for path in tree.cache.iterdir()) == [".imgcache", sha1("used")]
