# SPDX-License-Identifier: GPL-2.0-or-later
"""Latency of a remote fault by RDMA and by TCP beside their floor, and what it costs the sub-host.

The floor is one 4 KiB RDMA READ (ib_read_lat's typical time) and one fault answered on this host.  ib_read_lat posts one
READ right behind the other, which faults cannot be: beside it are a READ after a pause and a fault that a bare loop
answers by READ and UFFDIO_COPY (bench/rdma_floor.c).  All are taken in turn, and of each the median of ROUNDS counts.
Lines `bench: {...}` are for bench/bench_rdma.py.

Twice: as shipped, and with fault threads that may spin for as long as a fault takes here, where all is emulated and
takes ten to thirty times as long as on cards.  ib_read_lat, too, spins for as long as it takes.
"""

import json
import os
import re
import statistics
import subprocess
import time

from rdma_lab import ADDRESS, NAME, RdmaSubhost, eventually, play, with_region

ROUNDS, PAGES = 5, 60
BARE = {"back": 300, "gap": 100, "fault": 200}  # ways of rdma-floor, and how often
SPINS = (("as shipped", {}), ("may spin for 20 ms", {"spin_us": 20000}))


def read_latency(*options):
    """Microseconds of a 4 KiB READ, as ib_read_lat sees it."""
    words = ["ib_read_lat", "-d", "rxe0", "-R", "-s", "4096", "-n", "1000", "-F", *options]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            client = subprocess.run(words + [ADDRESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            row = re.search(r"^ *4096 +\d+ +\S+ +\S+ +(\S+)", client.stdout, re.M)
            if row:
                return float(row.group(1))
            time.sleep(0.2)  # it does not say when it listens
        raise AssertionError("ib_read_lat has no result: " + client.stdout)
    finally:
        server.kill()
        server.wait()


def bare(host, way, n):
    """Microseconds of rdma-floor's p50."""
    words = [os.path.join(os.environ["BUILD"], "bin", "rdma-floor"), host.rdma, NAME, str(n), way]
    text = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(text)["p50_ns"] / 1000


def cpu_ns(pid):
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/schedstat" % (pid, task)) as file:
            total += int(file.read().split()[0])
    return total


def sleeps(pid):
    """How often threads of the process's children gave their processor up to wait."""
    total = 0
    with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
        children = file.read().split()
    for child in children:
        for task in os.listdir("/proc/%s/task" % child):
            with open("/proc/%s/task/%s/status" % (child, task)) as file:
                total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.M).group(1))
    return total


class Side:
    """A guest whose pages are all on one sub-host."""

    def __init__(self, host, place, **options):
        self.host, self.next, self.us, self.cpu, self.pages, self.sleeps = host, 0, [], 0, 0, 0
        self.guest = play([place], budget="14M", low="12M", high="13M", prefetch=0, fault_threads=1, threads=1,
                          **options)

    def round(self):
        before, slept = cpu_ns(self.host.process.pid), sleeps(self.guest.process.pid)
        result = self.guest("bench", self.next, PAGES, 3)
        self.cpu += cpu_ns(self.host.process.pid) - before
        self.sleeps += sleeps(self.guest.process.pid) - slept
        self.next += 3 * PAGES
        self.pages += result["count"]
        self.us.append(result["p50_ns"] / 1000)


def row(name, ours, floor, peer=None, target=None, unit="us"):
    ratio = ours / floor if floor else None
    print("bench: " + json.dumps({
        "name": name, "ours": round(ours, 1), "peer": peer and round(peer, 1), "floor": floor and round(floor, 1),
        "unit": unit, "ratio": ratio and round(ratio, 2), "target": target,
        "met": ratio <= target if target and ratio else None}), flush=True)


def compare(one, two, what, options):
    rdma = Side(one, one.place(), local=0, remote=100, **options)
    tcp = Side(two, "%s,%s" % (two.tcp, NAME), local=0, remote=100, **options)
    local = Side(two, "%s,%s" % (two.tcp, NAME), local=0, remote=0, **options)
    sides = rdma, tcp, local
    for side in sides:  # connections, keys and caches
        eventually(lambda: all(s["connected"] for s in side.guest("stats")["engine"]["subhosts"]), "links", 60)
        for first in range(1, 3000, 500):
            side.guest("bench", first, 2, 3)
    reads, floors = [], {way: [] for way in BARE}
    for _ in range(ROUNDS):
        reads.append(min(read_latency(), read_latency("-e")))  # polling takes the one processor of a small lab
        for way, n in BARE.items():
            floors[way].append(bare(one, way, n))
        for side in sides:
            side.round()
    read, copy = statistics.median(reads), statistics.median(local.us)
    print("%s: READ %.1f us, local fault %.1f us; sleeps of guest and pager for a page: RDMA %.1f, TCP %.1f, local %.1f" % (
        what, read, copy, *(side.sleeps / side.pages for side in sides)), flush=True)
    row("remote fault by RDMA, " + what, statistics.median(rdma.us), read + copy, statistics.median(tcp.us), 1.3)
    median = {way: statistics.median(times) for way, times in floors.items()}
    print("  READs without a pager: one behind the other %.1f us, after a pause %.1f us; a fault by a bare loop %.1f us; "
          "the pager's own view of a fault, event to wake: %d us" % (
              median["back"], median["gap"], median["fault"], rdma.guest("stats")["engine"]["fault_us"]["p50"]), flush=True)
    row("the same beside a bare loop, " + what, statistics.median(rdma.us), median["fault"])
    row("CPU of the sub-host, " + what, rdma.cpu / rdma.pages / 1000, None, tcp.cpu / tcp.pages / 1000,
        unit="s per million pages")
    for side in sides:
        side.guest.__exit__()


def test():
    with RdmaSubhost() as one, RdmaSubhost() as two, with_region(one), with_region(two):
        for what, options in SPINS:
            compare(one, two, what, options)


test()
