"""What is done to files of a datastore: folders, virtual disks, uploads and downloads over HTTPS.

Source: vSphere API ``FileManager`` and ``VirtualDiskManager``; nova ``virt/vmwareapi/ds_util.py``,
``vm_util.py``; oslo.vmware ``rw_handles.py`` (uploads to ``/folder``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; what fails while giving up changes nothing

import http.client
import re
import socket
import time

from .core import Failure
from .soap import Fault, Object
from .vmware import PREFIX, TEMP, delete_call
from .vmware_names import work_name

#: vCenter ends sessions that nobody used for half an hour; moving bytes is no use.
KEEP_SESSION_S = 240.0
#: How long a server gets to drop an upload that was broken off.
_LEAVE_S = 2.0
_MAX_SMALL_BYTES = 64 << 10
_EXTENT = re.compile(r"^(?:RW|RDONLY|NOACCESS)\s+([0-9]{1,18})\s+[A-Z]", re.MULTILINE | re.ASCII)


def make_folder(cluster, store, *parts):
    """Make a folder and those above it; one that is there is fine."""
    try:
        cluster.vim.call(
            cluster.vim.manager("fileManager"),
            "MakeDirectory",
            ("name", store.path(*parts)),
            ("datacenter", store.datacenter.ref),
            ("createParentDirectories", True),
        )
    except Fault as fault:
        if fault.name != "FileAlreadyExists":
            raise fault.failure("cannot make " + store.path(*parts)) from fault


def delete(cluster, store, *parts):
    """Delete a file or a whole folder; False when it is not there."""
    try:
        cluster.vim.task(*delete_call(cluster.vim, store, *parts))
    except Fault as fault:
        if fault.name == "FileNotFound":
            return False
        raise fault.failure("cannot delete " + store.path(*parts)) from fault
    return True


def _pair(source, destination, names, datacenters):
    (store, path), (other, target) = source, destination
    return (
        (names[0], store.path(path)),
        (datacenters[0], store.datacenter.ref),
        (names[1], other.path(target)),
        (datacenters[1], other.datacenter.ref),
        ("force", False),
    )


def move_folder(cluster, store, source, destination):
    """Rename a file or folder, never onto another; False when the destination exists."""
    try:
        cluster.vim.task(
            cluster.vim.manager("fileManager"),
            "MoveDatastoreFile_Task",
            *_pair(
                (store, source),
                (store, destination),
                ("sourceName", "destinationName"),
                ("sourceDatacenter", "destinationDatacenter"),
            ),
        )
    except Fault as fault:
        if fault.name == "FileAlreadyExists":
            return False
        raise fault.failure("cannot move to " + store.path(destination)) from fault
    return True


def copy_file(cluster, source, destination):
    """Copy a file; both are (datastore, path)."""
    try:
        cluster.vim.task(
            cluster.vim.manager("fileManager"),
            "CopyDatastoreFile_Task",
            *_pair(
                source,
                destination,
                ("sourceName", "destinationName"),
                ("sourceDatacenter", "destinationDatacenter"),
            ),
        )
    except Fault as fault:
        raise fault.failure("cannot copy to " + destination[0].path(destination[1])) from fault


def copy_disk(cluster, source, destination):
    """Copy a virtual disk of any kind into descriptor and flat extent; both are (datastore, path)."""
    _disk_task(cluster, "CopyVirtualDisk_Task", source, destination)


def move_disk(cluster, store, source, destination):
    """Move a virtual disk; False when the destination exists."""
    try:
        _disk_task(cluster, "MoveVirtualDisk_Task", (store, source), (store, destination))
    except Failure as failure:
        if isinstance(failure.__cause__, Fault) and failure.__cause__.name == "FileAlreadyExists":
            return False
        raise
    return True


def _disk_task(cluster, method, source, destination):
    names = ("sourceName", "destName"), ("sourceDatacenter", "destDatacenter")
    try:
        cluster.vim.task(
            cluster.vim.manager("virtualDiskManager"), method, *_pair(source, destination, *names)
        )
    except Fault as fault:
        what = "cannot make the virtual disk " + destination[0].path(destination[1])
        raise fault.failure(what) from fault


def create_disk(cluster, store, path, plan):
    """Create an empty virtual disk of an image's size, whose flat extent is then replaced."""
    fields = [
        ("diskType", plan.disk_type),
        ("adapterType", plan.adapter),
        ("capacityKb", plan.size // 1024),
    ]
    try:
        cluster.vim.task(
            cluster.vim.manager("virtualDiskManager"),
            "CreateVirtualDisk_Task",
            ("name", store.path(path)),
            ("datacenter", store.datacenter.ref),
            ("spec", Object("FileBackedVirtualDiskSpec", fields)),
        )
    except Fault as fault:
        raise fault.failure("cannot make the virtual disk " + store.path(path)) from fault


class Temp:
    """A folder of ours in ``vmware_temp``, known to the cluster until it is gone."""

    def __init__(self, cluster, store, image_id):
        self.cluster = cluster
        self.store = store
        self.folder = "%s/%s" % (TEMP, work_name())
        self.inner = "%s/%s" % (self.folder, image_id)
        cluster.temps.append((store, self.folder))
        make_folder(cluster, store, self.inner)

    def drop(self):
        """Remove it, as far as vCenter lets us; never raises."""
        drop(self.cluster, self.store, self.folder)


def drop(cluster, store, folder):
    """Remove a folder of ours whatever happens, and forget it; never raises."""
    if (store, folder) not in cluster.temps:
        return
    check, cluster.vim.check = cluster.vim.check, lambda: None
    try:
        delete(cluster, store, folder)
    except Failure:
        pass
    finally:
        cluster.vim.check = check
    cluster.temps.remove((store, folder))


def drop_imports(cluster, store):
    """Remove what imports to a datastore have left besides the disk; never raises."""
    for place, folder in list(cluster.temps):
        if place is store and folder.startswith(PREFIX):
            drop(cluster, store, folder)


class Upload:
    """One PUT to a datastore; its length is announced, its bytes come one after the other."""

    def __init__(self, cluster, target, size, place=None):
        self.cluster = cluster
        self.where = target[:200]
        self.answered = False
        self.kept_at = time.monotonic()
        try:
            self.connection = cluster.vim.connect() if place is None else place
        except Failure as failure:
            raise Broken(failure.message) from failure
        headers = (
            ("Content-Type", "binary/octet-stream"),
            ("Content-Length", str(size)),
            ("Overwrite", "t"),
        )
        try:
            self.connection.putrequest("PUT", target)
            for name, value in headers:
                self.connection.putheader(name, value)
            self.connection.putheader("Cookie", cluster.vim.cookie or "")
            self.connection.endheaders()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Broken(str(error)) from error
        cluster.upload = self

    def write(self, data):
        """Send bytes.

        Raises:
            Broken: the connection did.
        """
        try:
            self.connection.send(data)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(self._early_answer() or str(error)) from error
        if time.monotonic() - self.kept_at > KEEP_SESSION_S:
            self.kept_at = time.monotonic()
            self.cluster.now()

    def _early_answer(self):
        """Return what the server says that did not want to hear it all."""
        try:
            response = self.connection.getresponse()
        except (OSError, http.client.HTTPException):
            return None
        return "it answered %d" % response.status

    def finish(self):
        """Wait until the server has it all.

        Raises:
            Broken, Failure.
        """
        try:
            response = self.connection.getresponse()
            said = response.read(2000)
            self.answered = True
        except (OSError, http.client.HTTPException) as error:
            raise Broken(str(error)) from error
        finally:
            self.close()
        if response.status not in (200, 201, 204):
            code = {401: "auth", 403: "permission", 404: "nopath", 507: "space"}
            text = "vCenter %s answered %d to the upload of %s: %s"
            shown = ascii(said.decode("utf-8", "replace"))[:200]
            raise Failure(
                code.get(response.status, "io"),
                text % (self.cluster.vim.place, response.status, self.where, shown),
            )

    def cut(self):
        """Wake whoever waits for the connection; from another thread."""
        try:
            socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)
        except (OSError, AttributeError, TypeError):
            pass

    def close(self):
        """Close the connection; the server drops what came when that was not all."""
        if self.cluster.upload is self:
            self.cluster.upload = None
        if not self.answered:
            self._wait_until_dropped()
        self.connection.close()

    def _wait_until_dropped(self):
        """Let the server notice that no more comes: it may make the file after we have removed its folder."""
        deadline = time.monotonic() + _LEAVE_S
        try:
            # Below TLS, which would want to end in good order.
            sock = self.connection.sock
            socket.socket.shutdown(sock, socket.SHUT_WR)
            socket.socket.settimeout(sock, _LEAVE_S)
            while time.monotonic() < deadline and socket.socket.recv(sock, 65536):
                pass
        except (OSError, AttributeError, TypeError, ValueError):
            pass  # it was cut, or is gone


