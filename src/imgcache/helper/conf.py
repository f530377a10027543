"""Reads the settings that matter here from nova.conf, as nova-compute would.

Source: oslo.config ``iniparser.py``, ``cfg.py`` (``find_config_files``, ``_Namespace``, ``_substitute``);
nova ``conf/libvirt.py``, ``conf/imagecache.py``, ``conf/compute.py``, ``conf/paths.py``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import errno
import os
import stat

from .core import Failure, user_name

#: What the inventory may give instead.
WANTED = ("instances_path", "cache_subdirectory", "force_raw_images", "images_type")
#: setting -> (its names, newest first; default). A later file wins, then a newer name.
OPTIONS = {
    "instances_path": ((("DEFAULT", "instances_path"),), "$state_path/instances"),
    "state_path": ((("DEFAULT", "state_path"),), "/var/lib/nova"),
    "cache_subdirectory": (
        (("image_cache", "subdirectory_name"), ("DEFAULT", "image_cache_subdirectory_name")),
        "_base",
    ),
    "force_raw_images": ((("DEFAULT", "force_raw_images"),), "true"),
    "use_cow_images": ((("DEFAULT", "use_cow_images"),), "true"),
    "images_type": ((("libvirt", "images_type"),), "default"),
}
_BOOLEANS = {
    "true": True,
    "1": True,
    "on": True,
    "yes": True,
    "false": False,
    "0": False,
    "off": False,
    "no": False,
}
#: What Nova takes; anything else ends nova-compute at its start. Source: nova ``conf/libvirt.py``.
_IMAGES_TYPES = ("raw", "flat", "qcow2", "lvm", "rbd", "ploop", "default")
#: Where deployments that run Nova in a container keep its files on the host.
#: Source: TripleO and EDPM, kolla-ansible, Sunbeam's snap.
_CONTAINER_FILES = (
    "/var/lib/config-data/puppet-generated/nova_libvirt/etc/nova/nova.conf",
    "/var/lib/config-data/*/etc/nova/nova.conf",
    "/var/lib/config-data/*/*/etc/nova/nova.conf",
    "/var/lib/openstack/config/nova",
    "/etc/kolla/nova-compute/nova.conf",
    "/var/snap/openstack-hypervisor/common/etc/nova/nova.conf",
)
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")


#: Files read that someone else than root can write -> who owns them.
_FOREIGN = {}  # type: dict[str, int]


def find_files():
    """Return the paths that nova-compute reads when its command line names none; later ones win."""
    found = []
    for extension in (".conf", ".conf.d"):
        for program in ("nova", "nova-compute"):
            paths = [os.path.join(folder, program + extension) for folder in _folders()]
            found.extend([path for path in paths if os.path.exists(path)][:1])
    return found


def _folders():
    home = os.path.expanduser("~nova")
    if home.startswith("~"):
        home = os.path.expanduser("~")
    return (os.path.join(home, ".nova"), home, "/etc/nova", "/etc")


def _no_files(named):
    """Return the failure of a host that shows no nova.conf: Nova's defaults say nothing about it then."""
    import glob  # noqa: PLC0415 - only when something is wrong

    if named:
        what = "nova_conf names no file that is there (%s)" % " ".join(named)[:300]
    else:
        what = "there is no nova.conf in %s" % ", ".join(_folders())
        hidden = [
            path
            for path in _folders()
            if os.path.isdir(path) and not os.access(path, os.X_OK, effective_ids=True)
        ]
        if hidden:
            what += " (user %s may not look into %s)" % (user_name(), ", ".join(hidden))
    found = [path for pattern in _CONTAINER_FILES for path in glob.glob(pattern)]
    if found:
        advice = (
            "Nova seems to run in a container: give nova_conf: %s in the inventory" % found[0][:300]
        )
    else:
        advice = "give nova_conf, or instances_path and images_type, in the inventory"
    message = (
        "%s, so where Nova keeps images, and whether it uses them (images_type), is not known; %s"
    )
    return Failure("config", message % (what, advice))


def expand(paths):
    """Return ``paths`` with each folder replaced by its ``*.conf``, sorted."""
    for path in paths:
        if os.path.isdir(path):
            for name in sorted(os.listdir(path)):
                if name.endswith(".conf") and not name.startswith("."):
                    yield os.path.join(path, name)
        else:
            yield path


