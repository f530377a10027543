"""What ``imgcache check`` asks of a host that runs nova-compute for a vSphere cluster."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Verdict's state is a literal

import os

from .core import user_name
from .probe import Probe, Verdict
from .vmware import Cluster
from .vmware_conf import Settings
from .vmware_entry import reserve_of

_GIB = 1 << 30
_CHECKS = (
    "python",
    "user",
    "config",
    "vcenter",
    "datastores",
    "cache",
    "locks",
    "space",
    "glance",
    "nova",
)


class VmwareProbe(Probe):
    """The checks; each returns its detail when all is well, else raises."""

    cluster = None

    def run(self):
        """Return all checks in a fixed order."""
        return {"checks": [self.check(name) for name in _CHECKS]}

    def check_config(self):
        """Whether nova.conf has what is needed; vCenter is asked along with it."""
        self.settings = settings = Settings(self.order)
        values = settings.values
        detail = "%s: vCenter %s:%d as %s, cluster %s" % (
            ", ".join(settings.paths),
            settings.host,
            values["host_port"],
            values["host_username"][:80],
            values["cluster_name"][:80],
        )
        if values["insecure"] and not values["ca_file"]:
            raise Verdict("warn", detail + "; insecure: its certificate is not checked")
        return detail

    def check_vcenter(self):
        """Whether vCenter can be reached, is trusted, and takes the credentials."""
        self.cluster = Cluster(self.session, self.order)
        return self.cluster.vim.about("fullName")

    def need(self):
        """Return the cluster, or say that its own check tells more."""
        if self.cluster is None:
            raise Verdict("fail", "not known: see vcenter")
        return self.cluster

    def check_datastores(self):
        """Which datastores Nova may choose."""
        cluster = self.need()
        return ", ".join("%s (%s)" % (store.name, store.kind) for store in cluster.stores)

    def check_cache(self):
        """Whether the folder is there by the name that we expect."""
        cluster = self.need()
        there = [
            store.name
            for store in cluster.stores
            if cluster.search(store, cluster.base) is not None
        ]
        if there:
            return "%s on %s" % (cluster.base, ", ".join(there))
        detail = "%s is not there yet" % cluster.base
        if cluster.settings.guessed and cluster.folders():
            raise Verdict("warn", "%s, but %s" % (detail, ", ".join(sorted(cluster.folders()))))
        return detail

    def check_locks(self):
        """Whether we can take the locks that Nova takes."""
        folder = self.need().settings.lock_path()
        if folder is None:
            return "disable_process_locking: Nova takes none"
        if not os.path.isdir(folder):
            raise Verdict("fail", "lock_path %s is no folder here" % folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Verdict("fail", "lock_path %s is not writable for %s" % (folder, user_name()))
        return folder

    def check_space(self):
        """Whether more is free than must remain free."""
        short, details = False, []
        for store in self.need().stores:
            reserve = reserve_of(store, self.order.get("reserve"))
            details.append(
                "%s: %.1f GiB free, %.1f GiB of them a reserve"
                % (store.name, store.free / _GIB, reserve / _GIB)
            )
            short = short or store.free <= reserve
        if short:
            raise Verdict("fail", "; ".join(details) + ": no room for any image")
        return "; ".join(details)

    def all_given(self):
        """Credentials always come from nova.conf."""
        return False


def order_vmware_probe(session, order):
    """Answer what ``imgcache check`` asks."""
    probe = VmwareProbe(session, order)
    try:
        return probe.run()
    finally:
        if probe.cluster is not None:
            probe.cluster.vim.end()
