"""The files of clouds.yaml: which count, whether they can be trusted, and where in them a key stands.

Source: openstacksdk ``config/loader.py`` (``_load_yaml_json_file``, ``_get_base_cloud_config``,
``_expand_vendor_profile``, ``_get_known_regions``) and ``config/vendors``.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from openstack.config import vendors

from imgcache.document import parse_document
from imgcache.errors import ConfigError, Problem
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.document import Document, Node

#: Keys of an entry, or of ``auth:``, whose value may be a list, too.
_LISTS = frozenset({"auth_methods", "interface", "region_name"})
#: Keys of an entry that are used here and must be one value.
_WORDS = frozenset(
    {
        "auth_type",
        "cacert",
        "cert",
        "cloud",
        "image_endpoint_override",
        "image_interface",
        "image_region_name",
        "insecure",
        "interface",
        "key",
        "profile",
        "region_name",
        "verify",
    }
)


def config_folders() -> tuple[Path, ...]:
    """Return where clouds.yaml is looked for: never the working directory, unlike openstacksdk."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    folders = (home / "openstack", Path("~/.config/openstack").expanduser(), Path("/etc/openstack"))
    return tuple(dict.fromkeys(folders))


def candidates(stem: str) -> list[str]:
    """Return the paths that a file may have; the first that exists counts."""
    return [
        str(folder / f"{stem}.{end}")
        for folder in config_folders()
        for end in ("yaml", "yml", "json")
    ]


