# SPDX-License-Identifier: GPL-2.0-or-later
"""Throughput of the mover in a first round and in later ones, beside the floor (memfd, one TCP stream, fresh memfd).

    BUILD=build /usr/bin/python3 bench/bench_mover.py [MIB [REPEAT]]

Runs take turns, so that drift hits all alike; the median counts.  CPU is of both sides together.
The numbers move with the machine's first-touch cost: read the ratios.
"""

import os
import random
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "lib"))
from cluster import BUILD, Failure
from moverkit import HOT, PAGE, Lab

MIB = 1 << 20


def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        with open("/proc/%d/stat" % pid) as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def run(mib, byte, connections, n_subhosts=1, zero=False, scattered=False):
    """(MiB/s, CPU s/GiB) of one first round, or of one in eight pages four times after it; finish in ms beside."""
    lab = Lab({"pc.ram": mib * MIB}, n_subhosts)
    try:
        block = lab.source.blocks[0]
        for at in range(0, mib):
            os.pwrite(block.fd, bytes(MIB) if zero else os.urandom(MIB), lab.source.offset + at * MIB)
        partition = bytes(byte(chunk) for chunk in range(lab.source.n_chunks))
        lab.begin(partition, connections=connections)
        rounds = [range(lab.source.n_pages)]
        if scattered:
            lab.mover.hand_over(lab.source, rounds.pop(), 1)
            lab.mover.drain()
            rounds = [sorted(random.sample(range(lab.source.n_pages), lab.source.n_pages // 8)) for _ in range(4)]
        pids = [lab.mover.process.pid, lab.receiver.process.pid] + [s.pid for s in lab.subhosts]
        before = cpu_seconds(pids)
        start = time.monotonic()
        for number, pages in enumerate(rounds, 2 if scattered else 1):
            lab.mover.hand_over(lab.source, pages, number)
            lab.mover.drain()
        took = time.monotonic() - start
        used = cpu_seconds(pids) - before
        mib = sum(map(len, rounds)) * PAGE / MIB
        start = time.monotonic()
        status, reason = lab.mover.finish()
        finish = time.monotonic() - start
        if status:
            raise Failure(reason)
        lab.receiver.page_map()
        return mib / took, used * 1024 / mib, finish * 1000
    finally:
        lab.close()


def floor(mib):
    program = os.path.join(BUILD, "bin", "mover-floor")
    if not os.path.exists(program):
        return {}
    text = subprocess.run([program, str(mib)], check=True, capture_output=True, text=True).stdout
    return {"floor: %s, %s KiB" % (name.strip(), piece): (float(speed), float(cpu), 0)
            for name, piece, speed, cpu in
            re.findall(r"^(.*?)\s+(\d+) KiB pieces\s+([\d.]+) MiB/s\s+([\d.]+) CPU", text, re.M)}


def main():
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    repeat = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    results = {}
    for _ in range(repeat):
        figures = floor(mib)
        for connections in (1, 2):
            suffix = ", %d connection%s" % (connections, "s" if connections > 1 else "")
            figures["mover to main host" + suffix] = run(mib, lambda chunk: HOT, connections)
            figures["mover to sub-host" + suffix] = run(mib, lambda chunk: 0, connections)
            figures["mover to both, half each" + suffix] = run(
                mib, lambda chunk: HOT if chunk % 2 else 0, connections)
        figures["mover, scattered pages of later rounds, half each"] = run(
            mib, lambda chunk: HOT if chunk % 2 else 0, 2, scattered=True)
        figures["mover, zero pages (found, not sent)"] = run(mib, lambda chunk: HOT, 2, zero=True)
        for name, values in figures.items():
            results.setdefault(name, []).append(values)
    print("%-56s %9s %12s %10s" % ("", "MiB/s", "CPU s/GiB", "finish ms"))
    for name, runs in results.items():
        speed, used, finish = (statistics.median(column) for column in zip(*runs))
        print("%-56s %9.0f %12.2f %10s" % (name, speed, used, "%.1f" % finish if finish else ""))


if __name__ == "__main__":
    main()
