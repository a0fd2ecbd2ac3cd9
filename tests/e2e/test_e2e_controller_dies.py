# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""The controller is killed at the switch-over, while everything is on its way: either the guest runs on
at the source, or it has arrived whole; it never stays stopped in between, and nothing is left over.

Unlike test_e2e_move_dies nothing is held up here: the end of the controller's connections races with
the last frames between QEMU, pager and mover.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

RAM, FILL, ATTEMPTS = 256 * MIB, 96 * MIB, 8


def test(cluster):
    cluster.subhost(256 * MIB)
    main_pager, source_pager = cluster.pager("main"), cluster.pager("source")
    source = cluster.guest("src", source_pager, RAM, append="memguest.size=%d memguest.rate=1000" % FILL)
    source.wait_log("memguest: ready", 120)
    policy = cluster.policy(48 * MIB, predictor={"profile-seconds": "0"})
    for attempt in range(ATTEMPTS):
        destination = cluster.guest("dst", main_pager, RAM, incoming=True)
        destination.wait_handed_over()
        status, _, err = cluster.run(
            "migrate", "--live", "--policy", policy, source.uri(), destination.uri(), seconds=60,
            env={"SPLIT_MIGRATE_FAULT": "controller-exit-switchover"})
        if status != -9:
            raise Failure("the controller was to be killed; it ended with %d: %s" % (status, err))

        def settled():
            state = source.status()
            return state if state in ("running", "postmigrate") else None
        state = wait_until("the source is running or has sent the guest", 30, settled)
        print("attempt %d: the source is %s" % (attempt, state), flush=True)
        if state == "postmigrate":
            # Everything had been acknowledged: the guest is the destination's, as the manual says.
            wait_until("the guest is split", 20, lambda: main_pager.guest(
                cluster.uuid)["state"] == "split")
            source.quit()
            destination.qmp("cont")
            destination.expect_sweep()
            destination.check_clean()
            return
        destination.quit()
        wait_until("the destination's pager has forgotten the guest", 30, lambda: not main_pager.guests())
        wait_until("the sub-host is empty", 30, lambda: not cluster.subhosts[0].call("region-list"))
        wait_until("the guest is attached again", 30, lambda: source_pager.guest(
            cluster.uuid)["state"] == "attached")
        reports = source.reports()
        wait_until("the guest works", 30, lambda: source.reports() >= reports + 2)
        source.check_clean()
    source.expect_sweep()


main(test)
