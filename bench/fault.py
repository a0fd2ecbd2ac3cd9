# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-fault: what a fault costs, beside the floor and swapping, in one run.

    BENCH_RUNS=5 BENCH_PARTS=latency,pageout,busy,bookkeeping,swap,postcopy,kvm make bench-fault

latency      first touches of remote pages by 1 to 16 threads, and of pages that nobody has touched before;
             floor: a bare exchange on loopback plus a bare UFFDIO_COPY handler (bench/fault_floor.c)
pageout      clean drop and page-out of a guest's pages: GiB/s and CPU; floor: pread, TCP, punch
busy         remote faults while page-out and prefetch work as hard as they can, beside a quiet pager
bookkeeping  bytes a page; a sparse guest of 1 TiB; the cost of a victim
swap         peers: the same touches of pages that were swapped out, to zram and to a file
postcopy     a peer: how long a vCPU of the test guest waits for a page after stock QEMU's postcopy has switched
             over, beside the same guest split; both as the one who answers the fault measures it
kvm          first touches by a vCPU of a KVM guest, of remote and of untouched pages, in the lab; floor: as for
             latency, its faults by the same vCPU (bench/fault_kvm.py)

The guest is tests/tools/guestplay, a native process that hands its memfd and userfaultfd over as QEMU does,
split by a real migration over a sub-host.  Ours and the floor take turns; medians of the rounds are compared.
Rows go to BUILD/bench-fault.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TOP, "tests", "lib"))
from cluster import *  # noqa: F401,F403,E402
import fault_kvm  # noqa: E402
from splitkit import Split, SwapFile, Zram, cpu_ns  # noqa: E402

RUNS = int(os.environ.get("BENCH_RUNS", "5"))
PARTS = os.environ.get("BENCH_PARTS", "latency,pageout,busy,bookkeeping,swap,postcopy,kvm").split(",")
COUNT = 3000  # faults a round
STORM = 4000  # and with many threads
THREADS = (1, 2, 4, 8, 16)
rows = []


def row(name, ours, floor, unit, target, ratio=None, peer=None, met=None):
    """@target is for ours / floor (for rates: floor / ours); None: shown only."""
    ratio = ratio if ratio is not None else ours / floor if floor else None
    met = met if met is not None else ratio <= target if target is not None else None
    rows.append({"name": name, "ours": round(ours, 3), "peer": peer and round(peer, 3),
                 "floor": floor and round(floor, 3), "unit": unit, "ratio": ratio and round(ratio, 3),
                 "target": target, "met": met})
    print("%-44s ours %9.3f  floor %9s  peer %9s  %-8s ratio %6s  target %5s  %s" % (
        name, ours, "%.3f" % floor if floor else "-", "%.3f" % peer if peer else "-", unit,
        "%.2f" % ratio if ratio else "-", target if target is not None else "-",
        "" if met is None else "met" if met else "NOT MET"), flush=True)


def floor(*words):
    text = subprocess.run([program("fault-floor")] + [str(word) for word in words], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text)


def median(values):
    return statistics.median(values)


def switches(pid):
    """How often threads of a process have gone to sleep so far."""
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/status" % (pid, task)) as file:
            total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.M).group(1))
    return total


# ---- latency ----

