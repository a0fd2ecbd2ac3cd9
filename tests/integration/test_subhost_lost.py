#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A sub-host is stopped, killed, or cut off under load, and the policy says wait, pause or poison."""

import os
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import eventually
from engineplay import NAME, EnginePlay
from network import Network
from subhost import MIB, Subhost

SIZE = 64 * MIB
LOST_MS = 1500


class Guest:
    """A guest on two sub-hosts; the second, which keeps its regions in files, is to have an accident."""

    def __init__(self, action, network=None):
        self.action = action
        self.network = network
        self.folder = tempfile.mkdtemp(prefix="subhost-state-", dir="/dev/shm")
        self.one = Subhost(memory="512M")
        self.two = None

    def __enter__(self):
        prefix, address = (), None
        options = ["--state-dir", self.folder]
        if self.network:
            prefix = ("ip", "netns", "exec", self.network.name)
            address = "tcp:%s:10809" % self.network.inside
            options += ["--listen", address, "--plaintext"]
        self.two = Subhost(*options, memory="512M", prefix=prefix)
        for host in (self.one, self.two):
            with host.control() as control:
                control.call("region-create", name=NAME, size=SIZE)
                control.call("region-keep", name=NAME)
        self.play = EnginePlay([self.one.unix, address or self.two.unix], size=["47M", "15M"], budget="24M", low="16M",
                               high="20M", local=15, remote=60, threads=4, granule="256K", lost_ms=LOST_MS,
                               lost_action=self.action)
        self.play("mode", "random")
        before = self.play("stats")["engine"]
        self.play("go")
        eventually(lambda: all(self.play("stats")["engine"][k] > before[k] for k in ("page_ins", "page_outs")),
                   "pages come and go", 20)
        return self

    def __exit__(self, kind, *_):
        self.play.__exit__()
        if self.two.alive():
            self.two.process.send_signal(signal.SIGCONT)
            self.two.stop()
        self.one.stop()
        shutil.rmtree(self.folder)

    def told(self):
        eventually(lambda: any(event["subhost"] == "sub1" for event in self.play.event("SUBHOST_LOST")),
                   "the operator is told", 10)


def accident(guest, how):
    """Return what brings the sub-host back."""
    if how == "stop":
        guest.two.process.send_signal(signal.SIGSTOP)
        return lambda: guest.two.process.send_signal(signal.SIGCONT)
    if how == "cut":
        guest.network.link("down")
        return lambda: guest.network.link("up")
    guest.two.kill()
    return guest.two.launch


def comes_back(guest, how):
    """wait, pause: nothing is lost, the guest goes on when the sub-host does."""
    play = guest.play
    play("stats")
    began = time.monotonic()
    back = accident(guest, how)
    guest.told()
    if guest.action == "pause":
        eventually(lambda: play.event("GUEST_PAUSED"), "the guest is stopped", 10)
        before = play("stats")["checks"]
    else:
        # All its threads come to wait for a page there.
        eventually(lambda: time.monotonic() > began + LOST_MS / 1000 + 1, "the time is over", 10)
        before = play("stats")["checks"]
    time.sleep(0.5)
    assert play("stats")["checks"] == before, "nothing runs"
    back()
    eventually(lambda: play.event("SUBHOST_BACK"), "the sub-host is back", 15)
    eventually(lambda: play("stats")["checks"] > before, "the guest goes on", 15)
    gap = time.monotonic() - began
    if guest.action == "pause":
        eventually(lambda: play.event("GUEST_RESUMED"), "the operator is told", 5)
    eventually(lambda: play("stats")["checks"] > before + 1000, "the guest runs", 20)
    stats = play.check()
    assert stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
    assert not play.event("PAGES_LOST"), play.events
    print("%s, %s: without service for %.2f s, nothing lost" % (how, guest.action, gap))


def loses(guest, how):
    """poison: exactly the pages that were there become memory errors, the rest goes on."""
    play = guest.play
    play("stats")
    accident(guest, how)
    began = time.monotonic()
    time.sleep(0.2)
    held = play("pages")["subhosts"][1]
    guest.told()
    eventually(lambda: play.event("PAGES_LOST"), "the first pages are given up", 15)
    gap = time.monotonic() - began
    play("halt")
    play("verify", seconds=90)
    eventually(lambda: play("pages")["subhosts"][1]["remote"] == 0, "nothing is there any more", 5)
    stats, after = play("stats"), play("pages")
    assert stats["errors"] == 0, stats
    # What was there alone; a page that was here too may have been dropped before the sub-host was missed.
    assert held["remote"] <= stats["lost"] <= held["remote"] + held["clean"], (stats, held)
    assert stats["lost"] == after["lost"], (stats, after)
    eventually(lambda: sum(e["pages"] for e in play.event("PAGES_LOST")) == stats["lost"], "the operator knows", 5)
    print("%s, %s: without service for %.2f s, then %d pages are memory errors" % (how, guest.action, gap, stats["lost"]))
    before = stats["checks"]
    play("go")
    eventually(lambda: play("stats")["checks"] > before + 1000, "the rest goes on", 20)
    stats = play.check()
    assert stats["lost"] == after["lost"], stats


def test_wait():
    for how in ("stop", "kill"):
        with Guest("wait") as guest:
            comes_back(guest, how)


def test_pause():
    for how in ("stop", "kill"):
        with Guest("pause") as guest:
            comes_back(guest, how)


def test_poison():
    for how in ("stop", "kill"):
        with Guest("poison") as guest:
            loses(guest, how)


def test_cut_off():
    for action in ("wait", "pause", "poison"):
        with Network() as network, Guest(action, network) as guest:
            (loses if action == "poison" else comes_back)(guest, "cut")


if __name__ == "__main__":
    checks.main(globals())
