"""Glance nodes with a cache each, on the database and store of a cloud, for the glance-cache driver.

A node can lack its cache, use another cache driver, and be stopped and started again at the same port.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from servers.openstack import GlanceOptions, Server, _glance_conf, _wsgi_argv, find_venv, free_port

if TYPE_CHECKING:
    from pathlib import Path

    import requests

    from servers.openstack import KeystoneAndGlance


@dataclass(frozen=True)
class NodeOptions:
    """How a node is set up."""

    driver: str = "centralized_db"
    """``centralized_db`` or ``sqlite``."""
    cache: bool = True
    """False: ``image_cache_dir`` is not set."""
    pipeline: bool = True
    """False: no cache filter, so that downloads fill nothing."""
    wsgi: str = "uwsgi"
    zone: str = "UTC"
    """The node's time zone."""


class GlanceNode:
    """One Glance API node of a cloud, with a cache folder of its own."""

    def __init__(
        self, cloud: KeystoneAndGlance, folder: Path, options: NodeOptions | None = None
    ) -> None:
        self.options = options or NodeOptions()
        self.cloud = cloud
        self.folder = folder
        self.cache = folder / "cache"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        for path in (folder / "lock", self.cache):
            path.mkdir(parents=True)
        self._configure()
        self.server = self._start()

    def _configure(self) -> None:
        glance = GlanceOptions(cache=self.options.cache and self.options.pipeline)
        text = _glance_conf(
            self.cloud.state, self.folder, self.url, glance, self.cloud.keystone.url
        )
        line = f"image_cache_dir = {self.folder}/cache\n"
        assert line in text
        more = f"{line}image_cache_driver = {self.options.driver}\n" if self.options.cache else ""
        (self.folder / "glance-api.conf").write_text(text.replace(line, more))
        (self.folder / "policy.yaml").write_text(json.dumps({}))

    def _start(self) -> Server:
        venv = find_venv()
        assert venv is not None
        options = GlanceOptions(wsgi=self.options.wsgi)
        argv = _wsgi_argv(venv, options, self._port, "glance.wsgi.api:application")
        env = {"OS_GLANCE_CONFIG_DIR": str(self.folder), "TZ": self.options.zone}
        return Server(argv, env, self.folder / "log", self.url + "/healthcheck")

    def wait_ready(self) -> None:
        """Wait until it answers."""
        self.server.wait_ready()

    def stop(self) -> None:
        """End it."""
        self.server.stop()

    def restart(self) -> None:
        """End it, unless it is, and start it again; its memory is gone, its files are there."""
        self.stop()
        self.server = self._start()
        self.wait_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # --------------------------------------------------------------------------------------- behind its back

    def cached(self, image_id: str) -> bytes | None:
        """Return what the node's cache holds for an image."""
        path = self.cache / image_id
        return path.read_bytes() if path.exists() else None

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Make one request as the admin."""
        # The same request as Glance.call makes, at another URL.
        from servers.openstack import _plain

        headers = {"X-Auth-Token": self.cloud.admin_token, **kwargs.pop("headers", {})}
        with _plain() as session:
            return session.request(method, self.url + path, headers=headers, timeout=30, **kwargs)

    def state(self) -> Any:
        """Return what ``GET /v2/cache`` says."""
        return self.call("GET", "/v2/cache").json()

    def hit(self, image_id: str) -> None:
        """Download a cached image, and wait until the node has counted that: after the last byte."""
        before = self._hits(image_id)
        self.call("GET", f"/v2/images/{image_id}/file").raise_for_status()
        deadline = time.monotonic() + 60
        while self._hits(image_id) == before:
            assert time.monotonic() < deadline, "the node counts no hit"
            time.sleep(0.02)

    def _hits(self, image_id: str) -> int:
        rows = self.state()["cached_images"]
        return next(int(row["hits"]) for row in rows if row["image_id"] == image_id)
