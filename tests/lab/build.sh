#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# build.sh CACHE_DIR BUILD_DIR QEMU_BINARY - make what the lab VM boots from, and print where it is
#
# Prints two lines, KERNEL=file and INITRD=file.  The lab's kernel is the distribution's full kernel
# from its backports suite (6.12 for bookworm): the cloud kernel has no RDMA.  It is downloaded with
# apt-get and unpacked, never installed; the lists of packages are kept apart from the machine's own,
# which stay as they are.
#
# The initramfs is two archives, one after the other: what seldom changes (modules, busybox, Python,
# QEMU, the nested guest), kept in CACHE_DIR, and our programs and tests, from BUILD_DIR/bin and this
# checkout.  It is not compressed: to unpack costs the emulated processor more than to copy.
#
# Exit status 77: something must be downloaded and cannot be.
set -eu

# Loaded by init in this order.
modules="irqbypass ccp kvm kvm-amd"
# Loaded only for tests whose names begin with rdma: verbs without a card (soft RoCE), and a slow link.
rdma_modules="crc32_generic udp_tunnel ip6_udp_tunnel configfs ib_core ib_uverbs ib_cm iw_cm rdma_cm rdma_ucm rdma_rxe dummy veth sch_netem"

# Of this machine's programs; busybox has an ip and a tc, but they know less.
tools="rdma ip tc ib_read_lat nbdcopy"

firmware="bios-256k.bin kvmvapic.bin linuxboot.bin linuxboot_dma.bin multiboot_dma.bin pvh.bin"

die() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

out_of_reach() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 77
}

# Where this machine's apt gets the release it runs, so that no mirror is named here.
mirror() {
    apt-get indextargets --format "\$(REPO_URI) \$(CODENAME)" 'Identifier: Packages' |
        sed -n "s/ $1\$//p" | head -n 1
}

# kernel DIR: DIR/vmlinuz and DIR/modules/NN-NAME.ko, by way of a private apt.
fetch_kernel() (
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    uri=$(mirror "$release")
    [ -n "$uri" ] || out_of_reach "apt has no source for '$release'"
    apt=$cache/apt.new
    rm -rf "$apt" "$1.new"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$1.new/modules" "$1.new/rdma-modules"
    ring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e $ring ] && signed="[signed-by=$ring] " || signed=''
    printf 'deb %s%s %s-backports main\n' "$signed" "$uri" "$release" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
CONF
    APT_CONFIG=$apt/apt.conf
    export APT_CONFIG
    cd "$apt"
    apt-get -q update >apt.log 2>&1 || { cat apt.log >&2; out_of_reach "cannot read $release-backports"; }
    # The named package depends on the real one of the day.
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' |
        head -n 1)
    [ -n "$package" ] || out_of_reach "$release-backports has no linux-image-amd64"
    apt-get -q download "$package" >apt.log 2>&1 || { cat apt.log >&2; out_of_reach "cannot get $package"; }
    dpkg-deb -x ./*.deb unpacked
    mv unpacked/boot/vmlinuz-* "$1.new/vmlinuz"
    number=10
    for name in $modules $rdma_modules; do
        file=$(find unpacked -name "$name.ko*")
        [ -f "$file" ] || die "$package has no module $name"
        folder=modules
        case " $rdma_modules " in
            *" $name "*) folder=rdma-modules ;;
        esac
        target=$1.new/$folder/$number-$name.ko
        case $file in
            *.xz) xz -dc "$file" >"$target" ;;
            *.zst) zstd -qdc "$file" >"$target" ;;
            *) cp "$file" "$target" ;;
        esac
        number=$((number + 1))
    done
    cd "$cache"
    rm -rf "$apt"
    mv "$1.new" "$1"
)

# programs DIR FILE...: copy them to DIR below $root, without debug information, and the libraries
# they need to where the loader looks.
programs() {
    to=$root$1
    shift
    mkdir -p "$to" "$root/lib64" "$root/lib/x86_64-linux-gnu"
    for program; do
        cp -L "$program" "$to/"
        strip "$to/${program##*/}" 2>/dev/null || true
        ldd "$program" 2>/dev/null |
            sed -n 's/^.*=> \(\/[^ ]*\) (.*$/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*$/\1/p' |
            while read -r library; do
                case ${library##*/} in
                    ld-linux*) cp -L "$library" "$root/lib64/" ;;
                    *) cp -L "$library" "$root/lib/x86_64-linux-gnu/" ;;
                esac
            done
    done
}

# archive FILE: $root as an archive that init can follow with another.
archive() {
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$1.new"
    rm -rf "$root"
    mv "$1.new" "$1"
}

