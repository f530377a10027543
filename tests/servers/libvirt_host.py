"""A compute host with a real libvirt, in a mount namespace: the machine's own libvirt is not touched.

In there ``/etc/libvirt``, ``/var/lib/libvirt``, ``/run``, ``/home`` and ``/dev`` are private, ``/srv`` is a
folder of the test, and the users ``nova`` and ``op`` exist. Processes are the machine's: a helper in there
sees them all.
QEMU runs without KVM, which gives the same on every machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEEDED = ("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img", "losetup", "nsenter")
NOVA, OP = 42436, 30000
TIMEOUT_S = 60.0

_SET_UP = r"""
set -eu
folder=$1
mount --make-rprivate /
mkdir -p "$folder"/{srv,dev,etc}
cp -a /etc/libvirt/. "$folder/etc"
rm -rf "$folder"/etc/{qemu,nwfilter,lxc,libxl,storage}
for place in /etc/libvirt /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /home; do
    mount -t tmpfs -o mode=755 none "$place"
done
cp -a "$folder/etc/." /etc/libvirt
echo 'cgroup_controllers = []' >>/etc/libvirt/qemu.conf
echo 'security_driver = "none"' >>/etc/libvirt/qemu.conf
mount --bind "$folder/srv" /srv
cp /etc/passwd "$folder/passwd"
echo 'nova:x:42436:42436::/srv/nova:/bin/sh' >>"$folder/passwd"
echo 'op:x:30000:100::/home/op:/bin/sh' >>"$folder/passwd"
mount --bind "$folder/passwd" /etc/passwd

mount -t tmpfs -o mode=755 none "$folder/dev"
cd "$folder/dev"
mkdir pts shm
ln -s pts/ptmx ptmx
ln -s /proc/self/fd fd
ln -s fd/0 stdin
ln -s fd/1 stdout
ln -s fd/2 stderr
mknod -m 666 null c 1 3
mknod -m 666 zero c 1 5
mknod -m 666 full c 1 7
mknod -m 666 random c 1 8
mknod -m 666 urandom c 1 9
mknod -m 666 tty c 5 0
mknod -m 600 loop-control c 10 237
for number in $(seq 0 255); do mknod -m 600 "loop$number" b 7 "$number"; done
mount -t devpts -o newinstance,mode=620,ptmxmode=666 none pts
cd /
umount -R -l /dev
mount --move "$folder/dev" /dev
echo ready
exec cat
"""

#: What scripts in there may use. Loop devices, swap and processes are ended with the host.
_WORDS = r"""
set -eu -o pipefail
export LC_ALL=C LIBVIRT_DEFAULT_URI=qemu:///system
loop() {
    echo "${@: -1}" >>/srv/loops
    losetup -f --show "$@" 2>/dev/null
}
# By file: devices are the whole machine's, and others may have got one since.
unloop() { losetup -j "$1" -n -O NAME | xargs -r losetup -d; }
swap() { chmod 600 "$1"; mkswap -q "$1" >/dev/null; swapon "$1"; echo "$1" >>/srv/swaps; }
# Start something that says "ready"; it lives until "release", or the end.
hold() {
    local said=/srv/said.$$.$RANDOM
    "$@" </dev/null >"$said" 2>&1 &
    held=$!
    echo "$held" >>/srv/pids
    until_true grep -q ready "$said" || { cat "$said" >&2; return 1; }
}
ended_later() { echo "$1" >>/srv/pids; }
release() { kill "$1"; until_true test ! -e "/proc/$1"; sed -i "/^$1\$/d" /srv/pids; }
until_true() {
    local round
    for round in $(seq 200); do "$@" >/dev/null 2>&1 && return 0; sleep 0.05; done
    echo "never true: $*" >&2
    return 1
}
"""


def missing() -> str | None:
    """Return why no such host can be made here, or None."""
    if os.geteuid():
        return "needs root, for a mount namespace"
    lacking = [name for name in NEEDED if not shutil.which(name, path=_path())]
    return f"not installed: {', '.join(lacking)}" if lacking else None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class LibvirtHost:
    """See the module. Use as a context manager; all that was started in there ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._inside: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def at(self, path: Path | str) -> Path:
        """Return where a file in there is for us."""
        return Path(f"/proc/{self._processes[0].pid}/root{path}")

    def command(self, *argv: str | Path) -> list[str]:
        """Return the command line that runs something in there."""
        return [*self._inside, *map(str, argv)]

    def script(self, text: str, **variables: str | Path) -> str:
        """Run a bash script in there; return what it says."""
        done = subprocess.run(
            self.command("bash", "-c", _WORDS + text),
            env={**os.environ, "PATH": _path(), **{key: str(it) for key, it in variables.items()}},
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{text[-600:]}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def run(
        self, *argv: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``imgcache`` in there."""
        return subprocess.run(
            self.command(sys.executable, "-m", "imgcache", *argv),
            env={**os.environ, **(environ or {})},
            capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _start(self) -> None:
        self.folder.mkdir()
        self.folder.chmod(0o755)
        anchor = subprocess.Popen(
            ["unshare", "-m", "-n", "bash", "-c", _SET_UP, "set_up", str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PATH": _path()},
        )  # fmt: skip
        self._processes.append(anchor)
        assert anchor.stdout
        assert anchor.stdout.readline() == b"ready\n", "no mount namespace could be made"
        self._inside = ("nsenter", "-m", "-n", "-t", str(anchor.pid), "--")
        for daemon in ("virtlogd", "libvirtd"):
            self._processes.append(self._started(daemon))
        self.script("until_true virsh -q list")

    def _started(self, daemon: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{daemon}.log").open("wb") as log:
            return subprocess.Popen(
                self.command(daemon, "-p", f"/run/{daemon}.pid"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PATH": _path()},
            )  # fmt: skip

    def _end(self) -> None:
        if not self._processes:
            return
        anchor = self._processes[0]
        with contextlib.suppress(OSError):
            self._end_what_scripts_started()
        for process in reversed(self._processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        for stream in (anchor.stdin, anchor.stdout):
            assert stream
            stream.close()

    def _end_what_scripts_started(self) -> None:
        """End processes by their numbers, then give back what the kernel keeps beyond namespaces."""
        numbers = self._noted("/srv/pids")
        for place in ("/run/libvirt/qemu", f"/run/user/{OP}/libvirt/qemu/run"):
            numbers += [
                path.read_text()
                for path in self.at(place).glob("*.pid")
                if path.name != "driver.pid"
            ]
        for number in map(int, numbers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for number in map(int, numbers):
            _wait_for_end(number)
        for word, place in (("swapoff", "/srv/swaps"), ("unloop", "/srv/loops")):
            for name in self._noted(place):
                with contextlib.suppress(AssertionError):  # ended by the script itself
                    self.script(f"{word} {name}")

    def _noted(self, place: str) -> list[str]:
        path = self.at(place)
        return path.read_text().split() if path.exists() else []


def _wait_for_end(number: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@contextlib.contextmanager
def libvirt_host(folder: Path) -> Iterator[LibvirtHost]:
    """Run one."""
    with LibvirtHost(folder) as host:
        yield host
