# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench-migrate: total time of ours, of stock QEMU's ways, and of the floor, in one run.

The guest declares 4 GiB and has 2 GiB of random bytes in it (BENCH_FILL_MIB); its vCPU is stopped, so that all
ways send the same.  Each is run BENCH_RUNS times (3), in turn, and medians are compared, because the
machine drifts.  The floor is what the same bytes take from a memfd through one TCP connection into
a fresh memfd (bench/mover_floor.c).  Rows go to BUILD/bench-migrate.json.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "lib"))
from cluster import *  # noqa: F401,F403,E402

RUNS = int(os.environ.get("BENCH_RUNS", "3"))
FILL = int(os.environ.get("BENCH_FILL_MIB", "2048")) * MIB
RAM = 2 * FILL
UNLIMITED = 1 << 50


def fill(guest):
    """Half of the guest's memory, from 16 MiB on, gets random bytes (a 64 MiB block, varied)."""
    folder = "/proc/%d/fd" % guest.pid
    name = next(n for n in os.listdir(folder)
                if os.readlink(os.path.join(folder, n)).startswith("/memfd:memory-backend"))
    fd = os.open(os.path.join(folder, name), os.O_RDWR)
    block = bytearray(os.urandom(64 * MIB))
    for i in range(FILL // len(block)):
        block[i * PAGE:i * PAGE + 8] = os.urandom(8)
        os.pwrite(fd, block, 16 * MIB + i * len(block))
    os.close(fd)


def wait_migrated(guest):
    def done():
        info = guest.qmp("query-migrate")
        if info.get("status") in ("failed", "cancelled"):
            raise Failure("stock migration %s: %s" % (info["status"], info.get("error-desc")))
        return info if info.get("status") == "completed" else None
    return wait_until("the migration's end", 120, done)


def stock(cluster, channels):
    source = cluster.guest("src", None, RAM, kernel=False, paused=True)
    destination = cluster.guest("dst", None, RAM, kernel=False, incoming=True)
    fill(source)
    for guest in (source, destination):
        guest.qmp("migrate-set-capabilities",
                  capabilities=[{"capability": "multifd", "state": channels > 0}])
        guest.qmp("migrate-set-parameters", multifd_channels=max(channels, 1),
                  max_bandwidth=UNLIMITED)
    destination.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
    port = destination.qmp("query-migrate")["socket-address"][0]["port"]
    source.qmp("migrate", uri="tcp:127.0.0.1:%s" % port)
    info = wait_migrated(source)
    return info["total-time"], info["downtime"]


def ours(cluster):
    for _ in range(2):
        cluster.subhost(FILL)
    source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
    source = cluster.guest("src", source_pager, RAM, kernel=False, paused=True)
    destination = cluster.guest("dst", main_pager, RAM, kernel=False, incoming=True)
    fill(source)
    result = cluster.migrate(source, destination, cluster.policy(FILL // 2))
    return result["total_time_ms"], result["downtime_ms"]


def floor():
    """The best way found from a memfd through one TCP connection into a fresh memfd, in ms."""
    out = subprocess.run([os.path.join(BUILD, "bin/mover-floor"), str(FILL // MIB)],
                         check=True, capture_output=True, text=True).stdout
    rates = [float(rate) for line, rate in re.findall(r"^(.*?)\s+([\d.]+) MiB/s", out, re.M)
             if "discard" not in line]
    return FILL / MIB / max(rates) * 1000


def timed(name, function, *arguments):
    with Cluster() as cluster:
        total, downtime = function(cluster, *arguments)
    print("  %-24s %7.0f ms   downtime %5.0f ms" % (name, total, downtime), flush=True)
    return total


def bench():
    times = {"ours": [], "precopy": [], "multifd-2": [], "floor": []}
    for run in range(RUNS):
        print("run %d of %d, %d MiB of random bytes" % (run + 1, RUNS, FILL // MIB), flush=True)
        times["ours"].append(timed("split-migrate", ours))
        times["precopy"].append(timed("QEMU pre-copy", stock, 0))
        times["multifd-2"].append(timed("QEMU multifd, 2 channels", stock, 2))
        times["floor"].append(floor())
        print("  %-24s %7.0f ms" % ("floor", times["floor"][-1]), flush=True)
    middle = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for peer, target in (("precopy", 1.0), ("multifd-2", 1.0)):
        ratio = middle["ours"] / middle[peer]
        rows.append({"name": "total-time-vs-" + peer, "ours": middle["ours"], "peer": middle[peer],
                     "floor": middle["floor"], "unit": "ms", "ratio": round(ratio, 3),
                     "target": target, "met": ratio < target})
    print("\n%-28s %10s %10s %10s %8s %8s" % ("median", "ours ms", "peer ms", "floor ms", "ratio", "target"))
    for row in rows:
        print("%-28s %10.0f %10.0f %10.0f %8.3f  < %.2f  %s" % (
            row["name"], row["ours"], row["peer"], row["floor"], row["ratio"], row["target"],
            "met" if row["met"] else "NOT MET"))
    print("ours against the floor: %.2f of its rate" % (middle["floor"] / middle["ours"]))
    with open(os.path.join(BUILD, "bench-migrate.json"), "w") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")


start_ = time.monotonic()
try:
    bench()
except (Failure, subprocess.CalledProcessError) as failure:
    print("bench-migrate: %s" % failure)
    sys.exit(1)
print("(%.0f s)" % (time.monotonic() - start_))
