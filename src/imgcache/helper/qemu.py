"""Runs qemu-img within limits: hostile bytes may make it eat memory, time, disk or output.

Source of the limits for ``info``: nova ``privsep/qemu.py`` (30 s of CPU, 2 GiB of address space).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a warm host

import ctypes
import fcntl
import json
import math
import os
import resource
import select
import signal
import subprocess
import time

from .core import Failure

_INFO_CPU_S = 30
_INFO_WALL_S = 60
_INFO_MEMORY_BYTES = 2 << 30
#: A VMDK may state grains of 1 GiB, which qemu-img holds in memory, packed and unpacked.
_CONVERT_MEMORY_BYTES = 4 << 30
_OUTPUT_BYTES = 1 << 20
#: Of what it says about a failure.
_SAID_CHARS = 600
#: Slower than this a conversion hangs.
_CONVERT_BYTES_PER_S = 2 << 20
_CONVERT_WALL_S = 600
_MIB = 1 << 20
_PR_SET_PDEATHSIG = 1
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find():
    """Return qemu-img's absolute path, or None."""
    for folder in (os.environ.get("PATH", "") + ":" + _PATH).split(":"):
        path = os.path.join(folder, "qemu-img")
        if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def version(program, watch):
    """Return the version that qemu-img states, ``7.2.9`` say."""
    output = _run([program, "--version"], watch, {}, _INFO_WALL_S)
    words = output.decode("ascii", "replace").split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def info(program, path, watch):
    """Return what qemu-img says of a file, its format guessed by qemu-img: a dict with lower-case keys."""
    limits = {
        resource.RLIMIT_AS: _INFO_MEMORY_BYTES,
        resource.RLIMIT_CPU: _INFO_CPU_S,
        resource.RLIMIT_FSIZE: 0,
    }
    output = _run(
        [program, "info", "--force-share", "--output=json", path], watch, limits, _INFO_WALL_S
    )
    try:
        answer = json.loads(output.decode("utf-8"))
        answer["format"], answer["virtual-size"] + 0
    except (ValueError, TypeError, KeyError):
        raise Failure(
            "qemu", "qemu-img info printed something else than an image's description"
        ) from None
    return answer


def measure(program, path, declared, watch):
    """Return how many bytes of data an image has at most, once it is unpacked; None: qemu-img cannot say.

    Source: qemu ``block/qcow2.c`` (``qcow2_measure``): clusters with data, and a little for tables. The
    measure for raw would be the virtual size.
    """
    if declared == "vhdx":
        # qemu-img takes each of its blocks for data. Nothing is packed in it, so its file is larger.
        return os.stat(path).st_size
    limits = {resource.RLIMIT_AS: _INFO_MEMORY_BYTES, resource.RLIMIT_CPU: _INFO_CPU_S}
    command = [program, "measure", "-f", declared, "-O", "qcow2", "--output=json", path]
    try:
        return int(
            json.loads(_run(command, watch, limits, _INFO_WALL_S).decode("utf-8"))["required"]
        )
    except Failure as failure:
        if failure.code != "qemu":
            raise
        return None  # older than 2.10, or too slow
    except (ValueError, TypeError, KeyError):
        return None


def convert(program, source, source_format, target, virtual_size, *, guard):
    """Convert ``source`` to raw into the empty staging file ``target``, telling how far it is.

    ``guard`` is called all the time; what it raises ends the conversion.
    """
    wall_s = _CONVERT_WALL_S + virtual_size / _CONVERT_BYTES_PER_S
    limits = {
        resource.RLIMIT_AS: _CONVERT_MEMORY_BYTES,
        # All threads together: what unpacks at the least rate for so long has used far less of it.
        resource.RLIMIT_CPU: math.ceil(wall_s),
        resource.RLIMIT_FSIZE: (virtual_size + _MIB - 1) // _MIB * _MIB,
    }
    mode = "none" if _takes_direct_io(target.fd) else "writeback"
    command = [
        program,
        "convert",
        "-p",
        "-t",
        mode,
        "-f",
        source_format,
        "-O",
        "raw",
        source,
        target.path,
    ]

    def tell(output):
        words = output[-200:].decode("ascii", "replace").replace(")", "(").split("(")
        percents = [word[: -len("/100%")] for word in words if word.endswith("/100%")]
        if percents:
            try:
                done = int(float(percents[-1]) / 100 * virtual_size)
            except ValueError:
                return
            target.watch.tell("convert", min(done, virtual_size), virtual_size)

    _run(command, target.watch, limits, wall_s, tell=tell, guard=guard)


def check(answer, expected):
    """Refuse what qemu-img says of a file unless it is a plain, whole image of the expected format."""
    specific = answer.get("format-specific", {}).get("data", {})
    if answer["format"] != expected:
        reason = "qemu-img takes it for %s, not %s" % (ascii(answer["format"])[:40], expected)
    elif "backing-filename" in answer or "full-backing-filename" in answer:
        reason = "qemu-img sees a backing file"
    elif "data-file" in specific or specific.get("data-file-raw"):
        reason = "qemu-img sees an external data file"
    elif answer.get("encrypted"):
        reason = "it is encrypted"
    elif expected == "vmdk" and specific.get("create-type") not in (
        "monolithicSparse",
        "streamOptimized",
    ):
        reason = "its VMDK sub-format is not allowed"
    else:
        return
    raise Failure("format", "the image was refused: " + reason)


