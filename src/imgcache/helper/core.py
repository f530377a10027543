"""The helper's core: frames, errors, the main loop. See ``docs/helper-protocol.md``.

Every host of a run compiles this module, also when it has nothing to do: so it is short, and what only
a fetch needs is imported there. Python 3.6 syntax, standard library only.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, PLC0415 - a Failure's code is a literal; imports are dear on a warm host

import _json
import errno
import os
import sys
import time
import types

PROTOCOL = 1
#: Frames, both ways, with their newline.
MAX_FRAME_BYTES = 65536
#: Which module works off an order; its function is called ``order_<op>``.
ORDERS = {
    "open": "cache",
    "touch": "cache",
    "fetch": "fetch",
    "probe": "probe",
    "storage": "sharing",
    "list": "entries",
    "remove": "removal",
    "clean": "clean",
    "verify": "verify",
    "pin": "verify",
    "adopt": "verify",
    "prove": "prove",
    "relay": "relay",
    "serve": "relay",
}
#: Orders that concern a fetch under way; after its end they are late, and dropped.
LATE = ("again", "stop", "switch", "rate", "data", "ping")

_CODES = {
    errno.ENOENT: "nopath",
    errno.ENOTDIR: "nopath",
    errno.ELOOP: "symlink",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EDQUOT: "quota",
    errno.EFBIG: "toobig",
    errno.ENOLCK: "lock",
}


class Failure(Exception):
    """An order cannot be carried out: a code of the closed list, what and where, and numbers."""

    def __init__(self, code, message, **fields):
        super().__init__(message)
        self.code = code
        self.message = message
        self.fields = fields


class EndOfInput(Exception):
    """The controller is gone."""


def os_failure(error, what, dir_fd=None):
    """Return the ``Failure`` for an ``OSError``; ``dir_fd`` tells a full disk from too few inodes."""
    code = _CODES.get(error.errno, "io")
    fields = {"errno": errno.errorcode.get(error.errno, str(error.errno))}
    if error.errno == errno.ENOSPC:
        code = "space"
        if dir_fd is not None:
            room = os.fstatvfs(dir_fd)
            fields["have"] = room.f_bavail * room.f_frsize
            if room.f_files and not room.f_favail:
                code = "inodes"
    elif code == "permission":
        fields["user"] = user_name()
        if dir_fd is not None:
            fields.update(owner_and_mode(os.fstat(dir_fd)))
            what += " (in a folder of {owner}:{group}, mode {mode}; we are {user})".format(**fields)
    return Failure(code, "%s: %s" % (what, error.strerror or error), **fields)


def user_name(uid=None):
    """Return the name of a user, ourselves by default, or the number when it has none."""
    if os.name == "nt":
        return os.environ.get("USERNAME") or os.getlogin()
    import pwd

    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def owner_and_mode(status):
    """Return owner, group and mode of a stat result, for messages."""
    return {
        "owner": user_name(status.st_uid),
        "group": status.st_gid,
        "mode": "%04o" % (status.st_mode & 0o7777),
    }


def encode(value):
    """Return a value as ASCII JSON on one line. The module ``json`` would double a warm host's work."""
    if value is None or value is True or value is False:
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return _json.encode_basestring_ascii(value)
    if isinstance(value, dict):
        return "{%s}" % ", ".join(
            "%s: %s" % (encode(str(key)), encode(item)) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join(map(encode, value))
    return repr(value)


def decode(text):
    """Return what a JSON text holds, or raise ``ValueError``.

    Source: CPython ``Modules/_json.c``, the core of ``json``, which takes over when it is needed: the
    core alone cannot say what is wrong with a text.
    """
    try:
        return _json.make_scanner(_Decoding)(text, 0)[0]
    except (StopIteration, SystemError, AttributeError, TypeError):
        import json

        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


class _Decoding:
    strict, object_hook, object_pairs_hook = True, None, None
    memo = {}  # type: dict[str, str]
    parse_int, parse_float, parse_constant = int, float, float


class Session:
    """The conversation with the controller, and what its orders have set up so far."""

    def __init__(self, stdin, out_fd):
        self.stdin = stdin
        self.out_fd = out_fd
        self.cache = None
        self.open_failure = None
        self.watch = None  # set by the module ``watch``, which then owns standard input
        self.backend = None  # whose requests these are, as the controller says; None: libvirt's
        self.relay = None  # set by the order ``relay``: lets other hosts read what is fetched

    def send(self, frame):
        """Send one frame, or end when nobody reads any more."""
        view = memoryview(encode(frame).encode("ascii") + b"\n")
        try:
            while view:
                view = view[os.write(self.out_fd, view) :]
        except OSError:
            self.leave(0)

    def answer(self, order, event, **content):
        """Send a frame that answers ``order``."""
        content.update(id=order["id"], event=event)
        self.watch.send(content) if self.watch else self.send(content)

    def refuse(self, order, failure):
        """Answer an order with an error."""
        self.answer(
            order, "error", code=failure.code, message=failure.message[:2000], fields=failure.fields
        )

    def leave(self, status):
        """End the process at once, leaving nothing behind."""
        if self.watch:
            self.watch.clean_up()
        os._exit(status)

    def read_frame(self):
        """Return the next frame as a dict; the bytes that follow a ``data`` or ``load`` are in ``raw``."""
        line = self.stdin.readline(MAX_FRAME_BYTES)
        if not line.endswith(b"\n"):
            raise EndOfInput
        frame = decode(line.decode("utf-8"))
        if frame["op"] in ("data", "load"):
            size = frame["size"]
            frame["raw"] = self.stdin.read(size)
            if len(frame["raw"]) != size:
                raise EndOfInput
        return frame

    def run(self):
        """Work off orders until the end; return the exit status."""
        while True:
            try:
                order = self.watch.next_order() if self.watch else self.read_frame()
            except EndOfInput:
                return 0
            op = order["op"]
            if op == "bye":
                return 0
            if op == "start" and order["protocol"] != PROTOCOL:
                return 97
            if op not in LATE:
                self.obey(op, order)

    def obey(self, op, order):
        """Carry out one order and answer it."""
        self.backend = order.get("backend", self.backend)
        try:
            if op == "start":
                result = hello(self, order)
            elif op == "load":
                result = load(order)
            else:
                result = _find_order(op, self.backend)(self, order)
        except Failure as failure:
            self.refuse(order, failure)
        except OSError as error:
            self.refuse(order, os_failure(error, op))
        else:
            self.answer(order, "result", **result)


def hello(session, order):
    """Synchronise, and tell who and what we are."""
    os.write(session.out_fd, b"\0IMGCACHE0001 %s\n" % order["marker"].encode("ascii"))
    return {
        "protocol": PROTOCOL,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "platform": sys.platform,
        "pid": os.getpid(),
        "uid": 0 if os.name == "nt" else os.getuid(),
        "user": user_name(),
        "time": time.time(),
    }


def load(order):
    """Make a module of a source that came with the order."""
    import hashlib  # already there: the boot line needed it

    name = "%s.%s" % (_package(), order["name"])
    if hashlib.sha256(order["raw"]).hexdigest() != order["sha256"]:
        raise Failure("protocol", "the source of %s arrived damaged" % name)
    module = types.ModuleType(name)
    module.__package__ = _package()
    sys.modules[name] = module
    setattr(sys.modules[_package()], order["name"], module)
    code = compile(
        order["raw"], "<imgcache-helper>/%s.py" % order["name"], "exec", dont_inherit=True
    )
    exec(code, module.__dict__)  # noqa: S102 - the controller's own code, sent for this
    return {}


def _find_order(op, backend):
    """Return what carries out a request: the table's function, or that of a module that a driver sent.

    A back end's functions have its name in theirs: ``order_hyperv_list``.
    """
    if backend is None and op in ORDERS:
        return getattr(sys.modules["%s.%s" % (_package(), ORDERS[op])], "order_" + op)
    for function in ("order_%s_%s" % (backend, op), "order_" + op):
        for name in sorted(sys.modules):
            found = getattr(sys.modules[name], function, None)
            if found and name.startswith(_package() + "."):
                return found
    raise Failure("protocol", "no module for the order %s was loaded" % ascii(op)[:40])


def _package():
    return __name__.rpartition(".")[0]


def _make_package():
    """Let ``from .core import Failure`` work in modules that come later."""
    package = sys.modules.setdefault(_package(), types.ModuleType(_package()))
    if not hasattr(package, "__path__"):
        package.__path__ = []
    core = sys.modules.get(__name__)
    if core is None:
        core = sys.modules[__name__] = types.ModuleType(__name__)
        core.__dict__.update(globals())
    package.core = core


def _crash(session, error):
    """Say where our own code broke: no message, argument or local, any of which may hold a secret."""
    lines = [type(error).__name__]
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        lines.append("%s:%d in %s" % (code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    session.send({"event": "crash", "traceback": "\n".join(lines)})


def main(stdin):
    """Speak with the controller; never returns."""
    os.umask(0o077)
    out_fd = os.dup(1)
    os.dup2(2, 1)
    if os.name == "nt":
        import msvcrt

        msvcrt.setmode(out_fd, os.O_BINARY)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _make_package()
    session = Session(stdin, out_fd)
    try:
        status = session.run()
    except BaseException as error:  # noqa: BLE001 - the last resort: a crash is a message
        _crash(session, error)
        status = 99
    session.leave(status)
