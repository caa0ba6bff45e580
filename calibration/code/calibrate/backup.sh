#!/bin/sh
# Keeps dated copies of a folder on another disk. Files that did not change are hard links to the
# copy before, so that every copy looks whole and only costs what is new.
#
#     backup.sh SOURCE TARGET [DAYS]
#
# Copies older than DAYS (30) are removed, but never the last three.

set -eu

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

log() {
    printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*"
}

fail() {
    log "error: $*" >&2
    exit 1
}

[ $# -ge 2 ] || usage
source=${1%/}
target=${2%/}
days=${3:-30}

[ -d "$source" ] || fail "no such folder: $source"
[ -d "$target" ] || fail "no such folder: $target (is the disk mounted?)"
case $days in
    ''|*[!0-9]*) fail "not a number of days: $days" ;;
esac
case $target/ in
    "$source"/*) fail "$target is inside $source: every copy would hold the ones before" ;;
esac

# One at a time. A folder is made or it is not: unlike a file, there is nothing in between.
lock=$target/.lock
mkdir "$lock" 2>/dev/null || fail "another backup is running, or died: see $lock"
partial=
cleanup() {
    rmdir "$lock" 2>/dev/null || true
    [ -z "$partial" ] || rm -rf "$partial"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

needed=$(du -sk "$source" | cut -f1)
free=$(df -Pk "$target" | awk 'NR == 2 { print $4 }')
previous=$(find "$target" -mindepth 1 -maxdepth 1 -type d -name '20??-??-??_*' | sort | tail -n 1)
if [ -z "$previous" ] && [ "$free" -lt "$needed" ]; then
    fail "the first copy needs $needed KiB, and $free KiB are free"
fi

name=$(date '+%Y-%m-%d_%H%M%S')
partial=$target/.partial-$name
log "copying $source to $target/$name"
if [ -n "$previous" ]; then
    rsync -a --delete --link-dest="$previous" "$source/" "$partial/"
else
    rsync -a "$source/" "$partial/"
fi
sync
mv "$partial" "$target/$name"
partial=

count=$(find "$target/$name" -type f | wc -l)
new=$(find "$target/$name" -type f -links 1 | wc -l)
log "done: $count files, $new of them new"

# Old copies, oldest first, leaving at least three.
find "$target" -mindepth 1 -maxdepth 1 -type d -name '20??-??-??_*' | sort | head -n -3 |
while IFS= read -r old; do
    if [ -n "$(find "$old" -maxdepth 0 -mtime +"$days")" ]; then
        log "removing $old"
        rm -rf "$old"
    fi
done
