# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Exactly one place: random, sparse and all-zero guests; 1, 2 and 5 sub-hosts of unequal size."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import oneplace  # noqa: E402
from cluster import *  # noqa: F401,F403,E402

RAM, BUDGET = 192 * MIB, 48 * MIB


def one(kind, memories, seed):
    with Cluster() as cluster:
        for memory in memories:
            cluster.subhost(memory)
        result, counts = oneplace.move(cluster, RAM, BUDGET, kind, seed)
        if kind == "random" and (not counts["local"] or not counts["remote"]):
            raise Failure("a random guest must be in both places: %s" % counts)
        if kind == "random" and min(result["subhost_bytes"]) == 0:
            raise Failure("a sub-host got nothing")
        if kind == "zero" and counts["local"] + counts["remote"] > 1024:
            raise Failure("zero pages were sent: %s" % counts)


try:
    sizes = {1: [256 * MIB], 2: [64 * MIB, 160 * MIB],
             5: [20 * MIB, 30 * MIB, 45 * MIB, 60 * MIB, 128 * MIB]}
    for seed, (kind, n) in enumerate([("random", 1), ("random", 2), ("random", 5), ("sparse", 1),
                                      ("sparse", 2), ("sparse", 5), ("zero", 1), ("zero", 2),
                                      ("zero", 5)]):
        one(kind, sizes[n], seed)
except Failure as failure:
    print("FAIL: %s" % failure)
    sys.exit(1)
print("ok")
