# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-migrate: moving a guest our way, stock QEMU's ways, and the floor, in one run.

    BENCH_RUNS=5 BENCH_FILL_MIB=2048 BENCH_PARTS=random,sparse,writing,downtime,shaped make bench-migrate

random     a stopped guest with 2 GiB of random bytes: total time and CPU, against pre-copy,
           multifd 2, 4 and 8, and the floor (bench/mover_floor.c)
sparse     a 4 GiB guest that uses some 190 MiB
writing    a guest that rewrites pages at 10, 30 and 60 % of a link of 400 MiB/s (tbf on the loopback
           of a network namespace): total time, MiB sent; and what `plan`, told of the link,
           expected of them, against what happened
shaped     a stopped guest with 512 MiB of text or of random bytes over 1 and 10 Gbit/s, shaped in
           the same way: plain and adaptive, against multifd 2 plain and zlib
downtime   20 moves of a running 512 MiB guest, ours and pre-copy with its default limit: p50 and max

The ways take turns, and another one begins each time, because the machine drifts; medians are
compared.  Rows go to BUILD/bench-migrate.json.
"""

import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from movekit import *  # noqa: F401,F403,E402

RUNS = int(os.environ.get("BENCH_RUNS", "5"))
MOVES = int(os.environ.get("BENCH_MOVES", "20"))  # of the downtime
FILL = int(os.environ.get("BENCH_FILL_MIB", "2048")) * MIB
PARTS = os.environ.get("BENCH_PARTS", "random,sparse,writing,downtime,shaped").split(",")
LINK = 400 * MIB
PLAIN = ["precopy", "multifd-2", "multifd-4", "multifd-8"]
rows = []


def row(name, ours, peer, floor, unit, ratio, target, met):
    rows.append({"name": name, "ours": round(ours, 3), "peer": round(peer, 3),
                 "floor": floor and round(floor, 3), "unit": unit, "ratio": round(ratio, 3),
                 "target": target, "met": met})


def against(name, ours, peer, unit, target, floor=None):
    """A row in which less is better, at most @target times the peer's."""
    row(name, ours, peer, floor, unit, ours / peer if peer else 0.0, target,
        ours <= target * peer)


def planned(name, results):
    """How near plan's estimate came to what happened: the median of the ratios, 0.7 to 1.3."""
    for what in ("total", "downtime"):
        ratio = statistics.median(result["planned"][what] / result[what] for result in results)
        happened = statistics.median(result[what] for result in results)
        row("%s-planned-%s" % (name, what), happened * ratio, happened, None, "ms", ratio, 1.3, 0.7 <= ratio <= 1.3)


def turns(ways, runs, once):
    """@once(way) for each way, @runs times; the order rotates.  Return: {way: [result]}."""
    results = {way: [] for way in ways}
    for run in range(runs):
        for i in range(len(ways)):
            way = ways[(run + i) % len(ways)]
            result = once(way)
            results[way].append(result)
            print("  %-10s %7.0f ms   downtime %5.0f ms   %6.0f MiB   %6.2f CPU s" % (
                way, result["total"], result["downtime"], result["sent"], result["cpu"]), flush=True)
    return results


def median(results, way, what):
    return statistics.median(result[what] for result in results[way])


def moved(way, ram, budget, lend, prepare, link=None, **guest):
    with Cluster() as cluster:
        move = Move(cluster, way, ram, budget, lend, prepare, **guest)
        planned = move.plan(link) if way == "ours" and link else None
        result = move.run()
        result["planned"] = planned
        if guest.get("kernel", True):
            move.destination.expect_sweep()
            move.destination.check_clean()
        return result


