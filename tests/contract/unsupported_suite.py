"""What a driver promises about what it cannot do: part of ``contract.driver_suite``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import yaml

from contract.rows import collected
from imgcache.drivers.base import METHODS, UnsupportedError
from imgcache.drivers.capabilities import COMMANDS, supports, why_not
from imgcache.errors import ErrorCode
from imgcache.model import ImageId

if TYPE_CHECKING:
    from pathlib import Path

    from contract.driver_suite import Bench
    from imgcache.drivers.base import Driver, HostContext

IMAGE = ImageId("00000000-0000-4000-8000-00000000abcd")


async def call(driver: Driver, method: str, context: HostContext) -> None:
    """Call a method with as little as it takes."""
    arguments: dict[str, dict[str, Any]] = {
        "precache": {"images": ()},
        "check": {"service": None},
        "inspect": {"formats": False, "use": False},
        "remove": {"items": ()},
        "clean": {"stall_age_s": 86400.0},
        "verify": {"base_names": (), "adopt": {}, "bytes_per_s": None},
        "prove": {"images": (), "bytes_per_s": None},
        "pin": {"base_names": (), "until": None},
        "renew": {"sizes": ()},
    }
    done = getattr(driver, method)(context, **arguments[method])
    await (done if isawaitable(done) else collected(done))


class UnsupportedSuite:
    """See the module. A suite's class says in ``cannot`` what it knows its driver to lack."""

    cannot: ClassVar[frozenset[str]] = frozenset()

    def test_what_it_cannot_do_is_known_and_has_a_reason(self, bench: Bench) -> None:
        driver = bench.driver
        lacking = {method for method in METHODS if not supports(driver, method)}
        assert lacking == self.cannot
        assert set(driver.unsupported) == lacking, "a reason of its own for each, and for no other"
        for reason in driver.unsupported.values():
            assert reason
            assert not reason.endswith(".")

    def test_an_entrys_name_is_a_pure_function_of_the_image(self, bench: Bench) -> None:
        names = {bench.driver.entry_name(IMAGE) for _ in range(2)}
        assert len(names) == 1
        assert names != {bench.driver.entry_name(ImageId(IMAGE.replace("abcd", "abce")))}

    def test_what_it_cannot_do_is_refused_without_contact(self, bench: Bench) -> None:
        from contract.driver_suite import Context, raised_by
        from imgcache.transport.local import LocalTransport

        for method in sorted(self.cannot):
            context = Context(bench.host, LocalTransport(), bench.stock)
            error = raised_by(call(bench.driver, method, context))
            assert isinstance(error, UnsupportedError)
            assert error.code is ErrorCode.DRIVER
            assert error.message == bench.driver.unsupported[method]
            assert (context.connections, context.outcomes) == (0, {})

    def test_a_command_that_it_cannot_serve_ends_unsupported_with_a_warning(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        refused = [name for name in COMMANDS if " " not in name and why_not(bench.driver, name)]
        if not refused:
            pytest.skip("it can serve every command")
        site = tmp_path / "unsupported-site"
        write_site(site, bench.driver.name)
        with ThreadPoolExecutor(2) as pool:
            runs = pool.map(lambda command: run(site, command, bench.python_path), refused)
        for command, (document, stderr) in zip(refused, runs, strict=True):
            rows = document.get("outcomes") or document.get("failures") or document["checks"]
            (row,) = rows
            reason = why_not(bench.driver, command)
            assert reason
            assert row.get("outcome", row.get("state")) in {"unsupported", "warn"}, row
            assert reason in {row.get("reason"), row.get("detail")}
            assert f"h1: warning: {reason}" in stderr, stderr


def write_site(site: Path, driver: str) -> None:
    """Write an inventory with one host that nobody can reach, and a folder of no images."""
    (site / "images").mkdir(parents=True)
    (site / "images" / "images.yaml").write_text("images: []\n")
    inventory = {
        "image_service": {"kind": "directory", "path": "images"},
        "aggregates": {"edge": {"driver": driver, "hosts": [{"name": "h1", "port": 1}]}},
    }
    (site / "inventory.yaml").write_text(yaml.safe_dump(inventory))


def run(site: Path, command: str, python_path: Path | None) -> tuple[dict[str, Any], str]:
    """Run a command over the host, which must end with 0; return the result and standard error."""
    images: dict[str, list[str]] = {
        "pin": [IMAGE, "--forever"], "unpin": [IMAGE], "delete": [IMAGE],
    }  # fmt: skip
    environ = {**os.environ, **({"PYTHONPATH": str(python_path)} if python_path else {})}
    done = subprocess.run(
        [sys.executable, "-m", "imgcache", "--inventory", "inventory.yaml", command, "--all",
         "-f", "json", *images.get(command, [])],
        capture_output=True, text=True, timeout=120, check=False, cwd=site, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document, done.stderr
