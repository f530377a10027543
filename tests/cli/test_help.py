from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imgcache.cli import COMMANDS, load_command, main, root_command


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_loads_and_its_summary_is_that_of_the_table(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    summary = COMMANDS[name][1].removesuffix(".")
    assert command.help.splitlines()[0].startswith(summary)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_shows_every_option_with_a_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"] if name else ["--help"]) == 0
    text = capsys.readouterr().out
    command = load_command(name) if name else root_command()
    for param in command.params:
        assert param.help, param.name
        if param.param_type_name == "option":
            assert max(param.opts, key=len) in text


def test_no_option_takes_a_secret() -> None:
    commands: list[Any] = [root_command(), *map(load_command, COMMANDS)]
    options = [opt for command in commands for param in command.params for opt in param.opts]
    assert not [opt for opt in options if re.search(r"password|secret|token|passcode", opt)]


def test_commands_and_global_options_do_not_clash() -> None:
    """Global options may stand behind the command, so no command may have one of the same name."""
    common = {opt for param in root_command().params for opt in param.opts}
    for name in COMMANDS:
        own = {opt for param in load_command(name).params for opt in param.opts}
        assert not own & common


def test_the_manual_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "tools/make_man.py", "--check"], timeout=60, check=False)
    assert done.returncode == 0, "run tools/make_man.py"


def test_the_manual_page_is_good_roff() -> None:
    man = shutil.which("man")
    if man is None:
        pytest.skip("needs man")
    command = [man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "docs/imgcache.1"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "MANPAGER": "cat"},
    )
    assert done.stderr == ""
    assert "imgcache precache [options] [IMG...]" in re.sub(".\x08", "", done.stdout)


def test_module_and_command_are_the_same() -> None:
    command = Path(sys.executable).with_name("imgcache")
    if not command.exists():
        pytest.skip("needs an installed imgcache")
    by_command = subprocess.run(
        [command, "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    by_module = subprocess.run(
        [sys.executable, "-m", "imgcache", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert by_command.stdout == by_module.stdout
    assert re.fullmatch(
        r"imgcache \d+\.\d+\.\d+ \(helper sha256:[0-9a-f]{64}\)\n", by_command.stdout
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_completes(shell: str, private_home: Path) -> None:
    command = Path(sys.executable).with_name("imgcache")
    if not command.exists():
        pytest.skip("needs an installed imgcache")
    env = {
        **os.environ,
        "HOME": str(private_home),
        "_IMGCACHE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "imgcache pre",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "imgcache pre",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [command], capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert "precache" in done.stdout
    assert done.stderr == ""


def test_install_completion_writes_the_script(private_home: Path) -> None:
    command = Path(sys.executable).with_name("imgcache")
    bash = shutil.which("bash")
    if not command.exists() or bash is None:
        pytest.skip("needs an installed imgcache, and bash")
    env = {
        **os.environ,
        "HOME": str(private_home),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    done = subprocess.run(
        [command, "--install-completion", "bash"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert "imgcache" in (private_home / ".bash_completions" / "imgcache.sh").read_text("utf-8")


def test_help_lists_commands_first_and_the_cloud_options_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("\nCommands:") < text.index("\nOptions:") < text.index("\nCloud:")
    assert text.index("\nCloud:") < text.index("--os-cloud")


def test_help_of_a_command_groups_its_options_by_topic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precache", "--help"]) == 0
    text = capsys.readouterr().out
    titles = re.findall(r"^([A-Z]\w+):$", text, re.MULTILINE)
    assert titles == [
        "Arguments", "Hosts", "Source", "Schedule", "Rollout", "Options", "Limits", "Output",
    ]  # fmt: skip
    assert text.index("\nOutput:") < text.index("--log-file")
