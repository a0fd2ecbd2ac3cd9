#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine pages a native guest in and out; the guest checks every byte it touches."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import checks
from checks import eventually
from engineplay import EnginePlay, with_region
from subhost import MIB, PAGE, Subhost

SIZE = 64 * MIB
SLACK = 1 * MIB


def guest(subhosts, **options):
    """A guest of two blocks and a gap, of which about three quarters exist."""
    values = dict(size=["47M", "15M"], budget="24M", low="16M", high="20M", local=15, remote=60,
                  threads=3, granule="256K")
    values.update(options)
    return EnginePlay([s.unix for s in subhosts], **values)


def test_random_hot_and_scanning_guest():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE), with_region(two, SIZE), guest([one, two]) as play:
        for mode in "random", "hot", "scan":
            play("mode", mode)
            stats = play.play(2)
            play.within(stats, 24 * MIB + SLACK)
        play("mode", "random")
        play.play_until(lambda e: e["page_ins"] > 1000 and e["page_outs"] > 1000 and e["clean_drops"] > 100 and
                        e["zero_drops"] > 10 and e["wp_faults"] > 100 and e["zero_fills"] > 100, "all kinds of paging")
        engine = play.check()["engine"]
        assert engine["lost_pages"] == 0 and engine["install_errors"] == 0, engine
        assert engine["fault_us"]["count"] == engine["page_ins"], engine
        assert 0 < engine["fault_us"]["p50"] <= engine["fault_us"]["p99"], engine
        assert all(s["connected"] and s["pages"] > 0 for s in engine["subhosts"]), engine
        assert play("reset")["err"] == 0
        assert play("stats")["engine"]["page_ins"] == 0
        assert not [e for e in play.events if e["name"] != "OVER_BUDGET"], play.events


def test_prefetch_and_small_granule_over_tcp():
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([], subhost="%s,11111111-2222-3333-4444-555555555555" % one.tcp, prefetch=64,
                  granule="4K", predictor="fifo") as play:
        play("mode", "scan")
        stats = play.play_until(lambda e: e["prefetched"] > 1000, "pages come before they are asked for")
        play.within(stats, 24 * MIB + SLACK)
        play.check()


def test_pages_in_use_stay():
    """The same guest, its hot pages scattered: victims by page cost it fewer page-ins than by chunk."""
    share = {}
    for policy in "sweep", "smemv":
        with Subhost(memory="512M") as one, with_region(one, SIZE), \
                guest([one], predictor=policy) as play:
            play("mode", "hot")
            before = play.play(1)
            after = play.play(2)
            page_ins = after["engine"]["page_ins"] - before["engine"]["page_ins"]
            share[policy] = page_ins / (after["checks"] - before["checks"])
            play.check()
    assert share["sweep"] < share["smemv"], share


def test_pages_in_use_are_seen_and_stay_protected():
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([one], sample_ms=20, budget="48M", high="40M", low="32M") as play:
        play("mode", "hot")
        play.play_until(lambda e: e["in_use"] > 100 and e["wp_faults"] > 10, "seen, and still protected")
        play.check()


def test_page_tables_that_cannot_be_seen():
    """Pages leave, and are whole; which ones is no matter."""
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([one], pagemap=0, budget="48M", high="40M", low="32M") as play:
        play("mode", "hot")
        play.play_until(lambda e: e["page_outs"] > 1000 and e["page_ins"] > 1000, "paging")
        assert play.check()["engine"]["in_use"] == 0


def test_zapped_pages_come_back_without_the_pager():
    """What is here is mapped again by the kernel alone."""
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([one], local=100, remote=0, budget="96M", high="88M", low="80M") as play:
        play.check()
        play("kill")
        play("zap", 0, 1024)
        assert play("bench", 0, 1024, 1)["count"] == 1024
        play("start")
        play.check()


def test_lower_budget_while_running():
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([one], budget="56M", high="52M", low="48M") as play:
        play.play(1)
        play("go")
        assert play("budget", 16 * MIB, 8 * MIB, 12 * MIB)["err"] == 0
        eventually(lambda: play("stats")["resident"] <= 16 * MIB, "the new budget", 10)
        play("stats")
        time.sleep(1)
        stats = play("stats")
        play.within(stats, 16 * MIB + SLACK)
        play("halt")
        assert play("budget", 16 * MIB, 4 * MIB, 6 * MIB)["err"] == 0
        eventually(lambda: play("stats")["resident"] <= 4 * MIB, "the low watermark", 10)
        play("go")
        assert play("budget", 16 * MIB, 12 * MIB, 20 * MIB)["err"] < 0
        assert play("budget", 40 * MIB, 30 * MIB, 36 * MIB)["err"] == 0
        play("go")
        eventually(lambda: play("stats")["resident"] > 20 * MIB, "it takes what it may", 20)
        play.check()


