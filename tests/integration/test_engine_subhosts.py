#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sub-hosts that freeze, die, come back empty, or are full, and what the guest sees of it."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import checks
from checks import eventually
from engineplay import EnginePlay, with_region
from subhost import MIB, Subhost

SIZE = 64 * MIB


def guest(subhosts, **options):
    values = dict(size=["47M", "15M"], budget="24M", low="16M", high="20M", local=15, remote=60,
                  threads=4, granule="256K", lost_ms=2000)
    values.update(options)
    return EnginePlay([s.unix for s in subhosts], **values)


def kill(subhost):
    subhost.process.kill()
    subhost.process.wait()
    subhost.stop = lambda: None


def test_frozen_for_a_moment():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE), guest([one, two], lost_ms=30000) as play:
        play("go")
        time.sleep(0.5)
        for _ in range(3):
            two.process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            two.process.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        stats = play.play(0.5)
        assert stats["engine"]["lost_pages"] == 0, stats
        play.check()


def test_frozen_past_the_time_limit_of_a_connection():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE), guest([one, two], lost_ms=9000) as play:
        play("go")
        time.sleep(0.5)
        two.process.send_signal(signal.SIGSTOP)
        eventually(lambda: play.event("SUBHOST_LOST"), "an event", 8)
        two.process.send_signal(signal.SIGCONT)
        eventually(lambda: play.event("SUBHOST_BACK"), "an event", 8)
        before = play("stats")["checks"]
        play("go")
        eventually(lambda: play("stats")["checks"] > before + 100, "the guest runs", 20)
        stats = play("stats")
        assert stats["engine"]["lost_pages"] == 0, stats
        play.check()
        assert play.event("SUBHOST_LOST")[0]["subhost"] == "sub1"
        assert not play.event("PAGES_LOST")


def test_killed_loses_exactly_its_pages():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE), guest([one, two]) as play:
        play.play(1)
        held = play.still_pages()
        kill(two)
        before = time.monotonic()
        play.check()
        took = time.monotonic() - before
        assert took > 1.5, took
        stats = play("stats")
        after = play("pages")
        # What was only there; page-out has stopped going there before.
        assert stats["lost"] == after["lost"] == held["subhosts"][1]["remote"], (stats, held)
        assert after["subhosts"][1]["remote"] == 0
        eventually(lambda: sum(e["pages"] for e in play.event("PAGES_LOST")) == stats["lost"],
                   "the operator knows", 5)
        assert len(play.event("PAGES_LOST")) < 20
        assert play.event("SUBHOST_LOST")
        # The rest lives on.
        before = play("stats")["checks"]
        play("go")
        eventually(lambda: play("stats")["checks"] > before + 1000, "the guest runs", 20)
        stats = play.check()
        assert stats["lost"] == after["lost"], stats
        play("kill")
        play.start()
        play.check()
        assert play("stats")["lost"] == after["lost"]


def test_region_that_comes_back_empty():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE) as control, \
            guest([one, two], lost_ms=20000) as play:
        play.play(1)
        held = play.still_pages()["subhosts"][1]
        control.call("region-delete", name="11111111-2222-3333-4444-555555555555")
        with with_region(two, SIZE):
            stats = play.check()
            lost = play("stats")["lost"]
            # Page-out may have dropped clean pages between our count and the loss.
            assert held["remote"] <= lost <= held["remote"] + held["clean"], (lost, held)
            eventually(lambda: sum(e["pages"] for e in play.event("PAGES_LOST")) == lost,
                       "the operator knows of %d pages" % lost, 5)
            stats = play.play(1)
            assert stats["errors"] == 0 and stats["lost"] == lost, stats
            play.check()


def test_full_subhost_moves_chunks_to_the_other():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE, limit=20 * MIB), \
            guest([one, two], local=15, remote=30) as play:
        play("mode", "random")
        play("go")
        eventually(lambda: play("stats")["engine"]["write_refusals"], "the full one refuses", 30)
        before = play("stats")["engine"]["page_outs"]
        eventually(lambda: play("stats")["engine"]["page_outs"] > before + 1000, "page-out goes on", 30)
        play.check()
        assert play("stats")["lost"] == 0


def test_no_room_anywhere_lets_the_guest_go_on():
    with Subhost(memory="512M") as one, with_region(one, SIZE, limit=20 * MIB), \
            guest([one], local=20, remote=20) as play:
        play("mode", "random")
        play("go")
        eventually(lambda: play.event("OVER_BUDGET"), "an event", 20)
        before = play("stats")["checks"]
        eventually(lambda: play("stats")["checks"] > before, "the guest runs", 20)
        assert len(play.event("OVER_BUDGET")) < 5, play.events
        play.check()


if __name__ == "__main__":
    checks.main(globals())
