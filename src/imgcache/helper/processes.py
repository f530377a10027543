"""Who has files open: processes and their threads, swap, loop devices, network block devices.

What only the kernel knows (a descriptor on its way through a socket, say) shows in ``leases``.
Source: Linux ``Documentation/filesystems/proc.rst``, ``drivers/block/loop.c``, ``drivers/block/nbd.c``,
``mm/swapfile.c`` (``swap_show``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: SIM105 - imports are dear on a host

import ctypes
import errno
import os
import re
import sys

_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
#: Source: Linux ``include/linux/proc_ns.h`` (``PROC_PID_INIT_INO``).
_FIRST_NAMESPACE = 0xEFFFFFFC
#: What is open and no file: sockets, pipes, namespaces.
_NO_FILE = re.compile(r"[a-z_]+:")
#: Source: Linux ``include/linux/sched.h`` (``PF_KTHREAD``).
_KERNEL_THREAD = 0x00200000
#: Longer files of ``/proc`` are not read: a process may make some of its own as long as it likes.
_MOST_BYTES = 1 << 20
#: Source: Linux ``kcmp(2)``; its number: ``arch/*/entry/syscalls``.
_KCMP = {
    "x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272, "ppc64le": 354, "ppc64": 354,
    "s390x": 343,
}  # fmt: skip
_KCMP_FILES = 2
#: With more tables in one process, each thread's is read: that costs time and loses nothing.
_TABLES = 8


def look(scan, proc, sysfs):
    """Tell ``scan`` of every file that is open, mapped or swapped to anywhere on this host."""
    try:
        pids = [name for name in os.listdir(proc) if name.isdigit()]
    except OSError as error:
        scan.problem(proc, error)
        return
    if "1" not in pids:
        scan.problem("%s hides the processes of other users (hidepid)" % proc)
    if _own_namespace(proc):
        scan.problem(
            "this is a container with a process table of its own, where qemu's open files do not show;"
            " run the helper on the host itself, or in a container with the host's processes"
        )
    threads = Threads(proc)
    for pid in pids:
        if pid != str(os.getpid()):
            _process(scan, "%s/%s" % (proc, pid), pid, threads)
    _swaps(scan, proc + "/swaps")
    _devices(scan, sysfs + "/block")


def _own_namespace(proc):
    """Whether we see only the processes of a container."""
    try:
        return os.stat(proc + "/self/ns/pid").st_ino != _FIRST_NAMESPACE
    except OSError:
        return False  # a kernel without namespaces


def _process(scan, path, pid, threads):
    label = []  # found out only when it is needed

    def user():
        if not label:
            label.append(_label(path, pid))
        return label[0]

    try:
        tids = os.listdir(path + "/task")
        tables = threads.with_tables(tids)
        for tid in tables:
            _unless_gone(_open_files, scan, "%s/task/%s" % (path, tid), user)
        if len(tables) < len(tids) and tables != threads.with_tables(tids):
            # One that was read for others may have ended before it was read.
            for tid in tids:
                _unless_gone(_open_files, scan, "%s/task/%s" % (path, tid), user)
        for tid in tids:
            if _unless_gone(_mapped_files, scan, "%s/task/%s" % (path, tid), user):
                break  # all threads have the same memory; the main one has none when it ended first
    except _GONE:
        pass
    except OSError as error:
        if not isinstance(error, PermissionError) or _may_be_qemu(path):
            scan.problem("open files of process %s (%s)" % (pid, _label(path, pid)), error)


def _unless_gone(look_at, scan, path, user):
    """Look at one thread; the end of one is not the end of its process."""
    try:
        return look_at(scan, path, user)
    except _GONE:
        return False


class Threads:
    """Finds the threads of a process whose tables of open files differ; most processes have one table.

    To read each thread's table would take seconds on a host with thousands of threads. The kernel compares
    two tables in microseconds.
    """

    def __init__(self, proc):
        self.compare = _kcmp() if _is_ours(proc) else None

    def with_tables(self, tids):
        """Return threads whose tables are all that there are; in doubt, more of them."""
        if len(tids) < 2 or self.compare is None:
            return tids
        found = []
        for tid in tids:
            if len(found) >= _TABLES or not self.has_one_of(tid, found):
                found.append(tid)
        return found

    def has_one_of(self, tid, others):
        """Whether a thread has the same table as one of others; what cannot be compared is another."""
        return any(self.compare(int(tid), int(other)) == 0 for other in others)


def _is_ours(proc):
    """Whether the numbers of processes in this ``/proc`` are those that system calls take."""
    try:
        return os.readlink(proc + "/self") == str(os.getpid())
    except OSError:
        return False


def _kcmp():
    """Return what compares the tables of open files of two threads; None where that is not possible."""
    number = _KCMP.get(os.uname().machine)
    if number is None or sys.maxsize < 1 << 32:
        return None
    syscall = ctypes.CDLL(None).syscall
    return lambda one, other: syscall(number, one, other, _KCMP_FILES, 0, 0)


def _open_files(scan, path, user):
    folder = path + "/fd"
    for number in os.listdir(folder):
        link = "%s/%s" % (folder, number)
        try:
            target = os.readlink(link)
        except _GONE:
            continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            target = ""  # it can still be told by its inode
        if _NO_FILE.match(target):
            continue
        try:
            status = None if scan.elsewhere(target) else os.stat(link)
        except PermissionError:
            raise
        except OSError:
            status = None  # closed just now, or its server does not answer: the name must do
        scan.seen(target, status and (status.st_dev, status.st_ino), user)


def _mapped_files(scan, path, user):
    """Note what a thread has mapped; return whether it has any memory."""
    last = line = None
    with open(path + "/maps", "rb") as lines:
        for line in lines:
            parts = line.split(None, 5)
            if len(parts) < 6 or parts[4] == b"0" or parts[5] == last:
                continue
            last = parts[5]
            major, _, minor = parts[3].partition(b":")
            device = os.makedev(int(major, 16), int(minor, 16))
            scan.seen_mapped(os.fsdecode(last[:-1]), device, int(parts[4]), user)
    return line is not None


def _read(path):
    """Return what a small file of ``/proc`` holds; nothing when it is gone."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except _GONE:
        return b""
    if len(data) > _MOST_BYTES:
        raise OSError(errno.EFBIG, "more than %d bytes" % _MOST_BYTES)
    return data


