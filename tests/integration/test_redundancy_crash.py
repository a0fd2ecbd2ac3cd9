#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's process is killed while second copies are made, and while pages leave for two places."""
# TEST-TIMEOUT: 240

import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import checks
from checks import eventually
from redundancy import Guest


def again(guest):
    guest.play("kill")
    guest.checks = guest.play("stats")["checks"]
    guest.play.start()


def whole(guest, without):
    """All is in two places: one of them may go, and nothing is missed."""
    eventually(lambda: guest.at_risk() == 0, "everything is in two places", 60)
    guest.accident(without, "kill")
    stats = guest.play.check()
    assert stats["lost"] == 0 and stats["errors"] == 0, stats


def crash(redundancy, hosts, seed, rounds=8):
    rng = random.Random(seed)
    with Guest(redundancy, hosts=hosts, ready=False, seed=seed) as guest:
        for i in range(rounds):
            guest.play("mode", ["random", "hot", "scan"][i % 3])
            guest.play("go")
            time.sleep(0.05 + rng.random() * 0.4)
            again(guest)
            eventually(lambda: guest.has_run(0), "the guest goes on", 20)
        guest.play.check()
        whole(guest, 0)


def test_replica_killed_while_paging_and_copying():
    crash("replica", 3, 5)


def test_backup_killed_while_paging_and_copying():
    crash("backup", 2, 6)


def test_killed_in_repair_after_a_loss():
    with Guest("replica", hosts=4) as guest:
        guest.accident(0, "kill")
        eventually(lambda: guest.play.event("MEMORY_AT_RISK"), "the loss is noticed", 20)
        time.sleep(0.05)
        for _ in range(3):
            again(guest)
            eventually(lambda: guest.has_run(0), "the guest goes on", 20)
        guest.play.check()
        eventually(lambda: guest.play("stats")["engine"]["chunks_copied"] > 0 and guest.at_risk() == 0,
                   "everything is in two places again", 60)
        whole(guest, 1)


if __name__ == "__main__":
    checks.main(globals())
