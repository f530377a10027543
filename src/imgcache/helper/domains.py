"""What the domains that libvirt knows, defined and running, use: their disks, and the images that Nova names.

Libvirt wrote these files, and no guest: so what they name and cannot be read is evidence that is missing.
Source: libvirt ``docs/formatdomain.rst``; nova ``virt/libvirt/config.py``
(``LibvirtConfigGuestMetaNovaInstance``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import os
import re

from . import headers
from .staging import new_digest

_XML_BYTES = 4 << 20
_GONE = (FileNotFoundError, NotADirectoryError)
_SOURCE = re.compile(rb"<source\b[^<>]*?\b(?:file|dev)\s*=\s*(?:'([^']*)'|\"([^\"]*)\")")
_ROOT = re.compile(rb"<(?:[\w.-]+:)?root\b[^<>]*?\buuid\s*=\s*(?:'([^']*)'|\"([^\"]*)\")")
_UUID = re.compile(rb"<uuid>\s*([0-9A-Fa-f-]{36})\s*</uuid>")
_XML_SIGNS = (
    (b"&lt;", b"<"),
    (b"&gt;", b">"),
    (b"&quot;", b'"'),
    (b"&apos;", b"'"),
    (b"&amp;", b"&"),
)


def read(scan, folders):
    """Return what each domain names, for ``tell``; to be called as root.

    A folder that does not exist has none; what cannot be read is told to ``scan``.
    """
    found = []
    for folder in folders:
        try:
            names = os.listdir(folder)
        except _GONE:
            continue
        except OSError as error:
            _unreadable(scan, folder, error)
            continue
        for name in names:
            if name.endswith(".xml"):
                found += _domain(scan, "%s/%s" % (folder, name), name[:-4])
    return found


def tell(scan, found):
    """Tell ``scan`` of all that domains use; as whoever looks at instances, whom root's rights may lack."""
    for user, disks, images in found:
        for disk in disks:
            _disk(scan, disk, user)
        for image in images:
            digest = new_digest("sha1")
            digest.update(image)
            base = digest.hexdigest()
            for target in [base] * (base in scan.targets) + scan.copies.get(base, []):
                scan.mark(target, user)


def _unreadable(scan, path, error):
    if isinstance(error, PermissionError):
        path = "only root may read libvirt's domains (become_user: root): " + path
    scan.problem(path, error)


def _domain(scan, path, name):
    """Return [(its UUID, the files it names, the images that Nova names)], or nothing."""
    try:
        with open(path, "rb", opener=_open) as file:
            text = file.read(_XML_BYTES + 1)
    except _GONE:
        scan.dangles(path, None, path)
        return []
    except OSError as error:
        _unreadable(scan, path, error)
        return []
    if len(text) > _XML_BYTES:
        scan.problem("%s is longer than a domain can be" % path)
    uuid = _UUID.search(text)
    disks, images = ([_plain(it) for it in sign.finditer(text)] for sign in (_SOURCE, _ROOT))
    return [(uuid.group(1).decode() if uuid else name, disks, images)]


def _disk(scan, name, user):
    """Note a disk and what it backs onto.

    One that is not there is no problem: its domain cannot start, and Nova's metadata name the image as well.
    """
    scan.refer(name, "/", user, 0)
    for given in headers.paths_of(name):
        path = os.path.join("/", given)
        error = scan.unread.get(path)
        if isinstance(error, _GONE):
            scan.dangles(path, None, path)
        elif error is not None:
            scan.problem("%s, a disk of %s" % (path, user), error)


def _open(path, flags):
    return os.open(path, flags | headers.FLAGS)


def _plain(match):
    text = match.group(1) or match.group(2) or b""
    for sign, meant in _XML_SIGNS:
        text = text.replace(sign, meant)
    return text
