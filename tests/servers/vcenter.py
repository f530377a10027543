"""A vCenter for tests: ``tests/rig/vcenter.go``, built once per machine from Debian's packages."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import shutil
import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlencode, urlsplit

import pytest

SOURCE = Path(__file__).parents[1] / "rig/vcenter.go"
BUILD = Path(__file__).parents[2] / "build"
#: Where Debian's golang-github-vmware-govmomi-dev puts what it has.
_GOPATH = Path("/usr/share/gocode")
CLUSTER = "DC0_C0"
USER = "operator@vsphere.local"
PASSWORD = "canary-vcenter-pa55word"
MACHINE = "DC0_C0_RP0_VM0"


def build_vcenter() -> Path:
    """Return the program, built at most once for each version of its source; skips where it cannot be."""
    go = shutil.which("go")
    if go is None or not (_GOPATH / "src/github.com/vmware/govmomi").is_dir():
        pytest.skip("needs Debian's golang-go and golang-github-vmware-govmomi-dev")
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    source = SOURCE.read_bytes()
    BUILD.mkdir(exist_ok=True)
    program = BUILD / f"vcenter-{hashlib.sha256(source).hexdigest()[:16]}"
    with (BUILD / "vcenter.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            folder = BUILD / "vcenter-go/src/imgcache-vcenter"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "main.go").write_bytes(source)
            fresh = program.with_suffix(".new")
            environment = {
                **os.environ,
                "GO111MODULE": "off",
                "GOPATH": f"{BUILD / 'vcenter-go'}:{_GOPATH}",
                "GOCACHE": str(BUILD / "vcenter-go/cache"),
                "GOFLAGS": "",
            }
            command = [go, "build", "-o", str(fresh), "."]
            subprocess.run(command, cwd=folder, env=environment, check=True)
            fresh.rename(program)
    return program


@dataclass
class VCenter:
    """One running vCenter; use as a context manager."""

    program: Path
    folder: Path
    """Its datastores are below."""
    datastores: int = 2
    stores: dict[str, Path] = field(default_factory=dict)
    """Name -> its folder."""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder.parent / f"{self.folder.name}.log").open("wb")
        command = [
            str(self.program), "-u", USER, "-p", PASSWORD, "-ds", str(self.datastores),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )  # fmt: skip
        assert self.process.stdout
        url = urlsplit(self.process.stdout.readline().decode().strip())
        assert url.port, "the test vCenter did not start"
        self.port = url.port
        lines = self.ask("stores").splitlines()
        self.stores = {name: Path(path) for name, path in (line.split("\t") for line in lines)}
        assert len(self.stores) == self.datastores
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def ask(self, what: str, **fields: object) -> str:
        """Ask the rig, beside the API, for something: a fault to come, a changed machine …"""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=20, context=context
        )
        try:
            connection.request("GET", f"/rig/{what}?{urlencode(fields)}")
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, (what, response.status, text)
            return text
        finally:
            connection.close()

    def certificate(self) -> str:
        """Return its certificate, PEM."""
        return ssl.get_server_certificate(("127.0.0.1", self.port))

    def nova_conf(self, folder: Path, more: str = "", **vmware: object) -> Path:
        """Write a nova.conf for it, with a folder of locks, and return its path."""
        locks = folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        values = {
            "host_ip": "127.0.0.1",
            "host_port": self.port,
            "host_username": USER,
            "host_password": PASSWORD,
            "insecure": "true",
            "cluster_name": CLUSTER,
            **vmware,
        }
        lines = ["[DEFAULT]", "my_ip = 10.0.0.5", "[oslo_concurrency]", f"lock_path = {locks}"]
        lines += [more, "[vmware]", *(f"{name} = {value}" for name, value in values.items())]
        path = folder / "nova.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def cached(self, image_id: str, base: str = "10.0.0.5_base") -> list[Path]:
        """Return the folders of an image in the caches."""
        found = (path / base / image_id for path in self.stores.values())
        return [path for path in found if path.exists()]

    def leftovers(self) -> list[Path]:
        """Return what transfers have left on the datastores."""
        return [
            path
            for store in self.stores.values()
            for pattern in ("vmware_temp/*", "imgcache-*", "OSTACK_IMG_*")
            for path in store.glob(pattern)
        ]
