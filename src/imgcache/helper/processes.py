"""Who has files open: processes, loop devices, network block devices.

Source: Linux ``Documentation/filesystems/proc.rst``, ``drivers/block/loop.c``, ``drivers/block/nbd.c``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: SIM105 - imports are dear on a host

import os

_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
#: Source: Linux ``include/linux/proc_ns.h`` (``PROC_PID_INIT_INO``).
_FIRST_NAMESPACE = 0xEFFFFFFC
_VIRTUAL = ("/dev/", "/memfd:", "/proc/", "/sys/", "/SYSV", "/[aio]")


def look(scan, proc, sys):
    """Tell ``scan`` of every file that is open or mapped anywhere on this host."""
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
    for pid in pids:
        if pid != str(os.getpid()):
            _process(scan, "%s/%s" % (proc, pid), pid)
    _devices(scan, sys + "/block")


def _own_namespace(proc):
    """Whether we see only the processes of a container."""
    try:
        return os.stat(proc + "/self/ns/pid").st_ino != _FIRST_NAMESPACE
    except OSError:
        return False  # a kernel without namespaces


def _process(scan, path, pid):
    label = []  # found out only when it is needed

    def user():
        if not label:
            label.append(_label(path, pid))
        return label[0]

    try:
        _open_files(scan, path, user)
        _mapped_files(scan, path, user)
    except _GONE:
        pass
    except OSError as error:
        if not isinstance(error, PermissionError) or _may_be_qemu(path):
            scan.problem("open files of process %s (%s)" % (pid, _label(path, pid)), error)


def _open_files(scan, path, user):
    folder = path + "/fd"
    for number in os.listdir(folder):
        link = "%s/%s" % (folder, number)
        try:
            target = os.readlink(link)
        except _GONE:
            continue
        if not target.startswith("/") or target.startswith(_VIRTUAL):
            continue
        try:
            status = None if scan.elsewhere(target) else os.stat(link)
        except PermissionError:
            raise
        except OSError:
            status = None  # closed just now, or its server does not answer: the name must do
        scan.seen(target, status and (status.st_dev, status.st_ino), user)


def _mapped_files(scan, path, user):
    last = None
    with open(path + "/maps", "rb") as lines:
        for line in lines:
            parts = line.split(None, 5)
            if len(parts) < 6 or parts[4] == b"0" or parts[5] == last:
                continue
            last = parts[5]
            major, _, minor = parts[3].partition(b":")
            device = os.makedev(int(major, 16), int(minor, 16))
            scan.seen_mapped(os.fsdecode(last[:-1]), device, int(parts[4]), user)


def _read(path):
    """Return what a small file of ``/proc`` holds; nothing when it is gone."""
    try:
        with open(path, "rb") as file:
            return file.read(65536)
    except _GONE:
        return b""


def _may_be_qemu(path):
    """Whether a process whose files cannot be read may be one that works on the disks of instances."""
    try:
        words = _read(path + "/cmdline").split(b"\0")
        if not words[0]:
            return False  # a kernel thread (some are named kvm…) or a dead process: no files
        names = [os.path.basename(words[0]), _read(path + "/comm")]
    except OSError:
        return True
    try:
        names.append(os.path.basename(os.fsencode(os.readlink(path + "/exe"))))
    except OSError:
        pass
    return any(name.startswith(b"kvm") or b"qemu" in name for name in names)


def _label(path, pid):
    """Return who a process is: the instance it runs, else its number and name."""
    try:
        words = _read(path + "/cmdline").split(b"\0")
        if b"-uuid" in words[:-1]:
            return os.fsdecode(words[words.index(b"-uuid") + 1])[:36]
        return "process %s (%s)" % (pid, os.fsdecode(_read(path + "/comm").strip())[:16])
    except OSError:
        return "process " + pid


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
            try:
                status = None if scan.elsewhere(target) else os.stat(target)
            except OSError:
                status = None  # seen from another mount namespace: the name must do
            scan.seen(target, status and (status.st_dev, status.st_ino), lambda name=name: name)