def _takes_direct_io(fd):
    """Whether the file system takes O_DIRECT.

    Asked of the open file, since closing another descriptor of it would drop our lock.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return True


def _within(kind, value):
    """Return a limit that we may set: at most the one we have."""
    hard = resource.getrlimit(kind)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _limiter(limits):
    """Return what the child does before it becomes qemu-img; everything is looked up beforehand."""
    prctl, setrlimit = ctypes.CDLL(None).prctl, resource.setrlimit
    parent, getppid, getuid, geteuid = os.getpid(), os.getppid, os.getuid, os.geteuid
    setresuid, getegid, setresgid, seteuid = os.setresuid, os.getegid, os.setresgid, os.seteuid
    setgroups = os.setgroups
    pairs = []
    for kind, value in limits.items():
        # CPU time has a second in between: there comes a signal that says why, and only then SIGKILL.
        spare = 1 if kind == resource.RLIMIT_CPU else 0
        hard = _within(kind, value + spare)
        pairs.append((kind, (hard - spare, hard)))
    pairs.append((resource.RLIMIT_CORE, (0, 0)))

    def limit():
        if getuid() == 0 and geteuid() != 0:
            user, group = geteuid(), getegid()
            seteuid(0)
            setgroups([])
            setresgid(group, group, group)
            setresuid(user, user, user)
        for kind, value in pairs:
            setrlimit(kind, value)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if getppid() != parent:
            os._exit(1)

    return limit


def _run(command, watch, limits, wall_s, *, tell=None, guard=None):
    """Run a child in its own process group and return its standard output.

    Raises:
        Failure: ``qemu``, with how it ended and what it said; ``interrupted``.
    """
    name = "qemu-img " + command[1]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Each thread's own arena would take 64 MiB of the address space on a host of many cores.
            env={"LC_ALL": "C", "PATH": _PATH, "MALLOC_ARENA_MAX": "4"},
            cwd="/",
            close_fds=True,
            start_new_session=True,
            # All it calls was looked up before the fork; Python has no other way to set a death signal.
            preexec_fn=_limiter(limits),  # noqa: PLW1509
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure("qemu", "cannot run %s: %s" % (name, error)) from error
    watch.children.add(child.pid)
    try:
        outputs = _collect(child, watch, name, time.monotonic() + wall_s, tell=tell, guard=guard)
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            pass
        child.wait()
        watch.children.discard(child.pid)
        child.stdout.close()
        child.stderr.close()
    if child.returncode == -signal.SIGXCPU:
        message = "%s used up its CPU time and was stopped: the image is damaged or made to do that"
        raise Failure("qemu", message % name, status=child.returncode)
    if child.returncode:
        said = _without_paths(command, outputs[child.stderr].decode("utf-8", "replace"))
        how = "was killed by signal %d" % -child.returncode if child.returncode < 0 else "failed"
        message = "%s %s%s" % (name, how, ": " + said if said else "")
        raise Failure("qemu", message, status=child.returncode)
    return bytes(outputs[child.stdout])


def _without_paths(command, text):
    """Return all that qemu-img said, bounded, on one line; the files it was given are ``the image``."""
    for path in sorted(command[2:], key=len, reverse=True):
        if path.startswith("/"):
            text = text.replace("'%s'" % path, "the image").replace(path, "the image")
    lines = [line.strip() for line in text.splitlines()]
    words = " ".join(
        line[len("qemu-img: ") :] if line.startswith("qemu-img: ") else line for line in lines
    )
    return words.strip()[:_SAID_CHARS]


def _collect(child, watch, name, deadline, *, tell, guard):
    """Read a child's outputs to their end; wait for the child; return stream -> bytes."""
    outputs = {child.stdout: bytearray(), child.stderr: bytearray()}
    streams = {stream.fileno(): stream for stream in outputs}
    poller = select.poll()
    for fd in streams:
        poller.register(fd, select.POLLIN)
    while streams or child.poll() is None:
        watch.check()
        if guard:
            guard()
        if time.monotonic() > deadline:
            raise Failure("qemu", "%s did not end in time and was killed" % name)
        if not streams:
            time.sleep(0.01)
        for fd, _ in poller.poll(200) if streams else ():
            data = os.read(fd, 65536)
            if not data:
                poller.unregister(fd)
                del streams[fd]
                continue
            output = outputs[streams[fd]]
            output.extend(data)
            if len(output) > _OUTPUT_BYTES:
                raise Failure("qemu", "%s prints without end and was killed" % name)
            if tell and streams[fd] is child.stdout:
                tell(output)
    return outputs
