from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "asyncio", "asyncssh", "pydantic", "requests", "paramiko", "keystoneauth1", "openstack", "rich",
    "yaml", "ClusterShell", "humanfriendly", "cryptography", "urllib3",
}  # fmt: skip
PROBE = """
import sys
from imgcache.cli import main
code = main(sys.argv[1:])
sys.stderr.write(" ".join({name.partition(".")[0] for name in sys.modules}))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        # Typer itself parses values with pydantic.
        (["precache", "--help"], {"pydantic"}),
        (["precache", "--no-such-option"], {"pydantic"}),
        (["no-such-command"], {"pydantic"}),
    ],
)
def test_heavy_libraries_are_not_imported_where_they_are_not_used(
    argv: list[str], allowed: set[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in {0, 2}, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "imgcache" in loaded
    assert loaded & HEAVY <= allowed
