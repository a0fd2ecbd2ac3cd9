# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys that end: with a region's ticket, at once; with the last page of a slab, whose memory comes back."""

from nbdpeer import NbdPeer
from rdma_lab import MIB, NAME, RdmaSubhost, SIZE, eventually, play, with_region
from subhost import PAGE

CHUNK = 2 * MIB


def contents(subhost, ticket):
    peer = NbdPeer(subhost.unix, NAME + "." + ticket)
    bytes_there = [peer.read(at, CHUNK) for at in range(0, SIZE, CHUNK)]
    peer.sock.close()
    return bytes_there


def test_ticket_changes():
    """Who came with the old ticket reads and writes nothing any more, although its keys were good."""
    with RdmaSubhost() as one, with_region(one, ticket="old") as control, \
            play([one.place(ticket="old")], lost_ms=60000, lost_action="wait") as guest:
        guest("mode", "random")
        guest("go")
        eventually(lambda: guest("stats")["engine"]["page_outs"] > 50, "page-outs", 100)
        assert control.region(NAME)["connections"] > 0
        control.call("region-keep", name=NAME, ticket="old", new_ticket="new")
        there, page_ins = contents(one, "new"), guest("stats")["engine"]["page_ins"]
        one.wait_log("RDMA connections has expired", 20)
        eventually(lambda: guest.event("SUBHOST_LOST"), "the operator is told", 60)
        one.wait_log("an RDMA connection is refused: no such region, or not with this ticket", 60)
        # One that was answered already may still be on its way to the guest.
        assert guest("stats")["engine"]["page_ins"] <= page_ins + 8, (page_ins, guest("stats"))
        assert contents(one, "new") == there, "a page was written with the old ticket's key"
        eventually(lambda: control.region(NAME)["connections"] == 0, "all connections are closed", 60)
        control.call("region-delete", name=NAME, ticket="new")


def test_slabs_are_given_back():
    """By a drain, and by a guest that discards all it has; both come back to what lost its key."""
    with RdmaSubhost() as one, RdmaSubhost() as two, with_region(one) as first, with_region(two) as second, \
            play([host.place() + "," + host.control_address for host in (one, two)]) as guest:
        for control in first, second:
            control.call("region-keep", name=NAME)
        guest("mode", "random")
        guest.play(3)
        assert first.region(NAME)["stored"] > 0
        guest("go")
        assert guest("drain", 0, 1)["err"] == 0
        eventually(lambda: guest.event("SUBHOST_EMPTY"), "it is empty", 120)
        eventually(lambda: first.region(NAME)["stored"] == 0, "its slabs are given back", 30)
        assert first.call("query-status")["stored"] == 0 and first.region(NAME)["slabs"] == 0
        assert guest("drain", 0, 0)["err"] == 0 and guest("drain", 1, 1)["err"] == 0
        eventually(lambda: len(guest.event("SUBHOST_EMPTY")) == 2, "the other is empty", 120)
        assert first.region(NAME)["stored"] > 0
        eventually(lambda: second.region(NAME)["stored"] == 0, "its slabs are given back, too", 30)
        assert guest("drain", 1, 0)["err"] == 0
        guest("halt")
        stats = guest.check()
        assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        for page, pages in (0, 9 * MIB // PAGE), (10 * MIB // PAGE, 3 * MIB // PAGE):  # the guest's blocks
            assert guest("discard", page, pages)["err"] == 0
        eventually(lambda: first.region(NAME)["stored"] == second.region(NAME)["stored"] == 0,
                   "all slabs are given back", 60)
        guest.play(4)
        stats = guest.check()
        assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        print(stats["engine"]["page_outs"], first.region(NAME), second.region(NAME), flush=True)
        assert first.region(NAME)["stored"] + second.region(NAME)["stored"] > 0
        for control in first, second:
            control.call("region-delete", name=NAME)


test_ticket_changes()
test_slabs_are_given_back()
print("ok")
