#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A native guest in QEMU's place: profiled, moved, split, its pager killed, its socket dropped."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, Failure, main, wait_until
from guestplay import GuestPlay, move, split_again


def test(cluster):
    source, target = cluster.pager("source"), cluster.pager("target")
    for name in "suba", "subb":
        cluster.subhost(128 * MIB, name)
    here = GuestPlay(cluster, source, "source guest")
    there = GuestPlay(cluster, target, "destination guest", incoming=True)
    here("mode", "hot")
    here("fill", 80)
    move(cluster, source, target, here, there)
    guest = target.guest(cluster.uuid)
    if guest["state"] != "split" or guest["resident"] > 25 * MIB:
        raise Failure("after the move: %s" % guest)
    here.check()
    here.process.kill()
    there.check()
    there.run(2)
    before = target.guest(cluster.uuid)
    if not before["page_ins"] or not before["page_outs"] or not before["in_use"]:
        raise Failure("nothing was paged: %s" % before)
    # The hand-off socket drops, then the worker dies: the guest waits and goes on.
    there("go")
    there.good("drop")
    for _ in range(3):
        worker = target.guest(cluster.uuid)["worker_pid"]
        os.kill(worker, 9)
        wait_until("another worker", 20, lambda: split_again(target, cluster.uuid, worker))
        time.sleep(0.3)
    there.good("discard", 100, 500)
    there.run(1)
    there.check()
    guest = target.guest(cluster.uuid)
    if guest["lost_pages"] or guest["resident"] > 25 * MIB:
        raise Failure("at the end: %s" % guest)


main(test)
