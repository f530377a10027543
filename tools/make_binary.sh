#!/usr/bin/env bash
# Build dist/imgcache: PyInstaller's folder in one file that unpacks itself once. What it weighs and
# how fast it starts, against other ways, is in docs/performance.md.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/lib.sh

main() {
    local wanted
    wanted=$(sources_digest)
    [ -x dist/imgcache ] && [ "$(cat build/binary.stamp 2>/dev/null)" = "$wanted" ] && return 0
    have objdump || die "building the binary needs objdump. As root: apt-get install binutils"
    has_shared_library .venv/bin/python ||
        die "building the binary needs Python as a shared library." \
            "As root: apt-get install libpython$(python_version .venv/bin/python)"
    say "building dist/imgcache"
    mkdir -p build dist
    .venv/bin/python -m PyInstaller --noconfirm --log-level WARN \
        --distpath build/folder --workpath build/work packaging/imgcache.spec >build/log 2>&1 ||
        die "PyInstaller failed:" "$(tail -n 50 build/log)"
    pack build/folder dist/imgcache
    dist/imgcache --version >/dev/null || die "the binary was built, but does not run"
    echo "$wanted" >build/binary.stamp
}

# Print one digest of all that the binary is made of.
sources_digest() {
    {
        find src packaging tools/make_binary.sh tools/constraints.txt -type f ! -name '*.pyc' -print0 |
            sort -z | xargs -0 sha256sum
        .venv/bin/python -VV
    } | digest_of
}

# Put the folder $1/imgcache behind the launcher, as $2. The same folder gives the same file.
pack() {
    local payload=build/payload.tar.gz digest script skip
    tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - imgcache |
        gzip -n >"$payload"
    digest=$(digest_of "$payload")
    script=$(sed -e "s/@DIGEST@/$digest/" -e "s/@VERSION@/$(version)/" packaging/launcher.sh)
    # The number of bytes to skip stands in what is skipped: padded, so that its own width is fixed.
    skip=$(printf '%s\n' "${script//@SKIP@/000000}" | wc -c)
    printf '%s\n' "${script//@SKIP@/$(printf '%-6s' "$((skip + 1))")}" >"$2.new"
    cat "$payload" >>"$2.new"
    chmod 755 "$2.new"
    mv "$2.new" "$2"
}

version() { sed -n 's/^__version__ = "\(.*\)"/\1/p' src/imgcache/__init__.py; }

main "$@"