build_base() {
    root=$cache/root.new
    rm -rf "$root"
    mkdir -p "$root/bin" "$root/usr/lib" "$root/usr/share/qemu" "$root/lab/guest"
    cp "$busybox" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    cp -r "$kernel/modules" "$kernel/rdma-modules" "$root/"

    version=$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    programs /usr/bin "/usr/bin/$version" "$qemu"
    ln -s "$version" "$root/usr/bin/python3"
    tar -C /usr/lib -c -f - --exclude='config-*' --exclude=test --exclude=distutils --exclude=lib2to3 \
        --exclude=pydoc_data --exclude=idlelib --exclude=ensurepip "$version" | tar -C "$root/usr/lib" -x -f -
    for program in $tools; do
        programs /usr/bin "$(command -v "$program")"
    done
    # The library loads its part for soft RoCE by name.
    programs /usr/lib/x86_64-linux-gnu/libibverbs /usr/lib/x86_64-linux-gnu/libibverbs/librxe-*.so
    mkdir -p "$root/etc/libibverbs.d"
    cp -L /etc/libibverbs.d/rxe.driver "$root/etc/libibverbs.d/"
    # fakepager wants ctypes; other extension modules do without their libraries or are not needed.
    for extension in "/usr/lib/$version"/lib-dynload/_ctypes.*.so; do
        programs /usr/lib/"$version"/lib-dynload "$extension"
    done
    [ "${qemu##*/}" = qemu-system-x86_64 ] || mv "$root/usr/bin/${qemu##*/}" "$root/usr/bin/qemu-system-x86_64"

    "$qemu" -L help >"$cache/firmware.dirs"
    for file in $firmware; do
        while read -r folder; do
            [ -f "$root/usr/share/qemu/$file" ] || [ ! -f "$folder/$file" ] ||
                cp -L "$folder/$file" "$root/usr/share/qemu/"
        done <"$cache/firmware.dirs"
        [ -f "$root/usr/share/qemu/$file" ] || die "$qemu has no $file in any of its folders"
    done
    rm -f "$cache/firmware.dirs"
    cp -L "$guest_kernel" "$root/lab/guest/vmlinuz"
    cp "$kernel/vmlinuz" "$root/lab/guest/vmlinuz-full" # knows memory errors, which the cloud kernel does not
    cp -L "$guest_initrd" "$root/lab/guest/initrd"
    archive "$1"
}

# Our own programs and the tests, laid out as in a checkout, for tests/lib/cluster.py.
build_ours() {
    root=$build/lab/root.new
    rm -rf "$root"
    mkdir -p "$root/lab/tests/guest"
    programs /lab/build/bin "$build"/bin/*
    programs /lab/build/tests/tools "$build/tests/tools/engineplay" "$build/tests/tools/guestplay" \
        "$build/tests/tools/movertool"
    cp -r "$top/tests/lib" "$top/tests/lab/tests" "$root/lab/tests/"
    mkdir "$root/lab/bench"
    cp "$top/bench/splitkit.py" "$root/lab/bench/"
    mkdir "$root/lab/tests/lab"
    mv "$root/lab/tests/tests" "$root/lab/tests/lab/"
    rm -rf "$root"/lab/tests/*/__pycache__
    # Stands in for tests/guest/build.sh, which needs apt and a compiler.
    printf '#!/bin/sh\necho KERNEL=/lab/guest/vmlinuz\necho INITRD=/lab/guest/initrd\n' \
        >"$root/lab/tests/guest/build.sh"
    chmod 755 "$root/lab/tests/guest/build.sh"
    cp "$here/init" "$root/init"
    chmod 755 "$root/init"
    archive "$1"
}

[ $# = 3 ] || die "usage: build.sh CACHE_DIR BUILD_DIR QEMU_BINARY"
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
mkdir -p "$1/lab" "$2/lab"
cache=$(cd "$1/lab" && pwd)
build=$(cd "$2" && pwd)
qemu=$3
[ -x "$qemu" ] || die "$qemu is not a program"
busybox=$(command -v busybox) || out_of_reach "there is no busybox (package busybox-static)"
guest=$("$top/tests/guest/build.sh" "$1/guest") || out_of_reach "there is no kernel for the nested guest"
guest_kernel=$(printf '%s\n' "$guest" | sed -n 's/^KERNEL=//p')
guest_initrd=$(printf '%s\n' "$guest" | sed -n 's/^INITRD=//p')
exec 9>"$cache/lock"
flock 9

key() {
    sha256sum | cut -c 1-16
}

for program in $tools; do
    command -v "$program" >/dev/null ||
        out_of_reach "there is no program $program (packages iproute2, perftest, libnbd-bin)"
done
kernel=$cache/kernel-$(echo "$modules $rdma_modules" | key)
[ -s "$kernel/vmlinuz" ] || fetch_kernel "$kernel"

# The QEMU binary changes in place while it is being developed: its contents count, not its name.
base=$cache/base-$({
    echo "$kernel" "$guest_kernel" "$guest_initrd"
    cat "$here/build.sh" "$qemu" "$busybox" /usr/bin/python3
} | key).cpio
if [ ! -s "$base" ]; then
    build_base "$cache/base.cpio"
    rm -f "$cache"/base-*.cpio
    mv "$cache/base.cpio" "$base"
fi

initrd=$build/lab/initrd
ours=$({ echo "$base"; cat "$here/build.sh" "$here/init" "$here"/tests/* "$top"/tests/lib/*.py "$top/bench/splitkit.py" "$build"/bin/* "$build"/tests/tools/*play "$build"/tests/tools/movertool; } | key)
if [ ! -s "$initrd" ] || [ "$(cat "$initrd.key" 2>/dev/null)" != "$ours" ]; then
    rm -f "$initrd.key"
    build_ours "$build/lab/ours.cpio"
    cat "$base" "$build/lab/ours.cpio" >"$initrd.new"
    mv "$initrd.new" "$initrd"
    echo "$ours" >"$initrd.key"
fi
printf 'KERNEL=%s\nINITRD=%s\n' "$kernel/vmlinuz" "$initrd"
