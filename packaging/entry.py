"""Where the binary starts."""

import os

from imgcache.__main__ import run

# PyInstaller's loader points this at its own libraries; what we start must find the system's.
before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if before is not None:
    os.environ["LD_LIBRARY_PATH"] = before
else:
    os.environ.pop("LD_LIBRARY_PATH", None)

run()
