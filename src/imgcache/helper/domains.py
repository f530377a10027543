"""What libvirt's domains use, defined, running, saved or snapshotted: files, and the images that Nova names.

Libvirt wrote these files, and no guest: so what they name and cannot be read is missing evidence.
Source: libvirt ``docs/formatdomain.rst``, ``formatstorage.rst``, ``src/qemu/qemu_saveimage.h``; nova
``virt/libvirt/config.py`` (``LibvirtConfigGuestMetaNovaInstance``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - short literals; imports are dear on a host

import collections
import glob
import os
import re
import stat
import struct
from xml.parsers import expat

from . import headers, ways
from .staging import new_digest

#: Where libvirt keeps what it knows of domains and storage pools, and of what it saved.
Places = collections.namedtuple("Places", "domains pools volumes passwd")
PLACES = Places(
    (
        *("/etc/libvirt/" + driver for driver in ("qemu", "lxc", "libxl", "ch")),
        *("/run/libvirt/" + driver for driver in ("qemu", "lxc", "libxl", "ch")),
        *("/var/lib/libvirt/" + driver for driver in ("qemu", "lxc", "libxl", "ch")),
    ),
    ("/etc/libvirt/storage", "/run/libvirt/storage"),
    # Folders of libvirt in a container that does not run now.
    (
        "/var/lib/docker/volumes/*libvirt*/_data",
        "/var/lib/containers/storage/volumes/*libvirt*/_data",
    ),
    "/etc/passwd",
)
#: Where the same is below a home and below /run/user for the libvirt of a user's session.
_SESSION = (".config/libvirt/qemu", ".cache/libvirt/qemu/run", ".local/share/libvirt/qemu")
_SESSION_RUN = "/run/user/*/libvirt/qemu/run"
_DAEMONS = re.compile(rb"(?:libvirtd|virt(?:qemu|lxc|xen|ch)d)\s*")
_XML_BYTES = 16 << 20
_DEPTH = 12
#: These hold no domains, or links to domains.
_OTHERS = frozenset(("networks", "autostart", "nwfilter", "channel", "dbus", "slirp", "passt"))
_GONE = (FileNotFoundError, NotADirectoryError)
#: Pools whose volumes are on no file system or device of this host.
_REMOTE_POOLS = frozenset(("rbd", "sheepdog", "gluster", "iscsi-direct"))
#: An absolute path at the beginning of a value, or behind what separates words in an argument of QEMU's.
_PATHS = re.compile(r"(?:^|[\s,=:'\"])(/[^\s,'\"]*)")
_SAVE = struct.Struct("=16s4I")
_SAVE_BYTES = 92
_SAVE_MARKS = (b"LibvirtQemudSave", b"LibvirtQemudPart")

#: One file of libvirt's: who the domain is; the paths it names, those of raw disks among them; its volumes
#: (pool, volume); the images that Nova names; whether it is root's word; where its paths begin.
Domain = collections.namedtuple("Domain", "user paths raw volumes images trusted prefix")


def read(scan, roots):
    """Return the ``Domain`` of each file of libvirt's; to be called as root.

    A folder that does not exist has none; what cannot be read is a problem of ``scan``.
    """
    places, found, pools = roots.places, [], {}
    for prefix in ("", *_containers(scan, roots.proc)):
        for folder in places.domains:
            _Folder(scan, prefix, True, found).read(prefix + folder)
        for folder in places.pools:
            _read_pools(scan, prefix, prefix + folder, pools)
    for pattern in places.volumes:
        for folder in sorted(glob.glob(pattern)):
            _Folder(scan, "", True, found).read(folder)
    if not os.getuid():
        for folder in _sessions(scan, places.passwd):
            _Folder(scan, "", False, found).read(folder)
    return [_with_volumes(scan, domain, pools) for domain in found]


def use(scan, found):
    """Mark what domains use; as the user that looks at instances, who may read what root may not."""
    for domain in found:
        for path in domain.raw:
            for start in {"", domain.prefix}:
                inode = None if scan.elsewhere(path) else _inode_of(start + path)
                if inode is not None:
                    scan.raw.add(inode)
    for domain in found:
        for path in domain.paths:
            for start in {"", domain.prefix}:
                scan.refer(os.fsencode(start + path), "/", domain.user, domain.trusted)
            error = scan.unread.get((path, domain.trusted))
            if domain.trusted and isinstance(error, _GONE):
                scan.dangles(path, None, path)
        for image in domain.images:
            digest = new_digest("sha1")
            digest.update(image.encode("utf-8", "surrogateescape"))
            base = digest.hexdigest()
            for target in [base] * (base in scan.targets) + scan.copies.get(base, []):
                scan.mark(target, domain.user)


def _inode_of(path):
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


# ---- where libvirt is


def _containers(scan, proc):
    """Return the roots of the mount namespaces in which a libvirt runs whose folders are not this host's."""
    found = {}
    try:
        pids = [name for name in os.listdir(proc) if name.isdigit()]
        here = os.stat(proc + "/self/ns/mnt").st_ino
    except OSError:
        return ()  # the look at processes reports it; or a kernel without namespaces
    for pid in pids:
        path = "%s/%s" % (proc, pid)
        try:
            with open(path + "/comm", "rb") as file:
                if not _DAEMONS.fullmatch(file.read(64)):
                    continue
            there = os.stat(path + "/ns/mnt").st_ino
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            scan.problem("where libvirt (process %s) keeps its domains" % pid, error)
            continue
        if there != here:
            found.setdefault(there, path + "/root")
    return sorted(found.values())


