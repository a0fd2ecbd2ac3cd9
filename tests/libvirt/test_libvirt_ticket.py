#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""A migration whose ticket has expired before memory is under way: one sentence, and the guest stays.

The controller stands still between the reservation and the start for longer than the ticket lasts.  The
same move with a ticket that lasts succeeds.
"""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402
from moving import finish, still_at_source  # noqa: E402

RAM, FILL, BUDGET = 192 * MIB, 64 * MIB, 32 * MIB


def move(bed, ticket_seconds, env=None):
    policy = bed.policy(BUDGET)
    with open(policy, "a") as file:
        file.write("[migration]\nticket-seconds = %d\n" % ticket_seconds)
    return bed.command("migrate", "--live", "--profile", "0", "--policy", policy, "g1", bed.main.uri, env=env)


def stopped(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False  # it has ended


def test_expired(bed, guest):
    process = move(bed, 1, {"SPLIT_MIGRATE_FAULT": "controller-stop-before-round-1"})
    pid = wait_until("the controller stands still", 60, lambda: next(
        (pid for pid in bed.source.pids("split-migrate") if stopped(pid)), None), 0.05)
    if guest.uuid not in bed.main.guests() or sum(len(host.regions()) for host in bed.subhosts) != 2:
        raise Failure("nothing is reserved")
    time.sleep(1.2)  # the ticket's time
    wait_until("nsenter stops as its child did", 10, lambda: stopped(process.pid), 0.05)
    for waiting in process.pid, pid:
        os.kill(waiting, signal.SIGCONT)
    finish(process, 1, "^error: .*ticket.* has expired")
    still_at_source(bed, guest)


def test_lasts(bed, guest):
    process = move(bed, 600)
    out, err = process.communicate(timeout=120)
    if process.returncode:
        raise Failure("migrate: %d %s%s" % (process.returncode, out, err))
    guest.at(bed.main)
    guest.expect_sweep(60)
    guest.check_clean()
    bed.main.virsh("destroy", "g1")
    wait_until("the pager's end of it", 20, lambda: not bed.main.guests())


def test(bed):
    guest = bed.enabled("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    test_expired(bed, guest)
    test_lasts(bed, guest)


main(test)
