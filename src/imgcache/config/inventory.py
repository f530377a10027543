"""From the inventory file to model types: checked, laid over each other, node sets expanded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from imgcache.config.fields import HOST_PLACEHOLDER
from imgcache.config.nodesets import MAX_HOSTS, count_hosts, expand_hosts
from imgcache.config.problems import add_problems, nearest
from imgcache.config.schema import (
    AggregateEntry,
    HostEntry,
    ImageServiceEntry,
    InventoryEntry,
    SettingsEntry,
)
from imgcache.document import Data, Document, Node, parse_document
from imgcache.model import Aggregate, Host, HostSettings, ImageServiceSettings, Inventory, Site

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Names in the file that differ from ``HostSettings``: there without a unit, since the value has one.
_RENAMED = {"reserve": "reserve_bytes"}
_ADDRESSES = ("address", "relay_address")
_SETTING_NAMES = tuple(field.name for field in fields(HostSettings))


def parse_inventory(path: Path, content: bytes) -> Inventory:
    """Make an inventory of a file's bytes; relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: lists every problem, each as ``file:line:column: key``.
    """
    document = parse_document(path, content, title=f"the inventory {path}")
    document.root = _without_extensions(document.root)
    document.note_empty_values()
    folder = path.absolute().parent
    try:
        entry = InventoryEntry.model_validate(document.root.data, context={"folder": folder})
    except ValidationError as exc:
        add_problems(document, exc)
        document.raise_problems()
        raise  # not reached: what pydantic refuses always has a problem
    image_service = _image_service(document, entry.image_service)
    _check_defaults(document, entry)
    _check_total(document, entry)
    _check_sites(document, entry)
    document.raise_problems()
    aggregates = _Builder(document, entry.defaults).build(entry.aggregates)
    document.raise_problems()
    return Inventory(path, image_service, aggregates, _sites(entry))


def _without_extensions(root: Node) -> Node:
    """Return the file without the top-level keys ``x-…``, which hold what is used elsewhere by its anchor."""
    kept = {key: entry for key, entry in root.entries.items() if not key.startswith("x-")}
    if len(kept) == len(root.entries):
        return root
    data: Data = {key: node.data for key, (_, _, node) in kept.items()}
    return replace(root, data=data, entries=kept)


def _image_service(document: Document, entry: ImageServiceEntry) -> ImageServiceSettings:
    given = {key: getattr(entry, key) for key in entry.model_fields_set}
    if entry.kind == "directory":
        if entry.path is None:
            document.add(("image_service",), "a directory image service needs 'path'")
        for key in given.keys() - {"kind", "path"}:
            document.add(
                ("image_service", key), "has no meaning for a directory image service", at_key=True
            )
    elif entry.path is not None:
        document.add(("image_service", "path"), "is for 'kind: directory' only", at_key=True)
    return ImageServiceSettings(**given)


def _check_defaults(document: Document, entry: InventoryEntry) -> None:
    """An address belongs to one host: anywhere else it would send all to the same machine."""
    places: list[tuple[tuple[str | int, ...], SettingsEntry]] = [(("defaults",), entry.defaults)]
    places += [(("aggregates", name), aggregate) for name, aggregate in entry.aggregates.items()]
    for keys, settings in places:
        for key in _own_addresses(settings):
            hint = f"say {HOST_PLACEHOLDER} where its name belongs" if key == "endpoint" else None
            document.add((*keys, key), "is for a single host only", hint, at_key=True)


def _own_addresses(settings: SettingsEntry) -> list[str]:
    """Return the keys given whose values can belong to one host only."""
    given = [key for key in _ADDRESSES if getattr(settings, key) is not None]
    if settings.endpoint is not None and HOST_PLACEHOLDER not in settings.endpoint:
        given.append("endpoint")
    return given


def _check_total(document: Document, entry: InventoryEntry) -> None:
    total = 0
    for name, aggregate in entry.aggregates.items():
        for index, host in enumerate(aggregate.hosts):
            count = count_hosts(host.name)
            total += count
            for key in _own_addresses(host) if count > 1 else ():
                keys = ("aggregates", name, "hosts", index, key)
                document.add(keys, f"one address for {count} hosts", at_key=True)
    if total > MAX_HOSTS:
        document.add(
            ("aggregates",),
            f"{total} hosts, more than {MAX_HOSTS}",
            "look for a mistyped range",
            at_key=True,
        )


def _check_sites(document: Document, entry: InventoryEntry) -> None:
    """A site that nobody is in is a typo, and its limits would be for nobody."""
    used = list(dict.fromkeys(one.site for one in entry.aggregates.values() if one.site))
    for name in entry.sites:
        if name not in used:
            hint = nearest(name, used) or "say 'site: NAME' in an aggregate"
            document.add(("sites", name), "no aggregate is in this site", hint, at_key=True)


def _sites(entry: InventoryEntry) -> dict[str, Site]:
    return {
        name: Site(name, site.bandwidth, site.window, site.timezone)
        for name, site in entry.sites.items()
    }


@dataclass(slots=True)
class _Seen:
    """Where a host was named first, and as what."""

    keys: tuple[str | int, ...]
    settings: HostSettings
    cell: str | None
    site: str | None


class _Builder:
    """Makes the aggregates and watches that each host means one thing and each cache has one host."""

    def __init__(self, document: Document, defaults: SettingsEntry) -> None:
        self._document = document
        self._defaults = _given(defaults)
        self._hosts: dict[str, _Seen] = {}
        self._caches: dict[tuple[object, ...], str] = {}

    def build(self, entries: Mapping[str, AggregateEntry]) -> dict[str, Aggregate]:
        """Return aggregate name -> aggregate, in the file's order; problems go to the document."""
        named = {name: self._aggregate_hosts(name, entry) for name, entry in entries.items()}
        return {name: self._aggregate(name, entry, named[name]) for name, entry in entries.items()}

    def _aggregate(self, name: str, entry: AggregateEntry, hosts: list[str]) -> Aggregate:
        # Only now are cell and site known: another aggregate may have given them.
        made = tuple(
            Host(host, name, seen.cell, seen.site, seen.settings)
            for host, seen in ((host, self._hosts[host]) for host in hosts)
        )
        return Aggregate(name, entry.cell, entry.site, made)

    def _aggregate_hosts(self, name: str, aggregate: AggregateEntry) -> list[str]:
        base = self._defaults | _given(aggregate)
        shared = HostSettings(**base)
        names: dict[str, None] = {}
        for index, entry in enumerate(aggregate.hosts):
            keys = ("aggregates", name, "hosts", index)
            given = _given(entry)
            settings = HostSettings(**(base | given)) if given else shared
            for host in self._expand(keys, entry):
                own = _placed(settings, host)
                self._note(host, _Seen(keys, own, aggregate.cell, aggregate.site))
                names[host] = None
        return list(names)

    def _expand(self, keys: tuple[str | int, ...], entry: HostEntry) -> tuple[str, ...]:
        try:
            return expand_hosts(entry.name)
        except ValueError as exc:
            self._document.add(self._document.deepest((*keys, "name")), str(exc))
            return ()

    def _note(self, host: str, new: _Seen) -> None:
        seen = self._hosts.get(host)
        if seen is None:
            self._hosts[host] = new
            self._note_cache(host, new)
            return
        if (seen.settings, seen.cell, seen.site) != (new.settings, new.cell, new.site):
            self._compare(host, seen, new)

    def _compare(self, host: str, seen: _Seen, new: _Seen) -> None:
        first = self._document.where(seen.keys)
        differing = [
            key
            for key in _SETTING_NAMES
            if getattr(seen.settings, key) != getattr(new.settings, key)
        ]
        if differing:
            what = (
                f"the host {host} has other settings here ({', '.join(differing)}) than at {first}"
            )
            self._document.add(new.keys, what, "name it once, or give the same settings")
        for word in ("cell", "site"):
            before, now = getattr(seen, word), getattr(new, word)
            if before is not None and now is not None and before != now:
                what = f"the host {host} is in the {word} {now} here, and in {before} at {first}"
                self._document.add(new.keys, what, f"a host is in one {word} only")
        seen.cell = seen.cell if seen.cell is not None else new.cell
        seen.site = seen.site if seen.site is not None else new.site

    def _note_cache(self, host: str, new: _Seen) -> None:
        other = self._caches.setdefault(_cache_key(host, new.settings), host)
        if other != host:
            first = self._document.where(self._hosts[other].keys)
            what = f"{host} is the same machine and cache as {other} at {first}"
            hint = "name each host once; for several caches on one machine give each its instances_path"
            if new.settings.endpoint:
                hint = (
                    "give each node its own URL, not the balancer's, which is a random one of them"
                )
            self._document.add(new.keys, what, hint)