def _sessions(scan, passwd):
    """Return the folders of libvirt in users' sessions that are on this host's own storage."""
    homes = set()
    try:
        with open(passwd, "rb") as lines:
            for line in lines:
                fields = os.fsdecode(line).split(":")
                if len(fields) > 5 and fields[5].startswith("/") and fields[5] != "/":
                    homes.add(fields[5].rstrip("/"))
    except OSError:
        pass  # users without a line there have no home to look at
    for home in sorted(homes):
        for folder in _SESSION:
            path = "%s/%s" % (home, folder)
            if not scan.elsewhere(path) and os.path.isdir(path):
                yield path
    yield from glob.glob(_SESSION_RUN)


def _unreadable(scan, path, error):
    if isinstance(error, PermissionError):
        path = "only root may read libvirt's domains (become_user: root): " + path
    scan.problem(path, error)


# ---- one folder


class _Folder:
    """Reads domains, saved domains and images below one of libvirt's folders; follows root's links."""

    def __init__(self, scan, prefix, trusted, found):
        self.scan = scan
        self.prefix = prefix
        self.trusted = trusted
        self.found = found
        self.linked = set()  # folders that links led to

    def read(self, path, depth=0):
        """Read everything below a folder."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except _GONE:
            return
        except OSError as error:
            _unreadable(self.scan, path, error)
            return
        try:
            for name in os.listdir(fd):
                self.look_at(fd, "%s/%s" % (path, name), name, depth)
        except OSError as error:
            _unreadable(self.scan, path, error)
        finally:
            os.close(fd)

    def look_at(self, folder_fd, path, name, depth):
        """Read one file, or what is below a folder."""
        try:
            status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if depth >= _DEPTH:
                    self.scan.problem("%s lies more than %d folders deep" % (path, _DEPTH))
                elif depth or name not in _OTHERS:
                    self.read(path, depth + 1)
            elif name.endswith(".xml"):
                self.read_xml(folder_fd, path, name, stat.S_ISLNK(status.st_mode))
            elif stat.S_ISREG(status.st_mode) and status.st_size >= headers.LEAST_BYTES:
                self.read_file(folder_fd, path, name, status)
            elif stat.S_ISLNK(status.st_mode) and (depth or name not in _OTHERS):
                self.follow(folder_fd, path, name, depth)
        except _GONE:
            pass
        except OSError as error:
            _unreadable(self.scan, path, error)

    def follow(self, folder_fd, path, name, depth):
        """Read what a link leads to, where root made it; what others link is theirs."""
        try:
            there = os.stat(name, dir_fd=folder_fd)
        except _GONE:
            self.scan.dangles(path, None, path)
            return
        if not self.trusted or stat.S_ISSOCK(there.st_mode) or stat.S_ISCHR(there.st_mode):
            return
        if stat.S_ISDIR(there.st_mode):
            mark = (there.st_dev, there.st_ino)
            if mark not in self.linked:
                self.linked.add(mark)
                self.read(path, depth + 1)
        elif stat.S_ISREG(there.st_mode) and there.st_size >= headers.LEAST_BYTES:
            folder, _, real = os.path.realpath(path).rpartition("/")
            real_fd = os.open(folder or "/", os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.read_file(real_fd, path, real, there)
            finally:
                os.close(real_fd)

    def read_xml(self, folder_fd, path, name, is_link):
        """Read a domain; by root's links, too."""
        try:
            if is_link and self.trusted:
                fd = os.open(name, headers.FLAGS, dir_fd=folder_fd)
            else:
                fd = ways.open_plain(name, folder_fd)
        except _GONE:
            self.scan.dangles(path, None, path)
            return
        if fd is None:
            return
        with open(fd, "rb") as file:
            text = file.read(_XML_BYTES + 1)
        if len(text) > _XML_BYTES:
            self.scan.problem("%s is longer than a domain can be" % path)
        self.take(text, path, name[:-4])

    def read_file(self, folder_fd, path, name, status):
        """Read a saved domain, or what an image here (of firmware's variables, say) needs."""
        fd = ways.open_plain(name, folder_fd)
        if fd is None:
            return
        try:
            head = os.pread(fd, _SAVE.size, 0)
            if name.endswith(".save") or head[:16] in _SAVE_MARKS:
                self.take_saved(fd, path, name)
                return
            names, _ = headers.references(fd, status.st_size)
        finally:
            os.close(fd)
        user = "libvirt's " + name
        for reference in names:
            self.scan.refer(reference, os.path.dirname(path), user, trusted=False)

    def take_saved(self, fd, path, name):
        """Take the domain that a saved state begins with."""
        head = os.pread(fd, _SAVE.size, 0)
        if len(head) == _SAVE.size:
            mark, _, size, _, _ = _SAVE.unpack(head)
            if mark in _SAVE_MARKS and size <= _XML_BYTES:
                self.take(os.pread(fd, size, _SAVE_BYTES).split(b"\0")[0], path, name)
                return
        self.scan.problem(
            "%s is no state that libvirt saved, or of a version that is not known" % path
        )

    def take(self, text, path, name):
        """Take one domain's XML."""
        reader = _Reader()
        problem = reader.read(text)
        if problem:
            self.scan.problem("%s cannot be read as XML: %s" % (path, problem))
        self.found.append(
            Domain(
                reader.uuid or name,
                sorted(reader.paths),
                sorted(reader.raw),
                sorted(reader.volumes),
                sorted(reader.images),
                self.trusted,
                self.prefix,
            )
        )


