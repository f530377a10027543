"""A host with the real helper, started through here: ``python: [python3, relay_host.py, FILE, MODE]``.

Its process id is written to FILE. MODE ``honest``, or ``lies``: what it sends to other hosts has one bit
flipped in each piece, while its own file is right. Behind these come the words that start the helper.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_pread, _sendfile = os.pread, os.sendfile


def lying_pread(fd: int, count: int, at: int) -> bytes:
    data = bytearray(_pread(fd, count, at))
    if data:
        data[0] ^= 1
    return bytes(data)


def lying_sendfile(out_fd: int, in_fd: int, at: int, count: int) -> int:
    return os.write(out_fd, lying_pread(in_fd, count, at))


def main() -> None:
    file, mode, boot = sys.argv[1], sys.argv[2], sys.argv[-1]
    Path(file).write_text(str(os.getpid()))
    if mode == "lies":
        os.pread, os.sendfile = lying_pread, lying_sendfile  # type: ignore[assignment]
    exec(boot, {"__name__": "__main__"})  # as python -c does


if __name__ == "__main__":
    main()
