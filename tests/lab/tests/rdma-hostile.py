# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that connect with garbage, cut, over-long and half-made hellos, and leave: a guest notices nothing."""

import os
import random

from rdma_lab import NAME, RdmaSubhost, eventually, play, with_region
from rdma_peer import CONNECT_RESPONSE, ENOENT, EPROTO, EPROTONOSUPPORT, PRIVATE_MAX, Peer, hello

GARBAGE = 150


def refused(address, private_data):
    with Peer(address, private_data) as peer:
        return peer.refusal()


def test_what_is_no_hello(one):
    good = hello(NAME + ".right")
    expected = [
        (b"", EPROTO), (good[:1], EPROTO), (good[:8], ENOENT), (good[:39], ENOENT),
        (hello(NAME + ".right", magic=b"SMRX"), EPROTO), (hello(NAME + ".right", zero=1), EPROTO),
        (hello(NAME + ".right", version=2), EPROTONOSUPPORT),
        (bytes(PRIVATE_MAX), EPROTO), (b"\xff" * PRIVATE_MAX, EPROTO),
        (hello(NAME), ENOENT), (hello(NAME + "."), ENOENT), (hello(NAME + ".wrong"), ENOENT),
        (hello(NAME + ".right/strict"), ENOENT), (hello(""), ENOENT),
    ]
    for data, want in expected:
        got = refused(one.rdma, data)
        assert got == want, (data, got, want)


def test_random(one):
    rng = random.Random(1)
    for _ in range(GARBAGE):
        data = bytearray(hello(NAME + ".right") + bytes(PRIVATE_MAX - 40))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(40)] ^= 1 << rng.randrange(8)
        data = data[:rng.randint(0, PRIVATE_MAX)] if rng.random() < 0.5 else data
        if bytes(data[:40]) != hello(NAME + ".right"):
            assert refused(one.rdma, bytes(data)) in (EPROTO, EPROTONOSUPPORT, ENOENT), data
    print("%d refused" % GARBAGE, flush=True)


def test_half_open(one, control):
    """With a good hello, over-long by zeros, but without a word after the welcome: closed after a while."""
    before = control.region(NAME)["connections"]
    with Peer(one.rdma, hello(NAME + ".right") + bytes(PRIVATE_MAX - 40)) as peer:
        assert peer.event == CONNECT_RESPONSE and len(peer.private_data) >= 24, (peer.event, peer.private_data)
        assert control.region(NAME)["connections"] == before + 1
        eventually(lambda: control.region(NAME)["connections"] == before, "the half-open one is closed", 60)


def test():
    with RdmaSubhost() as one, with_region(one, ticket="right") as control, \
            play([one.place(ticket="right")]) as guest:
        guest("mode", "random")
        guest("go")
        eventually(lambda: guest("stats")["engine"]["page_ins"] > 20, "page-ins", 100)
        descriptors = len(os.listdir("/proc/%d/fd" % one.process.pid))
        test_what_is_no_hello(one)
        test_random(one)
        test_half_open(one, control)
        page_ins = guest("stats")["engine"]["page_ins"]
        eventually(lambda: guest("stats")["engine"]["page_ins"] > page_ins + 20, "page-ins go on", 100)
        stats = guest.check()
        assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        assert not guest.event("SUBHOST_LOST"), guest.events
        eventually(lambda: len(os.listdir("/proc/%d/fd" % one.process.pid)) == descriptors, "descriptors", 20)


test()
print("ok")