def _may_be_qemu(path):
    """Whether a process whose files cannot be read may be one that works on the disks of instances."""
    try:
        if _has_no_files(_read(path + "/stat")):
            return False
        names = [os.path.basename(_words(path)[0]), _read(path + "/comm")]
    except (OSError, ValueError, IndexError):
        return True
    try:
        names.append(os.path.basename(os.fsencode(os.readlink(path + "/exe"))))
    except OSError:
        pass
    return any(name.startswith(b"kvm") or b"qemu" in name for name in names)


def _has_no_files(status):
    """Whether a process's ``stat`` is that of a kernel thread (some are named kvm…), or of a dead process."""
    if not status:
        return True  # it is gone
    fields = status.rpartition(b")")[2].split()
    state, flags, threads = fields[0], int(fields[6]), int(fields[17])
    return bool(flags & _KERNEL_THREAD) or (state in (b"Z", b"X") and threads <= 1)


def _words(path):
    """Return the command line of a process, also of one whose main thread ended before the others."""
    words = [b""]
    for tid in os.listdir(path + "/task"):
        words = _read("%s/task/%s/cmdline" % (path, tid)).split(b"\0")
        if words[0]:
            break
    return words


def _label(path, pid):
    """Return who a process is: the instance it runs, else its number and name."""
    try:
        words = _words(path)
        if b"-uuid" in words[:-1]:
            return os.fsdecode(words[words.index(b"-uuid") + 1])[:36]
        return "process %s (%s)" % (pid, os.fsdecode(_read(path + "/comm").strip())[:16])
    except OSError:
        return "process " + pid


def _swaps(scan, path):
    """Tell of the files that the kernel swaps to."""
    try:
        with open(path, "rb") as lines:
            names = [line.split()[0] for line in lines][1:]
    except _GONE:
        return  # a kernel without swap
    except OSError as error:
        scan.problem(path, error)
        return
    for name in names:
        target = os.fsdecode(name.decode("unicode_escape").encode("latin-1"))
        _background(scan, target, "swap")


def _devices(scan, folder):
    """Tell of the files behind loop and network block devices."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        scan.problem("no loop or nbd device shows without " + folder, error)
        return
    for name in names:
        kind = "loop/backing_file" if name.startswith("loop") else "backend"
        if not name.startswith(("loop", "nbd")):
            continue
        try:
            target = os.fsdecode(_read("%s/%s/%s" % (folder, name, kind)).rstrip(b"\n"))
        except OSError as error:
            scan.problem("%s/%s" % (folder, name), error)
            continue
        if target:
            _background(scan, target, name)


def _background(scan, target, user):
    """Note a file that the kernel itself uses."""
    try:
        status = None if scan.elsewhere(target) else os.stat(target)
    except OSError:
        status = None  # seen from another mount namespace: the name must do
    scan.seen(target, status and (status.st_dev, status.st_ino), lambda: user)
