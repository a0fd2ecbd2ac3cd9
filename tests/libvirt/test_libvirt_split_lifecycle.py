#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""virsh's commands on a split guest: snapshot, setmem, reset, reboot, managedsave, shutdown.

Each works and the guest is whole and checks itself; what keeps the QEMU keeps the split, what ends it
frees the sub-hosts.  Nothing is left on pagers and sub-hosts at the end.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 256 * MIB, 96 * MIB, 48 * MIB


def split(bed, guest, source, destination):
    status, out, err = bed.run("-c", source.uri, "migrate", "--live", "--profile", "0", "--persistent",
                               "--undefinesource", "--policy", bed.policy(BUDGET), "g1", destination.uri)
    if status:
        raise Failure("migrate: %d %s%s" % (status, out, err))
    guest.at(destination)
    still_split(guest)


def info_of(guest):
    return guest.host.pager_call("query-guest", uuid=guest.uuid)


def still_split(guest):
    before = guest.reports()
    wait_until("the guest goes on", 60, lambda: guest.reports() >= before + 2, 0.1)
    guest.check_clean()
    info = info_of(guest)
    if info["state"] != "split" or not sum(entry["pages"] for entry in info["subhosts"]):
        raise Failure("it is not split any more: %s" % info)
    wait_until("it is within its budget", 30, lambda: info_of(guest)["resident"] <= BUDGET + 2 * MIB, 0.1)


def free(bed):
    for host in bed.subhosts:
        wait_until("%s is empty" % host.name, 30, lambda h=host: not h.regions() and not any(
            h.status()[key] for key in ("stored", "reserved")), 0.1)


def test_snapshot(bed, guest):
    """The guest stops while its memory is written, then it goes on where it was."""
    path = "/run/guest/memory"
    bed.main.virsh("snapshot-create-as", "g1", "s1", "--memspec", "file=%s,snapshot=external" % path, seconds=90)
    if os.path.getsize(bed.main.path(path)) < FILL:
        raise Failure("the snapshot lacks memory")
    still_split(guest)
    bed.main.virsh("snapshot-delete", "g1", "s1", "--metadata")


def test_setmem(bed, guest):
    guest.command("drop %d" % (FILL // 4 // 4096), "drop")
    bed.main.virsh("setmem", "g1", "%dMiB" % ((RAM - FILL // 4) // MIB), "--live")
    wait_until("pages are discarded", 60, lambda: info_of(guest)["discards"] >= FILL // 4 // 4096, 0.1)
    bed.main.virsh("setmem", "g1", "%dMiB" % (RAM // MIB), "--live")
    guest.command("refill", "refill")
    still_split(guest)


def test_reset(bed, guest):
    start = len(guest.log_text())
    bed.main.virsh("reset", "g1")
    guest.wait_log("memguest: ready", 90, start)
    still_split(guest)


def test_reboot(bed, guest):
    """libvirt has the guest power off, and then starts it anew in the same QEMU."""
    start = len(guest.log_text())
    pid = info_of(guest)["pid"]
    bed.main.virsh("reboot", "g1", "--mode", "acpi")
    guest.say("quit")
    guest.wait_log("memguest: ready", 90, start)
    still_split(guest)
    if info_of(guest)["pid"] != pid:
        raise Failure("it is another QEMU")


def test_managedsave(bed, guest):
    """Whole in the file, whole again, not split; then it can be split anew."""
    guest.hang_up()
    bed.main.virsh("managedsave", "g1", seconds=90)
    free(bed)
    wait_until("the pager's end of it", 20, lambda: not bed.main.guests(), 0.1)
    bed.main.virsh("start", "g1", seconds=90)
    guest.at(bed.main)
    guest.expect_sweep(90)
    guest.check_clean()
    wait_until("it is attached", 20, lambda: info_of(guest)["state"] == "attached", 0.1)
    split(bed, guest, bed.main, bed.source)
    guest.expect_sweep(90)


def test_shutdown(bed, guest):
    bed.source.virsh("shutdown", "g1", "--mode", "acpi")
    guest.say("quit")
    wait_until("it is shut off", 30, lambda: guest.state() == "shut off", 0.1)
    free(bed)
    for host in (bed.source, bed.main):
        wait_until("no worker on %s" % host.name, 20,
                   lambda h=host: not h.guests() and len(h.pids("uffd-pager")) == 1, 0.1)
        if os.listdir(host.path("/run/split-migrate/guests")):
            raise Failure("page maps are left on %s" % host.name)


def test(bed):
    guest = bed.define("g1", RAM, "memguest.balloon=1 memguest.size=%d memguest.rate=2000 memguest.hot=20" % FILL)
    xml = bed.source.virsh("dumpxml", "--inactive", "g1").replace("<on_reboot>destroy", "<on_reboot>restart")
    bed.source.write("/run/guest/g1.xml", xml)
    bed.source.virsh("define", "/run/guest/g1.xml")
    status, out, err = bed.run("enable", "g1")
    if status:
        raise Failure("enable: %s%s" % (out, err))
    bed.source.virsh("start", "g1")
    guest.wait_log("memguest: ready", 90)
    split(bed, guest, bed.source, bed.main)
    for step in (test_snapshot, test_setmem, test_reset, test_reboot, test_managedsave, test_shutdown):
        start = time.monotonic()
        step(bed, guest)
        print("%s: %.1f s" % (step.__name__, time.monotonic() - start), flush=True)


main(test)
