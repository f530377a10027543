"""A vSphere cluster's caches from the command line, through sshd and the helper, to Nova's own code."""

from __future__ import annotations

import datetime
import json
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from contract.test_vmwareapi_nova import NOVA_PYTHON, Judge
from helper.vmware.disks import iso, ova, plain, vmdk
from servers.fleet_fixtures import add_image
from servers.life_fixtures import schema
from servers.openstack import MEMBER
from servers.vcenter import MACHINE, PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.fleet_fixtures import Fleet
    from servers.openstack import KeystoneAndGlance
    from servers.vcenter import VCenter

pytestmark = [pytest.mark.sshd, pytest.mark.vcenter, pytest.mark.qemu]

DISK = "5e5e0000-0000-4000-8000-00000000000d"
DVD = "5e5e0000-0000-4000-8000-0000000000cd"
DAY = 86400


@pytest.fixture
def cluster(fleet: Fleet, vcenter: VCenter) -> Fleet:
    """A fleet whose one host runs nova-compute for the cluster."""
    fleet.names = fleet.names[:1]
    conf = vcenter.nova_conf(fleet.folder)
    fleet.defaults = {"driver": "vmwareapi", "nova_conf": [str(conf)], "images_type": None}
    fleet.overrides = {fleet.names[0]: {"instances_path": None}}
    add_image(fleet.folder / "images", DISK, "debian-12", plain(), "vmdk")
    add_image(fleet.folder / "images", DVD, "rescue", iso(), "iso")
    return fleet


@pytest.fixture
def judged(cluster: Fleet, vcenter: VCenter) -> Iterator[Judge]:
    """Nova's own code, looking at the same cluster."""
    if not NOVA_PYTHON.exists():
        pytest.skip("needs .venv-nova, made of tools/requirements-nova.txt")
    judge = Judge(cluster.folder / "nova.conf", vcenter.port)
    yield judge
    judge.close()


def outcomes(fleet: Fleet, *argv: str, code: int = 0) -> dict[str, tuple[str, str | None]]:
    """Return image name -> outcome and code of a run."""
    done = fleet.run(*argv, "-f", "json")
    assert done.returncode == code, (done.stdout, done.stderr)
    assert PASSWORD not in done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(document, schema(argv[0]))
    return {one["image_name"]: (one["outcome"], one["code"]) for one in document["outcomes"]}


def mark(vcenter: VCenter, age_s: float) -> None:
    """Mark all images as unused since then, as Nova's cache manager does."""
    when = datetime.datetime.fromtimestamp(time.time() - age_s, datetime.UTC)
    for image_id in (DISK, DVD):
        for folder in vcenter.cached(image_id):
            (folder / f"{when:ts-%Y-%m-%d-%H-%M-%S}").mkdir()


def test_the_life_of_images_on_a_cluster(cluster: Fleet, vcenter: VCenter, judged: Judge) -> None:
    dry = outcomes(cluster, "precache", "--all", "debian-12", "rescue", "--dry-run")
    assert dry == dict.fromkeys(("debian-12", "rescue"), ("skipped", "dry-run"))
    cached = outcomes(cluster, "precache", "--all", "debian-12", "rescue", "-vv")
    assert cached == dict.fromkeys(("debian-12", "rescue"), ("cached", None))
    again = outcomes(cluster, "precache", "--all", "debian-12", "rescue")
    assert again == dict.fromkeys(("debian-12", "rescue"), ("existing", None))

    images = [
        {"id": DISK, "size": len(plain()), "disk_type": "preallocated", "format": "vmdk"},
        {"id": DVD, "size": len(iso()), "disk_type": "preallocated", "format": "iso"},
    ]
    answer = judged("look", images=[dict(one, container="bare") for one in images])
    assert {said for said, _ in answer["found"].values()} == {"hit"}
    assert len(answer["found"]) == 4

    listed = cluster.run("list", "--all", "-f", "json")
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)["entries"]
    assert {(row["image_name"], row["format"]) for row in rows} == {
        ("debian-12", "vmdk"), ("rescue", "iso"),
    }  # fmt: skip
    gate = cluster.run("list", "--all", "--missing", "debian-12")
    assert gate.returncode == 0, gate.stdout
    # missing on one datastore is missing: Nova may choose that one
    folder = vcenter.cached(DISK)[0]
    folder.rename(folder.with_name("away"))
    gate = cluster.run("list", "--all", "--missing", "debian-12")
    assert gate.returncode == 5, gate.stdout
    folder.with_name("away").rename(folder)

    assert set(outcomes(cluster, "verify", "--all").values()) == {("intact", None)}
    assert outcomes(cluster, "pin", "--all", "rescue", "--for", "30d") == {
        "rescue": ("pinned", None)
    }
    mark(vcenter, 5 * DAY)
    assert outcomes(cluster, "refresh", "--all") == {"rescue": ("renewed", None)}
    mark_after = judged("age", used=[DVD])
    assert mark_after == {}
    assert vcenter.cached(DISK) == []  # Nova's own aging took what was not renewed
    assert len(vcenter.cached(DVD)) == 2


