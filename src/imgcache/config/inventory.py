"""From the inventory's files to model types: checked, laid over each other, node sets expanded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields, replace
from glob import escape, glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imgcache.config.ansible import read_ansible, refuse_other_ansible
from imgcache.config.fields import HOST_PLACEHOLDER
from imgcache.config.files import expand_home, read_guarded
from imgcache.config.nodesets import MAX_HOSTS, count_hosts, expand_hosts
from imgcache.config.parts import Part, plain_settings, validated
from imgcache.config.problems import nearest
from imgcache.config.schema import (
    AggregateEntry,
    HostEntry,
    ImageServiceEntry,
    InventoryEntry,
    PartEntry,
    SettingsEntry,
)
from imgcache.document import Document, Node, parse_document, raise_problems
from imgcache.errors import ConfigError
from imgcache.model import Aggregate, Host, HostSettings, ImageServiceSettings, Inventory, Site
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgcache.config.parts import Keys

#: Names in the file that differ from ``HostSettings``: there without a unit, since the value has one.
_RENAMED = {"reserve": "reserve_bytes"}
_ADDRESSES = ("address", "relay_address")
_SETTING_NAMES = tuple(field.name for field in fields(HostSettings))


def parse_inventory(
    path: Path,
    content: bytes,
    *,
    read: Callable[[Path], bytes] = read_guarded,
    drop_ins: Sequence[Path] = (),
) -> Inventory:
    """Make an inventory of a file's bytes; relative paths in it are relative to the file's folder.

    Args:
        path: the main file's.
        content: the main file's.
        read: returns the bytes of another file that it includes.
        drop_ins: files to include whether it says so or not.

    Raises:
        ConfigError: lists every problem, each as ``file:line:column: key``.
    """
    title = f"the inventory {path}"
    parts, main = [], InventoryEntry()
    document = _parse(path, content, title)
    if isinstance(document, Part):
        parts.append(document)
        document = Document(path, title, Node(0, 0, {}))
    else:
        main = validated(document, InventoryEntry) or main
        parts.append(Part(document, main))
    patterns = [(("include", index), pattern) for index, pattern in enumerate(main.include)]
    parts += _included(document, patterns, drop_ins, read)
    documents = [part.document for part in parts]
    raise_problems(documents)
    image_service = _image_service(document, main.image_service)
    _check_aggregates(parts)
    for part in parts:
        _check_defaults(part)
    _check_total(parts)
    _check_sites(parts)
    raise_problems(documents)
    aggregates = _Builder(plain_settings(main.defaults)).build(parts)
    raise_problems(documents)
    return Inventory(path, image_service, aggregates, _sites(parts))


def _parse(path: Path, content: bytes, title: str) -> Document | Part:
    """Return a YAML file's document, or what an Ansible inventory says.

    Raises:
        ConfigError: it is neither.
    """
    found = read_ansible(path, content, title)
    if found is not None:
        return found
    try:
        document = parse_document(path, content, title=title)
    except ConfigError as exc:
        refuse_other_ansible(path, content, None, exc)
        raise
    refuse_other_ansible(path, content, document, None)
    return document


def _included(
    main: Document,
    patterns: Sequence[tuple[Keys, str]],
    drop_ins: Sequence[Path],
    read: Callable[[Path], bytes],
) -> list[Part]:
    """Return the parts that a pattern names, each file once, in the order of the patterns and names."""
    folder = escape(str(main.path.absolute().parent))
    paths: dict[Path, None] = {}
    for keys, pattern in patterns:
        expanded = str(Path(folder) / expand_home(Path(pattern)))
        found = sorted(glob(expanded))  # noqa: PTH207 - a pattern may be absolute
        if not found and not has_magic(pattern):
            main.add(keys, f"there is no file {printable(expanded)}")
        paths.update(dict.fromkeys(Path(one) for one in found))
    paths.update(dict.fromkeys(drop_ins))
    paths.pop(main.path.absolute(), None)
    parts = []
    for path in paths:
        try:
            document = _parse(path, read(path), main.title)
        except ConfigError as exc:
            main.problems += exc.problems
            continue
        if isinstance(document, Part):
            parts.append(document)
        else:
            parts.append(Part(document, validated(document, PartEntry) or PartEntry()))
    return parts


def _check_aggregates(parts: Sequence[Part]) -> None:
    """Each is named once, in all files, and there is one at least."""
    first: dict[tuple[str, str], Part] = {}
    for part in parts:
        for kind, names in (("aggregates", part.entry.aggregates), ("sites", part.entry.sites)):
            for name in names:
                other = first.setdefault((kind, name), part)
                if other is not part:
                    where = other.document.where((kind, name), at_key=True)
                    what = f"given twice, first at {where}"
                    part.document.add((kind, name), what, at_key=True)
    if not any(part.entry.aggregates for part in parts):
        document = parts[0].document
        if "aggregates" in document.root.entries:
            document.add(("aggregates",), "must not be empty")
        else:
            document.add((), "'aggregates' is missing")


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


def _check_defaults(part: Part) -> None:
    """An address belongs to one host: anywhere else it would send all to the same machine."""
    places: list[tuple[Keys, SettingsEntry]] = [(("defaults",), part.entry.defaults)]
    places += [(("aggregates", name), one) for name, one in part.entry.aggregates.items()]
    for keys, settings in places:
        for key in _own_addresses(settings):
            hint = f"say {HOST_PLACEHOLDER} where its name belongs" if key == "endpoint" else None
            part.document.add((*keys, key), "is for a single host only", hint, at_key=True)


def _own_addresses(settings: SettingsEntry) -> list[str]:
    """Return the keys given whose values can belong to one host only."""
    given = [key for key in _ADDRESSES if getattr(settings, key) is not None]
    if settings.endpoint is not None and HOST_PLACEHOLDER not in settings.endpoint:
        given.append("endpoint")
    return given


def _check_total(parts: Sequence[Part]) -> None:
    total = 0
    for part in parts:
        for name, aggregate in part.entry.aggregates.items():
            for index, host in enumerate(aggregate.hosts):
                count = count_hosts(host.name)
                total += count
                for key in _own_addresses(host) if count > 1 else ():
                    what = f"one address for {count} hosts"
                    part.document.add((*part.place(name, index), key), what, at_key=True)
    if total > MAX_HOSTS:
        what = f"{total} hosts, more than {MAX_HOSTS}"
        parts[0].document.add(("aggregates",), what, "look for a mistyped range", at_key=True)


def _check_sites(parts: Sequence[Part]) -> None:
    """A site that nobody is in is a typo, and its limits would be for nobody."""
    aggregates = [one for part in parts for one in part.entry.aggregates.values()]
    named = [one.site for one in aggregates]
    named += [host.site for one in aggregates for host in one.hosts]
    used = [site for site in dict.fromkeys(named) if site]
    for part in parts:
        for name in part.entry.sites:
            if name not in used:
                hint = nearest(name, used) or "say 'site: NAME' in an aggregate"
                what = "no aggregate is in this site"
                part.document.add(("sites", name), what, hint, at_key=True)


def _sites(parts: Sequence[Part]) -> dict[str, Site]:
    return {
        name: Site(name, site.bandwidth, site.window, site.timezone)
        for part in parts
        for name, site in part.entry.sites.items()
    }


@dataclass(slots=True)
class _Seen:
    """Where a host was named first, and as what."""

    document: Document
    keys: Keys
    settings: HostSettings
    cell: str | None
    site: str | None

    def where(self) -> str:
        return self.document.where(self.keys)

    def add(self, what: str, hint: str) -> None:
        self.document.add(self.keys, what, hint)


class _Builder:
    """Makes the aggregates and watches that each host means one thing and each cache has one host."""

    def __init__(self, defaults: dict[str, Any]) -> None:
        self._defaults = defaults
        self._hosts: dict[str, _Seen] = {}
        self._caches: dict[tuple[object, ...], str] = {}

    def build(self, parts: Sequence[Part]) -> dict[str, Aggregate]:
        """Return aggregate name -> aggregate, in the files' order; problems go to the documents."""
        named = [
            (name, entry, self._aggregate_hosts(part, name, entry))
            for part in parts
            for name, entry in part.entry.aggregates.items()
        ]
        return {name: self._aggregate(name, entry, hosts) for name, entry, hosts in named}

    def _aggregate(self, name: str, entry: AggregateEntry, hosts: list[str]) -> Aggregate:
        # Only now are cell and site known: another aggregate may have given them.
        made = tuple(
            Host(host, name, seen.cell, seen.site, seen.settings)
            for host, seen in ((host, self._hosts[host]) for host in hosts)
        )
        return Aggregate(name, entry.cell, entry.site, made)

    def _aggregate_hosts(self, part: Part, name: str, aggregate: AggregateEntry) -> list[str]:
        base = self._defaults | plain_settings(part.entry.defaults) | plain_settings(aggregate)
        shared = _settings(base)
        names: dict[str, None] = {}
        for index, entry in enumerate(aggregate.hosts):
            keys = part.place(name, index)
            given = plain_settings(entry)
            settings = _settings(base | given) if len(given) > 1 else shared
            cell, site = entry.cell or aggregate.cell, entry.site or aggregate.site
            for host in self._expand(part.document, keys, entry):
                own = _placed(settings, host)
                self._note(host, _Seen(part.document, keys, own, cell, site))
                names[host] = None
        return list(names)

    def _expand(self, document: Document, keys: Keys, entry: HostEntry) -> tuple[str, ...]:
        try:
            return expand_hosts(entry.name)
        except ValueError as exc:
            document.add(document.deepest((*keys, "name")), str(exc))
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
        first = seen.where()
        differing = [
            key
            for key in _SETTING_NAMES
            if getattr(seen.settings, key) != getattr(new.settings, key)
        ]
        if differing:
            what = (
                f"the host {host} has other settings here ({', '.join(differing)}) than at {first}"
            )
            new.add(what, "name it once, or give the same settings")
        for word in ("cell", "site"):
            before, now = getattr(seen, word), getattr(new, word)
            if before is not None and now is not None and before != now:
                what = f"the host {host} is in the {word} {now} here, and in {before} at {first}"
                new.add(what, f"a host is in one {word} only")
        seen.cell = seen.cell if seen.cell is not None else new.cell
        seen.site = seen.site if seen.site is not None else new.site

    def _note_cache(self, host: str, new: _Seen) -> None:
        other = self._caches.setdefault(_cache_key(host, new.settings), host)
        if other != host:
            first = self._hosts[other].where()
            what = f"{host} is the same machine and cache as {other} at {first}"
            hint = "name each host once; for several caches on one machine give each its instances_path"
            if new.settings.endpoint:
                hint = (
                    "give each node its own URL, not the balancer's, which is a random one of them"
                )
            new.add(what, hint)


def _settings(given: Mapping[str, Any]) -> HostSettings:
    renamed = {_RENAMED.get(key, key): value for key, value in given.items()}
    return HostSettings(**{key: renamed[key] for key in _SETTING_NAMES if key in renamed})


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
