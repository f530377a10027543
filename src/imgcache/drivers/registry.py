"""Which drivers there are: an explicit table, so that a frozen binary contains them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.base import Driver
from imgcache.drivers.libvirt import LibvirtDriver

if TYPE_CHECKING:
    from collections.abc import Mapping


class GlanceCacheDriver(Driver):
    """The cache on Glance API nodes; pre-caching is not built yet."""

    name = "glance-cache"


class VmwareDriver(Driver):
    """vmwareapi; pre-caching is not built yet, as in Nova itself."""

    name = "vmwareapi"


class HypervDriver(Driver):
    """Hyper-V; pre-caching is not built yet."""

    name = "hyperv"


#: Driver name, as the inventory says it -> the driver.
DRIVERS: Mapping[str, Driver] = {
    driver.name: driver
    for driver in (LibvirtDriver(), GlanceCacheDriver(), VmwareDriver(), HypervDriver())
}
