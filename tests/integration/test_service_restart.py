#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Both daemons as their units run them, as users without any privilege: a guest is split and pages.

Then the pager is stopped and started, as systemd does it, again and again while the guest works: its
worker stays, the guest goes on in between, and the next daemon knows it.
"""

import os
import stat
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, Control, Failure, main, wait_until
from guestplay import GuestPlay, move
from units import IDS, Service, as_user

RESTARTS = 5


class PagerService(Service):
    def __init__(self, cluster, name):
        super().__init__(cluster, "uffd-pager", os.path.join(cluster.dir, name))
        self.handoff = os.path.join(self.folder, "handoff.sock")
        self.control_path = os.path.join(self.folder, "uffd-pager.sock")
        self.start()

    def guest(self, uuid):
        control = Control(self.control_path)
        try:
            return control.call("query-guest", uuid=uuid)
        finally:
            control.close()


class SubhostService(Service):
    def __init__(self, cluster, name):
        super().__init__(cluster, "subhost-server", os.path.join(cluster.dir, name),
                         "--memory 128M --listen tcp:127.0.0.1:0")
        self.name, self.control_path = name, os.path.join(self.folder, "subhost.sock")
        self.start()
        control = Control(self.control_path)
        self.data = control.call("query-status")["data"][0]
        control.close()


def check_unprivileged(service, pid=None):
    who = service.credentials(pid)
    uid = IDS[service.unit["User"][0]]
    caps = {who[key].strip("0") for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    if who["Uid"].split() != [str(uid)] * 4 or caps != {""} or who["NoNewPrivs"] != "1":
        raise Failure("%s does not run as its unit says: %s" % (service.name, who))


def check_socket(path, group):
    st = os.stat(path)
    if st.st_gid != IDS[group] or stat.S_IMODE(st.st_mode) != 0o660:
        raise Failure("%s is of group %d, mode %o" % (path, st.st_gid, stat.S_IMODE(st.st_mode)))


def check_log(service):
    for line in service.text().splitlines():
        if line[:3] not in ("<3>", "<4>", "<6>"):
            raise Failure("a line that the journal does not understand: " + line)
        if line.startswith("<3>"):
            raise Failure("an error was logged: " + line)


def restart_under_load(pager, there, uuid):
    worker = pager.guest(uuid)["worker_pid"]
    check_unprivileged(pager, worker)
    there("go")
    for number in range(RESTARTS):
        before = pager.guest(uuid)["page_ins"]
        wait_until("paging", 20, lambda: pager.guest(uuid)["page_ins"] > before + 200)
        pager.stop()
        os.kill(worker, 0)
        checks = there("stats")["checks"]
        wait_until("the guest works without a daemon", 20, lambda: there("stats")["checks"] > checks + 1000)
        pager.start()
        guest = pager.guest(uuid)
        if guest["state"] != "split" or guest["worker_pid"] != worker or not guest["connected"]:
            raise Failure("after restart %d: %s" % (number, guest))
        if guest["page_ins"] < before:
            raise Failure("the counters began anew: the worker is another")
    there.check()


def test(cluster):
    os.chmod(cluster.dir, 0o777)
    source, target = PagerService(cluster, "source"), PagerService(cluster, "target")
    cluster.subhosts = [SubhostService(cluster, "suba"), SubhostService(cluster, "subb")]
    for service in [source, target] + cluster.subhosts:
        check_unprivileged(service)
        check_socket(service.control_path, "split-migrate")
    check_socket(target.handoff, "kvm")
    # QEMU may make a userfaultfd (here by a capability, on a host by /dev/userfaultfd) and is in kvm.
    qemu = as_user("libvirt-qemu", ["kvm"], ["CAP_SYS_PTRACE"])
    here = GuestPlay(cluster, source, "source guest", prefix=qemu)
    there = GuestPlay(cluster, target, "destination guest", incoming=True, prefix=qemu)
    here("mode", "hot")
    here("fill", 80)
    move(cluster, source, target, here, there)
    here.check()
    here.process.kill()
    there.run(1)
    restart_under_load(target, there, cluster.uuid)
    guest = target.guest(cluster.uuid)
    if guest["lost_pages"] or guest["resident"] > 25 * MIB or not guest["page_outs"]:
        raise Failure("at the end: %s" % guest)
    there.process.kill()
    folder = os.path.join(target.folder, "guests", cluster.uuid)
    wait_until("what is left of the guest is removed", 20, lambda: not os.path.exists(folder))
    for subhost in cluster.subhosts:
        control = Control(subhost.control_path)
        wait_until("its regions are freed", 20, lambda: not control.call("region-list"))
        control.close()
    for service in [source, target] + cluster.subhosts:
        service.stop()
        check_log(service)
    print("restarted %d times at %s" % (RESTARTS, time.strftime("%H:%M:%S")))


main(test)
