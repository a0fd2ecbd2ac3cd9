# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-in by RDMA READ, page-out by RDMA WRITE: the guest checks every byte it touches."""

from rdma_lab import NAME, SLAB, RdmaSubhost, play, with_region


def test():
    with RdmaSubhost() as one, RdmaSubhost() as two, with_region(one) as control, \
            with_region(two), play([one.place(), two.place()]) as guest:
        before = control.call("stats")
        for mode in "random", "hot", "scan":
            guest("mode", mode)
            stats = guest.play(3)
            print(mode, stats, flush=True)
            assert stats["resident_max"] <= 6 << 20, stats
        engine = guest.check()["engine"]
        print(engine, flush=True)
        assert engine["page_ins"] > 300 and engine["page_outs"] > 100, engine
        assert engine["prefetched"] + engine["clean_drops"] > 100, engine
        assert engine["lost_pages"] == 0 and engine["install_errors"] == 0, engine
        assert all(s["connected"] and s["pages"] > 0 for s in engine["subhosts"]), engine
        after = control.call("stats")
        assert (after["reads"], after["writes"]) == (before["reads"], before["writes"]), \
            "the sub-host served pages over NBD: %s, %s" % (before, after)
        region = control.region(NAME)
        assert region["stored"] > 0 and region["stored"] % SLAB == 0, region


test()
print("ok")
