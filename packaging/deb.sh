#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# deb.sh DIR - build the Debian packages into DIR
#
# They are built from a copy of what git knows, so that the checkout stays clean; the copy is kept, and
# only what has changed since is compiled anew.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mkdir -p "$1" && cd "$1" && pwd)
source=$dir/source
mkdir -p "$source"
rm -rf "$source/debian" "$dir"/*.deb
git ls-files -z --deduplicate | while IFS= read -r -d '' file; do
    [[ ! -e $file ]] || printf '%s\0' "$file"
done | xargs -0 cp -p --parents --update -t "$source"
# debhelper gives the build another home: the cache of the patched QEMU is in this one.
export SPLIT_MIGRATE_CACHE=${SPLIT_MIGRATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/split-migrate}
jobs=$(nproc)
export DEB_BUILD_OPTIONS="noautodbgsym parallel=$jobs ${DEB_BUILD_OPTIONS:-}"
if ! (cd "$source" && env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS \
    dpkg-buildpackage --build=binary --no-pre-clean --unsigned-changes --unsigned-buildinfo) >"$dir/log" 2>&1; then
    tail -n 30 "$dir/log" >&2
    echo "deb.sh: the packages could not be built; see $dir/log" >&2
    exit 1
fi
ls "$dir"/*.deb
