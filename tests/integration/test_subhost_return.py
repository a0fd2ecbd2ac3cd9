#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A slab whose pages are all on the main host again is given back; one that has a page which can leave unsent is not."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import eventually
from engineplay import NAME, EnginePlay, with_region
from subhost import MIB, Subhost

SIZE = 32 * MIB


def test_given_back():
    with Subhost() as host, with_region(host, SIZE, slab=4 * MIB) as control:
        with EnginePlay([(host.unix, host.control_address)], size="32M", budget="12M", low="6M", high="9M", local=10,
                        remote=60, threads=2) as play:
            play("mode", "random")
            play.play(1)
            play.check()
            before = control.region(NAME)
            assert before["slabs"] == 8, before
            # Room for everything: the guest reads and writes all of it.
            assert play("budget", 40 * MIB, 36 * MIB, 38 * MIB)["err"] == 0
            play("go")
            eventually(lambda: play("stats")["engine"]["slabs_returned"] >= 4, "slabs are given back", 60)
            stats = play.check()
            assert stats["lost"] == 0, stats
            after = control.region(NAME)
            assert after["slabs"] <= 4 and after["stored"] < before["stored"], (before, after)
            # And they can leave again.
            assert play("budget", 12 * MIB, 6 * MIB, 9 * MIB)["err"] == 0
            play("go")
            eventually(lambda: play("stats")["resident"] <= 12 * MIB, "they leave again", 30)
            stats = play.check()
            assert stats["lost"] == 0, stats


if __name__ == "__main__":
    checks.main(globals())
