"""``images.yaml`` of a directory image service: what is refused, where it says so, and its digests."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from imgcache.errors import ConfigError, ExitCode, ImageProblemsError
from imgcache.images.digests import FILE_NAME as DIGESTS
from imgcache.images.directory import DirectoryImageService
from imgcache.images.open import open_image_service
from imgcache.images.options import CloudOptions
from imgcache.model import ImageServiceSettings

if TYPE_CHECKING:
    from pathlib import Path

ID = "b9a1a2f0-6f39-4f0d-9b0c-0d2f0e6d5c11"
ENTRY = {"id": ID, "name": "tiny", "file": "tiny.img", "disk_format": "raw"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "tiny.img").write_bytes(b"tiny image")
    return folder


def write(folder: Path, *entries: dict[str, Any]) -> None:
    (folder / "images.yaml").write_text(yaml.safe_dump({"images": list(entries)}))


def problems(folder: Path, text: str | None = None) -> list[str]:
    """Return ``place: what`` of each problem, without the file's name."""
    if text is not None:
        (folder / "images.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        DirectoryImageService(folder)
    assert caught.value.exit_code == ExitCode.USAGE
    prefix = str(folder / "images.yaml")
    for problem in caught.value.problems:
        assert problem.where.startswith(prefix)
    return [f"{problem.where[len(prefix) :]}: {problem.what}" for problem in caught.value.problems]


def test_every_problem_is_listed_with_its_place(folder: Path) -> None:
    found = problems(
        folder,
        "images:\n"
        "  - id: not-a-uuid\n"
        "    name: one\n"
        "    file: ../one.img\n"
        "    disk_format: ploop\n"
        "  - nmae: two\n"
        f"    id: {ID}\n"
        "    file: missing.img\n"
        "    disk_format: raw\n"
        "    sha512: abc\n"
        "    status: asleep\n"
        "extra: 1\n",
    )
    places = {line.partition(": ")[0] + line.partition(": ")[2][:30]: line for line in found}
    text = "\n".join(places.values())
    for expected in (
        ":2:9: images[0].id: not-a-uuid is not a UUID",
        ":4:11: images[0].file: ../one.img must be a path inside the folder",
        ":5:18: images[0].disk_format: must be one of",
        ":6:5: images[1].nmae: unknown key",
        ":6:5: images[1].name: is missing",
        ":8:11: images[1].file: missing.img: No such file or directory",
        ":10:13: images[1].sha512: is not a sha512 digest",
        ":11:13: images[1].status: must be one of",
        ":12:1: extra: unknown key",
    ):
        assert expected in text
    assert len(found) == 9


def test_anchors_and_merge_keys_are_understood(folder: Path) -> None:
    text = f"images:\n  - &one {{id: {ID}, name: tiny, file: tiny.img, disk_format: raw}}\n"
    text += f"  - {{<<: *one, id: {uuid.uuid4()}, name: again}}\n"
    (folder / "images.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(DirectoryImageService(folder).find_images(["tiny", "again"])) == 2


def test_the_nearest_key_is_named(folder: Path) -> None:
    (folder / "images.yaml").write_text(f"images:\n  - id: {ID}\n    nmae: x\n")
    with pytest.raises(ConfigError) as caught:
        DirectoryImageService(folder)
    assert "did you mean name?" in {problem.hint for problem in caught.value.problems}


@pytest.mark.row("C7")
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("- 1", "must be a mapping"),
        ("images: 7", "must be a list"),
        ("images: [7]", "must be a mapping"),
        ("images: [", "not valid YAML"),
        ("images:\n\t- 1", "a tab"),
        ("images: !!python/object/apply:os.system [id]", "tags (!) are not accepted"),
        ("a: &a [1]\nimages: [*a, *a]", "must be a mapping"),
        ("images: " + "[" * 500 + "]" * 500, "nested deeper than"),
        ("images: []\nimages: []", "given twice"),
        ("images: []\n? [1]\n: 2", "a key that is a list"),
        ("images: [{id: [1], name: {a: b}, file: '', disk_format: null}]", "must be a text"),
        ("\0", "a NUL byte"),
        ("#" * (1024 * 1024 + 1), "larger than"),
    ],
)
def test_damaged_files_are_refused(folder: Path, text: str, what: str) -> None:
    assert any(what in problem for problem in problems(folder, text))


