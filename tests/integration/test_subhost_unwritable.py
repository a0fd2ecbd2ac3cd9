#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""A sub-host can be read, but page-out gets no connection to it: told once, others take the pages, and it comes back."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import eventually
from engineplay import NAME
from gate import Gated
from redundancy import LOST_MS


def of(guest, *names):
    return [e for e in guest.play.events if e["name"] in names]


def shut(guest):
    """Shut the gate under load; the operator is told once, that and nothing else."""
    play = guest.play
    guest.gate.close_writers()
    eventually(lambda: of(guest, "SUBHOST_UNWRITABLE"), "the operator is told", 10 + LOST_MS / 1000)
    tries = guest.gate.turned_away
    eventually(lambda: guest.gate.turned_away > tries + 3, "more connections were turned away", 20)
    assert guest.play("stats")["engine"]["page_ins"] > 0
    told = of(guest, "SUBHOST_UNWRITABLE", "SUBHOST_WRITABLE", "SUBHOST_LOST", "SUBHOST_BACK")
    assert [(e["name"], e["subhost"]) for e in told] == [("SUBHOST_UNWRITABLE", "sub1")], play.events


def opened(guest, need=lambda: None):
    """Open it again, under load, and let it be needed: pages go there once more."""
    writes = guest.regions[1].call("stats")["writes"]
    guest.gate.open_again()
    eventually(lambda: of(guest, "SUBHOST_WRITABLE"), "the operator is told", 15)
    need()
    guest.play("go")
    eventually(lambda: guest.regions[1].call("stats")["writes"] > writes, "pages go there again", 40)
    stats = guest.play.check()
    assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
    told = [e["name"] for e in guest.play.events if e.get("subhost") == "sub1"]
    assert told == ["SUBHOST_UNWRITABLE", "SUBHOST_WRITABLE"], guest.play.events


def test_single_copies():
    with Gated("none", hosts=2, slab="2M", remote=30, ready=False) as guest:
        shut(guest)
        play = guest.play
        held = play("pages")["subhosts"][1]
        before = play("stats")["engine"]
        eventually(lambda: play("stats")["engine"]["page_outs"] > before["page_outs"] + 500, "page-out goes on", 20)
        # What is there is read, and nothing is added.
        after = play("pages")["subhosts"][1]
        assert after["remote"] + after["clean"] <= held["remote"] + held["clean"], (held, after)
        assert play("stats")["engine"]["page_ins"] > before["page_ins"], before
        play.check()
        play("go")
        opened(guest)


def test_replica_is_made_elsewhere():
    with Gated("replica", hosts=3) as guest:
        def need():
            """What it has kept is old: it begins anew, as the second place of what another one had."""
            eventually(lambda: guest.regions[1].region(NAME)["stored"] == 0, "its old copies are gone", 30)
            guest.accident(0, "kill")

        shut(guest)
        subhost = lambda: guest.stats()["engine"]["subhosts"][1]
        eventually(lambda: subhost()["pages"] == 0 and guest.at_risk() == 0, "all is in two places without it", 60)
        guest.play.check()
        guest.play("go")
        opened(guest, need)
        eventually(lambda: guest.at_risk() == 0, "everything is in two places again", 60)


def test_replica_of_two_makes_do_with_one():
    with Gated("replica", hosts=2) as guest:
        shut(guest)
        outs = guest.stats()["engine"]["page_outs"]
        eventually(lambda: guest.stats()["engine"]["page_outs"] > outs + 500, "page-out goes on", 20)
        guest.play.check()
        guest.play("go")
        opened(guest)
        eventually(lambda: guest.at_risk() == 0, "everything is in two places again", 60)


if __name__ == "__main__":
    checks.main(globals())
