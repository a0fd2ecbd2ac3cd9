#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Quota, strictness, tickets and the life of regions."""

import os
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import eventually, expect, main
from nbdpeer import Closed, DF, HOLE, NO_HOLE, REQ_ONE, WRITE, ZERO, NbdError
from subhost import MIB, PAGE, ControlError, Subhost

ENOSPC, EIO, EINVAL = 28, 5, 22


def shared_memory(pid):
    """Bytes of shared memory the server has, as the kernel counts them."""
    with open("/proc/%d/status" % pid) as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem"))


def test_quota_nothing_hurt():
    with Subhost(memory="16M") as host, host.control() as control:
        control.call("region-create", name="a", size=64 * MIB, reserve=4 * MIB)
        control.call("region-create", name="b", size=64 * MIB, limit=10 * MIB)
        error = expect(ControlError, control.call, "region-create", name="c", size=64 * MIB, reserve=13 * MIB)
        assert error.name == "ENOSPC" and error.desc.startswith("cannot reserve 13 MiB"), error
        with host.peer("a") as a, host.peer("b") as b:
            mark = os.urandom(10 * MIB)
            b.write(0, mark)
            assert expect(NbdError, b.write, 10 * MIB, b"x").number == ENOSPC  # its limit
            b.write(9 * MIB, mark[9 * MIB:])  # what it has it may write again
            # 2 MiB are nobody's, 4 MiB are reserved for a.
            a.write(0, mark[:6 * MIB])
            big = expect(NbdError, a.write, 6 * MIB - PAGE, os.urandom(3 * MIB))
            assert big.number == ENOSPC
            assert a.read(0, 6 * MIB) == mark[:6 * MIB]
            assert b.read(0, 10 * MIB) == mark
            assert a.read(6 * MIB, MIB) == bytes(MIB)
            status = control.call("stats")
            assert (status["stored"], status["free"], status["enospc"]) == (16 * MIB, 0, 2)
            b.trim(0, 5 * MIB)
            assert control.region("b")["stored"] == 5 * MIB
            a.write(20 * MIB, mark[:5 * MIB])
            a.trim(0, 64 * MIB)
            b.trim(0, 64 * MIB)
        status = control.call("query-status")
        assert (status["stored"], status["free"]) == (0, 12 * MIB)


def test_unfinished_write_is_taken_back():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        peer = host.peer("r")
        peer.request(WRITE, 0, 8 * MIB, b"y" * (3 * MIB + 17))
        eventually(lambda: control.region("r")["stored"] == 8 * MIB, "the write is charged")
        peer.close()
        eventually(lambda: control.region("r")["stored"] == 0, "the charge is taken back")
        assert shared_memory(host.process.pid) == 0
        with host.peer("r/strict") as strict:
            assert expect(NbdError, strict.read, 0, PAGE).number == EIO


def test_reading_takes_no_memory():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=128 * MIB)
        with host.peer("r") as simple, host.peer("r", structured=True) as structured:
            simple.write(5 * PAGE, b"z" * PAGE)
            expected = bytes(5 * PAGE) + b"z" * PAGE + bytes(MIB - 6 * PAGE)
            assert simple.read(0, MIB) == structured.read(0, MIB) == expected
            assert structured.read(0, MIB, flags=DF) == expected
            for peer in (simple, structured):
                for at in range(0, 128, 32):
                    peer.read(at * MIB, 32 * MIB)
        assert control.region("r")["stored"] == PAGE
        assert shared_memory(host.process.pid) == PAGE


def test_scattered_pages():
    """More pieces than the server gathers at once, in both kinds of reply."""
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        image = bytearray(4 * MIB)
        with host.peer("r") as simple, host.peer("r", structured=True) as structured:
            for at in range(PAGE, 4 * MIB, 3 * PAGE):
                image[at:at + PAGE] = os.urandom(PAGE)
                simple.write(at, image[at:at + PAGE])
            for at, n in ((0, 4 * MIB), (100, 4 * MIB - 300), (PAGE * 2 - 1, 2)):
                assert simple.read(at, n) == structured.read(at, n) == image[at:at + n]


