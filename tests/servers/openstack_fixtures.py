"""Fixtures of the real Keystone and Glance; register with ``pytest_plugins``.

Databases are prepared once per test session (under pytest-xdist: once for all workers), servers are
started once per worker, when a test first asks for them.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from servers.openstack import (
    OPEN_POLICY,
    Glance,
    GlanceOptions,
    KeystoneAndGlance,
    Origin,
    find_venv,
    open_glance,
    prepare_template,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def openstack_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared databases and keys, to be copied; skips where Glance is not installed."""
    if find_venv() is None:
        pytest.skip(
            "no environment with glance, keystone, pyuwsgi and gunicorn: see IMGCACHE_OPENSTACK_VENV"
        )
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    template = shared / "openstack-template"
    with (shared / "openstack-template.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (template / "done").exists():
            prepare_template(template)
            (template / "done").touch()
    return template


@pytest.fixture(scope="session")
def cloud(
    openstack_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KeystoneAndGlance]:
    """Keystone and Glance (uWSGI, no cache middleware) with the users admin, mia, rea and otto."""
    with KeystoneAndGlance(openstack_template, tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """A web server that holds images of Glance's http store."""
    server = Origin()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def glance_plain(
    openstack_template: Path, tmp_path_factory: pytest.TempPathFactory, origin: Origin
) -> Iterator[Glance]:
    """Glance without Keystone, under uWSGI, no cache middleware; its http store knows ``origin``."""
    options = GlanceOptions(policy=OPEN_POLICY, web_port=origin.port)
    state = tmp_path_factory.mktemp("glance") / "state"
    with open_glance(openstack_template, state, options) as glance:
        yield glance


@pytest.fixture(scope="session")
def glance_caching(
    openstack_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Glance]:
    """Glance without Keystone, under uWSGI, with the cache middleware."""
    options = GlanceOptions(cache=True, policy=OPEN_POLICY)
    state = tmp_path_factory.mktemp("glance") / "state"
    with open_glance(openstack_template, state, options) as glance:
        yield glance


@pytest.fixture(scope="session")
def glance_caching_gunicorn(glance_caching: Glance) -> Iterator[Glance]:
    """The same images as ``glance_caching``, served by gunicorn, with a cache of its own."""
    options = GlanceOptions(wsgi="gunicorn", cache=True, policy=OPEN_POLICY)
    with Glance(glance_caching.state, options) as glance:
        yield glance


@pytest.fixture(scope="session")
def glance_without_service_type(cloud: KeystoneAndGlance) -> Glance:
    """One more Glance of ``cloud`` that refuses tokens with access rules; ends with ``cloud``."""
    return cloud.another(GlanceOptions(service_type=False))


@pytest.fixture(scope="session")
def glance_below_prefix(cloud: KeystoneAndGlance) -> Glance:
    """One more Glance of ``cloud``, mounted at ``/image``; ends with ``cloud``."""
    return cloud.another(GlanceOptions(prefix="/image"))
