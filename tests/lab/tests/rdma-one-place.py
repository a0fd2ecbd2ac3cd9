# SPDX-License-Identifier: GPL-2.0-or-later
"""Exactly one place after a move by the whole command: two sub-hosts by RDMA; one by RDMA, one by TCP."""

import sys

import oneplace
from cluster import Cluster, Failure, MIB
from rdma_lab import BY_RDMA

RAM, BUDGET = 48 * MIB, 16 * MIB  # the least that a policy takes


def one(subhosts, kind, seed):
    with Cluster() as cluster:
        for options in subhosts:
            cluster.subhost(40 * MIB, options=options)
        result, counts = oneplace.move(cluster, RAM, BUDGET, kind, seed, accel="kvm",
                                       pages={"slab": "2MiB"})
        if not counts["local"] or not counts["remote"] or min(result["subhost_bytes"]) == 0:
            raise Failure("a place was not used: %s, %s" % (counts, result))
        for subhost in cluster.subhosts:
            stats = subhost.call("stats")
            if bool(stats["writes"]) == bool(subhost.rdma):
                raise Failure("%s: pages came the wrong way: %s" % (subhost.name, stats))


try:
    one((BY_RDMA, BY_RDMA), "random", 1)
    one((BY_RDMA, ()), "random", 2)
    one((BY_RDMA, ()), "sparse", 3)
except Failure as failure:
    print("FAIL: %s" % failure)
    sys.exit(1)
print("ok")
