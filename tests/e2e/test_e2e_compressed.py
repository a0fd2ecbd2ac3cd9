# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of a guest that writes, with its memory compressed on the way; every page is checked afterwards."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 256 * MIB, 128 * MIB, 64 * MIB


def move(how):
    with Cluster() as cluster:
        for _ in range(2):
            cluster.subhost(256 * MIB)
        pagers = [cluster.pager(name) for name in ("source", "main")]
        source = cluster.guest("src", pagers[0], RAM,
                               append="memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
        source.wait_log("memguest: ready", 120)
        destination = cluster.guest("dst", pagers[1], RAM, incoming=True)
        result = cluster.migrate(source, destination, cluster.policy(BUDGET), "--profile", "1", "--compress", how)
        print(how, result)
        stored = result["main_bytes"] + sum(result["subhost_bytes"])
        if not 0 < result["wire_bytes"] < stored:
            raise Failure("%s: %d bytes on the wire for %d of memory" % (how, result["wire_bytes"], stored))
        destination.expect_sweep()
        destination.check_clean()


def test(_):
    for how in ("lz4", "zstd"):
        move(how)


main(test)
