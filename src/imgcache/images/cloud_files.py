"""The files of clouds.yaml: which count, whether they can be trusted, and where in them a key stands.

Source: openstacksdk ``config/loader.py`` (``_load_yaml_json_file``, ``_get_base_cloud_config``,
``_expand_vendor_profile``, ``_get_known_regions``) and ``config/vendors``.
"""

from __future__ import annotations

import os
import stat
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from openstack.config import vendors

from imgcache.errors import ConfigError, Problem
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

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
_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"


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
            (path, root)
            for variable, stem in (
                ("OS_CLIENT_SECURE_FILE", "secure"),
                ("OS_CLIENT_CONFIG_FILE", "clouds"),
            )
            if (path := self._path(variable, stem)) and (root := self._read(path)) is not None
        ]
        self._raise()
        for path, root in self._files:
            self._check_entry(path, root)
        self._raise()
        self._check_profile()
        self._raise()

    def place(self, *keys: str) -> str | None:
        """Return where a key of the cloud's entry stands, or None."""
        return next((place for place, _ in self._nodes(*keys)), None)

    def regions(self) -> tuple[str, ...]:
        """Return the regions that the cloud's entry lists, in order; the first is the default."""
        items: list[yaml.Node] = next((node.value for _, node in self._nodes("regions")), [])
        names = [_find(item, "name")[1] or item for item in items]
        return tuple(str(name.value) for name in names)

    def _nodes(self, *keys: str) -> Iterator[tuple[str, yaml.Node]]:
        """Give a key's place and value in each file that has it."""
        for path, root in self._files:
            at: yaml.Mark | None = None
            node: yaml.Node | None = root
            for key in ("clouds", self._name, *keys):
                at, node = _find(node, key)
            if at is not None and node is not None:
                yield f"{_mark(path, at)}: {'.'.join((printable(self._name), *keys))}", node

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

    def _read(self, path: Path) -> yaml.Node | None:
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
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if root is not None:
                loader.construct_document(
                    root
                )  # refuses tags, and resolves merge keys in the nodes
        except yaml.MarkedYAMLError as error:
            where = _mark(path, error.problem_mark) if error.problem_mark else str(path)
            self._bad(where, f"is not valid YAML: {printable(error.problem or '')}")
            return None
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            self._bad(str(path), f"is not valid YAML: {type(error).__name__}")
            return None
        if isinstance(root, yaml.MappingNode):
            return root
        self._bad(str(path), "must be a mapping with the key clouds")
        return None

    # -------------------------------------------------------------------------------- the cloud's entry

    def _check_entry(self, path: Path, root: yaml.Node) -> None:
        at, clouds = _find(root, "clouds")
        if at is None or clouds is None:
            return
        if not isinstance(clouds, yaml.MappingNode):
            self._bad(f"{_mark(path, at)}: clouds", "must be a mapping of names to clouds")
            return
        at, entry = _find(clouds, self._name)
        if at is None or entry is None:
            return
        where = f"{_mark(path, at)}: {printable(self._name)}"
        if not isinstance(entry, yaml.MappingNode):
            self._bad(where, "must be a mapping", "give it auth: and what else the cloud needs")
            return
        self._check_mapping(path, entry, printable(self._name))

    def _check_mapping(self, path: Path, entry: yaml.MappingNode, name: str) -> None:
        """Check an entry, or the ``values`` of one of its regions."""
        for key, at, node in _items(entry):
            where = f"{_mark(path, at)}: {name}.{key}"
            if key == "auth":
                self._check_auth(path, where, node, f"{name}.auth")
            elif key == "regions":
                self._check_regions(path, where, node, f"{name}.regions")
            elif key in _WORDS and not _is_word(node, key):
                self._bad(where, "must be one value")

    def _check_auth(self, path: Path, where: str, node: yaml.Node, name: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            what = "is empty" if node.tag == _NULL else "must be a mapping"
            self._bad(where, what, "it holds auth_url, username, password, project_name and so on")
            return
        for key, at, value in _items(node):
            where = f"{_mark(path, at)}: {name}.{key}"
            if all(other.tag == _NULL for _, other in self._nodes("auth", key)):
                self._bad(where, "is empty", "give it a value, or remove it")
            elif not _is_word(value, key):
                self._bad(where, "must be one value")
            elif key == "auth_url" and value.tag not in {_NULL, _TEXT}:
                self._bad(where, "must be a URL such as https://keystone.example.net:5000/v3")

    def _check_regions(self, path: Path, where: str, node: yaml.Node, name: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            hint = f"[{printable(node.value)}]" if isinstance(node, yaml.ScalarNode) else "[name]"
            self._bad(where, "must be a list", f"write regions: {hint}")
            return
        for item in node.value:
            keys = {key: value for key, _, value in _items(item)}
            values = keys.get("values")
            if isinstance(item, yaml.ScalarNode) and item.tag != _NULL:
                continue
            if not isinstance(keys.get("name"), yaml.ScalarNode) or set(keys) - {"name", "values"}:
                place = f"{_mark(path, item.start_mark)}: {name}"
                self._bad(place, "each region is a name, or a mapping with name and values")
            elif isinstance(values, yaml.MappingNode):
                self._check_mapping(path, values, f"{name}.values")

    def _check_profile(self) -> None:
        """Refuse a profile that nothing defines: the loader would go on without it."""
        for place, node in (*self._nodes("profile"), *self._nodes("cloud")):
            name = str(node.value)
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
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            return [str(name) for name in content["public-clouds"]]
        except FileNotFoundError:
            continue
        except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError):
            return []
    return []


def _items(node: yaml.Node) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
    """Give key, its place, and value of a mapping; nothing of anything else.

    Dashes count as underscores, as they do to the loader. Later keys win there, so they come first here.
    """
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode):
                yield str(key.value).replace("-", "_"), key.start_mark, value


def _find(node: yaml.Node | None, wanted: str) -> tuple[yaml.Mark | None, yaml.Node | None]:
    for key, value in reversed(node.value) if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in {wanted, wanted.replace("_", "-")}:
            return key.start_mark, value
    return None, None


def _is_word(node: yaml.Node, key: str) -> bool:
    return isinstance(node, yaml.ScalarNode) or (
        key in _LISTS and isinstance(node, yaml.SequenceNode)
    )


def _mark(path: Path, mark: yaml.Mark) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}"
