# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""A guest declared with 64 GiB that uses 200 MiB moves whole, and no more is sent than for 1 GiB declared.

It only reads meanwhile: what a guest writes during its move depends on how long that takes.

(How long both take is shown by make bench-sparse.)  Its holes stay holes: neither host allocates them.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402


def once(declared):
    with Cluster() as cluster:
        subhost = cluster.subhost(512 * MIB)
        source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
        source = cluster.guest("src", source_pager, declared,
                               append="mem=1G memguest.size=160M memguest.rate=1000 memguest.write=0")
        source.wait_log("memguest: ready", 120)
        destination = cluster.guest("dst", main_pager, declared, incoming=True)
        memfd = source.memfd()
        before = memfd_blocks(memfd)
        result = cluster.migrate(source, destination, cluster.policy(64 * MIB))
        grown = memfd_blocks(memfd) - before
        if grown > 32 * MIB:
            raise Failure("the source's holes were filled: %d MiB" % (grown // MIB))
        if memfd_blocks(destination.memfd()) > 66 * MIB or subhost.call("query-status")["stored"] > 300 * MIB:
            raise Failure("holes were allocated at the destination")
        destination.expect_sweep()
        destination.check_clean()
        return result


try:
    small, large = once(1024 * MIB), once(65536 * MIB)
    print("1 GiB: %s\n64 GiB: %s" % (small, large))
    if large["wire_bytes"] > small["wire_bytes"] * 1.2:
        raise Failure("64 GiB declared sent %d bytes, 1 GiB %d" % (large["wire_bytes"], small["wire_bytes"]))
    if large["pages"] < 65536 * 256:
        raise Failure("not all of 64 GiB was looked at: %d pages" % large["pages"])
except Failure as failure:
    print("FAIL: %s" % failure)
    sys.exit(1)
print("ok")
