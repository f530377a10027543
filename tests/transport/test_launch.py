"""The command and the boot line: under every Python and login shell that can be found."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from fakes.hosts import greet, make_host
from imgcache.errors import ErrorCode, HostError
from imgcache.transport import launch
from imgcache.transport.local import LocalTransport
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server


@cache
def pythons() -> list[str]:
    """Every Python on PATH and in pyenv, by its real path once."""
    names = [f"python3.{minor}" for minor in range(6, 16)] + ["python3"]
    found = [path for name in names if (path := shutil.which(name))]
    root = os.environ.get("PYENV_ROOT")
    if root:
        found += [str(path) for path in sorted(Path(root).glob("versions/3.*/bin/python3"))]
    by_version: dict[str, str] = {}
    for path in [*found, sys.executable]:
        ask = [path, "-c", "import sys; print(sys.version)"]
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            by_version.setdefault(done.stdout, path)
    return list(by_version.values())


@cache
def old_python() -> str | None:
    """A Python 2, if there is one."""
    root = os.environ.get("PYENV_ROOT", "")
    found = sorted(Path(root).glob("versions/2.*/bin/python2")) if root else []
    return str(found[0]) if found else shutil.which("python2")


def test_the_boot_line_has_no_character_that_shells_treat_specially() -> None:
    assert set(launch.BOOT_LINE).isdisjoint('"%$`\\!\n')
    assert launch.BOOT_LINE.isascii()


@pytest.mark.row("H1")
@pytest.mark.parametrize("python", pythons())
def test_the_helper_starts_under_every_python(python: str) -> None:
    hello = asyncio.run(greet(LocalTransport(), make_host(python=(python,))))
    assert re.fullmatch(r"3\.\d+\.\d+.*", hello.python)
    assert hello.uid == os.getuid()
    assert abs(hello.clock_offset_s) < 15


@pytest.mark.row("H1")
def test_python_2_is_named_as_too_old() -> None:
    if not (python := old_python()):
        pytest.skip("no Python 2 here")
    with pytest.raises(HostError) as caught:
        asyncio.run(greet(LocalTransport(), make_host(python=(python,))))
    assert caught.value.code is ErrorCode.PYTHON
    assert "too old" in caught.value.message


@pytest.mark.row("H1")
def test_an_old_python_3_says_its_version(tmp_path: Path) -> None:
    # No Python 3.5 exists any more to be installed; this one claims to be one.
    wrapper = tmp_path / "python3"
    wrapper.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.version_info = (3, 5, 2)\nsys.version = '3.5.2 (old)'\n"
        "exec(sys.argv[-1])\n"
    )
    wrapper.chmod(0o755)
    with pytest.raises(HostError) as caught:
        asyncio.run(greet(LocalTransport(), make_host(python=(str(wrapper),))))
    assert caught.value.code is ErrorCode.PYTHON
    assert "3.5.2" in caught.value.message


@pytest.mark.row("H4")
@pytest.mark.parametrize(
    "name", ["sh", "bash", "dash", "rbash", "zsh", "ksh", "csh", "tcsh", "fish"]
)
def test_the_command_works_under_every_shell(name: str) -> None:
    shell = shutil.which(name)
    if not shell:
        pytest.skip(f"{name} is not installed")
    folder = str(Path(sys.executable).parent)
    command = launch.command_for(make_host(python=(Path(sys.executable).name,)))
    frames = launch.core_bytes() + launch.encode_frame(
        {"op": "start", "id": 1, "protocol": 1, "marker": "m"}
    )
    done = subprocess.run(
        [shell, "-c", command],
        input=frames,
        capture_output=True,
        check=False,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": "/nonexistent"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\0IMGCACHE0001 m\n{")


#: Shells that an rc file may put in Python's place: they read the helper's source as commands.
SHELLS = [
    ("sh",), ("sh", "-i"), ("bash",), ("bash", "-i"), ("bash", "--posix"), ("rbash",), ("dash",), ("zsh",),
    ("zsh", "-i"), ("ksh",), ("ksh", "-i"), ("mksh",), ("mksh", "-i"), ("csh",), ("csh", "-i"), ("tcsh",),
    ("tcsh", "-i"), ("busybox", "sh"), ("busybox", "ash", "-i"), ("fish",), ("fish", "-i"),
]  # fmt: skip
#: Words that begin lines of the helper's source, and could be commands.
COMMANDS = ("import", "from", "class", "def", "if", "PROTOCOL", "touch", "raise", "return", "try:")


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A folder of commands that leave a file ``ran`` behind."""
    folder = tmp_path / "traps"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(f"#!/bin/sh\n: >{tmp_path}/ran\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_shell_that_reads_the_helpers_source_runs_none_of_it(
    shell: tuple[str, ...], tmp_path: Path, traps: Path
) -> None:
    if not (path := shutil.which(shell[0])):
        pytest.skip(f"{shell[0]} is not installed")
    ours, its = os.pipe()
    process = subprocess.Popen(
        [path, *shell[1:]], stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": str(traps), "HOME": str(tmp_path)}, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(ours)
    with os.fdopen(its, "wb", buffering=0) as stdin:
        stdin.write(launch.core_bytes() + b"\ntouch it\n")
        if shell[0] == "fish":
            stdin.close()  # reads all before it runs any of it
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 95 or shell[0] == "fish", stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.row("H4")
@pytest.mark.parametrize(
    "rc", ["exec zsh", "zsh", "exec /bin/sh", "exec tcsh", "exec bash -i", "read first"]
)
def test_an_rc_file_that_starts_another_shell_is_named(tmp_path: Path, rc: str) -> None:
    if rc.startswith("exec") and not shutil.which(rc.split()[1]):
        pytest.skip(f"{rc} cannot be run here")
    (tmp_path / "rc").write_text(f"{rc}\n")
    shell = ("/usr/bin/env", f"BASH_ENV={tmp_path}/rc", "bash", "-c")

    async def run() -> None:
        async with ssh_server(tmp_path / "server", shell=shell) as server, SshTransport() as ssh:
            await greet(ssh, make_host(**server.host_settings()))

    with pytest.raises(HostError) as caught:
        asyncio.run(run())
    assert caught.value.code is ErrorCode.SHELL
    assert "rc file" in str(caught.value.hint)


def test_a_command_prefix_like_podman_exec_works(tmp_path: Path) -> None:
    # Like `podman exec -i NAME python3`: takes options and a name, and copies the streams by itself.
    wrapper = tmp_path / "podman"
    wrapper.write_text(
        "#!/bin/sh\n"
        '[ "$1 $2 $3" = "exec -i nova_compute" ] || exit 125\n'
        'shift 3; cat | "$@" | cat\n'
    )
    wrapper.chmod(0o755)
    python = (str(wrapper), "exec", "-i", "nova_compute", sys.executable)
    hello = asyncio.run(greet(LocalTransport(), make_host(python=python)))
    assert hello.python.startswith("3.")


@pytest.mark.parametrize("name", ["odd name", "it's", "$HOME", "`id`", "a;b", "*", "ü"])
def test_odd_words_reach_the_host_as_they_are(tmp_path: Path, name: str) -> None:
    link = tmp_path / name
    link.symlink_to(sys.executable)
    hello = asyncio.run(greet(LocalTransport(), make_host(python=("/usr/bin/env", str(link)))))
    assert hello.python


@pytest.mark.parametrize("word", ["a\nb", "a\0b", "a\\b", "a!b", "", "\x1b[m", "a\u2028b"])
def test_words_that_no_quoting_makes_safe_are_refused(word: str) -> None:
    for settings in ({"python": ("env", word)}, {"become": "sudo", "become_user": word}):
        with pytest.raises(HostError) as caught:
            launch.command_for(make_host(**settings))
        assert caught.value.message.isprintable()


def test_sudo_never_asks_and_takes_no_option_for_a_user() -> None:
    command = launch.command_for(make_host(become="sudo", become_user="nova", python=("python3",)))
    assert command.startswith('sudo -n -u nova -- python3 -I -c "')
    with pytest.raises(HostError):
        launch.command_for(make_host(become="sudo", become_user="-s"))


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"5",
        b"exit 95 ; 5 aa\n",
        b"exit 95 ; x y\n",
        b"exit 95 ; 3 " + b"0" * 64 + b"\nabc",
        b"exit 95 ; 900 " + b"0" * 64 + b"\nabc",
        b"exit 95 ; 3 " + hashlib.sha256(b"abc").hexdigest().encode(),
        b"\xff\xfe\n",
    ],
)
def test_short_or_wrong_source_ends_with_96_and_runs_nothing(given: bytes) -> None:
    command = [sys.executable, "-I", "-c", launch.BOOT_LINE]
    done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (96, b"")


