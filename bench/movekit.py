# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmarks of moving share: one move by each way, and what it cost.

A move is measured as a dictionary: total and downtime in ms, sent in MiB, cpu in seconds of all
processes that took part (QEMUs, pagers, movers, sub-hosts, the controller), from /proc, less what the
guest took for itself: as much as in SETTLED seconds before, for the time from the command to its end.
"""

import ctypes
import mmap
import os
import random
import re
import resource
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "lib"))
from cluster import *  # noqa: F401,F403,E402

UNLIMITED = 1 << 50
TICK = os.sysconf("SC_CLK_TCK")
SETTLED = 3
STOCK = {"precopy": 0, "multifd-2": 2, "multifd-2-zlib": 2, "multifd-4": 4, "multifd-8": 8}


def cpu_seconds(cluster):
    """CPU time of all that runs for the cluster: who has its folder in the command line, and who they have started."""
    parents, ticks, counted = {}, {}, set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as file:
                if cluster.dir.encode() in file.read():
                    counted.add(int(pid))
            with open("/proc/%s/stat" % pid) as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(pid)] = int(fields[1])
        ticks[int(pid)] = sum(int(field) for field in fields[11:15])

    def is_ours(pid):
        return pid in counted or pid in parents and is_ours(parents[pid])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (sum(ticks[pid] for pid in ticks if is_ours(pid)) / TICK +
            children.ru_utime + children.ru_stime)


def have_memory(size):
    """Touch as much free memory as a destination will take, and free it again.

    The machine under a virtual machine takes back what was idle, and gives it again far more slowly
    than a kernel hands out what it has: without this, who comes first pays for all.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(23)  # MADV_POPULATE_WRITE


def wait_migrated(guest, seconds=300):
    def done():
        info = guest.qmp("query-migrate")
        if info.get("status") in ("failed", "cancelled"):
            raise Failure("stock migration %s: %s" % (info["status"], info.get("error-desc")))
        return info if info.get("status") == "completed" else None
    return wait_until("the migration's end", seconds, done)


class Move:
    """Guests on both sides, ready to be moved once."""

    def __init__(self, cluster, way, ram, budget, lend, prepare, **guest):
        """@way: "ours", "ours-HOW" (compressed) or a name in STOCK; @prepare(source): puts something into the source."""
        self.cluster, self.way = cluster, way
        pagers = (None, None)
        if way.startswith("ours"):
            for _ in range(2):
                cluster.subhost(lend)
            pagers = (cluster.pager("source"), cluster.pager("main"))
            self.policy = cluster.policy(budget)
        self.source = cluster.guest("src", pagers[0], ram, **guest)
        # A destination runs what arrives; it needs no kernel of its own.
        arrival = {key: value for key, value in guest.items() if key not in ("append", "paused")}
        self.destination = cluster.guest("dst", pagers[1], ram, incoming=True, **arrival)
        prepare(self.source)
        have_memory(ram)

    def plan(self, link):
        """What `split-migrate plan` expects of the move over a link of so many bytes a second: total and downtime in ms."""
        self.source.wait_handed_over()
        self.destination.wait_handed_over()
        status, out, err = self.cluster.run("plan", "--json", "--policy", self.policy, "--bandwidth",
                                            "%dKiB" % (link // 1024), self.source.uri(),
                                            self.destination.uri())
        estimate = json.loads(out)["estimate"] if status == 0 else {}
        if not estimate.get("ends"):
            raise Failure("plan sees no end of the move: %s%s" % (out, err))
        return {"total": estimate["total_time_ms"], "downtime": estimate["downtime_ms"]}

    def run(self):
        """Return: the measured move."""
        own = self._guest_cpu_rate()
        before, began = cpu_seconds(self.cluster), time.monotonic()
        if self.way.startswith("ours"):
            more = ["--keep-source"]  # its CPU time is read afterwards
            if "-" in self.way:
                more += ["--compress", self.way.split("-")[1]]
            info = self.cluster.migrate(self.source, self.destination, self.policy, *more)
            result = {"total": info["total_time_ms"], "downtime": info["downtime_ms"],
                      "sent": info["wire_bytes"] / MIB}
        else:
            info = self._stock(STOCK[self.way])
            result = {"total": info["total-time"], "downtime": info["downtime"],
                      "sent": info["ram"]["transferred"] / MIB}
        result["cpu"] = cpu_seconds(self.cluster) - before - own * (time.monotonic() - began)
        return result

    def _guest_cpu_rate(self):
        """CPU seconds a second of all there is, while nothing is moved."""
        before, began = cpu_seconds(self.cluster), time.monotonic()
        time.sleep(SETTLED)
        return (cpu_seconds(self.cluster) - before) / (time.monotonic() - began)

    def _stock(self, channels):
        for guest in (self.source, self.destination):
            guest.qmp("migrate-set-capabilities",
                      capabilities=[{"capability": "multifd", "state": channels > 0}])
            guest.qmp("migrate-set-parameters", multifd_channels=max(channels, 1),
                      max_bandwidth=UNLIMITED,
                      multifd_compression="zlib" if self.way.endswith("zlib") else "none")
        self.destination.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
        port = self.destination.qmp("query-migrate")["socket-address"][0]["port"]
        self.source.qmp("migrate", uri="tcp:127.0.0.1:%s" % port)
        info = wait_migrated(self.source)
        # What is typed on its console before it has loaded its devices is lost.
        wait_until("the destination has loaded its state", 60, lambda: self.destination.status() != "inmigrate")
        return info


def text_bytes(length):
    """Words of a small language: they compress to a fourth or so."""
    rng = random.Random(1)
    words = [("%x" % rng.getrandbits(rng.choice((12, 20, 28)))).encode() for _ in range(2000)]
    block = b" ".join(rng.choice(words) for _ in range(1 << 19))[:MIB]
    return bytearray((block * (length // len(block) + 1))[:length])


def private_network():
    """From here on in a network namespace of its own, whose loopback can be shaped."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        raise Failure("a network namespace needs root: %s" % os.strerror(ctypes.get_errno()))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def shape_network(rate):
    """All that goes over the loopback, at @rate bytes a second; bursts of 10 ms."""
    subprocess.run(["tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", "%dbit" % (rate * 8), "burst",
                    "%d" % (rate // 100), "latency", "50ms"], check=True)


def unshape_network():
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)


def fill_random(guest, length, kind="random"):
    """@length bytes from 16 MiB on get random bytes, or text (a 64 MiB block, varied)."""
    folder = "/proc/%d/fd" % guest.pid
    name = next(n for n in os.listdir(folder)
                if os.readlink(os.path.join(folder, n)).startswith("/memfd:memory-backend"))
    fd = os.open(os.path.join(folder, name), os.O_RDWR)
    block = bytearray(os.urandom(64 * MIB)) if kind == "random" else text_bytes(64 * MIB)
    for i in range(length // len(block)):
        block[i * PAGE:i * PAGE + 8] = os.urandom(8)
        os.pwrite(fd, block, 16 * MIB + i * len(block))
    os.close(fd)


def floor_ms(mib):
    """The best way found from a memfd through one TCP connection into a fresh memfd, in ms."""
    have_memory(2 * mib * MIB)
    out = subprocess.run([os.path.join(BUILD, "bin/mover-floor"), str(mib)],
                         check=True, capture_output=True, text=True).stdout
    rates = [float(rate) for line, rate in re.findall(r"^(.*?)\s+([\d.]+) MiB/s", out, re.M)
             if "discard" not in line]
    return mib / max(rates) * 1000


__all__ = [name for name in dir() if not name.startswith("_")]