def _given(entry: SettingsEntry) -> dict[str, Any]:
    """Return what was given, by its name in ``HostSettings``."""
    given = {_RENAMED.get(key, key): getattr(entry, key) for key in entry.model_fields_set}
    return {key: value for key, value in given.items() if key in _SETTING_NAMES}


def _placed(settings: HostSettings, host: str) -> HostSettings:
    """Return the settings with the host's name in its endpoint."""
    if settings.endpoint is None or HOST_PLACEHOLDER not in settings.endpoint:
        return settings
    name = f"[{host}]" if ":" in host else host
    return replace(settings, endpoint=settings.endpoint.replace(HOST_PLACEHOLDER, name))


def _cache_key(host: str, settings: HostSettings) -> tuple[object, ...]:
    """Return what tells one cache from another: how to reach the machine, and where the cache is.

    The Python command belongs to it, since it may enter a container with folders of its own.
    """
    if settings.endpoint:
        url = urlsplit(settings.endpoint.removesuffix("/v2"))
        port = url.port or (443 if url.scheme == "https" else 80)
        return ("endpoint", (url.hostname or "").removesuffix("."), port, url.path.rstrip("/"))
    place = (settings.driver, settings.instances_path, settings.cache_subdirectory, settings.python)
    if settings.transport == "local":
        return ("local", *place)
    address = settings.address or host
    try:
        address = str(ipaddress.ip_address(address))
    except ValueError:
        address = address.lower().removesuffix(".")
    return (address, settings.port or 22, settings.proxy_jump, *place)