def part_latency():
    size, budget = 576 * MIB, 1024 * MIB
    filled = 512 * MIB
    floors = {what: [] for what in ("tcp", "copy", "zero", "tcp spin", "copy spin", "zero spin")}
    ours, zero, storms = [], [], {threads: [] for threads in THREADS}
    costs = []  # a fault: us of CPU and sleeps, of pager and sub-host

    def measure_floors():
        for what, results in floors.items():
            words = what.split()
            results.append(floor(words[0], COUNT, *words[1:]))

    with Cluster() as cluster:
        split = Split(cluster, size, filled, budget, 0)
        page, fresh = 0, filled // PAGE
        split.storm(1, page, COUNT)  # connections and caches are warm
        page += COUNT
        for turn in range(RUNS):
            if turn % 2 == 0:
                measure_floors()
            pids = (split.pid, split.subhost.pid)
            before = [(cpu_ns([pid]), switches(pid)) for pid in pids]
            ours.append(split.storm(1, page, COUNT))
            costs.append([count for pid, (cpu, sleeps) in zip(pids, before)
                          for count in ((cpu_ns([pid]) - cpu) / 1000 / COUNT, (switches(pid) - sleeps) / COUNT)])
            page += COUNT
            zero.append(split.storm(1, fresh, COUNT))
            fresh += COUNT
            if turn % 2:
                measure_floors()
            for threads in THREADS:
                storms[threads].append(split.storm(threads, page, STORM))
                page += STORM
        pagerside = split.query()["fault_us"]
        split.check()

    def us(results, what):
        return median(result[what] for result in results) / 1000
    for way in ("", " spin"):
        tcp, copy = us(floors["tcp" + way], "p50_ns"), us(floors["copy" + way], "p50_ns")
        print("floor%s: exchange %.1f us (p99 %.1f), UFFDIO_COPY %.1f us (p99 %.1f), UFFDIO_ZEROPAGE %.1f us" % (
            way, tcp, us(floors["tcp" + way], "p99_ns"), copy, us(floors["copy" + way], "p99_ns"),
            us(floors["zero" + way], "p50_ns")))
    base = us(floors["tcp"], "p50_ns") + us(floors["copy"], "p50_ns")
    row("remote-fault-p50", us(ours, "p50_ns"), base, "us", 1.15)
    row("remote-fault-p99", us(ours, "p99_ns"), base, "us", 2.0)
    row("untouched-page-p50", us(zero, "p50_ns"), us(floors["zero"], "p50_ns"), "us", 1.1)
    rates = {threads: median(STORM / result["elapsed_ns"] * 1e6 for result in results)
             for threads, results in storms.items()}
    best = 0
    for threads, rate in rates.items():
        # The most with fewer threads, over this: below 1 it grows, above 1.1 it collapses.
        row("throughput-%d-threads" % threads, rate, None, "kfaults/s", 1.1 if best else None,
            best / rate if best else 1.0)
        best = max(best, rate)
    print("a fault by one thread: pager %.1f us of CPU and %.2f sleeps, sub-host %.1f us and %.2f" % tuple(
        median(column) for column in zip(*costs)))
    print("the pager's own view, event to wake: p50 %d us, p99 %d us" % (pagerside["p50"], pagerside["p99"]))


# ---- page-out ----

