"""Where the binary starts."""

from imgcache.__main__ import run

run()