class _Reader:
    """What one XML document names."""

    def __init__(self):
        self.paths, self.raw, self.volumes, self.images = set(), set(), set(), set()
        self.uuid = None
        self.stack = []
        self.text = []
        self.disk = {}  # the innermost disk's: source, driver's type

    def read(self, text):
        """Read it all; return why that failed, or None."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text.append
        parser.EntityDeclHandler = _refuse_entity
        parser.buffer_text = True
        try:
            parser.Parse(text, True)
        except (expat.ExpatError, ValueError) as error:
            return str(error)
        return None

    def start(self, name, attributes):
        """Take an element's attributes: each absolute path in them is a reference."""
        local = name.rpartition(":")[2]
        del self.text[:]
        if local == "disk":
            self.disk = {}
        elif local == "driver" and self.stack[-1:] == ["disk"]:
            self.disk["type"] = attributes.get("type")
        elif local == "source" and "pool" in attributes and "volume" in attributes:
            self.volumes.add((attributes["pool"], attributes["volume"]))
        elif local == "root" and "uuid" in attributes:
            self.images.add(attributes["uuid"])
        if local == "source" and self.stack[-1:] == ["disk"]:
            self.disk["source"] = attributes.get("file") or attributes.get("dev")
        for value in attributes.values():
            self.take_paths(value)
        self.stack.append(local)

    def end(self, name):
        """Take an element's text."""
        text = "".join(self.text).strip()
        del self.text[:]
        self.take_paths(text)
        local = self.stack.pop()
        if local == "uuid" and self.uuid is None:
            self.uuid = text[:36]
        elif local == "disk" and self.disk.get("type") == "raw" and self.disk.get("source"):
            self.raw.add(self.disk["source"])

    def take_paths(self, value):
        """Take a value that is an absolute path, and those that it holds."""
        if "/" not in value:
            return
        if value.startswith("/"):
            self.paths.add(value)
        self.paths.update(match for match in _PATHS.findall(value) if len(match) > 1)


def _refuse_entity(*_):
    raise ValueError("it declares entities")


# ---- storage pools


def _read_pools(scan, prefix, folder, pools):
    """Take the pools of one folder: name -> (type, target path), with the prefix of a container."""
    found = []
    try:
        names = os.listdir(folder)
    except _GONE:
        return
    except OSError as error:
        _unreadable(scan, folder, error)
        return
    for name in names:
        if name.endswith(".xml"):
            path = "%s/%s" % (folder, name)
            try:
                with open(path, "rb", opener=_open) as file:
                    found.append(_pool(file.read(_XML_BYTES)))
            except _GONE:
                continue
            except OSError as error:
                _unreadable(scan, path, error)
            except ValueError as error:
                scan.problem("%s describes no storage pool that can be read: %s" % (path, error))
    for pool in found:
        pools[prefix, pool[0]] = pool


def _open(path, flags):
    return os.open(path, flags | headers.FLAGS)


def _pool(text):
    """Return (name, type, target path, source's name) of a pool's XML."""
    from xml.etree import ElementTree  # noqa: PLC0415 - rare

    if b"<!ENTITY" in text:
        raise ValueError("it declares entities")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - libvirt's own file, without entities
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    pool = root if root.tag == "pool" else root.find("pool")
    if pool is None:
        raise ValueError("it describes no pool")
    return (
        pool.findtext("name") or "",
        pool.get("type"),
        pool.findtext("target/path"),
        pool.findtext("source/name"),
    )


def _with_volumes(scan, domain, pools):
    """Return a domain whose volumes are paths; those that cannot be resolved are a problem."""
    paths = []
    for pool_name, volume in domain.volumes:
        pool = pools.get((domain.prefix, pool_name)) or pools.get(("", pool_name))
        if pool is None:
            what = "the storage pool %s, with the disk %s of %s, is not known here"
            scan.problem(what % (pool_name, volume, domain.user))
            continue
        _, kind, target, source = pool
        if kind in _REMOTE_POOLS:
            continue
        if kind == "zfs":
            paths.append("/dev/zvol/%s/%s" % (source, volume))
        elif target:
            paths.append("%s/%s" % (target.rstrip("/"), volume))
        else:
            what = "where the storage pool %s keeps the disk %s of %s cannot be told"
            scan.problem(what % (pool_name, volume, domain.user))
    return domain._replace(paths=domain.paths + paths)
