"""``prove``: a final is what its image becomes here, or it is not; either way it is only read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import LIMITS, PUSH, base_name, from_service, image_of, pythons
from helper.life.tree import Life
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helper.controller import Frame
    from helper.life.tree import Tree

pytestmark = pytest.mark.qemu
CONTENT = os.urandom(1 << 20) + bytes(5 << 20) + os.urandom(1 << 20)


def converted(folder: Path, disk_format: str = "qcow2", content: bytes = CONTENT) -> bytes:
    """Return a disk image of this content."""
    plain, made = folder / "plain", folder / f"made.{disk_format}"
    plain.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", disk_format, plain, made], check=True)
    return made.read_bytes()


@dataclass
class Case:
    """One image, its final as Nova converted it, and a helper."""

    life: Life
    tree: Tree
    data: bytes
    image: Frame
    final: Path

    def order(self, source: Frame = PUSH, **changes: Any) -> int:
        self.life.load("journal", "qemu", "download", "body", "sources", "fetch", "prove")
        fields: Frame = {
            "base": self.final.name, "image": self.image, "source": source, "limits": LIMITS,
            "tool": "t", "run": "r", "rate": None, **changes,
        }  # fmt: skip
        return self.life.order("prove", **fields)

    def pushed(self, **changes: Any) -> Frame:
        """Push the image, and return the result or error."""
        number = self.order(**changes)
        self.life.event(number, "ready")
        self.life.push(number, self.data)
        return self.life.answer(number)

    def adopt(self, answer: Frame) -> str:
        stored = {"algo": answer["algo"], "value": answer["value"]}
        order = self.life.order(
            "adopt", base=self.final.name, image=self.image, stored=stored, tool="t", run="r"
        )
        state: str = self.life.result(order)["state"]
        return state

    def own(self) -> list[str]:
        return os.listdir(self.tree.own)


def make_case(life: Life, tree: Tree, data: bytes, disk_format: str = "qcow2") -> Case:
    image = image_of(data, disk_format)
    final = tree.base(base_name(image["id"]), CONTENT)
    return Case(life, tree, data, image, final)


@pytest.fixture
def case(life: Life, tree: Tree, tmp_path: Path) -> Iterator[Case]:
    made = make_case(life, tree, converted(tmp_path))
    before = made.final.stat()
    yield made
    if made.final.exists():
        after = made.final.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert (after.st_mode, after.st_uid, after.st_nlink) == (before.st_mode, before.st_uid, 1)


@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_what_nova_converted_is_proven_and_adopted(
    disk_format: str, life: Life, tree: Tree, tmp_path: Path
) -> None:
    case = make_case(life, tree, converted(tmp_path, disk_format), disk_format)
    before = case.final.stat()
    answer = case.pushed()
    assert {key: answer[key] for key in ("state", "reason", "algo", "value", "size")} == {
        "state": "proven", "reason": None, "algo": "sha512",
        "value": hashlib.sha512(CONTENT).hexdigest(), "size": len(CONTENT),
    }  # fmt: skip
    assert answer["bytes_fetched"] == len(case.data)
    assert case.own() == []
    assert case.adopt(answer) == "adopted"
    assert case.own() == [f"{case.final.name}.json"]
    manifest = json.loads((tree.own / case.own()[0]).read_text())
    assert manifest["digest"]["value"] == case.image["digest"]["value"]
    assert (manifest["stored"]["value"], manifest["stored"]["format"]) == (answer["value"], "raw")
    order = life.order("verify", base=case.final.name, rate=None)
    assert life.result(order)["state"] == "intact"
    assert (case.final.stat().st_ino, case.final.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


@pytest.mark.parametrize("python", pythons())
def test_under_every_python(python: str, tree: Tree, tmp_path: Path) -> None:
    with Life(python) as life:
        life.start_on(tree.instances)
        case = make_case(life, tree, converted(tmp_path))
        assert case.adopt(case.pushed()) == "adopted"


def test_it_converts_though_the_host_would_not_today(tree: Tree, tmp_path: Path) -> None:
    with Life() as life:
        life.start_on(tree.instances, force_raw_images=False)
        case = make_case(life, tree, converted(tmp_path))
        assert case.pushed()["state"] == "proven"


def test_from_the_service_as_a_fetch(case: Case) -> None:
    with http.HttpServer() as server:
        script = http.truncate_after(100_000), http.serve("length")
        url = server.route("/v2/images/i/file", case.data, *script)
        number = case.order(from_service(url))
        case.life.event(number, "retry")
        case.life.tell("again", number, token=None)
        answer = case.life.result(number)
    assert (answer["state"], answer["bytes_fetched"]) == ("proven", len(case.data))
    assert case.adopt(answer) == "adopted"


@pytest.mark.parametrize("algo", ["md5", "sha1", "sha256"])
def test_a_weak_digest_is_not_what_is_noted(algo: str, case: Case) -> None:
    value = hashlib.new(algo, case.data).hexdigest()
    case.image["digest"] = {"algo": algo, "value": value}
    answer = case.pushed()
    noted = "sha256" if algo == "sha256" else "sha512"
    assert (answer["state"], answer["algo"]) == ("proven", noted)
    assert answer["value"] == hashlib.new(noted, CONTENT).hexdigest()


@pytest.mark.parametrize("other", ["one bit", "longer", "the original"])
def test_other_content_stays_unmanaged(other: str, life: Life, tree: Tree, tmp_path: Path) -> None:
    case = make_case(life, tree, converted(tmp_path))
    content = {
        "one bit": CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), "longer": CONTENT + bytes(512),
        "the original": case.data[:-1] + b"x",
    }[other]  # fmt: skip
    case.final.write_bytes(content)
    answer = case.pushed()
    assert (answer["state"], answer["value"]) == ("other", None)
    assert ("bytes" in answer["reason"]) == (other != "one bit")
    assert case.final.read_bytes() == content
    assert case.own() == []
    proven = {"algo": "sha512", "value": hashlib.sha512(CONTENT).hexdigest()}
    assert case.adopt(proven) == "changed"


def test_what_has_another_size_is_told_without_a_conversion(
    life: Life, tree: Tree, tmp_path: Path
) -> None:
    """There would be no room for it."""
    huge = tmp_path / "huge"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", huge, "2T"], check=True)
    case = make_case(life, tree, huge.read_bytes())
    assert case.pushed()["state"] == "other"


def test_nothing_is_fetched_for_what_is_not_there(case: Case) -> None:
    case.final.unlink()
    answer = case.life.answer(case.order())
    assert (answer["state"], answer["bytes_fetched"]) == ("absent", 0)
    assert case.own() == []


def test_a_final_that_goes_meanwhile(case: Case) -> None:
    number = case.order()
    case.life.event(number, "ready")
    case.final.unlink()
    case.life.push(number, case.data)
    assert case.life.result(number)["state"] == "absent"
    assert case.own() == []


@pytest.mark.row("R26")
def test_a_final_exchanged_while_it_is_read(case: Case) -> None:
    number = case.order(rate=2 << 20)
    case.life.event(number, "ready")
    case.life.push(number, case.data)
    while case.own() or case.life.event(number, "progress")["phase"] != "hash":
        case.life.event(number, "progress")
    case.final.unlink()
    case.tree.base(case.final.name, CONTENT)
    assert case.life.error(number)["code"] == "changed"
    case.final.unlink()


def test_wrong_bytes_prove_nothing(case: Case) -> None:
    case.data = case.data[:-1] + bytes([case.data[-1] ^ 1])
    assert case.pushed()["code"] == "digest"
    assert case.own() == []


def test_stopped(case: Case) -> None:
    number = case.order(rate=1)
    case.life.event(number, "ready")
    case.life.push(number, case.data)
    while case.life.event(number, "progress")["phase"] != "hash":
        pass
    assert len(case.own()) == 1
    case.life.tell("stop", number)
    assert case.life.error(number)["code"] == "interrupted"
    assert case.own() == []


def test_a_controller_that_goes_leaves_nothing(case: Case) -> None:
    number = case.order()
    case.life.event(number, "ready")
    case.life.tell("data", number, case.data[:1000], size=1000)
    assert case.life.end() == 0
    assert case.own() == []
    assert case.final.read_bytes() == CONTENT


def test_the_name_must_be_the_images(case: Case) -> None:
    case.image["id"] = "another"
    error = case.life.error(case.order())
    assert error["code"] == "protocol"
