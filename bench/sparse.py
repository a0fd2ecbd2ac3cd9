# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-sparse: a guest declared with 64 GiB that uses 200 MiB beside one declared with 1 GiB.

Total times of moves taken in turn, medians compared; target: at most 1.3 times.  Linux itself would touch
1 GiB of page structures for 64 GiB, so the kernel is told of 1 GiB (mem=) in both; QEMU, the
pagers and the migration see the declared size.  The row goes to BUILD/bench-sparse.json.
"""

import json
import os
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "lib"))
from cluster import *  # noqa: F401,F403,E402

RUNS = int(os.environ.get("BENCH_RUNS", "7"))
TARGET = 1.3


def once(declared):
    with Cluster() as cluster:
        cluster.subhost(512 * MIB)
        source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
        source = cluster.guest("src", source_pager, declared,
                               append="mem=1G memguest.size=160M memguest.rate=1000")
        source.wait_log("memguest: ready", 120)
        destination = cluster.guest("dst", main_pager, declared, incoming=True)
        result = cluster.migrate(source, destination, cluster.policy(64 * MIB))
        destination.expect_sweep()
        destination.check_clean()
        print("  %6d MiB declared: %5d ms, downtime %4d ms, %d MiB sent" % (
            declared // MIB, result["total_time_ms"], result["downtime_ms"],
            result["wire_bytes"] // MIB), flush=True)
        return result["total_time_ms"]


def bench():
    small, large = [], []
    for _ in range(RUNS):
        small.append(once(1024 * MIB))
        large.append(once(65536 * MIB))
    ours, peer = statistics.median(large), statistics.median(small)
    row = {"name": "total-time-64GiB-vs-1GiB-declared", "ours": ours, "peer": peer, "floor": min(small),
           "unit": "ms", "ratio": round(ours / peer, 3), "target": TARGET, "met": ours / peer <= TARGET}
    print("medians of %d: 64 GiB %d ms, 1 GiB %d ms, ratio %.2f, target at most %.1f: %s" % (
        RUNS, ours, peer, row["ratio"], TARGET, "met" if row["met"] else "NOT MET"))
    with open(os.path.join(BUILD, "bench-sparse.json"), "w") as file:
        json.dump([row], file, indent=2)
        file.write("\n")


try:
    bench()
except Failure as failure:
    print("bench-sparse: %s" % failure)
    sys.exit(1)
