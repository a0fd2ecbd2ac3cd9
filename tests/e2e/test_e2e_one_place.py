# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Exactly one place: random, sparse and all-zero guests; 1, 2 and 5 sub-hosts of unequal size."""

import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import oneplace  # noqa: E402
from cluster import *  # noqa: F401,F403,E402

RAM, BUDGET = 192 * MIB, 48 * MIB


def fill(fd, kind, seed):
    """Write a guest's memory from outside; the low 2 MiB stay the firmware's."""
    rng = random.Random(seed)
    first, last = 2 * MIB // PAGE, RAM // PAGE
    if kind == "random":
        for page in range(first, last - 64):
            os.pwrite(fd, rng.randbytes(PAGE), page * PAGE)
    elif kind == "sparse":
        for _ in range(6000):
            page = rng.randrange(first, last)
            # Some pages are zero but for one byte, the first or the last.
            content = rng.choice([rng.randbytes(PAGE), b"\1" + bytes(PAGE - 1), bytes(PAGE - 1) + b"\1"])
            os.pwrite(fd, content, page * PAGE)
    else:
        for page in range(first, last, 3):
            os.pwrite(fd, bytes(PAGE), page * PAGE)


def one(kind, memories, seed):
    with Cluster() as cluster:
        for memory in memories:
            cluster.subhost(memory)
        source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
        source = cluster.guest("src", source_pager, RAM, kernel=False, paused=True)
        destination = cluster.guest("dst", main_pager, RAM, kernel=False, incoming=True)
        fd = os.open("/proc/%d/fd/%s" % (source.pid, memfd_name(source.pid)), os.O_RDWR)
        fill(fd, kind, seed)
        result = cluster.migrate(source, destination, cluster.policy(BUDGET))
        guest = main_pager.guest(cluster.uuid)
        if destination.status() == "running":
            raise Failure("a stopped guest runs after its move")
        counts = oneplace.check(cluster, fd, destination.memfd(), main_pager.map(cluster.uuid), guest)
        print("%s, %d sub-hosts: %s, %d MiB to main, %s to sub-hosts" % (
            kind, len(memories), counts, result["main_bytes"] // MIB,
            [n // MIB for n in result["subhost_bytes"]]), flush=True)
        if kind == "random" and (not counts["local"] or not counts["remote"]):
            raise Failure("a random guest must be in both places: %s" % counts)
        if kind == "random" and min(result["subhost_bytes"]) == 0:
            raise Failure("a sub-host got nothing")
        if kind == "zero" and counts["local"] + counts["remote"] > 1024:
            raise Failure("zero pages were sent: %s" % counts)
        if counts["local"] * PAGE > BUDGET:
            raise Failure("the main host holds more than its budget")
        os.close(fd)


def memfd_name(pid):
    folder = "/proc/%d/fd" % pid
    return next(name for name in os.listdir(folder)
                if os.readlink(os.path.join(folder, name)).startswith("/memfd:memory-backend-memfd"))


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
