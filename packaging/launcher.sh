#!/bin/sh
# imgcache @VERSION@: this file is a small shell script with the program behind it. The first start
# unpacks the program into a folder of yours, named by the program's digest; later starts run it from
# there. Needs sh, ls, tar, gzip and tail; no Python. Remove ~/.cache/imgcache/bin at any time.
digest=@DIGEST@
skip=@SKIP@

# Whether none but us and root can put something else in the place of a folder, or of one above it.
safe() {
    path=$(cd -P "$1" 2>/dev/null && pwd) || return 1
    set -- "$path"
    while [ "$path" != / ]; do
        path=${path%/*}
        path=${path:-/}
        set -- "$@" "$path"
    done
    user=$(PATH="$PATH:/usr/bin:/bin" id -u) group=$(PATH="$PATH:/usr/bin:/bin" id -g)
    PATH="$PATH:/usr/bin:/bin" ls -ldn -- "$@" 2>/dev/null | {
        while read -r mode _ owner its_group _; do
            case $owner in 0 | "$user") ;; *) exit 1 ;; esac
            case $mode in
                d????????[tT]*) ;; # sticky: what is in it can be exchanged by its owner alone
                d???????w*) exit 1 ;;
                d????w*) [ "$its_group" = "$group" ] || [ "$its_group" = 0 ] || exit 1 ;;
                d*) ;;
                *) exit 1 ;;
            esac
        done
    }
}

# A folder counts only when it is really ours: nobody else can have put a program there.
ready() {
    [ ! -L "$1" ] && [ -O "$1" ] && [ -O "$1/$digest/imgcache" ] && [ -x "$1/$digest/imgcache" ] &&
        safe "$1"
}

unpack() {
    (umask 077 && mkdir -p "$1" && [ ! -L "$1" ] && [ -O "$1" ] && chmod 700 "$1" && safe "$1") || return 1
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
