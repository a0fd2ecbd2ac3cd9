# SPDX-License-Identifier: GPL-2.0-or-later
"""A replica on RDMA sub-hosts: one is killed under load, no page is wrong, and its copies are made again elsewhere."""

import contextlib

from rdma_lab import MIB, RdmaSubhost, eventually, play, with_region

HOSTS = 3


def at_risk(guest):
    return sum(s["at_risk"] for s in guest("stats")["engine"]["subhosts"])


def moved(guest, before, pages=100):
    now = guest("stats")["engine"]
    return all(now[key] >= before[key] + pages for key in ("page_ins", "page_outs"))


def test():
    with contextlib.ExitStack() as stack:
        hosts = [RdmaSubhost() for _ in range(HOSTS)]
        for host in hosts[1:]:
            stack.enter_context(host)
        controls = [stack.enter_context(with_region(host)) for host in hosts]
        guest = stack.enter_context(play(["%s,%s" % (h.place(), h.control_address) for h in hosts],
                                         slab="2M", lost_ms=3000, redundancy="replica"))
        eventually(lambda: at_risk(guest) == 0, "what has arrived is in two places", 100)
        assert sum(c.call("stats")["pulled_bytes"] for c in controls) > MIB, "sub-hosts fetched it from each other"
        guest("mode", "random")
        before = guest("stats")["engine"]
        guest("go")
        eventually(lambda: moved(guest, before), "pages come and go", 100)
        hosts[0].kill()
        eventually(lambda: guest.event("SUBHOST_LOST"), "the operator is told", 60)
        eventually(lambda: guest.event("MEMORY_AT_RISK"), "what it had is told as at risk", 60)
        eventually(lambda: at_risk(guest) == 0, "everything is in two places again", 100)
        before = guest("stats")["engine"]
        eventually(lambda: moved(guest, before), "pages come and go without it", 100)
        stats = guest.check()
        print(stats, [e["name"] for e in guest.events], flush=True)
        assert stats["errors"] == 0 and stats["lost"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        assert not guest.event("PAGES_LOST"), guest.events
        assert not stats["engine"]["subhosts"][0]["pages"], "nothing is looked for on the dead one"


test()
print("ok")
