#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# root.sh CACHE_DIR PACKAGE... - a clean Debian of this machine's release with systemd and these packages
#
# Prints its folder. It is made once for a set of packages, outside the checkout, from where this machine's
# apt gets its packages. Exit status 77: it cannot be made here.
set -euo pipefail
cache=$1
shift
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
# iproute2 brings the loopback device up; libnss-systemd and friends are not needed.
packages=(systemd systemd-sysv iproute2 "$@")
dir=$cache/root-$(printf '%s\n' "$release" "${packages[@]}" | sha256sum | cut -c1-16)
mkdir -p "$cache"
exec 9>"$cache/root.lock"
flock 9
if [[ ! -e $dir ]]; then
    [[ $(id -u) = 0 ]] || { echo "must be root" >&2; exit 77; }
    command -v mmdebstrap >/dev/null || { echo "mmdebstrap is not installed" >&2; exit 77; }
    rm -rf "$dir.new"
    list=$(IFS=,; echo "${packages[*]}")
    if ! mmdebstrap --quiet --variant=minbase --include="$list" "$release" "$dir.new" >"$dir.log" 2>&1; then
        tail -n 5 "$dir.log" >&2
        rm -rf "$dir.new"
        exit 77
    fi
    mv "$dir.new" "$dir"
fi
echo "$dir"
