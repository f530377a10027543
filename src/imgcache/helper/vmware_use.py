"""Which machines use cached images: by what Nova wrote about them, and by the disks they are based on.

Nova makes the machine, with its image's id in the notes, before it asks for the image; so while the
timestamps' lock is held, no boot of this host is on its way that is not seen here. Reading many takes
minutes, and hosts that share a cache have locks of their own: so the last look finds no machine that is new.
Source: nova ``virt/vmwareapi/vmops.py`` (``spawn``, ``_get_instance_metadata``); vSphere API
``VirtualMachineFileLayoutEx``, ``VirtualDiskFlatVer2BackingInfo``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from .core import Failure
from .soap import Fault, refs_of, text_of
from .vmware import is_image_id
from .vmware_names import is_ours

_PATHS = ("name", "config.annotation", "config.hardware.device", "layoutEx.file")
_NOTE = "imageid:"
#: How often it is looked for machines that came while the others were read.
_ROUNDS = 10


class Use:
    """Image id (lower case) -> names of the machines that use it; and what could not be read."""

    def __init__(self, cluster, tell=lambda done, total: None):
        self.users = {}
        self.problems = []
        self.cluster = cluster
        try:
            self._read(tell)
        except Fault as fault:
            self.problems.append(fault.failure("cannot look at the machines").message)
        except Failure as failure:
            if failure.code == "interrupted":
                raise
            self.problems.append(failure.message)

    def of(self, image_id):
        """Return the names of the machines that use an image."""
        return sorted(self.users.get(image_id.lower(), ()))

    def _read(self, tell):
        seen = set()
        for _ in range(_ROUNDS):
            refs = [ref for value, ref in self._machines().items() if value not in seen]
            if not refs:
                return
            for start in range(0, len(refs), 100):
                tell(start, len(refs))
                found = self.cluster.vim.properties(refs[start : start + 100], _PATHS)
                for values in found.values():
                    self._note(values)
            seen.update(ref.value for ref in refs)
        self.problems.append("new machines come faster than they can be looked at")

    def _machines(self):
        """Return id -> machine, of those that have files on the datastores now."""
        machines = {}
        found = self.cluster.vim.properties([store.ref for store in self.cluster.stores], ["vm"])
        for store in self.cluster.stores:
            if "vm" in found.get(store.ref.value, {}):
                refs = refs_of(found[store.ref.value]["vm"])
                machines.update((ref.value, ref) for ref in refs)
                continue
            problem = "cannot see which machines use datastore " + store.name
            if problem not in self.problems:
                self.problems.append(problem)
        return machines

    def _note(self, values):
        name = text_of(values.get("name"), "a machine without a name")[:200]
        if "config.hardware.device" not in values:
            if not is_ours(name):
                self.problems.append("cannot read what the machine %s uses" % ascii(name))
            return
        for line in text_of(values.get("config.annotation"), "").split("\n"):
            if line.startswith(_NOTE):
                self._add(line[len(_NOTE) :].strip(), name)
        paths = [node.text or "" for node in values["config.hardware.device"].iter("fileName")]
        layout = values.get("layoutEx.file")
        if layout is not None:
            paths += [node.text or "" for node in layout.iter("name")]
        for path in paths:
            # The last folder decides: on vSAN the one above it is shown by an id instead of its name.
            folder = path.rpartition("] ")[2].split("/")[-2:-1]
            if folder and is_image_id(folder[0]):
                self._add(folder[0], name)

    def _add(self, image_id, name):
        self.users.setdefault(image_id.lower(), set()).add(name)