def part_pageout():
    size = 256 * MIB
    small = 32 * MIB
    results = {what: [] for what in ("drop", "pageout", "floor drop", "floor pageout")}
    with Cluster() as cluster:
        split = Split(cluster, size, size, 512 * MIB, 0)
        # Drops first: pages of chunks that were mostly written come back unprotected, so not clean.
        for what in ("drop", "pageout"):
            for _ in range(RUNS):
                result = floor(what, size // MIB)
                results["floor " + what].append((result["seconds"], result["cpu"], size // PAGE))
                split.budget(512 * MIB)
                if what == "drop":
                    split.storm(2, 0, size // PAGE)
                else:
                    split.guest("fill", 100, 0, size // PAGE)
                results[what].append(split.shrink(small))
        split.check()
    for what, name in (("drop", "clean-drop"), ("pageout", "page-out")):
        rate, cost = {}, {}
        for who in ("", "floor "):
            rate[who] = median(pages * PAGE / took / (1 << 30) for took, _, pages in results[who + what])
            cost[who] = median(cpu / pages * 1e6 for _, cpu, pages in results[who + what])
        row(name + "-rate", rate[""], rate["floor "], "GiB/s", None, rate["floor "] / rate[""])
        row(name + "-cpu", cost[""], cost["floor "], "us/page", None)


# ---- a busy pager ----

def part_busy():
    scanned, budget = 384 * MIB, 192 * MIB
    apart, faults = 16, 1000  # beyond what is prefetched around them; pages that nobody has touched before
    page = scanned // PAGE
    size = scanned + 2 * RUNS * apart * faults * PAGE
    idle, busy, work = [], [], []
    with Cluster() as cluster:
        split = Split(cluster, size, size, budget, 64)
        guest = split.guest
        guest("work", 0, page)
        guest("mode", "scan")
        guest("writes", 30)

        def load(seconds):
            guest("go")
            time.sleep(seconds)
        load(2)
        for _ in range(RUNS):
            before, start = split.query(), time.monotonic()
            busy.append(split.storm(1, page, faults, apart))
            after = split.query()
            work.append(((after["page_outs"] + after["clean_drops"] - before["page_outs"] - before["clean_drops"]) /
                         (time.monotonic() - start),
                         (after["prefetched"] - before["prefetched"]) / (time.monotonic() - start)))
            guest("halt")
            split.budget(budget + 128 * MIB)
            idle.append(split.storm(1, page + apart * faults, faults, apart))
            split.budget(budget)
            page += 2 * apart * faults
            load(2)
        split.check()
    outs, ins = median(w[0] for w in work), median(w[1] for w in work)
    print("meanwhile %d pages/s went out, %d pages/s were prefetched" % (outs, ins))
    row("busy-fault-p50", median(b["p50_ns"] for b in busy) / 1000,
        median(i["p50_ns"] for i in idle) / 1000, "us", None)
    row("busy-fault-p99", median(b["p99_ns"] for b in busy) / 1000,
        median(i["p99_ns"] for i in idle) / 1000, "us", 2.0)


# ---- bookkeeping ----

def kib(pid, what):
    with open("/proc/%d/status" % pid) as file:
        return int(re.search(r"^%s:\s+(\d+) kB" % what, file.read(), re.M).group(1)) * 1024


def map_bytes(path):
    """What the page map's file takes when all of the guest is in use (common/pagemap.h)."""
    with open(path, "rb") as file:
        fields = [int.from_bytes(file.read(8), "little") for _ in range(8)]
        file.seek(16, 1)
        slab_bytes = int.from_bytes(file.read(8), "little")
    return fields[6] + fields[2] * 2 * MIB // slab_bytes * 8


def bookkeeping(size):
    """What the worker of a guest of @size bytes may take at most: its page map's file and its private memory."""
    with Cluster() as cluster:
        split = Split(cluster, size, 64 * MIB, 64 * MIB, 8)
        split.storm(1, 0, 4096)
        time.sleep(3)  # what served the arrival is freed
        path = os.path.join(split.main.run_dir, "guests", cluster.uuid, "map")
        used = os.stat(path).st_blocks * 512 + kib(split.pid, "RssAnon")
        data = []
        for _ in range(20):  # a thread comes and goes now and then, with 8 MiB of stack
            data.append(kib(split.pid, "VmData"))
            time.sleep(0.1)
        return map_bytes(path) + min(data), used


def part_bookkeeping():
    small, large = 1 << 30, 1 << 40
    most_small, used_small = bookkeeping(small)
    most_large, used_large = bookkeeping(large)
    row("bookkeeping", (most_large - most_small) / ((large - small) / PAGE), 1.0, "B/page", 1.05)
    print("a guest of 1 TiB that uses 64 MiB: accepted; its worker uses %.1f MiB (1 GiB: %.1f MiB)" % (
        used_large / MIB, used_small / MIB))
    costs = []
    for _ in range(RUNS):
        text = subprocess.run([program("sweep-cost")], check=True, stdout=subprocess.PIPE, text=True).stdout
        costs.append([float(word) for word in text.split()])
    row("victim-choice-1TiB-vs-1GiB", median(c[1] for c in costs), median(c[0] for c in costs), "ns/page", 1.5)


# ---- swap ----

def memory_cgroup():
    """The folder of a memory cgroup of our own, or None where there are none."""
    for top in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        if os.path.exists(os.path.join(top, "cgroup.procs")) and os.geteuid() == 0:
            path = os.path.join(top, "split-migrate-bench-%d" % os.getpid())
            os.mkdir(path)
            if os.path.exists(os.path.join(path, "memory.max")) or os.path.exists(
                    os.path.join(path, "memory.limit_in_bytes")):
                return path
            os.rmdir(path)
    return None


def swapped(kind, cgroup):
    """p50 and p99 in us of first touches of pages that are in swap of this kind."""
    device = kind(512 * MIB)
    try:
        results = [floor("swap", 16384, cgroup) for _ in range(RUNS)]
    finally:
        device.close()
    return [median(result[what] for result in results) / 1000 for what in ("p50_ns", "p99_ns")]


def part_swap():
    ours = [r["ours"] for r in rows if r["name"] in ("remote-fault-p50", "remote-fault-p99")]
    if not ours or not os.path.exists("/sys/class/zram-control"):
        print("swap: not measured (it needs zram in this kernel and the part latency)")
        return
    cgroup = memory_cgroup()
    if not cgroup:
        print("swap: not measured (it needs root and a memory cgroup)")
        return
    try:
        for name, kind in (("zram", Zram), ("file", SwapFile)):
            for what, mine, peer in zip(("p50", "p99"), ours, swapped(kind, cgroup)):
                row("remote-fault-%s-vs-swap-%s" % (what, name), mine, None, "us", None, mine / peer, peer)
    finally:
        os.rmdir(cgroup)


# ---- postcopy ----

MEMGUEST = "memguest.size=320M memguest.hot=100 memguest.write=0 memguest.cluster=1 memguest.rate=4000"
WATCHED = 5  # seconds


def postcopy_stock(preempt):
    """Mean us a vCPU waited for a page.

    Nearly nothing is sent before the switch-over, and after it the rest as fast as QEMU can, as is its default:
    with a limit, what is asked for waits for its turn under it.
    """
    with Cluster() as cluster:
        source = cluster.guest("src", None, 512 * MIB, append=MEMGUEST)
        destination = cluster.guest("dst", None, 512 * MIB, incoming=True)
        source.wait_log("memguest: ready", 120)
        for guest in (source, destination):
            guest.qmp("migrate-set-capabilities", capabilities=[
                {"capability": name, "state": state} for name, state in (
                    ("postcopy-ram", True), ("postcopy-blocktime", True), ("postcopy-preempt", preempt))])
            guest.qmp("migrate-set-parameters", max_bandwidth=4 * MIB, max_postcopy_bandwidth=0)
        destination.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
        port = destination.qmp("query-migrate")["socket-address"][0]["port"]
        source.qmp("migrate", uri="tcp:127.0.0.1:%s" % port)
        wait_until("it is active", 20, lambda: source.qmp("query-migrate").get("status") == "active")
        source.qmp("migrate-start-postcopy")
        wait_until("all is there", 60, lambda: all(guest.qmp("query-migrate").get("status") == "completed"
                                                   for guest in (source, destination)))
        requests = source.qmp("query-migrate")["ram"]["postcopy-requests"]
        blocked = sum(destination.qmp("query-migrate")["postcopy-vcpu-blocktime"])
        print("  postcopy%s: %d requests, vCPUs waited %d ms" % (" preempt" if preempt else "", requests, blocked),
              flush=True)
        return blocked * 1000 / requests


def is_attached(pager, uuid):
    try:
        return pager.guest(uuid)["state"] == "attached"
    except Failure:
        return False


def postcopy_ours():
    with Cluster() as cluster:
        cluster.subhost(512 * MIB)
        source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
        source = cluster.guest("src", source_pager, 512 * MIB, append=MEMGUEST)
        source.wait_log("memguest: ready", 120)
        destination = cluster.guest("dst", main_pager, 512 * MIB, incoming=True)
        wait_until("the destination is attached", 30, lambda: is_attached(main_pager, cluster.uuid))
        cluster.migrate(source, destination, cluster.policy(64 * MIB))
        time.sleep(WATCHED)
        waits = main_pager.guest(cluster.uuid)["fault_us"]
        destination.check_clean()
        print("  ours: %d faults, p50 %d us, p99 %d us" % (waits["count"], waits["p50"], waits["p99"]), flush=True)
        return waits["sum"] / waits["count"]


def part_postcopy():
    if not os.environ.get("QEMU"):
        print("postcopy: not measured (QEMU names no patched QEMU)")
        return
    results = {"ours": [], "stock": [], "preempt": []}
    for _ in range(min(RUNS, 3)):
        results["ours"].append(postcopy_ours())
        results["stock"].append(postcopy_stock(False))
        results["preempt"].append(postcopy_stock(True))
    ours = median(results["ours"])
    for way in ("stock", "preempt"):
        peer = median(results[way])
        row("page-latency-vs-postcopy" + ("-preempt" if way == "preempt" else ""), ours, None, "us mean", 1.0,
            ours / peer, peer)


start = time.monotonic()
try:
    for part in PARTS:
        {"latency": part_latency, "pageout": part_pageout, "busy": part_busy,
         "bookkeeping": part_bookkeeping, "swap": part_swap, "postcopy": part_postcopy,
         "kvm": lambda: fault_kvm.part(row)}[part]()
except (Failure, subprocess.CalledProcessError) as failure:
    print("bench-fault: %s" % failure)
    sys.exit(1)
finally:
    with open(os.path.join(BUILD, "bench-fault.json"), "w") as output:
        json.dump(rows, output, indent=2)
        output.write("\n")
print("(%.0f s)" % (time.monotonic() - start))
