"""Digests of the files of a directory image service, computed once and kept beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

from imgcache.images.records import digest_from
from imgcache.model import Digest

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = ".images.digests.json"
ALGORITHM = "sha512"
_BLOCK_BYTES = 1024 * 1024
_MAX_BYTES = 4 * 1024 * 1024


class DigestCache:
    """Digests by file, valid while size, time of change and inode are the same. Not thread safe.

    A cache file that is damaged or cannot be written only costs time: digests are computed again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._known: dict[str, dict[str, Any]] = self._load()

    def digest(self, name: str, fd: int, status: os.stat_result) -> Digest:
        """Return the digest of the open file; reads it from its start when it is not known."""
        key = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        known = self._known.get(name, {})
        if all(known.get(field) == value for field, value in key.items()):
            digest = digest_from(ALGORITHM, known.get(ALGORITHM))
            if digest is not None:
                return digest
        value = _compute(fd)
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            self._known[name] = {**key, ALGORITHM: value}
            self._save()
        return Digest(algo=ALGORITHM, value=value)

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                content = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        files = content.get("files") if isinstance(content, dict) else None
        if not isinstance(files, dict):
            return {}
        return {name: entry for name, entry in files.items() if isinstance(entry, dict)}

    def _save(self) -> None:
        content = json.dumps({"version": 1, "files": self._known}, indent=1, sort_keys=True)
        # an unwritable folder is no fault: the next run computes again
        with contextlib.suppress(OSError):
            fd, name = tempfile.mkstemp(prefix=FILE_NAME + ".", dir=self._path.parent)
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    file.write(content + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self._path)  # noqa: PTH105 - name is text here
            except OSError:
                os.unlink(name)  # noqa: PTH108 - name is text here
                raise


def _compute(fd: int) -> str:
    digest = hashlib.new(ALGORITHM)
    os.lseek(fd, 0, os.SEEK_SET)
    while block := os.read(fd, _BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
