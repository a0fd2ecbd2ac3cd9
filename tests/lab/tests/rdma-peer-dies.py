# SPDX-License-Identifier: GPL-2.0-or-later
"""A sub-host is killed in the middle of READs, and another server takes its regions up: no page is wrong."""

import tempfile

from rdma_lab import NAME, RdmaSubhost, eventually, play, with_region

KILLS = 3


def test():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as state, \
            RdmaSubhost("--state-dir", state, port=18515) as one:
        control = with_region(one)
        control.call("region-keep", name=NAME)
        with play([one.place()]) as guest:
            guest("mode", "random")
            guest("go")
            for _ in range(KILLS):
                before = guest("stats")["engine"]["page_ins"]
                eventually(lambda: guest("stats")["engine"]["page_ins"] > before + 20, "page-ins", 100)
                one.kill()
                control.close()
                one.launch(60)
                control = one.control()
                eventually(lambda: control.region(NAME)["connections"] > 0, "the pager is back", 100)
            guest("halt")
            stats = guest.check()
            print(stats, [e["name"] for e in guest.events], flush=True)
            assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
        control.call("region-delete", name=NAME)
        control.close()


test()
print("ok")
