# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-predict: paging policies on traces of real programs (bench/traces), against Belady's optimum.

Local memory is 25, 50 and 75 % of what the program touches.  A page's first access finds zeros and is no page-in.

1. Replacement alone, no prefetch.  S-memV's policy sees every access and gets, in each case, the best of
   three lengths of its period; ours sees page-ins, and of pages it had unmapped whether they are mapped again.
2. Prefetch, all on our replacement, and S-memV as published: whole chunks in, whole chunks out.
3. Finding a victim in a guest of 1 TiB beside one of 1 GiB.

Geometric means leave out cases in which the optimum has fewer than SMALL page-ins: there a handful of pages decides.
The rows go to BUILD/bench-predict.json.
"""

import concurrent.futures
import glob
import json
import lzma
import math
import os
import subprocess
import sys
import tempfile

BUILD = os.environ.get("BUILD", "build")
TRACES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "traces")
PAGE = 4096
SHARES = 25, 50, 75
SMALL = 500
OURS, PEER = "sweep", "smemv"
SAMPLE_COST = 0.05  # of a page-in: a soft fault and a share of zap and of the look at the page tables
PREFETCH = 64
COLUMNS = "misses", "rate", "ratio", "out", "sent", "prefetched", "wasted", "sampled", "ms"


def replay(trace, pages, tick, *options):
    """{policy: {column: figure}} of one run of predictor-replay."""
    done = subprocess.run([os.path.join(BUILD, "bin", "predictor-replay"), "--fresh", "--memory",
                           str(pages * PAGE), "--tick", str(tick), *options, trace],
                          check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()[2:]]
    return {line[0]: dict(zip(COLUMNS, (float(word.rstrip("%")) for word in line[1:]))) for line in lines}


def size(trace):
    """(accesses, pages touched)"""
    done = subprocess.run([os.path.join(BUILD, "bin", "predictor-replay"), "--memory", "4096", "--policy", "random4k",
                           trace], check=True, capture_output=True, text=True)
    words = done.stdout.replace(",", "").split()
    return int(words[1]), int(words[4])


def case(job):
    name, trace, share = job
    accesses, touched = size(trace)
    pages = touched * share // 100
    ticks = [max(pages // 8, 1), max(pages // 2, 1), pages * 2]
    alone = replay(trace, pages, ticks[1])
    for tick in ticks[0], ticks[2]:
        other = replay(trace, pages, tick, "--policy", PEER)[PEER]
        alone[PEER] = min(alone[PEER], other, key=lambda row: row["misses"])
    ahead = {}
    for kind in "pager", "leap", "recorded":
        ahead[kind] = replay(trace, pages, ticks[1], "--policy", OURS, "--prefetch", str(PREFETCH),
                             "--prefetcher", kind)[OURS]
    ahead["S-memV"] = replay(trace, pages, ticks[1], "--policy", PEER, "--prefetch", "512",
                             "--prefetcher", "chunk")[PEER]
    return {"name": name, "share": share, "accesses": accesses, "touched": touched, "pages": pages,
            "alone": alone, "ahead": ahead}


def mean(values):
    values = [max(value, 1e-9) for value in values]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def victims():
    """ns to choose a page, in a guest of 1 GiB and of 1 TiB, with as much resident"""
    done = subprocess.run([os.path.join(BUILD, "bin", "sweep-cost")], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def row(name, ours, peer, floor, unit, ratio, target, met):
    return {"name": name, "ours": ours, "peer": peer, "floor": floor, "unit": unit, "ratio": round(ratio, 3),
            "target": target, "met": met}


def print_alone(cases):
    policies = list(cases[0]["alone"])
    print("\n1. Page-ins without prefetch, as multiples of the optimum (optimum: page-ins)\n")
    print("%-10s %5s %8s" % ("trace", "local", "optimum"), *("%9s" % p for p in policies if p != "optimum"))
    for c in cases:
        best = c["alone"]["optimum"]["misses"]
        print("%-10s %4d%% %8d" % (c["name"], c["share"], best),
              *("%9.2f" % (c["alone"][p]["misses"] / max(best, 1)) for p in policies if p != "optimum"))
    big = [c for c in cases if c["alone"]["optimum"]["misses"] >= SMALL]
    print("%-25s" % ("geometric mean (%d cases)" % len(big)),
          *("%9.2f" % mean(c["alone"][p]["misses"] / c["alone"]["optimum"]["misses"] for c in big)
            for p in policies if p != "optimum"))
    print("%-25s" % "MiB moved, all cases",
          *("%9.0f" % (sum(c["alone"][p]["misses"] + c["alone"][p]["sent"] for c in cases) * PAGE / 2**20)
            for p in policies if p != "optimum"))
    print("%-25s" % "samples per page-in", *("%9.2f" % (
        sum(c["alone"][p]["sampled"] for c in cases) / max(sum(c["alone"][p]["misses"] for c in cases), 1))
        for p in policies if p != "optimum"))
    print("%-25s" % "CPU ms per M accesses", *("%9.1f" % (
        sum(c["alone"][p]["ms"] for c in cases) / len(cases)) for p in policies if p != "optimum"))


def print_ahead(cases):
    kinds = ["none", *cases[0]["ahead"]]
    print("\n2. With prefetch: page-ins that were waited for / thousands of pages that came in / of them never used\n")
    print("%-10s %5s" % ("trace", "local"), *("%22s" % kind for kind in kinds))
    for c in cases:
        rows = {"none": c["alone"][OURS], **c["ahead"]}
        print("%-10s %4d%%" % (c["name"], c["share"]), *(
            "%10d / %4.0f / %3.0f" % (rows[k]["misses"], (rows[k]["misses"] + rows[k]["prefetched"]) / 1000,
                                      rows[k]["wasted"] / 1000) for k in kinds))


def bench():
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for packed in sorted(glob.glob(os.path.join(TRACES, "*.trace.xz"))):
            name = os.path.basename(packed).split(".")[0]
            plain = os.path.join(folder, name)
            with lzma.open(packed) as source, open(plain, "wb") as file:
                file.write(source.read())
            jobs += [(name, plain, share) for share in SHARES]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            cases = list(pool.map(case, jobs))
    print_alone(cases)
    print_ahead(cases)
    big = [c for c in cases if c["alone"]["optimum"]["misses"] >= SMALL]

    def ratios(over, count=lambda figures: figures["misses"]):
        return [count(c["alone"][OURS]) / max(count(c["alone"][over]), 1) for c in big]

    def total(policy):
        return sum(c["alone"][policy]["misses"] for c in big)

    def moved(figures):
        return figures["misses"] + figures["prefetched"] + figures["sent"]

    def paid(figures):
        return figures["misses"] + SAMPLE_COST * figures["sampled"]

    rows = []
    ours, peer, floor = total(OURS), total(PEER), total("optimum")
    ratio = mean(ratios(PEER))
    rows.append(row("page-ins vs S-memV, geometric mean", ours, peer, floor, "pages", ratio, 0.7, ratio <= 0.7))
    ratio = max(ratios(PEER))
    worst = max(big, key=lambda c: c["alone"][OURS]["misses"] / max(c["alone"][PEER]["misses"], 1))
    rows.append(row("page-ins vs S-memV, worst case (%s, %d %%)" % (worst["name"], worst["share"]),
                    worst["alone"][OURS]["misses"], worst["alone"][PEER]["misses"],
                    worst["alone"]["optimum"]["misses"], "pages", ratio, 1.05, ratio <= 1.05))
    ratio = mean(ratios("optimum"))
    rows.append(row("page-ins vs Belady, geometric mean", ours, peer, floor, "pages", ratio, 1.25, ratio <= 1.25))
    bound = min(("clock", "lru", "lfu", "arc", "lirs"), key=lambda p: mean(ratios(p)), default=None)
    bound = max(("clock", "lru", "lfu", "arc", "lirs"), key=lambda p: mean(ratios(p)))
    ratio = mean(ratios(bound))
    rows.append(row("page-ins vs the best that sees every access (%s)" % bound, ours, total(bound), floor, "pages",
                    ratio, 1.05, ratio <= 1.05))
    ratio = mean(ratios("fluidmem"))
    rows.append(row("page-ins vs FluidMem's queue, geometric mean", ours, total("fluidmem"), floor, "pages", ratio,
                    1.0, ratio <= 1.0))
    ratio = mean(paid(c["alone"][OURS]) / max(c["alone"][PEER]["misses"], 1) for c in big)
    rows.append(row("page-ins and samples vs S-memV, whose samples are free", round(sum(paid(c["alone"][OURS]) for c in big)),
                    peer, floor, "page-ins", ratio, 1.0, ratio <= 1.0))
    ahead = [(c["ahead"]["pager"], c["ahead"]["S-memV"]) for c in big]
    ratio = mean(moved(a) / max(moved(b), 1) for a, b in ahead)
    rows.append(row("with prefetch: pages moved vs S-memV as published", sum(moved(a) for a, _ in ahead),
                    sum(moved(b) for _, b in ahead), floor, "pages", ratio, 1.0, ratio <= 1.0))
    waited = [(c["ahead"]["pager"], c["alone"]["optimum"]) for c in big]
    ratio = mean(max(a["misses"], 1) / b["misses"] for a, b in waited)
    rows.append(row("with prefetch: page-ins waited for vs Belady without", sum(a["misses"] for a, _ in waited), peer,
                    floor, "pages", ratio, 1.25, ratio <= 1.25))
    small, large = victims()
    rows.append(row("choosing a victim, 1 TiB vs 1 GiB", large, small, small, "ns/page", large / small, 1.5,
                    large / small <= 1.5))
    print("\n3. Targets\n")
    for r in rows:
        print("%-62s ours %10.0f peer %10.0f floor %9.0f %-8s ratio %.2f, at most %.2f: %s" % (
            r["name"], r["ours"], r["peer"], r["floor"], r["unit"], r["ratio"], r["target"],
            "met" if r["met"] else "NOT MET"))
    with open(os.path.join(BUILD, "bench-predict.json"), "w") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")


try:
    bench()
except subprocess.CalledProcessError as error:
    print("bench-predict: %s: %s" % (error, error.stderr))
    sys.exit(1)