def test_strict():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=8 * MIB)
        with host.peer("r/strict") as strict, host.peer("r/strict", structured=True) as chunks, \
                host.peer("r") as lenient:
            strict.write(PAGE, b"a" * PAGE)
            strict.zeroes(2 * PAGE, PAGE)
            for peer in (strict, chunks):
                assert peer.read(PAGE, 2 * PAGE) == b"a" * PAGE + bytes(PAGE)
                assert peer.read(2 * PAGE, PAGE) == bytes(PAGE)
                for at, n in ((0, PAGE), (0, 2 * PAGE), (2 * PAGE, PAGE + 1), (7 * MIB, 1), (0, 8 * MIB)):
                    assert expect(NbdError, peer.read, at, n).number == EIO
            assert lenient.read(0, 2 * PAGE) == bytes(PAGE) + b"a" * PAGE
            strict.trim(PAGE, PAGE)
            assert expect(NbdError, strict.read, PAGE, 1).number == EIO


def test_block_status():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=96 * MIB)
        with host.peer("r", allocation=True) as peer, host.peer("r/strict", allocation=True) as strict:
            peer.write(40 * MIB, b"b" * 2 * PAGE)
            peer.zeroes(40 * MIB + 2 * PAGE, PAGE)
            assert peer.status(0, 96 * MIB) == [
                (40 * MIB, HOLE | ZERO), (2 * PAGE, 0), (PAGE, ZERO),
                (56 * MIB - 3 * PAGE, HOLE | ZERO)]
            assert peer.status(100, 96 * MIB - 200, REQ_ONE) == [(40 * MIB - 100, HOLE | ZERO)]
            assert peer.status(40 * MIB + 1, 10) == [(10, 0)]
            # What a strict reader may not read does not read as zero.
            assert strict.status(0, 40 * MIB) == [(40 * MIB, HOLE)]
            peer.zeroes(0, 8 * PAGE, NO_HOLE)
            assert peer.status(0, 8 * PAGE) == [(8 * PAGE, 0)]
        assert control.region("r")["stored"] == 10 * PAGE


def test_tickets():
    with Subhost() as host, host.control() as control:
        assert control.call("region-create", name="g", size=MIB, ticket="se-cret") == {"export": "g.se-cret"}
        assert control.call("region-create", name="o", size=MIB) == {"export": "o"}
        with host.peer() as peer:
            peer.greet()
            assert peer.list() == ["o"]
            for name in ("g", "g.", "g.se-cre", "g.se-crett", "g.SE-CRET", "g/strict", "o.x", "h", ""):
                assert expect(NbdError, peer.go, name).number == 0x80000006, name
            peer.go("g.se-cret/strict")
        for arguments in ({}, {"ticket": "wrong"}):
            assert expect(ControlError, control.call, "region-delete", name="g", **arguments).name == "EACCES"
        assert "se-cret" not in str(control.call("region-list")) + host.log()
        control.call("region-delete", name="g", ticket="se-cret")
        assert expect(ControlError, control.call, "region-delete", name="g").name == "ENOENT"


def test_transient():
    with Subhost() as host, host.control() as observer:
        with host.control() as owner:
            owner.call("region-create", name="lost", size=MIB, reserve=MIB)
            owner.call("region-create", name="kept", size=MIB, ticket="t")
            assert expect(ControlError, observer.call, "region-create", name="kept", size=MIB).name == "EEXIST"
            assert observer.region("kept")["transient"]
            observer.call("region-keep", name="kept", ticket="t")
            observer.call("region-keep", name="kept", ticket="t")
            assert not observer.region("kept")["transient"]
            client = host.peer("lost")
            client.write(0, b"c" * PAGE)
        assert client.until_closed() == b""
        client.close()
        eventually(lambda: observer.call("query-status")["regions"] == 1, "the region is gone")
        assert observer.call("query-status")["reserved"] == 0
        with host.peer("kept.t") as peer:
            peer.write(0, b"d")