class Broken(Exception):
    """An upload's connection broke: another attempt may do better."""


def upload_to(cluster, store, path, size):
    """Return an ``Upload`` of a datastore's file; the folder must be there."""
    target = cluster.vim.file_target(path, store.datacenter.path, store.name)
    return Upload(cluster, target, size)


def download(cluster, store, path, method="GET"):
    """Return the open answer of a GET of a datastore's file, and its connection; None: it is not there."""
    connection = cluster.vim.connect()
    target = cluster.vim.file_target(path, store.datacenter.path, store.name)
    try:
        connection.request(method, target, headers={"Cookie": cluster.vim.cookie or ""})
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise Failure("io", "cannot read %s: %s" % (store.path(path), error)) from error
    if response.status == 404:
        connection.close()
        return None, connection
    if response.status != 200:
        connection.close()
        text = "cannot read %s: vCenter answered %d"
        raise Failure("io", text % (store.path(path), response.status))
    return response, connection


def length_of(response):
    """Return how many bytes an answer says to have; None: it does not say."""
    length = response.getheader("Content-Length", "")
    return int(length) if length.isdigit() else None


def broken_off(store, path, came, length):
    """Return the ``Failure`` of a body that ended early, which ``read`` itself does not tell."""
    text = "cannot read %s: vCenter broke off after %d of %d bytes"
    return Failure("io", text % (store.path(path), came, length))


