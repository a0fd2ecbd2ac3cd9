# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-rate: how fast a program goes on after the split with half of its memory local, beside all local and swap.

    BENCH_RUNS=5 BENCH_TRACES=kv-zipf,kv-shift,database,graph,sort,join,compiler make bench-rate

The programs are those of bench/traces, played in the memory of tests/tools/guestplay, which hands its memfd and its
userfaultfd over as QEMU does: each event of a trace touches its page, checks a word of it, and is followed by as much
arithmetic as the program has between two events (PACE).  The first half of a trace is what the program did
before; the rate of the second half is what is measured:

local   nobody pages
ours    the guest was profiled and split by a real migration, half of what the program touches stays on the main host
zram    the same process in a memory cgroup of that size, swapping to zram; it lives there from the beginning
file    the same, swapping to a file on the disk

Ways and programs take turns, medians are compared.  A rate is of the time in which the program had a processor or waited
for memory; when it was ready and other programs of the machine had the processor does not count.  What has not ended after LIMIT seconds is stopped, and counts with
what it did until then.  Rows go to BUILD/bench-rate.json.
"""

import json
import lzma
import os
import statistics
import tempfile

from splitkit import *  # noqa: F401,F403
from cgroup import MemoryGroup
from checks import Skip

RUNS = int(os.environ.get("BENCH_RUNS", "5"))
# ns: the CPU time of the program alone, user and system, over the events it has when all of them are recorded.
PACE = {"kv-zipf": 520, "kv-shift": 680, "database": 510, "graph": 310, "sort": 310, "join": 180, "compiler": 1740}
SKEWED = "kv-zipf", "kv-shift"
NAMES = os.environ.get("BENCH_TRACES", ",".join(PACE)).split(",")
LIMIT = 3
SIZE = 512 * MIB  # of the guest; what a program does not touch is never there
SHARE = 0.5
PREFETCH, LOW = 32, 94  # the policy's defaults
COLLAPSED = 0.5  # of the rate with all local: swapping that is slower than this
COUNTS = "page_ins", "prefetched", "page_outs", "clean_drops"
rows = []


def row(name, ours, peer, floor, ratio, target):
    met = None if target is None else ratio >= target
    rows.append({"name": name, "ours": ours, "peer": peer, "floor": floor, "unit": "events/ms", "ratio": round(ratio, 3),
                 "target": target, "met": met})


class Program:
    def __init__(self, folder, name):
        self.name, self.path = name, os.path.join(folder, name)
        with lzma.open(os.path.join(TOP, "bench", "traces", name + ".trace.xz")) as packed, open(self.path, "wb") as file:
            file.write(packed.read())
        self.rates, self.counts, self.work, self.local = {}, {}, None, None

    def load(self, guest):
        """Have the guest know the trace, not yet touch its memory."""
        trace = guest("load", self.path)
        if "err" in trace:
            raise Failure("%s: %s" % (self.path, trace))
        self.half = trace["events"] // 2
        self.local = int(trace["touched"] * SHARE) * PAGE
        if self.work is None:
            self.work = round(PACE[self.name] / guest("pace") * 1000)

    def before(self, guest):
        guest("trace", 0, self.half, 0, 600000)

    def measure(self, guest):
        waited = waited_s(guest.process.pid, "guestplay")
        done = guest("trace", self.half, self.half, self.work, LIMIT * 1000)
        waited = waited_s(guest.process.pid, "guestplay") - waited
        if done["errors"]:
            raise Failure("%s: %d words of its memory were wrong" % (self.name, done["errors"]))
        return done["events"] / (done["elapsed_ns"] / 1e6 - waited * 1e3)


def local(program):
    with Cluster() as cluster:
        guest = GuestPlay(cluster, cluster.pager("host"), "guest", sizes=(SIZE,), threads=1)
        program.load(guest)
        program.before(guest)
        return program.measure(guest)


def ours(program):
    def prepare(here, departure):
        program.load(here)
        player = threading.Thread(target=here, args=("trace", 0, program.half, program.work, 60000))
        player.start()
        departure.call("outgoing-profile", uuid=cluster.uuid, seconds=2, period_ms=100)
        player.join()
    with Cluster() as cluster:
        split = Split(cluster, SIZE, SIZE, program.local, PREFETCH, prepare, program.local * LOW // 100)
        program.load(split.guest)
        before = split.query()
        rate = program.measure(split.guest)
        after = split.query()
    program.counts = {what: after[what] - before[what] for what in COUNTS}
    return rate


class Group(MemoryGroup):
    """Its processes wait for room, rather than being killed, when what leaves is still on its way to a slow swap.

    With version 1 that takes somebody outside who makes a little room for a moment.
    """

    def __init__(self, limit):
        super().__init__(limit)
        self.limit, self.ended, self.helper = limit, threading.Event(), None
        control = os.path.join(self.path, "memory.oom_control")
        if os.path.exists(control):
            write(control, 1)
            self.helper = threading.Thread(target=self.help, args=(control,))
            self.helper.start()

    def help(self, control):
        limit, more = os.path.join(self.path, "memory.limit_in_bytes"), 0
        while not self.ended.wait(0.01):
            with open(control) as file:
                wanted = more + MIB if "under_oom 1" in file.read() else max(0, more - MIB)
            if wanted != more:
                try:
                    write(limit, self.limit + wanted)
                    more = wanted
                except OSError:  # it has not shrunk yet
                    pass

    def release(self):
        self.ended.set()
        if self.helper:
            self.helper.join()
        super().release()


def write(path, number):
    with open(path, "w") as file:
        file.write(str(number))


def swapping(kind):
    def measure(program):
        device = kind(2 * SIZE)
        try:
            with Group(program.local) as group, Cluster() as cluster:
                guest = GuestPlay(cluster, cluster.pager("host"), "guest", sizes=(SIZE,), threads=1)
                program.load(guest)  # before it is in the group: what is of the player has room
                write(os.path.join(group.path, "cgroup.procs"), guest.process.pid)
                program.before(guest)
                return program.measure(guest)
        finally:
            device.close()
    return measure


WAYS = {"local": local, "ours": ours, "zram": swapping(Zram), "file": swapping(SwapFile)}


def measure(programs):
    for turn in range(RUNS):
        for program in programs:
            for way in WAYS if turn % 2 == 0 else reversed(WAYS):  # local first: it learns sizes and pace
                program.rates.setdefault(way, []).append(WAYS[way](program))
            print("  %-8s %s  %s" % (program.name, "  ".join(
                "%s %.0f" % (way, program.rates[way][-1]) for way in WAYS), program.counts), flush=True)


def report(programs):
    print("\nevents/ms of the second half, medians of %d; load %.1f\n" % (RUNS, os.getloadavg()[0]))
    print("%-10s %8s %8s %8s %8s   of local: %6s %6s %6s" % ("program", *WAYS, "ours", "zram", "file"))
    for program in programs:
        rate = {way: statistics.median(rates) for way, rates in program.rates.items()}
        of_local = [rate[way] / rate["local"] for way in ("ours", "zram", "file")]
        print("%-10s %8.0f %8.0f %8.0f %8.0f             %5.0f%% %5.0f%% %5.0f%%" % (
            program.name, *(rate[way] for way in WAYS), *(100 * share for share in of_local)))
        row(program.name + ": ours vs all local", rate["ours"], None, rate["local"], of_local[0],
            0.95 if program.name in SKEWED else None)
        for way in "zram", "file":
            collapsed = rate[way] < COLLAPSED * rate["local"]
            row("%s: ours vs swap to %s" % (program.name, way), rate["ours"], rate[way], rate["local"],
                rate["ours"] / rate[way], 2.0 if collapsed else None)
    print()
    for r in rows:
        if r["met"] is not None:
            print("%-34s ratio %5.2f, at least %.2f: %s" % (r["name"], r["ratio"], r["target"],
                                                         "met" if r["met"] else "NOT MET"))


def bench():
    if os.geteuid() != 0 or not os.path.exists("/sys/class/zram-control"):
        print("bench-rate: not run (it needs root, zram in this kernel and a memory cgroup)")
        sys.exit(77)
    os.nice(-15)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        programs = [Program(folder, name) for name in NAMES]
        measure(programs)
    report(programs)
    with open(os.path.join(BUILD, "bench-rate.json"), "w") as output:
        json.dump(rows, output, indent=2)
        output.write("\n")


start = time.monotonic()
try:
    bench()
except (Failure, Skip, subprocess.CalledProcessError) as failure:
    print("bench-rate: %s" % failure)
    sys.exit(1)
print("(%.0f s)" % (time.monotonic() - start))
