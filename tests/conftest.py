"""What holds for every test: private folders, a clean environment, and nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Fixtures that several folders share live in tests/servers/*_fixtures.py.
_shared = sorted(path.stem for path in Path(__file__).parent.glob("servers/*_fixtures.py"))
pytest_plugins = ["settled", "failed", *(f"servers.{name}" for name in _shared)]

# What a user's or a CI system's environment may hold that would change what the program does.
_DROPPED_PREFIXES = ("OS_", "IMGCACHE_", "XDG_", "PYTEST_ADDOPTS", "CLUSTERSHELL_")
_DROPPED = (
    "SSH_AUTH_SOCK", "SSH_ASKPASS", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
    "TERMINAL_WIDTH", "COLUMNS", "LINES", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "PYTHONPATH",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Clean the environment before any fixture, also one of a whole session, can see it."""
    del config
    # Whoever starts the tests with nohup, or in the background, has these ignored by all that they start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [*os.environ]:
        if name.startswith(_DROPPED_PREFIXES) or name in _DROPPED:
            del os.environ[name]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test without what may be random or of this second: all workers must agree on names."""
    if isinstance(val, bytes) and len(val) > 16:
        return f"{len(val)}bytes"
    if isinstance(val, str) and val.endswith(" GMT"):
        return "date"
    return None


#: Whether this machine shows only a container's own processes. Source: Linux ``PROC_PID_INIT_INO``.
_IN_CONTAINER = os.stat("/proc/self/ns/pid").st_ino != 0xEFFFFFFC


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one heavy server in one worker, so that it is started once; life apart."""
    for item in items:
        if _IN_CONTAINER and item.path.name.startswith("test_life"):
            reason = (
                "in a container nothing is removed: its processes are not the hosts (--pid host)"
            )
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.path.name.startswith("test_life") and not item.get_closest_marker("xdist_group"):
            # An open file counts as use by its name alone, wherever on the machine it is: tests that
            # look for users must not run beside others that have files of the same names.
            item.add_marker(pytest.mark.xdist_group("life"))
        if item.get_closest_marker("openstack") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("openstack"))


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this test's own HOME; the XDG folders are the usual ones below it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name, folder in (
        ("XDG_CONFIG_HOME", ".config"),
        ("XDG_CACHE_HOME", ".cache"),
        ("XDG_DATA_HOME", ".local/share"),
        ("XDG_STATE_HOME", ".local/state"),
    ):
        monkeypatch.setenv(name, str(home / folder))
    return home
