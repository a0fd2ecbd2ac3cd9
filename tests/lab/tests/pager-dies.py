# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of the worker while vCPUs wait for pages in KVM: the guest waits, then goes on whole."""

import os
import signal

from cluster import Failure, main, wait_until
from kvm_split import BUDGET, SLACK, split, sweep

KILLS = 2


def test(cluster):
    pager, guest = split(cluster)

    def numbers():
        """None while no worker serves the guest."""
        try:
            answer = pager.guest(cluster.uuid)
        except Failure:
            return None
        return answer if answer["state"] == "split" else None

    for kill in range(KILLS):
        worker = wait_until("a worker", 30, numbers)
        dead = False

        def kill_in_the_middle():
            nonlocal dead
            now = not dead and numbers()
            if now and now["page_ins"] > worker["page_ins"] + 500:
                os.kill(worker["worker_pid"], signal.SIGKILL)
                dead = True

        most = sweep(guest, during=kill_in_the_middle)
        if not dead:
            raise Failure("the sweep was over before the worker could be killed")
        again = wait_until("another worker", 30, numbers)
        if again["worker_pid"] == worker["worker_pid"]:
            raise Failure("the worker that was killed still serves")
        print("kill %d: %s" % (kill, again), flush=True)
        if most > BUDGET + SLACK:
            raise Failure("the budget is not kept over a kill: %d KiB were resident" % (most // 1024))


main(test)
