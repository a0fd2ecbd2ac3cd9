#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 180
"""subhost-drain of a sub-host that can be read, but not written: its memory moves off by reading, and nothing is lost."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, Failure, main, wait_until
from gate import Gate
from guestplay import GuestPlay, move

LOST_MS = 3000


def drain(cluster, target, subhost):
    got, out, err = cluster.run("subhost-drain", "subhost://" + subhost.control_path,
                                "unix:" + target.control_path)
    if got:
        raise Failure("subhost-drain ended with %d: %s%s" % (got, out, err))
    return out


def whole(cluster, target, there, subhost):
    """Nothing is lost, and nothing is on the sub-host."""
    there("halt")
    there.check()
    guest = target.guest(cluster.uuid)
    here = [s for s in guest["subhosts"] if s["control"] == "unix:" + subhost.control_path]
    if guest["lost_pages"] or len(here) != 1 or here[0]["pages"] or not here[0]["draining"]:
        raise Failure("the pager says: %s" % guest)
    there("go")


def test(cluster):
    source, target = cluster.pager("source"), cluster.pager("target")
    hosts = [cluster.subhost(128 * MIB, name) for name in ("a", "b")]
    gate = Gate(hosts[0].data)
    hosts[0].data = gate.address
    here = GuestPlay(cluster, source, "source guest")
    there = GuestPlay(cluster, target, "destination guest", incoming=True)
    here("fill", 80)
    move(cluster, source, target, here, there, lost_after_ms=LOST_MS)
    here.process.kill()
    stored = lambda: hosts[0].call("query-status")["stored"]
    unwritable = lambda: target.guest(cluster.uuid)["subhosts"][0]["unwritable"]
    if not stored():
        raise Failure("nothing is there that could be moved")

    # What is left cannot be freed either, until there is a connection for that.
    there("go")
    gate.close_writers()
    wait_until("it is unwritable", 30, unwritable)
    out = drain(cluster, target, hosts[0])
    if "none of the guests' memory" not in out or not stored():
        raise Failure("it said: %s" % out)
    whole(cluster, target, there, hosts[0])
    gate.open_again()
    wait_until("old copies are freed", 30, lambda: not stored())
    if "is empty" not in drain(cluster, target, hosts[0]):
        raise Failure("it is not empty now")
    there("halt")


main(test)
