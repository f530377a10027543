"""Runs of the life operations over real sshd: what is on the hosts before, and what is said after."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.config.load import load_inventory
from imgcache.events import Notice
from imgcache.images.directory import DirectoryImageService
from imgcache.operations.clean import CleanRequest, run_clean
from imgcache.operations.delete import DeleteRequest, run_delete
from imgcache.operations.listing import ListRequest, run_list
from imgcache.operations.pin import PinRequest, RefreshRequest, run_pin, run_refresh
from imgcache.operations.precache import PrecacheRequest, run_precache
from imgcache.operations.prune import PruneRequest, run_prune
from imgcache.operations.selection import Selection
from imgcache.operations.status import StatusRequest, run_status
from imgcache.operations.verify import VerifyRequest, run_verify
from scenarios.life_world import overlay
from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from imgcache.events import Event
    from imgcache.model import Site
    from imgcache.plan import EntryReport, ListReport, Report, StatusReport
    from servers.fleet_fixtures import Fleet

DAY = 86400.0
IDS = [f"11fe11fe-2222-4333-8444-{number:012}" for number in range(6)]


@dataclass
class Rig:
    """Three hosts and a directory image service with the images ``img0`` to ``img5``."""

    fleet: Fleet
    events: list[Event] = field(default_factory=list)
    selection: Selection = field(default_factory=lambda: Selection(all=True))
    content: bytes = b"neither qcow2 nor anything else " * 3000
    site: Site | None = None
    """What all hosts are in, if they are."""

    def __post_init__(self) -> None:
        for number, image_id in enumerate(IDS):
            add_image(
                self.fleet.folder / "images",
                image_id,
                f"img{number}",
                self.content + bytes([number]),
            )
        for name in self.fleet.names:
            self.conf(name, f"host={name}\n")

    def conf(self, name: str, lines: str, more: str = "") -> None:
        """Write a host's nova.conf."""
        path = self.fleet.folder / name / "nova.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[DEFAULT]\n{lines}\n[image_cache]\n{more}")
        self.fleet.overrides.setdefault(name, {})["nova_conf"] = str(path)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def notices(self) -> str:
        return "\n".join(event.message for event in self.events if isinstance(event, Notice))

    def blind(self, name: str, *, from_start: int = 1) -> None:
        """Let helpers on a host see only a container's processes, from this start on: evidence is missing."""
        apart = ["unshare", "--pid", "--fork", "--mount-proc"]
        tried = subprocess.run([*apart, "true"], check=False, capture_output=True)
        if tried.returncode:
            pytest.skip("needs root, and process namespaces")
        folder = self.fleet.folder / name
        script = folder / "python"
        script.write_text(
            f"echo >>{folder}/starts\n"
            f'[ $(wc -l <{folder}/starts) -lt {from_start} ] || set -- {" ".join(apart)} "$@"\n'
            'exec "$@"\n'
        )
        self.fleet.overrides[name]["python"] = f"sh {script} {sys.executable}"

    def share(self, names: Iterable[str] | None = None) -> Path:
        """Let all hosts use the first one's instances path, and register these as Nova does."""
        first = self.fleet.instances(self.fleet.names[0])
        for name in self.fleet.names:
            self.fleet.overrides[name]["instances_path"] = str(first)
        registered = ", ".join(f'"{name}": {time.time()}' for name in names or self.fleet.names)
        (first / "compute_nodes").write_text(f"{{{registered}}}")
        return first

    def base(
        self, host: int, image: int, *, age_s: float = 2 * DAY, data: bytes | None = None
    ) -> Path:
        """Make a base file as Nova would have."""
        path = self.fleet.final(self.fleet.names[host], IDS[image])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content + bytes([image]) if data is None else data)
        return self.aged(path, age_s)

    @staticmethod
    def aged(path: Path, age_s: float) -> Path:
        at = time.time() - age_s
        os.utime(path, (at, at))
        return path

    def boot(self, host: int, base: Path, folder: str = "vm-1") -> Path:
        """Make an instance's disk on a base file."""
        disk = self.fleet.instances(self.fleet.names[host]) / folder / "disk"
        disk.parent.mkdir()
        overlay(disk, str(base))
        return disk

    # ---- runs

    def _service(self) -> Any:
        return closing(DirectoryImageService(self.fleet.folder / "images"))

    def _common(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"selection": self.selection, "timeout_s": 60.0, "retries": 0, **more}

    def prune(self, **more: Any) -> EntryReport:
        with self._service() as service:
            return run_prune(PruneRequest(**self._common(more)), self.inventory(), service, self)

    def delete(self, *names: str, **more: Any) -> EntryReport:
        request = DeleteRequest(names=names, **self._common(more))
        with self._service() as service:
            return run_delete(request, self.inventory(), service, self)

    def clean(self, **more: Any) -> EntryReport:
        with self._service() as service:
            return run_clean(CleanRequest(**self._common(more)), self.inventory(), service, self)

    def verify(self, *names: str, **more: Any) -> EntryReport:
        request = VerifyRequest(names=names, **self._common(more))
        with self._service() as service:
            return run_verify(request, self.inventory(), service, self)

    def pin(self, *names: str, until: Any, **more: Any) -> EntryReport:
        request = PinRequest(names=names, until=until, **self._common(more))
        with self._service() as service:
            return run_pin(request, self.inventory(), service, self)

    def refresh(self, **more: Any) -> EntryReport:
        return run_refresh(RefreshRequest(**self._common(more)), self.inventory(), None, self)

    def list(self, *names: str, **more: Any) -> ListReport:
        request = ListRequest(names=names, **self._common(more))
        with self._service() as service:
            return run_list(request, self.inventory(), service, self)

    def status(self, **more: Any) -> StatusReport:
        return run_status(StatusRequest(**self._common(more)), self.inventory(), None, self)

    def precache(self, *names: str, **more: Any) -> Report:
        request = PrecacheRequest(
            selection=self.selection, names=names, retries=0, timeout_s=60.0, **more
        )
        with self._service() as service:
            return run_precache(request, self.inventory(), service, self)

    def inventory(self) -> Any:
        loaded = load_inventory(self.fleet.inventory())
        if self.site is None:
            return loaded
        name = self.site.name
        aggregates = {
            key: replace(
                one, site=name, hosts=tuple(replace(host, site=name) for host in one.hosts)
            )
            for key, one in loaded.aggregates.items()
        }
        return replace(loaded, aggregates=aggregates, sites={name: self.site})


def words(report: EntryReport) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Return (host's last two digits, image name or entry or '') -> (outcome, code)."""
    found = {}
    for one in report.outcomes:
        label = f"img{IDS.index(one.image_id)}" if one.image_id else _label(one.entry)
        key = one.host[-2:], label
        assert key not in found, report.outcomes
        found[key] = one.outcome.value, one.code.value if one.code else None
    return found


def _label(entry: str) -> str:
    from imgcache.model import ImageId, base_file_name

    bases = [base_file_name(ImageId(image_id)) for image_id in IDS]
    return f"img{bases.index(entry)}" if entry in bases else entry
