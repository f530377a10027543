"""How many hosts can be at work at a time with the file descriptors this process may open."""

from __future__ import annotations

import resource

#: Descriptors per host at work: its socket, and one for a push's source or a local helper's pipes.
_PER_HOST = 4
#: For the interpreter, the event loop, log files and the image service's connections.
_RESERVED = 64


def fit_concurrency(wanted: int) -> tuple[int, str | None]:
    """Return the parallelism that fits, at most ``wanted``, and a sentence when it is lower.

    Raises the soft limit of open files as far as the hard one allows.
    """
    needed = wanted * _PER_HOST + _RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        ceiling = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        soft = ceiling
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted, None
    fitting = max(1, (soft - _RESERVED) // _PER_HOST)
    return fitting, (
        f"--concurrency {wanted} needs {needed} open files, the limit is {soft}: "
        f"{fitting} hosts at a time (raise it with ulimit -n)"
    )