def lacks_content(cluster, store, folder, found, name):
    """Whether a disk's descriptor is there and its content is not; on vSAN that is an object, and no file."""
    flat = flat_of(name)
    if store.kind == "vsan" or not name.endswith(".vmdk"):
        return False
    if any(file.name == flat for file in found):
        return False
    # Not every browser of datastores need show the files that belong to a descriptor.
    try:
        response, connection = download(cluster, store, "%s/%s" % (folder, flat), "HEAD")
    except Failure:
        return False  # only a plain no is one: there may be a proxy that knows no such question
    connection.close()
    return response is None


def flat_of(name):
    """Return the name of the file that holds the content of the disk of a descriptor."""
    return name[: -len(".vmdk")] + "-flat.vmdk"


def read_small(cluster, store, path):
    """Return a small file's bytes, at most 64 KiB of them; None: it is not there."""
    response, connection = download(cluster, store, path)
    try:
        if response is None:
            return None
        length = length_of(response)
        data = response.read(_MAX_SMALL_BYTES)
        if length is not None and len(data) != min(length, _MAX_SMALL_BYTES):
            raise broken_off(store, path, len(data), length)
        return data
    except (OSError, http.client.HTTPException) as error:
        raise Failure("io", "cannot read %s: %s" % (store.path(path), error)) from error
    finally:
        connection.close()


def capacity_of(cluster, store, path):
    """Return what a disk's descriptor says is its capacity in bytes, or None."""
    text = (read_small(cluster, store, path) or b"").split(b"\0")[0].decode("ascii", "replace")
    return sum(int(sectors) for sectors in _EXTENT.findall(text)) * 512 or None
