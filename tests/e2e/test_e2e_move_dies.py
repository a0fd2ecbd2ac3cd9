# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 600
"""Anything dies during the move: the guest runs on at the source, whole; everything is freed; a second
attempt succeeds.

Who: the mover, the destination's QEMU, its worker, a sub-host, the controller.  When: before round 1,
in a round, at switch-over before the commit (the mover stops itself there: SPLIT_MIGRATE_FAULT).
"""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 256 * MIB, 128 * MIB, 48 * MIB
VICTIMS = ("mover", "destination-qemu", "destination-worker", "subhost", "controller")
STAGES = ("before-round-1", "in-a-round", "switch-over")


def process_state(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def mover_pid(worker):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
            with open("/proc/%s/cmdline" % pid, "rb") as file:
                argv = file.read().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == worker and b"--mover" in argv:
            return int(pid)
    return None


class Attempt:
    """One migration that is stopped at a stage."""

    def __init__(self, cluster, source, source_pager, main_pager, stage):
        self.cluster, self.source, self.stage = cluster, source, stage
        self.source_pager, self.main_pager = source_pager, main_pager
        self.destination = cluster.guest("dst", main_pager, RAM, incoming=True)
        self.destination.wait_handed_over()
        more = ["--bandwidth", "8MiB"] if stage == "in-a-round" else []
        env = {"SPLIT_MIGRATE_FAULT": "controller-stop-before-round-1"} if stage == "before-round-1" else {}
        self.controller = cluster.command("migrate", "--live", "--policy", cluster.policy(BUDGET),
                                          *more, source.uri(), self.destination.uri(), env=env)
        self.worker = source_pager.guest(cluster.uuid)["worker_pid"]
        wait_until("the move is at " + stage, 60, self.reached)
        self.mover = mover_pid(self.worker)

    def reached(self):
        if self.controller.poll() is not None:
            raise Failure("split-migrate ended early: %s" % self.controller.stderr.read())
        if self.stage == "before-round-1":
            return process_state(self.controller.pid) == "T"
        if self.stage == "in-a-round":
            try:
                status = self.source_pager.call("outgoing-status", uuid=self.cluster.uuid)
            except Failure:
                return False
            return status["state"] == "moving" and status["wire_bytes"] > 2 * MIB
        mover = mover_pid(self.worker)
        return mover and process_state(mover) == "T"

    def kill(self, victim):
        if victim == "mover":
            os.kill(self.mover, signal.SIGKILL)
        elif victim == "destination-qemu":
            self.destination.daemon.kill()
        elif victim == "destination-worker":
            os.kill(self.main_pager.guest(self.cluster.uuid)["worker_pid"], signal.SIGKILL)
        elif victim == "subhost":
            self.cluster.subhosts[1].kill()
        else:
            self.controller.kill()

    def go_on(self, victim):
        if self.stage == "before-round-1" and victim != "controller":
            os.kill(self.controller.pid, signal.SIGCONT)
        if self.stage == "switch-over" and victim != "mover":
            try:
                os.kill(self.mover, signal.SIGCONT)
            except ProcessLookupError:
                pass


def check_freed(cluster, main_pager):
    wait_until("the destination's pager has forgotten the guest", 30, lambda: not main_pager.guests())
    for subhost in cluster.subhosts:
        wait_until("%s is empty" % subhost.name, 30, lambda s=subhost: not s.call("region-list"))


def one(cluster, source, source_pager, main_pager, victim, stage):
    attempt = Attempt(cluster, source, source_pager, main_pager, stage)

    def left():
        with open(main_pager.log, errors="replace") as log:
            return log.read().count("the controller's connection closed")
    before = left()
    attempt.kill(victim)
    if victim == "controller":
        # Else the mover may come to the commit before the pagers know, and the move is valid.
        wait_until("the main host's pager knows", 30, lambda: left() > before)
    attempt.go_on(victim)
    out, err = attempt.controller.communicate(timeout=60)
    status = attempt.controller.returncode
    if victim == "controller":
        # Nobody is left to end the waiting QEMU: an operator would.
        wait_until("the source's pager gives up", 30, lambda: source_pager.guest(
            cluster.uuid)["state"] == "attached")
    elif status != 1 or not err.startswith("error: ") or len(err.strip().splitlines()) > 2:
        raise Failure("split-migrate ended with %s: %s%s" % (status, out, err))
    attempt.destination.quit()
    if victim == "subhost":
        cluster.subhosts[1] = Subhost(cluster, cluster.subhosts[1].name, 256 * MIB)
    check_freed(cluster, main_pager)
    wait_until("the guest is attached at the source again", 30, lambda: source_pager.guest(
        cluster.uuid)["state"] == "attached")
    wait_until("the guest runs at the source", 20, lambda: source.status() == "running")
    reports = source.reports()
    wait_until("the guest works at the source", 30, lambda: source.reports() >= reports + 2)
    source.check_clean()
    print("%-20s %-16s ok: %s" % (victim, stage, (err.strip() or "(killed)").splitlines()[0]), flush=True)


def test(cluster):
    cluster.subhost(256 * MIB)
    cluster.subhost(256 * MIB)
    main_pager = cluster.pager("main")
    source_pager = cluster.pager("source", env={"SPLIT_MIGRATE_FAULT": "mover-stop-finish"})
    source = cluster.guest("src", source_pager, RAM,
                           append="memguest.size=%d memguest.rate=1000" % FILL)
    source.wait_log("memguest: ready", 120)
    start = time.monotonic()
    for stage in STAGES:
        for victim in VICTIMS:
            one(cluster, source, source_pager, main_pager, victim, stage)
    print("%d deaths in %.0f s" % (len(VICTIMS) * len(STAGES), time.monotonic() - start))

    # The last attempt is left alone. Its mover stops at the end as well: let it go on.
    attempt = Attempt(cluster, source, source_pager, main_pager, "switch-over")
    attempt.go_on("nobody")
    out, err = attempt.controller.communicate(timeout=60)
    if attempt.controller.returncode:
        raise Failure("the second attempt failed: %s%s" % (out, err))
    attempt.destination.expect_sweep()
    attempt.destination.check_clean()


main(test)
