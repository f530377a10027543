"""docs/schemas against what the commands can say."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imgcache.commands.trust import TRUST_COLUMNS
from imgcache.errors import ErrorCode
from imgcache.operations.trust import TrustState
from imgcache.plan import Check, CheckReport, CheckState
from imgcache.ui.checks import CHECK_COLUMNS, check_listing
from imgcache.ui.formats import Format, render
from ui.samples import HOSTILE, assert_clean

FOLDER = Path("docs/schemas")


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return loaded


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_every_schema_is_one_and_lets_nothing_else_in(name: str) -> None:
    document = schema(name)
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    pending: list[Any] = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            pending.extend(part.values())
            if part.get("type") == "object":
                assert part["additionalProperties"] is False
                assert set(part["required"]) == set(part["properties"])


def test_the_schemas_are_up_to_date() -> None:
    command = [sys.executable, "tools/make_schemas.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "run tools/make_schemas.py"


@pytest.mark.row("M6")
def test_check_is_as_its_schema_says() -> None:
    moment = datetime(2026, 11, 21, 8, tzinfo=UTC)
    checks = [Check(HOSTILE, "edge-1", None, "login", state, HOSTILE) for state in CheckState]
    made = check_listing(CheckReport("run-1", "check", moment, moment, tuple(checks)))
    for form in Format:
        text = render(made, form)
        assert_clean(text, allowed="\n\t")
    jsonschema.validate(json.loads(render(made, Format.JSON)), schema("check"))
    item = schema("check")["properties"]["checks"]["items"]["properties"]
    assert tuple(item) == CHECK_COLUMNS.known
    assert item["state"]["enum"] == [state.value for state in CheckState]


def test_a_table_of_checks_has_what_failed_last() -> None:
    moment = datetime(2026, 11, 21, 8, tzinfo=UTC)
    told = [
        ("edge1-01", CheckState.FAIL),
        ("edge1-02", CheckState.OK),
        ("edge1-03", CheckState.WARN),
    ]
    checks = [Check(host, "edge-1", None, "login", state, "why") for host, state in told]
    made = check_listing(CheckReport("run-1", "check", moment, moment, tuple(checks)))
    lines = render(made, Format.TABLE).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["edge1-02", "edge1-03", "edge1-01"]
    document = json.loads(render(made, Format.JSON))
    assert [one["host"] for one in document["checks"]] == [host for host, _ in told]


def test_trust_has_the_columns_and_words_of_its_schema() -> None:
    item = schema("trust")["$defs"]["key"]["properties"]
    assert tuple(item) == TRUST_COLUMNS.known
    assert item["state"]["enum"] == [state.value for state in TrustState]
    assert item["code"]["enum"] == [None, *[code.value for code in ErrorCode]]