def test_no_file_is_told_from_a_bad_one(tmp_path: Path) -> None:
    assert "No such file" in problems(tmp_path)[0]


def test_a_folder_must_be_named() -> None:
    with pytest.raises(ConfigError):
        open_image_service(ImageServiceSettings(kind="directory"), CloudOptions())


def test_an_id_is_given_once(folder: Path) -> None:
    write(folder, ENTRY, {**ENTRY, "id": ID.upper(), "name": "again"})
    assert any("another image too" in problem for problem in problems(folder))


@pytest.mark.row("R14")
def test_a_link_may_not_lead_out_of_the_folder(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "out.img").symlink_to("../secret")
    (folder / "in.img").symlink_to("tiny.img")
    (folder / "circle.img").symlink_to("circle.img")
    os.mkfifo(folder / "fifo.img")
    names = ["out.img", "circle.img", "fifo.img", str(folder / "tiny.img"), "."]
    entries = [{**ENTRY, "id": str(uuid.uuid4()), "file": name} for name in names]
    write(folder, *entries, {**ENTRY, "file": "in.img"})
    found = problems(folder)
    assert len(found) == len(names)
    assert "leads out of the folder" in found[0]
    assert "circle" in found[1]
    assert "not a regular file" in found[2]


def test_a_file_that_was_exchanged_for_a_link_is_not_read(folder: Path) -> None:
    write(folder, ENTRY)
    service = DirectoryImageService(folder)
    (folder.parent / "secret").write_bytes(b"tiny image")
    (folder / "tiny.img").unlink()
    (folder / "tiny.img").symlink_to("../secret")
    with pytest.raises(ImageProblemsError) as caught:
        service.find_images([ID])
    assert "cannot be read" in caught.value.problems[0].what


def test_a_given_digest_is_taken_and_nothing_is_written(folder: Path) -> None:
    value = hashlib.sha256(b"tiny image").hexdigest()
    write(folder, {**ENTRY, "sha256": value.upper()})
    (image,) = DirectoryImageService(folder).find_images(["tiny"])
    assert (image.digest.algo, image.digest.value) == ("sha256", value)
    assert not (folder / DIGESTS).exists()


def test_only_one_digest_may_be_given(folder: Path) -> None:
    write(folder, {**ENTRY, "sha256": "0" * 64, "md5": "0" * 32})
    assert any("give one digest" in problem for problem in problems(folder))


class TestDigestCache:
    def value(self, folder: Path) -> str:
        write(folder, ENTRY)
        (image,) = DirectoryImageService(folder).find_images([ID])
        return image.digest.value

    def test_is_used_while_the_file_is_the_same(self, folder: Path) -> None:
        first = self.value(folder)
        cache = folder / DIGESTS
        content = json.loads(cache.read_text())
        content["files"]["tiny.img"]["sha512"] = "0" * 128
        cache.write_text(json.dumps(content))
        assert self.value(folder) == "0" * 128 != first

    @pytest.mark.parametrize("change", ["content", "time", "file"])
    def test_is_not_used_when_the_file_changed(self, folder: Path, change: str) -> None:
        self.value(folder)
        path = folder / "tiny.img"
        if change == "content":
            path.write_bytes(b"TINY IMAGE!")
        elif change == "time":
            path.write_bytes(b"TINY IMAGE")
        else:
            stamp = path.stat().st_mtime_ns
            other = folder / "other"
            other.write_bytes(b"TINY IMAGE")
            os.utime(other, ns=(stamp, stamp))
            other.replace(path)
        assert self.value(folder) == hashlib.sha512(path.read_bytes()).hexdigest()

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", '{"files": 3}', '{"files": {"tiny.img": []}}', "[" * 9999]
    )
    def test_a_damaged_one_only_costs_time(self, folder: Path, text: str) -> None:
        (folder / DIGESTS).write_text(text)
        assert self.value(folder) == hashlib.sha512(b"tiny image").hexdigest()

    def test_an_unwritable_folder_only_costs_time(self, folder: Path) -> None:
        # a folder in its place: not even root can replace it by a file
        (folder / DIGESTS).mkdir()
        assert self.value(folder) == hashlib.sha512(b"tiny image").hexdigest()
        assert sorted(path.name for path in folder.iterdir()) == [
            DIGESTS,
            "images.yaml",
            "tiny.img",
        ]
