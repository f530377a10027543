"""Brings an image's bytes from where the controller says, and goes on from another source when it says so."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

from .body import Body
from .core import Failure
from .download import Download, Retry
from .watch import Switched

#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for.
_NO_CHECK_TIME = 0x200000


class Peer(Download):
    """One image from another host of the site: whatever that one does wrong, another source may help."""

    def _refusal(self, code, message, **_):
        del code
        return Retry("peer", message)

    def _wants_range(self):
        return True

    def _without_range(self, connection, response):
        """Keep what is there: it need not be this peer's."""
        del connection
        if response.status in (200, 206):
            raise Retry("peer", "%s does not go on at byte %d" % (self.place, self.sink.count))
        return response

    def _judge(self, response):
        if response.status == 401:
            raise Retry("peer", "%s answered 401" % self.place)
        super()._judge(response)

    def _length(self, response):
        length = super()._length(response)
        if length is None:
            raise Retry("peer", "%s does not say how many bytes come" % self.place)
        return length

    def _tls_context(self):
        """Trust one certificate, whatever its name and dates: it was made for this run."""
        ssl = self._ssl()
        if self.source["ca_pem"] is None:
            raise self._refusal("tls", "no certificate was given for %s" % self.place)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= _NO_CHECK_TIME
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1 | ssl.OP_NO_TLSv1_2
        try:
            context.load_verify_locations(cadata=self.source["ca_pem"])
        except (ssl.SSLError, ValueError) as error:
            message = "the certificate given for %s cannot be used" % self.place
            raise self._refusal("tls", message) from error
        return context

    def _meet(self, sock):
        """Take only the very certificate: one that it signed is another's."""
        if self.url.scheme == "https":
            pinned = self._ssl().PEM_cert_to_DER_cert(self.source["ca_pem"].strip())
            if sock.getpeercert(binary_form=True) != pinned:
                raise Retry("peer", "%s shows another certificate than it was given" % self.place)
        super()._meet(sock)


class Bringing:
    """Gets the bytes into a sink, the right ones, as often and from where the controller wants it tried."""

    def __init__(self, session, order, sink):
        self.session = session
        self.order = order
        self.sink = sink
        self.watch = session.watch
        self.mismatches = 0

    def run(self):
        """Return when all bytes are there and have the image's digest."""
        while True:
            try:
                if self.sink.count < self.sink.size:
                    self.attempt()
                self.check_digest()
            except Switched:
                self.ask(Retry("switched", "the source was left, as the controller wanted it"))
            except Retry as retry:
                self.ask(retry)
            else:
                self.order["source"]["token"] = None
                return

    def attempt(self):
        """Get what is missing from the present source."""
        source, limits = self.order["source"], self.order["limits"]
        sink, watch = self.sink, self.watch
        kind = source["kind"]
        sink.origin = kind
        watch.check_source()
        if kind == "push":
            self.take_push()
        elif kind in ("service", "relay"):
            body = Body(limits, sink, watch, kind == "relay" or bool(self.order.get("serve")))
            (Peer if kind == "relay" else Download)(source, limits, sink, watch, body).attempt()
        else:
            raise Failure("protocol", "unknown kind of source: %s" % ascii(kind)[:40])

    def take_push(self):
        """Take the bytes that the controller sends."""
        sink, told = self.sink, False
        self.session.answer(self.order, "ready", offset=sink.count)
        while True:
            frame = self.watch.next_answer()
            if frame["op"] != "data":
                continue
            if not frame["size"]:
                break
            sink.write(memoryview(frame["raw"]))
            tell = self.watch.tell if told else self.watch.announce
            tell("download", sink.count, sink.size)
            told = True
        if sink.count != sink.size:
            raise Failure("source", "%d bytes came, the image has %d" % (sink.count, sink.size))

    def check_digest(self):
        """Start from zero when the bytes are not the image's.

        Raises:
            Retry: when others than the service alone, or than the push alone, brought them, or for the
                first time.
            Failure: ``digest``.
        """
        digest, sink = self.order["image"]["digest"], self.sink
        if sink.hexdigest() == digest["value"].lower():
            return
        origins, resumed = sink.origins, sink.resumed
        sink.restart()
        message = "the bytes do not have the image's %s" % digest["algo"]
        if origins == {"push"}:
            raise Failure("digest", message)
        if origins == {"service"}:
            self.mismatches += 1
            if self.mismatches > 1:
                raise Failure("digest", message + ", twice")
        raise Retry("digest", message, resumed=resumed)

    def ask(self, retry):
        """Tell that the present source has failed; wait for the controller to say where to go on."""
        again = self.watch.ask(self.order, retry, self.sink, **retry.more)
        if again.get("source") is not None:
            self.order["source"] = again["source"]
        if again.get("token") is not None:
            self.order["source"]["token"] = again["token"]
