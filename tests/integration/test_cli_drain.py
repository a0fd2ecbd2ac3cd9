#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""split-migrate subhost-drain on real daemons: a native guest's sub-host is emptied and used again."""

import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, Failure, main, wait_until
from guestplay import GuestPlay, move, split_again


def test(cluster):
    source, target = cluster.pager("source"), cluster.pager("target")
    hosts = [cluster.subhost(128 * MIB, name) for name in ("suba", "subb")]
    here = GuestPlay(cluster, source, "source guest")
    there = GuestPlay(cluster, target, "destination guest", incoming=True)
    here("fill", 80)
    move(cluster, source, target, here, there)
    here.process.kill()
    uri = "subhost://" + hosts[0].control_path
    held = hosts[0].call("query-status")["stored"]
    if not held:
        raise Failure("nothing is there that could be moved")

    def drain(*words, status=0):
        got, out, err = cluster.run("subhost-drain", *words)
        if got != status:
            raise Failure("subhost-drain %s ended with %d: %s%s" % (" ".join(words), got, out, err))
        return out + err

    if "split at none of these pagers" not in drain(uri, "unix:" + source.control_path, status=1):
        raise Failure("a guest whose pager was not named was overlooked")
    drain("subhost://no.such.host.example:x", status=2)
    there("go")
    if "is empty" not in drain(uri, "unix:" + source.control_path, "unix:" + target.control_path):
        raise Failure("it did not say so")
    if hosts[0].call("query-status")["stored"]:
        raise Failure("something is left")
    guest = target.guest(cluster.uuid)
    first = guest["subhosts"][0]
    if not first["draining"] or first["pages"] or guest["lost_pages"]:
        raise Failure("the pager says: %s" % guest)
    if "no other sub-host" not in drain("subhost://" + hosts[1].control_path, "unix:" + target.control_path, status=1):
        raise Failure("both were emptied")
    there("halt")
    there.check()
    drain("--undo", uri, "unix:" + target.control_path)
    if target.guest(cluster.uuid)["subhosts"][0]["draining"]:
        raise Failure("it is not used again")
    there.run(1)
    there.check()
    # A drain is not forgotten when the guest's worker dies.
    there("go")
    drain("--no-wait", uri, "unix:" + target.control_path)
    worker = target.guest(cluster.uuid)["worker_pid"]
    os.kill(worker, signal.SIGKILL)
    wait_until("another worker goes on", 20, lambda: split_again(target, cluster.uuid, worker))
    if not target.guest(cluster.uuid)["subhosts"][0]["draining"]:
        raise Failure("the drain was forgotten: %s" % target.guest(cluster.uuid))
    wait_until("it is empty again", 20, lambda: not hosts[0].call("query-status")["stored"])
    there("halt")
    there.check()
    if target.guest(cluster.uuid)["lost_pages"]:
        raise Failure("pages are lost")
    print("%d MiB were moved" % (held // MIB))


main(test)
