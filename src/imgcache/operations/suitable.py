"""Which images the drivers of the selected hosts can have at all, told before any host is contacted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.errors import ImageProblemsError, Problem
from imgcache.operations.fleet import driver_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imgcache.model import Host, Image


def refuse_unsuitable(images: Iterable[Image], hosts: Sequence[Host]) -> None:
    """Refuse images that no selected host could have; one that some could is judged host by host.

    Raises:
        ImageProblemsError: lists every such image.
    """
    drivers = {driver.name: driver for driver in map(driver_of, hosts)}
    problems = []
    for image in images:
        reasons = [driver.refuses(image) for driver in drivers.values()]
        if all(reasons):
            what = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
            problems.append(Problem(where=image.name, what=f"image {image.id} {what}"))
    if problems:
        message = "images that none of the selected hosts can have"
        raise ImageProblemsError(message, problems)
