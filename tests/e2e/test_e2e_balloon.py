# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""A split guest's balloon: what it takes goes on every host, what it gives back is the guest's anew.

Inflated while the guest sweeps, so that pages are discarded while they are being fetched and paged
out; the pages discarded are UNTOUCHED and the sub-hosts hold no more than what the page map says is there.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402
import leaks  # noqa: E402

RAM, FILL, BUDGET = 384 * MIB, 256 * MIB, 64 * MIB
DROPPED = 96 * MIB


def inflate(guest, size):
    guest.qmp("balloon", value=size)


def size_of(guest):
    return guest.qmp("query-balloon")["actual"]


def stored(cluster):
    return sum(subhost.call("query-status")["stored"] for subhost in cluster.subhosts)


def check_map(cluster, pager, guest):
    """Stopped: a hole is where the map says so, and the sub-hosts hold what is mapped to them at most."""
    guest.qmp("stop")
    fd = guest.memfd()
    page_map, extents = pager.map_and_extents(cluster.uuid, fd)
    os.close(fd)
    counts = [page_map.pages.count(state) for state in range(5)]
    wait_until("discarded copies are freed on the sub-hosts", 20,
               lambda: stored(cluster) <= (counts[REMOTE] + counts[CLEAN] + counts[LOCAL]) * PAGE)
    for start, end in extents:
        wrong = [page for page in range(start // PAGE, end // PAGE)
                 if page_map.pages[page] not in (LOCAL, CLEAN)]
        if wrong:
            raise Failure("page %d is resident and in state %d" % (wrong[0], page_map.pages[wrong[0]]))
    guest.qmp("cont")
    return counts


def test(cluster):
    cluster.subhost(256 * MIB)
    cluster.subhost(256 * MIB)
    pagers = cluster.pager("source"), cluster.pager("main")
    before = leaks.look(cluster, pagers)
    device = ("-device", "virtio-balloon-pci")
    source = cluster.guest("src", pagers[0], RAM, extra=device, append="memguest.balloon=1 memguest.size=%d "
                           "memguest.rate=2000 memguest.hot=30" % FILL)
    source.wait_log("memguest: ready", 120)
    guest = cluster.guest("dst", pagers[1], RAM, incoming=True, extra=device)
    cluster.migrate(source, guest, cluster.policy(BUDGET))
    source.quit()
    at_first = check_map(cluster, pagers[1], guest)

    # Memory the guest has no use for, most of it on sub-hosts, goes to the balloon under paging.
    if guest.command("drop %d" % (DROPPED // PAGE), "drop") != DROPPED // PAGE:
        raise Failure("the guest did not drop all of it")
    start = len(guest.log_text())
    guest.say("sweep")
    inflate(guest, RAM - DROPPED)
    wait_until("the balloon is inflated", 60, lambda: size_of(guest) == RAM - DROPPED, 0.1)
    match = guest.wait_log(r"sweep done pages=\d+ errors=(\d+)", 120, start)
    if match.group(1) != "0":
        raise Failure("the sweep while the balloon grew: " + match.group(0))
    discards = lambda: pagers[1].guest(cluster.uuid)["discards"]
    wait_until("the pager has heard of all discards", 30, lambda: discards() >= DROPPED // PAGE)
    inflated = check_map(cluster, pagers[1], guest)
    print("at first %s, inflated %s, %d discards" % (at_first, inflated, discards()), flush=True)
    if at_first[REMOTE] + at_first[CLEAN] - inflated[REMOTE] - inflated[CLEAN] < (
            DROPPED // PAGE // 3) or inflated[UNTOUCHED] < DROPPED // PAGE:
        raise Failure("the balloon's pages were not given up everywhere: at first %s, then %s" % (at_first, inflated))
    guest.check_clean()

    # What it gives back is the guest's to fill.
    inflate(guest, RAM)
    wait_until("the balloon is deflated", 60, lambda: size_of(guest) == RAM, 0.1)
    if guest.command("refill", "refill") != DROPPED // PAGE:
        raise Failure("the guest did not write all of it again")
    guest.expect_sweep(120)
    # In and out under load, and a worker that dies in between.
    for turn in range(3):
        guest.command("drop %d" % (DROPPED // 2 // PAGE), "drop")
        inflate(guest, RAM - DROPPED // 2)
        if turn == 1:
            guest_info = pagers[1].guest(cluster.uuid)
            os.kill(guest_info["worker_pid"], 9)
        wait_until("the balloon is inflated", 60, lambda: size_of(guest) == RAM - DROPPED // 2, 0.1)
        inflate(guest, RAM)
        guest.command("refill", "refill")
        wait_until("the balloon is deflated", 60, lambda: size_of(guest) == RAM, 0.1)
    guest.expect_sweep(120)
    guest.check_clean()
    check_map(cluster, pagers[1], guest)

    guest.say("quit")
    wait_until("QEMU's end", 30, lambda: guest.daemon.process.poll() is not None)
    leaks.expect_same(cluster, pagers, before)


main(test)
