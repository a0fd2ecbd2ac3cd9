# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-sampling: what access sampling costs the running guest while it is on, and after it was on.

    BENCH_RUNS=5 BENCH_SECONDS=4 make bench-sampling

A native guest (tests/tools/guestplay) of 1 GiB works through its memory page by page, not split yet.  Its rate is
taken with `outgoing-profile` as split-migrate asks for it (PERIOD_MS) and without, in turns: off on on off off on ...

hot      seven of eight accesses go to a tenth of the pages
random   to all pages alike: every 2 MiB is touched in every period, which is the most sampling can cost
never    a guest that was never sampled, beside one that was, now off: what is left behind

A row's ratio is the median over all turns of rate on / rate off.  A rate is of the time in which the guest had a processor
or waited for the pager; when it was ready and other programs of the machine had the processor does not count.  Rows go to BUILD/bench-sampling.json.
"""

import json
import os
import statistics

from splitkit import *  # noqa: F401,F403

RUNS = int(os.environ.get("BENCH_RUNS", "5"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))
PERIOD_MS = int(os.environ.get("BENCH_PERIOD_MS", "200"))
SIZE = 1024 * MIB
rows = []


def cpu_s(pid):
    """What a process has used so far, threads that have ended included."""
    with open("/proc/%d/stat" % pid) as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Guest:
    def __init__(self, cluster, name):
        pager = cluster.pager(name)
        self.cluster, self.control = cluster, Control(pager.control_path, 60)
        self.play = GuestPlay(cluster, pager, name, sizes=(SIZE,), threads=1)
        self.play("fill", 100, 0, SIZE // PAGE)
        self.pid = pager.guest(cluster.uuid)["worker_pid"]
        self.play("work", 0, SIZE // PAGE)
        self.play("writes", 10)

    def rate(self, sampled):
        """(checks a second, pager's CPU seconds a second, periods)"""
        before, cpu, start = self.play("stats")["checks"], cpu_s(self.pid), time.monotonic()
        waited = waited_s(self.play.process.pid, "vcpu")
        self.play("go")
        periods = 0
        if sampled:
            periods = self.control.call("outgoing-profile", uuid=self.cluster.uuid, seconds=SECONDS,
                                        period_ms=PERIOD_MS)["periods"]
        else:
            time.sleep(SECONDS)
        self.play("halt")
        took = time.monotonic() - start
        waited = waited_s(self.play.process.pid, "vcpu") - waited
        stats = self.play("stats")
        if stats["errors"]:
            raise Failure("the guest's memory is wrong: %s" % stats)
        return (stats["checks"] - before) / (took - waited), (cpu_s(self.pid) - cpu) / took, periods


def row(name, ours, peer, ratio, target):
    rows.append({"name": name, "ours": round(ours), "peer": None, "floor": round(peer), "unit": "accesses/s",
                 "ratio": round(ratio, 4), "target": target, "met": ratio >= target})
    print("%-42s %9.0f beside %9.0f accesses/s, ratio %.3f, at least %.2f: %s" % (
        name, ours, peer, ratio, target, "met" if ratio >= target else "NOT MET"), flush=True)


def turns(ways):
    """{name: rates} of {name: function}, in turns that change their order."""
    rates = {name: [] for name in ways}
    for turn in range(RUNS):
        for name in ways if turn % 2 == 0 else reversed(ways):
            rates[name].append(ways[name]())
    return rates


def compare(name, rates, target):
    ours, floor = ([rate for rate, _, _ in rates[way]] for way in ("ours", "floor"))
    row(name, statistics.median(ours), statistics.median(floor),
        statistics.median(a / b for a, b in zip(ours, floor)), target)


def bench():
    with Cluster() as cluster, Cluster() as other:
        guest, never = Guest(cluster, "sampled"), Guest(other, "never")
        for mode in "hot", "random":
            guest.play("mode", mode)
            never.play("mode", mode)
            guest.rate(False)  # all of it is mapped
            rates = turns({"floor": lambda: guest.rate(False), "ours": lambda: guest.rate(True)})
            compare("%s, sampling on / off" % mode, rates, 0.98)
            print("  the pager's CPU: %.1f %% of a core on, %.1f %% off; %d periods of %d ms in %d s" % (
                *(100 * statistics.median(cpu for _, cpu, _ in rates[way]) for way in ("ours", "floor")),
                rates["ours"][0][2], PERIOD_MS, SECONDS), flush=True)
            never.rate(False)
            rates = turns({"floor": lambda: never.rate(False), "ours": lambda: guest.rate(False)})
            compare("%s, off after it was on / never on" % mode, rates, 0.98)


start = time.monotonic()
try:
    if os.geteuid() == 0:
        os.nice(-15)
    bench()
except (Failure, subprocess.CalledProcessError) as failure:
    print("bench-sampling: %s" % failure)
    sys.exit(1)
with open(os.path.join(BUILD, "bench-sampling.json"), "w") as output:
    json.dump(rows, output, indent=2)
    output.write("\n")
print("(%.0f s)" % (time.monotonic() - start))
