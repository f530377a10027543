# Functions that the scripts here share. To be sourced, in the project's folder.

say() { echo "$(basename "$0" .sh): $1" >&2; }

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Whether a program is on the PATH, or a file (given by its whole path) is there.
have() {
    case "$1" in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# Print the path of the Python to use: $PYTHON, or the first 3.11 or newer on the PATH.
find_python() {
    local name
    for name in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    die "no Python 3.11 or newer found${PYTHON:+ as $PYTHON}. On Debian 12, as root: apt-get install python3"
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Debian keeps ensurepip in a package of its own, python3-venv.
can_make_environment() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# PyInstaller needs Python as a shared library, which Debian keeps in a package of its own.
has_shared_library() {
    "$1" - <<'PY'
import ctypes, sys, sysconfig
from pathlib import Path

name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
if (Path(sysconfig.get_config_var("LIBDIR")) / name).exists():
    sys.exit(0)
try:
    ctypes.CDLL(name)
except OSError:
    sys.exit(1)
PY
}

# Print the SHA-256 of files, or of standard input.
digest_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

is_stamped() { [ -x "$1/bin/python" ] && [ "$(cat "$1/.stamp" 2>/dev/null)" = "$2" ]; }

# Make an empty virtual environment with pip, also where Debian's python3-venv is missing and we may
# not install it: pip's own wheel then comes out of a Debian package unpacked in a private folder.
make_environment() {
    local folder=$1 python
    # One that works is kept: pip then installs only what has changed.
    "$folder/bin/python" -m pip --version >/dev/null 2>&1 && return 0
    python=$(find_python)
    if can_make_environment "$python"; then
        "$python" -m venv --clear "$folder"
        return
    fi
    say "Debian's python3-venv is missing; taking pip from its package without installing it"
    "$python" -m venv --clear --without-pip "$folder"
    tools/unpack_deb.sh "$folder/.debian" python3-pip-whl
    local wheel
    wheel=$(echo "$folder"/.debian/usr/share/python-wheels/pip-*.whl)
    "$folder/bin/python" "$wheel/pip" install -q --disable-pip-version-check "$wheel"
}
