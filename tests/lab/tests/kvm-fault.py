# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vCPU of a KVM guest waits for a remote page and for an untouched one, beside the floor (bench/fault_kvm.py).

The guest is guestplay, split by a real migration, whose memory is touched by a vCPU of its own (tests/tools/vcpu.h),
which times each touch; the floor is fault-floor's bare loop, which answers the same vCPU, and its exchange on loopback.
All in turns, each round on pages that nobody has touched before, in a scattered order.  One line `bench: {...}`: of each
the median of the rounds, in us.  Where a processor has virtualization it can be run without the lab, too.
"""

import json
import os
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "bench"))
from cluster import MIB, Cluster, Failure, program  # noqa: E402
from splitkit import PAGE, Split  # noqa: E402

ROUNDS, COUNT = 5, 230  # a number that both their primes scatter well
WAYS = {"async": (1, "vcpu-async"), "sync": (0, "vcpu")}  # of guestplay, of fault-floor
results = {}


def note(name, result):
    print("  %-24s p50 %8.1f us, p99 %8.1f us" % (name, result["p50_ns"] / 1000, result["p99_ns"] / 1000), flush=True)
    for what in ("p50", "p99"):
        results.setdefault("%s %s" % (name, what), []).append(result[what + "_ns"] / 1000)


def floors():
    def measure(*words):
        text = subprocess.run([program("fault-floor")] + list(words), check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(text.stdout)
    note("floor exchange", measure("tcp", str(COUNT)))
    note("gap exchange", measure("tcp", str(COUNT), "gap"))
    for way, (_, word) in WAYS.items():
        note("floor %s remote" % way, measure("copy", str(COUNT), word))
        note("floor %s untouched" % way, measure("zero", str(COUNT), word))


def test(cluster):
    touched = (ROUNDS * len(WAYS) + 1) * COUNT  # pages
    filled = -(-touched * PAGE // MIB) * MIB
    split = Split(cluster, 2 * filled, filled, 3 * filled, 0)
    page, fresh = 0, filled // PAGE
    split.guest("vcpu", 1, page, COUNT, 1)  # connections and caches are warm
    page += COUNT
    for turn in range(ROUNDS):
        if turn % 2 == 0:
            floors()
        for way, (asynchronous, _) in WAYS.items():
            note("ours %s remote" % way, split.guest("vcpu", asynchronous, page, COUNT, 1))
            note("ours %s untouched" % way, split.guest("vcpu", asynchronous, fresh, COUNT, 1))
            page, fresh = page + COUNT, fresh + COUNT
        if turn % 2:
            floors()
    if split.query()["page_ins"] != touched:
        raise Failure("%d touches were meant to be page-ins; there were %d" % (touched, split.query()["page_ins"]))
    split.check()


with Cluster() as own:
    test(own)
print("bench: " + json.dumps({name: round(statistics.median(values), 1) for name, values in results.items()}))
