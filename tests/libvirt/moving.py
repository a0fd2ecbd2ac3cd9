# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves between two libvirts that are looked at, and ended, while they are under way."""

import re

from testbed import MIB, Failure, wait_until


def job(bed, guest):
    """domjobinfo's figures in bytes; {} without a job."""
    status, out, _ = bed.source.run("virsh", "-c", "qemu:///system", "domjobinfo", guest.name)
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    if status or not re.search(r"Job type: +(Unbounded|Bounded)", out):
        return {}
    return {name.strip(): float(value) * units[unit] for name, value, unit in
            re.findall(r"^([A-Z][\w ]+): +([\d.]+) ([KMG]?i?B)$", out, re.M)}


def start_move(bed, guest, budget, *more):
    """Start a live move that takes its time; returns its process when memory is under way."""
    process = bed.command("migrate", "--live", "--verbose", "--profile", "0", "--policy",
                          bed.policy(budget), *more, guest.name, bed.main.uri)

    def under_way():
        if process.poll() is not None:
            raise Failure("the move ended early: %s" % (process.communicate(),))
        figures = job(bed, guest)
        return figures if figures.get("Memory processed", 0) > 2 * MIB else None
    figures = wait_until("memory is under way", 60, under_way, 0.1)
    print("in mid-move:", figures)
    if figures["Memory total"] < guest.memory or not figures["Memory remaining"]:
        raise Failure("domjobinfo: %s" % figures)
    if guest.uuid not in bed.main.guests() or sum(len(h.regions()) for h in bed.subhosts) != 2:
        raise Failure("the other hosts hold nothing")
    return process


def still_at_source(bed, guest):
    """As if nothing had been: on every host."""
    wait_until("the guest runs at the source", 20, lambda: guest.state() == "running", 0.1)
    wait_until("the main host is free of it", 20, lambda: not bed.main.guests(), 0.1)
    wait_until("no QEMU at the main host", 20, lambda: not bed.main.pids("qemu-system-x86_64"), 0.1)
    # Who has heard of the end first is nobody's promise: libvirt, the pagers and the sub-hosts.
    wait_until("the main host has no such domain", 20, lambda: not guest.state(bed.main), 0.1)
    for host in bed.subhosts:
        wait_until("%s is empty" % host.name, 20, lambda h=host: not h.regions() and not any(
            h.status()[key] for key in ("stored", "reserved")), 0.1)
    wait_until("the source's pager has the whole guest", 20, lambda: bed.source.pager_call(
        "query-guest", uuid=guest.uuid)["state"] == "attached", 0.1)
    before = guest.reports()
    wait_until("the guest goes on", 20, lambda: guest.reports() >= before + 2, 0.1)
    guest.check_clean()


def finish(process, status, says):
    out, err = process.communicate(timeout=90)
    last = err.replace("\r", "\n").strip().split("\n")[-1]
    print("ended with %d: %s" % (process.returncode, last))
    if process.returncode != status or not re.search(says, last):
        raise Failure("ended with %d, not %d: %s%s" % (process.returncode, status, out, err))
