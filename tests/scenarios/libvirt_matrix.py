"""The ways in which a host can use a base file, as data: each is made once, by a script on the host.

In a script ``$B`` is the base file, ``$N`` the name of the case, ``$I`` a folder of instances_path and
``$V`` one outside, both empty. ``held_by KIND FILE`` uses a file as ``tests/rig/holders.py`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Needs ``servers.libvirt_host``'s words as well.
WORDS = r"""
overlay() { qemu-img create -q -u -f qcow2 -F "${3-raw}" -b "$2" "$1" 1M; }
# A loop device that holds an overlay.
loop_overlay() { overlay "$@"; truncate -s 1M "$1"; loop "$1"; }
chain() {  # of $1 files, the first on $B; says the last
    local number last=$B
    for number in $(seq "$1"); do
        overlay "$V/$number" "$last" "$([ "$number" = 1 ] && echo raw || echo qcow2)"
        last=$V/$number
    done
    echo "$last"
}
tag() {
    echo "<disk type='$1' device='${4-disk}'><driver name='qemu' type='$3'/><source $2/>"
    echo "<target dev='${5-vda}'/></disk>"
}
disk() { tag file "file='$1'" qcow2; }
raw() { tag file "file='$1'" raw "${@:2}"; }
block() { tag block "dev='$1'" qcow2; }
volume() { tag volume "pool='$1' volume='$2'" qcow2; }
# Devices, what is added to <os>, what is added to <domain>.
domain() {
    cat <<END
<domain type='${KIND-qemu}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>$N</name>
<memory unit='MiB'>8</memory><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>${2-}</os>
<features><acpi/></features>${3-}<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='usb' model='none'/><memballoon model='none'/>$1</devices></domain>
END
}
define() { domain "$@" | virsh -q define /dev/stdin; }
create() { domain "$@" | virsh -q create --paused /dev/stdin; }
start() { define "$@"; virsh -q start --paused "$N"; }
held_by() { hold "$PYTHON" "$HOLDERS" "$@"; }
pool() { virsh -q pool-define-as "$N" dir --target "$V"; }
op() {
    cd /
    exec setpriv --reuid op --regid 100 --clear-groups env HOME=/home/op XDG_RUNTIME_DIR=/run/user/30000 \
        LIBVIRT_AUTOSTART=0 LIBVIRT_DEFAULT_URI=qemu:///session "$@"
}
another_libvirt='
    mkdir $0/etc
    cp -a /etc/libvirt/*.conf $0/etc
    for place in /etc/libvirt /run /var/lib/libvirt; do mount -t tmpfs -o mode=755 none $place; done
    mount --bind $0 /mnt
    cp -a $0/etc/. /etc/libvirt
    ( until [ -S /run/libvirt/libvirt-sock ]; do sleep 0.05; done; echo ready ) &
    exec libvirtd -p /run/libvirtd.pid
'
# What a function of servers.vhd_files returns.
made() {
    PYTHONPATH=$(dirname "$HOLDERS")/.. PYTHONDONTWRITEBYTECODE=1 "$PYTHON" -c "
import sys
from servers.vhd_files import *
base, there = sys.argv[1:]
sys.stdout.buffer.write($1)" "$B" "${2-}"
}
firmware='<loader readonly="yes" type="pflash">/usr/share/firmware.fd</loader>'
"""


@dataclass(frozen=True)
class Use:
    """One way; ``script`` makes it."""

    name: str
    script: str
    undo: str = ""
    """A script; only what keeps everything needs one."""


#: Files under instances_path.
_FILES = (
    Use("disk", "overlay $I/disk $B"),
    Use("four-folders-below", "mkdir -p $I/a/b/c; overlay $I/a/b/c/disk $B"),
    Use("twelve-folders-below", "p=$I/a/b/c/d/e/f/g/h/i/j/k; mkdir -p $p; overlay $p/disk $B"),
    Use("link-to-disk", "overlay $V/disk $B; ln -s $V/disk $I/disk"),
    Use("link-to-folder", "overlay $V/disk $B; rmdir $I; ln -s $V $I"),
    Use("link-to-base", "ln -s $B $I/disk"),
    Use("relative-behind-a-link", "overlay $V/disk ../_base/$(basename $B); ln -s $V/disk $I/disk"),
    Use("relative", "cd $I; overlay disk ../_base/$(basename $B)"),
    Use(
        "json",
        """overlay $I/disk 'json:{"driver":"raw","file":{"driver":"file","filename":"'$B'"}}'""",
    ),
    Use("json-dotted", """overlay $I/disk 'json:{"driver":"raw","file.filename":"'$B'"}'"""),
    Use("file-colon", "overlay $I/disk file:$B"),
    Use("qcow", "qemu-img create -q -u -f qcow -F raw -b $B $I/disk 1M"),
    Use("qed", "qemu-img create -q -u -f qed -F raw -b $B $I/disk 1M"),
    Use(
        "vmdk",
        "qemu-img create -q -f vmdk $V/base 1M; cat $V/base >$B; rm $V/base;"
        " qemu-img create -q -f vmdk -F vmdk -b $B $I/disk",
    ),
    Use(
        "vhdx",
        "qemu-img create -q -f vhdx $V/plain 1M; made 'vhdx_with_parent(open(there, \"rb\").read(), base)'"
        " $V/plain >$I/disk",
    ),
    Use("vhd", "made 'differencing_vhd(base)' >$I/disk"),
    Use(
        "external-data",
        "qemu-img create -q -f qcow2 -o data_file=$V/data,data_file_raw=on $I/disk 1M;"
        " qemu-img amend -f qcow2 -o data_file=$B $I/disk",
    ),
    Use("link-to-loop", "ln -s $(loop_overlay $V/volume $B) $I/disk"),
    Use("backed-by-loop", "overlay $I/disk $(loop_overlay $V/volume $B) qcow2"),
    Use("chain-outside", "overlay $I/disk $(chain 40) qcow2"),
)

#: What libvirt knows.
_DOMAINS = (
    Use("running", 'overlay $V/disk $B; define "$(disk $V/disk)"; virsh -q start $N'),
    Use("paused", 'overlay $V/disk $B; start "$(disk $V/disk)"'),
    Use("transient", 'overlay $V/disk $B; create "$(disk $V/disk)"'),
    Use("shut-off", 'overlay $V/disk $B; define "$(disk $V/disk)"'),
    Use("shut-off-raw", 'define "$(raw $B)"'),
    Use("cdrom", 'define "$(raw $B cdrom hda)"'),
    Use("floppy", 'define "$(raw $B floppy fda)"'),
    Use("managed-save", 'overlay $V/disk $B; start "$(disk $V/disk)"; virsh -q managedsave $N'),
    Use(
        "hot-plugged",
        "overlay $V/disk $B; start ''; virsh -q attach-disk $N $V/disk vdb --subdriver qcow2 --live",
    ),
    Use(
        "managed-save-of-a-hot-plugged-disk",
        "overlay $V/disk $B; start ''; virsh -q attach-disk $N $V/disk vdb --subdriver qcow2 --live;"
        " virsh -q managedsave $N",
    ),
    Use(
        "external-snapshot",
        'overlay $V/disk $B; define "$(disk $V/disk)"; virsh -q snapshot-create-as $N s1 --disk-only',
    ),
    Use(
        "external-snapshot-of-a-running-domain",
        'overlay $V/disk $B; start "$(disk $V/disk)"; virsh -q snapshot-create-as $N s1 --disk-only',
    ),
    Use(
        "snapshot-metadata",
        'overlay $V/disk $B; define "$(disk $V/disk)"; virsh -q snapshot-create-as $N s1 --disk-only;'
        " rm $V/disk.s1; uuid=$(virsh domuuid $N); define '' '' \"<uuid>$uuid</uuid>\"",
    ),
    Use(
        "checkpoint-metadata",
        'overlay $V/disk $B; define "$(disk $V/disk)"; uuid=$(virsh domuuid $N);'
        ' virsh -q checkpoint-create --redefine $N <(echo "<domaincheckpoint><name>c1</name>'
        "<creationTime>1</creationTime><disks><disk name='vda' checkpoint='bitmap' bitmap='c1'/></disks>"
        '$(virsh dumpxml $N)</domaincheckpoint>");'
        " define '' '' \"<uuid>$uuid</uuid>\"",
    ),
    Use("block", 'define "$(block $(loop_overlay $V/volume $B))"'),
    Use("chain-of-17", 'define "$(disk $(chain 17))"'),
    Use("chain-of-40", 'define "$(disk $(chain 40))"'),
    Use("pool", 'overlay $V/disk $B; pool; virsh -q pool-start $N; define "$(volume $N disk)"'),
    Use("stopped-pool", 'overlay $V/disk $B; pool; define "$(volume $N disk)"'),
    Use(
        "transient-pool",
        'overlay $V/disk $B; virsh -q pool-create-as $N dir --target $V; define "$(volume $N disk)"',
    ),
    Use("kernel", "define '' \"<kernel>$B</kernel>\""),
    Use("initrd", "define '' \"<kernel>/boot/k</kernel><initrd>$B</initrd>\""),
    Use("dtb", "define '' \"<kernel>/boot/k</kernel><dtb>$B</dtb>\""),
    Use("loader", "define '' \"<loader readonly='yes' type='pflash'>$B</loader>\""),
    Use("nvram-template", "define '' \"$firmware<nvram template='$B'>$V/vars</nvram>\""),
    Use("nvram", "define '' \"$firmware<nvram>$B</nvram>\""),
    Use(
        "nvram-link",
        "p=/var/lib/libvirt/qemu/nvram/$N.fd; ln -s $B $p; define '' \"$firmware<nvram>$p</nvram>\"",
    ),
    Use("serial", "define \"<serial type='file'><source path='$B'/></serial>\""),
    Use(
        "nvdimm",
        "define \"<memory model='nvdimm'><source><path>$B</path></source><target><size unit='MiB'>1</size>"
        "<node>0</node></target></memory>\" '' \"<maxMemory slots='2' unit='MiB'>64</maxMemory>"
        "<vcpu>1</vcpu><cpu><numa><cell id='0' cpus='0' memory='8' unit='MiB'/></numa></cpu>\"",
    ),
    Use(
        "command-line",
        "define '' '' \"<qemu:commandline><qemu:arg value='-drive'/>"
        "<qemu:arg value='if=none,id=x,format=raw,file=$B'/></qemu:commandline>\"",
    ),
    Use(
        "lxc",
        "mkdir -p /etc/libvirt/lxc; KIND=lxc domain \"<filesystem type='file'><source file='$B'/>"
        "<target dir='/'/></filesystem>\" >/etc/libvirt/lxc/$N.xml",
    ),
    Use(
        "libxl",
        'mkdir -p /etc/libvirt/libxl; KIND=xen domain "$(raw $B)" >/etc/libvirt/libxl/$N.xml',
    ),
    Use(
        "session",
        "overlay $V/disk $B; mkdir -p /home/op /run/user/30000; chown op /home/op /run/user/30000 $V/disk;"
        " op libvirtd -p /run/user/30000/pid </dev/null >/home/op/log 2>&1 & daemon=$!; ended_later $daemon;"
        " until_true test -S /run/user/30000/libvirt/libvirt-sock;"
        ' domain "$(disk $V/disk)" >$V/xml; (op virsh -q define $V/xml); release $daemon',
    ),
    Use(
        "container",
        'overlay $V/disk $B; hold unshare -m bash -euc "$another_libvirt" $V;'
        ' domain "$(disk $V/disk)" | nsenter -m -t $held virsh -q define /dev/stdin',
    ),
    Use(
        "container-with-other-paths",
        'overlay $V/disk $B; hold unshare -m bash -euc "$another_libvirt" $V;'
        ' domain "$(disk /mnt/disk)" | nsenter -m -t $held virsh -q define /dev/stdin',
    ),
)

#: Processes and devices.
_PROCESSES = (
    Use("open", "held_by opened $B"),
    Use("mapped", "held_by mapped $B"),
    Use(
        "executed",
        "cat $(command -v sleep) >$B; chmod 755 $B; $B 1000 </dev/null >/dev/null 2>&1 & ended_later $!",
    ),
    Use("exited-leader", "held_by exited_leader $B"),
    Use("own-table", "held_by own_table $B"),
    Use("in-flight", "held_by in_flight $B"),
    Use("uring", "held_by uring $B"),
    Use(
        "another-namespace",
        'touch $V/name; hold unshare -m bash -euc \'mount --bind $0 $1; exec "$2" "$3" opened $1\''
        " $B $V/name $PYTHON $HOLDERS",
    ),
    Use("bind-mount", "touch $V/name; mount --bind $B $V/name"),
    Use(
        "qemu-nbd",
        "qemu-nbd --fork -r -f raw -k $V/socket --pid-file $V/pid $B; ended_later $(cat $V/pid)",
    ),
    Use(
        "qemu-nbd-overlay",
        "overlay $V/disk $B; qemu-nbd --fork -f qcow2 -k $V/socket --pid-file $V/pid $V/disk;"
        " ended_later $(cat $V/pid)",
    ),
    Use(
        "storage-daemon",
        "qemu-storage-daemon --daemonize --pidfile $V/pid"
        " --blockdev file,node-name=n,filename=$B,read-only=on; ended_later $(cat $V/pid)",
    ),
    Use("loop", "loop -r $B"),
    Use("swap", "swap $B"),
)

USES = (*_FILES, *_DOMAINS, *_PROCESSES)

#: Base files that nothing uses, or nothing any more.
UNUSED = (
    Use("plain", ""),
    Use("deleted", "overlay $I/disk $B; rm -r $I"),
    Use(
        "undefined",
        'overlay $V/disk $B; start "$(disk $V/disk)"; virsh -q destroy $N; virsh -q undefine $N',
    ),
    Use(
        "undefined-with-metadata",
        'overlay $V/disk $B; define "$(disk $V/disk)"; virsh -q snapshot-create-as $N s1 --disk-only;'
        " virsh -q undefine --snapshots-metadata $N",
    ),
    Use("closed", "held_by opened $B; release $held"),
    Use("detached", "losetup -d $(loop -r $B)"),
    Use("named-in-a-log", "echo $B >$I/console.log; head -c 4096 /dev/zero >>$I/console.log"),
    Use(
        "named-in-a-description",
        "define '' '' \"<description>was on $(basename $B)</description>\"",
    ),
    # What a guest can forge keeps no host from its work.
    Use("circle", "overlay $I/disk $I/other qcow2; overlay $I/other $I/disk qcow2"),
    Use("forged-fifo", "mkfifo $V/fifo; overlay $I/disk $V/fifo"),
    Use("forged-folder", "overlay $I/disk /root"),
    Use("forged-missing", "overlay $I/disk /no/such/file"),
    Use(
        "forged-garbage",
        "printf 'QFI\\373\\0\\0\\0\\3\\377\\377\\377\\377' >$I/disk; head -c 8192 /dev/urandom >>$I/disk",
    ),
)

#: Evidence that cannot be read, with a word of the reason: nothing at all may be removed.
BLIND = {
    Use(
        "broken-domain", "echo '<domain>' >/etc/libvirt/qemu/$N.xml", "rm /etc/libvirt/qemu/$N.xml"
    ): "XML",
    Use(
        "endless-domain",
        "echo '<domain><name>x</name>' >/etc/libvirt/qemu/$N.xml; truncate -s 4G /etc/libvirt/qemu/$N.xml",
        "rm /etc/libvirt/qemu/$N.xml",
    ): "longer",
    Use(
        "entities",
        "echo '<!DOCTYPE d [<!ENTITY e \"/srv\">]><domain>&e;</domain>' >/etc/libvirt/qemu/$N.xml",
        "rm /etc/libvirt/qemu/$N.xml",
    ): "entities",
    Use(
        "broken-snapshot",
        "p=/var/lib/libvirt/qemu/snapshot/$N; mkdir $p; echo '<domainsnapshot>' >$p/s1.xml",
        "rm -r /var/lib/libvirt/qemu/snapshot/$N",
    ): "XML",
    Use(
        "broken-saved-state",
        "head -c 4096 /dev/urandom >/var/lib/libvirt/qemu/save/$N.save",
        "rm /var/lib/libvirt/qemu/save/$N.save",
    ): "saved",
    Use("unknown-pool", 'define "$(volume nowhere disk)"', "virsh -q undefine $N"): "nowhere",
    Use("lost-link", "ln -s /srv/lost/disk $I/disk", "rm $I/disk"): "missing",
    Use(
        "lost-link-of-a-domain",
        'ln -s /srv/lost/disk $V/link; define "$(disk $V/link)"',
        "virsh -q undefine $N",
    ): "missing",
    Use(
        "parent-without-a-name",
        "qemu-img create -q -f vdi $I/disk 1M;"
        " printf '\\4' | dd of=$I/disk bs=1 seek=76 conv=notrunc status=none",
        "rm $I/disk",
    ): "VDI",
    Use(
        "seventy-folders",
        "p=$I$(printf '/a%.0s' $(seq 70)); mkdir -p $p; overlay $p/disk $B",
        "rm -r $I/a",
    ): "deep",
}
