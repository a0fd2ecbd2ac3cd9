# SPDX-License-Identifier: GPL-2.0-or-later
"""Latency of a remote fault by RDMA and by TCP beside their floor, and what it costs the sub-host.

The floor is one 4 KiB RDMA READ (ib_read_lat's typical time) and one fault answered on this host. All are taken
in turn, and of each the median of ROUNDS counts.  Lines `bench: {...}` are for bench/bench_rdma.py.
"""

import json
import os
import re
import statistics
import subprocess
import time

from rdma_lab import ADDRESS, NAME, RdmaSubhost, eventually, play, with_region

ROUNDS, PAGES = 5, 100


def read_latency():
    """Microseconds of a 4 KiB READ, as ib_read_lat sees it."""
    words = ["ib_read_lat", "-d", "rxe0", "-R", "-s", "4096", "-n", "1000", "-F"]
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


def cpu_ns(pid):
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/schedstat" % (pid, task)) as file:
            total += int(file.read().split()[0])
    return total


class Side:
    """A guest whose pages are all on one sub-host."""

    def __init__(self, host, place, **options):
        self.host, self.next, self.us, self.cpu, self.pages = host, 0, [], 0, 0
        self.guest = play([place], budget="14M", low="12M", high="13M", prefetch=0, fault_threads=1, threads=1,
                          **options)

    def round(self):
        before = cpu_ns(self.host.process.pid)
        result = self.guest("bench", self.next, PAGES, 3)
        self.cpu += cpu_ns(self.host.process.pid) - before
        self.next += 3 * PAGES
        self.pages += result["count"]
        self.us.append(result["p50_ns"] / 1000)


def row(name, ours, floor, peer=None, target=None, unit="us"):
    ratio = ours / floor if floor else None
    print("bench: " + json.dumps({
        "name": name, "ours": round(ours, 1), "peer": peer and round(peer, 1), "floor": floor and round(floor, 1),
        "unit": unit, "ratio": ratio and round(ratio, 2), "target": target,
        "met": ratio <= target if target and ratio else None}), flush=True)


def test():
    with RdmaSubhost() as one, RdmaSubhost() as two, with_region(one), with_region(two):
        rdma = Side(one, one.place(), local=0, remote=100)
        tcp = Side(two, "%s,%s" % (two.tcp, NAME), local=0, remote=100)
        local = Side(two, "%s,%s" % (two.tcp, NAME), local=0, remote=0)
        for side in rdma, tcp, local:  # connections, keys and caches
            eventually(lambda: all(s["connected"] for s in side.guest("stats")["engine"]["subhosts"]), "links", 60)
            for first in range(1, 3000, 500):
                side.guest("bench", first, 2, 3)
        reads = []
        for _ in range(ROUNDS):
            reads.append(read_latency())
            for side in rdma, tcp, local:
                side.round()
        read, copy = statistics.median(reads), statistics.median(local.us)
        floor = read + copy
        print("READ %.1f us, local fault %.1f us" % (read, copy), flush=True)
        row("remote fault by RDMA", statistics.median(rdma.us), floor, statistics.median(tcp.us), 1.3)
        row("CPU of the sub-host by RDMA", rdma.cpu / rdma.pages / 1000, None, tcp.cpu / tcp.pages / 1000,
            unit="s per million pages")


test()
