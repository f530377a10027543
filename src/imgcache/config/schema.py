"""What an inventory file may say: file models, which travel no further than ``config``.

Every field may be missing; which were given is read from ``model_fields_set``, so that defaults,
aggregate and host can be laid over each other. Defaults proper are in ``model.HostSettings``.
"""

# ruff: noqa: TC001 - pydantic reads the annotations at run time

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from imgcache.config.fields import (
    Account,
    DriverName,
    FolderName,
    HostName,
    HostPath,
    HostPaths,
    Jumps,
    LinkRate,
    LocalPath,
    Login,
    Names,
    NodeSetText,
    NodeUrl,
    Ports,
    SizeBytes,
    Switch,
    Text,
    Url,
    WindowText,
    Words,
    ZoneName,
)

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageServiceEntry(_FileModel):
    """``image_service:``."""

    kind: Literal["glance", "directory"] = "glance"
    cloud: Text | None = None
    endpoint: Url | None = None
    host_endpoint: Url | None = None
    host_interface: Literal["public", "internal", "admin"] | None = None
    path: LocalPath | None = None


class SettingsEntry(_FileModel):
    """``defaults:``, and the part of an aggregate or a host that says how to reach and treat hosts."""

    driver: DriverName | None = None
    address: HostName | None = None
    port: Port | None = None
    user: Login | None = None
    become: Literal["none", "sudo"] | None = None
    become_user: Account | None = None
    removal_become: Literal["none", "sudo"] | None = None
    removal_become_user: Account | None = None
    python: Words | None = None
    transport: Literal["ssh", "local"] | None = None
    ssh_key: LocalPath | None = None
    known_hosts: LocalPath | None = None
    proxy_jump: Jumps | None = None
    connect_timeout_s: Seconds | None = None
    nova_conf: HostPaths | None = None
    instances_path: HostPath | None = None
    cache_subdirectory: FolderName | None = None
    force_raw_images: bool | None = None
    # Source: nova conf/libvirt.py, the choices of [libvirt] images_type.
    images_type: Literal["raw", "flat", "qcow2", "lvm", "rbd", "ploop", "default"] | None = None
    reserve: SizeBytes | None = None
    endpoint: NodeUrl | None = None
    datastores: Names | None = None
    relay_address: HostName | None = None
    relay_ports: Ports | None = None
    relay_tls: Switch | None = None
    keep_original: bool | None = None


class HostEntry(SettingsEntry):
    """One item of ``hosts:``: a node set, or a mapping with its ``name`` and settings."""

    name: NodeSetText
    cell: Text | None = None
    site: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class AggregateEntry(SettingsEntry):
    """One value of ``aggregates:``."""

    cell: Text | None = None
    site: Text | None = None
    hosts: list[HostEntry] = []


class SiteEntry(_FileModel):
    """One value of ``sites:``."""

    bandwidth: LinkRate | None = None
    window: WindowText | None = None
    timezone: ZoneName | None = None


class PartEntry(_FileModel):
    """What every file of an inventory may say about hosts."""

    defaults: SettingsEntry = SettingsEntry()
    sites: dict[Text, SiteEntry] = {}
    aggregates: dict[Text, AggregateEntry] = {}


class InventoryEntry(PartEntry):
    """The main file."""

    image_service: ImageServiceEntry = ImageServiceEntry()
    include: Names = ()


#: Where a key may stand, for the hint about an unknown one: see ``keys_at``.
_ENTRIES: dict[str, type[_FileModel]] = {
    "": InventoryEntry,
    "image_service": ImageServiceEntry,
    "defaults": SettingsEntry,
    "sites": SiteEntry,
    "aggregates": AggregateEntry,
    "hosts": HostEntry,
}


def keys_at(parent: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the keys that the mapping at this path may have."""
    place = "hosts" if len(parent) > 2 else str(parent[0]) if parent else ""
    return tuple(_ENTRIES[place].model_fields) if place in _ENTRIES else ()
