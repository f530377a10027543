"""Datastores: which of them Nova may choose, and what is in their folders.

Source: nova ``virt/vmwareapi/ds_util.py`` (``get_available_datastores``), ``cluster_util.py``; vSphere API
``HostDatastoreBrowser``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import calendar
import collections
import re
import time
from urllib.parse import unquote

from .core import Failure
from .soap import Fault, Object, ref_of, refs_of, text_of

_TYPES = ("VMFS", "NFS", "NFS41", "vsan")
_TIME = re.compile(r"([0-9-]{10}T[0-9:]{8})(?:\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})?\Z")

#: One file or folder: its size in bytes, its time in seconds of the epoch by vCenter's clock.
File = collections.namedtuple("File", "name size mtime folder")
Datacenter = collections.namedtuple("Datacenter", "ref path vm_folder")


class Store:
    """One datastore."""

    def __init__(self, ref, values, datacenter):
        self.ref = ref
        self.name = text_of(values["summary.name"])
        self.kind = text_of(values["summary.type"])
        self.capacity = int(text_of(values.get("summary.capacity"), "0"))
        self.free = int(text_of(values.get("summary.freeSpace"), "0"))
        self.browser = ref_of(values.get("browser"))
        self.datacenter = datacenter

    def path(self, *parts):
        """Return a path on it as vSphere writes it."""
        return "[%s] %s" % (self.name, "/".join(parts))


class Stores:
    """The part of a ``Cluster`` that looks for datastores, and into them."""

    def _find(self):
        name = self.settings.values["cluster_name"]
        clusters = self.vim.all_of("ClusterComputeResource")
        named = self.vim.properties(clusters, ["name"])
        for ref in clusters:
            if unquote(text_of(named.get(ref.value, {}).get("name"), "")) == name:
                return ref
        raise Failure(
            "config",
            "vCenter %s has no cluster %s that this user may see; see cluster_name in [vmware]"
            % (self.vim.place, ascii(name)[:100]),
        )

    def _stores(self):
        datacenters = self._datacenters()
        refs = refs_of(self.vim.get(self.ref, "datastore"))
        summary = ("name", "type", "capacity", "freeSpace", "accessible", "maintenanceMode")
        found = self.vim.properties(refs, ["summary." + name for name in summary] + ["browser"])
        regex, stores = self.settings.regex(), []
        for ref in refs:
            values = found.get(ref.value, {})
            name = text_of(values.get("summary.name"), "")
            if (
                text_of(values.get("summary.accessible")) == "true"
                and text_of(values.get("summary.maintenanceMode"), "normal") == "normal"
                and text_of(values.get("summary.type")) in _TYPES
                and (regex is None or regex.match(name))
                and ref.value in datacenters
            ):
                stores.append(Store(ref, values, datacenters[ref.value]))
        stores.sort(key=lambda store: (-store.free, store.name))
        return self._wanted(stores)

    def _wanted(self, stores):
        """Return those that the inventory asks for, the one with most room first."""
        wanted = self.settings.wanted
        if not stores:
            raise Failure(
                "backend",
                "cluster %s has no datastore that Nova could use: none is accessible, of a type among "
                "%s, and matches datastore_regex" % (self.place, ", ".join(_TYPES)),
            )
        if wanted == ["emptiest"]:
            return stores[:1]
        if wanted:
            missing = sorted(set(wanted) - {store.name for store in stores})
            if missing:
                raise Failure(
                    "config",
                    "no datastore %s that Nova could use in cluster %s"
                    % (", ".join(missing), self.place),
                )
            stores = [store for store in stores if store.name in wanted]
        return stores

    def _datacenters(self):
        """Return datastore id -> its datacenter."""
        refs = self.vim.all_of("Datacenter")
        found = self.vim.properties(refs, ["datastore", "vmFolder"])
        result = {}
        for ref in refs:
            values = found.get(ref.value, {})
            place = Datacenter(ref, self._inventory_path(ref), ref_of(values.get("vmFolder")))
            for store in refs_of(values.get("datastore")):
                result[store.value] = place
        return result

    def _inventory_path(self, ref):
        """Return the path of names from below the root folder, as ``/folder`` URLs take it."""
        names = []
        while ref is not None:
            values = self.vim.properties([ref], ["name", "parent"]).get(ref.value, {})
            parent = ref_of(values.get("parent"))
            if parent is not None:
                names.insert(0, unquote(text_of(values.get("name"), "")))
            ref = parent
        return "/".join(names)

    def look_for_room(self, stores):
        """Note how much is free now; what this session has put there counts even before vCenter shows it."""
        found = self.vim.properties([store.ref for store in stores], ["summary.freeSpace"])
        for store in stores:
            shown = text_of(found.get(store.ref.value, {}).get("summary.freeSpace"))
            if shown is not None:
                store.free = min(store.free, int(shown))

    def search(self, store, folder, pattern="*"):
        """Return the files of a folder; None: there is no such folder."""
        spec = Object(None, [("details", _DETAILS), ("matchPattern", pattern)])
        try:
            result = self.vim.task(
                store.browser,
                "SearchDatastore_Task",
                ("datastorePath", store.path(folder)),
                ("searchSpec", spec),
            )
        except Fault as fault:
            if fault.name == "FileNotFound":
                return None
            raise fault.failure("cannot look into " + store.path(folder)) from fault
        return [] if result is None else [_file_of(node) for node in result.findall("file")]

    def tree(self, store, folder):
        """Return folder name -> files, of each right below ``folder``; None: there is no such folder."""
        spec = Object(None, [("details", _DETAILS), ("matchPattern", "*")])
        try:
            result = self.vim.task(
                store.browser,
                "SearchDatastoreSubFolders_Task",
                ("datastorePath", store.path(folder)),
                ("searchSpec", spec),
            )
        except Fault as fault:
            if fault.name == "FileNotFound":
                return None
            raise fault.failure("cannot look into " + store.path(folder)) from fault
        found, start = {}, store.path(folder).rstrip("/") + "/"
        for node in result if result is not None else ():
            path = text_of(node.find("folderPath"), "").rstrip("/") + "/"
            files = [_file_of(item) for item in node.findall("file")]
            if path == start:
                for file in files:
                    if file.folder:
                        found.setdefault(file.name, [])
            elif path.startswith(start) and path.count("/") == start.count("/") + 1:
                found[path[len(start) : -1]] = files
        return found


_DETAILS = Object(
    None,
    [("fileType", True), ("fileSize", True), ("modification", True), ("fileOwner", False)],
)


def _file_of(node):
    return File(
        text_of(node.find("path"), "").rstrip("/"),
        int(text_of(node.find("fileSize"), "0")),
        epoch_of(text_of(node.find("modification"), "")),
        node.get("kind") == "FolderFileInfo",
    )


def epoch_of(text):
    """Return the seconds of the epoch of an ``xsd:dateTime``; 0.0 of what is none."""
    match = _TIME.match(text)
    if not match:
        return 0.0
    seconds = float(calendar.timegm(time.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S")))
    zone = match.group(2)
    if zone and zone != "Z":
        minutes = int(zone[1:3]) * 60 + int(zone[4:6])
        seconds -= minutes * 60 * (-1 if zone[0] == "-" else 1)
    return seconds
