#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""What paces a move, by the command's options and by virsh in mid-move, on a guest that writes too fast.

--bandwidth, --downtime, --auto-converge, --parallel-connections, --timeout-suspend; migrate-setspeed,
migrate-setmaxdowntime.  A move that is given up leaves QEMU's settings as they were.
"""

import json
import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402
from moving import finish, job, start_move, still_at_source  # noqa: E402

RAM, FILL, BUDGET = 192 * MIB, 48 * MIB, 24 * MIB


def ask_qemu(bed, command):
    return json.loads(bed.source.virsh("qemu-monitor-command", "g1", json.dumps({"execute": command})))["return"]


def settings(bed):
    """What an operator sees, and what QEMU has been told."""
    parameters = ask_qemu(bed, "query-migrate-parameters")
    return {"downtime": int(bed.source.virsh("migrate-getmaxdowntime", "g1")),
            "speed": int(bed.source.virsh("migrate-getspeed", "g1")),
            "limit": parameters["downtime-limit"], "rate": parameters["max-bandwidth"],
            "switchover": parameters["avail-switchover-bandwidth"]}


def sent(bed, guest):
    """Bytes that the pager's streams have carried."""
    return bed.source.pager_call("outgoing-status", uuid=guest.uuid)["wire_bytes"]


def rounds(bed, guest):
    return bed.source.pager_call("outgoing-status", uuid=guest.uuid)["rounds"]


def expect_limit(bed, guest, rate, slack):
    """No more is sent than the rate allows; little enough seconds that the round does not end."""
    start, before = time.monotonic(), sent(bed, guest)
    wait_until("a while under the limit", 10, lambda: time.monotonic() > start + 3, 0.2)
    count = sent(bed, guest) - before
    seconds = time.monotonic() - start
    print("at most %d MiB/s: %.1f MiB in %.1f s" % (rate // MIB, count / MIB, seconds))
    if count > rate * seconds + slack:
        raise Failure("%d bytes in %.1f s are more than the limit allows" % (count, seconds))
    if not count:
        raise Failure("nothing moves")


def test_options(bed, guest):
    before = settings(bed)
    process = start_move(bed, guest, BUDGET, "--bandwidth", "3MiB", "--downtime", "7", "--auto-converge",
                         "--abort-on-error", "--parallel-connections", "3")
    now = settings(bed)
    print("before:", before, "now:", now)
    if (now["downtime"], now["limit"], now["speed"], now["rate"]) != (7, 7, 3, 3 * MIB):
        raise Failure("the options did not get there: %s" % now)
    on = {c["capability"] for c in ask_qemu(bed, "query-migrate-capabilities") if c["state"]}
    if "auto-converge" not in on or "multifd" in on:
        raise Failure("QEMU's capabilities: %s" % on)
    for host in bed.subhosts:
        # One more than asked for is the main host's, which will fault pages in.
        wait_until("three connections to %s" % host.name, 20, lambda h=host: h.regions()[0]["connections"] >= 3)
    expect_limit(bed, guest, 3 * MIB, 2 * MIB)
    bed.source.virsh("migrate-setspeed", "g1", "1")
    expect_limit(bed, guest, 1 * MIB, 2 * MIB)
    bed.source.virsh("domjobabort", "g1")
    finish(process, 1, "^error: the migration failed: libvirt: .*cancel")
    still_at_source(bed, guest)
    after = settings(bed)
    if (after["downtime"], after["limit"]) != (before["downtime"], before["limit"]):
        raise Failure("before %s, after %s" % (before, after))


def test_rounds(bed, guest):
    """After the first round more and more downtime is allowed, until an operator says how much it shall be."""
    before = settings(bed)
    process = start_move(bed, guest, BUDGET, "--bandwidth", "8MiB", "--downtime", "400", "--auto-converge")
    if settings(bed)["downtime"] != 8:
        raise Failure("it began with %s" % settings(bed))
    wait_until("more downtime", 60, lambda: settings(bed)["downtime"] >= 100, 0.1)
    wait_until("QEMU knows the rate that was seen", 20, lambda: settings(bed)["switchover"], 0.1)
    now = settings(bed)
    print("in round %d: %s" % (rounds(bed, guest), now))
    if not 1 * MIB < now["switchover"] < 64 * MIB:
        raise Failure("the rate that was seen: %s" % now)
    bed.source.virsh("migrate-setmaxdowntime", "g1", "20")
    seen = rounds(bed, guest)
    wait_until("rounds after it", 60, lambda: rounds(bed, guest) > seen + 1, 0.1)
    if settings(bed)["downtime"] != 20:
        raise Failure("the operator's downtime did not stay: %s" % settings(bed))
    bed.source.virsh("domjobabort", "g1")
    finish(process, 1, "^error: the migration failed: libvirt: .*cancel")
    still_at_source(bed, guest)
    after = settings(bed)
    if (after["downtime"], after["limit"], after["switchover"]) != (
            before["downtime"], before["limit"], before["switchover"]):
        raise Failure("before %s, after %s" % (before, after))


def suspended(bed, guest, *more):
    process = start_move(bed, guest, BUDGET, "--timeout", "3", "--timeout-suspend", *more)
    wait_until("the guest is suspended", 30, lambda: guest.state() == "paused", 0.05)
    return process


def test_suspend_interrupt(bed, guest):
    """Ctrl-C while it is suspended: it runs again."""
    process = suspended(bed, guest, "--bandwidth", "3MiB")
    os.kill(bed.source.pids("split-migrate")[0], signal.SIGINT)
    finish(process, 1, "^error: interrupted: the migration was cancelled$")
    still_at_source(bed, guest)


def test_suspend(bed, guest):
    """Which would never end: so it is suspended, all of it is moved, and it runs there."""
    process = suspended(bed, guest, "--bandwidth", "6MiB", "--persistent", "--undefinesource")
    out, err = process.communicate(timeout=90)
    print(out)
    if process.returncode or "Suspending the guest" not in err:
        raise Failure("ended with %d: %s%s" % (process.returncode, out, err))
    if job(bed, guest) or guest.state():
        raise Failure("the source still has it")
    guest.at(bed.main)
    if guest.state() != "running" or not re.search(r"Persistent: +yes", bed.main.virsh("dominfo", "g1")):
        raise Failure("it is '%s' at the destination: %s" % (guest.state(), bed.main.virsh("dominfo", "g1")))
    guest.expect_sweep(60)
    guest.check_clean()


def test(bed):
    guest = bed.enabled("g1", RAM, "memguest.size=%d memguest.rate=6000 memguest.write=90 memguest.hot=20" % FILL)
    for step in (test_options, test_rounds, test_suspend_interrupt, test_suspend):
        start = time.monotonic()
        step(bed, guest)
        print("%s: %.1f s" % (step.__name__, time.monotonic() - start), flush=True)


main(test)