def test_fights_over_few_pages():
    """Every access races with the eviction of the same page: write, pread, WRITE, punch."""
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([one], budget="1M", low="128K", high="512K", local=0, remote=90, threads=6,
                  granule="64K") as play:
        play("work", 0, 300)
        play.play(3)
        stats = play.play_until(lambda e: e["page_outs"] > 1000, "many fights")
        play.within(stats, 1 * MIB + SLACK)
        play.check()


def runs_of_thread(parent, name):
    """How often a thread of one of @parent's children was given a CPU so far."""
    with open("/proc/%d/task/%d/children" % (parent, parent)) as file:
        children = file.read().split()
    for child in children:
        for task in os.listdir("/proc/%s/task" % child):
            with open("/proc/%s/task/%s/comm" % (child, task)) as file:
                if file.read().strip() == name:
                    with open("/proc/%s/task/%s/schedstat" % (child, task)) as stat:
                        return int(stat.read().split()[2])
    raise AssertionError("no thread %s" % name)


def test_faults_in_crowds_are_answered_by_more_threads():
    """One fault thread waits; the others are called when many faults come together, and only then."""
    with Subhost(memory="512M") as one, with_region(one, SIZE), \
            guest([one], budget="4M", low="1M", high="2M", local=0, remote=90, threads=16,
                  fault_threads=3) as play:
        before = [runs_of_thread(play.process.pid, "fault-%d" % i) for i in range(2)]
        play.play_until(lambda e: e["page_ins"] > 1000 and
                        runs_of_thread(play.process.pid, "fault-1") > before[1] + 50, "the second thread helps")
        play.check()
        assert play("budget", 64 * MIB, 50 * MIB, 60 * MIB)["err"] == 0
        before = runs_of_thread(play.process.pid, "fault-1")
        play("bench", 0, 200, 17)  # one fault at a time, and room for all
        assert runs_of_thread(play.process.pid, "fault-1") - before < 20
        play.check()


def test_discarded_pages_read_as_zero_and_are_trimmed():
    with Subhost(memory="512M") as one, with_region(one, SIZE) as control, guest([one]) as play:
        play.play(1)
        stored = control.region("11111111-2222-3333-4444-555555555555")["stored"]
        for first in range(0, 8192, 1024):
            assert play("discard", first, 700)["err"] == 0
            play("go")
        eventually(lambda: control.region("11111111-2222-3333-4444-555555555555")["stored"] <
                   stored - 8 * MIB, "TRIMs", 10)
        play.play(2)
        play.check()
        assert play("stats")["engine"]["discards"] >= 5600 * 0.9


def test_discarded_pages_are_written_again_under_page_out():
    """No TRIM of a page's old copy takes the new one, which goes out at once for want of room."""
    with Subhost(memory="512M") as one, with_region(one, SIZE) as control, \
            guest([one], budget="1M", low="128K", high="512K", local=0, remote=90, threads=6,
                  granule="4K") as play:
        play("work", 0, 400)
        began = time.monotonic()
        rounds = discards = 0
        while discards <= 5000 or time.monotonic() < began + 5:
            assert time.monotonic() < began + 60, "only %d discards" % discards
            assert play("discard", rounds * 37 % 380, 7)["err"] == 0
            play("go")
            rounds += 1
            if rounds % 50 == 0:
                discards = play("stats")["engine"]["discards"]
        play("halt")
        stats = play("stats")
        assert stats["engine"]["lost_pages"] == 0, stats
        play.check()
        assert control.region("11111111-2222-3333-4444-555555555555")["stored"] <= SIZE


def test_stop_and_start_again():
    with Subhost(memory="512M") as one, with_region(one, SIZE), guest([one]) as play:
        for _ in range(4):
            play("go")
            time.sleep(0.4)
            assert play("stop")["status"] == 0
            time.sleep(0.1)
            play.start()
            play.within(play("stats"), 24 * MIB + SLACK)
        play.check()


if __name__ == "__main__":
    checks.main(globals())
