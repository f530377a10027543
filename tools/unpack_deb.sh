#!/usr/bin/env bash
# Unpack Debian packages, with what they need and this machine lacks, into a folder. Needs no root.
#
#   tools/unpack_deb.sh FOLDER PACKAGE...
#
# apt works on private lists and a private cache inside FOLDER; the machine's own are only read.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/lib.sh

[ $# -ge 2 ] || die "usage: tools/unpack_deb.sh FOLDER PACKAGE..."
mkdir -p "$1/apt/lists/partial" "$1/apt/archives/partial"
folder=$(cd "$1" && pwd)
shift
have apt-get || die "apt-get is missing: this works on Debian only"

apt_private() {
    apt-get -qq \
        -o Dir::State="$folder/apt" -o Dir::State::lists="$folder/apt/lists" \
        -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::Cache="$folder/apt" -o Dir::Cache::archives="$folder/apt/archives" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@"
}

apt_private update
apt_private install -y --download-only --no-install-recommends "$@" >/dev/null
for package in "$folder"/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$folder"
done
rm -rf "$folder/apt"
