#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Redundancy on real daemons: what a move leaves in one place is copied, a sub-host and a worker die, nothing is lost."""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, Control, Failure, main, wait_until
from guestplay import GuestPlay, move


def expect(condition, what):
    if not condition:
        raise Failure("not so: %s" % (what,))


class Split:
    """A guest that was split over three sub-hosts with this redundancy."""

    def __init__(self, cluster, redundancy, **policy):
        self.cluster = cluster
        source, self.target = cluster.pager("source-" + redundancy), cluster.pager("target-" + redundancy)
        cluster.subhosts[:] = []
        if os.path.exists(os.path.join(cluster.dir, "state")):
            os.unlink(os.path.join(cluster.dir, "state"))  # what an earlier guest's pages must hold
        self.hosts = [cluster.subhost(128 * MIB, redundancy + name) for name in ("a", "b", "c")]
        here = GuestPlay(cluster, source, "source guest")
        self.guest = GuestPlay(cluster, self.target, "destination guest", incoming=True)
        here("fill", 80)
        move(cluster, source, self.target, here, self.guest, redundancy=redundancy, lost_after_ms=2000, **policy)
        here.process.kill()

    def stat(self):
        domain = "%s?pager=unix:%s" % (self.cluster.uuid, self.target.control_path)
        status, out, err = self.cluster.run("dommemstat", "--json", "--interval", "0.1", domain)
        expect(status == 0, err)
        return json.loads(out)

    def region(self, index):
        """What subhost-list tells of the guest's region."""
        uri = "subhost://" + self.hosts[index].control_path
        status, out, err = self.cluster.run("subhost-list", "--json", uri)
        expect(status == 0, err)
        return json.loads(out)[0]["regions"][0]

    def shown(self, index):
        """(redundancy, at risk) in subhost-info's table, and at risk in subhost-list's."""
        uri = "subhost://" + self.hosts[index].control_path
        status, info, err = self.cluster.run("subhost-info", uri)
        expect(status == 0, err)
        status, table, err = self.cluster.run("-q", "subhost-list", uri)
        expect(status == 0, err)
        row = re.search(r"^ %s .*$" % self.cluster.uuid, info, re.M).group(0)
        cells = re.split(r" {3,}", row.strip())
        return cells[5], cells[6], re.split(r" {3,}", table.strip())[7]

    def safe(self):
        wait_until("everything is in two places", 60, lambda: self.stat()["at_risk_bytes"] == 0)

    def runs(self):
        self.guest.run(1)
        self.guest.check()
        expect(self.stat()["lost_pages"] == 0, self.stat())


def survives(split):
    """A sub-host is killed under load, then the worker while copies are made."""
    split.safe()
    expect(split.stat()["redundancy"] in ("replica", "backup"), split.stat())
    split.guest("go")
    time.sleep(0.3)
    wait_until("the sub-hosts know", 20, lambda: all(split.region(i).get("at_risk") == 0 for i in range(3)))
    expect(split.region(1)["redundancy"] == split.stat()["redundancy"], split.region(1))
    wait_until("the tables say so", 20, lambda: split.shown(1) == (split.stat()["redundancy"], "0 B", "0 B"))
    split.hosts[0].process.kill()
    wait_until("what it had is told as at risk or copied", 20,
               lambda: not split.stat()["subhosts"][0]["connected"])
    split.guest("halt")
    split.runs()
    os.kill(split.target.guest(split.cluster.uuid)["worker_pid"], signal.SIGKILL)
    split.runs()
    split.safe()
    split.runs()


def test_replica(cluster):
    split = Split(cluster, "replica")
    survives(split)
    split.hosts[1].process.kill()
    split.runs()
    # One is left, and has the only copy of everything.
    wait_until("it knows what is at risk", 20, lambda: split.region(2)["at_risk"] == split.stat()["at_risk_bytes"] > 0)
    expect(split.shown(2)[0] == "replica" and split.shown(2)[1] == split.shown(2)[2] != "0 B", split.shown(2))
    split.guest.process.kill()


def test_none(cluster):
    split = Split(cluster, "none")
    wait_until("the sub-hosts know", 20, lambda: all("redundancy" in split.region(i) for i in range(3)))
    for i in range(3):
        region = split.region(i)
        expect(region["redundancy"] == "none" and region["at_risk"] == region["stored"] > 0, region)
    split.guest.process.kill()


def test_backup(cluster):
    folder = tempfile.mkdtemp(prefix="backup-", dir="/var/tmp")
    path = os.path.join(folder, cluster.uuid + ".backup")
    try:
        split = Split(cluster, "backup", backup=folder)
        expect(os.stat(path).st_mode & 0o777 == 0o600, "nobody else may read it")
        survives(split)
        for host in split.hosts[1:]:
            host.process.kill()
        split.runs()
        split.guest.process.kill()
        wait_until("the backup goes with the guest", 20, lambda: not os.path.exists(path))
    finally:
        shutil.rmtree(folder)


def test_refused(cluster):
    """What cannot be is refused in one sentence when the guest is announced."""
    pager = cluster.pager("refuses")
    subhosts = [{"name": "a", "data": "unix:/a", "control": "unix:/b", "export": "x", "limit": 1}]
    good = dict(uuid=cluster.uuid, migration=cluster.uuid, ticket="t", budget=64 * MIB, subhosts=subhosts)
    for words, says in (({"redundancy": "raid"}, "must be"), ({"redundancy": "replica"}, "needs two sub-hosts"),
                        ({"redundancy": "backup"}, "needs 'backup'"),
                        ({"redundancy": "backup", "backup": "/nowhere"}, "/nowhere cannot be used"),
                        ({"redundancy": "backup", "backup": "/etc/passwd"}, "is none")):
        control = Control(pager.control_path)
        try:
            control.call("incoming-prepare", **dict(good, **words))
        except Exception as error:
            expect(says in str(error), (words, error))
        else:
            raise Failure("%s was taken" % words)
        control.close()


def test(cluster):
    for part in test_refused, test_none, test_replica, test_backup:
        part(cluster)
        print("ok", part.__name__)


main(test)
