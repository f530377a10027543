"""A site in network namespaces: hosts with a real sshd each, links of a given rate, and a real Glance.

    enter_namespace()                       once, first thing: nothing of it is seen outside, or outlives us
    with open_site(folder, hosts=8, mbit=200) as site:
        site.run(["precache", …])

Each host has two interfaces: ``mgmt`` (10.78.0.0/16, as fast as it goes) for SSH, and ``data`` (10.77.0.0/16,
shaped by ``tc`` in both directions) for images. Glance's own interface, ``wan0``, is shaped in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from _skip import skip

from servers.openstack import (
    OPEN_POLICY,
    Glance,
    GlanceOptions,
    copy_glance_state,
    find_venv,
    prepare_template,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_INSIDE = "IMGCACHE_BENCH_SITE"
GLANCE_ADDRESS = "10.77.255.254"
SSH_PORT = 22


def enter_namespace() -> None:
    """Run this script again in network and mount namespaces of its own; says why when it cannot."""
    if os.environ.get(_INSIDE):
        sh("ip link set lo up")
        sh("mkdir -p /run/netns && mount -t tmpfs none /run/netns")
        # bash reads it at every login over ssh; what it does there is not what is measured.
        if (rc_file := Path.home() / ".bashrc").exists():
            sh(f"mount --bind /dev/null {rc_file}")
        return
    if os.geteuid() != 0:
        skip("network namespaces need root")
    for program in ("ip", "tc", "unshare", "/usr/sbin/sshd"):
        if not shutil.which(program):
            skip(f"{program} is missing")
    if find_venv() is None:
        skip("Glance is missing (make setup)")
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvpe("unshare", [*words, sys.executable, *sys.argv], {**os.environ, _INSIDE: "1"})


def sh(command: str) -> str:
    """Run a shell command; it must work."""
    return subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, text=True
    ).stdout


@dataclass
class Site:
    """See ``open_site``."""

    folder: Path
    hosts: int
    mbit: float
    glance: Glance
    more: str = ""
    """More lines of the inventory, such as ``sites:``."""
    settings: str = ""
    """More settings of all hosts: ``name: value`` pairs, with a comma before each."""
    sshd: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def data_address(self, number: int) -> str:
        """Return the address for images of host ``number``, from 0."""
        return f"10.77.0.{number + 1}"

    def instances(self, number: int) -> Path:
        """Return a host's instances path."""
        return self.folder / "hosts" / str(number)

    def clear(self) -> None:
        """Make all caches empty."""
        for number in range(self.hosts):
            shutil.rmtree(self.instances(number), ignore_errors=True)
            self.instances(number).mkdir(parents=True)
        sh("sync")

    def upload(self, mib: int) -> tuple[str, str]:
        """Give Glance a raw image of random bytes; returns its id and SHA-512."""
        image_id = self.glance.upload(f"image-{mib}", os.urandom(mib << 20))
        record = self.glance.call("GET", f"/v2/images/{image_id}").json()
        return image_id, record["os_hash_value"]

    def sent_bytes(self) -> int:
        """Return the bytes that have left Glance's interface, headers included."""
        link = json.loads(sh("ip -j -s link show dev wan0"))[0]
        return int(link["stats64"]["tx"]["bytes"])

    def in_namespace(self, number: int, words: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """Start a program on a host."""
        return subprocess.Popen(["ip", "netns", "exec", f"h{number}", *words], **more)

    def cut_off(self, number: int) -> None:
        """Let a host vanish without a word: its links go down, nothing is reset."""
        sh(f"ip link set d{number} down; ip link set m{number} down")

    def reconnect(self, number: int) -> None:
        """Undo ``cut_off``."""
        sh(f"ip link set d{number} up; ip link set m{number} up")

    def kill(self, number: int) -> None:
        """Kill all programs that serve a login on a host; its sshd itself stays."""
        pids = sh(f"ip netns pids h{number}").split()
        for pid in pids:
            if int(pid) != self.sshd[number].pid:
                os.kill(int(pid), signal.SIGKILL)

    def inventory(self, numbers: Sequence[int]) -> Path:
        """Write an inventory of these hosts, all of one site."""
        lines = "".join(
            f"      - {{name: h{n:02}, address: 10.78.0.{n + 1}, relay_address: {self.data_address(n)}, "
            f"instances_path: {self.instances(n)}}}\n"
            for n in numbers
        )
        port = self.glance.url.rpartition(":")[2]
        path = self.folder / "inventory.yaml"
        path.write_text(
            f"image_service: {{endpoint: {self.glance.url}, "
            f"host_endpoint: 'http://{GLANCE_ADDRESS}:{port}'}}\n"
            f"defaults: {{user: root, ssh_key: {self.folder}/user_key, "
            f"known_hosts: {self.folder}/known_hosts, reserve: 0, images_type: qcow2, "
            f"force_raw_images: true{self.settings}}}\n{self.more}"
            f"aggregates:\n  all:\n    site: bench\n    hosts:\n{lines}"
        )
        return path

    def start(self, numbers: Sequence[int], arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Start imgcache over these hosts, JSON on its standard output."""
        program = [sys.executable, "-m", "imgcache", "--inventory", str(self.inventory(numbers))]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}
        environment["HOME"] = str(self.folder)
        return subprocess.Popen(
            [*program, *arguments, "-f", "json"],
            stdout=subprocess.PIPE,
            stderr=(self.folder / "stderr").open("w"),
            text=True,
            env=environment,
        )

    def run(
        self, numbers: Sequence[int], arguments: Sequence[str]
    ) -> tuple[float, dict[str, Any], int]:
        """Run imgcache; returns seconds, its result, its exit code."""
        start = time.monotonic()
        child = self.start(numbers, arguments)
        out, _ = child.communicate()
        elapsed = time.monotonic() - start
        if not out:
            sys.exit(f"no result:\n{(self.folder / 'stderr').read_text()[-3000:]}")
        return elapsed, json.loads(out), child.returncode

    def check_cached(self, numbers: Sequence[int], image_id: str, value: str) -> None:
        """Fail unless each of these hosts has the image's very bytes."""
        base = hashlib.sha1(image_id.encode()).hexdigest()
        for number in numbers:
            path = self.instances(number) / "_base" / base
            digest = sh(f"sha512sum {path}").split()[0]
            assert digest == value, f"host {number} has other bytes"


def _link(name: str, namespace: str, inside: str, address: str, bridge: str, mbit: float) -> None:
    sh(
        f"ip link add {name} type veth peer name {inside} netns {namespace};"
        f"ip link set {name} master {bridge} up;"
        f"ip -n {namespace} addr add {address}/16 dev {inside}; ip -n {namespace} link set {inside} up"
    )
    if mbit:
        shape(f"tc qdisc add dev {name} root", mbit)
        shape(f"ip netns exec {namespace} tc qdisc add dev {inside} root", mbit)


def shape(command: str, mbit: float) -> None:
    """Limit what leaves an interface.

    A burst holds a whole packet of segmentation offload (64 KiB): else the kernel cuts each into 44, and all
    hosts together spend one core of this machine on that, which no host of a real site does for another.
    """
    burst = max(70_000, int(mbit * 1e6 / 8 / 250))
    sh(f"{command} tbf rate {mbit}mbit burst {burst} latency 50ms")


def _make_network(hosts: int, mbit: float) -> None:
    for bridge in ("data", "mgmt"):
        sh(f"ip link add {bridge} type bridge && ip link set {bridge} up")
    sh("ip link add wan0 type veth peer name wan1 && ip link set wan1 master data up")
    sh(f"ip addr add {GLANCE_ADDRESS}/16 dev wan0 && ip link set wan0 up")
    sh("ip addr add 10.78.255.254/16 dev mgmt")
    if mbit:
        shape("tc qdisc add dev wan0 root", mbit)
        shape("tc qdisc add dev wan1 root", mbit)
    for number in range(hosts):
        sh(f"ip netns add h{number} && ip -n h{number} link set lo up")
        _link(f"d{number}", f"h{number}", "data0", f"10.77.0.{number + 1}", "data", mbit)
        _link(f"m{number}", f"h{number}", "mgmt0", f"10.78.0.{number + 1}", "mgmt", 0)


def _start_sshd(site: Site) -> None:
    folder = site.folder
    for name in ("host_key", "user_key"):
        sh(f"ssh-keygen -q -t ed25519 -N '' -f {folder}/{name}")
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    config = folder / "sshd_config"
    config.write_text(
        f"Port {SSH_PORT}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nUsePAM no\nStrictModes no\nMaxStartups 100\nPasswordAuthentication no\n"
        "PrintMotd no\nLogLevel ERROR\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    lines = [f"10.78.0.{number + 1} {key}\n" for number in range(site.hosts)]
    (folder / "known_hosts").write_text("".join(lines))
    for number in range(site.hosts):
        words = ["/usr/sbin/sshd", "-D", "-E", str(folder / "sshd.log"), "-f", str(config)]
        site.sshd.append(site.in_namespace(number, words))
    for number in range(site.hosts):
        _wait_until_up(f"10.78.0.{number + 1}")


def _wait_until_up(address: str) -> None:
    for _ in range(200):
        try:
            socket.create_connection((address, SSH_PORT), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("sshd did not start")


@contextmanager
def open_site(hosts: int, mbit: float, folder: Path | None = None) -> Iterator[Site]:
    """Make a site; everything of it ends with the ``with``, or with this process's namespaces."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="imgcache-site-", dir=folder))
        root = Path(name)
        _make_network(hosts, mbit)
        options = GlanceOptions(policy=OPEN_POLICY, address="0.0.0.0")
        state = copy_glance_state(prepare_template(root / "template"), root / "glance")
        glance = stack.enter_context(Glance(state, options))
        site = Site(root, hosts, mbit, glance)
        stack.callback(_end, site)
        site.clear()
        _start_sshd(site)
        yield site


def _end(site: Site) -> None:
    for server in site.sshd:
        server.terminate()
        server.wait(10)
    for number in range(site.hosts):
        for pid in sh(f"ip netns pids h{number}").split():
            os.kill(int(pid), signal.SIGKILL)
        # The kernel ends a namespace in its own time; what is in ours must be gone before the next site.
        sh(f"ip link del d{number} && ip link del m{number} && ip netns del h{number}")
    sh("ip link del wan0; ip link del data; ip link del mgmt")
