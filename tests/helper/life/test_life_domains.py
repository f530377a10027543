"""Evidence that lies outside of instances_path: libvirt's files, and /proc and /sys made of real files."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgcache.helper import cache, domains, usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    Links = Mapping[str, Path | str]

from helper.controller import let_others_reach
from helper.life.tree import Tree, sha1

NOBODY = 65534

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


class Host:
    """A host's ``/proc``, ``/sys`` and libvirt folders, empty at first."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.tree = tree
        self.folder = folder
        self.libvirt = folder / "libvirt"
        for part in ("libvirt", "proc/1/fd", "proc/1/task", "proc/self", "sys/block"):
            (folder / part).mkdir(parents=True)
        (folder / "proc/1/task/1").symlink_to(folder / "proc/1")
        (folder / "proc/1/maps").touch()
        (folder / "proc/1/cmdline").touch()
        (folder / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n")

    def scan(self, *entries: Path) -> usage.Scan:
        """Look for users of these entries."""
        values = {
            "instances_path": str(self.tree.instances), "cache_subdirectory": "_base",
            "force_raw_images": True, "images_type": "qcow2",
        }  # fmt: skip
        places = domains.Places(
            (str(self.libvirt), f"{self.folder}/none"), (f"{self.folder}/storage",),
            (f"{self.folder}/volumes/*libvirt*/_data",), f"{self.folder}/passwd",
        )  # fmt: skip
        roots = usage.Roots(f"{self.folder}/proc", f"{self.folder}/sys", places)
        targets = {path.name: path.stat().st_ino for path in entries}
        found: usage.Scan = usage.Usage(cache.Cache(values), roots).scan(targets)
        return found

    def process(
        self,
        number: int,
        *words: str,
        maps: str = "",
        links: Mapping[str, Path | str] | None = None,
    ) -> None:
        """Make a process with these open files."""
        folder = self.folder / "proc" / str(number)
        (folder / "fd").mkdir(parents=True)
        (folder / "task").mkdir()
        (folder / "task" / str(number)).symlink_to(folder)
        (folder / "maps").write_text(maps)
        (folder / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
        (folder / "comm").write_text(f"{words[0][:15]}\n")
        for name, target in (links or {}).items():
            (folder / "fd" / name).symlink_to(target)


@pytest.fixture
def host(tree: Tree, tmp_path: Path) -> Host:
    """Return a host on which nothing runs."""
    return Host(tree, tmp_path)


def domain(*parts: str) -> str:
    """Return a domain's XML."""
    return f"<domain type='kvm'><uuid>{UUID}</uuid>{''.join(parts)}</domain>"


@pytest.mark.row("D5")
@pytest.mark.parametrize(
    "source",
    [
        "<disk type='file'><driver name='qemu'/><source file='{}'/></disk>",
        '<disk><source index="1" startupPolicy="optional" file="{}" /></disk>',
        "<disk><backingStore type='file'><format type='raw'/><source file='{}'/></backingStore></disk>",
        "<disk type='block'><source dev='{}'/></disk>",
        "<disk>\n <source\n  file = '{}'\n /></disk>",
    ],
)
def test_disks_of_domains(source: str, host: Host) -> None:
    base, other = host.tree.image("used"), host.tree.image("unused")
    (host.libvirt / "instance-1.xml").write_text(domain(source.format(base)))
    assert host.scan(base, other).users == {base.name: {UUID}}


@pytest.mark.row("D5")
def test_disk_of_a_domain_leads_to_its_base(host: Host, tmp_path: Path) -> None:
    base = host.tree.image("used")
    disk = tmp_path / "a & b"
    header = b"QFI\xfb" + (2).to_bytes(4, "big") + (512).to_bytes(8, "big")
    header += len(str(base)).to_bytes(4, "big")
    disk.write_bytes(header.ljust(512, b"\0") + str(base).encode())
    xml = domain(f"<source file='{tmp_path}/a &amp; b'/>")
    (host.libvirt / "x.xml").write_text(xml)
    assert host.scan(base).users == {base.name: {UUID}}


@pytest.mark.row("D5")
def test_image_that_nova_names(host: Host) -> None:
    image = "11111111-2222-3333-4444-555555555555"
    base = host.tree.image(image)
    resized, foreign = host.tree.base(f"{base.name}_20"), host.tree.image("other")
    text = domain(
        "<metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>"
        f'<nova:name>root uuid="{foreign.name}"</nova:name><nova:root type="image" uuid="{image}"/>'
        "</nova:instance></metadata>"
    )
    (host.libvirt / "x.xml").write_text(text)
    (host.libvirt / "networks").mkdir()
    scan = host.scan(base, resized, foreign)
    assert scan.users == {base.name: {UUID}, resized.name: {UUID}}
    assert base.name == sha1(image)
    assert scan.problems == []


@pytest.mark.row("D5")
def test_files_of_processes(host: Host) -> None:
    names = ("by inode", "by name", "deleted", "btrfs", "mapped")
    inode, name, deleted, btrfs, mapped = (host.tree.image(image) for image in names)
    (host.folder / "elsewhere").hardlink_to(inode)
    status, number = mapped.stat(), btrfs.stat().st_ino
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    maps = (
        "7f00-7f01 r--p 00000000 00:00 0 \n7f00-7f01 r--p 00000000 00:00 0 [heap]\n"
        f"7f00-7f01 r--s 00000000 {device} {status.st_ino} /seen/under another name\n"
        f"7f00-7f01 r--s 00000000 fe:7f {number} /another/file/system\n"
    )
    host.process(
        77, "qemu-system-x86_64", "-uuid", UUID, maps=maps,
        links={"3": host.folder / "elsewhere", "4": f"/container/_base/{name.name}", "5": "socket:[1]",
           "6": f"/x/{deleted.name} (deleted)"},
    )  # fmt: skip
    scan = host.scan(inode, name, deleted, btrfs, mapped)
    assert scan.users == {path.name: {UUID} for path in (inode, name, mapped)}
    assert scan.problems == []


@pytest.mark.row("D7")
def test_mapped_on_a_file_system_without_a_device(tmp_path: Path) -> None:
    """btrfs and overlays show a mapped file with another device number than ``stat`` gives."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or os.major(memory.stat().st_dev):
        pytest.skip("no file system without a device here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        host = Host(Tree(Path(folder) / "instances"), tmp_path)
        base = host.tree.image("image")
        maps = f"7f00-7f01 r--s 00000000 00:ff {base.stat().st_ino} /seen/under another name\n"
        host.process(77, "cat", maps=maps)
        assert host.scan(base).users == {base.name: {"process 77 (cat)"}}


@pytest.mark.row("D6")
def test_hidden_processes_are_missing_evidence(host: Host) -> None:
    (host.folder / "proc/1").rename(host.folder / "proc/gone")
    assert "hidepid" in host.scan().problems[0]


@pytest.mark.row("D6")
def test_a_container_that_shows_only_its_own_processes_is_missing_evidence(host: Host) -> None:
    namespace = host.folder / "proc/self/ns/pid"
    namespace.parent.mkdir(parents=True)
    namespace.touch()
    assert "container" in host.scan().problems[0]


@pytest.mark.row("D6")
@pytest.mark.parametrize("apart", [True, False])
def test_a_process_namespace_of_its_own_is_told_from_the_hosts(
    needs_root: None, apart: bool
) -> None:
    code = "from imgcache.helper import processes; print(processes._own_namespace('/proc'))"
    before = ["unshare", "--pid", "--fork", "--mount-proc"] if apart else []
    done = subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(apart)


@pytest.mark.row("D5")
def test_block_devices(host: Host) -> None:
    loop, nbd, none = (host.tree.image(name) for name in ("loop", "nbd", "none"))
    block = host.folder / "sys/block"
    for place, text in (
        ("loop0/loop/backing_file", f"{loop}\n"),
        ("nbd3/backend", f"{nbd}\n"),
        ("sda/backend", f"{none}\n"),
    ):
        (block / place).parent.mkdir(parents=True)
        (block / place).write_text(text)
    (block / "loop1").mkdir()
    assert host.scan(loop, nbd, none).users == {loop.name: {"loop0"}, nbd.name: {"nbd3"}}


def test_other_network_storage_is_not_asked(host: Host) -> None:
    """A server that does not answer would stop the look for ever; a name still counts."""
    base = host.tree.image("image")
    far = host.folder / "far away"
    far.mkdir()
    (far / "link").symlink_to(base)
    (far / base.name).symlink_to(base)
    mounts = (
        "21 1 0:20 / / rw - ext4 /dev/vda rw\n30 21 0:31 / {} rw shared:1 - nfs4 server:/x rw\n"
    )
    (host.folder / "proc/self/mountinfo").write_text(mounts.format(str(far).replace(" ", "\\040")))
    xml = host.libvirt / "x.xml"
    xml.write_text(domain(f"<source file='{far}/link'/>"))
    host.process(5, "cat", links={"3": far / "link"})
    assert host.scan(base).users == {}
    xml.write_text(domain(f"<source file='{far}/{base.name}'/>"))
    assert host.scan(base).users == {base.name: {UUID}}
    (host.folder / "proc/self/mountinfo").write_text(mounts.format("/"))
    xml.write_text(domain(f"<source file='{far}/link'/>"))
    assert host.scan(base).users == {base.name: {UUID, "process 5 (cat)"}}


def test_headers_are_remembered_only_when_settled(host: Host) -> None:
    base = host.tree.image("image")
    disk = host.tree.instances / "vm/disk"
    disk.parent.mkdir()
    disk.write_bytes(bytes(4096))
    scan = host.scan(base)
    status = disk.stat()
    key = (status.st_dev, status.st_ino, 4096, status.st_mtime_ns, status.st_ctime_ns)
    assert key not in scan.headers
    folder_fd = os.open(disk.parent, os.O_RDONLY)
    where = scan.open_disk, disk.name, folder_fd, str(disk)
    assert scan.header(status, *where) == ((), None)
    scan.now += 61
    assert scan.header(status, *where) == ((), None)
    os.close(folder_fd)
    assert key in scan.headers


def squash_root() -> None:
    """Take from this process, as root, the right to read what others own: as NFS does with root_squash."""
    header = struct.pack(
        "=Ii", 0x20080522, 0
    )  # Linux ``_LINUX_CAPABILITY_VERSION_3``, this process
    sets = ctypes.create_string_buffer(
        24
    )  # effective, permitted and inheritable; of two words each
    kernel = ctypes.CDLL(None, use_errno=True)
    assert kernel.capget(header, sets) == 0
    words = list(struct.unpack("=6I", sets.raw))
    for number in (0, 1):
        words[number] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert kernel.capset(header, struct.pack("=6I", *words)) == 0


def seen_by_nova(
    host: Host, *entries: Path, root: bool = False, squashed: bool = False
) -> tuple[list[str], dict[str, list[str]]]:
    """Look from a process of Nova's user, or one that began as root; return the problems and the users."""
    let_others_reach(host.folder)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", host.tree.instances], check=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            # The tests' own Python may be for root alone; here all is imported already.
            cache._check_python = lambda: None
            if squashed:
                squash_root()
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.seteuid(NOBODY)
            elif not root:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            scan = host.scan(*entries)
            users = {name: sorted(found) for name, found in scan.users.items()}
            os.write(writer, json.dumps([scan.problems, users]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        problems, users = json.loads(file.read())
    os.waitpid(pid, 0)
    return problems, users


def close_to_others(path: Path) -> None:
    os.chown(path, 0, 0)
    path.chmod(0o700 if path.is_dir() else 0o600)


@pytest.mark.row("D5")
@pytest.mark.row("D6")
@pytest.mark.parametrize("what", ["libvirt", "libvirt/qemu", "libvirt/qemu/x.xml"])
def test_domains_that_may_not_be_read_are_missing_evidence(
    what: str, host: Host, needs_root: None
) -> None:
    """As with a helper that runs as nova: no stopped instance's domain is seen."""
    image = "11111111-2222-3333-4444-555555555555"
    base = host.tree.image(image)
    host.libvirt /= "qemu"
    host.libvirt.mkdir()
    (host.libvirt / "x.xml").write_text(domain(f'<nova:root type="image" uuid="{image}"/>'))
    (host.libvirt / "networks").mkdir()
    close_to_others(host.libvirt / "networks")
    assert seen_by_nova(host, base) == ([], {base.name: [UUID]})
    close_to_others(host.folder / what)
    problems, users = seen_by_nova(host, base)
    assert users == {}
    [problem] = problems
    assert "become_user: root" in problem
    assert str(host.folder / what) in problem
    assert seen_by_nova(host, base, root=True) == ([], {base.name: [UUID]})


def test_a_host_without_libvirt_has_no_domains(host: Host, needs_root: None) -> None:
    host.libvirt.rmdir()
    assert seen_by_nova(host, host.tree.image("image")) == ([], {})


@pytest.mark.row("D6")
def test_a_domain_that_cannot_be_read_whole_is_missing_evidence(host: Host) -> None:
    (host.libvirt / "long.xml").write_text(domain(" " * (16 << 20)))
    (host.libvirt / "link.xml").symlink_to(host.folder / "missing")
    problems = sorted(host.scan().problems)
    assert f"{host.libvirt}/link.xml is a link to {host.folder}/missing, which is" in problems[0]
    assert f"{host.libvirt}/long.xml cannot be read as XML" in problems[1]
    assert f"{host.libvirt}/long.xml is longer" in problems[2]
    assert len(problems) == 3


@pytest.mark.row("D5")
@pytest.mark.row("D6")
def test_a_domains_disk_that_is_there_and_cannot_be_read_is_missing_evidence(
    host: Host, needs_root: None
) -> None:
    """One that is not there is none: no domain starts with it, and Nova's metadata name its image."""
    disk, link = host.folder / "elsewhere.qcow2", host.folder / "link"
    disk.write_bytes(bytes(4096))
    xml = host.libvirt / "x.xml"
    xml.write_text(
        domain(f"<source file='{disk}'/><source file='{host.folder}/none'/><source dev='eth0'/>")
    )
    assert seen_by_nova(host) == ([], {})
    close_to_others(disk)
    [problem] = seen_by_nova(host)[0]
    assert problem == f"{disk}: Permission denied"
    link.symlink_to(host.folder / "none")
    xml.write_text(domain(f"<source file='{link}'/>"))
    [problem] = seen_by_nova(host)[0]
    assert f"{link} is a link to {host.folder}/none" in problem


@pytest.mark.row("D5")
def test_a_domains_disk_that_nova_can_read_and_root_cannot_is_no_missing_evidence(
    host: Host, needs_root: None
) -> None:
    """As on NFS that trusts no host's root: instances there are read as Nova's user, and so are disks."""
    base = host.tree.image("image")
    disk = host.tree.instances / "vm-1/disk"
    disk.parent.mkdir()
    header = b"QFI\xfb" + (2).to_bytes(4, "big") + (512).to_bytes(8, "big")
    header += len(str(base)).to_bytes(4, "big")
    disk.write_bytes(header.ljust(512, b"\0") + str(base).encode())
    disk.chmod(0o600)
    disk.parent.chmod(0o700)
    (host.libvirt / "x.xml").write_text(domain(f"<source file='{disk}'/>"))
    close_to_others(host.libvirt)
    assert seen_by_nova(host, base, squashed=True) == ([], {base.name: [UUID, "vm-1"]})


@pytest.mark.row("D8")
def test_what_only_a_header_names_need_not_be_readable(host: Host, needs_root: None) -> None:
    """A guest writes such a header, and would keep everything on its host for ever."""
    secret = host.folder / "secret"
    secret.write_bytes(bytes(4096))
    close_to_others(secret)
    (host.folder / "dangling").symlink_to(host.folder / "none")
    vm = host.tree.instances / "vm-1"
    vm.mkdir()
    for number, name in enumerate(
        (secret, host.folder / "dangling", host.libvirt / "none/x", "/proc/1/mem")
    ):
        header = b"QFI\xfb" + (2).to_bytes(4, "big") + (512).to_bytes(8, "big")
        header += len(str(name)).to_bytes(4, "big")
        (vm / f"disk{number}").write_bytes(header.ljust(512, b"\0") + str(name).encode())
    assert seen_by_nova(host) == ([], {})


@pytest.mark.row("D5")
@pytest.mark.row("D6")
def test_without_a_list_of_block_devices_loop_devices_are_missing_evidence(host: Host) -> None:
    (host.folder / "sys/block").rmdir()
    [problem] = host.scan().problems
    assert f"{host.folder}/sys/block" in problem
    assert "loop" in problem


@pytest.mark.row("D5")
def test_swap_files_are_named_as_the_kernel_writes_them(host: Host) -> None:
    odd, other = host.tree.image("image"), host.tree.image("other")
    folder = host.folder / "a b\\c\n\N{SNOWMAN}"
    folder.mkdir()
    os.link(odd, folder / "swap")
    name = str(folder / "swap").replace("\\", r"\134").replace(" ", r"\040").replace("\n", r"\012")
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    swaps = host.folder / "proc" / "swaps"
    swaps.write_text(f"{head}{name} file\t\t8\t\t0\t\t-2\n/dev/dm-1 partition\t8\t0\t-3\n")
    found = host.scan(odd, other)
    assert (found.users, found.problems) == ({odd.name: {"swap"}}, [])
    swaps.unlink()
    swaps.mkdir()
    assert [str(swaps) in problem for problem in host.scan(odd).problems] == [True]


@pytest.mark.row("D5")
@pytest.mark.parametrize("place", ["snapshot", "qemu/networks/snapshot/networks"])
def test_domains_in_folders_that_root_linked_or_that_are_called_like_others(
    place: str, host: Host, tmp_path: Path
) -> None:
    """As when /var/lib/libvirt/qemu/save is on another disk, or a domain is called networks."""
    base = host.tree.image("used")
    folder = tmp_path / "another disk" / place
    folder.mkdir(parents=True)
    (folder / "x.xml").write_text(domain(f"<source file='{base}'/>"))
    (host.libvirt / "save").symlink_to(tmp_path / "another disk")
    assert host.scan(base).users == {base.name: {UUID}}


@pytest.mark.row("D6")
def test_a_link_of_libvirts_that_leads_nowhere_is_missing_evidence(
    host: Host, tmp_path: Path
) -> None:
    (host.libvirt / "save").symlink_to(tmp_path / "not mounted")
    [problem] = host.scan().problems
    assert "not mounted, which is missing" in problem
