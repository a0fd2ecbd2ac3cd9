#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# NOT-UNDER: tsan (how much memory grows is counted)
"""10,000 connections that say nothing, and clients that dribble: who is served goes on, memory does not grow, it ends."""

import os
import resource
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import Skip, eventually, main
from nbdpeer import WRITE
from subhost import MIB, Subhost

CROWD = 10000


def memory(process):
    with open("/proc/%d/status" % process.pid) as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))


def address(text):
    host, port = text[len("tcp:"):].rsplit(":", 1)
    return host, int(port)


def test_ten_thousand_that_say_nothing():
    need = CROWD + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < need:
        raise Skip("this test needs %d open files, and may have %d" % (need, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        served = host.peer("r")
        served.write(0, b"before")
        before = memory(host.process)
        crowd = []
        try:
            for _ in range(CROWD):
                sock = socket.socket()
                sock.setblocking(False)
                crowd.append(sock)
                sock.connect_ex(address(host.tcp))
            assert served.read(0, 6) == b"before", "who is served goes on"
            assert control.call("query-status")["regions"] == 1
            # On another address there is room at once, on the crowded one when the crowd's time is over.
            with host.peer("r") as peer:
                assert peer.read(0, 6) == b"before"
            eventually(lambda: control.call("stats")["connections"] <= 1, "the silent ones are sent away", 60)
            grown = memory(host.process) - before
            assert grown < 64 * MIB, grown
        finally:
            for sock in crowd:
                sock.close()
        assert served.read(0, 6) == b"before"
        served.close()


def test_slow_loris():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        slow = []
        for _ in range(20):  # in the handshake, a byte at a time
            sock = socket.create_connection(address(host.tcp))
            slow.append(sock)
        writers = [host.peer("r") for _ in range(20)]
        for peer in writers:  # in the middle of a payload that never ends
            peer.request(WRITE, 0, 32 * MIB, b"x")
        began, alive = time.monotonic(), len(slow)
        flags = struct.pack(">I", 3) + b"IHAVEOPT"
        at = 0
        while alive and time.monotonic() < began + 30:
            for sock in slow:
                try:
                    sock.send(flags[at % len(flags):][:1])
                except OSError:
                    alive = sum(1 for s in slow if not gone(s))
            for peer in writers:
                peer.raw(b"x")
            at += 1
            with host.peer("r") as peer:
                peer.write(40 * MIB, b"served")
                assert peer.read(40 * MIB, 6) == b"served"
            time.sleep(0.5)
        assert not alive, "a handshake has a time limit"
        for peer in writers:
            peer.close()
        for sock in slow:
            sock.close()
        eventually(lambda: control.call("stats")["connections"] == 0, "nobody is left over")
        eventually(lambda: control.region("r")["stored"] == 4096, "what was not finished is freed")


def gone(sock):
    try:
        sock.setblocking(False)
        while sock.recv(4096):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


if __name__ == "__main__":
    main(globals())
