#!/bin/sh
# imgcache @VERSION@: this file is a small shell script with the program behind it. The first start
# unpacks the program into a folder of yours, named by the program's digest; later starts run it from
# there. Needs sh, tar, gzip and tail; no Python. Remove ~/.cache/imgcache/bin at any time.
digest=@DIGEST@
skip=@SKIP@

# A folder counts only when it is really ours: nobody else can have put a program there.
ready() { [ ! -L "$1" ] && [ -O "$1" ] && [ -O "$1/$digest/imgcache" ] && [ -x "$1/$digest/imgcache" ]; }

unpack() {
    (umask 077 && mkdir -p "$1" && [ ! -L "$1" ] && [ -O "$1" ] && chmod 700 "$1") || return 1
    staging=$(mktemp -d "$1/.unpack.XXXXXX") || return 1
    # Whoever comes second finds the name taken and throws its own copy away.
    if tail -c "+$skip" "$0" | gzip -dc | tar -C "$staging" -xof -; then
        mv -T "$staging/imgcache" "$1/$digest" 2>/dev/null
    fi
    rm -rf "$staging"
    ready "$1"
}

# The second place is for those without a home, or with one where programs may not run (noexec).
cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
for folder in ${cache:+"$cache/imgcache/bin"} "${TMPDIR:-/tmp}/imgcache-$(PATH="$PATH:/usr/bin:/bin" id -u)"; do
    ready "$folder" && exec "$folder/$digest/imgcache" "$@"
    if (PATH="$PATH:/usr/bin:/bin" && unpack "$folder") 2>/dev/null; then
        exec "$folder/$digest/imgcache" "$@"
    fi
done
echo "imgcache: cannot unpack itself into $folder, nor into a cache folder of yours (disk full? noexec?)." \
    "Point XDG_CACHE_HOME to a folder where programs may run." >&2
exit 2
