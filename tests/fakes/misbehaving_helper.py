"""A host that breaks the rules on purpose: ``python: [python3, misbehaving_helper.py, MODE]``.

It takes the place of Python on the host, so it gets ``-I -c …`` as arguments and the helper's code, the
start frame and the orders on standard input. Standard library only.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

out = sys.stdout.buffer


def send(frame: Any) -> None:
    line = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
    out.write(line + b"\n")
    out.flush()


def read_start() -> str:
    header = sys.stdin.buffer.readline().split()
    sys.stdin.buffer.read(int(header[-2]))
    return str(json.loads(sys.stdin.buffer.readline())["marker"])


def read_order() -> dict[str, Any]:
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit(0)
    frame: dict[str, Any] = json.loads(line)
    if frame["op"] in {"load", "data"}:
        sys.stdin.buffer.read(frame["size"])
    return frame


def read_slowly() -> None:
    """Read a frame and its bytes, at 200 KiB/s."""
    frame: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    for _ in range(0, frame["size"], 32768):
        sys.stdin.buffer.read(32768)
        time.sleep(0.16)


def hello(marker: str, **other: Any) -> None:
    out.write(b"\0IMGCACHE0001 " + marker.encode() + b"\n")
    content = {
        "protocol": 1, "python": "3.11.2", "platform": "linux", "pid": 7, "uid": 0, "user": "nova",
        "time": time.time(),
    }  # fmt: skip
    send({"id": 1, "event": "result"} | content | other)


def progress(order_id: int, done: int, total: int = 100, phase: str = "download") -> None:
    send({"id": order_id, "event": "progress", "phase": phase, "done": done, "total": total})


FRAMES = {
    "not-json": b"{oops",
    "not-utf8": b'{"event":"\xff"}',
    "not-object": b"[1]",
    "deep": b'{"a":' + b"[" * 20 + b"]" * 20 + b"}",
    "very-deep": b'{"a":' + b"[" * 30000 + b"]" * 30000 + b"}",
    "huge-int": b'{"id":' + b"9" * 5000 + b"}",
    "big-int": b'{"id":18446744073709551616}',
    "huge-float": b'{"id":1e999}',
    "nan": b'{"id":NaN}',
    "infinity": b'{"id":-Infinity}',
    "duplicate-key": b'{"id":2,"id":2,"event":"result"}',
    "no-id": b'{"event":"result"}',
    "bool-id": b'{"id":true,"event":"result"}',
    "unknown-event": b'{"id":2,"event":"dance"}',
    "unknown-code": b'{"id":2,"event":"error","code":"dance","message":"","fields":{}}',
    "surrogate-event": b'{"id":2,"event":"\\ud800"}',
    "foreign-id": b'{"id":77,"event":"result"}',
    "old-id": b'{"id":1,"event":"result"}',
    "wrong-phase": b'{"id":2,"event":"progress","phase":"nap","done":1,"total":2}',
    "above-total": b'{"id":2,"event":"progress","phase":"download","done":3,"total":2}',
    "negative": b'{"id":2,"event":"progress","phase":"download","done":-1,"total":2}',
    "result-null": b"null",
    "zero-length": b"",
}


def main(mode: str) -> None:
    if mode == "silent":
        while sys.stdin.buffer.read(65536):
            pass
        time.sleep(60)
        return
    if mode == "noise-flood":
        while True:
            out.write(b"x" * 65536)
    if mode.startswith("exit-"):
        sys.stderr.write(mode.partition(":")[2])
        sys.exit(int(mode.removeprefix("exit-").partition(":")[0]))
    marker = read_start()
    if mode == "wrong-protocol":
        hello(marker, protocol=2)
        return
    if mode == "noise":
        out.write(b"Welcome to host7\r\n\x1b[31mmotd\x1b[0m\n\0IMGCACHE0001 wrong\n")
        sys.stderr.write("rc file says hi\n")
    if mode == "escapes":
        hello(marker, user="\x1b]0;x\x07\u202ey\r")
    else:
        hello(marker)
    order = read_order()
    misbehave(mode, order["id"])
    while True:
        order = read_order()


def misbehave(mode: str, order_id: int) -> None:
    if mode in FRAMES:
        send(FRAMES[mode].replace(b'"id":2', b'"id":%d' % order_id))
    elif mode in {"noise", "good", "escapes"}:
        message = "\x1b[2J\u2028" + "a" + "\u0301" * 50000 if mode == "escapes" else "no"
        send(
            {
                "id": order_id,
                "event": "error",
                "code": "space",
                "message": message[:5000],
                "fields": {"need": 2, "path": "\x1b["},
            }
        )
    elif mode == "many-lines":
        message = "qemu-img: first\r\nsecond \x1b[2J\n\n  third\n"
        content = {"event": "error", "code": "io", "message": message, "fields": {}}
        send({"id": order_id} | content)
    elif mode == "half-line":
        out.write(b'{"id":')
        out.flush()
        sys.exit(0)
    elif mode == "stderr-flood":
        while True:
            sys.stderr.write("e" * 65536)
    elif mode == "long-line":
        out.write(b'{"a":"' + b"x" * 70000)
        out.flush()
    elif mode == "frame-flood":
        while True:
            progress(order_id, 1)
    elif mode == "byte-flood":
        while True:
            send(
                {
                    "id": order_id,
                    "event": "progress",
                    "phase": "hash",
                    "done": 0,
                    "total": 9,
                    "x": "y" * 60000,
                }
            )
    elif mode == "backwards":
        progress(order_id, 50)
        progress(order_id, 49)
    elif mode == "retry-storm":
        for _ in range(2):
            send({"id": order_id, "event": "retry", "code": "auth", "message": "", "after_s": None,
                  "offset": 0, "bytes_fetched": 0})  # fmt: skip
    elif mode == "trickle":
        for byte in b'{"id":%d,"event":"result"}' % order_id * 100:
            out.write(bytes([byte]))
            out.flush()
            time.sleep(0.2)
    elif mode == "standstill":
        for _ in range(1000):
            progress(order_id, 5)
            time.sleep(0.1)
    elif mode == "deaf":
        time.sleep(60)
    elif mode == "refuses-data":
        time.sleep(1)
        misbehave("good", order_id)
        time.sleep(60)
    elif mode == "slow-reader":
        for _ in range(3):
            read_slowly()
        misbehave("good", order_id)
    elif mode == "crash":
        send(
            {
                "event": "crash",
                "traceback": "ValueError\n<imgcache-helper>/core.py:7 in main"
                "\n<imgcache-helper>/staging.py:9 in \x1b[write",
            }
        )
        sys.exit(99)
    elif mode == "killed":
        import os

        os.kill(os.getpid(), 9)
    elif mode == "two-results":
        send({"id": order_id, "event": "result"})
        send({"id": order_id, "event": "result"})
    else:
        raise AssertionError(mode)


if __name__ == "__main__":
    main(sys.argv[1])
