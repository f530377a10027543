"""Lets Nova's own vmwareapi code judge a cache; runs in the environment of ``tools/requirements-nova.txt``.

oslo.vmware cannot speak with the simulated vCenter, which has no WSDL: its session is replaced by pyvmomi. All
that decides what is in the cache, what is old and what goes is Nova's. Reads one JSON object from standard
input, writes one to standard output.
"""

# mypy: ignore-errors
# ruff: noqa: E402

import json
import os
import sys
import types

import pyVim.connect
from oslo_concurrency import lockutils
from oslo_config import cfg
from oslo_vmware import exceptions as vexc
from oslo_vmware import vim_util as vutil
from oslo_vmware.objects import datastore as ds_obj
from pyVmomi import vim

from nova import context as nova_context
from nova.conf import CONF
from nova.virt.vmwareapi import ds_util, images, vmops

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

    def _call_method(self, module, method, target, **fields):
        del module
        if method == "get_object_property":
            raise NotImplementedError(method)
        if "searchSpec" not in fields and method == "SearchDatastore_Task":
            fields["searchSpec"] = vim.host.DatastoreBrowser.SearchSpec(matchPattern=["*"])
        try:
            return getattr(target, method)(**fields)
        except vim.fault.VimFault as fault:
            raise translated(fault) from fault

    def _wait_for_task(self, task):
        while task.info.state in ("queued", "running"):
            pass
        if task.info.state == "error":
            raise translated(task.info.error)
        result = task.info.result
        return types.SimpleNamespace(result=result)


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
        import ssl

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
        from nova.virt.vmwareapi import imagecache

        ops._imagecache = imagecache.ImageCacheManager(ops._session, ops._base_folder)
        self.dc_info = ds_util.DcInfo(ref=self.datacenter, name="DC0", vmFolder=None)
        self.datastores = [
            ds_obj.Datastore(ref=one, name=one.summary.name, capacity=1 << 40, freespace=1 << 39)
            for one in self.datacenter.datastore
        ]

    def look(self, order):
        """Return, per datastore and image, whether a boot would hit, and which size Nova sees."""

        def missing(*_, **__):
            raise Missing

        for name in ("fetch_image", "fetch_image_stream_optimized", "fetch_image_ova"):
            setattr(images, name, missing)
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
                found["%s %s" % (datastore.name, one["id"])] = [said, info.file_size]
        return {"found": found, "base": self.ops._base_folder}

    def age(self, order):
        """Run Nova's cache manager once; ``used``: ids of images that instances use."""
        manager = self.ops._imagecache
        used = {name: (1, 0, ["i"], set()) for name in order["used"]}
        manager._list_running_instances = lambda *_: {"used_images": used}
        manager.update(None, [], [(one, self.dc_info) for one in self.datastores])
        return {}


def main():
    order = json.load(sys.stdin)
    judge = Judge(order)
    answer = getattr(judge, order["do"])(order)
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # pyvmomi keeps its connection alive in a thread


if __name__ == "__main__":
    main()
