"""Files that other hosts may read, also while they are still coming in, and those who read them.

One thread takes connections and ends what lasts too long; each connection has a thread of its own, and their
number is bounded. The fetch never waits for a reader: it notes how far it is, and readers wait for that.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import errno
import hmac
import os
import re
import select
import socket
import threading
import time

from .core import Failure

#: Seconds: a request's head with its handshake; the wait for a name that is to come; a connection without a
#: byte sent; how long an unlinked original is held for readers. The order may give others.
_TIMES = {"head_s": 5, "wait_s": 10, "idle_s": 60, "hold_s": 20}
_MAX_HEAD_BYTES = 8192
_MAX_READERS = 256
#: Connections beside the readers: those that have not shown a secret yet. The oldest makes room.
_MAX_STRANGERS = 16
_MAX_CONNECTIONS_OF_A_NONCE = 16
_PIECE_BYTES = 256 << 10
#: Of what a slow reader has not taken, the kernel holds about so much: so we see that it moves at all.
_UNSENT_BYTES = 256 << 10
_TCP_NOTSENT_LOWAT, _TCP_USER_TIMEOUT = 25, 18
_POLLRDHUP = 0x2000
_TICK_S = 1.0

_METHOD = b"GET /"
_REQUEST = re.compile(rb"GET /([A-Za-z0-9._-]{1,100}) HTTP/1\.[01]\r\n")
_TICKET = re.compile(rb"\r\nX-Auth-Token:[ \t]*([0-9a-f]{32})\.([0-9a-f]{64})[ \t]*\r\n", re.I)
_RANGE = re.compile(rb"\r\nRange:[ \t]*bytes=([0-9]{1,18})-[ \t]*\r\n", re.I)
_STATUSES = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    416: "Range Not Satisfiable",
    503: "Service Unavailable",
}


class Offer:
    """One file that others may read, as far as it has come. For every thread; nothing waits for a reader."""

    def __init__(self, relay, name, key, fd, size):
        self.relay = relay
        self.changed = relay.changed
        self.name = name
        self.key = key
        self.size = size
        self.arrived = 0
        self.readers = set()
        self.withdrawn = False
        self.moved_at = time.monotonic()
        self.unlinked_at = None
        try:
            self.fd = os.open("/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.fd = os.dup(fd)

    def advance(self, count):
        """Say that the file's first ``count`` bytes are in it."""
        with self.changed:
            self.arrived = count
            self.moved_at = time.monotonic()
            self.changed.notify_all()

    def restart(self):
        """Say that the file begins anew; to be called before it is cut."""
        with self.changed:
            self.arrived = 0
            self._hang_up()

    def complete(self):
        """Say that all bytes are there. They are offered while the file has a name, and a little longer."""
        self.advance(self.size)

    def fail(self):
        """Say that there will be no more: it is offered no longer."""
        with self.changed:
            self.withdrawn = True
            if self.relay.offers.get(self.name) is self:
                del self.relay.offers[self.name]
            self._hang_up()

    def _hang_up(self):
        for reader in self.readers:
            reader.hang_up()
        self.changed.notify_all()

    def tend(self, now, hold_s):
        """Hold an unlinked file no longer than it is read; return whether there is more to do.

        Closing any descriptor of a file drops the locks that this process holds on it, and another run would
        take it for a dead one's: so ours stays open while the file has a name.
        """
        if os.fstat(self.fd).st_nlink:
            return True
        if self.unlinked_at is None:
            self.unlinked_at = now  # after a conversion that may have lasted for minutes
        if not self.withdrawn and now - max(self.moved_at, self.unlinked_at) >= hold_s:
            self.fail()
        if not self.withdrawn or self.readers:
            return True
        os.close(self.fd)
        return False


