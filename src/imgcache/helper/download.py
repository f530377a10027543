"""Gets an image's bytes over HTTP: counted, written and hashed in one pass.

Nothing is repeated here: what may be repeated is raised as ``Retry``. No redirect is followed, no proxy used.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, PLC0415, SIM105 - a Failure's code is a literal; imports are dear on a warm host

import http.client
import math
import socket
import time
from urllib.parse import urlsplit

from .core import Failure

_BUSY_STATUSES = (408, 425, 429)
#: Codes of a ``Retry`` that may be the fault of the range that was asked for.
_NO_ANSWERS = ("download", "stall")


class Retry(Exception):
    """The attempt failed in a way that another may not."""

    def __init__(self, code, message, after_s=None, **more):
        super().__init__(message)
        self.code = code
        self.message = message
        self.after_s = after_s
        self.more = more


class Download:
    """One image from the image service. ``body``: what to read it with, as several attempts share it."""

    def __init__(self, source, limits, sink, watch, body=None):
        self.source = source
        self.limits = limits
        self.sink = sink
        self.watch = watch
        self.body = body
        url = parse_url(source["url"])
        self.url = url
        self.target = (url.path or "/") + ("?" + url.query if url.query else "")
        self.place = "%s://%s" % (url.scheme, url.netloc)

    def attempt(self):
        """Fetch what is missing.

        Raises:
            Retry, Failure: see the module.
        """
        if self.body is None:
            from .body import Body

            self.body = Body(self.limits, self.sink, self.watch, False)
        connection, before = self._connect(), self.sink.count
        try:
            self._fetch(connection)
        except Retry as retry:
            came = retry.code not in _NO_ANSWERS or self.sink.count != before
            self.sink.range_failures = 0 if came else self.sink.range_failures + 1
            self.watch.check_source()
            raise
        finally:
            self.watch.call_on_stop_end()
            connection.close()

    def look(self):
        """Return the status that the URL's server gives for its root, asked without a token.

        Raises:
            Retry, Failure: see the module.
        """
        connection = self._connect()
        try:
            self.target = "/"
            return self._ask(connection, 0).status
        finally:
            self.watch.call_on_stop_end()
            connection.close()

    def _fetch(self, connection):
        response = self._answer(connection)
        self._judge(response)
        length = self._length(response)
        try:
            self.body.read(response, length is None)
        except socket.timeout:
            raise Retry(
                "stall", "no byte from %s for %g s" % (self.place, self.limits["stall_s"])
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Retry(
                "download", "the connection to %s broke: %s" % (self.place, _reason(error))
            ) from error
        if self.sink.count < self.sink.size:
            raise Retry(
                "download",
                "the body ended after %d of %d bytes" % (self.sink.count, self.sink.size),
            )

    def _answer(self, connection):
        """Ask for what is missing; return the answer, which may be to a request for all."""
        offset = self.sink.count
        if offset and not self._wants_range():
            response = self._ask(connection, 0)
            self.sink.range_failures = 0
            return self._begun_anew(response)
        response = self._ask(connection, offset)
        if not offset or _may_pass(response.status):
            return response
        if _serves_range(response, offset, self.sink.size):
            return response
        return self._without_range(connection, response)

    def _wants_range(self):
        """Whether to go on in the middle: not where that was of no use, or has failed twice."""
        return not self.sink.no_ranges and self.sink.range_failures < 2

    def _without_range(self, connection, response):
        """Begin at zero where the service does not go on in the middle; return its answer to that.

        Whatever it answered to the range, also that the image is gone, may hold for ranges alone.
        """
        self.sink.no_ranges = True
        if response.status != 200:
            connection.close()
            connection.timeout = self.limits["connect_s"]
            self._open(connection)
            response = self._ask(connection, 0)
        return self._begun_anew(response)

    def _begun_anew(self, response):
        """Drop what is there, now that all comes again."""
        if response.status in (200, 206):
            self.sink.restart()
        return response

    def _refusal(self, code, message, **fields):
        """Return what to raise when another attempt would come to the same."""
        return Failure(code, message, **fields)

    # ---- connecting

    def _connect(self):
        wait_s = self.limits["connect_s"]
        if self.url.scheme == "https":
            context = self._tls_context()  # first: http.client has no such connection without ssl
            connection = http.client.HTTPSConnection(
                self.url.hostname, self.url.port, timeout=wait_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(
                self.url.hostname, self.url.port, timeout=wait_s
            )
        self._open(connection)
        return connection

    def _ssl(self):
        """Return the module ``ssl``, which a Python that was built without OpenSSL lacks."""
        try:
            import ssl
        except ImportError:
            message = "the host's Python has no ssl, so it can read nothing from " + self.place
            raise self._refusal("tls", message) from None
        return ssl

    def _tls_context(self):
        ssl = self._ssl()
        try:
            context = ssl.create_default_context(cadata=self.source["ca_pem"])
        except (ssl.SSLError, ValueError) as error:
            raise self._refusal(
                "tls",
                "the CA certificates given for the image service cannot be used: %s"
                % _reason(error),
            ) from error
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
        if self.source["insecure"]:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _open(self, connection):
        try:
            connection.connect()
            connection.sock.settimeout(self.limits["stall_s"])
        except (OSError, ValueError) as error:
            connection.close()
            if self.url.scheme == "https" and _is_distrust(error):
                raise self._refusal(
                    "tls", "no trust in %s: %s" % (self.place, _reason(error))
                ) from error
            raise Retry(
                "unreachable", "cannot connect to %s: %s" % (self.place, _reason(error))
            ) from error
        taken = connection.sock
        self._meet(taken)
        self.watch.call_on_stop(lambda: _shut(taken))

    def _meet(self, sock):
        """Prepare a connection that was just made."""
        if self.body:
            self.body.attach(sock)

    def _ask(self, connection, offset):
        headers = {"User-Agent": "imgcache", "Accept": "application/octet-stream, */*"}
        if self.source["token"] is not None:
            if not _plain(self.source["token"]):
                raise self._refusal("auth", "the token holds characters that no token has")
            headers["X-Auth-Token"] = self.source["token"]
        if offset:
            headers["Range"] = "bytes=%d-" % offset
        try:
            # Each byte of a head may come just in time: the whole of it has a deadline too.
            self.watch.give_up_in(2 * self.limits["stall_s"])
            connection.request("GET", self.target, headers=headers)
            response = connection.getresponse()
            self.watch.give_up_in(None)
            return response
        except socket.timeout:
            raise Retry(
                "stall", "no answer from %s within %g s" % (self.place, self.limits["stall_s"])
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Retry(
                "download", "no answer from %s: %s" % (self.place, _reason(error))
            ) from error

    # ---- the answer

    def _judge(self, response):
        status = response.status
        if status in (200, 206):
            if response.getheader("Content-Encoding", "identity") != "identity":
                raise self._refusal("download", "%s sends the image encoded, unasked" % self.place)
            return
        fields = {"status": status}
        said = "%s answered %d" % (self.place, status)
        if status == 204:
            raise self._refusal("nodata", said + ": the image has no data", **fields)
        if status == 401:
            raise Retry("auth", said + ": it does not accept the token")
        if status == 403:
            raise self._refusal(
                "forbidden",
                said + ": downloading is forbidden, or the image is deactivated",
                **fields,
            )
        if status in (404, 410):
            raise self._refusal(
                "gone", said + ": the image is gone, or not visible with this token", **fields
            )
        if 300 <= status < 400:
            target = _place_of(response.getheader("Location") or "")
            raise self._refusal(
                "redirect",
                "%s and points to %s; redirects are not followed" % (said, target),
                **fields,
            )
        if status in _BUSY_STATUSES or status >= 500:
            raise Retry("download", said, _retry_after(response.getheader("Retry-After")))
        raise self._refusal("download", said, **fields)

    def _length(self, response):
        expected = self.sink.size - self.sink.count
        if response.status == 206 and not self.sink.count:
            raise self._refusal("download", "%s sends a part, unasked" % self.place)
        length = response.length
        if length is None or response.chunked:
            return None
        if length > expected:
            raise self._refusal(
                "size",
                "%s announces %d bytes, the image has %d more" % (self.place, length, expected),
                size=length,
            )
        if length < expected:
            raise Retry(
                "download",
                "%s announces %d bytes, the image has %d more" % (self.place, length, expected),
            )
        return length


def parse_url(text):
    """Return the parts of an http:// or https:// URL with a plain host, or fail."""
    try:
        url = urlsplit(text)
        good = (
            url.scheme in ("http", "https")
            and url.hostname
            and "@" not in url.netloc
            and url.port != 0
        )
    except ValueError:  # a port that is none
        good = False
    if not good or not _plain(text):
        raise Failure(
            "unreachable", "the image service's URL must be http:// or https:// with a plain host"
        )
    return url


