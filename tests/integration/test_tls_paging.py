#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine pages a guest in and out over TLS; crashes, cut connections; not one wrong byte."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import eventually, main
from engineplay import NAME, EnginePlay, with_region
from pki import Pki
from subhost import MIB, Subhost

SIZE = 64 * MIB


def tls_subhost(*options):
    host = Subhost("--listen", "tls:127.0.0.1:0", *options, memory="512M")
    with host.control() as control:
        host.tls = control.call("query-status")["data"][2]
    return host


def guest(subhosts, identity, controls=False, **options):
    for name in ("CERTIFICATES", "PSK"):
        os.environ.pop("TLS_" + name, None)
    os.environ.update(identity)
    values = dict(size=["47M", "15M"], budget="24M", low="16M", high="20M", local=15, remote=60,
                  threads=3, granule="256K", prefetch=16)
    values.update(options)
    return EnginePlay([(s.tls, s.control_address) if controls else s.tls for s in subhosts], **values)


def test_paging_with_certificates():
    with Pki() as pki:
        good = pki.identity()
        with tls_subhost("--tls-certificates", good) as one, \
                tls_subhost("--tls-certificates", good) as two, with_region(one, SIZE), \
                with_region(two, SIZE), guest([one, two], {"TLS_CERTIFICATES": good}) as play:
            for mode in "random", "hot", "scan":
                play("mode", mode)
                stats = play.play(1.5)
                play.within(stats, 25 * MIB)
            play("mode", "random")
            play.play_until(lambda e: e["page_ins"] > 300 and e["page_outs"] > 300, "pages come and go")
            engine = play.check()["engine"]
            assert engine["lost_pages"] == 0 and engine["install_errors"] == 0, engine


def test_killed_while_paging_with_keys():
    with Pki() as pki:
        keys = pki.psk("alice")
        with tls_subhost("--tls-psk", keys) as one, with_region(one, SIZE), \
                guest([one], {"TLS_PSK": keys}) as play:
            for i in range(6):
                play("mode", ["random", "hot", "scan"][i % 3])
                play("go")
                time.sleep(0.3)
                play("kill")
                before = play("stats")["checks"]
                play.start()
                eventually(lambda: play("stats")["checks"] > before, "the guest goes on")
            play.check()
            assert play("pages")["lost"] == 0


def test_memory_moves_over_tls():
    """A drain: the other sub-host fetches the pages over TLS."""
    with Pki() as pki:
        good = pki.identity()
        with tls_subhost("--tls-certificates", good) as one, tls_subhost("--tls-certificates", good) as two, \
                with_region(one, SIZE) as first, with_region(two, SIZE) as second, \
                guest([one, two], {"TLS_CERTIFICATES": good}, controls=True) as play:
            play("mode", "random")
            play("go")
            assert first.region(NAME)["stored"] > 0
            assert play("drain", 0, 1)["err"] == 0
            eventually(lambda: play.event("SUBHOST_EMPTY"), "it is empty", 60)
            assert first.region(NAME)["stored"] == 0
            assert second.call("stats")["pulled_bytes"] > 0, "fetched by the other one itself"
            play.check()
            assert play("stats")["lost"] == 0, play.events


def test_connections_are_cut():
    """The server is stopped and continued for longer than it may be silent: links break and are made again."""
    with Pki() as pki:
        good = pki.identity()
        with tls_subhost("--tls-certificates", good) as one, with_region(one, SIZE), \
                guest([one], {"TLS_CERTIFICATES": good}, lost_ms=60000) as play:
            play("mode", "random")
            play("go")
            for _ in range(2):
                before = play("stats")["checks"]
                one.process.send_signal(19)
                time.sleep(4)
                one.process.send_signal(18)
                eventually(lambda: play("stats")["checks"] > before + 100, "the guest goes on", 20)
            play.check()
            assert play("pages")["lost"] == 0


main(globals())
