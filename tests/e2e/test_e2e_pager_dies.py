# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""kill -9 of the worker with faults in flight and during page-out: the guest waits, then goes on whole.

Then the daemon is killed too: guests go on without it, and a new daemon finds them.
"""

import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET, KILLS = 384 * MIB, 224 * MIB, 80 * MIB, 8


def paging(pager, uuid):
    guest = pager.guest(uuid)
    return guest["page_ins"] + guest["page_outs"] if guest["state"] == "split" else -1


def test(cluster):
    cluster.subhost(256 * MIB)
    cluster.subhost(256 * MIB)
    source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
    source = cluster.guest("src", source_pager, RAM,
                           append="memguest.size=%d memguest.rate=2000 memguest.hot=60" % FILL)
    source.wait_log("memguest: ready", 120)
    destination = cluster.guest("dst", main_pager, RAM, incoming=True)
    cluster.migrate(source, destination, cluster.policy(BUDGET))
    random.seed(1)
    for kill in range(KILLS):
        # A sweep keeps faults and page-out busy all the time.
        start = len(destination.log_text())
        destination.say("sweep")
        before = paging(main_pager, cluster.uuid)
        wait_until("paging under the sweep", 30,
                   lambda: paging(main_pager, cluster.uuid) > before + 500)
        time.sleep(random.random() * 0.3)  # a random moment, not a wait
        worker = main_pager.guest(cluster.uuid)["worker_pid"]
        os.kill(worker, signal.SIGKILL)

        def back():
            try:
                guest = main_pager.guest(cluster.uuid)
            except Failure:
                return False
            return guest["state"] == "split" and guest["worker_pid"] != worker
        died = time.monotonic()
        wait_until("another worker serves the guest", 30, back)
        print("kill %d: served again after %.0f ms" % (kill, (time.monotonic() - died) * 1000), flush=True)
        match = destination.wait_log(r"sweep done pages=(\d+) errors=(\d+)", 120, start)
        if match.group(2) != "0":
            raise Failure("the sweep over kill %d has errors: %s" % (kill, match.group(0)))
        destination.check_clean()
    if memfd_blocks(destination.memfd()) > BUDGET + 2 * MIB:
        raise Failure("the budget is not kept after the kills")

    main_pager.kill()
    destination.expect_sweep(120)
    again = cluster.pager("main")
    guest = again.guest(cluster.uuid)
    if guest["state"] != "split":
        raise Failure("the new daemon does not know the guest: %s" % guest)
    # With daemon and worker gone, the next daemon's worker takes over.
    again.kill()
    os.kill(guest["worker_pid"], signal.SIGKILL)
    third = cluster.pager("main")
    wait_until("the third daemon serves the guest", 30, lambda: any(
        entry["state"] == "split" and entry["worker_pid"] != guest["worker_pid"]
        for entry in third.call("query-guests")))
    destination.expect_sweep(120)
    destination.check_clean()


main(test)
