#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 400
"""Moves that do not come to their end: the guest runs on at the source, and everything is freed.

domjobinfo, migrate-setspeed, migrate-setmaxdowntime and domjobabort from another shell; Ctrl-C; a
controller or a libvirtd that is killed; a destination that has no room, and one that cannot start QEMU.
"""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402
from moving import finish, start_move, still_at_source  # noqa: E402

RAM, FILL, BUDGET = 256 * MIB, 128 * MIB, 64 * MIB


def moving(bed, guest, *more, bandwidth="4MiB"):
    return start_move(bed, guest, BUDGET, "--bandwidth", bandwidth, *more)


def test_domjobabort(bed, guest):
    process = moving(bed, guest)
    bed.source.virsh("domjobabort", "g1")
    finish(process, 1, "^error: the migration failed: libvirt: .*cancel")
    still_at_source(bed, guest)


def test_interrupt(bed, guest):
    process = moving(bed, guest)
    controller = bed.source.pids("split-migrate")
    if len(controller) != 1:
        raise Failure("controllers: %s" % controller)
    os.kill(controller[0], signal.SIGINT)
    finish(process, 1, "^error: interrupted: the migration was cancelled$")
    still_at_source(bed, guest)


def test_killed(bed, guest):
    process = moving(bed, guest)
    os.kill(bed.source.pids("split-migrate")[0], signal.SIGKILL)
    process.communicate(timeout=30)
    still_at_source(bed, guest)


def test_timeout(bed, guest):
    process = moving(bed, guest, "--timeout", "4", "--timeout-abort")
    finish(process, 1, "^error: the migration did not finish within 4 s: it was cancelled$")
    still_at_source(bed, guest)


def test_libvirtd_dies(bed, guest):
    """The source's libvirtd dies in mid-move; the next one finds its guest."""
    process = moving(bed, guest)
    os.kill(bed.source.pids("libvirtd")[0], signal.SIGKILL)
    finish(process, 3, "^error: the migration failed: .*; the guest needs attention at the source: source libvirt: ")
    bed.source.start_libvirtd()
    still_at_source(bed, guest)


def test_no_room(bed, guest):
    """A main host whose budget cannot be had, sub-hosts that are too small: refused at once."""
    def refused(policy, says):
        status, out, err = bed.run("migrate", "--live", "--profile", "0", "--policy", policy, "g1", bed.main.uri)
        print(err.strip())
        if status != 1 or err.count("\n") != 1 or not err.startswith("error: " + says):
            raise Failure("no room gave %d: %s%s" % (status, out, err))
        still_at_source(bed, guest)
    refused(bed.policy(16 * MIB, 32 * MIB), "sub-hosts lack memory")
    bed.main.expect("sh", "-c", "sed 's/^MemAvailable:.*/MemAvailable: 40000 kB/' /proc/meminfo >/run/meminfo &&"
                    " mount --bind /run/meminfo /proc/meminfo")
    refused(bed.policy(BUDGET), "the main host lacks memory")
    bed.main.expect("umount", "/proc/meminfo")


def test_no_qemu(bed, guest):
    """The destination's pager takes no hand-off, so QEMU does not start there."""
    socket = bed.main.path("/run/split-migrate/handoff.sock")
    os.rename(socket, socket + ".away")
    status, out, err = bed.run("migrate", "--live", "--profile", "0", "--policy", bed.policy(BUDGET), "g1",
                               bed.main.uri)
    print(err.strip())
    os.rename(socket + ".away", socket)
    if status != 1 or err.count("\n") != 1:
        raise Failure("no hand-off gave %d: %s%s" % (status, out, err))
    still_at_source(bed, guest)


def test_faster(bed, guest):
    """What virsh sets in mid-move holds: the move that would take minutes comes to its end before finish() gives up."""
    process = moving(bed, guest, "--persistent", bandwidth="1MiB")
    bed.source.virsh("migrate-setmaxdowntime", "g1", "2000")
    bed.source.virsh("migrate-setspeed", "g1", "1000")
    finish(process, 0, "")
    guest.at(bed.main)
    guest.expect_sweep(120)
    guest.check_clean()


def test(bed):
    guest = bed.enabled("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    for step in (test_no_room, test_no_qemu, test_domjobabort, test_interrupt, test_killed, test_timeout,
                 test_libvirtd_dies, test_faster):
        start = time.monotonic()
        step(bed, guest)
        print("%s: %.1f s" % (step.__name__, time.monotonic() - start), flush=True)


main(test)