def _open_plain(path, flags):
    """Open a regular file; a pipe or device in its place would be waited for, or be changed by a look."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


class Conf:
    """What the configuration files say; section -> option -> (value, path), newest file first."""

    def __init__(self, paths):
        self.files = []
        for path in expand(paths):
            try:
                with open(
                    path, encoding="utf-8", errors="surrogateescape", opener=_open_plain
                ) as lines:
                    status = os.fstat(lines.fileno())
                    if status.st_uid or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                        _FOREIGN[path] = status.st_uid
                    self.files.insert(0, (path, parse(path, lines)))
            except OSError as error:
                raise Failure(
                    "config",
                    "cannot read %s as user %s: %s; give instances_path, cache_subdirectory, "
                    "force_raw_images and images_type in the inventory, or log in as a user that may read it"
                    % (path, user_name(), error.strerror),
                    path=path,
                ) from error

    def lookup(self, names):
        """Return (value, path) of the first of ``names`` in the newest file that has one, else None."""
        for path, sections in self.files:
            for section, option in names:
                value = sections.get(section, {}).get(option)
                if value is not None:
                    return value, path
        return None

    def get(self, setting):
        """Return (value with its variables replaced, path or ``default``)."""
        names, default = OPTIONS[setting]
        value, path = self.lookup(names) or (default, "default")
        return self.substitute(value, names[0][0], setting, 0), path

    def substitute(self, value, section, setting, depth):
        """Replace ``$name``, ``${name}`` and ``$section.name``; ``$$`` and backslash-dollar are a dollar."""
        parts = value.replace("\\$", "$$").split("$")
        done, index = [parts[0]], 1
        while index < len(parts):
            part = parts[index]
            index += 1
            if not part and index < len(parts):
                done.append("$" + parts[index])
                index += 1
                continue
            braced = part.startswith("{") and "}" in part
            name = part[1 : part.index("}")] if braced else _leading_name(part)
            rest = part[len(name) + 2 :] if braced else part[len(name) :]
            done.append((self._variable(name, section, setting, depth) if name else "$") + rest)
        return "".join(done)

    def _variable(self, name, section, setting, depth):
        group, dot, option = name.partition(".")
        names = ((group.lower(), option),) if dot else ((section, name), ("DEFAULT", name))
        found = self.lookup(names)
        if found is None and name in OPTIONS:
            found = OPTIONS[name][1], "default"
        if found is None or depth > 10:
            if "password" in setting:  # what follows the dollar is part of it
                text = "nova.conf's %s has a $ before something that no configuration file sets; "
                raise Failure("config", text % setting + "a dollar sign of its own is written $$")
            raise Failure(
                "config",
                "nova.conf's %s uses $%s, which no configuration file sets; give %s in the inventory"
                % (setting, name, setting),
            )
        if "password" in name:
            setting = name  # so that no message says a word of it
        return self.substitute(found[0], section, setting, depth + 1)


def _leading_name(text):
    length = 0
    if text[:1] in "0123456789.":
        return ""
    while length < len(text) and text[length] in _NAME:
        length += 1
    return text[:length]


def parse(path, lines):
    """Return section -> option -> last value of one file."""
    sections, options, key = {}, None, None
    for number, line in enumerate(lines, 1):
        if line[0] in "#;\n":
            key = None
            continue
        text = line.rstrip()
        if not text:
            key = None
        elif line[0] in " \t":
            if key is None:
                _refuse(path, number, "a continuation line continues nothing")
            options[key] += "\n" + text.lstrip()
        elif text[0] == "[":
            if not text.endswith("]") or len(text) < 3:
                _refuse(path, number, "a section must look like [name]")
            name = text[1:-1]
            options, key = (
                sections.setdefault(name if name == "DEFAULT" else name.lower(), {}),
                None,
            )
        else:
            key, value = _split(path, number, text)
            if options is None:
                _refuse(path, number, "an option stands before the first [section]")
            options[key] = value
    return sections


def _split(path, number, text):
    places = [place for place in (text.find("="), text.find(":")) if place >= 0]
    if not places or not text[: min(places)].strip():
        _refuse(path, number, "not of the form name = value")
    value = text[min(places) + 1 :].strip()
    if value and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return text[: min(places)].strip(), value


def _refuse(path, number, reason):
    raise Failure(
        "config", "%s:%d: %s; nova-compute would refuse it too" % (path, number, reason), path=path
    )


def _boolean(setting, value, origin):
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        raise Failure(
            "config", "%s: %s must be true or false, not %r" % (origin, setting, value[:60])
        ) from None


def refuse_foreign(origins):
    """For root, where the cache is root's too: take nobody else's word for where that is.

    Nova's user could name any of root's folders, and an image that becomes a harmful file in it.
    """
    if _FOREIGN and {origins["instances_path"], origins["cache_subdirectory"]} != {"inventory"}:
        path = sorted(_FOREIGN)[0]
        message = (
            "the cache belongs to root, but others than root may change %s (owner %s), "
            "which says where it is; give instances_path and cache_subdirectory in the inventory, "
            "or log in as Nova's user"
        )
        raise Failure("config", message % (path, user_name(_FOREIGN[path])), path=path)


def effective(settings):
    """Return (values, origins): what the inventory gives, else nova.conf, else Nova's default.

    nova.conf is not even opened when the inventory gives everything.
    """
    _FOREIGN.clear()
    values = {name: settings.get(name) for name in WANTED}
    origins = dict.fromkeys(WANTED, "inventory")
    missing = [name for name in WANTED if values[name] is None]
    conf = None
    if missing or values["images_type"] == "default":
        conf = Conf(settings.get("nova_conf") or find_files())
    if not (conf is None or conf.files) and {"instances_path", "images_type"}.intersection(missing):
        raise _no_files(settings.get("nova_conf"))
    for name in missing:
        values[name], origins[name] = conf.get(name)
        if name == "force_raw_images":
            values[name] = _boolean(name, values[name], origins[name])
    if values["images_type"] not in _IMAGES_TYPES:
        message = "%s: images_type must be one of %s, not %r; nova-compute would refuse it too"
        shown = origins["images_type"], ", ".join(_IMAGES_TYPES), values["images_type"][:60]
        raise Failure("config", message % shown, path=origins["images_type"])
    if values["images_type"] == "default":
        value, origin = conf.get("use_cow_images")
        values["images_type"] = "qcow2" if _boolean("use_cow_images", value, origin) else "flat"
    return values, origins
