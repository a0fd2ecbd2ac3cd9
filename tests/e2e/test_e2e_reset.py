# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""Reset and reboot of a split guest: firmware and kernel start anew in its memory, and it is still split.

system_reset under paging, then the guest's own reboot; each time it fills its memory again, within
the budget.  Its power-off leaves nothing behind, and neither does a QEMU that is killed.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402
import leaks  # noqa: E402

RAM, FILL, BUDGET = 256 * MIB, 144 * MIB, 64 * MIB
APPEND = "memguest.size=%d memguest.rate=2000 memguest.hot=30" % FILL


def split(cluster, pagers):
    # The harness starts QEMU with -no-reboot.
    reboots = ("-action", "reboot=reset")
    source = cluster.guest("src", pagers[0], RAM, extra=reboots, append=APPEND)
    source.wait_log("memguest: ready", 120)
    guest = cluster.guest("dst", pagers[1], RAM, extra=reboots, incoming=True, append=APPEND)
    cluster.migrate(source, guest, cluster.policy(BUDGET))
    source.quit()
    guest.expect_sweep(120)
    return guest


def starts_anew(cluster, pager, guest, start, what):
    guest.wait_log("memguest: ready", 120, start)
    guest.expect_sweep(120)
    guest.check_clean()
    info = pager.guest(cluster.uuid)
    print("after %s: %d MiB resident, at most %d" % (what, info["resident"] // MIB,
                                                     info["resident_max"] // MIB), flush=True)
    if info["state"] != "split" or not info["connected"] or info["lost_pages"]:
        raise Failure("after %s it is %s" % (what, info))
    most = max(info["resident_max"], memfd_blocks(guest.memfd()))
    if most > BUDGET + 2 * MIB and not pager.over_budget():
        raise Failure("after %s it is over its budget: %s" % (what, info))


def test(cluster):
    cluster.subhost(256 * MIB)
    cluster.subhost(256 * MIB)
    pagers = cluster.pager("source"), cluster.pager("main")
    before = leaks.look(cluster, pagers)
    guest = split(cluster, pagers)
    guest.say("sweep")
    seen = pagers[1].guest(cluster.uuid)["page_ins"]
    wait_until("paging under the sweep", 30, lambda: pagers[1].guest(cluster.uuid)["page_ins"] > seen + 300)
    start = len(guest.log_text())
    guest.qmp("system_reset")
    starts_anew(cluster, pagers[1], guest, start, "a reset")
    start = len(guest.log_text())
    guest.say("reboot")
    starts_anew(cluster, pagers[1], guest, start, "a reboot")
    guest.say("quit")
    wait_until("QEMU's end", 30, lambda: guest.daemon.process.poll() is not None)
    leaks.expect_same(cluster, pagers, before)

    guest = split(cluster, pagers)
    guest.quit()
    leaks.expect_same(cluster, pagers, before)


main(test)
