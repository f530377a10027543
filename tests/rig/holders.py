"""Uses a file in one of the ways that are hard to see, says ``ready``, and stays until it is killed.

    holders.py KIND FILE

Source: Linux ``man 2`` exit, unshare (CLONE_FILES), ``man 7`` unix (SCM_RIGHTS), ``man 2`` io_uring_register.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_EXIT = {"x86_64": 60, "aarch64": 93}
CLONE_FILES = 0x400
IO_URING_SETUP, IO_URING_REGISTER, REGISTER_FILES = 425, 427, 2
#: What must live as long as the process.
kept: list[object] = []


def ready() -> None:
    """Say so, and stay."""
    print("ready", flush=True)
    while True:
        time.sleep(3600)


def checked(result: int) -> int:
    """Return the result of a C function, or raise its error."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "a system call failed")
    return result


def opened(path: str) -> None:
    """An open descriptor."""
    kept.append(os.open(path, os.O_RDONLY))
    ready()


def mapped(path: str) -> None:
    """A map, and no descriptor."""
    fd = os.open(path, os.O_RDONLY)
    libc_map = LIBC.mmap
    libc_map.restype = ctypes.c_void_p
    # Python's own mmap would keep a second descriptor.
    address = libc_map(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert address not in {None, ctypes.c_void_p(-1).value}
    os.close(fd)
    ready()


def exited_leader(path: str) -> None:
    """A process whose first thread has ended: it shows no open files under its own number."""

    def hold() -> None:
        kept.append(os.open(path, os.O_RDONLY))
        while True:
            with open("/proc/self/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    ready()
            time.sleep(0.01)

    threading.Thread(target=hold).start()
    LIBC.syscall(SYS_EXIT[platform.machine()], 0)


def own_table(path: str) -> None:
    """A thread with descriptors that the rest of its process does not have."""

    def hold() -> None:
        checked(LIBC.unshare(CLONE_FILES))
        kept.append(os.open(path, os.O_RDONLY))
        ready()

    threading.Thread(target=hold).start()


def in_flight(path: str) -> None:
    """A descriptor that was sent, and not yet received: it is open in no process."""
    ends = socket.socketpair()
    kept.append(ends)
    fd = os.open(path, os.O_RDONLY)
    socket.send_fds(ends[0], [b"x"], [fd])
    os.close(fd)
    ready()


def uring(path: str) -> None:
    """A file that is registered with an io_uring, and no descriptor of it."""
    ring = checked(LIBC.syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))
    fd = os.open(path, os.O_RDONLY)
    files = (ctypes.c_int32 * 1)(fd)
    checked(LIBC.syscall(IO_URING_REGISTER, ring, REGISTER_FILES, files, 1))
    os.close(fd)
    ready()


KINDS: dict[str, Callable[[str], None]] = {
    one.__name__: one for one in (opened, mapped, exited_leader, own_table, in_flight, uring)
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[2])
