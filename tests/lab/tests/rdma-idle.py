# SPDX-License-Identifier: GPL-2.0-or-later
"""While its pages are read, a sub-host's process never runs: no thread of it gets a processor at all.

The kernel counts for each thread how often it was given a processor (schedstat) and how long it ran.
A thread that was never given one has made no system call.
"""

import os

from rdma_lab import RdmaSubhost, eventually, play, with_region


def runs(pid):
    """{thread: (nanoseconds on a processor, times it was given one)}"""
    found = {}
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/schedstat" % (pid, task)) as file:
            ran, _, times = file.read().split()
        found[task] = int(ran), int(times)
    return found


def test():
    with RdmaSubhost() as one, with_region(one), \
            play([one.place()], local=0, remote=100, budget="14M", low="12M", high="13M", prefetch=0,
                 fault_threads=1) as guest:
        # Every slab's key is asked for once, by every connection: that is not about a page.
        for first in range(0, 3000, 500):
            guest("bench", first, 6, 80)
        before, page_ins = runs(one.process.pid), guest("stats")["engine"]["page_ins"]
        guest("bench", 1, 600, 4)
        eventually(lambda: guest("stats")["engine"]["page_ins"] >= page_ins + 500, "page-ins", 100)
        after, read = runs(one.process.pid), guest("stats")["engine"]["page_ins"] - page_ins
        print("%d pages read; threads of the sub-host before and after: %s" % (
            read, {task: (before[task], after[task]) for task in before}), flush=True)
        assert after == before, (before, after)
        assert guest.check()["errors"] == 0


test()
print("ok")
