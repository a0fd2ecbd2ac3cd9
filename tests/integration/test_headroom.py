#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# NOT-UNDER: asan tsan (a cgroup leaves no room for what they take)
"""A sub-host that runs short of memory gives slabs back while its guest runs, and lends again slowly."""

import contextlib
import os
import sys
import tempfile
import shutil
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from cgroup import MemoryGroup
from checks import eventually
from engineplay import NAME, EnginePlay
from subhost import MIB, Subhost

SIZE = 96 * MIB
GROUP = 256 * MIB
HEADROOM = 64 * MIB
HOG = 172 * MIB      # of 16 MiB stored 7 must go, and of more as much more: the server and the hog take 11 themselves
BIG_HOG = 190 * MIB  # all of it
SLAB = 4 * MIB


def keep_region(host, limit=SIZE):
    control = host.control()
    control.call("region-create", name=NAME, size=SIZE, limit=limit, slab=SLAB)
    control.call("region-keep", name=NAME)
    return control


@contextlib.contextmanager
def guest(n, limit=SIZE, options=(), **values):
    """A guest on n sub-hosts, the first of which is in a cgroup and watches its headroom."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(MemoryGroup(GROUP))
        hosts = [stack.enter_context(Subhost("--headroom", str(HEADROOM), memory="128M", prefix=group.prefix))]
        hosts += [stack.enter_context(Subhost(*options, memory="512M")) for _ in range(n - 1)]
        controls = [keep_region(host, SIZE if host is hosts[0] else limit) for host in hosts]
        play = dict(size=["71M", "23M"], budget="24M", low="16M", high="20M", local=15, remote=70, threads=4,
                    granule="256K", prefetch=8)
        play.update(values)
        yield stack.enter_context(EnginePlay([(h.unix, h.control_address) for h in hosts], **play)), \
            hosts, controls, group


def stored(control):
    return control.region(NAME)["stored"]


def status(control):
    return control.call("query-status")


def test_hog_under_load():
    with guest(3) as (play, hosts, controls, group):
        play("mode", "random")
        play("go")
        first = status(controls[0])
        assert first["available"] > HEADROOM and first["lendable"] == 128 * MIB, first
        eventually(lambda: stored(controls[0]) > 16 * MIB, "it holds a third or so of what is not resident", 20)
        began = time.monotonic()
        group.eat(HOG)
        eventually(lambda: status(controls[0])["lendable"] < 128 * MIB, "it lends less", 5)
        eventually(lambda: status(controls[0])["available"] >= HEADROOM,
                   lambda: "the headroom is free again: %s %s" % (status(controls[0]), play("stats")["engine"]), 20)
        took = time.monotonic() - began
        now = status(controls[0])
        assert now["given_back"] >= 4 * MIB, now
        assert play("stats")["engine"]["slabs_given_back"] > 0
        assert sum(control.call("stats")["pulled_bytes"] for control in controls[1:]) > 0
        # It takes nothing more than it may, however the guest runs.
        stats = play.play(1)
        eventually(lambda: stored(controls[0]) <= status(controls[0])["lendable"], "it keeps to it", 10)
        assert stats["errors"] == 0 and stats["lost"] == 0, stats
        play.check()
        # And when the hog is gone it grows in steps, and takes pages again.
        play("go")
        low = status(controls[0])["lendable"]
        group.release()
        eventually(lambda: status(controls[0])["lendable"] > low, "it lends more", 20)
        grown = status(controls[0])["lendable"]
        assert grown < 128 * MIB, "not all at once: %d, %d" % (low, grown)
        eventually(lambda: status(controls[0])["lendable"] > grown + 3 * MIB, "it goes on", 20)
        play.check()
        print("%d MiB were given back, in %.1f s; longest access %.0f ms"
              % (now["given_back"] // MIB, took, stats["longest_us"] / 1000))


def test_worker_killed_while_slabs_move():
    with guest(3) as (play, hosts, controls, group):
        play("mode", "random")
        play("go")
        group.eat(BIG_HOG)
        for _ in range(3):
            eventually(lambda: play("stats")["engine"]["chunks_moved"] > 0 or not stored(controls[0]),
                       "chunks are moving", 20)
            play("kill")
            play.start()
            play("go")
        eventually(lambda: not stored(controls[0]), "all was given back", 20)
        play.check()
        assert play("stats")["lost"] == 0, play.events


def test_target_killed_in_mid_copy():
    state = tempfile.mkdtemp(prefix="subhost-state-", dir="/dev/shm")
    try:
        with guest(2, options=("--state-dir", state)) as (play, hosts, controls, group):
            play("mode", "random")
            play("go")
            left = []
            group.eat(BIG_HOG)
            for turn in range(3):
                moved = play("stats")["engine"]["chunks_moved"]
                eventually(lambda: play("stats")["engine"]["chunks_moved"] > moved or not stored(controls[0]),
                           "chunks are moving", 40)
                hosts[1].kill()
                left.append(stored(controls[0]))
                hosts[1].launch()
            eventually(lambda: not stored(controls[0]), "all was given back", 60)
            assert left[0], "it was not in the middle"
            play.check()
            assert play("stats")["lost"] == 0, play.events
    finally:
        shutil.rmtree(state)


def test_hog_with_a_replica():
    """Both copies of a slab are never on one sub-host, and in the end there are two of each again."""
    with guest(4, redundancy="replica", remote=60) as (play, hosts, controls, group):
        at_risk = lambda: sum(s["at_risk"] for s in play("stats")["engine"]["subhosts"])
        play("mode", "random")
        eventually(lambda: at_risk() == 0, "what has arrived is in two places", 60)
        play("go")
        held = stored(controls[0])
        assert held > 8 * MIB, held
        group.eat(BIG_HOG)

        def given_back():
            assert play("pages")["doubled"] == 0
            return not stored(controls[0])
        eventually(given_back, "all was given back", 60)
        stats = play.play(1)
        assert play("pages")["doubled"] == 0 and stats["engine"]["slabs_given_back"] > 0, stats
        assert not play.event("PAGES_LOST"), play.events
        eventually(lambda: at_risk() == 0, "everything is in two places", 60)
        stats = play.check()
        assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        print("%d MiB were given back; longest access %.0f ms" % (held // MIB, stats["longest_us"] / 1000))


def test_nowhere_else():
    # What the other one cannot take comes back to the main host while there is room, and no further.
    limit = 44 * MIB
    with guest(2, limit=limit, budget="36M", low="28M", high="32M") as (play, hosts, controls, group):
        play("go")
        group.eat(GROUP - 64 * MIB)
        hosts[0].wait_log("memory is not given back: no other sub-host of the guest has room", 30)
        stats = play.check()
        assert stats["errors"] == 0 and stats["lost"] == 0, stats
        # Page-out may have filled the other one before a slab moved there.
        gone = stats["engine"]["slabs_given_back"] or stored(controls[1]) > limit - 2 * SLAB
        assert gone and stored(controls[0]), "what could go has gone: %s, %s" % (stats, stored(controls[1]))


if __name__ == "__main__":
    checks.main(globals())
