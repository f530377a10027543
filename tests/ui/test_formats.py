from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.errors import ErrorCode, UsageError
from imgcache.plan import Outcome, OutcomeWord
from imgcache.ui.formats import Format, render
from imgcache.ui.report import OUTCOME_COLUMNS, report_listing
from ui.samples import HOSTILE, assert_clean, outcome, report

if TYPE_CHECKING:
    from imgcache.distribution import PrecacheReport

SCHEMA = json.loads(Path("docs/schemas/precache.json").read_text(encoding="utf-8"))


def text_of(
    made: PrecacheReport, form: Format = Format.TABLE, *wanted: str, detailed: bool = False
) -> str:
    return render(report_listing(made), form, wanted=wanted, detailed=detailed)


def mixed() -> PrecacheReport:
    space = "needs 4.2 GB, has 1.1 GB"
    outcomes: list[Outcome] = [
        outcome("edge1-18", OutcomeWord.ERROR, code=ErrorCode.SPACE, reason=space),
        *[outcome(f"edge1-{number:02}", bytes_fetched=1_250_000_000) for number in range(1, 18)],
        outcome(
            "edge1-19", OutcomeWord.UNSUPPORTED, code=ErrorCode.BACKEND, reason="images_type is rbd"
        ),
        outcome("edge1-20", OutcomeWord.UNKNOWN, code=ErrorCode.LOST, reason="contact lost"),
        outcome("edge1-21", OutcomeWord.EXISTING),
    ]
    return report(*outcomes)


def hostile() -> PrecacheReport:
    word, code = OutcomeWord.ERROR, ErrorCode.PROTOCOL
    return report(outcome(HOSTILE, word, code=code, reason=HOSTILE, image_name=HOSTILE))


def test_the_table_folds_equal_outcomes_and_has_failures_last() -> None:
    assert text_of(mixed()) == (
        "HOST           IMAGE NAME  OUTCOME      CODE     REASON\n"
        "edge1-[01-17]  debian-12   cached\n"
        "edge1-21       debian-12   existing\n"
        "edge1-19       debian-12   unsupported  backend  images_type is rbd\n"
        "edge1-20       debian-12   unknown      lost     contact lost\n"
        "edge1-18       debian-12   error        space    needs 4.2 GB, has 1.1 GB\n"
    )


def test_a_long_reason_is_shown_to_its_end() -> None:
    reason = f"{'why ' * 150}: do this"
    told = outcome("edge1-01", OutcomeWord.ERROR, code=ErrorCode.HOSTKEY_CHANGED, reason=reason)
    assert text_of(report(told)).endswith(": do this\n")


def test_the_detailed_table_has_a_row_per_host() -> None:
    lines = text_of(mixed(), detailed=True).splitlines()
    assert len(lines) == 22
    assert lines[0].split() == [
        "HOST", "IMAGE", "NAME", "OUTCOME", "CODE", "SOURCE", "FETCHED", "DURATION", "REASON",
    ]  # fmt: skip
    assert lines[1].split() == ["edge1-01", "debian-12", "cached", "service", "1.25", "GB", "1.2s"]


def test_columns_are_selected_in_the_order_asked() -> None:
    table = text_of(mixed(), Format.TABLE, "outcome", "host", "outcome")
    assert table.splitlines()[:2] == ["OUTCOME      HOST", "cached       edge1-[01-17]"]
    assert (
        text_of(mixed(), Format.VALUE, "outcome", "image_name").splitlines()[0]
        == "cached\tdebian-12"
    )
    assert text_of(mixed(), Format.CSV, "host").splitlines()[:2] == ["host", "edge1-01"]
    document = json.loads(text_of(mixed(), Format.JSON, "host"))
    assert document["outcomes"][0] == {"host": "edge1-01"}
    assert document["totals"]["cached"] == 17


def test_an_unknown_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        OUTCOME_COLUMNS.check(["host", "imagename"])
    assert caught.value.message == "--column: no such column: imagename"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(
        "did you mean image_name? the columns are: host, aggregate, cell,"
    )


@pytest.mark.parametrize("made", [mixed(), hostile(), report()], ids=["mixed", "hostile", "empty"])
def test_json_is_as_its_schema_says(made: PrecacheReport) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(text_of(made, Format.JSON)), SCHEMA)


