"""From Glance's record to an image that may be cached: every reason to refuse."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.errors import Problem
from imgcache.images.records import digest_from, image_from_record, is_image_id
from imgcache.model import Image

SHA512 = hashlib.sha512(b"x").hexdigest()
MD5 = hashlib.md5(b"x").hexdigest()
RECORD: dict[str, Any] = {
    "id": "b9a1a2f0-6f39-4f0d-9b0c-0d2f0e6d5c11",
    "name": "name",
    "status": "active",
    "size": 5,
    "virtual_size": 9,
    "disk_format": "qcow2",
    "container_format": "bare",
    "checksum": MD5,
    "os_hash_algo": "sha512",
    "os_hash_value": SHA512,
}


def image(**changes: Any) -> Image:
    result = image_from_record("given", {**RECORD, **changes})
    assert isinstance(result, Image), result
    return result


def problem(**changes: Any) -> Problem:
    result = image_from_record("given", {**RECORD, **changes})
    assert isinstance(result, Problem), result
    assert result.where == "given"
    return result


def test_a_good_record_becomes_an_image() -> None:
    found = image()
    assert (found.id, found.size_bytes, found.virtual_size_bytes) == (RECORD["id"], 5, 9)
    assert (found.digest.algo, found.digest.value) == ("sha512", SHA512)


@pytest.mark.row("T11")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"status": "deactivated"}, "not active but deactivated"),
        ({"status": "queued", "size": None}, "not active but queued"),
        ({"status": None}, "in no state"),
        ({"size": 0}, "0 bytes"),
        ({"size": None}, "no size"),
        ({"size": -1}, "no size"),
        ({"size": True}, "no size"),
        ({"size": "5"}, "no size"),
        ({"disk_format": "luks"}, "disk format luks"),
        ({"disk_format": "ploop"}, "disk format ploop"),
        ({"disk_format": None}, "disk format none"),
        ({"container_format": "compressed"}, "container format compressed"),
        ({"container_format": "ova"}, "container format ova"),
        ({"img_signature": "abc"}, "signed"),
        ({"img_signature_certificate_uuid": "abc"}, "signed"),
        ({"os_encrypt_format": "GPG"}, "encrypted"),
        ({"cinder_encryption_key_id": "abc"}, "encrypted volume"),
        ({"os_hash_algo": None, "os_hash_value": None, "checksum": None}, "no digest"),
        ({"os_hash_algo": "shake_128", "checksum": None}, "no digest"),
        ({"os_hash_algo": "rot13", "checksum": None}, "no digest"),
        ({"os_hash_value": "abc", "checksum": MD5}, "no digest"),
        ({"os_hash_algo": None, "checksum": "zz" * 16}, "no digest"),
        ({"id": "../../etc"}, "no UUID"),
        ({"id": None}, "no UUID"),
    ],
)
def test_what_may_not_be_cached_says_why(changes: dict[str, Any], what: str) -> None:
    assert what in problem(**changes).what


@pytest.mark.parametrize("size", [0, None])
@pytest.mark.parametrize("disk_format", ["qcow2", None])
def test_a_snapshot_of_a_volume_backed_server_is_told_as_such(
    size: int | None, disk_format: str | None
) -> None:
    mapping = '[{"boot_index": 0, "snapshot_id": "5", "source_type": "snapshot"}]'
    told = problem(
        size=size,
        disk_format=disk_format,
        checksum=None,
        os_hash_algo=None,
        os_hash_value=None,
        bdm_v2="True",
        block_device_mapping=mapping,
    )
    assert told.what.startswith(
        "image b9a1a2f0-6f39-4f0d-9b0c-0d2f0e6d5c11 is a snapshot of a server"
    )
    assert "Cinder" in told.what
    assert "format" not in told.what
    assert "upload" not in f"{told.hint}"
    assert "0 bytes" in problem(size=0, block_device_mapping="[]").what


def test_why_nothing_is_cached_without_a_digest() -> None:
    told = problem(checksum=None, os_hash_algo=None, os_hash_value=None)
    assert "registered by its location" in told.what
    assert "would not be noticed" in told.what
    assert "os_hash_algo rot13" in problem(os_hash_algo="rot13", checksum=None).what


def test_what_back_ends_need_to_know_is_kept_and_nothing_else() -> None:
    found = image(
        disk_format="vmdk", container_format="ova", vmware_disktype="sparse", hw_disk_bus="ide",
        hw_scsi_model=None, os_secret="x",
    )  # fmt: skip
    assert found.properties == {"vmware_disktype": "sparse", "hw_disk_bus": "ide"}
    assert found.container_format == "ova"
    assert isinstance(hash(found), int)


def test_several_reasons_are_told_together() -> None:
    told = problem(disk_format="ploop", container_format="ova", img_signature="x").what
    assert all(word in told for word in ("ploop", "ova", "signed"))


def test_empty_properties_do_not_count() -> None:
    """The official client writes empty strings."""
    image(img_signature="", cinder_encryption_key_id=None, os_encrypt_format="")


@pytest.mark.parametrize(
    "changes",
    [
        {"os_hash_algo": None, "os_hash_value": None},
        {"os_hash_algo": "rot13", "os_hash_value": "abc"},
        {"os_hash_value": None},
    ],
)
def test_md5_is_the_last_resort(changes: dict[str, Any]) -> None:
    found = image(**changes)
    assert found.digest.algo == "md5"
    assert found.digest.weak


def test_a_digest_in_upper_case_is_lowered() -> None:
    assert image(os_hash_value=SHA512.upper(), os_hash_algo="SHA512").digest.value == SHA512


def test_an_unknown_virtual_size_and_name_are_fine() -> None:
    found = image(virtual_size=None, name=None)
    assert found.virtual_size_bytes is None
    assert found.name == found.id


@pytest.mark.parametrize(
    "text", ["x" * 36, "{" + RECORD["id"] + "}", RECORD["id"] + "\n", "٣" * 36, ""]
)
def test_only_a_uuid_is_an_id(text: str) -> None:
    assert not is_image_id(text)


@given(
    st.dictionaries(
        st.sampled_from(sorted(RECORD)), st.none() | st.text() | st.integers() | st.lists(st.text())
    )
)
def test_no_record_breaks_it(changes: dict[str, Any]) -> None:
    result = image_from_record("given", {**RECORD, **changes})
    if isinstance(result, Problem):
        assert result.what.isprintable()
    else:
        assert is_image_id(result.id)
        assert digest_from(result.digest.algo, result.digest.value) == result.digest
