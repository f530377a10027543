"""Stream-optimised disks and OVA packages: imported as a machine that never runs, of which the disk is kept.

Source: nova ``virt/vmwareapi/images.py`` (``fetch_image_stream_optimized``, ``fetch_image_ova``); oslo.vmware
``rw_handles.py`` (``VmdkWriteHandle``); vSphere API ``HttpNfcLease``; POSIX ``ustar``; DMTF DSP0243 (OVF).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; what fails while giving up changes nothing

import hashlib
import http.client
import ssl
import tarfile
import time
from urllib.parse import urlsplit
from xml.etree import ElementTree

from .core import Failure
from .soap import Fault, Object, parse_plain, ref_of, text_of
from .vmware_bring import FileTarget
from .vmware_files import Upload, drop
from .vmware_image import STREAM, Sample, judge_whole
from .vmware_names import work_name

_LEASE_WAIT_S = 120
_PROGRESS_S = 20.0
_MAX_OVF_BYTES = 1 << 20


def _machine(name, store):
    """Return what the machine is made of: a controller and one thin disk."""
    controller = Object(
        "VirtualLsiLogicController",
        [("key", -100), ("busNumber", 0), ("sharedBus", "noSharing")],
    )
    backing = Object(
        "VirtualDiskFlatVer2BackingInfo",
        [
            ("fileName", "[%s]" % store.name),
            ("diskMode", "persistent"),
            ("thinProvisioned", True),
        ],
    )
    disk = Object(
        "VirtualDisk",
        [
            ("key", -101),
            ("backing", backing),
            ("controllerKey", -100),
            ("unitNumber", 0),
            ("capacityInKB", 1),
        ],
    )
    changes = [
        Object(None, [("operation", "add"), ("device", controller)]),
        Object(None, [("operation", "add"), ("fileOperation", "create"), ("device", disk)]),
    ]
    spec = [
        ("name", name),
        ("guestId", "otherGuest"),
        ("files", Object(None, [("vmPathName", "[%s]" % store.name)])),
        ("numCPUs", 1),
        ("memoryMB", 128),
        ("deviceChange", changes),
    ]
    return Object("VirtualMachineImportSpec", [("configSpec", Object(None, spec))])


class Lease:
    """An import under way: a machine that is being made, and where its disk's bytes go."""

    def __init__(self, cluster, store):
        self.cluster = cluster
        self.store = store
        self.name = work_name()
        self.told_at = time.monotonic()
        self.machine = None
        cluster.temps.append((store, self.name))
        pool = ref_of(cluster.vim.get(cluster.ref, "resourcePool"))
        try:
            self.ref = ref_of(
                cluster.vim.one(
                    pool,
                    "ImportVApp",
                    ("spec", _machine(self.name, store)),
                    ("folder", store.datacenter.vm_folder),
                )
            )
            cluster.lease = self
            self.info = self._wait_until_ready()
        except Fault as fault:
            self.abort_begun()
            raise fault.failure("cannot import a disk to datastore " + store.name) from fault
        except Failure:
            self.abort_begun()
            raise
        self.machine = ref_of(self.info.find("entity"))

    def _wait_until_ready(self):
        vim, deadline = self.cluster.vim, time.monotonic() + _LEASE_WAIT_S
        while True:
            values = vim.properties([self.ref], ("state", "info", "error")).get(self.ref.value, {})
            state = text_of(values.get("state"))
            if state == "ready":
                return values["info"]
            if state != "initializing" or time.monotonic() > deadline:
                said = "".join((values["error"]).itertext()) if "error" in values else state
                raise Failure("io", "vCenter did not begin the import: %s" % str(said)[:300])
            time.sleep(0.2)

    def open_upload(self, size):
        """Return the open upload of the disk's bytes."""
        for device in self.info.findall("deviceUrl"):
            if text_of(device.find("disk"), "true") == "true":
                break
        else:
            raise Failure("io", "vCenter names no place for the imported disk")
        url = urlsplit(text_of(device.find("url"), "").replace("*", self.cluster.vim.place, 1))
        place = self._connect(url, text_of(device.find("sslThumbprint")))
        target = url.path + ("?" + url.query if url.query else "")
        return Upload(self.cluster, target, size, place)

    def _connect(self, url, thumbprint):
        """Connect to the host that takes the disk; vCenter tells its certificate's thumbprint."""
        vim = self.cluster.vim
        context = vim.context
        if thumbprint and url.hostname != vim.host:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS)
            context.options |= ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
        connection = http.client.HTTPSConnection(
            url.hostname, url.port or 443, timeout=90, context=context
        )
        try:
            connection.connect()
        except (OSError, ValueError) as error:
            raise Failure(
                "io", "cannot connect to %s for the import: %s" % (url.netloc, error)
            ) from error
        if context is not vim.context:
            shown = hashlib.sha1(connection.sock.getpeercert(True)).hexdigest()  # noqa: S324 - vSphere's choice
            if shown != thumbprint.replace(":", "").lower():
                connection.close()
                raise Failure("tls", "%s is not the host that vCenter named" % url.netloc)
        return connection

    def tell(self, percent):
        """Keep the lease alive."""
        if time.monotonic() - self.told_at > _PROGRESS_S:
            self.told_at = time.monotonic()
            self._progress(percent)

    def _progress(self, percent):
        self.cluster.vim.call(self.ref, "HttpNfcLeaseProgress", ("percent", percent))

    def complete(self):
        """End the import, keep the disk and drop the machine; return the disk's path on the datastore."""
        vim = self.cluster.vim
        try:
            self._progress(100)
            vim.call(self.ref, "HttpNfcLeaseComplete")
            self.cluster.lease = None
            path = self._disk_path(vim.get(self.machine, "config.hardware.device"))
            vim.call(self.machine, "UnregisterVM")
            self.machine = None
        except Fault as fault:
            raise fault.failure("cannot end the import to " + self.store.name) from fault
        return path

    def _disk_path(self, devices):
        for device in devices if devices is not None else ():
            name = text_of(device.find("backing/fileName"), "")
            if device.get("kind") == "VirtualDisk" and name.startswith("[%s] " % self.store.name):
                return name.partition("] ")[2]
        raise Failure("io", "vCenter does not tell where the imported disk is")

    def abort_begun(self):
        """Give the import up, if vCenter has begun one; never raises."""
        if self.cluster.lease is not None:
            self.abort()

    def abort(self):
        """Give the import up, and see to it that no machine of it stays; never raises."""
        vim, self.cluster.lease = self.cluster.vim, None
        check, vim.check = vim.check, lambda: None
        try:
            vim.call(self.ref, "HttpNfcLeaseAbort")
        except Failure:
            pass  # it has ended already
        try:
            if self.machine is not None:
                vim.task(self.machine, "Destroy_Task")
        except Failure:
            pass  # vCenter has removed it, or it is left for clean
        finally:
            vim.check = check


