"""Which drivers there are: those built in, one line each, and those that other packages register.

Another package registers a driver by an entry point of the group ``imgcache.drivers``: see
``docs/drivers.md``. A driver is imported when a host that it is for is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers.base import Driver
from imgcache.errors import ConfigError, Problem
from imgcache.model import DRIVER_NAME
from imgcache.text import printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Other packages' entry points of this group are drivers: its name, and the class.
GROUP = "imgcache.drivers"


def _libvirt() -> Driver:
    from imgcache.drivers.libvirt import LibvirtDriver  # noqa: PLC0415 - each when it is needed

    return LibvirtDriver()


def _glance_cache() -> Driver:
    from imgcache.drivers.glance_cache import GlanceCacheDriver  # noqa: PLC0415

    return GlanceCacheDriver()


def _vmwareapi() -> Driver:
    from imgcache.drivers.vmwareapi import VmwareDriver  # noqa: PLC0415

    return VmwareDriver()


def _hyperv() -> Driver:
    from imgcache.drivers.hyperv import HypervDriver  # noqa: PLC0415

    return HypervDriver()


#: An explicit table, in which the frozen binary's builder sees what to take along.
_BUILT_IN: Mapping[str, Callable[[], Driver]] = {
    "libvirt": _libvirt,
    "glance-cache": _glance_cache,
    "vmwareapi": _vmwareapi,
    "hyperv": _hyperv,
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A driver that is built in or registered, or why it cannot be used."""

    name: str
    package: str | None
    """The package that registers it; None: built in."""
    version: str | None
    """The package's."""
    driver: Driver | None
    problem: str | None
    """Why ``driver`` is None."""


class _UnusableError(Exception):
    """A registered driver cannot be used; the message says why."""


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - reads all packages' metadata

    return entry_points(group=GROUP)


class Registry(Mapping[str, Driver]):
    """Driver name, as the inventory says it -> the driver; imported when it is asked for."""

    def __init__(self, find: Callable[[], Iterable[EntryPoint]] = _entry_points) -> None:
        self._find = find
        self._loaded: dict[str, Driver] = {}
        self._registered: dict[str, list[EntryPoint]] | None = None

    def __getitem__(self, name: str) -> Driver:
        """Raises KeyError when there is no usable driver of this name; see ``check``."""
        if name not in self._loaded:
            try:
                self._loaded[name] = self._load(name)
            except _UnusableError as exc:
                raise KeyError(name) from exc
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from (name for name in self._others() if name not in _BUILT_IN)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in _BUILT_IN or name in self._others()

    def package_of(self, name: str) -> str | None:
        """Return the package that registers a driver; None when it is built in, or there is none."""
        points = [] if name in _BUILT_IN else self._others().get(name, [])
        return _package_of(points[0]) if points else None

    def check(self, named: Mapping[str, str]) -> None:
        """Make sure that there are drivers of these names (name -> where it stands); imports none built in.

        Raises:
            ConfigError: lists every one that is unknown or cannot be used.
        """
        problems: list[Problem] = []
        for name, where in named.items():
            if name not in self:
                what = f"unknown driver '{printable(name, 80)}'"
                problems.append(Problem(where, what, self._nearest(name)))
            elif name not in _BUILT_IN:
                try:
                    self._loaded[name] = self._load(name)
                except _UnusableError as exc:
                    what = f"the driver '{printable(name, 80)}' cannot be used: {exc}"
                    problems.append(Problem(where, what, "imgcache drivers lists those there are"))
        if problems:
            message = "hosts have drivers that cannot be used"
            raise ConfigError(message, problems)

    def _nearest(self, name: str) -> str:
        from difflib import get_close_matches  # noqa: PLC0415

        known = ", ".join(self)
        near = get_close_matches(name, list(self), 1)
        return f"did you mean {near[0]}? known are: {known}" if near else f"known are: {known}"

    def offers(self) -> tuple[Offer, ...]:
        """Return every driver, those that cannot be used, too; imports them all."""
        found = [Offer(name, None, None, self[name], None) for name in _BUILT_IN]
        for name, points in self._others().items():
            for point in points:
                package = _package_of(point)
                version = point.dist.version if point.dist else None
                driver, problem = None, None
                try:
                    driver = self._load_only(name, points)
                except _UnusableError as exc:
                    problem = str(exc)
                found.append(Offer(printable(name, 80), package, version, driver, problem))
        return tuple(found)

    def _others(self) -> Mapping[str, list[EntryPoint]]:
        """Return name -> the packages' entry points of this name, mostly one."""
        if self._registered is None:
            self._registered = {}
            for point in self._find():
                self._registered.setdefault(point.name, []).append(point)
        return self._registered

    def _load(self, name: str) -> Driver:
        if name in _BUILT_IN:
            return _BUILT_IN[name]()
        if name not in self._others():
            message = "there is none"
            raise _UnusableError(message)
        return self._load_only(name, self._others()[name])

    @staticmethod
    def _load_only(name: str, points: list[EntryPoint]) -> Driver:
        """Import what one package registers.

        Raises:
            _UnusableError: the name is taken or odd, or what it stands for is no driver, or broken.
        """
        if name in _BUILT_IN:
            message = "a built-in driver has this name, and is used"
            raise _UnusableError(message)
        if not DRIVER_NAME.fullmatch(name):
            message = "a driver's name is lower-case letters, digits and hyphens"
            raise _UnusableError(message)
        if len(points) > 1:
            message = "several packages register it, so none is used"
            raise _UnusableError(message)
        try:
            made = points[0].load()()
        except (Exception, SystemExit) as exc:
            message = f"{type(exc).__name__}: {printable(str(exc), 300)}"
            raise _UnusableError(message) from exc
        if not isinstance(made, Driver) or getattr(made, "name", None) != name:
            message = f"{points[0].value} is no imgcache driver of this name"
            raise _UnusableError(message)
        return made


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


DRIVERS = Registry()
