"""What the tests of the helper's vmwareapi part share: a helper that is logged in to a vCenter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import LIMITS, PUSH, Controller, Frame
from helper.vmware.disks import sha
from imgcache.drivers.vmwareapi import BASE_MODULES, FETCH_MODULES, VERIFY_MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.vcenter import VCenter

_NUMBERS = itertools.count(1)


@dataclass
class Bench:
    """One helper on the host of nova-compute, and the vCenter that this one manages."""

    vcenter: VCenter
    helper: Controller
    conf: Path
    images: dict[str, bytes] = field(default_factory=dict)

    def open(self, **more: Any) -> Frame:
        """Log in."""
        self.helper.load(*BASE_MODULES, *FETCH_MODULES, *VERIFY_MODULES)
        settings = {"nova_conf": [str(self.conf)], **more}
        return self.helper.answer(self.helper.order("vmware_open", settings=settings))

    def image(self, data: bytes, **more: Any) -> Frame:
        """Return the fields of an order about an image of these bytes."""
        digest = sha(data)
        image_id = f"{digest[:8]}-{digest[8:12]}-4000-8000-{next(_NUMBERS):012d}"
        self.images[image_id] = data
        image = {
            "id": image_id, "name": "test", "size": len(data), "virtual_size": None,
            "disk_format": more.get("disk_format", "vmdk"),
            "digest": {"algo": "sha512", "value": digest},
        }  # fmt: skip
        properties, container = more.get("properties", {}), more.get("container", "bare")
        return {"image": image, "properties": properties, "container": container}

    def begin(self, fields: Frame, source: Frame = PUSH, **limits: Any) -> int:
        """Order a fetch."""
        return self.helper.order(
            "vmware_fetch", base="unused", source=dict(source), limits={**LIMITS, **limits},
            tool="imgcache test", run="run-1", **fields,
        )  # fmt: skip

    def fetch(self, fields: Frame, sent: bytes | None = None, **limits: Any) -> Frame:
        """Push an image; ``sent``: other bytes than the image's."""
        order = self.begin(fields, **limits)
        data = self.images[fields["image"]["id"]] if sent is None else sent
        self.helper.push_when_ready(order, data)
        return self.helper.answer(order)

    def touch(self, fields: Frame, *, dry: bool = False) -> Frame:
        """Look for an image, and renew it."""
        order = self.helper.order("vmware_touch", dry=dry, reserve=0, **fields)
        return self.helper.answer(order)

    def rows(self, op: str, **fields: Any) -> list[Frame]:
        """Return the rows of an order that is answered with some."""
        order = self.helper.order(op, **fields)
        self.helper.result(order)
        frames = [frame for frame in self.helper.frames if frame.get("id") == order]
        return [row for frame in frames if frame["event"] == "rows" for row in frame["rows"]]

    def list(self, *, use: bool = True) -> dict[str, Frame]:
        """Return the rows of ``vmware_list`` by name."""
        return {row["name"]: row for row in self.rows("vmware_list", use=use)}

    def remove(self, row: Frame, **changes: Any) -> Frame:
        """Remove one entry, as it was listed."""
        item = {
            "name": row["name"], "inode": row["inode"], "mtime_ns": row["mtime_ns"],
            "min_age_s": 0, "ours_ok": True, "pinned_ok": False, **changes,
        }  # fmt: skip
        [answer] = self.rows("vmware_remove", items=[item])
        return answer


@pytest.fixture
def bench(vcenter: VCenter, tmp_path: Path) -> Iterator[Bench]:
    """Return a helper that is logged in."""
    with Controller() as helper:
        made = Bench(vcenter, helper, vcenter.nova_conf(tmp_path))
        assert made.open()["event"] == "result"
        yield made
