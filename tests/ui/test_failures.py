from __future__ import annotations

import io
import json
import os
from pathlib import Path

import jsonschema
import pytest

from imgcache import errors
from imgcache.errors import (
    ConfigError,
    ErrorCode,
    ExitCode,
    HostError,
    ImageProblemsError,
    ImgcacheError,
    Problem,
    UsageError,
)
from imgcache.ui.failures import end_document, error_document, error_lines, say
from ui.samples import HOSTILE, assert_clean

SCHEMA = json.loads(Path("docs/schemas/error.json").read_text(encoding="utf-8"))

PROBLEMS = [
    Problem("inventory.yaml:8:5: aggregates.edge-1.hosst", "unknown key", "did you mean hosts?"),
    Problem("inventory.yaml:9:7: defaults.driver", "no such driver: libvrt"),
]


def test_every_problem_is_listed_with_its_place_and_hint() -> None:
    error = ConfigError(
        "the inventory has 2 problems; nothing was contacted", PROBLEMS, hint="see examples/"
    )
    assert error_lines(error) == [
        "imgcache: error: the inventory has 2 problems; nothing was contacted",
        "  inventory.yaml:8:5: aggregates.edge-1.hosst: unknown key",
        "    hint: did you mean hosts?",
        "  inventory.yaml:9:7: defaults.driver: no such driver: libvrt",
        "  hint: see examples/",
    ]


def test_errors_for_programs_are_as_their_schema_says() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for error in (
        ConfigError("two problems", PROBLEMS),
        ImageProblemsError(HOSTILE, [Problem(HOSTILE, HOSTILE, HOSTILE)]),
        UsageError("no", hint="yes"),
        HostError(ErrorCode.IO, "bad"),
        ImgcacheError("the result cannot be written"),
    ):
        jsonschema.validate(error_document(error), SCHEMA)
    jsonschema.validate(end_document("Bug", "a bug", ExitCode.BUG), SCHEMA)


def test_the_schema_knows_every_error() -> None:
    classes = {
        name.removesuffix("Error")
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ImgcacheError) and not name.startswith("_")
    }
    kinds = set(SCHEMA["properties"]["error"]["properties"]["kind"]["enum"])
    assert kinds == {*classes, "Bug", "Interrupted"}


@pytest.mark.row("M6")
def test_hostile_strings_are_escaped() -> None:
    error = ImageProblemsError(HOSTILE, [Problem(HOSTILE, HOSTILE, HOSTILE)], hint=HOSTILE)
    lines = error_lines(error)
    assert len(lines) == 4
    out = io.StringIO()
    say(lines, out, error_document(error))
    assert_clean(out.getvalue())
    assert json.loads(out.getvalue().splitlines()[-1])["error"]["message"] == HOSTILE


@pytest.mark.row("C2")
def test_nobody_to_tell_is_no_error() -> None:
    say(["x"], None)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        say(["x" * 100_000], stream)
        say(["y"], stream)
    say(["z"], stream)