class Relay:
    """All offers and connections. ``changed`` guards everything, also those of the offers and readers."""

    def __init__(self, listener, context, max_readers, times):
        self.listener = listener
        self.context = context
        self.max_readers = max(1, min(max_readers, _MAX_READERS))
        self.times = dict(_TIMES, **times)
        self.changed = threading.Condition()
        self.offers = {}
        self.tended = []
        self.readers = set()
        self.keys = {}
        self.no_key = os.urandom(32)
        self.connections_of = {}

    def offer(self, name, key, fd, size):
        """Offer an open file that will have ``size`` bytes, none yet, under a name and a key in hex.

        Raises:
            Failure: ``protocol``.
        """
        if not _REQUEST.fullmatch(b"GET /%s HTTP/1.1\r\n" % name.encode("utf-8")):
            raise Failure("protocol", "%s cannot be a file's name in a relay" % ascii(name)[:100])
        try:
            secret = bytes.fromhex(key)
        except ValueError:
            secret = b""
        if len(secret) < 16:
            raise Failure("protocol", "a relay's key has at least 32 hex digits")
        offer = Offer(self, name, secret, fd, size)
        with self.changed:
            if name in self.offers:
                self.offers[name].fail()
            self.offers[name] = offer
            self.keys[name] = secret
            self.tended.append(offer)
            self.changed.notify_all()
        return offer

    # ---- what readers call

    def admit(self, reader, name, nonce, proof):
        """Wait for an offer that this secret opens; return it, or the status that refuses.

        Whoever has no secret learns nothing: not even, by the time it takes, whether there is such a name.
        """
        deadline = time.monotonic() + self.times["wait_s"]
        with self.changed:
            while True:
                key = self.keys.get(name, self.no_key)
                right = hmac.new(key, ("%s/%s" % (name, nonce)).encode("ascii"), "sha256")
                good = hmac.compare_digest(right.hexdigest(), proof)
                if good and name in self.offers:
                    return self._admit(reader, self.offers[name], nonce)
                left_s = deadline - time.monotonic()
                if left_s <= 0 or reader.ended or reader.is_gone():
                    return 404 if good else 403
                self.changed.wait(min(left_s, _TICK_S))

    def _admit(self, reader, offer, nonce):
        count = self.connections_of.get((offer.name, nonce), 0)
        if count >= _MAX_CONNECTIONS_OF_A_NONCE:
            return 403
        self.connections_of[(offer.name, nonce)] = count + 1
        for other in offer.readers:
            if other.nonce == nonce:
                other.hang_up()
        if sum(not other.ended for other in self.readers if other.offer) >= self.max_readers:
            return 503
        reader.offer, reader.nonce = offer, nonce
        offer.readers.add(reader)
        return offer

    def forget(self, reader):
        """Close a connection that has ended. Under the lock, so that nobody hangs up another's descriptor."""
        with self.changed:
            reader.sock.close()
            self.readers.discard(reader)
            if reader.offer:
                reader.offer.readers.discard(reader)
            self.changed.notify_all()

    # ---- the thread

    def run(self):
        """Take connections until the process ends."""
        poller = select.poll()
        poller.register(self.listener, select.POLLIN)
        tend_at = time.monotonic()
        while True:
            if poller.poll(int(_TICK_S * 1000)):
                self._accept()
            now = time.monotonic()
            if now >= tend_at:
                tend_at = now + _TICK_S
                with self.changed:
                    hold_s = self.times["hold_s"]
                    self.tended = [offer for offer in self.tended if offer.tend(now, hold_s)]

    def _accept(self):
        try:
            sock, _ = self.listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(_TICK_S)
            return
        try:
            sock.settimeout(self.times["idle_s"])
            _tune(sock, self.times["idle_s"])
            if self.context:
                # Now, not in the reader's thread: this gives the connection another object.
                sock = self.context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
            reader = Reader(self, sock)
            with self.changed:
                self._make_room()
                self.readers.add(reader)
            threading.Thread(target=reader.run, daemon=True).start()
        except (OSError, ValueError, RuntimeError):  # it has left already, or there are no threads
            with self.changed:
                self.readers = {one for one in self.readers if one.sock is not sock}
                sock.close()

    def _make_room(self):
        """Have the oldest stranger leave while there are too many connections."""
        while len(self.readers) >= self.max_readers + _MAX_STRANGERS:
            strangers = [one for one in self.readers if not (one.offer or one.ended)]
            if strangers:
                min(strangers, key=lambda one: one.since).hang_up()
            self.changed.wait(_TICK_S)


def _tune(sock, idle_s):
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (_TCP_NOTSENT_LOWAT, _UNSENT_BYTES),
        (_TCP_USER_TIMEOUT, int(idle_s * 1000)),
    ):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError:
            pass  # an older kernel: it goes without


