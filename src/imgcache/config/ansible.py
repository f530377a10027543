"""Ansible inventories: what ``ansible-inventory --list`` prints is taken over, other forms are recognised.

Groups become aggregates, and a few variables become settings. All of ``ansible_*`` here is what Ansible's
ssh, local and sudo plugins read. Source: ansible-core ``cli/inventory.py`` and ``plugins/connection/ssh.py``,
``plugins/become/sudo.py``, ``constants`` of 2.19.
"""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from imgcache.config.nodesets import check_host_name
from imgcache.config.parts import Part
from imgcache.config.problems import described, nearest
from imgcache.config.schema import AggregateEntry, HostEntry, PartEntry
from imgcache.document import Document, Node, parse_document
from imgcache.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from imgcache.config.parts import Keys

#: Setting -> variables; the first that is there counts. Older names of Ansible's own come last.
_VARIABLES = {
    "address": ("ansible_host", "ansible_ssh_host"),
    "port": ("ansible_port", "ansible_ssh_port"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "ssh_key": ("ansible_ssh_private_key_file", "ansible_private_key_file"),
    "python": ("ansible_python_interpreter",),
}
#: A variable of this name gives any other setting, and wins: ``imgcache_site``, ``imgcache_nova_conf``.
_OWN_PREFIX = "imgcache_"
_OWN_SETTINGS = tuple(key for key in HostEntry.model_fields if key != "name")
_SSH_ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
_CONNECTIONS = {
    "ssh": "ssh",
    "smart": "ssh",
    "paramiko": "ssh",
    "paramiko_ssh": "ssh",
    "local": "local",
}
_TRUE = {"true", "yes", "on", "y", "t", "1", "1.0"}
_SECTION = re.compile(r"^[ ]*\[[\w.-]+(:(children|vars|hosts))?\]\s*([#;].*)?$", re.MULTILINE)
_INI_VARIABLE = re.compile(r"^[^#;\s]\S*\s.*\bansible_\w+\s*=", re.MULTILINE)
_LIMIT_HINT = "leave out what is no compute host: ansible-inventory --list --limit GROUP"


# -------------------------------------------------------------------------------- what is no such list


def refuse_other_ansible(
    path: Path, content: bytes, document: Document | None, error: ConfigError | None
) -> None:
    """Refuse what is an Ansible inventory of another form.

    Args:
        path: the file.
        content: its bytes.
        document: what it is as YAML; None: it is none.
        error: why it is none.

    Raises:
        ConfigError: it is one; says what to run.
    """
    root = document.root if document else Node(0, 0, None)
    line, form = _form(content.decode("utf-8", "replace"), root)
    if form:
        hint = f"give what Ansible makes of it: ansible-inventory -i {path} --list > inventory.json"
        problem = Problem(f"{path}:{line}:1", f"this is an Ansible inventory ({form})", hint)
        message = f"the inventory {path} cannot be read"
        raise ConfigError(message, (problem,)) from error


def _form(text: str, root: Node) -> tuple[int, str | None]:
    """Return the line that shows that this is an Ansible inventory, and what kind of; or None."""
    if not isinstance(root.data, dict):
        found = _SECTION.search(text) or _INI_VARIABLE.search(text)
        return (text.count("\n", 0, found.start()) + 1, "INI") if found else (0, None)
    for key, (line, _, node) in root.entries.items():
        if key == "plugin" and isinstance(node.data, str):
            return line, "the configuration of a plugin"
        if _is_group(key, node.data):
            return line, "YAML"
    return 0, None


def _is_group(name: str, value: object) -> bool:
    if name == "aggregates" or not isinstance(value, dict):
        return False
    words = {"hosts", "children", "vars"}
    return isinstance(value.get("hosts"), dict) or (
        name in {"all", "ungrouped"} and bool(words & value.keys())
    )


# --------------------------------------------------------------------------------------- the list itself


def read_ansible(path: Path, content: bytes, title: str) -> Part | None:
    """Return what an Ansible inventory says; None when this is not what ``ansible-inventory --list`` prints.

    Problems are noted in the part's document, in the file's own words.
    """
    if not content.lstrip().startswith(b"{"):
        return None
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None
    meta = data.get("_meta") if isinstance(data, dict) else None
    if not isinstance(meta, dict) or not isinstance(meta.get("hostvars"), dict):
        return None
    reader = _Reader(path, data, meta["hostvars"])
    entry = PartEntry.model_construct(_fields_set={"aggregates"}, aggregates=reader.aggregates())
    # Only for their places is the whole file read once more.
    root = _positions(path, content) if reader.problems else Node(0, 0, {})
    document = Document(path, title, root)
    for keys, what, hint in reader.problems:
        document.add(keys, what, hint)
    keys_of: dict[str, Keys] = {name: ("_meta", "hostvars", name) for name in reader.hosts}
    return Part(document, entry, keys_of)


def _positions(path: Path, content: bytes) -> Node:
    try:
        return parse_document(path, content).root
    except ConfigError:  # it is too large for that
        return Node(0, 0, {})


class _Reader:
    """Takes over groups and hosts, each host once, and collects problems."""

    def __init__(self, path: Path, groups: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
        self._folder = path.absolute().parent
        self._groups = groups
        self._variables = variables
        self.hosts: dict[str, HostEntry | None] = {}
        self.problems: list[tuple[Keys, str, str | None]] = []

    def aggregates(self) -> dict[str, AggregateEntry]:
        """Return aggregate name -> aggregate; groups stand before those that they are children of."""
        made: dict[str, AggregateEntry] = {}
        for name in self._in_order():
            if name != "all":
                members = [self._host(host, name) for host in self._members(name)]
                hosts = [host for host in members if host is not None]
                made[name] = AggregateEntry.model_construct(_fields_set={"hosts"}, hosts=hosts)
        return made

    def _in_order(self) -> list[str]:
        """Return the groups' names, so that the first that names a host is the one that is nearest to it."""
        order: dict[str, None] = {}
        names = [name for name in self._groups if name != "_meta"]
        pending = [(name, False) for name in reversed(names)]
        begun: set[str] = set()
        while pending:
            name, done = pending.pop()
            if done:
                order[name] = None
            elif name not in begun and self._is_group(name):
                begun.add(name)
                pending.append((name, True))
                pending += [(child, False) for child in reversed(self._list(name, "children"))]
        return list(order)

    def _is_group(self, name: str) -> bool:
        # Groups without hosts are named as children, and listed nowhere.
        group = self._groups.get(name)
        if group is None or isinstance(group, dict):
            if group and "vars" in group:
                hint = "leave out --export: without it, each host has its groups' variables"
                self.problems.append(((name, "vars"), "was made with --export", hint))
            return group is not None
        self.problems.append(((name,), "must be a group: hosts, children", None))
        return False

    def _list(self, name: str, key: str) -> list[str]:
        words = self._groups.get(name, {}).get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            self.problems.append(((name, key), "must be a list of names", None))
            return []
        return words

    def _members(self, name: str) -> list[str]:
        """Return the hosts of a group and of its children."""
        hosts: dict[str, None] = {}
        pending, seen = [name], {name}
        while pending:
            group = pending.pop(0)
            hosts.update(dict.fromkeys(self._list(group, "hosts")))
            children = [one for one in self._list(group, "children") if one not in seen]
            known = [one for one in children if isinstance(self._groups.get(one), dict)]
            seen.update(known)
            pending += known
        return list(hosts)

    def _host(self, name: str, group: str) -> HostEntry | None:
        if name not in self.hosts:
            self.hosts[name] = self._made(name, group)
        return self.hosts[name]

    def _made(self, name: str, group: str) -> HostEntry | None:
        keys: Keys = ("_meta", "hostvars", name)
        given = self._variables.get(name, {})
        try:
            check_host_name(name)
        except ValueError as exc:
            self.problems.append(((group, "hosts"), str(exc), _LIMIT_HINT))
            return None
        if not isinstance(given, dict):
            self.problems.append((keys, "must be the variables of a host", None))
            return None
        before = len(self.problems)
        settings: dict[str, Any] = {"name": name}
        origin: dict[str, str] = {}
        for setting, variable, value in self._settings(keys, given):
            if isinstance(value, str) and ("{{" in value or "{%" in value):
                what = "is a template, which ansible-inventory does not resolve"
                hint = f"give the value, or {_OWN_PREFIX}{setting}"
                self.problems.append(((*keys, variable), what, hint))
            settings[setting], origin[setting] = _text(value), variable
        if len(self.problems) > before:
            return None
        try:
            return HostEntry.model_validate(settings, context={"folder": self._folder})
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                setting = str(error["loc"][0])
                place = (*keys, origin.get(setting, setting))
                self.problems.append((place, described(error), None))
            return None

    def _settings(self, keys: Keys, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        """Give setting, variable that says so, and value; later ones win."""
        for setting, variables in _VARIABLES.items():
            variable = next((one for one in variables if one in given), None)
            if variable and not (setting == "python" and _is_auto(given[variable])):
                yield setting, variable, given[variable]
        yield from self._connection(keys, given)
        yield from self._become(keys, given)
        for variable in _SSH_ARGUMENTS:
            yield from self._jump(keys, variable, given.get(variable, ""))
        for variable, value in given.items():
            if variable.startswith(_OWN_PREFIX):
                setting = variable.removeprefix(_OWN_PREFIX)
                if setting in _OWN_SETTINGS:
                    yield setting, variable, value
                else:
                    hint = nearest(setting, _OWN_SETTINGS)
                    self.problems.append(((*keys, variable), "unknown setting", hint))

    def _connection(self, keys: Keys, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        if "ansible_connection" not in given:
            return
        word = str(given["ansible_connection"]).removeprefix("ansible.builtin.")
        if word in _CONNECTIONS:
            yield "transport", "ansible_connection", _CONNECTIONS[word]
        else:
            what = f"hosts are reached by ssh, or are this machine (local), not by {word}"
            self.problems.append(((*keys, "ansible_connection"), what, _LIMIT_HINT))

    def _become(self, keys: Keys, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        variable = next((one for one in ("ansible_become", "ansible_sudo") if one in given), None)
        if variable is None:
            return
        if str(given[variable]).lower() not in _TRUE:
            yield "become", variable, "none"
            return
        method = str(given.get("ansible_become_method", "sudo")).removeprefix("ansible.builtin.")
        if method != "sudo":
            what = f"{method} is not supported: the only way is sudo"
            hint = f"{_OWN_PREFIX}become: none, with a user who may write to the cache"
            self.problems.append(((*keys, "ansible_become_method"), what, hint))
            return
        yield "become", variable, "sudo"
        user = next(
            (one for one in ("ansible_become_user", "ansible_sudo_user") if one in given), None
        )
        # Ansible's default is root.
        yield "become_user", user or variable, given[user] if user else "root"

    def _jump(self, keys: Keys, variable: str, value: Any) -> Iterator[tuple[str, str, Any]]:
        """Give what arguments of ssh say about the way to a host; the others are about Ansible's own use."""
        try:
            words = shlex.split(str(value))
        except ValueError:
            words = [str(value)]
        for option, argument in _options(words):
            if option == "proxyjump":
                yield "proxy_jump", variable, argument
            elif option == "proxycommand" and argument.lower() != "none":
                hint = "write -J HOST, or put it into ~/.ssh/config, which imgcache reads"
                what = "a ProxyCommand in Ansible's arguments is not taken over"
                self.problems.append(((*keys, variable), what, hint))


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Give the options of an ssh command line about how a host is reached: keyword, value."""
    for word, after in pairwise([*words, ""]):
        if word.startswith("-J"):
            yield "proxyjump", word[2:] or after
        elif word.startswith("-o"):
            keyword, _, value = (word[2:] or after).strip().replace("=", " ", 1).partition(" ")
            yield keyword.lower(), value.strip()


def _is_auto(value: Any) -> bool:
    return str(value).startswith("auto")


def _text(value: Any) -> Any:
    """Return a value as YAML has it in an inventory: scalars as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return [_text(one) for one in value]
    return str(value) if isinstance(value, int | float) else value
