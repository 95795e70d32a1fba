#!/bin/sh
# `make test`, with the tests that can differ, on machines unlike this one: each case is a clone in surroundings of its own.
#   tests/machines.sh ENVIRONMENT [CASE …]        ENVIRONMENT: a finished one, as VENV=; CASE: laptop, container, node, pair
# What this machine cannot imitate is skipped with a word. Needs git; root for file systems and users of its own.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
venv=$(cd "$1" && pwd) && shift || exit 2
cases=${*:-laptop container node pair}
part="tests/test_makefile.py tests/shared/setup tests/shared/experiment tests/shared/report tests/shared/data/test_folders.py"
work=$(mktemp -d -p /var/tmp) && trap 'rm -rf "$work"' EXIT && trap 'exit 130' INT TERM HUP
failed=

skip() { echo "$1: skipped, $2"; }
root() { [ "$(id -u)" = 0 ] && unshare --mount true 2>/dev/null; }

# check NAME FOLDER COMMAND…: `make test` in a folder, its output shown where it fails
check() {
    name=$1; folder=$2; shift 2
    began=$(date +%s)
    if (cd "$folder" && exec env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES "$@" make test "VENV=$venv" ARGS="$part") >"$work/log" 2>&1; then
        echo "$name: $(tail -n 1 "$work/log") ($(($(date +%s) - began)) s)"
    else
        failed="$failed $name"; cat "$work/log"; echo "$name: FAILED"
    fi
}

# A downloaded zip in a folder with blanks, quotes and umlauts, in Turkish, fourteen hours ahead, temporary files on another disk.
laptop() {
    folder="$work/it's a \"laptop\" ü"
    mkdir -p "$folder" "$work/locales" && git -C "$here" archive HEAD | tar -x -C "$folder"
    localedef -i tr_TR -f UTF-8 "$work/locales/tr_TR.UTF-8" 2>/dev/null || echo "laptop: without the Turkish locale, which is not installed"
    other=$(mktemp -d /dev/shm/laptop.XXXXXX) || other=$work
    check laptop "$folder" env GIT_CEILING_DIRECTORIES="$work" LOCPATH="$work/locales" LC_ALL=tr_TR.UTF-8 TZ=Pacific/Kiritimati TMPDIR="$other"
    [ "$other" = "$work" ] || rm -rf "$other"
}

# A shallow clone in a container: one core, no HOME, no locale, no identity for git, no standard input, /dev/shm of 1 MiB that is full.
container() {
    root || { skip container "it needs root"; return; }
    git clone -q --depth 1 "file://$here" "$work/container" || exit 2
    check container "$work/container" unshare --mount sh -c 'mount -t tmpfs -o size=1m tmpfs /dev/shm && { cat /dev/zero >/dev/shm/full; } 2>/dev/null
        exec env -u HOME -u LC_ALL LANG=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null taskset -c 0 "$@" <&-' sh
}

# A cluster's node: a user without a name, who may not write beside the clone nor in HOME; a proxy that leads nowhere.
node() {
    root || { skip node "it needs root"; return; }
    chmod 755 "$work"
    # by env, since setpriv itself still has root's rights when it starts something
    setpriv --reuid=54321 --regid=54321 --clear-groups env "$venv/bin/python" -c "" 2>/dev/null ||
        { skip node "its user may not read $venv or the Python under it"; return; }
    git clone -q "$here" "$work/node" && chown -R 54321:54321 "$work/node" || exit 2
    check node "$work/node" env HOME=/proc TMPDIR=/tmp http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 \
        setpriv --reuid=54321 --regid=54321 --clear-groups
}

# Two at once in one clone, each told to do four things at a time; /tmp is another disk and shared memory is 1 GiB.
pair() {
    git clone -q "file://$here" "$work/pair" || exit 2
    case $venv/ in /tmp/*) mounts=:;; *) mounts="mount -t tmpfs -o size=1g tmpfs /dev/shm && mount -t tmpfs tmpfs /tmp";; esac
    check pair "$work/pair" $(root && echo unshare --mount) sh -c "$(root && echo "$mounts" || echo :)"' || exit 2
        "$@" -j4 & first=$!
        "$@" -j4 && wait $first' sh
}

for case in $cases; do "$case"; done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
