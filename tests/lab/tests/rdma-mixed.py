# SPDX-License-Identifier: GPL-2.0-or-later
"""A mixed pool, one sub-host by RDMA and one by TCP; and TCP does when RDMA does not come up, if it may."""

import re

from rdma_lab import NAME, RdmaSubhost, eventually, play, with_region


def test_one_of_each():
    with RdmaSubhost() as one, RdmaSubhost() as two, with_region(one) as rdma, with_region(two) as tcp, \
            play([one.place(), "%s,%s" % (two.tcp, NAME)]) as guest:
        before = rdma.call("stats")["reads"], tcp.call("stats")["reads"]
        guest("mode", "scan")
        guest.play(4)
        stats = guest.check()
        assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        assert all(s["connected"] and s["pages"] > 0 for s in stats["engine"]["subhosts"]), stats
        assert rdma.call("stats")["reads"] == before[0] and tcp.call("stats")["reads"] > before[1]


def test_fallback():
    """Nobody listens at the RDMA address."""
    with RdmaSubhost() as one, with_region(one) as control:
        nowhere = re.sub(r":\d+\+tcp$", ":9+tcp", one.place(tcp=True))
        with play([nowhere], local=40, remote=40) as guest:
            eventually(lambda: control.region(NAME)["connections"] >= 3, "connections by TCP", 100)
            guest("mode", "scan")
            guest.play(2)
            stats = guest.check()
            assert stats["errors"] == 0 and control.call("stats")["reads"] > 0, stats
        with play([nowhere.replace("+tcp", "")], local=40, remote=40) as guest:
            eventually(lambda: guest.event("SUBHOST_LOST"), "the operator is told", 60)
            assert control.region(NAME)["connections"] == 0


test_one_of_each()
test_fallback()
print("ok")