class ImportTarget(FileTarget):
    """A disk that an image's bytes are imported into."""

    def __init__(self, cluster, store, plan):
        super().__init__(cluster, store, None, plan)
        self.lease = None
        self.disk_path = None

    def begin(self):
        """Begin the import."""
        self.lease = Lease(self.cluster, self.store)
        return self.lease.open_upload(self.sample.size)

    def write(self, data):
        """Take the next bytes."""
        super().write(data)
        if self.lease is not None:
            self.lease.tell(min(99, self.count * 100 // self.sample.size))

    def judge(self):
        """Judge what only all bytes tell, and end the import."""
        judge_whole(self.plan, self.sample)
        self.disk_path = self.lease.complete()
        self.lease = None

    def restart(self):
        """Forget all bytes, and what the import has made."""
        super().restart()
        self._drop_lease()

    def _drop_lease(self):
        if self.lease is not None:
            self.lease.abort()
            drop(self.cluster, self.store, self.lease.name)
            self.lease = None

    def close(self):
        """Let go of everything; an import that has not ended is given up."""
        super().close()
        self._drop_lease()


class OvaTarget(ImportTarget):
    """The first disk in an OVA package, found while the package passes by."""

    def __init__(self, cluster, store, plan):
        super().__init__(cluster, store, plan)
        self.sample.close()
        self._reset()

    def _reset(self):
        self.header, self.left, self.padding, self.action = bytearray(), 0, 0, None
        self.ovf, self.wanted, self.sample, self.found = bytearray(), None, None, False

    def write(self, data):
        """Take the next bytes of the package."""
        view = memoryview(data)
        while view:
            if self.left:
                part, view = view[: self.left], view[self.left :]
                self.left -= len(part)
                self._member(part)
            elif self.padding:
                used = min(self.padding, len(view))
                self.padding -= used
                view = view[used:]
            else:
                need = 512 - len(self.header)
                self.header += view[:need]
                view = view[need:]
                if len(self.header) == 512:
                    self._begin_member(bytes(self.header))
                    self.header.clear()

    def _begin_member(self, header):
        if not any(header):
            return  # the end of the package
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Failure("format", "the image was refused: it is no OVA: %s" % error) from None
        if not 0 <= member.size <= self.plan.size:
            raise Failure("format", "the image was refused: its members do not fit into it")
        self.left, self.padding, self.action = member.size, -member.size % 512, None
        if not member.isreg():
            return
        if member.name.endswith(".ovf") and self.wanted is None:
            if member.size > _MAX_OVF_BYTES:
                raise Failure("format", "the image was refused: its OVF is too long")
            self.action = "ovf"
        elif self.wanted and member.name == self.wanted and not self.found:
            self.found, self.action = True, "disk"
            self.sample, self.count = Sample(member.size), 0

    def _member(self, part):
        if self.action == "ovf":
            self.ovf += part
            if not self.left:
                self.wanted = first_disk(bytes(self.ovf))
        elif self.action == "disk":
            self._disk(part)

    def _disk(self, part):
        disk = DiskInside(self.plan, self.sample)
        plan, self.plan = self.plan, disk
        try:
            ImportTarget.write(self, part)
        finally:
            self.plan = plan

    def all_sent(self):
        """Wait until vSphere has the disk."""
        if self.upload is None or self.count != self.sample.size:
            raise Failure(
                "format", "the image was refused: it is an OVA without a disk behind its .ovf"
            )
        super().all_sent()

    def judge(self):
        """Judge the disk, and end the import."""
        plan, self.plan = self.plan, DiskInside(self.plan, self.sample)
        try:
            super().judge()
        finally:
            self.plan = plan

    def restart(self):
        """Forget all bytes."""
        if self.sample is not None:
            super().restart()
            self.sample.close()
        self._reset()

    def close(self):
        """Let go of everything."""
        if self.sample is not None:
            super().close()


class DiskInside:
    """The plan of a disk in a package: a stream-optimised VMDK, whatever the image says about its disk."""

    kind = STREAM

    def __init__(self, plan, sample):
        self.size = sample.size
        self.disk_type = STREAM
        self.name = plan.name


def first_disk(data):
    """Return the name of the file that holds the first disk of an OVF descriptor; hostile text."""
    try:
        root = parse_plain(data)
    except (ValueError, ElementTree.ParseError) as error:
        reason = "its OVF is no plain XML (%s)" % str(error)[:100]
        raise Failure("format", "the image was refused: " + reason) from None
    for node in root.iter():
        node.tag = str(node.tag).rpartition("}")[2]
        for name in list(node.attrib):
            node.set(name.rpartition("}")[2], node.attrib[name])
    disk = root.find("DiskSection/Disk")
    wanted = None if disk is None else disk.get("fileRef")
    for file in root.findall("References/File"):
        if wanted is not None and file.get("id") == wanted and file.get("href"):
            if file.get("compression") not in (None, "", "identity"):
                break
            return file.get("href")
    raise Failure("format", "the image was refused: its OVF names no disk that can be used")