def _place_of(text):
    """Return scheme and host of a URL that anybody may have written, fit to be shown."""
    try:
        url = urlsplit(text)
    except ValueError:
        return "no place that could be read"
    return ascii("%s://%s" % (url.scheme, url.netloc.rpartition("@")[2]))[:200]


def _may_pass(status):
    """Whether a status says nothing about the request itself."""
    return status == 401 or status in _BUSY_STATUSES or status >= 500


def _serves_range(response, offset, size):
    """Whether an answer brings the bytes from ``offset`` on, all of them and as they are."""
    if response.status != 206 or response.getheader("Content-Encoding", "identity") != "identity":
        return False
    if not response.chunked and response.length not in (None, size - offset):
        return False
    said = response.getheader("Content-Range", "")
    return said in (
        "bytes %d-%d/%d" % (offset, size - 1, size),
        "bytes %d-%d/*" % (offset, size - 1),
    )


def _retry_after(text):
    """Return what Retry-After asks for in seconds, uncapped, maybe negative; None if it makes no sense."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        from email.utils import mktime_tz, parsedate_tz

        try:
            seconds = mktime_tz(parsedate_tz(text)) - time.time()
        except (TypeError, ValueError, OverflowError, UnboundLocalError):  # the last: Python 3.6
            return None
    return None if math.isnan(seconds) else max(-1e9, min(1e9, seconds))


def _plain(text):
    return all("!" <= char <= "~" for char in text)


def _is_distrust(error):
    """Whether a failed handshake is about trust or protocol, not about a broken connection."""
    import ssl

    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return False
    return isinstance(error, (ssl.SSLError, ssl.CertificateError)) and not isinstance(
        error, socket.timeout
    )


def _reason(error):
    return str(getattr(error, "strerror", None) or error or type(error).__name__)[:300]


def _shut(sock):
    """Wake whoever waits for bytes. The plain socket's method: TLS's own would wait for the peer."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass
