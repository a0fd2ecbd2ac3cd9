#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""An operator's way: check, enable, check, migrate, look, disable; two libvirtd, two sub-hosts.

The guest checks itself from before the move until after it, on both sides.
"""

import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 256 * MIB, 128 * MIB, 64 * MIB


def expect(bed, *argv, status=0, seconds=120):
    got, out, err = bed.run(*argv, seconds=seconds)
    if got != status:
        raise Failure("%s ended with %d, not %d: %s%s" % (" ".join(argv), got, status, out, err))
    return out, err


def check_items(bed, *argv, status=0):
    """The items that are not as they must be: {(host, item): mend}."""
    out, _ = expect(bed, "check", "--json", *argv, status=status)
    return {(i["host"], i["item"]): i["mend"] for i in json.loads(out) if not i["ok"]}


def test_fit(bed, guest):
    """A domain as an operator has it is refused, with the command that mends it."""
    policy = bed.policy(BUDGET)
    missing = check_items(bed, "g1", bed.main.uri, status=1)
    if ("source", "backing, defined") not in missing or "main" in {h for h, _ in missing}:
        raise Failure("check did not see what is missing: %s" % missing)
    if "split-migrate enable g1" not in missing["source", "backing, defined"]:
        raise Failure("no command mends it: %s" % missing)
    bed.source.virsh("start", "g1")
    _, err = expect(bed, "migrate", "--live", "--policy", policy, "g1", bed.main.uri, status=1)
    if "run split-migrate enable g1" not in err or err.count("\n") != 1:
        raise Failure("not one sentence: %s" % err)
    bed.source.virsh("destroy", "g1")

    before = bed.source.virsh("dumpxml", "--inactive", "g1")
    expect(bed, "enable", "g1")
    enabled = bed.source.virsh("dumpxml", "--inactive", "g1")
    out, _ = expect(bed, "enable", "g1")
    if "already" not in out or bed.source.virsh("dumpxml", "--inactive", "g1") != enabled:
        raise Failure("enable is not idempotent: %s" % out)
    expect(bed, "disable", "g1")
    after = bed.source.virsh("dumpxml", "--inactive", "g1")
    if after != before:
        raise Failure("disable did not bring it back:\n%s\n%s" % (before, after))
    out, _ = expect(bed, "disable", "g1")
    if "already" not in out:
        raise Failure("disable is not idempotent: %s" % out)
    expect(bed, "enable", "g1")
    if SPLIT_QEMU not in enabled or "memfd" not in enabled or guest.uuid not in enabled:
        raise Failure("enabled: %s" % enabled)
    missing = check_items(bed, "g1", bed.main.uri)
    if missing:
        raise Failure("check still misses %s" % missing)
    split = bed.main.path("/usr/lib/split-migrate")
    os.rename(split, split + ".away")
    missing = check_items(bed, "g1", bed.main.uri, status=1)
    if set(missing) != {("main", "emulator"), ("main", "hand-over")}:
        raise Failure("check without a patched QEMU at the destination: %s" % missing)
    os.rename(split + ".away", split)


def test_migrate(bed, guest):
    bed.source.virsh("start", "g1")
    guest.wait_log("memguest: ready", 60)
    policy = bed.policy(BUDGET)
    out, _ = expect(bed, "check", "--policy", policy, "g1", bed.main.uri)
    print(out)
    out, _ = expect(bed, "plan", "--json", "--policy", policy, "g1", bed.main.uri)
    plan = json.loads(out)
    if plan["main"]["bytes"] > BUDGET or plan["main"]["bytes"] + sum(
            s["bytes"] for s in plan["subhosts"]) != plan["present_bytes"]:
        raise Failure("the plan is odd: %s" % plan)
    out, err = expect(bed, "migrate", "--live", "--verbose", "--json", "--persistent", "--undefinesource",
                      "--profile", "2", "--policy", policy, "g1", bed.main.uri)
    result = json.loads(out)
    print("moved:", result)
    if result["main_bytes"] > BUDGET or min(result["subhost_bytes"]) <= 0 or not result["downtime_ms"]:
        raise Failure("the move is odd: %s" % result)
    if "%" not in err:
        raise Failure("no progress: %s" % err)
    # libvirt knows it as a migration like any other, on both sides.
    before = guest.log_text()
    if re.search("ERROR", before):
        raise Failure("errors at the source: %s" % before[-500:])
    if guest.state():
        raise Failure("the source still has the domain")
    guest.at(bed.main)
    if guest.state() != "running":
        raise Failure("the domain is '%s' at the destination" % guest.state())
    info = bed.main.virsh("domjobinfo", "--completed", "g1")
    if not re.search(r"Memory processed: +[1-9]", info):
        raise Failure("libvirt's statistics: %s" % info)


def test_split(bed, guest):
    pages = guest.expect_sweep(120)
    guest.check_clean()
    status = bed.main.pager_call("query-guest", uuid=guest.uuid)
    print("after a sweep of %d pages: %s" % (pages, status))
    if status["state"] != "split" or status["resident"] > BUDGET + 2 * MIB:
        raise Failure("the guest is not split within its budget: %s" % status)
    if not status["page_ins"] or status["lost_pages"] or status["fault_us"]["count"] < 1:
        raise Failure("no paging: %s" % status)
    for host in bed.subhosts:
        if not host.status()["stored"]:
            raise Failure("%s holds nothing" % host.name)
    out, _ = expect(bed, "-c", bed.main.uri, "pages", "--json", "g1")
    print(out)
    out, _ = expect(bed, "-c", bed.main.uri, "status", "g1")
    if "split" not in out:
        raise Failure("status: %s" % out)

    # Its end leaves nothing behind, on any host.
    bed.main.virsh("destroy", "g1")
    wait_until("the pager's end of it", 20, lambda: not bed.main.guests())
    for host in bed.subhosts:
        wait_until("%s is empty" % host.name, 10, lambda h=host: not h.regions())
    if bed.source.guests() or bed.source.pids("qemu-system-x86_64"):
        raise Failure("something is left at the source")


def test(bed):
    guest = bed.define("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    test_fit(bed, guest)
    test_migrate(bed, guest)
    test_split(bed, guest)


main(test)