class CloudFiles:
    """The files that say what one cloud is; places in them are ``PATH:LINE:COLUMN: KEY``."""

    def __init__(self, name: str) -> None:
        """Read the files.

        Raises:
            ConfigError: a file is missing, damaged or not to be trusted, or the cloud's entry makes no sense.
        """
        self._name = name
        self._problems: list[Problem] = []
        #: A secret overrides what clouds.yaml says, so its file comes first.
        self._files = [
            document
            for variable, stem in (
                ("OS_CLIENT_SECURE_FILE", "secure"),
                ("OS_CLIENT_CONFIG_FILE", "clouds"),
            )
            if (path := self._path(variable, stem)) and (document := self._read(path)) is not None
        ]
        self._raise()
        for document in self._files:
            self._check_entry(document)
        self._raise()
        self._check_profile()
        self._raise()

    def place(self, *keys: str) -> str | None:
        """Return where a key of the cloud's entry stands, or None."""
        return next((place for place, _ in self._nodes(*keys)), None)

    def regions(self) -> tuple[str, ...]:
        """Return the regions that the cloud's entry lists, in order; the first is the default."""
        items = next((node.items for _, node in self._nodes("regions")), ())
        names = [found.node if (found := _find(item, "name")) else item for item in items]
        return tuple(str(name.data) for name in names)

    def _nodes(self, *keys: str) -> Iterator[tuple[str, Node]]:
        """Give a key's place and value in each file that has it."""
        for document in self._files:
            node, found = document.root, None
            for key in ("clouds", self._name, *keys):
                found = _find(node, key)
                if found is None:
                    break
                node = found.node
            if found is not None:
                yield f"{found.place(document)}: {'.'.join((printable(self._name), *keys))}", node

    def _raise(self) -> None:
        if self._problems:
            message = "the cloud configuration cannot be used"
            raise ConfigError(message, self._problems)

    def _bad(self, where: str, what: str, hint: str | None = None) -> None:
        self._problems.append(Problem(where, what, hint))

    # ------------------------------------------------------------------------------------ whole files

    def _path(self, variable: str, stem: str) -> Path | None:
        """Return the file that counts.

        The loader passes over damaged files, and would then say that there is no such cloud.
        """
        named = os.environ.get(variable)
        if named and not Path(named).exists():
            self._bad(named, f"there is no such file, but {variable} names it")
            return None
        paths = [*([named] if named else []), *candidates(stem)]
        return next((Path(path) for path in paths if Path(path).exists()), None)

    def _read(self, path: Path) -> Document | None:
        """Return a file's mapping; None, and a problem noted, when it cannot be used."""
        try:
            status = path.stat()
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._bad(str(path), f"cannot be read: {printable(str(error))}")
            return None
        foreign = os.geteuid() != 0 and status.st_uid not in {0, os.geteuid()}
        if foreign or status.st_mode & stat.S_IWOTH:
            what = "others can write it, and so say where passwords are sent"
            self._bad(str(path), what, "chmod go-w")
            return None
        try:
            document = parse_document(path, text.encode(), as_loaders=True)
        except ConfigError as error:
            self._problems += error.problems
            return None
        if isinstance(document.root.data, dict):
            return document
        self._bad(str(path), "must be a mapping with the key clouds")
        return None

    # -------------------------------------------------------------------------------- the cloud's entry

    def _check_entry(self, document: Document) -> None:
        clouds = _find(document.root, "clouds")
        if clouds is None:
            return
        if not isinstance(clouds.node.data, dict):
            where = f"{clouds.place(document)}: clouds"
            self._bad(where, "must be a mapping of names to clouds")
            return
        entry = _find(clouds.node, self._name)
        if entry is None:
            return
        if not isinstance(entry.node.data, dict):
            where = f"{entry.place(document)}: {printable(self._name)}"
            self._bad(where, "must be a mapping", "give it auth: and what else the cloud needs")
            return
        self._check_mapping(document, entry.node, printable(self._name))

    def _check_mapping(self, document: Document, entry: Node, name: str) -> None:
        """Check an entry, or the ``values`` of one of its regions."""
        for key, found in _items(entry):
            where = f"{found.place(document)}: {name}.{key}"
            if key == "auth":
                self._check_auth(document, where, found.node, f"{name}.auth")
            elif key == "regions":
                self._check_regions(document, where, found.node, f"{name}.regions")
            elif key in _WORDS and not _is_word(found.node, key):
                self._bad(where, "must be one value")

    def _check_auth(self, document: Document, where: str, node: Node, name: str) -> None:
        if not isinstance(node.data, dict):
            what = "is empty" if node.data is None else "must be a mapping"
            self._bad(where, what, "it holds auth_url, username, password, project_name and so on")
            return
        for key, found in _items(node):
            where = f"{found.place(document)}: {name}.{key}"
            if all(other.data is None for _, other in self._nodes("auth", key)):
                self._bad(where, "is empty", "give it a value, or remove it")
            elif not _is_word(found.node, key):
                self._bad(where, "must be one value")
            elif key == "auth_url" and "://" not in str(found.node.data):
                self._bad(where, "must be a URL such as https://keystone.example.net:5000/v3")

    def _check_regions(self, document: Document, where: str, node: Node, name: str) -> None:
        if not isinstance(node.data, list):
            hint = f"[{printable(node.data)}]" if isinstance(node.data, str) else "[name]"
            self._bad(where, "must be a list", f"write regions: {hint}")
            return
        for item in node.items:
            keys = {key: found.node for key, found in _items(item)}
            values = keys.get("values")
            if isinstance(item.data, str):
                continue
            named = "name" in keys and isinstance(keys["name"].data, str | None)
            if not named or set(keys) - {"name", "values"}:
                place = f"{document.path}:{item.line}:{item.column}: {name}"
                self._bad(place, "each region is a name, or a mapping with name and values")
            elif values is not None and isinstance(values.data, dict):
                self._check_mapping(document, values, f"{name}.values")

    def _check_profile(self) -> None:
        """Refuse a profile that nothing defines: the loader would go on without it."""
        for place, node in (*self._nodes("profile"), *self._nodes("cloud")):
            name = str(node.data)
            if "@" in name:
                # said without the value: it may hold a password
                self._bad(place, "must not hold a user or password")
            elif "://" not in name and name not in (
                known := [*vendors.profiles(), *_own_profiles()]
            ):
                near = get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(known))}"
                )
                self._bad(place, f"there is no profile {printable(name)}", hint)


def _own_profiles() -> list[str]:
    """Return the profiles of the operator's own ``clouds-public.yaml``."""
    for path in candidates("clouds-public"):
        try:
            document = parse_document(Path(path), Path(path).read_bytes(), as_loaders=True)
        except FileNotFoundError:
            continue
        except (OSError, ConfigError):
            return []
        clouds = document.root.entries.get("public-clouds")
        return list(clouds[2].entries) if clouds else []
    return []


@dataclass(frozen=True, slots=True)
class _Found:
    """A key's value and where the key stands."""

    line: int
    column: int
    node: Node

    def place(self, document: Document) -> str:
        return f"{document.path}:{self.line}:{self.column}"


def _items(node: Node) -> Iterator[tuple[str, _Found]]:
    """Give key and value of a mapping's entries; dashes count as underscores, as they do to the loader.

    Later keys win there, so they come first here.
    """
    for key, (line, column, value) in reversed(node.entries.items()):
        yield key.replace("-", "_"), _Found(line, column, value)


def _find(node: Node, wanted: str) -> _Found | None:
    names = {wanted, wanted.replace("_", "-")}
    return next(
        (_Found(*found) for key, found in reversed(node.entries.items()) if key in names), None
    )


def _is_word(node: Node, key: str) -> bool:
    return isinstance(node.data, str | None) or (key in _LISTS and isinstance(node.data, list))