def part_random():
    print("%d MiB of random bytes in a guest of %d MiB" % (FILL // MIB, 2 * FILL // MIB))
    floors = []

    def once(way):
        if way == "floor":
            floors.append(floor_ms(FILL // MIB))
            return {"total": floors[-1], "downtime": 0, "sent": FILL // MIB, "cpu": 0}
        return moved(way, 2 * FILL, FILL // 2, FILL, lambda guest: fill_random(guest, FILL),
                     kernel=False, paused=True)
    results = turns(["ours"] + PLAIN + ["floor"], RUNS, once)
    floor, ours = statistics.median(floors), median(results, "ours", "total")
    for way in PLAIN:
        against("total-time-vs-" + way, ours, median(results, way, "total"), "ms", 1.0, floor)
    best = min(median(results, way, "total") for way in PLAIN)
    against("total-time-vs-best-of-stock", ours, best, "ms", 1 / 3, floor)
    row("rate-vs-floor", FILL / MIB / ours * 1000, FILL / MIB / best * 1000, FILL / MIB / floor * 1000,
        "MiB/s", floor / ours, 0.85, floor / ours >= 0.85)
    against("cpu-per-gib", median(results, "ours", "cpu") / FILL * 1024 * MIB,
            min(median(results, way, "cpu") for way in PLAIN) / FILL * 1024 * MIB, "s", 1.0)


def part_sparse():
    print("4096 MiB declared, some 190 MiB used")

    def ready(guest):
        guest.wait_log("memguest: ready", 120)
    results = turns(["ours"] + PLAIN, RUNS, lambda way: moved(
        way, 4096 * MIB, 64 * MIB, 512 * MIB, ready,
        append="mem=1G memguest.size=96M memguest.rate=1000"))
    against("sparse-4gib-vs-best-of-stock", median(results, "ours", "total"),
            min(median(results, way, "total") for way in PLAIN), "ms", 0.125)


def part_writing():
    def ready(guest):
        guest.wait_log("memguest: ready", 120)
    private_network()
    shape_network(LINK)
    for percent in (10, 30, 60):
        rate = LINK // PAGE * percent // 100
        print("a guest that rewrites %d MiB/s, link %d MiB/s" % (rate * PAGE // MIB, LINK // MIB))
        results = turns(["ours", "precopy", "multifd-2"], RUNS, lambda way: moved(
            way, 1024 * MIB, 384 * MIB, 1024 * MIB, ready, LINK,
            append="memguest.size=640M memguest.hot=100 memguest.write=100 memguest.rate=%d" % rate))
        for what, unit in (("total", "ms"), ("sent", "MiB")):
            best = min(median(results, way, what) for way in ("precopy", "multifd-2"))
            against("writing-%d%%-%s" % (percent, what), median(results, "ours", what), best, unit, 1.0)
        planned("writing-%d%%" % percent, results["ours"])
    unshape_network()


def part_downtime():
    print("downtime of a running 512 MiB guest")

    def ready(guest):
        guest.wait_log("memguest: ready", 120)
    results = turns(["ours", "precopy"], MOVES, lambda way: moved(
        way, 512 * MIB, 256 * MIB, 512 * MIB, ready,
        append="memguest.size=320M memguest.hot=20 memguest.write=30 memguest.rate=4000"))
    most = max(result["downtime"] for result in results["ours"])
    against("downtime-p50", median(results, "ours", "downtime"), median(results, "precopy", "downtime"),
            "ms", 0.5)
    against("downtime-max", most, max(result["downtime"] for result in results["precopy"]), "ms", 0.5)
    for name, ours in (("p50", median(results, "ours", "downtime")), ("max", most)):
        row("downtime-%s-below" % name, ours, 60, None, "ms", ours / 60, 1.0, ours < 60)
    against("running-cpu", median(results, "ours", "cpu"), median(results, "precopy", "cpu"), "s", 1.0)


def part_shaped():
    fill = min(FILL, 512 * MIB)
    private_network()
    for gbit in (1, 10):
        for kind in ("text", "random"):
            shape_network(gbit * 10**9 // 8)
            print("%d Gbit/s, %d MiB of %s" % (gbit, fill // MIB, kind))
            ways = ["ours", "ours-adaptive", "multifd-2", "multifd-2-zlib"]
            results = turns(ways, RUNS, lambda way: moved(
                way, 2 * fill, fill // 2, fill, lambda guest: fill_random(guest, fill, kind),
                kernel=False, paused=True))
            best = min(median(results, way, "total") for way in ways[2:])
            name = "shaped-%dgbit-%s" % (gbit, kind)
            against(name + "-vs-best-of-multifd", median(results, "ours-adaptive", "total"), best, "ms", 1.0)
            against(name + "-adaptive-vs-plain", median(results, "ours-adaptive", "total"),
                    median(results, "ours", "total"), "ms", 1.05)
    unshape_network()


def show():
    print("\n%-32s %10s %10s %10s %6s %7s %7s" % ("median", "ours", "peer", "floor", "unit", "ratio", "target"))
    for r in rows:
        print("%-32s %10.1f %10.1f %10s %6s %7.3f %7.3f  %s" % (
            r["name"], r["ours"], r["peer"], "%.1f" % r["floor"] if r["floor"] else "-", r["unit"],
            r["ratio"], r["target"], "met" if r["met"] else "NOT MET"))
    with open(os.path.join(BUILD, "bench-migrate.json"), "w") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")


start = time.monotonic()
try:
    for part in PARTS:
        {"random": part_random, "sparse": part_sparse, "writing": part_writing,
         "downtime": part_downtime, "shaped": part_shaped}[part]()
    show()
except (Failure, subprocess.CalledProcessError) as failure:
    print("bench-migrate: %s" % failure)
    sys.exit(1)
print("(%.0f s)" % (time.monotonic() - start))