def test_the_schema_knows_every_word_and_code_and_column() -> None:
    item: dict[str, Any] = SCHEMA["$defs"]["outcome"]["properties"]
    assert item["outcome"]["enum"] == [word.value for word in OutcomeWord]
    assert item["code"]["enum"] == [None, *[code.value for code in ErrorCode]]
    assert tuple(item) == OUTCOME_COLUMNS.known


def test_json_holds_the_whole_run() -> None:
    document = json.loads(text_of(mixed(), Format.JSON))
    assert list(document) == [
        "run_id", "command", "started_at", "finished_at", "images", "outcomes", "totals",
        "coverage", "plan",
    ]  # fmt: skip
    assert document["started_at"] == "2026-11-21T08:00:00.000Z"
    assert document["finished_at"] == "2026-11-21T08:01:02.345Z"
    assert document["images"][0]["digest"] == {"algo": "sha512", "value": "ab" * 64}
    assert document["outcomes"][0]["duration_s"] == 1.235
    assert len(document["outcomes"]) == 21


def test_yaml_says_the_same_as_json() -> None:
    for made in (mixed(), hostile()):
        assert yaml.safe_load(text_of(made, Format.YAML)) == json.loads(text_of(made, Format.JSON))


def test_no_rows_no_table() -> None:
    assert text_of(report()) == ""
    assert text_of(report(), Format.VALUE) == ""
    assert text_of(report(), Format.CSV).splitlines() == [",".join(OUTCOME_COLUMNS.known)]


@pytest.mark.row("T3")
@pytest.mark.row("M6")
@pytest.mark.row("R20")
@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("detailed", [False, True])
def test_hostile_strings_come_out_escaped(form: Format, *, detailed: bool) -> None:
    text = text_of(hostile(), form, detailed=detailed)
    assert_clean(text, allowed="\n\t" if form is Format.VALUE else "\n")
    if form in {Format.VALUE, Format.TABLE, Format.CSV}:
        assert len(text.splitlines()) == (1 if form is Format.VALUE else 2)
    if form in {Format.JSON, Format.YAML}:
        assert text.isascii()


@pytest.mark.row("M6")
@pytest.mark.row("R20")
@settings(deadline=None, database=None)  # a busy machine is no failure; nothing is left behind
@given(st.text(st.characters(), max_size=40))
def test_no_text_at_all_gets_out_raw(text: str) -> None:
    made = report(outcome(text, image_name=text, reason=text))
    for form in Format:
        shown = text_of(made, form)
        assert_clean(shown, allowed="\n\t" if form is Format.VALUE else "\n")
        categories = {unicodedata.category(char) for char in shown} - {"Cc"}
        assert not categories & {"Cs", "Zl", "Zp"}
    assert len(text_of(made).splitlines()) == 2
    assert json.loads(text_of(made, Format.JSON)) == yaml.safe_load(text_of(made, Format.YAML))


@pytest.mark.row("M6")
def test_json_keeps_hostile_strings_exact_save_for_lone_surrogates() -> None:
    made = report(outcome("h1", reason=HOSTILE), outcome("h2", reason="lone \ud800 end"))
    first, second = json.loads(text_of(made, Format.JSON))["outcomes"]
    assert first["reason"] == HOSTILE
    assert second["reason"] == "lone \\ud800 end"


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@sum"])
def test_csv_has_no_formulas(text: str) -> None:
    rows = list(
        csv.DictReader(io.StringIO(text_of(report(outcome("h1", image_name=text)), Format.CSV)))
    )
    assert rows[0]["image_name"] == f"'{text}"
    assert rows[0]["bytes_fetched"] == "0"


def test_values_have_a_dash_for_none() -> None:
    assert text_of(report(outcome("h1")), Format.VALUE) == "h1\tdebian-12\tcached\t-\t-\n"


def test_wide_and_combining_characters_do_not_break_the_columns() -> None:
    made = report(outcome("h1", image_name="漢字"), outcome("h2", image_name="e\u0301"))
    lines = text_of(made, detailed=True).splitlines()

    def column(line: str, word: str) -> int:
        before = line[: line.index(word)]
        wide = sum(unicodedata.east_asian_width(char) in {"W", "F"} for char in before)
        return len(before) + wide - sum(unicodedata.combining(char) > 0 for char in before)

    assert {column(lines[1], "cached"), column(lines[2], "cached")} == {column(lines[0], "OUTCOME")}
