"""Reads the body of an answer: how fast it may be read, how slowly it may come, in which steps.

Source: Linux ``tcp(7)``, ``socket(7)``: SO_RCVBUF is silently cut to ``net.core.rmem_max``, and doubled.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Retry's code is a literal

import http.client
import select
import socket
import time

from .download import Retry
from .watch import Switched

#: What was not read in time may be made up for, within so many seconds' worth.
_CREDIT_S = 0.2
#: One read takes at most so many seconds' worth, so that the link sees an even flow.
_STEP_S = 0.03
_LEAST_STEP_BYTES = 4096
#: A slower rate would look like a broken helper.
_LEAST_RATE = 1024
#: So many seconds' worth may wait in the kernel: enough for links of such a round trip.
_BUFFER_S = 0.1
_LEAST_BUFFER_BYTES = 32 << 10
#: How long to look for a surplus byte when the server did not say where the body ends.
_SURPLUS_S = 2.0
#: Where others wait for the bytes, they are written in steps of at most this.
_STEP_BYTES = 128 << 10


class Body:
    """Reads bodies into a sink, one attempt after the other; ``prompt``: others wait for the bytes."""

    def __init__(self, limits, sink, watch, prompt):
        self.stall_s = limits["stall_s"]
        self.sink = sink
        self.watch = watch
        self.prompt = prompt
        self.bucket = Bucket(watch, limits.get("rate"))
        self.least = LeastRate(limits)
        self.sock = None
        self.told = False
        self.buffered = True

    def attach(self, sock):
        """Take a connection that was just made."""
        self.sock = sock
        self.told = False
        self.least.forget()
        self.bucket.attach(sock)

    def read(self, response, endless):
        """Read until the size is reached, and, when the body's length was not announced, one byte on."""
        sink, self.buffered = self.sink, True
        while sink.count < sink.size:
            before = sink.count
            error = self._fill(response, endless)
            if error is not None:
                raise error
            if sink.count == before:
                return
        if endless:
            self._refuse_surplus(response)

    def _fill(self, response, endless):
        """Read and write a buffer full, in steps where somebody waits; return what broke it, or None."""
        sink, owner = self.sink, self.sink.buffer()
        view = memoryview(owner)
        filled = written = 0
        error = None
        while filled < len(view) and sink.count + filled - written < sink.size:
            want = min(len(view) - filled, sink.size - sink.count - filled + written + endless)
            try:
                got = self._read(response, view[filled : filled + want])
            except (OSError, ValueError, http.client.HTTPException, Retry, Switched) as caught:
                error = caught
                break
            if not got:
                break
            filled += got
            self._tell(sink.count + filled - written)
            if self._is_due(filled - written) and filled < len(view):
                sink.write(view[written:filled])
                written = filled
        sink.write(view[written:filled], owner)
        return error

    def _read(self, response, view):
        """Read something, as soon and as much as may be."""
        want = min(len(view), _STEP_BYTES) if self.prompt else len(view)
        want = self.bucket.allow(want)
        # A chunk's head may come byte by byte within one call, each just in time.
        self.watch.give_up_in(2 * self.stall_s)
        got = self.least.timed(self.bucket.rate, self._take, response, view[:want])
        self.watch.give_up_in(None)
        self.bucket.spend(got)
        return got

    def _take(self, response, view):
        """Read what is there, at least a byte, at most ``view``; 0 at the end.

        Past the headers a body of announced or endless length is the bare connection: it is read without a
        copy, and without the buffer of ``fp``, which would wait for more with bytes in hand.
        Source: CPython ``Modules/_io/bufferedio.c`` (``_buffered_readinto_generic``, ``read1``).
        """
        if response.chunked:
            data = response.read1(len(view))
        elif response.fp is None:
            return 0
        elif self.buffered:
            data = response.fp.read1(len(view))
            self.buffered = len(data) == len(view)
        else:
            return response.fp.raw.readinto(view)
        view[: len(data)] = data
        return len(data)

    def _tell(self, count):
        tell = self.watch.tell if self.told else self.watch.announce
        self.told = True
        tell("download", min(count, self.sink.size), self.sink.size)

    def _is_due(self, count):
        """Whether what was read must be written now: others wait for it, and nothing more is there."""
        if not self.prompt or self.bucket.rate is not None:
            return self.prompt
        return count >= _STEP_BYTES or not _is_waiting(self.sock)

    def _refuse_surplus(self, response):
        try:
            raw = response.fp.raw._sock if response.fp else None
            if raw is not None:
                raw.settimeout(_SURPLUS_S)
            surplus = self._take(response, memoryview(bytearray(1)))
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return  # all bytes are here; whether they are the right ones the digest tells
        if surplus:
            self.sink.write(b"x")  # one more than the image has: fails