class Reader:
    """One connection."""

    def __init__(self, relay, sock):
        self.relay = relay
        self.sock = sock
        self.offer = self.nonce = None
        self.ended = False
        self.since = self.moved_at = time.monotonic()
        self.idle_s = relay.times["idle_s"]

    def hang_up(self):
        """End the connection, whatever its thread waits for. Called with the lock held, and never waits."""
        self.ended = True
        try:
            # The plain socket's method: TLS's own would wait for the other side.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass

    def run(self):
        """Answer one request."""
        try:
            self._talk()
            if self.relay.context:  # all was said: nobody shall take this for a broken connection
                self.sock.settimeout(0)
                self.sock.unwrap()
        except Exception:  # noqa: BLE001, S110 - whatever a stranger sends, it must not end the fetch
            pass
        finally:
            self.relay.forget(self)

    def is_gone(self):
        """Whether the other side has left."""
        poller = select.poll()
        poller.register(self.sock.fileno(), _POLLRDHUP)
        return bool(poller.poll(0))

    def _talk(self):
        deadline = self.since + self.relay.times["head_s"]
        if self.relay.context:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            self.sock.do_handshake()
        head = self._read_head(deadline)
        self.sock.settimeout(self.idle_s)
        request, ticket, start = _REQUEST.match(head), _TICKET.search(head), _RANGE.search(head)
        if not request:
            self._answer(400)
            return
        name = request.group(1).decode("ascii")
        nonce, proof = (ticket.group(n).decode("ascii") for n in (1, 2)) if ticket else ("", "")
        offer = self.relay.admit(self, name, nonce.lower(), proof.lower())
        if not isinstance(offer, Offer):
            self._answer(offer)
            return
        self.moved_at = time.monotonic()
        at = int(start.group(1)) if start else 0
        if at >= offer.size:
            self._answer(416, "Content-Range: bytes */%d\r\n" % offer.size)
            return
        about = "Content-Type: application/octet-stream\r\n"
        if start:
            about += "Content-Range: bytes %d-%d/%d\r\n" % (at, offer.size - 1, offer.size)
        self._answer(206 if start else 200, about, offer.size - at)
        self._send_body(offer, at)

    def _read_head(self, deadline):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(head) >= _MAX_HEAD_BYTES:
                raise OSError(errno.ETIMEDOUT, "no request")
            self.sock.settimeout(left_s)
            more = self.sock.recv(_MAX_HEAD_BYTES - len(head))
            if not more:
                raise OSError(errno.ECONNRESET, "no request")
            head += more
            if not (head.startswith(_METHOD) or _METHOD.startswith(head)):
                break  # a handshake, perhaps, where there is none: told at once
        return head

    def _answer(self, status, about="", length=0):
        text = "HTTP/1.1 %d %s\r\nContent-Length: %d\r\nAccept-Ranges: bytes\r\n%sConnection: close\r\n\r\n"
        self.sock.sendall((text % (status, _STATUSES[status], length, about)).encode("ascii"))

    # ---- the body

    def _send_body(self, offer, at):
        """Send from ``at`` on, as the bytes come; never more than there are."""
        send = self._send_tls if self.relay.context else self._send_plain
        while at < offer.size:
            count = min(self._wait_for_bytes(offer, at) - at, _PIECE_BYTES)
            sent = send(offer, at, count)
            if sent:
                self._note_move(offer)
            at += sent

    def _wait_for_bytes(self, offer, at):
        """Return how many bytes have come, more than ``at``."""
        with self.relay.changed:
            while offer.arrived <= at and not self.ended:
                self.relay.changed.wait(_TICK_S)
                if offer.arrived <= at:
                    self._check_idle()
            if self.ended:
                raise OSError(errno.ECONNABORTED, "hung up")
            return offer.arrived

    def _check_idle(self):
        if self.ended or time.monotonic() - self.moved_at >= self.idle_s or self.is_gone():
            raise OSError(errno.ETIMEDOUT, "nothing was sent for too long, or the reader left")

    def _note_move(self, offer):
        self.moved_at = offer.moved_at = time.monotonic()

    def _send_plain(self, offer, at, count):
        try:
            sent = os.sendfile(self.sock.fileno(), offer.fd, at, count)
        except BlockingIOError:
            poller = select.poll()
            poller.register(self.sock.fileno(), select.POLLOUT)
            if not poller.poll(int(_TICK_S * 1000)):
                self._check_idle()
            return 0
        if not sent:
            raise OSError(errno.EIO, "the file became shorter")
        return sent

    def _send_tls(self, offer, at, count):
        data = memoryview(os.pread(offer.fd, count, at))
        if not data:
            raise OSError(errno.EIO, "the file became shorter")
        done = 0
        while done < len(data):
            done += self.sock.send(data[done:])  # a TLS record, or less
            self._note_move(offer)
        return done
