#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that lie, stall, babble or vanish cost their own connection and nothing else."""

import os
import random
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import eventually, expect, main
from nbdpeer import (DF, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, FLUSH, IHAVEOPT, OPT_ABORT,
                     OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META, OPT_SET_META,
                     OPT_STARTTLS, OPT_STRUCTURED, READ, REQ_ONE, STATUS, TRIM, WRITE, ZEROES, Closed,
                     NbdError)
from subhost import MIB, PAGE, Subhost

EINVAL, ENOSPC = 22, 28
SIZE = 64 * MIB


class Served:
    """A server with one region 'r', and the proof at the end that it still serves."""

    def __init__(self, *options):
        self.host = Subhost(*options)
        self.control = self.host.control()
        self.control.call("region-create", name="r", size=SIZE)

    def __enter__(self):
        return self.host

    def __exit__(self, kind, value, trace):
        try:
            if not kind:
                assert self.host.alive(), self.host.log()
                with self.host.peer("r") as peer:
                    peer.write(0, b"alive")
                    assert peer.read(0, 5) == b"alive"
                eventually(lambda: self.control.call("stats")["connections"] == 0, "nobody is left over")
        finally:
            self.control.close()
            self.host.__exit__(kind, value, trace)


def test_unknown_and_odd_options():
    with Served() as host, host.peer() as peer:
        peer.greet()
        for option in (0, 4, OPT_STARTTLS, 11, 99, 0xFFFFFFFF):
            assert expect(NbdError, peer.option, option, b"body of no use").number == ERR_UNSUP
        assert expect(NbdError, peer.option, OPT_LIST, b"x").number == ERR_INVALID
        assert expect(NbdError, peer.option, OPT_STRUCTURED, b"x").number == ERR_INVALID
        for body in (b"", b"\0", b"\0\0\0\1", b"\xff\xff\xff\xffr\0\0", b"\0\0\0\1r\0\5", b"\0\0\0\1r\0\0x",
                     struct.pack(">I", 5000) + b"n" * 5000 + b"\0\0"):
            for option in (OPT_GO, OPT_INFO):
                assert expect(NbdError, peer.option, option, body).number == ERR_INVALID, body[:20]
        # A meta context without structured replies, then with lies about lengths.
        assert expect(NbdError, peer.meta, OPT_SET_META, "r", ["base:allocation"]).number == ERR_INVALID
        peer.option(OPT_STRUCTURED)
        for body in (b"", b"\0\0\0\1r", b"\0\0\0\1r\xff\xff\xff\xff", b"\0\0\0\1r\0\0\0\1\0\0\0\x10abc",
                     b"\0\0\0\1r\0\0\0\0x"):
            assert expect(NbdError, peer.option, OPT_SET_META, body).number == ERR_INVALID, body
        assert expect(NbdError, peer.meta, OPT_SET_META, "no", ["base:allocation"]).number == ERR_UNKNOWN
        assert peer.meta(OPT_LIST_META, "r", []) == [(0, "base:allocation")]
        assert peer.meta(OPT_LIST_META, "r", ["base:"]) == [(0, "base:allocation")]
        assert peer.meta(OPT_SET_META, "r", ["qemu:dirty-bitmap:x", "base:"]) == []
        # An option too long to look at is stepped over, and the stream stays in sync.
        assert expect(NbdError, peer.option, OPT_GO, b"n" * 20000).number == ERR_TOO_BIG
        assert peer.list() == ["r"]
        peer.go("r")
        assert peer.size == SIZE


def test_huge_option_lengths():
    with Served() as host:
        for option, length in ((OPT_GO, 0xFFFFFFFF), (99, 0x7FFFFFFF), (OPT_EXPORT_NAME, 100000)):
            with host.peer() as peer:
                peer.greet()
                peer.option_raw(option, b"", length)
                assert peer.until_closed() == b""


def test_option_flood():
    with Served() as host, host.peer() as peer:
        peer.greet()
        try:
            for _ in range(1000):
                peer.option_raw(OPT_LIST)
        except OSError:
            pass
        peer.until_closed()


def test_bad_beginnings():
    with Served() as host:
        for flags in (4, 0xFFFFFFFF):
            with host.peer() as peer:
                peer.greet(flags)
                assert peer.until_closed() == b""
        with host.peer() as peer:
            peer.greet()
            peer.raw(b"IHAVEOPS" + bytes(8))
            assert peer.until_closed() == b""
        with host.peer() as peer:
            peer.greet()
            peer.option(OPT_ABORT)
            assert peer.until_closed() == b""
        with host.peer() as peer:  # a name nobody has, by the option that cannot refuse
            peer.greet()
            peer.option_raw(OPT_EXPORT_NAME, b"nobody")
            assert peer.until_closed() == b""


