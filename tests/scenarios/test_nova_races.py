"""Nova's own code and imgcache fetch an image at once: either may win, and one whole file is there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from scenarios.faults_site import local_fleet, scripted_glance
from servers.misbehaving_http import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scenarios.faults_site import ScriptedGlance
    from servers.fleet_fixtures import Fleet
    from servers.misbehaving_http import Exchange

pytestmark = pytest.mark.qemu

ROOT = Path(__file__).parents[2]
NOVA_PYTHON = ROOT / ".venv-nova/bin/python"
TOKEN = "token"
WAIT_S = 60.0
HOST = "edge1-01"
#: What Nova does when: it waits for imgcache's request of the file, and both get the bytes at once; it begins
#: some time after that request; it has half of the file, and the lock, when imgcache begins.
MODES = ("meet", "chase", "first")
FORMS = ("raw", "qcow2", "aki")


class Nova:
    """Nova's code in a process; ``boot`` returns at once, ``ended`` waits. Use as a context manager."""

    def __init__(self, conf: Path) -> None:
        self.log = conf.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(NOVA_PYTHON), "-W", "ignore", str(ROOT / "tests/rig/nova_boots.py"), str(conf)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self._sending = threading.Lock()
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n", self.log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def boot(self, image: str, disk: Path, *, kernel: bool, delay_s: float) -> None:
        order = {"image": image, "disk": str(disk), "kernel": kernel, "delay_s": delay_s}
        disk.parent.mkdir()
        assert self.process.stdin
        with self._sending:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def ended(self, count: int) -> dict[str, dict[str, Any]]:
        """Return what became of so many boots, by image."""
        assert self.process.stdout
        timer = threading.Timer(WAIT_S, self.process.kill)
        timer.start()
        try:
            said = [json.loads(self.process.stdout.readline()) for _ in range(count)]
        finally:
            timer.cancel()
            timer.join()
        return {one["image"]: one for one in said}


@dataclass
class Race:
    """One image, which both want; a behaviour of the image service, too."""

    nova: Nova
    instances: Path
    mode: str
    form: str
    random: random.Random
    content: bytes = b""
    """Of the base file."""
    image: str = field(default_factory=lambda: str(uuid.uuid4()))
    _asked: dict[bool, threading.Event] = field(
        default_factory=lambda: {nova: threading.Event() for nova in (True, False)}
    )
    _booted: bool = False

    def __post_init__(self) -> None:
        self.content = self.random.randbytes(1024) * self.random.randrange(64, 512)
        self._jitter = {nova: self.random.uniform(0, 0.02) for nova in (True, False)}

    @property
    def base(self) -> Path:
        return self.instances / "_base" / hashlib.sha1(self.image.encode()).hexdigest()

    @property
    def disk(self) -> Path:
        return self.instances / self.image / "disk"

    def image_bytes(self, folder: Path) -> bytes:
        """Return the image as the service has it."""
        if self.form != "qcow2":
            return self.content
        source, target = folder / f"{self.image}.raw", folder / f"{self.image}.qcow2"
        source.write_bytes(self.content)
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, target], check=True
        )
        return target.read_bytes()

    def boot(self) -> None:
        """Let Nova begin, once."""
        if not self._booted:
            self._booted = True
            delay_s = 0.6 * self.random.random() ** 3 if self.mode == "chase" else 0
            self.nova.boot(self.image, self.disk, kernel=self.form == "aki", delay_s=delay_s)

    def wait_for_nova(self) -> None:
        """Wait until Nova has asked for the file: it holds the lock."""
        assert self._asked[True].wait(WAIT_S)

    def __call__(self, exchange: Exchange) -> None:
        """Send the file."""
        if (
            exchange.request.header("range") == "bytes=0-0"
        ):  # the controller looks whether it is there
            serve()(exchange)
            return
        nova = exchange.request.header("x-auth-token") == TOKEN
        self._asked[nova].set()
        if not nova:
            self.boot()
        if self.mode == "meet":
            assert self._asked[not nova].wait(WAIT_S)
        if self.mode == "first" and nova:
            self.send_in_halves(exchange)
        else:
            exchange.server.closing.wait(self._jitter[nova])
            serve()(exchange)

    def send_in_halves(self, exchange: Exchange) -> None:
        """Send half of the file, and the other when imgcache is at work."""
        half = len(exchange.data) // 2
        exchange.head(
            200, {"Content-Type": "application/octet-stream", "Content-Length": len(exchange.data)}
        )
        exchange.body(exchange.data[:half])
        exchange.server.closing.wait(self.random.uniform(0.2, 1.5))
        exchange.body(exchange.data[half:])


