#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# build.sh CACHE_DIR - unpack libvirt for the tests, and print the folder that has its usr and etc
#
# libvirtd of the distribution's backports suite (11.3 for bookworm; the release's own is too old
# for QEMU 10).  It is downloaded with apt-get and unpacked, never installed: its packages would
# bring a newer systemd.  The tests lay the folder over /usr in mount namespaces of their own.  The
# lists of packages are kept apart from the machine's, which stay as they are.
#
# Exit status 77: something must be downloaded and cannot be.
set -eu

packages="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"
# What libvirt only wants to be there; the machine's own will do, or none.
never='^(systemd|libsystemd|libudev|libpam|libnss|logrotate|qemu|lib[a-z0-9-]*-dev)'

out_of_reach() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 77
}

# Where this machine's apt gets the release it runs, so that no mirror is named here.
mirror() {
    apt-get indextargets --format "\$(REPO_URI) \$(CODENAME)" 'Identifier: Packages' |
        sed -n "s/ $1\$//p" | head -n 1
}

fetch() {
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    uri=$(mirror "$release")
    [ -n "$uri" ] || out_of_reach "apt has no source for '$release'"
    apt=$work/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$work/root/etc" "$work/root/usr"
    ring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e $ring ] && signed="[signed-by=$ring] " || signed=''
    for suite in "$release" "$release-backports"; do
        printf 'deb %s%s %s main\n' "$signed" "$uri" "$suite"
    done >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
CONF
    APT_CONFIG=$apt/apt.conf
    export APT_CONFIG
    cd "$apt"
    apt-get -q update >apt.log 2>&1 || { cat apt.log >&2; out_of_reach "cannot read $release-backports"; }
    # shellcheck disable=SC2086 # a list of words
    list=$(apt-get -s install --no-install-recommends -t "$release-backports" $packages 2>apt.log |
        awk '$1 == "Inst" { print $2 }' | grep -Ev "$never") ||
        { cat apt.log >&2; out_of_reach "$release-backports has no libvirt that can be had"; }
    # shellcheck disable=SC2086
    apt-get -q download -t "$release-backports" $list >apt.log 2>&1 ||
        { cat apt.log >&2; out_of_reach "cannot get libvirt"; }
    for package in ./*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
}

mkdir -p "${1:?build.sh CACHE_DIR}"
cache=$(cd "$1" && pwd)
exec 9>"$cache/libvirt.lock"
flock 9
if [ ! -e "$cache/libvirt/usr/sbin/libvirtd" ]; then
    [ "$(id -u)" = 0 ] || out_of_reach "must be root"
    work=$cache/libvirt.new
    rm -rf "$work" "$cache/libvirt"
    fetch
    cd "$cache"
    mv "$work/root" "$cache/libvirt"
    rm -rf "$work"
fi
echo "$cache/libvirt"
