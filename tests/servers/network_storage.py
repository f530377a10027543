"""Lets a helper see a folder as mounted network storage: the kernel's list of mounts is another one.

No test machine has an NFS server to mount from; everything but that list is real.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Runs what ``python -I -c`` would, with another file in place of the list of mounts.
_STAND_IN = """\
import builtins, sys
listed, plain = sys.argv[1], builtins.open
def read(path, *args, **more):
    return plain(listed if path == "/proc/self/mountinfo" else path, *args, **more)
builtins.open = read
exec(sys.argv[-1])
"""


def mounting(folder: Path, **mounts: Path) -> tuple[str, ...]:
    """Return the words that start a helper which sees these mounts, type -> place, on a local disk.

    ``folder`` is where its files go; each helper that sees other mounts needs one of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program, listed = folder / "mounting.py", folder / "mountinfo"
    program.write_text(_STAND_IN)
    lines = ["21 1 0:20 / / rw - ext4 /dev/vda rw\n"]
    for number, (kind, place) in enumerate(mounts.items(), start=30):
        lines.append(f"{number} 21 0:{number} / {place} rw shared:1 - {kind} server:/x rw\n")
    listed.write_text("".join(lines))
    return sys.executable, str(program), str(listed)
