#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# NOT-UNDER: tsan (ten guests at once are too slow)
"""Where page-out puts a new slab: where there is room; not where there is none; and what if there is none anywhere."""

import contextlib
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import eventually
from engineplay import NAME, EnginePlay, with_region
from subhost import MIB, Subhost

SIZE = 64 * MIB


def guest(hosts, name=NAME, **options):
    values = dict(size="48M", budget="12M", low="8M", high="10M", local=20, remote=0, threads=2, granule="256K", slab="2M")
    values.update(options)
    return EnginePlay([(host.unix, host.control_address) for host in hosts], name=name, **values)


def last_said(play):
    return [e["name"] for e in play.events if e["name"] in ("SUBHOSTS_FULL", "SUBHOSTS_ROOM")][-1]


def test_new_slabs_go_where_the_room_is():
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, with_region(one, SIZE, limit=4 * MIB) as small, \
            with_region(two, SIZE) as large, guest([one, two]) as play:
        stats = play.play_until(lambda e: e["page_outs"] > 1000 and e["slabs_placed"] >= 10, "slabs are placed")["engine"]
        assert stats["write_refusals"] == 0 and 0 < stats["room_asked"] <= 2 * stats["slabs_placed"], stats
        play.check()
        assert large.region(NAME)["stored"] > 4 * small.region(NAME)["stored"], stats


def test_slabs_are_counted():
    with Subhost(memory="512M") as host, with_region(host, SIZE) as control:
        with host.peer(NAME) as peer:
            peer.write(MIB, b"x" * 4096)
            peer.write(50 * MIB, b"x" * 4096)
            assert (control.region(NAME)["slab"], control.region(NAME)["slabs"]) == (64 * MIB, 1)
            control.call("region-create", name="r", size=10 * SIZE, slab=16 * MIB)
            with host.peer("r") as other:
                for at in (0, 3 * MIB, 15 * MIB, 16 * MIB, 200 * MIB):
                    other.write(at, b"x" * 4096)
                assert control.region("r")["slabs"] == 3
                other.trim(0, 16 * MIB)
                assert control.region("r")["slabs"] == 2
            assert control.call("region-query", name="r")["room"] == 10 * SIZE if 10 * SIZE < 512 * MIB else 512 * MIB - 4 * 4096
            peer.trim(0, SIZE)
            assert control.region(NAME)["slabs"] == 0


def test_full_everywhere_and_room_again():
    with Subhost(memory="48M") as one, one.control() as other:
        other.call("region-create", name="other", size=SIZE)
        with one.peer("other") as peer:
            for at in range(0, 40 * MIB, 8 * MIB):
                peer.write(at, os.urandom(8 * MIB))
            with with_region(one, SIZE), guest([one]) as play:
                play("mode", "random")
                play("go")
                eventually(lambda: play.event("SUBHOSTS_FULL"), "the operator is told", 20)
                before = play("stats")["checks"]
                eventually(lambda: play("stats")["checks"] > before + 100, "the guest runs", 20)
                # Before all of it is touched it may come below its limits once more; 20 MiB are more than budget and room.
                eventually(lambda: play("stats")["resident"] > 20 * MIB, "it keeps what has no place elsewhere", 20)
                eventually(lambda: last_said(play) == "SUBHOSTS_FULL", "the operator knows", 10)
                peer.close()
                other.call("region-delete", name="other")
                play("work", 0, 4096)
                eventually(lambda: play("stats")["resident"] <= 12 * MIB, "page-out goes on", 30)
                play("halt")
                eventually(lambda: last_said(play) == "SUBHOSTS_ROOM", "the operator is told", 10)
                stats = play.check()
                assert stats["lost"] == 0, stats


def test_ten_guests_share_three_subhosts_at_their_limit():
    names = ["guest-%d" % i for i in range(10)]
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(Subhost(memory="90M")) for _ in range(3)]
        for name in names:
            for host in hosts:
                stack.enter_context(with_region(host, 80 * MIB, reserve=8 * MIB, name=name))
        plays = [stack.enter_context(guest(hosts, name, size="80M" if name == names[0] else "16M",
                                           budget="8M", low="5M", high="7M", local=5, remote=30))
                 for name in names]
        for play in plays:
            play("mode", "random")
            play("go")
        greedy, others = plays[0], plays[1:]
        eventually(lambda: greedy.event("SUBHOSTS_FULL"), "the greedy guest is refused", 60)
        before = [play("stats")["checks"] for play in others]
        eventually(lambda: all(play("stats")["checks"] > b + 200 for play, b in zip(others, before)), "nine run", 60)
        for play in plays:
            play("halt")
        for play in others:
            stats = play.check()
            assert stats["lost"] == 0 and stats["resident"] <= 8 * MIB, stats
            assert not [e for e in play.events if e["name"] != "SUBHOST_BACK"], play.events
        assert greedy.check()["lost"] == 0
        for host in hosts:
            with host.control() as control:
                status = control.call("query-status")
                assert status["stored"] <= status["memory"] == 90 * MIB, status
        print("refused: %d WRITEs of the greedy guest, %s of the others"
              % (greedy("stats")["engine"]["write_refusals"], [p("stats")["engine"]["write_refusals"] for p in others]))


if __name__ == "__main__":
    checks.main(globals())