def test_the_digest_covers_every_module_and_is_what_travels() -> None:
    assert "core" in launch.helper_modules()
    assert re.fullmatch("[0-9a-f]{64}", launch.helper_digest())
    header, source = launch.core_bytes().split(b"\n", 1)
    digest = hashlib.sha256(source).hexdigest()
    assert header == f"exit 95 ; exec /bin/sh -c 'exit 95' {len(source)} {digest}".encode()
    assert len(header) < 200
    assert source == (Path(launch.__file__).parents[1] / "helper" / "core.py").read_bytes()
    with pytest.raises(KeyError):
        launch.module_source("../errors")
    with pytest.raises(KeyError):
        launch.module_source("nothing")


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a package with a module for hosts, and one that is called as one of ours."""
    name = f"other_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    for module in ("__init__", "theirs", "core"):
        (tmp_path / name / f"{module}.py").write_text(f"# {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_another_package_brings_modules_and_replaces_none_of_ours(other_package: str) -> None:
    frame, source = launch.load_frame(f"{other_package}:theirs", 7).split(b"\n", 1)
    assert source == b"# theirs\n"
    assert json.loads(frame)["name"] == "theirs"
    for wrong in ("core", "nothing", "../theirs", ""):
        with pytest.raises(KeyError):
            launch.module_source(f"{other_package}:{wrong}")
    with pytest.raises(KeyError):
        launch.module_source("no_such_package_at_all:theirs")


@pytest.mark.row("T12")
def test_code_of_other_packages_is_not_in_our_digest_and_has_its_own(other_package: str) -> None:
    ours = launch.helper_digest()
    assert "theirs" not in launch.helper_modules()
    assert launch.helper_modules(other_package) == ("theirs",)
    assert launch.helper_digest(other_package) not in {ours, launch.helper_digest("json")}
    assert launch.helper_digest() == ours
    with pytest.raises(KeyError):
        launch.helper_digest("no_such_package_at_all")
