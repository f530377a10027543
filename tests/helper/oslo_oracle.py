"""Runs under a Python that has oslo.utils: says of each file named on standard input what oslo.utils thinks.

One line in, ``<declared> <path>``; one line out, ``<accept|reject> <formats> <virtual size>``. The
decision is Nova's: ``virt/images.py``, ``do_image_deep_inspection``.
"""

# mypy: disable-error-code="import-not-found"

import logging
import sys

from oslo_utils.imageutils import format_inspector

logging.disable(logging.CRITICAL)


def judge(declared: str, path: str) -> tuple[str, str, int]:
    """Return accept or reject, the formats seen, and the virtual size."""
    with open(path, "rb") as file:
        wrapper = format_inspector.InspectWrapper(file)
        while wrapper.read(4096):
            pass
        wrapper.close()
    seen = {str(inspector): inspector for inspector in wrapper.formats}
    names = ",".join(sorted(seen))
    if set(seen) == {"iso", "gpt"}:
        inspector = seen["iso"]
    elif len(seen) != 1:
        return "reject", names, 0
    else:
        inspector = next(iter(seen.values()))
    inspector.safety_check()
    found = str(inspector)
    same = (
        found == declared
        or declared in ("ami", "ari", "aki")
        or (declared, found) == ("raw", "gpt")
    )
    return ("accept" if same else "reject"), names, inspector.virtual_size


for line in sys.stdin:
    declared, _, path = line.rstrip("\n").partition(" ")
    try:
        answer = judge(declared, path)
    except Exception as error:  # noqa: BLE001 - whatever oslo.utils raises is its way to reject
        answer = ("reject", type(error).__name__, 0)
    print(*answer, flush=True)
