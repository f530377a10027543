"""Drivers of other packages: a bug in one ends the work on its hosts, not the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.registry import DRIVERS
from imgcache.errors import ErrorCode, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.model import Image
    from imgcache.operations.engine import HostWork
    from imgcache.operations.host_run import HostRun


def fenced(work: HostWork) -> HostWork:
    """Return work whose bugs become errors of the host where they are those of another package's driver."""

    async def within(context: HostRun, images: Sequence[Image]) -> None:
        try:
            await work(context, images)
        except HostError:
            raise
        except Exception as exc:
            name = context.host.settings.driver
            package = DRIVERS.package_of(name)
            if package is None:
                raise
            message = f"a bug in the driver {name} of the package {package}: {_where(exc)}"
            hint = "report it to those who make the package"
            raise HostError(ErrorCode.CRASH, message, hint=hint) from exc

    return within


def _where(exc: BaseException) -> str:
    """Return what and where it was, without its message, which may hold a secret."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(exc).__name__
    code = trace.tb_frame.f_code
    return f"{type(exc).__name__} at {code.co_filename}:{trace.tb_lineno} in {code.co_name}"
