#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of the engine is killed with faults and page-out under way; the next one goes on."""

import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import checks
from checks import eventually
from engineplay import EnginePlay, with_region
from subhost import MIB, Subhost

SIZE = 64 * MIB


def crash(rounds, seed, **options):
    rng = random.Random(seed)
    values = dict(size=["47M", "15M"], budget="24M", low="16M", high="20M", local=15, remote=60,
                  threads=4, granule="256K", seed=seed)
    values.update(options)
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE), \
            EnginePlay([one.unix, two.unix], **values) as play:
        for i in range(rounds):
            play("mode", ["random", "hot", "scan"][i % 3])
            play("go")
            time.sleep(0.1 + rng.random() * 0.4)
            play("kill")
            time.sleep(rng.random() * 0.1)
            before = play("stats")["checks"]
            play.start()
            eventually(lambda seen=before: play("stats")["checks"] > seen, "the guest goes on", 20)
            stats = play("stats")
            play.within(stats, 25 * MIB)
        play.check()
        assert play("pages")["lost"] == 0


def test_killed_while_paging():
    crash(12, 3)


def test_killed_while_sampling_and_prefetching():
    crash(8, 4, sample_ms=10, prefetch=32)


def test_killed_at_the_beginning():
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            EnginePlay([one.unix], size="62M", budget="24M", low="16M", high="20M", local=15,
                       remote=60, threads=3) as play:
        play("go")
        for pause in 0.0, 0.002, 0.005, 0.01, 0.02:
            play("kill")
            play.start()
            time.sleep(pause)
        time.sleep(0.5)
        play.check()


if __name__ == "__main__":
    checks.main(globals())
