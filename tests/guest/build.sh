#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# build.sh CACHEDIR - make what a test guest boots from, and print where it is
#
# Prints two lines, KERNEL=file and INITRD=file.  The kernel is the distribution's cloud kernel,
# downloaded with apt-get and unpacked, never installed.  GUEST_KERNEL_PACKAGE=linux-image-amd64 takes
# the full one, which knows memory errors; GUEST_KERNEL=file takes that file.  The initramfs holds
# memguest as /init and the modules of a balloon device (not with GUEST_KERNEL), nothing else.  What is
# there already and still current is not made again.
set -eu

die() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

# The named package depends on the real one of the day.
fetch_kernel() {
    package=$(apt-cache depends "$wanted" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || die "apt knows no $wanted; run apt-get update, or set GUEST_KERNEL"
    rm -rf "$cache/kernel.new"
    mkdir "$cache/kernel.new"
    (
        cd "$cache/kernel.new"
        apt-get -q download "$package" >apt.log 2>&1 || { cat apt.log >&2; exit 1; }
        dpkg-deb --fsys-tarfile ./*.deb |
            tar -x -f - --wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/drivers/virtio/*.ko*'
        mv boot/vmlinuz-* vmlinuz
        mkdir modules
        mv lib/modules/*/kernel/drivers/virtio/* modules
    ) || die "cannot get $package"
    rm -rf "$1.modules"
    mv "$cache/kernel.new/modules" "$1.modules"
    mv "$cache/kernel.new/vmlinuz" "$1"
    rm -rf "$cache/kernel.new"
}

build_initrd() {
    root=$cache/root.new
    rm -rf "$root"
    mkdir -p "$root/dev" "$root/proc" "$root/sys"
    # Without vector code: TCG runs it through helper calls, several times slower.
    "${CC:-gcc}" -std=gnu11 -O2 -g0 -fno-tree-vectorize -D_GNU_SOURCE -Wall -Wextra -static -s -pthread \
        -o "$root/init" "$here/memguest.c" "$here/memguest_work.c" -lm || die "cannot compile memguest"
    if [ -d "$modules" ]; then
        mkdir "$root/modules"
        for name in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_balloon; do
            case $(ls "$modules/$name.ko"*) in
                *.xz) xz -dc "$modules/$name.ko.xz" >"$root/modules/$name.ko" ;;
                *) cp "$modules/$name.ko" "$root/modules" ;;
            esac
        done
    fi
    cp "$root/init" "$cache/memguest.new"
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$cache/initrd.cpio"
    gzip -9n <"$cache/initrd.cpio" >"$cache/initrd.new"
    mv "$cache/memguest.new" "$cache/memguest"
    mv "$cache/initrd.new" "$1"
    rm -rf "$root" "$cache/initrd.cpio"
}

[ $# = 1 ] || die "usage: build.sh CACHEDIR"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cache=$(cd "$1" && pwd)
exec 9>"$cache/lock"
flock 9

wanted=${GUEST_KERNEL_PACKAGE:-linux-image-cloud-amd64}
kernel=${GUEST_KERNEL:-$cache/vmlinuz-$wanted}
modules=$kernel.modules
[ -s "$kernel" ] && [ -d "$modules" ] || [ -n "${GUEST_KERNEL:-}" ] || fetch_kernel "$kernel"
[ -s "$kernel" ] || die "no kernel at $kernel"
[ -z "${GUEST_KERNEL:-}" ] || modules=/nonexistent
key=$({ cat "$here"/*.c "$here"/*.h "$here/build.sh"; cat "$modules"/* 2>/dev/null || :; } |
    sha256sum | cut -c 1-16)
initrd=$cache/initrd-$key.gz
[ -s "$initrd" ] || build_initrd "$initrd"
printf 'KERNEL=%s\nINITRD=%s\n' "$kernel" "$initrd"
