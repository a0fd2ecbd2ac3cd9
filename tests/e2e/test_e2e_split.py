# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""A live guest is split over a main host and two sub-hosts and runs on for minutes under paging.

Zero errors in the guest, all its memory touched, and residents never above budget plus slack, taken
from the memfd's own blocks.
"""

import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 512 * MIB, 320 * MIB, 128 * MIB
SLACK = 2 * MIB
SECONDS = float(os.environ.get("SPLIT_SECONDS", "120"))


class Watch(threading.Thread):
    """The most the memfd ever held, looked at every few milliseconds."""

    def __init__(self, fd):
        super().__init__(daemon=True)
        self.fd, self.most, self.looks, self.end = fd, 0, 0, threading.Event()

    def run(self):
        while not self.end.wait(0.005):
            self.most = max(self.most, memfd_blocks(self.fd))
            self.looks += 1


def test(cluster):
    for memory in (256 * MIB, 512 * MIB):
        cluster.subhost(memory)
    source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
    source = cluster.guest("src", source_pager, RAM,
                           append="memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    source.wait_log("memguest: ready", 120)
    destination = cluster.guest("dst", main_pager, RAM, incoming=True)
    result = cluster.migrate(source, destination, cluster.policy(BUDGET))
    print("moved:", result)
    if result["main_bytes"] > BUDGET:
        raise Failure("more went to the main host than its budget: %s" % result)
    if min(result["subhost_bytes"]) <= 0:
        raise Failure("a sub-host got nothing: %s" % result)
    watch = Watch(destination.memfd())
    watch.start()

    start, sweeps = time.monotonic(), 0
    while time.monotonic() - start < SECONDS or sweeps < 2:
        destination.expect_sweep(240)
        sweeps += 1
        before = destination.reports()
        wait_until("the guest goes on", 30, lambda: destination.reports() >= before + 3)
        destination.check_clean()
    watch.end.set()
    watch.join()
    guest = main_pager.guest(cluster.uuid)
    print("after %.0f s, %d sweeps: %s; memfd's most %d MiB in %d looks" % (
        time.monotonic() - start, sweeps, guest, watch.most // MIB, watch.looks))
    if watch.most > BUDGET + SLACK and not main_pager.over_budget():
        raise Failure("%d MiB were resident, the budget is %d" % (watch.most // MIB, BUDGET // MIB))
    if guest["page_ins"] < 1000 or guest["page_outs"] < 1000 or guest["clean_drops"] < 100:
        raise Failure("there was not much paging: %s" % guest)
    if guest["lost_pages"] or not destination.report()["verified"]:
        raise Failure("lost pages or no reads: %s" % guest)

    # The guest's end leaves nothing behind, on any host.
    destination.say("quit")
    wait_until("QEMU's end", 30, lambda: destination.daemon.process.poll() is not None)
    wait_until("the pager's end of it", 20, lambda: not main_pager.guests())
    for subhost in cluster.subhosts:
        wait_until("%s is empty" % subhost.name, 10, lambda s=subhost: not s.call("region-list"))
        status = subhost.call("query-status")
        if status["stored"] or status["reserved"]:
            raise Failure("%s still holds %s" % (subhost.name, status))


main(test)
