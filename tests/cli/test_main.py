from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest

from imgcache.cli import COMMANDS, main
from ui.samples import HOSTILE, assert_clean

if TYPE_CHECKING:
    from pathlib import Path as PathType

SCHEMA = json.loads(Path("docs/schemas/error.json").read_text(encoding="utf-8"))
PROGRAM = [sys.executable, "-m", "cli.odd_commands"]


@pytest.fixture(autouse=True)
def odd_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "end", ("cli.odd_commands:end", "-"))
    monkeypatch.setitem(COMMANDS, "show", ("cli.odd_commands:show", "-"))
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(Path("tests").resolve()), *filter(None, others)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (
            "bug",
            70,
            "imgcache: a bug in imgcache: ValueError; this run ended early\n  hint: run it again with -vv",
        ),
        ("interrupt", 130, "imgcache: interrupted\n"),
        ("abort", 130, "imgcache: interrupted\n"),
        ("plain", 1, "imgcache: error: the result cannot be written\n"),
        ("no", 5, ""),
    ],
)
def test_how_a_command_ends_is_its_exit_code(
    capsys: pytest.CaptureFixture[str], how: str, code: int, said: str
) -> None:
    assert main(["end", how]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("how", "code"), [("bug", 70), ("interrupt", 130), ("config", 2)])
def test_every_early_end_is_machine_readable_too(
    capsys: pytest.CaptureFixture[str], how: str, code: int
) -> None:
    assert main(["end", how, "-f", "json"]) == code
    document = json.loads(capsys.readouterr().err.splitlines()[-1])
    jsonschema.validate(document, SCHEMA)
    assert document["error"]["exit_code"] == code


@pytest.mark.row("M6")
def test_the_traceback_of_a_bug_is_shown_when_asked_without_values_and_secrets(
    capsys: pytest.CaptureFixture[str], tmp_path: PathType
) -> None:
    log = tmp_path / "log"
    assert main(["end", "bug", "-vv"]) == 70
    assert main(["end", "bug", "--log-file", str(log)]) == 70
    shown, logged = capsys.readouterr().err, log.read_text("utf-8")
    assert f"the traceback is in {log}" in shown
    for text in (shown, logged):
        assert "ValueError: \\x1b[31m X-Auth-Token: <secret>" in text
        assert "in end" in text
        assert_clean(text)


@pytest.mark.row("M6")
@pytest.mark.row("R20")
@pytest.mark.parametrize("form", ["table", "json"])
def test_hostile_strings_in_errors_are_escaped(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert main(["end", "config", "-f", form]) == 2
    assert_clean(capsys.readouterr().err)
    assert main([HOSTILE]) == 2
    assert main(["precache", f"--{HOSTILE}"]) == 2
    assert main(["precache", "x", "--timeout", HOSTILE]) == 2
    assert_clean(capsys.readouterr().err)


@pytest.mark.row("M6")
@pytest.mark.row("R20")
@pytest.mark.parametrize("form", ["table", "json", "yaml", "csv", "value"])
@pytest.mark.parametrize("verbosity", [[], ["-v"], ["-vvv"]])
def test_hostile_strings_in_results_are_escaped(
    capsys: pytest.CaptureFixture[str], form: str, verbosity: list[str], tmp_path: PathType
) -> None:
    log = tmp_path / "log"
    assert (
        main(["show", "1", "--name", HOSTILE, "-f", form, "--log-file", str(log), *verbosity]) == 0
    )
    captured = capsys.readouterr()
    assert_clean(captured.out, allowed="\n\t" if form == "value" else "\n")
    assert_clean(captured.err)
    assert_clean(log.read_text("utf-8"))


@pytest.mark.row("C10")
@pytest.mark.parametrize(
    "change",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "0"},
        {"NO_COLOR": "1", "TERM": "xterm-256color"},
        {"TERM": "dumb"},
        {},
    ],
)
def test_without_a_terminal_all_is_plain(change: dict[str, str]) -> None:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))
    }
    done = subprocess.run(
        [*PROGRAM, "show", "3", "--name", "Debian \u2013 é"],
        capture_output=True, timeout=60, check=False, env={**environ, "LANG": "C.UTF-8", **change},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        assert_clean(stream.decode("utf-8"))
        if "LC_ALL" in change or "PYTHONIOENCODING" in change:
            assert stream.isascii()
            assert b"\\u2013" in stream or b"\\udce2" in stream
        else:
            assert "\u2013" in stream.decode("utf-8")


@pytest.mark.row("C10")
@pytest.mark.parametrize(
    "change", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"LC_ALL": "C"}, {"width": "0"}]
)
def test_a_terminal_that_wants_or_can_no_more_gets_plain_lines(change: dict[str, str]) -> None:
    text = on_terminal(["show", "3"], **{"TERM": "xterm-256color", "LANG": "C.UTF-8"} | change)
    assert "imgcache: warning: notice 199 debian-12" in text
    assert_clean(text.replace("\r\n", "\n"))


def on_terminal(argv: list[str], **environ: str) -> str:
    """Run with standard error on a pseudo-terminal and return what it shows."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    columns = int(environ.pop("width", "80"))
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [*PROGRAM, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env={**os.environ, **environ},
    )
    os.close(slave)
    shown = b""
    try:
        while block := os.read(master, 65_536):
            shown += block
    except OSError:  # Linux says so at the end
        pass
    finally:
        os.close(master)
    assert child.wait(30) == 0
    return shown.decode("utf-8")


@pytest.mark.row("C2")
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_reader_that_goes_away_is_no_traceback(form: str) -> None:
    child = subprocess.Popen(
        [*PROGRAM, "show", "20000", "-vf", form], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(10)
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 0
    assert b"Traceback" not in said
    assert b"Broken" not in said
    assert b"Exception" not in said


@pytest.mark.row("C2")
def test_a_reader_that_is_gone_before_the_result_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, "show", "3"], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Broken" not in done.stderr


@pytest.mark.row("C2")
@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "<&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    command = f'exec "$@" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", *PROGRAM, "show", "3"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr + done.stdout


@pytest.mark.row("C2")
def test_a_closed_standard_error_changes_nothing_on_standard_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, "show", "3"], stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stdout.startswith(b"HOST ")
    assert b"edge1-[00000-00002]" in done.stdout


@pytest.mark.row("C4")
def test_a_result_that_cannot_be_written_is_a_failure() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "show", "3"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert (
        b"its result cannot be written to standard output: No space left on device" in done.stderr
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.row("C4")
def test_a_log_file_on_a_full_disk_is_a_warning(tmp_path: PathType) -> None:
    done = subprocess.run(
        [*PROGRAM, "show", "3", "--log-file", "/dev/full"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.count(b"the log file /dev/full cannot be written any more") == 1
    assert b"Traceback" not in done.stderr