def test_delete_under_load():
    with Subhost() as host, host.control() as control:
        for _ in range(8):
            control.call("region-create", name="r", size=64 * MIB)
            ended = []

            def load(seed, peer):
                data = bytes([seed]) * (300 * 1024)
                try:
                    for i in range(100000):
                        at = (seed * 7 + i * 13) % 60 * MIB
                        try:
                            peer.write(at, data)
                            assert len(peer.read(at + 1, 2 * MIB)) == 2 * MIB
                            peer.trim(at, MIB)
                        except NbdError as error:
                            assert error.number == 108, error
                except (Closed, OSError):
                    ended.append(seed)
                peer.close()

            threads = [threading.Thread(target=load, args=(seed, host.peer("r"))) for seed in range(4)]
            stalled = host.peer("r")  # in the middle of a payload
            stalled.request(WRITE, 0, 4 * MIB, b"e" * MIB)
            for thread in threads:
                thread.start()
            eventually(lambda: control.region("r")["stored"] > 4 * MIB, "there is load")
            control.call("region-delete", name="r")
            status = control.call("query-status")
            assert (status["stored"], status["free"], status["regions"]) == (0, status["memory"], 0)
            for thread in threads:
                thread.join(20)
            assert sorted(ended) == [0, 1, 2, 3], ended
            stalled.until_closed()
            stalled.close()
            eventually(lambda: control.call("stats")["connections"] == 0, "all clients are gone")
        eventually(lambda: shared_memory(host.process.pid) == 0, "the memory is free")


def test_same_pages_from_many():
    """Writers, trimmers and aborters on the same pages; the accounts agree with the map."""
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=8 * MIB, limit=24 * PAGE)

        def hammer(seed):
            for _ in range(6):
                with host.peer("r") as peer:
                    for i in range(60):
                        at = (seed * 5 + i * 11) % 40 * PAGE + (i % 3) * 50
                        try:
                            (peer.write(at, b"f" * (i % 5 * 3000 + 1)) if i % 3 else
                             peer.trim(at - at % PAGE, 3 * PAGE) if i % 2 else
                             peer.zeroes(at, 5000))
                        except NbdError as error:
                            assert error.number == ENOSPC, error
                    peer.request(WRITE, seed * 8 * PAGE, 16 * PAGE, b"g" * PAGE)

        threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: control.call("stats")["connections"] == 0, "all clients are gone")
        with host.peer("r", allocation=True) as peer:
            data = sum(length for length, flags in peer.status(0, 8 * MIB) if flags == 0)
        assert control.region("r")["stored"] == data <= 24 * PAGE


def test_bad_control_arguments():
    with Subhost() as host, host.control() as control:
        for arguments, name in (
                ({}, "EINVAL"), ({"name": "x"}, "EINVAL"), ({"name": "x", "size": 0}, "EINVAL"),
                ({"name": "x", "size": -4096}, "EINVAL"), ({"name": "x", "size": 4097}, "EINVAL"),
                ({"name": "x", "size": "4096"}, "EINVAL"), ({"name": "x", "size": 2 ** 62}, "EINVAL"),
                ({"name": "a.b", "size": 4096}, "EINVAL"), ({"name": "", "size": 4096}, "EINVAL"),
                ({"name": "x" * 129, "size": 4096}, "EINVAL"), ({"name": 7, "size": 4096}, "EINVAL"),
                ({"name": "x", "size": 4096, "ticket": ""}, "EINVAL"),
                ({"name": "x", "size": 4096, "ticket": "a/b"}, "EINVAL"),
                ({"name": "x", "size": MIB, "reserve": 2 * PAGE, "limit": PAGE}, "EINVAL"),
                ({"name": "x", "size": 4096, "colour": 1}, "EINVAL")):
            error = expect(ControlError, control.call, "region-create", **arguments)
            assert error.name == name, (arguments, error)
        assert control.call("query-status")["regions"] == 0
        assert control.call("region-list") == []


if __name__ == "__main__":
    main(globals())
