#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# boot.sh ROOT - start systemd in a copy-on-write view of ROOT; to be run in new namespaces (testbed.py)
#
# All that is written is on tmpfs and goes with the namespaces.
set -eu
root=$1
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir="$root",upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    cp -a /dev/$node dev/
done
# shellcheck disable=SC2046 # two numbers
mknod -m 600 dev/userfaultfd c $(stat -c '0x%t 0x%T' /dev/userfaultfd)
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# A host without devices and users needs none of these.
for unit in systemd-udevd systemd-udev-trigger systemd-logind systemd-networkd systemd-resolved getty@ console-getty \
    apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim; do
    ln -sf /dev/null "etc/systemd/system/$unit.service"
done
for unit in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim systemd-tmpfiles-clean; do
    ln -sf /dev/null "etc/systemd/system/$unit.timer"
done
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
mkdir old
pivot_root . old
umount -l /old
rmdir /old
ip link set lo up
export container=split-migrate-test
exec /lib/systemd/systemd --system --log-target=journal
