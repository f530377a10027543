"""Brings an image's bytes to a datastore as they come: sampled, hashed, judged, uploaded in one pass.

Nothing of an image is kept on this host but its first and last bytes. What is not whole, or not the right
bytes, never becomes a disk.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

from .body import Body
from .core import Failure
from .download import Download, Retry
from .staging import new_digest
from .vmware_files import Broken, upload_to
from .vmware_image import Sample, judge_head, judge_whole

_BUFFER_BYTES = 1 << 20


class FileTarget:
    """A file of a datastore that an image's bytes go to."""

    def __init__(self, cluster, store, path, plan):
        self.cluster = cluster
        self.store = store
        self.path = path
        self.plan = plan
        self.capacity = None
        #: Raises when no disk of a capacity may be made on a datastore.
        self.admit = None
        self.sample = Sample(plan.size)
        self.upload = None
        self.pending = []
        self.count = 0

    def write(self, data):
        """Take the next bytes; the first ones are held back until they were judged."""
        self.sample.keep(data, self.count)
        self.count += len(data)
        if self.upload is not None:
            self.upload.write(data)
            return
        self.pending.append(bytes(data))
        if self.count >= self.sample.head_bytes:
            self.capacity = judge_head(self.plan, self.sample)
            if self.capacity is not None and self.admit is not None:
                self.admit(self.store, self.capacity)
            self.upload = self.begin()
            for part in self.pending:
                self.upload.write(part)
            self.pending = []

    def begin(self):
        """Return the open upload."""
        return upload_to(self.cluster, self.store, self.path, self.plan.size)

    def all_sent(self):
        """Wait until the server has all bytes."""
        if self.upload is None:
            raise Failure("format", "the image was refused: it ends before it begins")
        upload, self.upload = self.upload, None
        upload.finish()

    def judge(self):
        """Judge what only all bytes tell; they are verified by now."""
        judge_whole(self.plan, self.sample)

    def restart(self):
        """Forget all bytes."""
        if self.upload is not None:
            self.upload.close()
        self.upload, self.pending, self.count = None, [], 0
        self.sample.clear()

    def close(self):
        """Let go of everything that is open."""
        if self.upload is not None:
            self.upload.close()
            self.upload = None
        self.sample.close()


class Sink:
    """What ``Download`` and pushed frames are written to: counts, hashes, hands on to a target."""

    def __init__(self, target, size, algo):
        self.target = target
        self.size = size
        self.algo = algo
        self.count = 0
        self.received = 0
        self.no_ranges, self.range_failures = False, 0
        self._digest = new_digest(algo)
        self._buffer = bytearray(_BUFFER_BYTES)

    def buffer(self):
        """Lend the buffer."""
        return self._buffer

    def give_back(self, owner):
        """Take the buffer back."""

    def write(self, view, owner=None):
        """Take bytes.

        Raises:
            Failure: too many, or refused.
            Retry: the datastore's end broke; all bytes are forgotten.
        """
        del owner
        length = len(view)
        if not length:
            return
        self.received += length
        if self.count + length > self.size:
            raise Failure(
                "size", "more bytes came than the image has (%d)" % self.size, size=self.size
            )
        self._digest.update(view)
        self._guarded(self.target.write, view)
        self.count += length

    def all_sent(self):
        """Wait until the datastore has all bytes."""
        self._guarded(self.target.all_sent)

    def _guarded(self, action, *args):
        try:
            action(*args)
        except Broken as error:
            self.restart()
            text = "the upload to vCenter broke: %s" % error
            raise Retry("io", text) from error

    def restart(self):
        """Forget all bytes."""
        self.target.restart()
        self.count = 0
        self._digest = new_digest(self.algo)

    def hexdigest(self):
        """Return the digest of all bytes written."""
        return self._digest.hexdigest()


class Carrying:
    """One image on its way to a target, from the image service, or from the controller."""

    def __init__(self, session, order, sink):
        self.session = session
        self.order = order
        self.watch = session.watch
        self.sink = sink
        self.mismatches = 0

    def run(self):
        """Return when the datastore has all bytes, the right ones.

        Raises:
            Failure: for good, or because the controller says stop.
        """
        while True:
            try:
                if self.order["source"]["kind"] == "push":
                    self.take_push()
                else:
                    self.download()
            except Retry as retry:
                self.ask(retry)
            else:
                self.order["source"]["token"] = None
                return

    def take_push(self):
        """Take the bytes that the controller sends. It sends them once: nothing here is tried again."""
        sink = self.sink
        self.session.answer(self.order, "ready", offset=sink.count)
        try:
            while True:
                frame = self.watch.next_answer()
                if frame["op"] != "data":
                    continue
                if not frame["size"]:
                    break
                sink.write(memoryview(frame["raw"]))
                self.watch.tell("download", sink.count, sink.size)
            if sink.count != sink.size:
                raise Failure("source", "%d bytes came, the image has %d" % (sink.count, sink.size))
            if not self.is_right():
                raise Failure("digest", self.wrong())
            sink.all_sent()
        except Retry as retry:
            raise Failure(retry.code, retry.message) from retry

    def download(self):
        """Get what is missing from the image service."""
        source, limits, sink = self.order["source"], self.order["limits"], self.sink
        body = Body(limits, sink, self.watch, False)
        Download(source, limits, sink, self.watch, body).attempt()
        if not self.is_right():
            self.mismatches += 1
            sink.restart()
            if self.mismatches > 1:
                raise Failure("digest", self.wrong() + ", twice")
            raise Retry("digest", self.wrong())
        sink.all_sent()

    def is_right(self):
        """Whether all bytes have the image's digest."""
        return self.sink.hexdigest() == self.order["image"]["digest"]["value"].lower()

    def wrong(self):
        """Say that they have not."""
        return "the bytes do not have the image's %s" % self.order["image"]["digest"]["algo"]

    def ask(self, retry):
        """Tell that the image service has failed; wait for the controller to say whether to go on."""
        again = self.watch.ask(self.order, retry, self.sink)
        if again.get("source") is not None:
            self.order["source"] = again["source"]
        if again.get("token") is not None:
            self.order["source"]["token"] = again["token"]
