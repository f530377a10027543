"""What the commands about the life of the cache show, in every format."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
import yaml

from imgcache.errors import ErrorCode
from imgcache.model import EntryKind
from imgcache.plan import EntryWord, MissingImage
from imgcache.ui.entries import entry_listing
from imgcache.ui.formats import Format, render
from imgcache.ui.outcomes import outcome_listing
from imgcache.ui.status import status_listing
from ui.life_samples import (
    FOREVER,
    MOMENT,
    entry_report,
    failure,
    list_report,
    listed,
    manifest,
    outcome,
    status,
    status_report,
)
from ui.samples import HOSTILE, assert_clean

if TYPE_CHECKING:
    from imgcache.ui.formats import Listing

ENTRY_COMMANDS = ("prune", "clean", "verify", "delete", "pin", "unpin", "refresh")


def check(made: Listing, name: str) -> None:
    schema = json.loads(Path(f"docs/schemas/{name}.json").read_text("utf-8"))
    jsonschema.validate(json.loads(render(made, Format.JSON)), schema)


# ---------------------------------------------------------------------------------------------------- list


def hostile_list() -> Listing:
    one = listed(
        HOSTILE, HOSTILE, entry_name=HOSTILE, used_by=(HOSTILE,), manifest=manifest(source=HOSTILE)
    )
    lacks = MissingImage(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    return entry_listing(list_report(one, missing=(lacks,), failures=(failure(HOSTILE, HOSTILE),)))


@pytest.mark.parametrize("missing_only", [False, True])
def test_a_list_is_as_its_schema_says(missing_only: bool) -> None:
    lacks = MissingImage("h2", "edge-1", None, "an-id", None)
    made = list_report(
        listed("h1", users=None, manifest=None, format=None),
        listed("h1", None, kind=EntryKind.STAGING, image_id=None, gone=None, live=True),
        listed("h1", manifest=manifest(FOREVER), age_s=-5.0),
        hosts=("h2",),
        missing=(lacks,),
        failures=(failure("h3"),),
    )
    check(entry_listing(made, missing_only=missing_only), "list")
    check(hostile_list(), "list")


def test_a_list_folds_hosts_and_is_for_people() -> None:
    made = list_report(
        *(listed(f"edge1-{number:02}", age_s=7000.0 + number, users=2) for number in range(1, 18)),
        listed("edge1-01", None, base="0123abcd" * 5, manifest=None, kind=EntryKind.ORIGINAL),
        failures=(failure("edge1-18"),),
    )
    assert render(entry_listing(made), Format.TABLE) == (
        "HOST           IMAGE NAME                                  KIND      FORMAT  ALLOCATED  AGE  USERS"
        "  PINNED UNTIL  MANAGED  GONE\n"
        "edge1-[01-17]  debian-12                                   original  raw       1.25 GB   2h  2    "
        "                yes      no\n"
        "edge1-01       (0123abcd0123abcd0123abcd0123abcd0123abcd)  original  raw       1.25 GB   2h  0    "
        "                no       no\n"
        "\n"
        "HOST      OUTCOME  CODE     REASON\n"
        "edge1-18  error    connect  no route\n"
    )


def test_two_entries_that_look_alike_are_two_rows() -> None:
    copies = [
        listed(host, kind=EntryKind.RESIZED, entry_name=f"{'a' * 40}_{size}")
        for host in ("h1", "h2")
        for size in (10, 20)
    ]
    lines = render(entry_listing(list_report(*copies, listed("h2"))), Format.TABLE).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["h2", "debian-12", "original"],
        ["h[1-2]", "debian-12", "resized"],
        ["h[1-2]", "debian-12", "resized"],
    ]


def test_programs_get_exact_bytes_and_seconds() -> None:
    made = entry_listing(list_report(listed("h1", age_s=86_400.5)))
    columns = ("allocated_bytes", "age_s", "pinned_until")
    assert render(made, Format.VALUE, wanted=columns) == "1250000000\t86400.5\t-\n"
    (row,) = csv.DictReader(io.StringIO(render(made, Format.CSV)))
    assert (row["size_bytes"], row["users"]) == ("2000000000", "0")
    assert json.loads(render(made, Format.JSON))["entries"][0]["allocated_bytes"] == 1_250_000_000


@pytest.mark.parametrize(
    ("until", "shown"),
    [
        (FOREVER, "forever"),
        (MOMENT + timedelta(days=3), "2026-11-24T08:00:00Z"),
        # It has run out by the host's clock, which is two hours behind its mtime.
        (MOMENT + timedelta(hours=2), None),
        (None, None),
    ],
)
def test_a_pin_is_shown_while_it_lasts(until: object, shown: str | None) -> None:
    made = entry_listing(list_report(listed("h1", manifest=manifest(until))))  # type: ignore[arg-type]
    assert made.rows[0]["pinned_until"] == shown


def test_missing_images_are_the_rows_when_asked_for() -> None:
    lacks = tuple(
        MissingImage(f"h{number}", "edge-1", None, "an-id", "debian-12") for number in (1, 2)
    )
    made = entry_listing(list_report(listed("h3"), missing=lacks), missing_only=True)
    table = "HOST    IMAGE ID  IMAGE NAME\nh[1-2]  an-id     debian-12\n"
    assert render(made, Format.TABLE) == table
    assert render(made, Format.VALUE, wanted=("host",)) == "h1\nh2\n"


# -------------------------------------------------------------------------------------------------- status


def test_a_status_is_as_its_schema_says() -> None:
    made = status_report(
        status("h1", evidence_problems=("a", "b")), status("h2", storage_id="nfs:1"), max_used=0.8
    )
    check(status_listing(made), "status")
    hostile = status(HOSTILE, cache_path=HOSTILE, filesystem=HOSTILE, evidence_problems=(HOSTILE,))
    check(status_listing(status_report(hostile)), "status")


def test_a_status_shows_sums_and_failures_below() -> None:
    text = render(status_listing(status_report(status("h1"))), Format.TABLE)
    hosts, sums, failures = text.split("\n\n")
    assert hosts.splitlines()[1].split() == [
        "h1", "12", "150", "GB", "15%", "20.0", "GB", "150", "GB", "85%", "no", "512", "143052",
    ]  # fmt: skip
    assert sums.splitlines()[1].startswith("aggregate  edge-1  1      150 GB")
    assert failures.splitlines()[1] == "edge1-99  error    connect  no route"
    only = render(status_listing(status_report(status("h1"))), Format.TABLE, wanted=("host",))
    assert only == "HOST\nh1\n"


def test_a_status_tells_who_is_above_the_threshold() -> None:
    made = status_report(
        status("h1"), status("h2", filesystem_free_bytes=500_000_000_000), max_used=0.8
    )
    assert [row["over_threshold"] for row in status_listing(made).rows] == [True, False]
    without = status_listing(status_report(status("h1")))
    assert without.rows[0]["over_threshold"] is None


# ------------------------------------------------------------------------------------------------ outcomes


@pytest.mark.parametrize("command", ENTRY_COMMANDS)
def test_outcomes_are_as_their_schemas_say(command: str) -> None:
    rows = [outcome("h1", word, code=ErrorCode.YOUNG, reason="why") for word in EntryWord]
    whole = outcome("h2", EntryWord.ERROR, entry="", kind=None, image_id=None, image_name=None)
    hostile = outcome(HOSTILE, entry=HOSTILE, image_id=HOSTILE, image_name=HOSTILE, reason=HOSTILE)
    made = entry_report(*rows, whole, hostile, command=command, dry_run=True)
    check(outcome_listing(made), command)


def test_outcomes_are_summed_up_below_and_failures_come_last() -> None:
    made = entry_report(
        outcome("h2", EntryWord.ERROR, entry="", kind=None, image_id=None, image_name=None, bytes=0,
                code=ErrorCode.EVIDENCE, reason="disk.info cannot be read"),
        outcome("h1", bytes_freed=1_250_000_000, reason="unused for 2 days"),
        outcome("h1", EntryWord.KEPT, code=ErrorCode.IN_USE, reason="used by 1: i-1"),
    )  # fmt: skip
    assert render(outcome_listing(made), Format.TABLE) == (
        "HOST  IMAGE NAME  KIND        BYTES  OUTCOME  CODE      REASON\n"
        "h1    debian-12   original  1.25 GB  kept     in-use    used by 1: i-1\n"
        "h1    debian-12   original  1.25 GB  removed            unused for 2 days\n"
        "h2                                   error    evidence  disk.info cannot be read\n"
        "\n"
        "OUTCOME  ENTRIES    BYTES    FREED\n"
        "kept     1        1.25 GB\n"
        "removed  1        1.25 GB  1.25 GB\n"
        "error    1\n"
    )


def test_columns_of_numbers_without_any_are_left_out() -> None:
    made = outcome_listing(entry_report(outcome("h1", EntryWord.PINNED, bytes=0), command="pin"))
    assert "BYTES" not in render(made, Format.TABLE)
    assert "BYTES" in render(made, Format.TABLE, wanted=("host", "bytes"))


def test_every_outcome_word_has_its_place() -> None:
    made = outcome_listing(entry_report(*(outcome("h1", word) for word in EntryWord)))
    assert {row["outcome"] for row in made.rows} == {word.value for word in EntryWord}
    assert made.rows[-1]["outcome"] == "error"


@pytest.mark.row("M6")
@pytest.mark.row("R20")
@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("detailed", [False, True])
def test_nothing_goes_out_raw(form: Format, detailed: bool) -> None:
    hostile = outcome(HOSTILE, entry=HOSTILE, image_name=None, image_id=HOSTILE, reason=HOSTILE)
    room = status(HOSTILE, cache_path=HOSTILE, filesystem=HOSTILE, evidence_problems=(HOSTILE,))
    for made in (
        hostile_list(),
        outcome_listing(entry_report(hostile)),
        status_listing(status_report(room)),
    ):
        text = render(made, form, detailed=detailed)
        assert text
        assert_clean(text, allowed="\n\t" if form is Format.VALUE else "\n")
        if form is Format.YAML:
            assert yaml.safe_load(text) == json.loads(render(made, Format.JSON))


def test_a_table_shows_drivers_where_hosts_have_several() -> None:
    report = replace(
        list_report(listed("h1"), listed("g1")), drivers={"h1": "libvirt", "g1": "toy"}
    )
    lines = render(entry_listing(report), Format.TABLE).splitlines()
    assert lines[0].split()[:3] == ["HOST", "DRIVER", "IMAGE"]
    assert [line.split()[:2] for line in lines[1:]] == [["h1", "libvirt"], ["g1", "toy"]]
    assert "DRIVER" not in render(
        entry_listing(replace(report, drivers={"h1": "toy", "g1": "toy"})), Format.TABLE
    )
    # What programs read by position does not change with the hosts.
    values = render(entry_listing(report), Format.VALUE)
    assert "libvirt" not in values
    assert "libvirt" in render(entry_listing(report), Format.VALUE, wanted=["driver"])
    rows = json.loads(render(entry_listing(report), Format.JSON))["entries"]
    assert [row["driver"] for row in rows] == ["libvirt", "toy"]
