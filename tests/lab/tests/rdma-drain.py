# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory leaves an RDMA sub-host while the guest runs: for a drain, and because its host is short of memory."""

import time

from rdma_lab import MIB, NAME, RdmaSubhost, eventually, play, with_region


def place(subhost):
    return "%s,%s" % (subhost.place(), subhost.control_address)


def stored(control):
    return control.region(NAME)["stored"]


def keep(subhost):
    control = with_region(subhost)
    control.call("region-keep", name=NAME)
    return control


def available():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


def test_drain():
    with RdmaSubhost() as one, RdmaSubhost() as two, keep(one) as first, keep(two) as second, \
            play([place(one), place(two)], slab="2M") as guest:
        guest("mode", "random")
        guest("go")
        assert stored(first) > 0
        assert guest("drain", 0, 1)["err"] == 0
        eventually(lambda: guest.event("SUBHOST_EMPTY"), "it is empty", 100)
        eventually(lambda: stored(first) == 0, "its slabs are freed", 30)
        stats = guest.check()
        assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        assert second.call("stats")["pulled_bytes"] > 0, "the other one fetched the pages"


def test_headroom():
    headroom = available() - 100 * MIB
    with RdmaSubhost("--headroom", str(headroom)) as one, RdmaSubhost() as two, keep(one) as first, \
            keep(two), play([place(one), place(two)], slab="2M") as guest:
        guest("mode", "random")
        guest("go")
        assert stored(first) > 0
        hog = bytearray(200 * MIB)
        began = time.monotonic()
        hog[::4096] = bytes([1]) * len(range(0, len(hog), 4096))
        eventually(lambda: stored(first) == 0, "all was given back", 100)
        print("after %.1f s: %s" % (time.monotonic() - began, first.call("query-status")), flush=True)
        stats = guest.check()
        assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        assert stats["engine"]["slabs_given_back"] > 0, stats
        assert first.call("query-status")["given_back"] > 0, "the server knows that it was done"


test_drain()
test_headroom()
print("ok")
