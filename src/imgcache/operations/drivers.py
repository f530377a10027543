"""Drivers: which there are, where each comes from, and what it can do. Contacts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers.capabilities import COMMANDS, why_not
from imgcache.drivers.registry import DRIVERS

if TYPE_CHECKING:
    from imgcache.drivers.registry import Offer, Registry


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether one driver can serve one command."""

    driver: str
    package: str | None
    """The package that brings it; None: built in."""
    version: str | None
    """The package's."""
    helper_sha256: str | None
    """Of the code of its own that it sends to hosts; None: it sends only imgcache's."""
    command: str
    """A command, or one with an option that asks for more."""
    supported: bool
    reason: str | None
    """Why not."""


@dataclass(frozen=True, slots=True)
class DriverProblem:
    """A driver that another package registers, and that cannot be used."""

    driver: str
    package: str | None
    version: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class DriverList:
    """All drivers."""

    capabilities: tuple[Capability, ...]
    """Driver by driver, those built in first."""
    problems: tuple[DriverProblem, ...]


def list_drivers(registry: Registry = DRIVERS) -> DriverList:
    """Return what each driver can do; imports them all."""
    capabilities: list[Capability] = []
    problems: list[DriverProblem] = []
    for offer in registry.offers():
        try:
            capabilities += _capabilities(offer)
        except _BrokenError as exc:
            problem = DriverProblem(offer.name, offer.package, offer.version, str(exc))
            problems.append(problem)
    return DriverList(tuple(capabilities), tuple(problems))


class _BrokenError(Exception):
    """The message says what is wrong."""


def _capabilities(offer: Offer) -> list[Capability]:
    if offer.driver is None:
        raise _BrokenError(offer.problem)
    digest = _helper_digest(offer.driver.helper_package)
    reasons = {command: why_not(offer.driver, command) for command in COMMANDS}
    return [
        Capability(
            driver=offer.name,
            package=offer.package,
            version=offer.version,
            helper_sha256=digest,
            command=command,
            supported=reason is None,
            reason=reason,
        )
        for command, reason in reasons.items()
    ]


def _helper_digest(package: str | None) -> str | None:
    from imgcache.transport.launch import helper_digest  # noqa: PLC0415 - for who has one

    try:
        return helper_digest(package) if package else None
    except KeyError:
        message = f"its package for hosts, {package}, is not there"
        raise _BrokenError(message) from None
