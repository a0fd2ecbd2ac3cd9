#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build QEMU with the patches of this folder.
#
#   build.sh               build what is not in the cache; the last line of
#                          stdout is the path of qemu-system-x86_64
#   build.sh --each        the same after each single patch, too
#   build.sh --extract DIR unpack the source without patches into DIR
#   build.sh --source DIR  a git repository in DIR with the series applied
#
# QEMU_TARBALL=FILE names an upstream tarball to use instead of the source
# package of Debian trixie.  The cache is outside the checkout, in
# ${SPLIT_MIGRATE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/split-migrate}.
#
# Nothing is written to /etc/apt, and nothing of trixie is installed: apt works
# on lists of its own, and the few tools that are too old on bookworm (meson,
# pycotap) are unpacked into the build folder.  Missing build packages of the
# system's own release are installed if this runs as root.

set -euo pipefail
export LC_ALL=C

# Part of the key of the cache: raise it when a change of this script changes
# what is built.
readonly VERSION=1
readonly SUITE=trixie
readonly DEPS=(gcc make ninja-build pkg-config patch xz-utils git perl
    python3-venv libglib2.0-dev libfdt-dev libseccomp-dev libnuma-dev
    libpixman-1-dev libgnutls28-dev libaio-dev)
readonly OPTIONS=(--without-default-features --target-list=x86_64-softmmu
    --enable-system --enable-kvm --enable-tcg --enable-seccomp --enable-numa
    --enable-fdt=system --enable-vhost-kernel --enable-vhost-net
    --enable-vhost-user --enable-pixman --enable-vnc --enable-gnutls
    --enable-linux-aio --disable-install-blobs --disable-download
    --firmwarepath=/usr/share/qemu:/usr/share/seabios)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly cache=${SPLIT_MIGRATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/split-migrate}
readonly tarball=${QEMU_TARBALL:-}
shopt -s nullglob
readonly patches=("$here"/0*.patch)
shopt -u nullglob

say() { echo "qemu-patches: $*" >&2; }
die() { say "$*"; exit 1; }

# Debian's mirror as this machine's apt knows it.
mirror() {
    command -v apt-get >/dev/null ||
        die "this is not Debian: set QEMU_TARBALL to a QEMU 10.0 tarball"
    local url
    # shellcheck disable=SC2016 # the names are apt's
    url=$(apt-get indextargets \
        --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)' \
        'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "Debian" && $3 == "main" { print $4; exit }')
    # shellcheck disable=SC2016
    [[ -n $url ]] || url=$(apt-get indextargets --format '$(REPO_URI)' |
        awk '/\/debian\/?$/ { print; exit }')
    [[ -n $url ]] || die "apt knows no Debian mirror: run apt-get update, or" \
        "set QEMU_TARBALL to a QEMU 10.0 tarball"
    echo "$url"
}

# apt with lists of trixie only, below the cache.
private_apt() {
    local dir=$cache/apt
    apt-get -q -o Dir::Etc::sourcelist="$dir/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$dir/lists" \
        -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root \
        -o Debug::NoLocking=true -o Acquire::Languages=none "$@"
}

private_apt_update() {
    local dir=$cache/apt url options='' ring=/usr/share/keyrings/debian-archive-keyring.gpg
    url=$(mirror)
    [[ ! -e $ring ]] || options="[signed-by=$ring] "
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    printf '%s\n' "deb $options$url $SUITE main" \
        "deb-src $options$url $SUITE main" > "$dir/sources.list"
    private_apt update
}

# Download once; called with the lock held.
fetch() {
    local dir=$cache/download
    [[ ! -e $dir/complete ]] || return 0
    say "fetching the source package of $SUITE"
    rm -rf "$dir" && mkdir -p "$dir"
    private_apt_update
    (cd "$dir" && private_apt --download-only source qemu &&
        private_apt download meson python3-pycotap seabios)
    touch "$dir/complete"
}

# Unpack the source without patches into a new folder.
unpack() {
    local into=$1 from=$tarball
    mkdir -p "$into"
    if [[ -z $from ]]; then
        fetch
        from=$(echo "$cache"/download/qemu_*.orig.tar.*)
    fi
    [[ -r $from ]] || die "cannot read $from"
    tar -xf "$from" -C "$into" --strip-components=1
    [[ $(cat "$into/VERSION") == 10.0.* ]] ||
        die "the source is QEMU $(cat "$into/VERSION"), not 10.0"
    # The source package lacks EDK2 blobs, and the build would want to unpack
    # them.
    [[ -e $into/pc-bios/edk2-x86_64-code.fd.bz2 ]] || sed -i \
        's/unpack_edk2_blobs = bzip2.found()/unpack_edk2_blobs = false/' \
        "$into/meson.build"
}

install_deps() {
    command -v dpkg-query >/dev/null || return 0
    local missing=() package
    for package in "${DEPS[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    local line="apt-get install -y --no-install-recommends ${missing[*]}"
    ((EUID == 0)) || die "missing build packages; run: $line"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    $line || { apt-get update && $line; }
}

