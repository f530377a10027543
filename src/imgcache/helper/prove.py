"""Proves that a final is what an image becomes here: fetched and converted beside it, compared, dropped.

Nothing is published, and the final is only read.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import os

from . import entries, formats, verify
from .fetch import Fetch
from .watch import watch as watch_of


class Other(Exception):
    """The final is not what the image becomes; the text says what differs."""


class Proof(Fetch):
    """One order ``prove``: a fetch that ends with a comparison."""

    def run(self):
        """Return what ``prove`` answers."""
        try:
            return super().run()
        except Other as other:
            return self.answer("other", str(other))

    def answer(self, state, reason=None, value=None, size=None):
        """Return the answer; ``value`` is the digest of a final that was proven."""
        return {
            "state": state,
            "reason": reason,
            "algo": self.algo() if value else None,
            "value": value,
            "size": size,
            "bytes_fetched": self.received,
            "resumed": self.resumed,
        }

    def existing(self):
        """Return the answer for a final that is not there; one that is there is what this is about."""
        return self.answer("absent") if self.cache.find(self.base) is None else None

    def converts(self):
        """Whether the final may be converted, whatever the host would do with it today."""
        return self.image["disk_format"] not in formats.RAW_FAMILY

    def algo(self):
        """Return the algorithm to compare with, never a weak one."""
        algo = self.image["digest"]["algo"]
        return "sha512" if algo in ("md5", "sha1") else algo

    def judge(self, staging):
        """Judge as a fetch does; a final of another size needs no conversion to be told apart."""
        virtual_size = super().judge(staging)
        found = self.cache.find(self.base)
        if found is not None and self.converts():
            self.check_size(found.st_size, virtual_size)
        return virtual_size

    def check_size(self, size, wanted):
        """Raise ``Other`` when the final has not the size it must have."""
        if size != wanted:
            raise Other("it has %d bytes, the image becomes %d here" % (size, wanted))

    def finish(self, staging, stored_format):
        """Compare the final with the staging file, which is dropped."""
        size = os.fstat(staging.fd).st_size
        wanted = self.hash_slowly(staging.fd, size)
        staging.close()
        fd = verify.open_settled(self.cache, self.base)
        if fd is None:
            return self.answer("absent")
        try:
            before = os.fstat(fd)
            self.check_size(before.st_size, size)
            value = self.hash_slowly(fd, size)
            verify.check_unchanged(self.cache, self.base, before)
            if value != wanted:
                raise Other("its %s is not that of what the image becomes here" % self.algo())
            verify.note_proven(self.cache, self.base, fd, self.algo(), value)
        finally:
            os.close(fd)
        return self.answer("proven", None, value, size)

    def hash_slowly(self, fd, size):
        """Return a file's digest; instances read their disks from the same device."""
        return verify.Hashing(fd, size, self.algo(), self.order["rate"], self.watch).run()


def order_prove(session, order):
    """Compare a final with what its image becomes; the order and its dialect are those of ``fetch``."""
    entries.opened(session)
    watch = watch_of(session)
    watch.begin(order["id"], order["limits"]["alive_s"])
    try:
        proof = Proof(session, order)
        return proof.existing() or proof.run()
    finally:
        watch.end()
