"""How the hyperv driver starts the helper: cmd's quoting, the search for a Python, other login shells."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from contract.driver_suite import Context, Stock
from imgcache.drivers import hyperv_start
from imgcache.drivers.base import UnsupportedError
from imgcache.drivers.hyperv import HypervDriver
from imgcache.errors import ErrorCode, HostError
from imgcache.model import Host, HostSettings
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from pathlib import Path

INSTALLED = "C:\\Program Files\\Cloudbase Solutions\\OpenStack\\Nova\\Python\\python.exe"

#: What Windows PowerShell 5.1 and PowerShell 7 say to a command that begins with a quoted path. Written
#: after their documentation: neither runs on the machines that run these tests.
POWERSHELL = """At line:1 char:4
+ "C:\\Python\\python.exe" -I -c "import sys"
+                          ~~
Unexpected token '-I' in expression or statement.
    + CategoryInfo          : ParserError: (:) [], ParentContainsErrorRecordException
    + FullyQualifiedErrorId : UnexpectedToken
"""

FOUND = """shell=Windows_NT
folder=C:\\Program Files
Python27
Python
Python311
Readme=1
folder=C:\\Program Files (x86)
service=

HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\nova-compute
    ImagePath    REG_EXPAND_SZ    "C:\\OpenStack\\bin\\OpenStackServiceNova.exe" nova-compute \
"D:\\Nova 2\\Python\\Scripts\\nova-compute.exe" --config-file "D:\\Nova 2\\etc\\nova.conf"

end=
""".replace("\n", "\r\n")


def test_the_command_is_one_that_cmd_reads_as_it_is() -> None:
    command = hyperv_start.start_command((INSTALLED,))
    assert command.startswith(f'"{INSTALLED}" -I -c "import ')
    assert command.count('"') == 4
    assert not set("%^!\r\n") & set(command)
    assert len(command) < 8000
    assert hyperv_start.start_command(("py", "-3")).startswith('"py" -3 -I -c "')


def test_a_plain_name_is_quoted_too_so_that_powershell_cannot_run_it() -> None:
    assert hyperv_start.start_command(("python",)).startswith('"python" -I')


@pytest.mark.parametrize("word", ['a"b', "%PATH%", "x\ny", "", "C:\\Python\\", "!x"])
def test_words_that_cmd_would_change_are_refused(word: str) -> None:
    with pytest.raises(HostError) as caught:
        hyperv_start.start_command((word,))
    assert caught.value.code is ErrorCode.PYTHON


def test_novas_pythons_are_found_best_first() -> None:
    found = hyperv_start.read_found(FOUND)
    assert found.is_cmd
    folder = INSTALLED.removesuffix("Python\\python.exe")
    assert found.pythons == (
        INSTALLED,
        f"{folder}Python311\\python.exe",
        "D:\\Nova 2\\Python\\python.exe",
    )


@pytest.mark.parametrize(
    "text", ["shell=%OS%\n", POWERSHELL, "", "x shell=Windows_NT", "shell=Windows_NTX\n"]
)
def test_other_shells_are_no_cmd(text: str) -> None:
    found = hyperv_start.read_found(text)
    assert (found.is_cmd, found.pythons) == (False, ())


def test_a_host_that_lies_gets_no_more_than_a_path_of_ours() -> None:
    lines = [
        "shell=Windows_NT",
        "folder=C:\\Program Files",
        "..\\..\\evil",
        "Python & calc",
        "end=",
    ]
    assert hyperv_start.read_found("\n".join(lines)).pythons == ()


def check_with(tmp_path: Path, shell: str, **settings: Any) -> HostError:
    """Check a host whose login shell is this script; return what is raised."""
    script = tmp_path / "shell.sh"
    script.write_text(shell)

    async def run() -> None:
        arguments = ("/bin/sh", str(script))
        async with ssh_server(tmp_path / "sshd", shell=arguments) as server, SshTransport() as ssh:
            there = HostSettings(**server.host_settings(driver="hyperv", **settings))
            context = Context(Host("hv", "edge", None, None, there), ssh, Stock())
            await HypervDriver().check(context, None)

    with pytest.raises(HostError) as caught:
        asyncio.run(run())
    return caught.value


@pytest.mark.parametrize("python", [None, (INSTALLED,)], ids=["searched", "configured"])
def test_powershell_as_the_login_shell_is_unsupported(
    tmp_path: Path, python: tuple[str, ...] | None
) -> None:
    (tmp_path / "said").write_text(POWERSHELL)
    settings = {"python": python} if python else {}
    error = check_with(tmp_path, f"cat {tmp_path}/said >&2\nexit 1\n", **settings)
    assert isinstance(error, UnsupportedError)
    assert error.code is ErrorCode.SHELL
    assert "PowerShell" in error.message
    assert "DefaultShell" in (error.hint or "")


def test_a_posix_shell_is_unsupported(tmp_path: Path) -> None:
    error = check_with(tmp_path, 'exec /bin/sh -c "$1"\n')
    assert isinstance(error, UnsupportedError)


def test_a_wrong_path_names_the_pythons_there_are(tmp_path: Path) -> None:
    (tmp_path / "found").write_text(FOUND)
    shell = (
        f'case "$1" in echo*) cat {tmp_path}/found;; '
        "*) echo not recognized as an internal or external command >&2; exit 1;; esac\n"
    )
    error = check_with(tmp_path, shell, python=("C:\\nowhere\\python.exe",))
    assert not isinstance(error, UnsupportedError)
    assert error.code is ErrorCode.PYTHON
    assert "not recognized" in error.message
    assert INSTALLED in (error.hint or "")
