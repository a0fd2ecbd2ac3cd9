# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""Memory hotplug on a split guest: a DIMM comes, is used, survives the worker, goes; one of the split goes.

A DIMM plugged after the split is plain memory of the main host: never on a sub-host, beyond the
budget.  A DIMM that was there when the guest was split is paged; unplugged, its memory goes everywhere.

What the guest writes, it writes before and after its move: QEMU 10.0's TCG loses sight of writes to all memory
but the first RAM block while the dirty log is read (cpu_physical_memory_sync_dirty_bitmap() resets the TLB for an
offset in the block, not in all RAM), so that stale pages arrive now and then.  KVM does not.
"""

import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402
import leaks  # noqa: E402

RAM, DIMM, FILL, BUDGET = 384 * MIB, 128 * MIB, 176 * MIB, 64 * MIB
MORE, MOST = 72 * MIB, 160 * MIB  # written anew after a DIMM came: more than another DIMM has free


def plug(guest, name):
    guest.qmp("object-add", qom_type="memory-backend-memfd", id="mem-" + name, share=True, size=DIMM)
    guest.qmp("device_add", driver="pc-dimm", id=name, memdev="mem-" + name)
    in_use(guest, name)


def in_use(guest, name):
    """The guest's kernel says by ACPI what became of it."""
    wait_until("the guest uses %s" % name, 60, lambda: any(
        slot.get("device") == name and slot["source"] == 1 and slot["status"] == 0
        for slot in guest.qmp("query-acpi-ospm-status")), 0.1)


def unplug(guest, name):
    """The guest's kernel empties it first, which takes free memory elsewhere."""
    guest.qmp("device_del", id=name)
    wait_until("%s is unplugged" % name, 60, lambda: not any(
        device["data"]["id"] == name for device in guest.qmp("query-memory-devices")), 0.1)
    guest.qmp("object-del", id="mem-" + name)


def blocks(guest):
    """Bytes in each of the guest's memfds: {what the link says: bytes}, by inode."""
    found, folder = {}, "/proc/%d/fd" % guest.pid
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            if os.readlink(path).startswith("/memfd:memory-backend-memfd"):
                status = os.stat(path)
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue  # closed since the folder was listed
    return found


def attached(pager, uuid, **expected):
    """The pager knows the guest again, and says so of it."""
    seen = {}

    def probe():
        try:
            seen.update(pager.guest(uuid))
        except Failure:
            return False  # between two workers
        return seen["connected"] and all(seen[key] == value for key, value in expected.items())
    try:
        wait_until("the pager has it with %s" % expected, 20, probe, 0.05)
    except Failure as failure:
        raise Failure("%s: %s" % (failure, seen)) from None


def test(cluster):
    cluster.subhost(512 * MIB)
    cluster.subhost(512 * MIB)
    pagers = cluster.pager("source"), cluster.pager("main")
    before = leaks.look(cluster, pagers)
    first = ("-m", "%dM,slots=4,maxmem=2G" % (RAM // MIB),
             "-object", "memory-backend-memfd,id=mem-d0,share=on,size=%d" % DIMM)
    cold = first + ("-device", "pc-dimm,id=d0,memdev=mem-d0")
    source = cluster.guest("src", pagers[0], RAM, extra=first, append="memhp_default_state=online_movable "
                           "memguest.size=%d memguest.rate=2000 memguest.hot=30 memguest.write=0" % FILL)
    source.wait_log("memguest: ready", 120)

    # Plugged before the split: the pager takes the new layout.
    source.qmp("device_add", driver="pc-dimm", id="d0", memdev="mem-d0")
    in_use(source, "d0")
    attached(pagers[0], cluster.uuid, ram=RAM + DIMM, state="attached")
    source.command("drop %d" % (MORE // PAGE), "drop")
    source.command("refill", "refill")
    source.hang_up()
    guest = cluster.guest("dst", pagers[1], RAM, incoming=True, extra=cold)
    cluster.migrate(source, guest, cluster.policy(BUDGET))
    source.quit()
    attached(pagers[1], cluster.uuid, ram=RAM + DIMM, state="split", unpaged=0)
    guest.expect_sweep(120)

    # Plugged after it: the guest uses it, over a crash of the worker too.
    ours = set(blocks(guest))
    plug(guest, "d1")
    attached(pagers[1], cluster.uuid, state="split", unpaged=DIMM)
    guest.command("drop %d" % (MOST // PAGE), "drop")
    guest.command("refill", "refill")
    plugged = sum(size for inode, size in blocks(guest).items() if inode not in ours)
    paged = sum(size for inode, size in blocks(guest).items() if inode in ours)
    print("in the DIMM %d MiB, of the rest %d MiB are resident" % (plugged // MIB, paged // MIB), flush=True)
    if plugged < (MOST - DIMM) // 2 or paged > BUDGET + 2 * MIB:
        raise Failure("of the DIMM %d bytes are used, of the rest %d resident" % (plugged, paged))
    worker = pagers[1].guest(cluster.uuid)["worker_pid"]
    os.kill(worker, signal.SIGKILL)
    wait_until("another worker serves the guest", 30, lambda: any(
        entry["state"] == "split" and entry["worker_pid"] != worker
        for entry in pagers[1].call("query-guests")))
    attached(pagers[1], cluster.uuid, state="split", unpaged=DIMM)
    guest.expect_sweep(120)

    # Gone again; then the one that was split, and the worker that knew it.
    unplug(guest, "d1")
    attached(pagers[1], cluster.uuid, state="split", unpaged=0)
    guest.expect_sweep(120)
    guest.command("drop %d" % (MORE // PAGE), "drop")
    unplug(guest, "d0")
    attached(pagers[1], cluster.uuid, state="split", unpaged=0)

    def freed():
        """Of the DIMM's pages none is anywhere; flat RAM is in the order of the blocks' names."""
        runs = pagers[1].call("query-pages", uuid=cluster.uuid)["runs"]
        return not sum(run[1] * (run[2] + run[3] + run[4]) for run in runs if run[0] < DIMM // MIB // 2)
    wait_until("the unplugged DIMM's pages are gone", 20, freed, 0.05)
    guest.expect_sweep(120)
    worker = pagers[1].guest(cluster.uuid)["worker_pid"]
    os.kill(worker, signal.SIGKILL)
    wait_until("another worker serves the guest", 30, lambda: any(
        entry["state"] == "split" and entry["worker_pid"] != worker
        for entry in pagers[1].call("query-guests")))
    # One of the same name, other memory: it is not the one that was split.
    plug(guest, "d0")
    attached(pagers[1], cluster.uuid, state="split", unpaged=DIMM)
    guest.command("refill", "refill")
    guest.expect_sweep(120)
    guest.check_clean()

    guest.say("quit")
    wait_until("QEMU's end", 30, lambda: guest.daemon.process.poll() is not None)
    leaks.expect_same(cluster, pagers, before)


main(test)
