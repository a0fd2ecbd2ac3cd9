#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 180
"""After the move, by the domain's name: statistics, pictures, top, and a budget that changes under load."""

import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 256 * MIB, 160 * MIB, 96 * MIB
SLACK = 2 * MIB


def expect(bed, *argv, status=0, seconds=120):
    got, out, err = bed.run(*argv, seconds=seconds)
    if got != status:
        raise Failure("%s ended with %d, not %d: %s%s" % (" ".join(argv), got, status, out, err))
    return out if status == 0 else err


def memfd(bed):
    """What the domain's memory takes on the main host, from the file's blocks."""
    pid, = bed.main.pids("qemu-system-x86_64")
    for fd in os.listdir("/proc/%d/fd" % pid):
        path = "/proc/%d/fd/%s" % (pid, fd)
        try:
            if os.readlink(path).startswith("/memfd:memory-backend-memfd"):
                return os.stat(path).st_blocks * 512
        except FileNotFoundError:
            continue  # closed since the folder was listed
    raise Failure("the domain's QEMU has no memfd")


def test_look(bed, guest):
    at = ("-c", bed.main.uri)
    seen = {}

    def agree():
        """Page-out goes on between the two looks, so they may differ at first."""
        stat = seen["stat"] = json.loads(expect(bed, *at, "dommemstat", "--json", "g1"))
        seen["regions"] = [host.regions()[0] for host in bed.subhosts]
        return all(told["connected"] and 0 < told["remote_bytes"] <= told["stored_bytes"] <= region["stored"]
                   for told, region in zip(stat["subhosts"], seen["regions"]))
    try:
        wait_until("dommemstat says what the sub-hosts say", 20, agree, 0.1)
    except Failure as failure:
        raise Failure("%s: %s" % (failure, seen)) from None
    stat = seen["stat"]
    print(stat)
    if stat["uuid"] != guest.uuid or stat["budget_bytes"] != BUDGET or stat["ram_bytes"] < RAM:
        raise Failure("not this guest: %s" % stat)
    by_id = json.loads(expect(bed, *at, "dommemstat", "--json", bed.main.virsh("domid", "g1")))
    if by_id["uuid"] != guest.uuid:
        raise Failure("by its id: %s" % by_id)
    print(expect(bed, *at, "pages", "g1"), expect(bed, *at, "pages", "--heatmap", "g1"))
    top = expect(bed, *at, "top", "--once")
    print(top)
    if not re.search(r"^ g1 +split ", top, re.M) or "sub2" not in top:
        raise Failure("top: %s" % top)
    gone = expect(bed, "dommemstat", "g1", status=1)
    if gone.count("\n") != 1:
        raise Failure("the source still has it: %s" % gone)
    print(gone)


def test_budget(bed, guest):
    """Down and up while the guest works: it is held to it, and sees nothing of it."""
    for budget in (48 * MIB, 128 * MIB, 32 * MIB, BUDGET):
        reports = guest.reports()
        print(expect(bed, "-c", bed.main.uri, "setbudget", "g1", "%dMiB" % (budget // MIB)), end="")
        most = memfd(bed)

        def on():
            nonlocal most
            most = max(most, memfd(bed))
            return guest.reports() >= reports + 3
        wait_until("the guest goes on", 60, on)
        if most > budget + SLACK:
            raise Failure("%d MiB were resident, the budget is %d" % (most // MIB, budget // MIB))
        guest.check_clean()
    stat = json.loads(expect(bed, "-c", bed.main.uri, "dommemstat", "--json", "g1"))
    if stat["budget_bytes"] != BUDGET or stat["lost_pages"] or not stat["page_ins"] or not stat["fault_p99_us"]:
        raise Failure("after all that: %s" % stat)
    print("%d pages are right: %s" % (guest.expect_sweep(120), stat))
    guest.check_clean()


def test(bed):
    guest = bed.define("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    expect(bed, "enable", "g1")
    bed.source.virsh("start", "g1")
    guest.wait_log("memguest: ready", 60)
    expect(bed, "migrate", "--live", "--profile", "2", "--policy", bed.policy(BUDGET), "g1", bed.main.uri)
    guest.at(bed.main)
    wait_until("the guest runs there", 30, lambda: guest.reports() >= 1)
    test_look(bed, guest)
    test_budget(bed, guest)
    bed.main.virsh("destroy", "g1")
    wait_until("the pager's end of it", 20, lambda: not bed.main.guests())
    for host in bed.subhosts:
        wait_until("%s is empty" % host.name, 10, lambda h=host: not h.regions())


main(test)
