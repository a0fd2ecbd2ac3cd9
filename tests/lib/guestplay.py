# SPDX-License-Identifier: GPL-2.0-or-later
"""Run tests/tools/guestplay, a native guest in QEMU's place, and move it from pager to pager."""

import json
import os
import queue
import subprocess
import threading
import time
import uuid as uuidlib

from cluster import BUILD, MIB, Control, Failure

SIZES = (61 * MIB, 18 * MIB)


class GuestPlay:
    """pager: anything with .handoff; prefix: words before the command, such as setpriv's."""

    def __init__(self, cluster, pager, name, incoming=False, prefix=(), sizes=SIZES, threads=3):
        words = list(prefix) + [os.path.join(BUILD, "tests", "tools", "guestplay"), "--socket", pager.handoff, "--uuid",
                 cluster.uuid, "--threads", str(threads), "--state", os.path.join(cluster.dir, "state")]
        words += ["--size=%dM" % (size // MIB) for size in sizes]
        self.process = subprocess.Popen(words + (["--incoming"] if incoming else []),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        cluster.processes.append(self.process)
        self.name, self.answers = name, queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if self._answer() != "ready":
            raise Failure("%s is not attached" % name)

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line)["return"])
        self.answers.put(None)

    def _answer(self, seconds=90):
        try:
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            raise Failure("%s does not answer: its memory hangs" % self.name) from None
        if answer is None:
            raise Failure("%s ended with status %s" % (self.name, self.process.wait(5)))
        return answer

    def __call__(self, *words):
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        return self._answer()

    def good(self, *words):
        answer = self(*words)
        if answer is not True and answer != 0 and answer.get("err") != 0:
            raise Failure("%s: %s: %s" % (self.name, words, answer))

    def run(self, seconds):
        before = self("stats")["checks"]
        self("go")
        time.sleep(seconds)
        deadline = time.monotonic() + 60  # a worker may have to be followed by another first
        while self("stats")["checks"] < before + 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        self("halt")
        stats = self("stats")
        if stats["checks"] < before + 100 or stats["errors"] or stats["lost"]:
            raise Failure("%s: %s, before: %d checks" % (self.name, stats, before))

    def check(self):
        self("halt")
        self("verify")
        stats = self("stats")
        if stats["errors"] or stats["lost"]:
            raise Failure("%s: %s" % (self.name, stats))


def subhost_arguments(cluster, control, reserve, limit):
    arguments = []
    for i, subhost in enumerate(cluster.subhosts):
        control[i].call("region-create", name=cluster.uuid, size=96 * MIB,
                        reserve=reserve, limit=limit, ticket="t%d" % i)
        arguments.append({"name": subhost.name, "data": subhost.data, "control": "unix:" + subhost.control_path,
                          "export": cluster.uuid + ".t%d" % i, "ticket": "t%d" % i, "limit": limit,
                          "weight": i + 1})
    return arguments


def split_again(pager, uuid, old):
    """Is the guest split, and served by another worker than @old?"""
    try:
        guest = pager.guest(uuid)
    except (Failure, OSError):
        return False
    return guest["state"] == "split" and guest["worker_pid"] != old


def move(cluster, source, target, here, there, budget=24 * MIB, reserve=64 * MIB, limit=96 * MIB, **policy):
    """Split the guest: profile it, reserve, move it in two rounds while it runs.  policy: for incoming-prepare."""
    migration = str(uuidlib.uuid4())
    regions = [Control(s.control_path) for s in cluster.subhosts]
    subhosts = subhost_arguments(cluster, regions, reserve, limit)
    arrival, departure = Control(target.control_path, 60), Control(source.control_path, 60)
    here("go")
    for _ in range(3):  # its end must leave no fault without an answer, whenever it comes
        departure.call("outgoing-profile", uuid=cluster.uuid, seconds=1, period_ms=5)
        here("halt")
        here("go")
    for seconds in 1, 4, 16:  # a busy machine may leave no time for two periods in the first second
        profile = departure.call("outgoing-profile", uuid=cluster.uuid, seconds=seconds, period_ms=200)
        if profile["periods"] >= 2:
            break
    if not profile["periods"] or not 0 < profile["chunks_accessed"] <= 40:
        raise Failure("profile: %s" % profile)
    answer = arrival.call("incoming-prepare", uuid=cluster.uuid, migration=migration, ticket="x", budget=budget,
                          sample_period_ms=100, prefetch=16, subhosts=subhosts, **policy)
    departure.call("outgoing-prepare", uuid=cluster.uuid, migration=migration, subhosts=subhosts,
                   main={"data": answer["data"], "export": answer["export"], "budget": budget - budget // 6})
    if here("armed") != migration:
        raise Failure("the source is not armed")
    waiter = threading.Thread(target=there.good, args=("incoming", migration))
    waiter.start()
    here.good("migrate", 2)
    waiter.join()  # its answers have a deadline of their own
    here.good("end", 0)
    for control in regions + [arrival, departure]:
        control.close()
