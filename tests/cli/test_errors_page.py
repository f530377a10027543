"""docs/errors.md is an API: it lists exactly what there is."""

from __future__ import annotations

import re
from pathlib import Path

from imgcache.cli import main
from imgcache.errors import ErrorCode, ExitCode
from imgcache.plan import OutcomeWord

PAGE = Path("docs/errors.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert section, heading
    cells = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)
    return [cell.strip("`") for cell in cells if cell not in {"code", "outcome"}]


def test_it_lists_exactly_the_error_codes() -> None:
    assert first_cells("Codes") == [code.value for code in ErrorCode]


def test_it_lists_exactly_the_outcomes() -> None:
    assert sorted(first_cells("Outcomes")) == sorted(word.value for word in OutcomeWord)


def test_it_lists_exactly_the_exit_codes() -> None:
    listed = [int(code) for cell in first_cells("Exit codes") for code in cell.split(",")]
    assert listed == [int(code) for code in ExitCode]


def test_the_help_names_the_exit_codes(capsys: object) -> None:
    from imgcache.cli import root_command

    assert main(["--help"]) == 0
    numbers = {
        int(number)
        for number in re.findall(r"\b\d+\b", root_command().epilog.partition("Exit codes")[2])
    }
    assert numbers == {int(code) for code in ExitCode}
