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
    soft = _raise_limit(_needed(wanted))
    if soft >= _needed(wanted):
        return wanted, None
    fitting = max(1, int(soft - _RESERVED) // _PER_HOST)
    return fitting, (
        f"{wanted} hosts at a time need {_needed(wanted)} open files, the limit is {int(soft)}: now it is "
        f"{fitting} (raise the limit with ulimit -n, or lower --concurrency)"
    )


def fit_lenders(concurrency: int, wanted: int) -> int:
    """Return how many hosts may wait beside those at work, at most ``wanted``: each has a connection."""
    soft = _raise_limit(_needed(concurrency + wanted))
    if soft >= _needed(concurrency + wanted):
        return wanted
    return max(0, min(wanted, int(soft - _RESERVED) // _PER_HOST - concurrency))


def _needed(hosts: int) -> int:
    return hosts * _PER_HOST + _RESERVED


def _raise_limit(needed: int) -> float:
    """Raise the soft limit of open files to ``needed`` where that is allowed; return what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        ceiling = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        soft = ceiling
    return float("inf") if soft == resource.RLIM_INFINITY else soft