# key COUNT: names a build with the first COUNT patches.
key() {
    {
        echo "$VERSION"
        cat "$here/BASE"
        echo "${OPTIONS[*]}"
        [[ -z $tarball ]] || sha256sum < "$tarball"
        ((!$1)) || cat "${patches[@]:0:$1}"
    } | sha256sum | cut -c1-16
}

# Firmware that QEMU finds relative to itself, as bin/../share/qemu.
firmware() {
    local source=$1 build=$2 into=$3 file
    mkdir -p "$into" "$build/roms"
    printf '%s\n' "TOPSRC_DIR=$source" CC=cc CCAS=cc LD=ld OBJCOPY=objcopy \
        PYTHON=/usr/bin/python3 > "$build/roms/config.mak"
    make -C "$build/roms" -f "$source/pc-bios/optionrom/Makefile" all
    cp "$build"/roms/*.bin "$into"
    for file in "$source"/pc-bios/{bios,vgabios}*.bin \
        "$build"/tools/usr/share/seabios/{bios,vgabios}*.bin; do
        [[ ! -e $file ]] || cp "$file" "$into"
    done
}

compile() {
    local count=$1 work=$2 out=$3 source=$2/source build=$2/build
    local patch package
    mkdir -p "$build"
    unpack "$source"
    for patch in "${patches[@]:0:count}"; do
        patch -d "$source" -p1 --fuzz=0 --no-backup-if-mismatch < "$patch"
    done
    install_deps
    if [[ -z $tarball ]]; then
        for package in "$cache"/download/*.deb; do
            dpkg -x "$package" "$build/tools"
        done
        export PYTHONPATH=$build/tools/usr/lib/python3/dist-packages
    fi
    (cd "$build" && "$source/configure" --python=/usr/bin/python3 \
        "${OPTIONS[@]}" && ninja qemu-system-x86_64)
    mkdir -p "$out/bin"
    firmware "$source" "$build" "$out/share/qemu"
    cp "$build/qemu-system-x86_64" "$out/bin/"
    strip -g "$out/bin/qemu-system-x86_64"
    "$out/bin/qemu-system-x86_64" --version
}

# build COUNT: make sure that a build is in the cache, and print its path.
build() {
    local count=$1 dir log binary work
    dir=$cache/qemu-$(key "$count")
    log=$dir.log
    binary=$dir/bin/qemu-system-x86_64
    if [[ ! -x $binary ]]; then
        mkdir -p "$cache"
        exec 9> "$cache/qemu.lock"
        flock -n 9 || { say "waiting for another build"; flock 9; }
        if [[ ! -x $binary ]]; then
            say "building with $count of ${#patches[@]} patches, a few" \
                "minutes; log: $log"
            rm -rf "$cache"/build.* # of one that was killed: the lock is ours
            work=$(mktemp -d "$cache/build.XXXXXX")
            # The work folder goes whatever happens; the log stays.
            # shellcheck disable=SC2064 # the folder of now
            trap "rm -rf '$work'" EXIT
            # Not "if ! (...)": that would turn off set -e within.
            set +e
            (set -e; compile "$count" "$work" "$work/out") \
                > "$log" 2>&1 9>&-
            local status=$?
            set -e
            if ((status)); then
                grep -h '^qemu-patches: \|error: \|ERROR: \|^E: ' "$log" |
                    tail -5 >&2
                die "the build failed, see $log"
            fi
            [[ $dir == "$cache/qemu-$(key "$count")" ]] ||
                die "the patches changed during the build; start it again"
            rm -rf "$dir"
            mv "$work/out" "$dir"
            rm -rf "$work"
            trap - EXIT
        fi
        exec 9>&-
    fi
    echo "$binary"
}

with_lock() {
    mkdir -p "$cache"
    exec 9> "$cache/qemu.lock"
    flock 9
    "$@"
    exec 9>&-
}

# One function, so that bash has read all of it before it begins.
main() {
    ((${#patches[@]})) || die "there are no patches in $here"

    case ${1:-} in
    '')
        build "${#patches[@]}"
        ;;
    --each)
        local i
        for ((i = 1; i <= ${#patches[@]}; i++)); do
            build "$i"
        done
        ;;
    --extract | --source)
        [[ -n ${2:-} ]] || die "$1 needs a folder"
        [[ ! -e $2 || -z $(ls -A "$2") ]] || die "$2 is not empty"
        with_lock unpack "$2" >&2
        if [[ $1 == --source ]]; then
            cd "$2"
            git init -q
            git config user.name "split-migrate developers"
            git config user.email split-migrate@localhost
            git add -A -f
            git commit -q -m "$(cat "$here/BASE")"
            git tag base
            git am -q "${patches[@]}"
        fi
        echo "$2"
        ;;
    *)
        die "unknown argument $1; see the head of this script"
        ;;
    esac
}

main "$@"; exit
