#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sub-hosts are killed, stopped, cut off and filled under load; with a replica or a backup nothing is lost."""
# TEST-TIMEOUT: 300

import contextlib
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import checks
from checks import eventually
from engineplay import NAME
from network import Network
from redundancy import Guest
from subhost import MIB, PAGE


def survives(guest, index, how):
    """An accident under load: the guest goes on without the sub-host, and nothing is lost."""
    play = guest.play
    play("go")
    began = time.monotonic()
    undo = guest.accident(index, how)
    eventually(lambda: guest.has_run(2000), "the guest runs without the sub-host", 30)
    eventually(lambda: play.event("SUBHOST_LOST"), "the operator is told", 15)
    stats = play.check()
    assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
    assert not play.event("PAGES_LOST"), play.events
    print("%s, %s: longest wait of the guest %.0f ms, nothing lost (after %.1f s: %d pages from the other place)" % (
        guest.redundancy, how, guest.longest_ms, time.monotonic() - began, stats["engine"]["fell_over"]))
    return undo


def restored(guest, seconds=60):
    eventually(lambda: guest.at_risk() == 0, "everything is in two places again", seconds)


def test_pages_count_on_each_of_their_sub_hosts():
    """What the pager tells to be on its sub-hosts is all they were given; what is only there counts once."""
    with Guest("replica", hosts=3) as guest:
        guest.play("halt")
        pages = guest.play.still_pages()
        restored(guest)
        subhosts = guest.stats()["engine"]["subhosts"]
        assert sum(s["pages"] for s in subhosts) == 2 * (pages["remote"] + pages["clean"]), (pages, subhosts)
        assert sum(s["remote"] for s in subhosts) == pages["remote"], (pages, subhosts)
        for region, subhost in zip(guest.regions, subhosts):
            assert 0 < subhost["pages"] * PAGE <= region.region(NAME)["stored"], (pages, subhosts)


def test_replica_killed():
    with Guest("replica", hosts=3) as guest:
        survives(guest, 1, "kill")
        restored(guest)
        assert guest.play.event("MEMORY_AT_RISK"), guest.play.events


def test_replica_stopped_and_back():
    with Guest("replica", hosts=3) as guest:
        undo = survives(guest, 0, "stop")
        restored(guest)
        undo()
        eventually(lambda: guest.play.event("SUBHOST_BACK"), "it is back", 15)
        guest.run_for(2)
        guest.play.check()


def test_replica_both_killed_one_after_the_other():
    with Guest("replica", hosts=3) as guest:
        survives(guest, 0, "kill")
        restored(guest)
        survives(guest, 1, "kill")


def test_replica_cut_off():
    with Network() as network, Guest("replica", hosts=3, networks={1: network}) as guest:
        undo = survives(guest, 1, "cut")
        restored(guest)
        undo()
        eventually(lambda: guest.play.event("SUBHOST_BACK"), "it is back", 15)
        guest.play("go")
        guest.run_for(1)
        guest.play.check()


def fills(guest):
    """Sub-host 1 has no room for all that would go there: what is full is left alone, and nothing is lost."""
    play = guest.play
    eventually(lambda: play("stats")["engine"]["write_refusals"] > 0, "it refuses pages", 30)
    eventually(lambda: guest.has_run(2000), "the guest runs on", 30)
    stats = play.check()
    assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
    print("%s, fill: longest wait of the guest %.0f ms, nothing lost" % (guest.redundancy, guest.longest_ms))


def test_replica_filled():
    with Guest("replica", hosts=3, limit={1: 24 * MIB}, remote=50) as guest:
        fills(guest)


def test_replica_of_two_makes_do_with_one():
    with Guest("replica", hosts=2) as guest:
        survives(guest, 0, "kill")
        eventually(lambda: guest.at_risk() > 0, "what is there is at risk", 10)
        outs = guest.play("stats")["engine"]["page_outs"]
        guest.play("go")
        eventually(lambda: guest.play("stats")["engine"]["page_outs"] > outs + 100, "page-out goes on", 20)
        guest.play.check()


def risk(guest):
    """Bytes at risk, but for what is so only because a sub-host that is well is slow to answer for a moment."""
    seen = []
    while len(seen) < 2:
        subhosts = guest.stats()["engine"]["subhosts"]
        well = all(subhost["connected"] for subhost in subhosts[1:])
        seen = seen + [sum(subhost["at_risk"] for subhost in subhosts) * PAGE] if well else []
    return min(seen)


def test_what_is_here_too_stays_while_at_risk():
    """As long as no second copy can be made, no page becomes one of those that are in one place only."""
    with contextlib.ExitStack() as stack, Guest("replica", hosts=3) as guest:
        guest.play("halt")
        guest.play("writes", 0)
        for host in guest.hosts[1:]:  # nobody has room for more than the odd copy
            control = stack.enter_context(host.control())
            rest = control.call("query-status")["free"] - 2 * MIB
            control.call("region-create", name="other", size=rest, reserve=rest)
        guest.play("go")
        guest.accident(0, "kill")
        eventually(lambda: guest.stats()["engine"]["subhosts"][0]["pages"] == 0, "it is done without", 30)
        least, began = risk(guest), guest.stats()
        assert least > 0, began
        end = time.monotonic() + 5
        while time.monotonic() < end:
            now = risk(guest)
            assert now <= least, (now, least)
            least = now
        stats = guest.stats()
        assert stats["engine"]["page_ins"] > began["engine"]["page_ins"] + 100, (began, stats)
        assert stats["engine"]["clean_drops"] > began["engine"]["clean_drops"], "others are dropped"
        guest.play.check()


def test_backup_killed():
    with Guest("backup", hosts=2) as guest:
        survives(guest, 1, "kill")
        restored(guest)


def test_backup_alone():
    with Guest("backup", hosts=1) as guest:
        survives(guest, 0, "kill")
        guest.play("go")
        guest.run_for(2)
        stats = guest.play.check()
        assert stats["lost"] == 0, stats


def test_backup_on_a_slow_disk():
    """A page that takes its time to come from the disk is waited for by whoever touched it, and by nobody else."""
    os.environ["SPLIT_MIGRATE_FAULT"] = "backup-slow-page"
    try:
        with Guest("backup", hosts=2, fault_threads=1) as guest:
            guest.accident(1, "kill")
            began = time.monotonic()
            killed = guest.stats()["engine"]["page_ins"]
            eventually(lambda: guest.stats()["engine"]["fell_over"] > 0 and guest.has_run(2000), "other faults are answered", 9)
            stats = guest.stats()
            assert stats["engine"]["page_ins"] > killed + 100, (killed, stats)
            assert time.monotonic() < began + 11, "the disk was still at its first page"
            stats = guest.play.check()
            assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
    finally:
        del os.environ["SPLIT_MIGRATE_FAULT"]


def test_backup_filled():
    with Guest("backup", hosts=2, limit={1: 18 * MIB}, remote=40) as guest:
        fills(guest)


def test_backup_cut_off():
    with Network() as network, Guest("backup", hosts=2, networks={1: network}) as guest:
        survives(guest, 1, "cut")
        restored(guest)


def test_backup_stopped():
    with Guest("backup", hosts=1) as guest:
        survives(guest, 0, "stop")()
        eventually(lambda: guest.play.event("SUBHOST_BACK"), "it is back", 15)
        guest.play("go")
        guest.run_for(1)
        guest.play.check()


if __name__ == "__main__":
    checks.main(globals())