class Bucket:
    """Keeps a reader from taking more than the fetch may; the rate may change at any time."""

    def __init__(self, watch, default):
        self.watch = watch
        self.default = default
        self.sock = None
        self.rate = None
        self.due = 0.0

    def attach(self, sock):
        """Work on this connection, which was just made: nothing but a greeting has come yet."""
        self.sock = sock
        self.rate = self.watch.rate(self.default)
        self.due = time.monotonic()
        if self.rate is not None:
            fit_buffer(sock, self.rate)

    def allow(self, want):
        """Wait until bytes may be read; return how many, at most ``want``."""
        while True:
            rate = self.watch.rate(self.default)
            now = time.monotonic()
            if rate != self.rate:
                self.rate = rate
                self.due = min(self.due, now)
                fit_buffer(self.sock, rate)
            if rate is None:
                return want
            self.due = max(self.due, now - _CREDIT_S)
            if self.due <= now:
                return min(want, max(int(rate * _STEP_S), _LEAST_STEP_BYTES))
            self.watch.wait(self.due - now)

    def spend(self, count):
        """Note that bytes were read."""
        if self.rate is not None:
            self.due += count / max(self.rate, _LEAST_RATE)


class LeastRate:
    """Watches the least rate over a sliding window of the time spent waiting for bytes."""

    def __init__(self, limits):
        self.window_s = limits["min_rate_window_s"]
        self.min_rate = limits["min_rate"]
        self.forget()

    def forget(self):
        """Begin a new window."""
        self.waited_s, self.bytes = 0.0, 0
        #: Time waited and bytes so far, and the least that was to come since the mark before.
        self.marks = [(0.0, 0, self.min_rate)]
        self.least = self.min_rate

    def timed(self, limit, read, *args):
        """Call ``read`` and account for it; raise ``Retry`` when too little came within the window.

        ``limit``: our own rate. Who may take little cannot ask for much, nor who might a moment ago.
        """
        if limit is not None:
            self.least = min(self.least, limit / 4)
        before = time.monotonic()
        got = read(*args)
        self.waited_s += time.monotonic() - before
        self.bytes += got
        if self.waited_s - self.marks[-1][0] >= self.window_s / 16:
            self.marks.append((self.waited_s, self.bytes, self.least))
            self.least = self.min_rate
            while self.waited_s - self.marks[1][0] >= self.window_s:
                self.marks.pop(0)
            since, count, _ = self.marks[0]
            waited_s, came = self.waited_s - since, self.bytes - count
            least = min(mark[2] for mark in self.marks)
            if waited_s >= self.window_s and came < least * self.window_s:
                raise Retry("stall", "only %d bytes in %g s" % (came, waited_s))
        return got


def _is_waiting(sock):
    """Whether a read would return at once."""
    if getattr(sock, "pending", None) and sock.pending():
        return True
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def fit_buffer(sock, rate):
    """Let the kernel take little more from the link than a rate lets us read, so that both are the same.

    Also on a connection under way; but the kernel itself chooses no size any more afterwards: so where
    the biggest that it grants would slow a fast rate down, it is left to choose.
    """
    ours = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    most = _biggest(sock)
    wanted = most if rate is None else int(max(rate * _BUFFER_S, _LEAST_BUFFER_BYTES))
    if wanted > 2 * most or (rate is None and ours >= 2 * most):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(wanted, most))
        if hasattr(socket, "TCP_WINDOW_CLAMP"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, min(wanted, most))
    except OSError:
        pass  # the flow is less even then


def _biggest(sock):
    """Return the biggest receive buffer that this host grants."""
    with socket.socket(sock.family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 28)
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
