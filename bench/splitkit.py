# SPDX-License-Identifier: GPL-2.0-or-later
"""What bench/fault.py, bench/rate.py and bench/sampling.py share: a native guest that is split, and swap to compare it with."""

import os
import subprocess
import sys
import threading
import time
import uuid as uuidlib

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TOP, "tests", "lib"))
from cluster import *  # noqa: F401,F403,E402
from guestplay import GuestPlay  # noqa: E402


def cpu_ns(pids):
    """What all threads of processes have used so far, as the scheduler counts it."""
    total = 0
    for pid in pids:
        for task in os.listdir("/proc/%d/task" % pid):
            try:
                with open("/proc/%d/task/%s/schedstat" % (pid, task)) as file:
                    total += int(file.read().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass
    return total


def waited_s(pid, name):
    """Seconds that the threads of a process with this name were ready and had no processor: others had it."""
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        folder = "/proc/%d/task/%s/" % (pid, task)
        with open(folder + "comm") as comm, open(folder + "schedstat") as schedstat:
            if comm.read().strip() == name:
                total += int(schedstat.read().split()[1])
    return total / 1e9


class Split:
    """A guest of up to @filled bytes of contents in @size, which may have @budget on its main host after its move.

    All of it is filled, and goes to one sub-host; or prepare(guest, control) gives the guest at the source what
    it shall have, and the hottest @main bytes go to the main host.
    """

    def __init__(self, cluster, size, filled, budget, prefetch, prepare=None, main=0):
        self.cluster = cluster
        self.subhost = cluster.subhost(filled + 256 * MIB)
        source, self.main = cluster.pager("source"), cluster.pager("main")
        here = GuestPlay(cluster, source, "source guest", sizes=(size,))
        self.guest = GuestPlay(cluster, self.main, "guest", incoming=True, sizes=(size,), threads=1)
        region, arrival = Control(self.subhost.control_path), Control(self.main.control_path, 60)
        departure = Control(source.control_path, 60)
        if prepare:
            prepare(here, departure)
        else:
            here("fill", 100, 0, filled // PAGE)
        region.call("region-create", name=cluster.uuid, size=(size + 2 * MIB - 1) & ~(2 * MIB - 1), reserve=filled,
                    limit=filled + 128 * MIB, ticket="t")
        subhosts = [{"name": self.subhost.name, "data": self.subhost.data, "ticket": "t",
                     "control": "unix:" + self.subhost.control_path, "weight": 1,
                     "export": cluster.uuid + ".t", "limit": filled + 128 * MIB}]
        migration = str(uuidlib.uuid4())
        answer = arrival.call("incoming-prepare", uuid=cluster.uuid, migration=migration, ticket="x",
                              budget=budget, prefetch=prefetch, subhosts=subhosts)
        departure.call("outgoing-prepare", uuid=cluster.uuid, migration=migration, subhosts=subhosts,
                       main={"data": answer["data"], "export": answer["export"], "budget": main})
        if here("armed") != migration:
            raise Failure("the source is not armed")
        waiter = threading.Thread(target=self.guest.good, args=("incoming", migration))
        waiter.start()
        here.good("migrate", 1)
        waiter.join(60)
        here.good("end", 0)
        for control in (region, arrival, departure):
            control.close()
        here.process.kill()
        self.pid = self.query()["worker_pid"]

    def query(self):
        return self.main.guest(self.cluster.uuid)

    def storm(self, threads, first, n, step=1, write=0):
        return self.guest("storm", threads, write, first, n, step)

    def budget(self, size):
        self.main.call("set-budget", uuid=self.cluster.uuid, budget=size)

    def shrink(self, size):
        """Lower the budget; (seconds, CPU seconds, pages that left) until the low watermark is reached."""
        pids = (self.pid, self.subhost.pid)
        before, cpu, start = self.query(), cpu_ns(pids), time.monotonic()
        self.budget(size)
        wait_until("page-out is done", 60, lambda: self.query()["resident"] <= size, 0.005)
        took, after = time.monotonic() - start, self.query()
        pages = sum(after[what] - before[what] for what in ("page_outs", "clean_drops"))
        return took, (cpu_ns(pids) - cpu) / 1e9, pages

    def check(self):
        self.guest.check()


class Zram:
    """A zram device of our own as swap."""

    def __init__(self, size):
        with open("/sys/class/zram-control/hot_add") as file:
            self.number = int(file.read())
        self.path = "/dev/zram%d" % self.number
        with open("/sys/block/zram%d/disksize" % self.number, "w") as file:
            file.write(str(size))
        subprocess.run(["mkswap", self.path], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", "-p", "100", self.path], check=True)

    def close(self):
        subprocess.run(["swapoff", self.path], check=True)
        with open("/sys/block/zram%d/reset" % self.number, "w") as file:
            file.write("1")
        with open("/sys/class/zram-control/hot_remove", "w") as file:
            file.write(str(self.number))


class SwapFile:
    """A file on the disk as swap."""

    def __init__(self, size):
        self.path = os.path.join(BUILD, "bench-%d.swap" % os.getpid())
        with open(self.path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            os.posix_fallocate(file.fileno(), 0, size)
        subprocess.run(["mkswap", self.path], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", "-p", "100", self.path], check=True)

    def close(self):
        subprocess.run(["swapoff", self.path], check=True)
        os.unlink(self.path)
