"""Lets Nova's own vmwareapi code judge a cache; runs in the environment of ``tools/requirements-nova.txt``.

oslo.vmware cannot speak with the simulated vCenter, which has no WSDL: its session is replaced by pyvmomi.
All that decides what is in the cache, what is old and what goes is Nova's. Reads JSON objects from standard
input, one a line, and writes one to standard output for each.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202, ANN204 - run by Nova's own Python

import json
import os
import ssl
import sys
import types

import pyVim.connect
from nova import context as nova_context
from nova.conf import CONF
from nova.virt.vmwareapi import ds_util, imagecache, images, vmops
from oslo_concurrency import lockutils
from oslo_vmware import exceptions as vexc
from oslo_vmware import vim_util as vutil
from oslo_vmware.objects import datastore as ds_obj
from pyVmomi import vim, vmodl

EXCEPTIONS = {
    "vim.fault.FileNotFound": vexc.FileNotFoundException,
    "vim.fault.FileAlreadyExists": vexc.FileAlreadyExistsException,
    "vim.fault.FileLocked": vexc.FileLockedException,
    "vim.fault.CannotDeleteFile": vexc.CannotDeleteFileException,
}


class Missing(Exception):
    """Nova would fetch the image."""


class Vim:
    """What Nova uses of oslo.vmware's ``Vim``."""

    def __init__(self, service):
        self.service_content = service.content
        kinds = {
            "ns0:HostDatastoreBrowserSearchSpec": vim.host.DatastoreBrowser.SearchSpec,
            "ns0:FileQueryFlags": vim.host.DatastoreBrowser.FileInfo.Details,
        }
        factory = types.SimpleNamespace(create=lambda name: kinds[name]())
        self.client = types.SimpleNamespace(factory=factory)


class Session:
    """What Nova uses of oslo.vmware's ``VMwareAPISession``."""

    def __init__(self, service):
        self.vim = Vim(service)

    def _call_method(self, module, method, target, *names, **fields):
        if module is vutil:
            return getattr(vutil, method)(self.vim, target, *names)
        if "searchSpec" not in fields and method == "SearchDatastore_Task":
            fields["searchSpec"] = vim.host.DatastoreBrowser.SearchSpec(matchPattern=["*"])
        try:
            return getattr(target, method)(**fields)
        except vim.fault.VimFault as fault:
            raise translated(fault) from fault

    def _wait_for_task(self, task):
        while True:
            info = self._read(task)
            if info["info.state"] == "success":
                return types.SimpleNamespace(result=info.get("info.result"))
            if info["info.state"] == "error":
                raise translated(info["info.error"])

    def _read(self, task):
        """Return what of a task's info pyvmomi can read: the simulator puts a manager into its entity."""
        collector = vmodl.query.PropertyCollector
        paths = ["info.state", "info.error", "info.result"]
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=task)],
            propSet=[collector.PropertySpec(type=vim.Task, pathSet=paths)],
        )
        found = self.vim.service_content.propertyCollector.RetrieveContents([spec])
        return {one.name: one.val for one in found[0].propSet}


def translated(fault):
    """Return oslo.vmware's exception for a fault."""
    kind = EXCEPTIONS.get(type(fault).__name__, vexc.VimFaultException)
    return kind([type(fault).__name__], str(fault)) if kind is vexc.VimFaultException else kind()


class Judge:
    """Nova's view of one cluster's caches."""

    def __init__(self, order):
        CONF([], project="nova", default_config_files=[order["conf"]])
        lockutils.set_defaults(CONF.oslo_concurrency.lock_path)
        vutil.get_object_property = lambda _, ref, name: getattr(ref, name)
        vutil.get_moref_value = lambda ref: ref._moId
        self.service = pyVim.connect.SmartConnect(
            host="127.0.0.1", port=order["port"], user=order["user"], pwd=order["password"],
            sslContext=ssl._create_unverified_context(),
        )  # fmt: skip
        content = self.service.content
        self.datacenter = content.rootFolder.childEntity[0]
        ops = self.ops = vmops.VMwareVMOps.__new__(vmops.VMwareVMOps)
        ops._session = Session(self.service)
        ops._datastore_browser_mapping = {}
        ops._tmp_folder = "vmware_temp"
        ops._base_folder = ops._get_base_folder()
        ops._imagecache = imagecache.ImageCacheManager(ops._session, ops._base_folder)
        self.dc_info = ds_util.DcInfo(ref=self.datacenter, name="DC0", vmFolder=None)
        for one in self.datacenter.datastore:
            ds_util._DS_DC_MAPPING[one._moId] = self.dc_info
        self.datastores = [
            ds_obj.Datastore(ref=one, name=one.summary.name, capacity=1 << 40, freespace=1 << 39)
            for one in self.datacenter.datastore
        ]

    def look(self, order):
        """Return, per datastore and image, whether a boot would hit, and which size Nova sees."""

        def missing(*_, **__):
            raise Missing

        callbacks = type(self.ops)._get_image_callbacks
        self.ops._get_image_callbacks = lambda vi: callbacks(self.ops, vi) and (missing,) * 3
        found = {}
        for one in order["images"]:
            info = images.VMwareImage(
                one["id"], file_size=one["size"], disk_type=one["disk_type"], file_type=one["format"],
                container_format=one["container"], linked_clone=True,
            )  # fmt: skip
            for datastore in self.datastores:
                instance = types.SimpleNamespace(uuid="u", flavor=types.SimpleNamespace(root_gb=1))
                vi = vmops.VirtualMachineInstanceConfigInfo(
                    instance, info, datastore, self.dc_info, self.ops._imagecache
                )
                self.ops._imagecache.enlist_image(one["id"], datastore, self.datacenter)
                try:
                    self.ops._fetch_image_if_missing(nova_context.get_admin_context(), vi)
                except Missing:
                    said = "miss"
                else:
                    said = "hit"
                found[f"{datastore.name} {one['id']}"] = [said, info.file_size]
        return {"found": found, "base": self.ops._base_folder}

    def age(self, order):
        """Run Nova's cache manager once; ``used``: ids of images that instances use."""
        manager = self.ops._imagecache
        used = {name: (1, 0, ["i"], set()) for name in order["used"]}
        manager._list_running_instances = lambda *_: {"used_images": used}
        manager.update(None, [], [(one, self.dc_info) for one in self.datastores])
        return {}


def main():
    """Answer until standard input ends."""
    judge = Judge(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(judge, order["do"])(order)), flush=True)
    os._exit(0)  # pyvmomi keeps its connection alive in a thread


if __name__ == "__main__":
    main()
