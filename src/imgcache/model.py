"""The things imgcache knows about: values only, no input or output."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NewType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

ImageId = NewType("ImageId", str)
"""The id of an image exactly as the image service returned it."""

#: Formats whose content the helper can judge; all others are refused before any host is contacted.
CACHEABLE_DISK_FORMATS = frozenset(
    {"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso", "ami", "ari", "aki"}
)
#: Those among them that no host ever converts. Source: nova ``virt/images.py``, ``fetch_to_raw``.
RAW_DISK_FORMATS = frozenset({"raw", "iso", "ami", "ari", "aki"})

#: How a driver may be called, in the inventory and by who registers it.
DRIVER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)

#: What back ends must know of an image to store it as Nova would.
#: Source: nova ``virt/vmwareapi/images.py``; the older names: ``objects/image_meta.py``.
BACKEND_PROPERTIES = frozenset(
    {"hw_disk_type", "vmware_disktype", "hw_disk_bus", "hw_scsi_model", "vmware_adaptertype"}
)


def base_file_name(image_id: ImageId) -> str:
    """Return the name of an image's base file: 40 lower-case hex characters.

    Source: nova ``virt/libvirt/imagecache.py``, ``get_cache_fname``: SHA-1 of the id's UTF-8 bytes.
    """
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest of an image's original bytes, as the image service states it."""

    algo: str
    """A name that ``hashlib`` guarantees, such as ``sha512``."""
    value: str
    """Lower-case hex."""

    @property
    def weak(self) -> bool:
        """Whether someone could craft other bytes with this digest (MD5, SHA-1)."""
        return self.algo in {"md5", "sha1"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was verified to be cacheable: active, with a size, a digest, an allowed format."""

    id: ImageId
    name: str
    size_bytes: int
    """Bytes of the original, as stored and served; always above 0."""
    disk_format: str
    container_format: str
    digest: Digest
    virtual_size_bytes: int | None = None
    """Bytes of the disk inside; None when the image service does not know."""
    properties: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of the image's own properties those in ``BACKEND_PROPERTIES``."""

    @property
    def base_name(self) -> str:
        """See ``base_file_name``."""
        return base_file_name(self.id)


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How to reach and treat one host.

    None means: the host's own nova.conf, then Nova's default; for SSH settings: ``~/.ssh/config``,
    then OpenSSH's default.
    """

    driver: str = "libvirt"
    address: str | None = None
    port: int | None = None
    user: str | None = None
    become: Literal["none", "sudo"] = "none"
    become_user: str = "nova"
    removal_become: Literal["none", "sudo"] | None = None
    """``become`` for commands that remove files; None: see ``for_removal``."""
    removal_become_user: str | None = None
    """``become_user`` for commands that remove files; None: see ``for_removal``."""
    python: tuple[str, ...] = ("python3",)
    """The command that starts Python on the host, as separate words."""
    transport: Literal["ssh", "local"] = "ssh"
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    proxy_jump: str | None = None
    connect_timeout_s: float = 20.0
    """For connection and login together."""
    nova_conf: tuple[str, ...] | None = None
    """Paths on the host, later ones winning; None: where oslo.config looks."""
    instances_path: str | None = None
    cache_subdirectory: str | None = None
    force_raw_images: bool | None = None
    images_type: str | None = None
    reserve_bytes: int | None = None
    """Free space that must remain on the cache's file system; None: max of 5 % and 10 GiB."""
    endpoint: str | None = None
    """The host's own URL, for drivers that speak HTTP with it."""
    datastores: tuple[str, ...] | None = None
    """For vmwareapi: their names, or only ``emptiest``; None: all that Nova may choose."""
    relay_address: str | None = None
    """Where other hosts of its site reach it, and what it listens on; None: ``address``, everywhere."""
    relay_ports: tuple[int, int] | None = None
    """First and last port it may listen on for them; None: any free one."""
    relay_tls: bool = True
    """Encrypt what hosts of a site send each other."""
    keep_original: bool = False
    """Keep a converted image's original bytes, so that hosts added later are filled from here."""

    def for_removal(self) -> HostSettings:
        """Return the settings of a command that removes files, which may need root to see what is in use.

        ``removal_become: sudo`` alone means root; ``removal_become_user`` alone means sudo; without both it
        is as in other commands.
        """
        if self.removal_become is None and self.removal_become_user is None:
            return self
        become, user = self.removal_become or "sudo", self.removal_become_user or "root"
        return replace(self, become=become, become_user=user)


@dataclass(frozen=True, slots=True)
class Host:
    """A compute node we can reach, as one run uses it."""

    name: str
    aggregate: str
    """The first selected aggregate that names it."""
    cell: str | None
    site: str | None
    settings: HostSettings

    @property
    def address(self) -> str:
        """Where to connect: the given address, else the name (``~/.ssh/config`` may map it)."""
        return self.settings.address or self.name


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A named group of hosts, as in Nova."""

    name: str
    cell: str | None
    site: str | None
    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class ImageServiceSettings:
    """Which image service to use, from the inventory; the command line's ``--os-*`` overrides."""

    kind: Literal["glance", "directory"] = "glance"
    cloud: str | None = None
    endpoint: str | None = None
    """Glance without Keystone, or an endpoint that overrides the catalogue's."""
    host_endpoint: str | None = None
    """The URL at which hosts reach Glance, when it differs from the controller's."""
    host_interface: str | None = None
    """The catalogue interface that hosts use (``internal``), when it differs."""
    path: Path | None = None
    """The folder of a ``directory`` image service, absolute."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place whose hosts share a link to the outside."""

    name: str
    bytes_per_s: int | None = None
    """What all downloads from outside may take together; None: no limit."""
    window: str | None = None
    """When they may run, local time: ``22:00-05:00``; None: always."""
    timezone: str | None = None
    """An IANA name, such as ``Europe/Oslo``; None: the controller's own."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the inventory file says, checked and resolved."""

    path: Path
    image_service: ImageServiceSettings
    aggregates: Mapping[str, Aggregate] = field(default_factory=dict)
    """Aggregate name -> aggregate, in the file's order."""
    sites: Mapping[str, Site] = field(default_factory=dict)
    """Site name -> site, for those that say more than their name."""

    def with_settings(self, change: Callable[[HostSettings], HostSettings]) -> Inventory:
        """Return the inventory with the settings of each host changed."""
        aggregates = {
            name: replace(
                aggregate,
                hosts=tuple(
                    replace(host, settings=change(host.settings)) for host in aggregate.hosts
                ),
            )
            for name, aggregate in self.aggregates.items()
        }
        return replace(self, aggregates=aggregates)


class Secret:
    """A string that does not show itself in reprs, logs or tracebacks."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; only to be put into a frame for a host."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"


@dataclass(frozen=True, slots=True)
class ServiceAccess:
    """What a host needs to download one image by itself. Never printed: the token has no repr."""

    url: str
    """The full URL of the image's file."""
    token: Secret | None
    """None for an image service without authentication."""
    ca_pem: str | None
    """Certificates to trust, PEM; None: the host's own."""
    insecure: bool
    """Do not check the certificate; only by the operator's explicit choice."""


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """What a node of a service answered to one request; whatever its status, but see ``NodeApi``."""

    status: int
    headers: Mapping[str, str]
    """Names in any case."""
    body: bytes
    """Empty for an error."""
    detail: str = ""
    """What an error's body says and the request's id, as one safe line that goes on a sentence."""


class EntryKind(StrEnum):
    """What a file in a cache is, by the shape of its name.

    Source: nova ``virt/libvirt/imagecache.py``, ``_scan_base_images``.
    """

    ORIGINAL = "original"
    RESIZED = "resized"
    SWAP = "swap"
    EPHEMERAL = "ephemeral"
    STAGING = "staging"
    """A transfer's file, ours or Nova's (``.part``, ``.converted``)."""
    QUEUED = "queued"
    """An image that is not there yet: the back end itself is to fetch it."""
    FOREIGN = "foreign"
    """Nothing of Nova's or ours; never touched."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What imgcache wrote down beside a base file when it fetched or adopted it."""

    image_id: ImageId
    image_name: str
    digest: Digest
    """Of the original bytes, as verified."""
    stored_digest: Digest | None
    """Of the file on the disk; None when it was not hashed after its conversion."""
    stored_size_bytes: int
    stored_format: str
    disk_format: str
    source: str
    cached_at: datetime
    touched_at: datetime | None
    verified_at: datetime | None
    pinned_until: datetime | None
    """None: not pinned; ``PIN_FOREVER``: for ever."""


PIN_FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file in a host's cache, as the host reports it."""

    name: str
    """Sanitised; for kinds other than foreign exactly the file's name."""
    kind: EntryKind
    size_bytes: int
    """Apparent size."""
    allocated_bytes: int
    """Allocated blocks, as Nova counts (st_blocks x 512)."""
    format: str | None
    """By the header: raw, qcow2 …; None when not looked at."""
    age_s: float
    """Since its mtime, by the host's own clock; negative when the mtime lies in the future."""
    inode: int
    mtime_ns: int
    links: int
    users: int | None
    """How many instances or processes use it; None when the host's evidence is incomplete."""
    used_by: tuple[str, ...]
    """A few of them, sanitised, for people."""
    live: bool
    """For staging files: someone is at work on it."""
    manifest: Manifest | None
    image_id: ImageId | None = None
    """The image that its name tells, for back ends whose names do."""
    base: str | None = None
    """What ``Driver.entry_name`` calls the image that it is, or was made of.

    None: its ``image_id``, or of an original its own name.
    """
    partial: bool = False
    """The back end keeps copies in several places, and not all have one: it is missing as well as there."""
    hits: int | None = None
    """How often it was used, for back ends that count."""
    unremovable: str | None = None
    """Why the host could not remove it, whatever uses it; None when nothing stands against that."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What the host's own nova.conf says about the life of its cache; or its driver, where none does."""

    remove_unused: bool
    original_min_age_s: float
    """Infinite: nothing is removed for its age alone."""
    resized_min_age_s: float
    reserved_host_disk_mb: int
    reserves_cache: bool
    """``[workarounds] reserve_disk_resource_for_image_cache``; also where nothing has to be reserved."""
    manager_interval_s: int
    """-1: Nova's cache manager never runs."""
    floor_s: float = 3600.0
    """What was used so recently is never removed: a boot may be on its way to it. 0: none ever is."""


@dataclass(frozen=True, slots=True)
class HostCache:
    """A host's cache, as the host reports it at one moment."""

    cache_path: str
    instances_path: str
    entries: tuple[CacheEntry, ...]
    policy: CachePolicy
    filesystem: str
    """Its type: ext4, xfs, nfs …"""
    filesystem_size_bytes: int
    filesystem_free_bytes: int
    own_filesystem: bool
    """Whether the cache is on another file system than ``instances_path``."""
    nova_usage_bytes: int
    """What Nova's ``get_disk_usage`` counts."""
    evidence_problems: tuple[str, ...]
    """What could not be read while looking for users; anything here means: remove nothing."""
    storage_id: str | None
    """The same for all hosts that share this cache; None when it is not shared."""
    shares_with: tuple[str, ...]
    """Other hosts that used the storage within 24 h, by Nova's ``compute_nodes`` file; sanitised."""
    nodename: str
    """What the host calls itself there."""
