"""What a host says about its cache: read strictly, believed in nothing, bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.drivers import entry_rows
from imgcache.drivers.base import RemovalState
from imgcache.drivers.entry_rows import (
    EntryRows,
    cache_from,
    entry_from,
    removal_rows,
    verdict_from,
)
from imgcache.errors import ErrorCode, HostError
from imgcache.model import PIN_FOREVER, EntryKind
from imgcache.transport.wire import Fields, parse_frame
from unit.life_values import base, image_id

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST: dict[str, Any] = {
    "image_id": image_id(1), "image_name": "i\u202e1", "base": base(1),
    "digest": {"algo": "sha512", "value": "0" * 128, "weak": False},
    "stored": {"algo": "sha512", "value": "1" * 128, "size": 10, "format": "raw", "mtime_ns": 5},
    "disk_format": "raw", "source": "push", "cached_at": "2026-11-21T07:00:00Z", "touched_at": None,
    "verified_at": None, "pin": None,
}  # fmt: skip
ROW: dict[str, Any] = {
    "name": base(1), "kind": "original", "size": 10, "allocated": 4096, "format": "raw", "mtime_ns": 5,
    "age": 3.5, "inode": 2**63 + 5, "links": 1, "users": 1, "used_by": ["vm \x1b[31m"], "live": False,
    "manifest": MANIFEST,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "filesystem": "ext4", "size": 100, "free": 50, "own_filesystem": False, "nova_usage": 4096,
    "problems": [], "storage_id": None, "shares_with": [], "nodename": "h1",
    "policy": {"remove_unused": True, "original_min_age_s": 86400, "resized_min_age_s": 3600,
               "reserved_host_disk_mb": 0, "reserves_cache": False, "manager_interval_s": -1},
}  # fmt: skip
OPENED = {"cache_path": "/x/_base", "instances_path": "/x"}


def fields(value: object) -> Fields:
    return parse_frame(json.dumps(value).encode())


def changed(before: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**before, **changes}


@pytest.mark.row("M6")
def test_a_row_becomes_an_entry_with_safe_strings() -> None:
    one = entry_from(fields(ROW))
    assert (one.name, one.kind, one.users, one.inode) == (base(1), EntryKind.ORIGINAL, 1, 2**63 + 5)
    assert one.used_by == ("vm \\x1b[31m",)
    assert one.manifest is not None
    assert one.manifest.image_name == "i\\u202e1"
    assert one.manifest.cached_at == datetime(2026, 11, 21, 7, tzinfo=UTC)


@pytest.mark.row("H12")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../etc/passwd", "original"),
        ("A" * 40, "original"),
        (f"{base(1)}_5\n", "resized"),
        ("swap_", "swap"),
        ("ephemeral_1_\x1b[31mx", "ephemeral"),
    ],
)
def test_a_name_that_is_not_of_its_kind_is_foreign(name: str, kind: str) -> None:
    one = entry_from(fields(changed(ROW, name=name, kind=kind)))
    assert one.kind is EntryKind.FOREIGN
    assert one.name.isprintable()
    assert one.manifest is None


@pytest.mark.parametrize(
    "damage",
    [
        {"image_id": "../../x"},
        {"image_id": 5},
        {"digest": None},
        {"digest": {"algo": "sha512", "value": "no hex"}},
        {"stored": {"algo": "sha512", "value": "1" * 128, "size": -1, "format": "raw"}},
        {"cached_at": "yesterday"},
        {"cached_at": "2026-13-41T07:00:00Z"},
    ],
)
def test_a_damaged_manifest_makes_the_entry_unmanaged(damage: dict[str, Any]) -> None:
    assert entry_from(fields(changed(ROW, manifest=changed(MANIFEST, **damage)))).manifest is None


@pytest.mark.parametrize(
    ("pin", "until"),
    [
        (None, None),
        (0, datetime.fromtimestamp(0, UTC)),
        (1_800_000_000.5, datetime.fromtimestamp(1_800_000_000.5, UTC)),
        ("forever", PIN_FOREVER),
        ("a day", PIN_FOREVER),
        (1e14, PIN_FOREVER),
        (True, PIN_FOREVER),
    ],
)
def test_a_pin_that_cannot_be_read_holds_for_ever(pin: object, until: datetime | None) -> None:
    one = entry_from(fields(changed(ROW, manifest=changed(MANIFEST, pin=pin))))
    assert one.manifest is not None
    assert one.manifest.pinned_until == until


def test_an_entry_converted_and_not_hashed_yet_is_managed() -> None:
    stored = changed(MANIFEST["stored"], algo=None, value=None)
    one = entry_from(fields(changed(ROW, manifest=changed(MANIFEST, stored=stored))))
    assert one.manifest is not None
    assert one.manifest.stored_digest is None


@pytest.mark.row("M1")
def test_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_rows, "MAX_ENTRIES", 3)
    rows = EntryRows()
    rows.take(fields({"rows": [ROW] * 3}))
    with pytest.raises(HostError, match="more than 3 entries"):
        rows.take(fields({"rows": [ROW]}))


@pytest.mark.row("M4")
def test_a_row_about_something_that_was_not_ordered_ends_it() -> None:
    row = {"name": base(1), "state": "removed", "code": None, "reason": None, "bytes": 4096}
    assert removal_rows(fields({"rows": [row]}), {base(1)})[0].state is RemovalState.REMOVED
    with pytest.raises(HostError) as refused:
        removal_rows(fields({"rows": [row]}), {base(2)})
    assert refused.value.code is ErrorCode.PROTOCOL


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(-1e20, 1e20), st.text()
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
READERS: list[tuple[dict[str, Any], Callable[[Fields], object]]] = [
    (ROW, entry_from),
    (MANIFEST, lambda given: entry_from(Fields({**ROW, "manifest": _plain(given)}))),
    (FACTS, lambda given: cache_from(fields(OPENED), given, [])),
    (FACTS["policy"], lambda given: _cache({**FACTS, "policy": _plain(given)})),
    (
        {"name": base(1), "state": "kept", "code": "in-use", "reason": "x", "bytes": 1},
        lambda given: removal_rows(Fields({"rows": [_plain(given)]}), None),
    ),
    (
        {"state": "intact", "reason": None, "algo": "sha512", "value": "0" * 128, "size": 5},
        lambda given: verdict_from(base(1), given),
    ),
]  # fmt: skip


def _cache(facts: dict[str, Any]) -> object:
    return cache_from(fields(OPENED), Fields(facts), [])


def _plain(given: Fields) -> dict[str, object]:
    return {name: given._values[name] for name in given.names()}


@pytest.mark.row("M3")
@pytest.mark.row("M4")
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_nonsense_is_a_value_or_a_protocol_error(data: st.DataObject) -> None:
    sample, read = data.draw(st.sampled_from(READERS))
    read(fields(sample))
    key = data.draw(st.sampled_from(sorted(sample)))
    wrong = dict(sample)
    if data.draw(st.booleans()):
        wrong[key] = data.draw(JSON)
    else:
        del wrong[key]
    refused: HostError | None = None
    try:
        read(Fields(wrong))
    except HostError as error:
        refused = error
    if refused is not None:
        assert refused.code is ErrorCode.PROTOCOL
        assert refused.message.isprintable()