def as_json(exchange: Exchange) -> None:
    """Answer with a document; Nova's client wants its type."""
    exchange.head(200, {"Content-Type": "application/json", "Content-Length": len(exchange.data)})
    exchange.body(exchange.data)


@dataclass
class Site:
    """A host, an image service without Keystone, and Nova's code."""

    fleet: Fleet
    glance: ScriptedGlance
    nova: Nova
    random: random.Random

    def round(self) -> Counter[str]:
        """Run one race of each kind at once; return how often which side won."""
        instances = self.fleet.instances(HOST)
        races = [
            Race(self.nova, instances, mode, form, self.random) for mode in MODES for form in FORMS
        ]
        self.random.shuffle(races)
        self.serve(races)
        early = [race for race in races if race.mode == "first"]
        for race in early:
            race.boot()
        for race in early:
            race.wait_for_nova()
        done = self.fleet.run("precache", "--all", *(race.image for race in races), "-f", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        outcomes = {one["image_id"]: one["outcome"] for one in json.loads(done.stdout)["outcomes"]}
        for race in races:
            race.boot()  # where imgcache had it without asking
        booted = self.nova.ended(len(races))
        for race in races:
            told = f"{race.mode} {race.form}: {outcomes[race.image]}, {booted[race.image]}"
            assert booted[race.image]["error"] is None, told
            assert race.base.stat().st_ino == booted[race.image]["inode"], told
            assert race.base.read_bytes() == race.content, told
            assert race.base.stat().st_nlink == 1, told
            assert race.disk.exists(), told
            assert outcomes[race.image] in {"cached", "existing"}, told
        assert self.fleet.leftovers(HOST) == []
        return Counter(f"{race.mode} {outcomes[race.image]}" for race in races)

    def serve(self, races: list[Race]) -> None:
        """Let the image service have these images."""
        records = []
        for race in races:
            data = race.image_bytes(self.fleet.folder)
            record = {
                "id": race.image, "name": race.image, "status": "active", "size": len(data),
                "disk_format": race.form, "container_format": "aki" if race.form == "aki" else "bare",
                "visibility": "public", "os_hash_algo": "sha512", "protected": False, "tags": [],
                "os_hash_value": hashlib.sha512(data).hexdigest(), "min_disk": 0, "min_ram": 0,
                "created_at": "2026-11-20T07:00:00Z", "updated_at": "2026-11-20T07:00:00Z",
            }  # fmt: skip
            records.append(record)
            route = f"/v2/images/{race.image}"
            self.glance.server.route(route, json.dumps(record).encode(), as_json)
            self.glance.server.route(f"{route}/file", data, race)
        self.glance.server.route("/v2/images", json.dumps({"images": records}).encode())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Return one, with an empty cache."""
    if not NOVA_PYTHON.exists():
        pytest.skip("needs .venv-nova, made of tools/requirements-nova.txt")
    with scripted_glance() as glance:
        schema = {"name": "image", "properties": {"disk_format": {}, "container_format": {}}}
        glance.server.route("/v2/schemas/image", json.dumps(schema).encode(), as_json)
        fleet = local_fleet(tmp_path, glance.settings)
        conf = tmp_path / "nova.conf"
        conf.write_text(
            f"[DEFAULT]\nhost = {HOST}\ninstances_path = {fleet.instances(HOST)}\n"
            f"[glance]\napi_servers = {glance.server.url}\n[libvirt]\nimages_type = qcow2\n"
        )
        fleet.overrides[HOST] = {"nova_conf": str(conf)}
        with Nova(conf) as nova:
            yield Site(fleet, glance, nova, random.Random(0))


def test_nova_and_imgcache_fetch_an_image_at_once(site: Site) -> None:
    site.round()


@pytest.mark.long
def test_nova_and_imgcache_fetch_an_image_at_once_hundreds_of_times(site: Site) -> None:
    won = sum((site.round() for _ in range(25)), Counter())
    print(os.linesep.join(f"{key}: {count}" for key, count in sorted(won.items())))
    assert {key.split()[1] for key in won} == {"cached", "existing"}
