"""What imgcache puts on datastores, judged by Nova's own cache code; what that does, as imgcache sees it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller
from helper.vmware.conftest import Bench
from helper.vmware.disks import kinds, plain
from servers.vcenter import PASSWORD, USER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helper.controller import Frame
    from servers.vcenter import VCenter

pytestmark = [pytest.mark.vcenter, pytest.mark.qemu]

_ROOT = Path(__file__).parents[2]
NOVA_PYTHON = _ROOT / ".venv-nova/bin/python"


class Judge:
    """Nova's own code, in a process of its own."""

    def __init__(self, conf: Path, port: int) -> None:
        self.process = subprocess.Popen(
            [str(NOVA_PYTHON), "-W", "ignore", str(_ROOT / "tests/rig/nova_judge.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        about = {"conf": str(conf), "port": port}
        self._tell({**about, "user": USER, "password": PASSWORD})

    def _tell(self, order: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def __call__(self, do: str, **more: Any) -> dict[str, Any]:
        """Return what Nova's code says."""
        assert self.process.stdout
        self._tell({"do": do, **more})
        line = self.process.stdout.readline()
        assert line, "Nova's code broke off; see the captured standard error"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def bench(vcenter: VCenter, tmp_path: Path) -> Iterator[Bench]:
    """Return a helper that is logged in."""
    if not NOVA_PYTHON.exists():
        pytest.skip("needs .venv-nova, made of tools/requirements-nova.txt")
    with Controller() as helper:
        made = Bench(vcenter, helper, vcenter.nova_conf(tmp_path))
        assert made.open()["event"] == "result"
        yield made


@pytest.fixture
def judged(bench: Bench) -> Iterator[Judge]:
    """Return Nova's code."""
    judge = Judge(bench.conf, bench.vcenter.port)
    yield judge
    judge.close()


def as_nova_sees(fields: Frame) -> Frame:
    """Return an image as Nova's driver gets it."""
    image, properties = fields["image"], fields["properties"]
    disk_type = properties.get("hw_disk_type") or properties.get("vmware_disktype")
    return {
        "id": image["id"], "size": image["size"], "format": image["disk_format"],
        "disk_type": disk_type or "preallocated", "container": fields["container"],
    }  # fmt: skip


def timestamps(bench: Bench) -> set[str]:
    """Return the ids of the images that are marked as unused."""
    return {
        path.parent.name
        for store in bench.vcenter.stores.values()
        for path in store.glob("*/*/ts-*")
    }


def test_nova_finds_every_kind_and_fetches_nothing(bench: Bench, judged: Judge) -> None:
    all_fields = []
    for data, more in kinds().values():
        all_fields.append(bench.image(data, **more))
        assert bench.fetch(all_fields[-1])["state"] == "cached"
    absent = bench.image(plain())
    answer = judged("look", images=[as_nova_sees(one) for one in (*all_fields, absent)])
    assert answer["base"] == "10.0.0.5_base"
    for fields in all_fields:
        for store in bench.vcenter.stores:
            said, size = answer["found"][f"{store} {fields['image']['id']}"]
            assert said == "hit", fields
            # of a sparse disk Nova looks the size up: that of the disk, not that of its file
            sparse = fields["properties"].get("vmware_disktype") == "sparse"
            assert size == (len(plain()) if sparse else fields["image"]["size"])
    for store in bench.vcenter.stores:
        assert answer["found"][f"{store} {absent['image']['id']}"][0] == "miss"


def test_novas_aging_marks_and_renewing_takes_the_mark_away(bench: Bench, judged: Judge) -> None:
    first, second = bench.image(plain()), bench.image(plain())
    for fields in (first, second):
        bench.fetch(fields)
    ids = [fields["image"]["id"] for fields in (first, second)]
    judged("age", used=[])
    assert timestamps(bench) == set(ids)
    assert bench.touch(first)["touched"] is True
    assert timestamps(bench) == {ids[1]}
    # what is used loses its mark by Nova itself, and the touched one is marked anew
    judged("age", used=[ids[1]])
    assert timestamps(bench) == {ids[0]}


def test_what_is_renewed_outlives_what_is_not(bench: Bench, judged: Judge) -> None:
    kept, lost = bench.image(plain()), bench.image(plain())
    for fields in (kept, lost):
        bench.fetch(fields)
        for folder in bench.vcenter.cached(fields["image"]["id"]):
            (folder / "ts-2020-01-01-00-00-00").mkdir()
    bench.touch(kept)
    judged("age", used=[])
    assert bench.vcenter.cached(lost["image"]["id"]) == []
    assert len(bench.vcenter.cached(kept["image"]["id"])) == 2
    assert set(bench.list()) == {kept["image"]["id"]}
    assert bench.touch(lost)["state"] == "absent"


def test_a_boot_enlists_what_nova_had_marked(bench: Bench, judged: Judge) -> None:
    fields = bench.image(plain())
    bench.fetch(fields)
    judged("age", used=[])
    before = bench.list()[fields["image"]["id"]]
    judged("look", images=[as_nova_sees(fields)])
    assert timestamps(bench) == set()
    answer = bench.remove(before)
    assert (answer["state"], answer["code"]) == ("kept", "changed")