def test_export_name():
    with Served() as host:
        for flags, padding in ((3, 0), (1, 124)):
            with host.peer() as peer:
                peer.greet(flags)
                peer.option_raw(OPT_EXPORT_NAME, b"r")
                size, _ = struct.unpack(">QH", peer.receive(10))
                assert size == SIZE and peer.receive(padding) == bytes(padding)
                peer.write(0, b"q")


def test_refused_requests_keep_sync():
    with Served() as host, host.peer("r") as peer:
        far = 2 ** 64 - 1
        for kind, offset, length, flags, error in (
                (READ, SIZE, 1, 0, EINVAL), (READ, SIZE - 1, 2, 0, EINVAL), (READ, far, 1, 0, EINVAL),
                (READ, far - 10, 100, 0, EINVAL), (READ, 0, 0, 0, EINVAL),
                (READ, 0, 32 * MIB + 1, 0, EINVAL), (READ, 0, 0xFFFFFFFF, 0, EINVAL),
                (READ, 0, 1, DF, EINVAL), (READ, 0, 1, 0x8000, EINVAL),
                (TRIM, SIZE, PAGE, 0, EINVAL), (TRIM, 0, 0, 0, EINVAL), (TRIM, far, 0xFFFFFFFF, 0, EINVAL),
                (ZEROES, SIZE - 1, PAGE, 0, ENOSPC), (ZEROES, 0, 0, 0, EINVAL),
                (ZEROES, 0, 1, 0x10, EINVAL), (FLUSH, 1, 0, 0, EINVAL), (FLUSH, 0, 1, 0, EINVAL),
                (STATUS, 0, PAGE, 0, EINVAL), (5, 0, 1, 0, EINVAL), (8, 0, 1, 0, EINVAL),
                (0xFFFF, 0, 0, 0, EINVAL)):
            cookie = peer.request(kind, offset, length, flags=flags)
            assert expect(NbdError, peer.finish, cookie).number == error, (kind, offset, length)
        for offset, length, flags, error in (
                (SIZE, PAGE, 0, ENOSPC), (SIZE - 1, 200000, 0, ENOSPC), (far, 70000, 0, ENOSPC),
                (0, 0, 0, EINVAL), (0, 40000, 0x8000, EINVAL)):
            cookie = peer.request(WRITE, offset, length, b"w" * length, flags)
            assert expect(NbdError, peer.finish, cookie).number == error
        assert peer.read(0, 100) == bytes(100)


def test_structured_errors():
    with Served() as host, host.peer("r", allocation=True) as peer:
        assert expect(NbdError, peer.read, SIZE, 1).number == EINVAL
        assert expect(NbdError, peer.status, 0, 0).number == EINVAL
        assert expect(NbdError, peer.status, 0, SIZE + 1).number == EINVAL
        assert expect(NbdError, peer.status, 0, 1, DF).number == EINVAL
        assert peer.status(0, SIZE, REQ_ONE)
    # A context chosen for one export does not hold for another.
    with Served() as host, host.peer() as peer:
        peer.greet()
        peer.option(OPT_STRUCTURED)
        peer.structured = True
        peer.meta(OPT_SET_META, "r/strict", ["base:allocation"])
        peer.go("r")
        assert expect(NbdError, peer.status, 0, 1).number == EINVAL


def test_write_too_large():
    with Served() as host, host.peer("r") as peer:
        cookie = peer.request(WRITE, 0, 32 * MIB + 1, b"h" * 100000)
        assert expect(NbdError, peer.finish, cookie).number == EINVAL
        assert peer.until_closed() == b""


def test_bad_magic():
    with Served() as host, host.peer("r") as peer:
        peer.request(READ, 0, PAGE, magic=0x12345678)
        assert peer.until_closed() == b""


def test_many_requests_at_once():
    """Pipelined requests are all answered, in pieces of any size."""
    with Served() as host, host.peer("r") as peer:
        stream, cookies = b"", []
        for i in range(200):
            stream += struct.pack(">IHHQQI", 0x25609513, 0, WRITE, i, i * PAGE, 100) + bytes([i]) * 100
        for i in range(200):
            stream += struct.pack(">IHHQQI", 0x25609513, 0, READ, 1000 + i, i * PAGE, 101)
        rng = random.Random(1)
        while stream:
            n = rng.choice((1, 27, 29, 500, 9000))
            peer.raw(stream[:n])
            stream = stream[n:]
        for i in range(200):
            assert peer.simple_reply() == (i, 0, b"")
        for i in range(200):
            assert peer.simple_reply(101) == (1000 + i, 0, bytes([i]) * 100 + b"\0")


def test_vanishing_peers():
    with Served() as host:
        whole = IHAVEOPT + struct.pack(">II", OPT_GO, 7) + b"\0\0\0\1r\0\0"
        request = struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 100000)
        for cut in (0, 3, 10, len(whole) - 1, len(whole)):
            with host.peer() as peer:
                peer.greet()
                peer.raw(whole[:cut])
        for cut in (1, 27, 28, 29, 5000):
            with host.peer("r") as peer:
                peer.raw((request + b"v" * 100000)[:cut])
        for _ in range(20):  # ask for much, and go without reading it
            with host.peer("r") as peer:
                for _ in range(4):
                    peer.request(READ, 0, 32 * MIB)


