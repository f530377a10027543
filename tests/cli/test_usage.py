from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
import typer

from imgcache.cli import COMMANDS, main, root_command
from imgcache.commands._argv import asks_json, hoist_global_options
from imgcache.commands._values import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

SCHEMA = json.loads(Path("docs/schemas/error.json").read_text(encoding="utf-8"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call main in this process: arguments -> exit code, standard output, standard error."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["precach"], ["no such command: precach", "did you mean precache?"]),
        (["frobnicate"], ["no such command: frobnicate", "the commands are: precache, "]),
        (
            ["precache", "--agregate", "a", "i"],
            ["No such option: --agregate", "--aggregate", "precache --help"],
        ),
        (
            ["--os-clod", "x", "precache"],
            ["No such option: --os-clod", "--os-cloud", "'imgcache --help'"],
        ),
        (["precache", "-a", "x"], ["Missing argument 'IMG'"]),
        (["precache", "--aggregate"], ["--aggregate", "requires an argument"]),
        (["precache", "i", "--concurrency", "0"], ["--concurrency", " 1"]),
        (["precache", "i", "--concurrency", "ten"], ["--concurrency", " int"]),
        (["precache", "i", "--retries", "-1"], ["--retries"]),
        (["precache", "i", "--timeout", "30x"], ["--timeout", "'30x' is not a duration", "1h30m"]),
        (["precache", "i", "--timeout", "0"], ["--timeout", "out of bounds"]),
        (["precache", "i", "--source", "peer"], ["--source", "peer", "auto", "service", "push"]),
        (
            ["precache", "i", "-f", "xml"],
            ["--format", "xml", "table", "json", "yaml", "csv", "value"],
        ),
        (["precache", "i", "-q", "-v"], ["--quiet and --verbose contradict each other"]),
        (
            ["precache", "i", "-c", "hosts"],
            ["no such column: hosts", "did you mean host?", "image_name"],
        ),
        (
            ["precache", "i", "--log-file", "/no-such/log"],
            ["log file", "/no-such/log: No such file"],
        ),
    ],
)
def test_usage_errors_end_with_2_and_say_what_and_how(
    run: Run, argv: list[str], said: list[str]
) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("imgcache: error: ")
    assert "Traceback" not in err
    for words in said:
        assert words in err


@pytest.mark.parametrize(
    "option",
    [
        "--os-password",
        "--os-token",
        "--os-application-credential-secret",
        "--os-passcode",
        "--os-access-token",
    ],
)
@pytest.mark.parametrize("form", ["{}=hunter22", "{} hunter22"])
def test_secrets_are_refused_and_not_repeated(run: Run, option: str, form: str) -> None:
    code, out, err = run(*form.format(option).split(), "precache", "i", "-f", "json")
    assert (code, out) == (2, "")
    assert "hunter22" not in err
    assert f"{option}: secrets are not taken from the command line" in err
    assert f"set {option[2:].replace('-', '_').upper()}" in err


@pytest.mark.parametrize(
    "form", [["-f", "json"], ["--format=json"], ["-fjson"], ["-vf", "json"], ["--format", "json"]]
)
def test_with_json_asked_the_last_line_is_json(run: Run, form: list[str]) -> None:
    code, out, err = run("precache", *form, "--timeout", "x", "i")
    assert (code, out) == (2, "")
    document = json.loads(err.splitlines()[-1])
    jsonschema.validate(document, SCHEMA)
    assert document["error"]["exit_code"] == 2


def test_json_is_asked_only_where_it_is() -> None:
    for argv in (
        ["-f", "yaml"],
        ["precache", "json"],
        ["--", "-f", "json"],
        ["--host", "json"],
        [],
    ):
        assert not asks_json(argv), argv


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2 days", 172_800),
        ("1H 5 Min", 3900),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "m", "30x", "1h-5m", "-5", "1e3", "nan", "inf", "0.5", "31d", "5 5", "٣m", "1.h"],
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


def test_global_options_may_stand_behind_the_command() -> None:
    root = root_command()
    assert hoist_global_options(
        [
            "precache",
            "img",
            "--inventory",
            "f",
            "-a",
            "x",
            "--os-cloud=edge",
            "--insecure",
            "--",
            "--inventory",
        ],
        root,
    ) == [
        "--inventory",
        "f",
        "--os-cloud=edge",
        "--insecure",
        "precache",
        "img",
        "-a",
        "x",
        "--",
        "--inventory",
    ]
    assert hoist_global_options(["precache", "--inventory"], root) == ["--inventory", "precache"]
    assert hoist_global_options(["precache", "--help"], root) == ["precache", "--help"]


def test_global_options_reach_the_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "tell", ("cli.odd_commands:tell", "-"))
    code, _, err = run(
        "--os-cloud", "edge", "--os-region-name=r1", "tell", "--inventory", "f.yaml", "--insecure"
    )
    assert (code, err) == (0, "")
    assert (
        Path("told.txt").read_text("utf-8")
        == "f.yaml edge [('insecure', True), ('region_name', 'r1')]"
    )


def test_os_options_are_those_of_the_image_service() -> None:
    from imgcache.images.options import OPTION_NAMES

    names = {param.name for param in root_command().params}
    ours = {name.removeprefix("os_") for name in names if name.startswith("os_")} - {"cloud"}
    assert ours | {"insecure"} <= set(OPTION_NAMES)
