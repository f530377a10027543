"""Keeps an eye on the controller while the main thread fetches.

One thread owns standard input: at its end, or when the controller falls silent during a fetch, the helper
kills its children, removes its staging files and exits, whatever the main thread waits for. A second thread
says how far the fetch is.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a warm host

import collections
import ctypes
import os
import select
import signal
import sys
import threading
import time

from . import core

#: Bytes of ``data`` that may wait for the main thread; beyond that the pipe fills, and the controller waits.
_MAX_WAITING_BYTES = 2 << 20
_PULSE_S = 1.0
_POLLRDHUP = 0x2000
_PR_SET_DUMPABLE = 4


class Switched(Exception):
    """The controller wants the present source left."""


class Watch:
    """The threads' shared state. Everything below is guarded by ``changed``, save ``send``."""

    def __init__(self, session):
        self.session = session
        self.changed = threading.Condition()
        self.orders = collections.deque()
        self.answers = collections.deque()
        self.waiting_bytes = 0
        self.fetch_id = None
        self.stopped = set()
        self.switched = set()
        self.rates = {}
        self.on_stop = None
        self.give_up_at = None
        self.ended = False
        self.alive_s = self.idle_alive_s = None
        self.heard_at = time.monotonic()
        self.progress = None
        self.paused = False
        self.staging = []
        self.children = set()
        self._sending = threading.Lock()
        self._cleaning = threading.Lock()

    def start(self):
        """Take over standard input."""
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):
            if hasattr(signal, name):  # Windows has no SIGHUP
                signal.signal(getattr(signal, name), lambda *_: self.session.leave(0))
        for target in (self._read, self._pulse):
            threading.Thread(target=self._guarded, args=(target,), daemon=True).start()

    def send(self, frame):
        """Send one frame; safe from every thread."""
        with self._sending:
            core.Session.send(self.session, frame)

    def _guarded(self, target):
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - a thread's crash must end the process
            core._crash(self.session, error)
            self.session.leave(99)

    # ---- what the main thread calls

    def next_order(self):
        """Wait for the next order.

        Raises:
            EndOfInput: the controller is gone.
        """
        with self.changed:
            while not self.orders:
                if self.ended:
                    raise core.EndOfInput
                self.changed.wait()
            return self.orders.popleft()

    def begin(self, fetch_id, alive_s):
        """A fetch begins: from now on the controller must be heard, and progress is told.

        Raises:
            Failure: ``interrupted``, when ``stop`` came before.
        """
        with self.changed:
            self.fetch_id = fetch_id
            self.answers.clear()
            self.waiting_bytes = 0
            self.heard_at = time.monotonic()
            self.alive_s = alive_s
            self.paused = False
        self.check()

    def end(self):
        """The fetch is over; its late answers will be dropped."""
        with self.changed:
            self.alive_s = self.idle_alive_s
            self.progress = self.on_stop = None
            self.answers.clear()
            self.waiting_bytes = 0
            self.stopped.discard(self.fetch_id)
            self.switched.discard(self.fetch_id)
            self.rates.pop(self.fetch_id, None)
            self.fetch_id = -1 - abs(self.fetch_id)
            self.changed.notify_all()

    def expect_controller(self, alive_s):
        """From now on the controller must be heard, also between fetches."""
        with self.changed:
            self.heard_at = time.monotonic()
            self.alive_s = self.idle_alive_s = alive_s

    def check(self):
        """Raise ``Failure`` ``interrupted`` when ``stop`` has come."""
        if self.fetch_id in self.stopped:
            raise core.Failure("interrupted", "stopped by the controller")

    def check_source(self):
        """As ``check``; raise ``Switched`` when the present source is to be left."""
        self.check()
        if self.fetch_id in self.switched:
            raise Switched

    def rate(self, default):
        """Return what the fetch may take in bytes/s, None: all; ``default``: what its order said."""
        return self.rates.get(self.fetch_id, default)

    def wait(self, seconds):
        """Wait, less long when a frame comes in; raise what ``check_source`` does."""
        with self.changed:
            self.check_source()
            self.changed.wait(seconds)
        self.check_source()

    def call_on_stop(self, callback):
        """Have ``callback`` called, in another thread, when ``stop`` or ``switch`` comes: to end a wait."""
        with self.changed:
            self.on_stop = callback
        self.check_source()

    def give_up_in(self, seconds):
        """Have the callback for ``stop`` called after so many seconds as well; None: no more."""
        self.give_up_at = None if seconds is None else time.monotonic() + seconds

    def call_on_stop_end(self):
        """Have nothing called any more."""
        with self.changed:
            self.on_stop = self.give_up_at = None

    def ask(self, order, retry, sink, **more):
        """Tell that the present source has failed; return what the controller says then.

        Between both no progress is told: whoever was about to has done so before. From then on it is what
        the sink has, which may have begun anew.

        Raises:
            Failure: ``interrupted``.
        """
        with self._sending:
            self.paused = True
        about = dict(more, code=retry.code, message=retry.message, after_s=retry.after_s)
        about.update(offset=sink.count, bytes_fetched=sink.received)
        self.session.answer(order, "retry", **about)
        self.tell("download", sink.count, sink.size)
        again = {"op": "data"}
        while again["op"] != "again":  # what was still on its way from a push that was left
            again = self.next_answer(pause=True)
        return again

    def next_answer(self, pause=False):
        """Wait for the next ``again`` or ``data``; ``pause``: no progress before an ``again``.

        Raises:
            Failure: ``interrupted``.
            Switched: only without ``pause``.
        """
        check = self.check if pause else self.check_source
        with self.changed:
            self.paused = pause
            while not self.answers:
                check()
                self.changed.wait()
            check()
            answer = self.answers.popleft()
            self.paused = pause and answer["op"] != "again"
            self.waiting_bytes -= len(answer.get("raw", b""))
            self.changed.notify_all()
            return answer

    def tell(self, phase, done, total):
        """Note how far the fetch is."""
        progress = {"phase": phase, "done": done, "total": max(done, total)}
        self.progress = dict(progress, id=self.fetch_id, event="progress")

    def announce(self, phase, done, total):
        """Tell how far the fetch is at once: others may wait for the news."""
        self.tell(phase, done, total)
        self._send_progress()

    def _send_progress(self):
        """Say how far the fetch is. What, and whether, is decided when nobody else can send before it."""
        with self._sending:
            progress = self.progress
            if progress is not None and not self.paused:
                core.Session.send(self.session, progress)

    # ---- the threads

    def _read(self):
        while True:
            try:
                frame = self.session.read_frame()
            except core.EndOfInput:
                break
            with self.changed:
                self.heard_at = time.monotonic()
                self._sort(frame)
                self.changed.notify_all()
                self._wait_for_room()
        with self.changed:
            busy = self.fetch_id is not None and self.fetch_id >= 0
            self.ended = True
            self.changed.notify_all()
        if busy or self.orders:
            self.session.leave(0)

    def _sort(self, frame):
        op = frame["op"]
        if op == "ping":
            return
        if op == "stop":
            self.stopped.add(frame["id"])
            if frame["id"] == self.fetch_id and self.on_stop:
                self.on_stop()
        elif op == "switch":
            self.switched.add(frame["id"])
            if frame["id"] == self.fetch_id and self.on_stop:
                self.on_stop()
        elif op == "rate":
            self.rates[frame["id"]] = frame["rate"]
        elif op in ("again", "data"):
            if op == "again":
                self.switched.discard(frame["id"])  # what comes later is about the source named now
                if "rate" in frame:
                    self.rates[frame["id"]] = frame["rate"]
            if frame["id"] == self.fetch_id:
                self.answers.append(frame)
                self.waiting_bytes += len(frame.get("raw", b""))
        else:
            self.orders.append(frame)

    def _wait_for_room(self):
        """Leave the rest in the pipe while the main thread is behind; still notice the controller's end."""
        while self.waiting_bytes > _MAX_WAITING_BYTES:
            self.changed.wait(_PULSE_S)
            self.heard_at = time.monotonic()
            if _hung_up(self.session.stdin.fileno()):
                self.session.leave(0)

    def _pulse(self):
        while True:
            time.sleep(_PULSE_S)
            self._beat()

    def _beat(self):
        alive_s = self.alive_s
        if alive_s is not None and time.monotonic() - self.heard_at > alive_s:
            self.session.leave(0)
        if self.give_up_at is not None and time.monotonic() > self.give_up_at:
            self.give_up_at = None
            with self.changed:
                if self.on_stop:
                    self.on_stop()
        if alive_s is not None:
            self._send_progress()

    def clean_up(self):
        """Kill children and remove staging files; callable from every thread, also twice."""
        if not self._cleaning.acquire(False):
            time.sleep(2)  # another thread is at it, and then ends the process
        for group in list(self.children):
            try:
                os.killpg(group, signal.SIGKILL)
            except OSError:
                pass
        for dir_fd, name in list(self.staging):
            try:
                os.unlink(name, dir_fd=dir_fd)
            except OSError:
                pass


def _hung_up(fd):
    """Whether the writer of a pipe is gone, while there may be bytes in it; not to be told on Windows."""
    if not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(fd, _POLLRDHUP)
    return any(
        event & (select.POLLHUP | select.POLLERR | _POLLRDHUP) for _, event in poller.poll(0)
    )


def seal():
    """Let nobody read this process's memory: it will hold a token."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def watch(session):
    """Return the session's watch, started on first use."""
    if session.watch is None:
        seal()
        session.watch = Watch(session)
        session.watch.start()
    return session.watch