def test_what_is_in_use_stays_and_the_rest_is_pruned(cluster: Fleet, vcenter: VCenter) -> None:
    outcomes(cluster, "precache", "--all", "debian-12", "rescue")
    mark(vcenter, 5 * DAY)
    vcenter.ask("machine", name=MACHINE, annotation=f"imageid:{DISK}\n")
    status = cluster.run("status", "--all", "-f", "json")
    [one] = json.loads(status.stdout)["hosts"]
    assert one["in_use_bytes"] > 0
    assert one["reclaimable_entries"] == 1
    pruned = outcomes(cluster, "prune", "--all")
    assert pruned == {"debian-12": ("kept", "in-use"), "rescue": ("removed", None)}
    vcenter.ask("machine", name=MACHINE)
    assert outcomes(cluster, "delete", "--all", "debian-12") == {"debian-12": ("removed", None)}
    assert vcenter.cached(DISK) == []
    assert outcomes(cluster, "clean", "--all") == {}


def test_a_check_tells_what_is_wrong(cluster: Fleet, vcenter: VCenter, tmp_path: Path) -> None:
    done = cluster.run("check", "--all", "-f", "json")
    rows = {one["check"]: one["state"] for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert rows["vcenter"] == rows["datastores"] == rows["locks"] == "ok"
    assert rows["config"] == "warn"  # insecure
    vcenter.nova_conf(cluster.folder, host_password="canary-other")
    done = cluster.run("check", "--all", "-f", "json")
    rows = {one["check"]: one["state"] for one in json.loads(done.stdout)["checks"]}
    assert rows["vcenter"] == "fail"
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.openstack
def test_a_host_downloads_from_glance_what_its_properties_say(
    cluster: Fleet, vcenter: VCenter, cloud: KeystoneAndGlance, judged: Judge
) -> None:
    cluster.image_service = {"kind": "glance"}
    cluster.environ = cloud.environ(MEMBER)
    token = cloud.token(MEMBER)
    glance = cloud.glance
    contents = {"sparse": vmdk("monolithicSparse"), "package": ova()}
    ids = {
        "sparse": glance.upload(
            "sparse", contents["sparse"], token=token, disk_format="vmdk", vmware_disktype="sparse"
        ),
        "package": glance.upload(
            "package", contents["package"], token=token, disk_format="vmdk", container_format="ova"
        ),
    }
    done = cluster.run("precache", "--all", "sparse", "package", "-f", "json", "-vv")
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = {one["image_name"]: one for one in json.loads(done.stdout)["outcomes"]}
    for name, data in contents.items():
        assert (found[name]["outcome"], found[name]["source"]) == ("cached", "service")
        assert found[name]["bytes_fetched"] == len(data)
    images = [
        {
            "id": ids[name], "size": len(data), "disk_type": "sparse", "format": "vmdk",
            "container": "ova" if name == "package" else "bare",
        }
        for name, data in contents.items()
    ]  # fmt: skip
    answer = judged("look", images=images)
    assert {said for said, _ in answer["found"].values()} == {"hit"}
    assert answer["found"][f"LocalDS_0 {ids['sparse']}"][1] == len(plain())
    secrets = [PASSWORD, MEMBER.password]
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]
