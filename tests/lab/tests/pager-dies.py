# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of the worker while a vCPU waits for pages in KVM: the guest waits, then goes on whole."""

import os
import signal

from cluster import Failure, main, wait_until
from kvm_split import BUDGET, SLACK, split, sweep

KILLS = 6  # all within one sweep
PAGE_INS = 300  # that a worker has done before it is killed
# Without asynchronous page faults, which KVM does without only if it need not leave the guest for HLT: the
# vCPU then waits in the fault itself, and nothing but the next worker can wake it.  With them, an
# interrupt would have it try again.  The other test in the lab has them.
SYNCHRONOUS = ("-cpu", "qemu64,kvm-asyncpf=off", "-overcommit", "cpu-pm=on")


def test(cluster):
    pager, guest = split(cluster, smp=1, extra=SYNCHRONOUS)
    killed = []

    def worker():
        """None while no worker serves the guest."""
        try:
            answer = pager.guest(cluster.uuid)
        except Failure:
            return None
        return answer if answer["state"] == "split" and answer["worker_pid"] not in killed else None

    first = wait_until("a worker", 30, worker)

    def kill():
        now = len(killed) < KILLS and worker()
        done = now and now["page_ins"] - (0 if killed else first["page_ins"])
        if done and done >= PAGE_INS:
            os.kill(now["worker_pid"], signal.SIGKILL)
            killed.append(now["worker_pid"])
            print("killed worker %d after %d page-ins" % (killed[-1], done), flush=True)

    most = sweep(guest, during=kill)
    if len(killed) < KILLS:
        raise Failure("the sweep was over after %d kills" % len(killed))
    if most > BUDGET + SLACK:
        raise Failure("the budget is not kept over a kill: %d KiB were resident" % (most // 1024))
    numbers = wait_until("another worker", 30, worker)
    print(numbers)
    if numbers["lost_pages"]:
        raise Failure("pages were lost: %s" % numbers)
    # All of it once more, for what a worker that dies in the middle of a page-out may have left.
    sweep(guest)


main(test)
