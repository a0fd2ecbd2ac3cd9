#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 400
"""Destinations that are lost; libvirt's other commands on a split guest, which is whole after them.
"""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 192 * MIB, 64 * MIB, 32 * MIB


def goes_on(guest):
    before = guest.reports()
    try:
        wait_until("the guest goes on", 30, lambda: guest.reports() >= before + 2, 0.1)
    except Failure as failure:
        raise Failure("%s: it is '%s', %s, its console ends: %s" % (
            failure, guest.state(), guest.host.pager_call("query-guests"), guest.log_text()[-500:])) from None
    guest.check_clean()


def lost_destination(bed, guest, late):
    """The destination loses its QEMU: in mid-move, or when all has arrived and before it has run."""
    libvirtd = bed.main.pids("libvirtd")[0]
    process = bed.command("migrate", "--live", "--profile", "0", "--policy", bed.policy(BUDGET),
                          "--bandwidth", "8MiB", "g1", bed.main.uri)
    wait_until("memory at the sub-hosts", 30, lambda: bed.subhosts[0].status()["stored"], 0.02)
    if late:
        # libvirt's Finish waits for a libvirtd that stands still.
        os.kill(libvirtd, signal.SIGSTOP)
        wait_until("all has arrived", 60, lambda: bed.main.pager_call(
            "query-guest", uuid=guest.uuid)["state"] == "split", 0.02)
        wait_until("the source waits", 20, lambda: guest.state() != "running", 0.02)
    for pid in bed.main.pids("qemu-system-x86_64"):
        os.kill(pid, signal.SIGKILL)
    os.kill(libvirtd, signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    print("ended with %d: %s" % (process.returncode, err.strip()))
    if process.returncode != 1 or err.count("\n") != 1:
        raise Failure("ended with %d: %s%s" % (process.returncode, out, err))
    wait_until("the guest runs at the source", 20, lambda: guest.state() == "running", 0.1)
    goes_on(guest)
    wait_until("the main host is free of it", 20, lambda: not bed.main.guests(), 0.1)
    free(bed)


def test_lost_destination(bed, guest):
    lost_destination(bed, guest, late=False)


def test_failed_finish(bed, guest):
    lost_destination(bed, guest, late=True)


def free(bed):
    for host in bed.subhosts:
        wait_until("%s is empty" % host.name, 20, lambda h=host: not h.regions(), 0.1)


def test_split(bed, guest):
    """With everything a move can be told."""
    status, out, err = bed.run("migrate", "--profile", "0", "--live", "--dname", "g2", "--migrateuri",
                               "tcp://%s" % bed.main.address, "--dest-data", "tcp:%s:0" % bed.main.address,
                               "--abort-on-error", "--auto-converge", "--parallel-connections", "2",
                               "--timeout", "60", "--timeout-suspend", "--policy", bed.policy(BUDGET),
                               "g1", bed.main.uri)
    print(out)
    if status:
        raise Failure("migrate: %d %s%s" % (status, out, err))
    if guest.state() != "shut off" or guest.state(bed.main):
        raise Failure("the names: '%s' at the source" % guest.state())
    guest.at(bed.main)
    guest.name = "g2"
    goes_on(guest)
    bed.main.virsh("suspend", "g2")
    bed.main.virsh("resume", "g2")
    goes_on(guest)
    status, out, err = bed.run("-c", bed.main.uri, "migrate", "--live", "--policy", bed.policy(BUDGET), "g2",
                               bed.source.uri)
    print(err.strip())
    if status != 1 or err.count("\n") != 1 or "split already" not in err:
        raise Failure("a second split: %d %s%s" % (status, out, err))


def test_whole(bed, guest):
    """A split guest that is saved, or moved by virsh, brings all its memory along and is whole."""
    bed.main.virsh("save", "g2", "/run/guest/g2.save", seconds=90)
    free(bed)
    bed.main.virsh("restore", "/run/guest/g2.save")
    guest.expect_sweep(60)
    goes_on(guest)
    # From a third host, to which both libvirts and both pagers are remote.
    status, out, err = bed.run("-c", bed.main.uri, "migrate", "--profile", "0", "--live", "--dname", "g1",
                               "--policy", bed.policy(BUDGET), "g2", bed.source.uri, on=bed.subhosts[1])
    if status:
        raise Failure("a move back: %d %s%s" % (status, out, err))
    guest.name = "g1"
    guest.at(bed.source)
    goes_on(guest)
    bed.source.virsh("migrate", "--live", "g1", bed.main.uri, seconds=90)
    free(bed)
    guest.at(bed.main)
    guest.expect_sweep(60)
    goes_on(guest)
    bed.main.virsh("destroy", "g1")
    wait_until("the pagers' end of it", 20, lambda: not bed.main.guests() + bed.source.guests())


def test(bed):
    guest = bed.enabled("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    for step in (test_lost_destination, test_failed_finish, test_split, test_whole):
        start = time.monotonic()
        step(bed, guest)
        print("%s: %.1f s" % (step.__name__, time.monotonic() - start), flush=True)


main(test)