OPT_PACK, PACK, PACK_MOST = 0x534D0001, 0x5301, 128 << 10
LZ4 = 1


def pack_of(page):
    """A pack of LZ4 with nothing in it but literals."""
    return struct.pack(">II", LZ4, PAGE) + bytes([0xF0]) + bytes([255]) * 16 + bytes([PAGE - 15 - 16 * 255]) + page


def packing(host, export="r"):
    peer = host.peer()
    peer.greet()
    peer.option(OPT_PACK)
    peer.go(export)
    return peer


def test_pack_was_not_negotiated():
    with Served() as host:
        with host.peer() as peer:
            peer.greet()
            assert expect(NbdError, peer.option, OPT_PACK, b"x").number == ERR_INVALID
            peer.go("r")
            assert expect(NbdError, peer.finish, peer.request(PACK)).number == EINVAL
            peer.write(0, b"goes on")
        with host.peer("r") as peer:  # nobody waits for a payload that nobody asked for
            peer.request(PACK, 0, 100, b"p" * 100)
            peer.until_closed()


def test_packs_that_lie():
    page = os.urandom(PAGE)
    good = pack_of(page)
    with Served() as host, packing(host) as peer, packing(host, "r/strict") as strict:
        def refused(offset, payload, error):
            number = expect(NbdError, peer.finish, peer.request(PACK, offset, len(payload), payload)).number
            assert number == error, (number, payload[:16])
            assert expect(NbdError, strict.read, offset // PAGE * PAGE, 1) if offset < SIZE else True
        body = good[8:]
        for head in ((0, PAGE), (3, PAGE), (2 ** 32 - 1, PAGE), (LZ4, 0), (LZ4, 100), (LZ4, PACK_MOST + PAGE),
                     (LZ4, 2 ** 32 - PAGE), (2, PAGE), (LZ4, 2 * PAGE)):
            refused(0, struct.pack(">II", *head) + body, EINVAL)
        for size in (1, 7, 8, 9, 100, len(good) - 1):
            refused(0, good[:size], EINVAL)
        for fill in (b"\0", b"\xff", b"\x0f"):
            refused(0, good[:8] + fill * 5000, EINVAL)
        refused(SIZE, good, ENOSPC)
        refused(SIZE - PAGE + 1, good, ENOSPC)
        refused(2 ** 64 - PAGE, good, ENOSPC)
        peer.finish(peer.request(PACK, PAGE, len(good), good))
        assert strict.read(PAGE, PAGE) == page


def test_pack_too_long():
    with Served() as host:
        for length in (PACK_MOST + 1, 2 ** 32 - 1):
            with packing(host) as peer:
                cookie = peer.request(PACK, 0, length)
                assert expect(NbdError, peer.finish, cookie).number == EINVAL
                assert peer.until_closed() == b""
        with packing(host) as peer:  # and one that does not come whole
            peer.request(PACK, 0, 1000, b"p" * 999)


def test_half_open():
    """A peer that has said all it will is still answered."""
    with Served() as host, host.peer("r") as peer:
        cookie = peer.request(READ, 0, PAGE)
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.finish(cookie, PAGE) == bytes(PAGE)
        assert peer.until_closed() == b""


def test_random_bytes():
    rng = random.Random(int(os.environ.get("SEED", "7")))
    with Served() as host:
        for number in range(150):
            with host.peer("r" if number % 2 else None) as peer:
                if number % 2 == 0:
                    peer.greet()
                try:
                    peer.raw(rng.randbytes(rng.randrange(1, 3000)))
                    peer.sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                peer.until_closed()


def test_too_many_connections():
    with Served("--max-connections", "4") as host:
        peers = [host.peer("r") for _ in range(4)]
        with host.peer() as refused:
            assert refused.until_closed() == b""
        peers[0].write(0, b"fine")
        for peer in peers:
            peer.close()
        with Subhost.control(host) as control:
            eventually(lambda: control.call("stats")["connections"] == 0, "they are gone")


def test_slow_handshake_is_ended():
    """One byte every now and then does not hold a connection for ever: the limit is 10 s."""
    with Served() as host, host.peer() as peer:
        peer.greet()
        begin = time.monotonic()
        peer.sock.settimeout(0.5)
        for byte in IHAVEOPT + struct.pack(">II", 99, 1000) + bytes(100):
            try:
                peer.raw(bytes([byte]))
                if peer.sock.recv(1) == b"":
                    break
            except socket.timeout:
                continue
            except OSError:
                break
        assert 8 < time.monotonic() - begin < 40, time.monotonic() - begin


if __name__ == "__main__":
    main(globals())
