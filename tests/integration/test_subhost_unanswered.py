#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""A sub-host takes connections and swallows all WRITEs, or all READs: told once, and once when it is over."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import eventually
from engineplay import NAME
from gate import Gated
from nbdpeer import READ, WRITE

# A connection without an answer lasts for a third of it, and so for longer than one that is no good at once.
LOST_MS = 3600


def told(guest):
    """What the operator was told of the sub-host."""
    return [e["name"] for e in guest.play.events if e.get("subhost") == "sub1"]


def swallow(guest, kind, name):
    """From now on, under load; the operator is told once, however often connections are made."""
    guest.gate.swallowed = {kind}
    eventually(lambda: name in told(guest), "the operator is told", 20)
    tries = guest.gate.n_swallowed
    end = time.monotonic() + 2 * LOST_MS / 1000
    eventually(lambda: guest.gate.n_swallowed > tries + 2 and time.monotonic() > end, "it was tried again", 40)
    assert told(guest) == [name], guest.play.events


def answers(guest, name):
    guest.gate.swallowed = frozenset()
    eventually(lambda: name in told(guest), "the operator is told that it is over", 20)


def moves(guest, key, pages=500):
    before = guest.stats()["engine"][key]
    eventually(lambda: guest.stats()["engine"][key] > before + pages, "%s go on" % key, 30)


def whole(guest):
    stats = guest.play.check()
    assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
    guest.play("go")


def used(guest, key):
    """The region serves such requests."""
    before = guest.regions[1].call("stats")[key]
    eventually(lambda: guest.regions[1].call("stats")[key] > before, "%s of it" % key, 40)


def second_copies(kind, gone, back, goes_on):
    """Memory is in two places without it, and with it again; @gone and @back are what the operator is told."""
    with Gated("replica", hosts=3, lost_ms=LOST_MS) as guest:
        swallow(guest, kind, gone)
        eventually(lambda: guest.stats()["engine"]["subhosts"][1]["pages"] == 0 and guest.at_risk() == 0,
                   "all is in two places without it", 60)
        for key in goes_on:
            moves(guest, key)
        whole(guest)
        answers(guest, back)
        eventually(lambda: guest.regions[1].region(NAME)["stored"] == 0, "its old copies are gone", 30)
        guest.accident(0, "kill")
        used(guest, "writes")
        eventually(lambda: guest.at_risk() == 0, "everything is in two places again", 60)
        whole(guest)
        assert told(guest) == [gone, back], guest.play.events


def test_writes_single_copies():
    with Gated("none", hosts=2, slab="2M", remote=30, ready=False, lost_ms=LOST_MS) as guest:
        swallow(guest, WRITE, "SUBHOST_UNWRITABLE")
        moves(guest, "page_outs")
        used(guest, "reads")
        whole(guest)
        answers(guest, "SUBHOST_WRITABLE")
        used(guest, "writes")
        whole(guest)
        assert told(guest) == ["SUBHOST_UNWRITABLE", "SUBHOST_WRITABLE"], guest.play.events


def test_writes_replica():
    second_copies(WRITE, "SUBHOST_UNWRITABLE", "SUBHOST_WRITABLE", ["page_outs"])


def test_drain_while_writes_are_swallowed():
    with Gated("none", hosts=3, slab="2M", remote=30, ready=False, lost_ms=LOST_MS) as guest:
        swallow(guest, WRITE, "SUBHOST_UNWRITABLE")
        assert guest.regions[1].region(NAME)["stored"] > 0
        assert guest.play("drain", 1, 1)["err"] == 0
        eventually(lambda: guest.play.event("SUBHOST_EMPTY"), "its memory moves off by reading", 60)
        assert guest.regions[1].region(NAME)["stored"] == 0
        whole(guest)


def test_reads_single_copies():
    """The guest waits for what it has there, and nothing more goes there meanwhile."""
    with Gated("none", hosts=2, slab="2M", remote=30, ready=False, lost_ms=LOST_MS, lost_action="wait") as guest:
        swallow(guest, READ, "SUBHOST_LOST")
        written = guest.regions[1].call("stats")["writes"]
        tries = guest.gate.n_swallowed
        eventually(lambda: guest.gate.n_swallowed > tries, "it is tried", 20)
        assert guest.regions[1].call("stats")["writes"] == written, "pages go where they cannot be read"
        answers(guest, "SUBHOST_BACK")
        used(guest, "reads")
        used(guest, "writes")
        whole(guest)
        assert told(guest) == ["SUBHOST_LOST", "SUBHOST_BACK"], guest.play.events


def test_reads_replica():
    second_copies(READ, "SUBHOST_LOST", "SUBHOST_BACK", ["page_ins", "page_outs"])


if __name__ == "__main__":
    checks.main(globals())
