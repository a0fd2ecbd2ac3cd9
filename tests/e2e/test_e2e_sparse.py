# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""A guest declared with 64 GiB that uses 200 MiB moves in at most 1.3 times a 1 GiB guest's time.

Linux itself would touch 1 GiB of page structures for 64 GiB, so the kernel is told of 1 GiB (mem=)
in both; QEMU, the pagers and the migration see the declared size.  A ratio of two medians of one
run, so the machine's speed does not matter.
"""

import os
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

RUNS = 3


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
        return result["total_time_ms"]


try:
    small, large = [], []
    for _ in range(RUNS):
        small.append(once(1024 * MIB))
        large.append(once(65536 * MIB))
    ratio = statistics.median(large) / statistics.median(small)
    print("1 GiB: %s ms, 64 GiB: %s ms, ratio %.2f" % (small, large, ratio))
    if ratio > 1.3:
        raise Failure("64 GiB took %.2f times what 1 GiB took; the target is 1.3" % ratio)
except Failure as failure:
    print("FAIL: %s" % failure)
    sys.exit(1)
print("ok")
