# SPDX-License-Identifier: GPL-2.0-or-later
"""A slow and lossy link to the sub-hosts, 50 ms and 1 % either way, under page-in and page-out, with each page there
once or twice, or there and in a backup: no error.

With a replica both sub-hosts are reached by TCP.  By RDMA it holds, too, where soft RoCE does, but that one may come to
its end on such a wire when the machine is busy, and a replica needs both sub-hosts for each page that leaves.  Seen on
Linux 6.12: of one card all connections end, and none can be made any more, though datagrams of the connection manager
still arrive there (rcvd_pkts grows, rdma_recvs and rdma_sends stand still, send_err is not 0), nothing of ours waits in
the kernel, and the wire may be well again; ib_read_lat -R between the same cards then gets no connection either.
It is no matter of the time limit for a handshake: dozens in a row fail, and where a datagram is merely lost, to give
up after 3 s and begin anew is quicker than the kernel, which repeats it after more than 4.
"""

import time

from rdma_lab import NAME, RdmaSubhost, eventually, play, with_region
from wire import HERE, slow, verbs, wire

PAGES = 20  # that come in and go out at least


class FarSubhost(RdmaSubhost):
    def __init__(self):
        super().__init__("--listen", "tcp:%s:0" % HERE, address=HERE)
        with self.control() as control:
            self.far_tcp = control.call("query-status")["data"][2]


def load(guest, what):
    """Page in and out for a while, and tell how it went."""
    def moved():
        now = guest("stats")["engine"]
        return all(now[key] >= before["engine"][key] + PAGES for key in ("page_ins", "page_outs"))

    before, began = guest("stats"), time.monotonic()
    guest("go")
    eventually(moved, "pages come and go", 300)
    guest("halt")
    after, took = guest("stats"), time.monotonic() - began
    print("%s: %d page-ins, %d page-outs, %.0f checks/s; longest access, without service: %.0f ms" % (
        what, after["engine"]["page_ins"] - before["engine"]["page_ins"],
        after["engine"]["page_outs"] - before["engine"]["page_outs"],
        (after["checks"] - before["checks"]) / took, after["longest_us"] / 1000), flush=True)


def test(redundancy, **options):
    print("redundancy %s" % redundancy, flush=True)
    by_tcp = lambda host: "%s,%s" % (host.far_tcp, NAME)
    with FarSubhost() as one, FarSubhost() as two, with_region(one) as rdma, with_region(two) as tcp, \
            play([by_tcp(one) if redundancy == "replica" else one.place(), by_tcp(two)], budget="4M", low="2M",
                 high="3M", lost_ms=20000, redundancy=redundancy, **options) as guest:
        eventually(lambda: all(s["connected"] for s in guest("stats")["engine"]["subhosts"]), "links", 120)
        if redundancy != "none":
            eventually(lambda: not any(s["at_risk"] for s in guest("stats")["engine"]["subhosts"]),
                       "all is there twice", 100)
        served = rdma.call("stats")["reads"], tcp.call("stats")["reads"]
        guest("mode", "random")
        load(guest, "usual")
        slow("delay", "50ms", "loss", "1%")
        load(guest, "slowed")
        slow()
        load(guest, "afterwards")
        stats = guest.check()
        assert stats["errors"] == 0 and stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        assert not guest.event("PAGES_LOST"), guest.events
        assert tcp.call("stats")["reads"] > served[1]
        # What is read one-sidedly the server does not count.
        assert rdma.call("stats")["reads"] == served[0] or redundancy == "replica"


wire()
test("none")
verbs(again=True)
test("replica")
verbs(again=True)
test("backup", backup="/tmp/guest.backup")
print("ok")
