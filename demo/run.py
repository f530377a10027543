"""Show imgcache's main job on an embedded fleet of three SSH hosts. Needs no root and no cloud.

Everything it makes is in one folder, ``.demo`` unless the first argument names another; everything
it starts ends with it. It runs the very commands that a user would type.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from sample_images import QCOW2_ID, RAW_ID, make_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("edge1-01", "edge1-02", "edge1-03")


def main(folder: Path) -> int:
    """Run the demo; return 0 when every command ended as it should."""
    tools = folder / "tools"
    os.environ["PATH"] = f"{tools / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    prepare(folder)
    has_qemu = get_qemu_img(tools)
    make_images(folder / "images")
    with fleet(folder / "hosts") as ports:
        write_inventory(folder, ports)
        explain(
            "Three hosts of the aggregate `demo` answer over SSH now, on loopback. The image service"
        )
        explain("is a folder with two images. This is the inventory:\n")
        print((folder / "inventory.yaml").read_text())
        good = show(folder, has_qemu=has_qemu)
    explain("\nThe hosts are gone again; what they and imgcache wrote is in " + shown(folder) + ".")
    return 0 if good else 1


def prepare(folder: Path) -> None:
    """Make the hosts' folders and keys anew, and the key of the user who logs in."""
    for name in ("hosts", "home", "images"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "known_hosts").unlink(missing_ok=True)
    (folder / "home").mkdir(parents=True)
    (folder / "hosts").mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519")
    write_private(folder / "id_demo", key.export_private_key())
    (folder / "hosts/authorized_keys").write_bytes(key.export_public_key())
    for name in HOSTS:
        home = folder / "hosts" / name
        (home / "instances").mkdir(parents=True)
        # As on a real compute host, its nova.conf says where Nova keeps instances.
        (home / "nova.conf").write_text(f"[DEFAULT]\ninstances_path = {home / 'instances'}\n")
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        write_private(home / "ssh_host_ed25519_key", host_key.export_private_key())


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, from its first moment on."""
    path.unlink(missing_ok=True)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)


def get_qemu_img(tools: Path) -> bool:
    """Return whether hosts have a qemu-img; where it is missing, try to get one without root."""
    if shutil.which("qemu-img"):
        return True
    explain("qemu-img is missing here; taking it from its Debian package, without installing it …")
    script = ROOT / "tools/unpack_deb.sh"
    got = subprocess.run([str(script), str(tools), "qemu-utils"], check=False).returncode == 0
    program = tools / "usr/bin/qemu-img"
    if not got or not program.exists():
        explain(
            "That did not work. Hosts without qemu-img refuse qcow2 images; raw ones still work."
        )
        return False
    libraries = ":".join(str(path) for path in sorted((tools / "usr/lib").glob("*-linux-gnu*")))
    wrapper = tools / "bin/qemu-img"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(libraries)} exec {shlex.quote(str(program))} "$@"\n'
    )
    wrapper.chmod(0o755)
    return (
        subprocess.run(
            [str(wrapper), "--version"], stdout=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


@contextmanager
def fleet(folder: Path) -> Iterator[Mapping[str, int]]:
    """Run the hosts, host name -> port; ended on leaving."""
    command = [sys.executable, str(ROOT / "demo/fleet.py"), str(folder), *HOSTS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit("demo: the embedded hosts did not start; see above")  # noqa: EM101
            yield json.loads(line)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def write_inventory(folder: Path, ports: Mapping[str, int]) -> None:
    """Write the inventory that the commands use."""
    hosts = "".join(
        f"      - {{name: {name}, address: 127.0.0.1, port: {port}, nova_conf: {conf}}}\n"
        for name, port in ports.items()
        for conf in [json.dumps(str(folder / "hosts" / name / "nova.conf"))]
    )
    (folder / "inventory.yaml").write_text(
        "image_service: {kind: directory, path: images/}\n"
        "defaults:\n"
        "  user: demo\n"
        "  ssh_key: id_demo\n"
        "  known_hosts: known_hosts\n"
        "aggregates:\n"
        "  demo:\n"
        "    hosts:\n" + hosts
    )


def show(folder: Path, *, has_qemu: bool) -> bool:
    """Run the commands; return whether each exit code was the expected one."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OS_", "IMGCACHE_", "XDG_")) and name != "SSH_AUTH_SOCK"
    }
    environment |= {
        "HOME": str(folder / "home"),
        "IMGCACHE_INVENTORY": str(folder / "inventory.yaml"),
    }
    partly = 0 if has_qemu else 1
    base = folder / "hosts" / HOSTS[0] / "instances/_base"

    def run(command: str, *, expected: int = 0) -> bool:
        print(f"\n$ {command}", flush=True)
        status = subprocess.run(["/bin/sh", "-c", command], env=environment, check=False).returncode
        if status != expected:
            print(f"demo: that ended with status {status}, not {expected}", flush=True)
        return status == expected

    print(f"$ export IMGCACHE_INVENTORY={shown(folder / 'inventory.yaml')}")
    good = run("imgcache trust --aggregate demo --yes")
    good &= run("imgcache check --aggregate demo")
    good &= run("imgcache precache --aggregate demo debian-12 rescue", expected=partly)
    explain(
        "\nOnce more: what is there is renewed (Nova removes what was not used for long), not copied."
    )
    good &= run("imgcache precache --aggregate demo debian-12 rescue", expected=partly)
    good &= run("imgcache precache -q --host edge1-01 -f json rescue")
    explain("\nNova looks for a cached image under the SHA-1 of its id:")
    good &= run(f"printf %s {RAW_ID} | sha1sum")
    good &= run(f"ls -l {shlex.quote(shown(base))}")
    wanted = {RAW_ID, QCOW2_ID} if has_qemu else {RAW_ID}
    return good and all((base / sha1(name.encode()).hexdigest()).is_file() for name in wanted)


def shown(path: Path) -> str:
    """Return the path as a user in the project's folder would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def explain(text: str) -> None:
    """Print a line that is no output of imgcache."""
    print(text, flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / ".demo"))
