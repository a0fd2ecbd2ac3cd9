#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""Armed migrations: the pager moves the RAM, QEMU moves all else."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))

import fakepager as fp  # noqa: E402
from fakepager import (Bench, QMPError, check, fail, main,  # noqa: E402
                       pages_in, wait_until)

ID = bytes(range(16))
# Seconds: far below any time-out in QEMU or the pager, far above what a busy
# machine takes for a step.
SOON = 20


class Pair:
    """Two hosts: a running source and a destination that waits."""

    def __init__(self, delay=20000, size=64, dirty=(16, 48), extra=()):
        self.bench = Bench(size=size, dirty=dirty, delay=delay)
        try:
            self.sp = self.bench.pager("source")
            self.dp = self.bench.pager("dest")
            self.source = self.bench.qemu("source-guest", self.sp,
                                          extra=extra)
            self.s = self.sp.session()
            self.a = self.source.ram_fd()
            self.bench.fill(self.a, 50, 60)
            self.bench.wait_running(self.a)
            self.new_dest()
            self.source.command("migrate-set-parameters", downtime_limit=2000)
        except BaseException:
            self.bench.close()
            raise

    def new_dest(self, pager=True):
        self.dest = self.bench.qemu("dest-guest", self.dp if pager else None,
                                    incoming=True)
        self.d = self.dp.session() if pager else None
        if pager:  # QEMU has to hear of it before it is asked to wait for RAM
            wait_until("connected", lambda:
                       self.dest.pager_property("connected"))
        self.b = self.dest.ram_fd()

    def arm(self, **mover):
        status = self.s.arm(ID, self.d, **mover)
        check(status == (0, ""), f"armed: {status}")
        check(self.source.pager_property("armed") is True, "armed")
        return self.s.mover

    def check_moved(self, equal=True):
        check(self.source.status() == "postmigrate", self.source.status())
        if equal:
            different = self.bench.differences(self.a, self.b)
            check(not different, f"pages differ: {different[:20]}")
        self.dest.command("cont")
        self.bench.wait_running(self.b)

    def check_goes_on(self):
        """The source runs as if nothing had happened."""
        wait_until("the source to run", lambda:
                   self.source.status() == "running")
        self.bench.wait_running(self.a)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bench.close()


def stream_bytes(info):
    return info["ram"]["transferred"]


def moved():
    with Pair() as p:
        mover = p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        info = p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        ram = info["ram"]
        check(ram["transferred"] >= mover.wire, f"wire bytes count: {ram}")
        check(ram["transferred"] < mover.wire + (4 << 20),
              f"the RAM was not in the stream: {ram} {mover.wire}")
        check(ram["duplicate"] >= mover.zero, f"zero pages: {ram}")
        check(ram["normal"] >= mover.done - mover.zero, f"normal: {ram}")
        check(ram["total"] >= p.bench.size << 20, f"total: {ram}")
        check(ram["remaining"] == 0, f"remaining: {ram}")
        check(mover.done >= (p.bench.size << 20) // fp.PAGE, "all pages")
        check(not mover.duplicates, "a page at most once in a round")
        check(mover.rounds == sorted(set(mover.rounds)), "rounds grow")
        check(fp.parse_result(p.s.wait_for(fp.MIG_END)) == (0, ""), "end")
        check(p.s.wait_for(fp.MIG_BEGIN) == ID, "id")
        check(p.d.wait_for(fp.IN_BEGIN) == ID, "id in the stream")
        check(not p.source.pager_property("armed"), "disarmed")
        check(pages_in(p.b, 1 << 20, 15 << 20) <=
              pages_in(p.a, 1 << 20, 15 << 20), "holes stay holes")
        p.check_moved()


def rounds():
    """A guest that writes all the time, and takes several rounds."""
    with Pair(delay=1) as p:
        # QEMU would believe a rate near zero, and then switches over as soon
        # as nothing is left that it knows of.  So it is told the rate, and the
        # guest writes more in a round than fits 10 ms, however busy the machine.
        mover = p.arm(rate=100 << 20)
        p.source.migrate(p.bench.listen(p.dest), downtime_limit=10,
                         max_bandwidth=0,
                         avail_switchover_bandwidth=100 << 20)
        end = time.monotonic() + 60
        while True:
            info = p.source.migration()
            check(info["status"] in ("setup", "active"), f"still at it: {info}")
            ram = info.get("ram", {"dirty-sync-count": 0, "mbps": 0})
            if ram["dirty-sync-count"] > 2 and ram["mbps"] > 0:
                break
            check(time.monotonic() < end, f"syncs and throughput: {ram}")
            time.sleep(0.1)
        p.source.command("migrate-set-parameters", downtime_limit=5000)
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        check(len(mover.rounds) > 2, f"rounds: {mover.rounds}")
        check(not mover.duplicates, "a page at most once in a round")
        p.check_moved()


def auto_converge():
    with Pair(delay=1) as p:
        p.arm(rate=60 << 20)
        p.source.set_capabilities(["auto-converge"])
        p.source.migrate(p.bench.listen(p.dest), downtime_limit=30,
                         cpu_throttle_initial=50)
        wait_until("the guest to be throttled", lambda:
                   p.source.migration().get("cpu-throttle-percentage"))
        p.source.command("migrate-set-parameters", downtime_limit=9000)
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def bandwidth():
    """max-bandwidth holds although others do the sending."""
    with Pair(delay=200000, dirty=(16, 18)) as p:
        p.bench.fill(p.a, 20, 60)
        limit = 16 << 20
        mover = p.arm()
        begin = time.monotonic()
        p.source.migrate(p.bench.listen(p.dest), max_bandwidth=limit,
                         downtime_limit=100)
        time.sleep(1.5)
        sent = mover.wire
        spent = time.monotonic() - begin
        check(sent <= limit * (spent + 0.3), f"{sent} bytes in {spent:.2f} s")
        wait_until("as much as is allowed in half a second", lambda:
                   mover.wire >= limit * 0.5)
        p.source.command("migrate-set-parameters", max_bandwidth=0)
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def multifd_and_switchover():
    """What libvirt sets: multifd, return path, pause before switchover."""
    with Pair() as p:
        p.arm()
        for q in (p.source, p.dest):
            q.set_capabilities(["multifd", "return-path", "switchover-ack",
                                "late-block-activate", "events"])
        p.source.set_capabilities(["pause-before-switchover"])
        p.source.migrate(p.bench.listen(p.dest))
        wait_until("the pause", lambda: p.source.migration()["status"] ==
                   "pre-switchover")
        p.source.command("migrate-continue", state="pre-switchover")
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def pager_fails():
    """It gives up half-way; the guest goes on, the next attempt succeeds."""
    with Pair() as p:
        p.arm(fail_after=4000)
        begin = time.monotonic()
        p.source.migrate(p.bench.listen(p.dest))
        info = p.source.wait_migration("failed")
        took = time.monotonic() - begin
        check(took < SOON, f"at once, not after {took:.1f} s")
        check("sub-host b is full" in info["error-desc"], info)
        status, reason = fp.parse_result(p.s.wait_for(fp.MIG_END))
        check(status, "the pager is told")
        check(not p.source.pager_property("armed"), "disarmed")
        p.check_goes_on()
        p.dest.kill()
        p.new_dest()
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def pager_fails_unasked():
    """MIG_FAILED while QEMU waits with nothing to do."""
    with Pair() as p:
        mover = p.arm(stuck_after=1000)
        p.source.migrate(p.bench.listen(p.dest))
        check(mover.stuck.wait(20), "stuck")
        time.sleep(0.3)
        begin = time.monotonic()
        p.s.send(fp.MIG_FAILED, fp.result(5, "the main host is gone"))
        info = p.source.wait_migration("failed")
        took = time.monotonic() - begin
        check(took < SOON, f"within 100 ms or so, not {took:.1f} s")
        check(info["error-desc"] == "the main host is gone", info)
        p.check_goes_on()


def pager_fails_at_the_end():
    with Pair() as p:
        mover = p.arm(stuck_at_finish=True)
        p.source.migrate(p.bench.listen(p.dest))
        check(mover.stuck.wait(20), "stuck")
        wait_until("the request", lambda: [
            c for k, c, _ in p.s.seen if k == fp.MIG_FINISH])
        cookie = [c for k, c, _ in p.s.seen if k == fp.MIG_FINISH][0]
        p.s.send(fp.MIG_FINISHED, fp.result(110, "no answer from sub-host a"),
                 cookie)
        info = p.source.wait_migration("failed")
        check(info["error-desc"] == "no answer from sub-host a", info)
        p.check_goes_on()


def pager_lost():
    with Pair() as p:
        mover = p.arm(stuck_after=1000)
        p.source.migrate(p.bench.listen(p.dest))
        check(mover.stuck.wait(20), "stuck")
        p.s.close()
        info = p.source.wait_migration("failed")
        check("connection to the pager was lost" in info["error-desc"], info)
        p.check_goes_on()
        p.s = p.sp.session()
        p.dest.kill()
        p.new_dest()
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def refused_by_pager():
    with Pair() as p:
        p.sp.begin = (16, "the reservation has expired")
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        info = p.source.wait_migration("failed")
        check("the reservation has expired" in info["error-desc"], info)
        p.check_goes_on()


def cancel(**mover_args):
    """migrate_cancel does not hang on a pager that is stuck."""
    with Pair() as p:
        mover = p.arm(**mover_args)
        p.source.migrate(p.bench.listen(p.dest))
        check(mover.stuck.wait(20), "stuck")
        time.sleep(0.5)
        begin = time.monotonic()
        check(p.source.migration()["status"] in ("active", "device"),
              "the monitor answers")
        p.source.command("migrate_cancel")
        p.source.wait_migration("cancelled", timeout=10)
        took = time.monotonic() - begin
        check(took < SOON, f"soon, not after {took:.1f} s")
        status, _ = fp.parse_result(p.s.wait_for(fp.MIG_END))
        check(status == 125, f"ECANCELED, not {status}")
        p.check_goes_on()
        p.dest.kill()
        p.new_dest()
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def cancel_in_rounds():
    cancel(stuck_after=1000)


def cancel_at_the_end():
    cancel(stuck_at_finish=True)


def cancel_in_setup():
    with Pair() as p:
        p.sp.mute = True
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        p.s.wait_for(fp.MIG_BEGIN)
        check(p.source.migration()["status"] == "setup", "the monitor answers")
        p.source.command("migrate_cancel")
        p.source.wait_migration("cancelled", timeout=10)
        p.check_goes_on()


def quit_while_waiting():
    """QEMU ends although its pager keeps it waiting, on either side."""
    for mover in ({"stuck_after": 1000}, {"stuck_at_finish": True},
                  {"hold_ready": True}):
        with Pair() as p:
            stuck = p.arm(**mover).stuck
            p.source.migrate(p.bench.listen(p.dest))
            if "hold_ready" in mover:
                p.d.wait_for(fp.IN_WAIT, timeout=30)
            else:
                check(stuck.wait(20), "stuck")
            time.sleep(0.2)
            for q in (p.source, p.dest):
                q.command("quit")
                check(q.end(timeout=5) == 0, f"exit status: {q.log()}")


def no_object_at_dest():
    with Pair() as p:
        p.dest.kill()
        p.new_dest(pager=False)
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        info = p.dest.wait_migration("failed")
        check("no ram-pager object here" in info["error-desc"], info)
        p.source.wait_migration("failed")
        p.check_goes_on()


def no_pager_at_dest():
    with Pair() as p:
        p.d.close()
        p.dp.close()
        wait_until("no pager", lambda: not p.dest.pager_property("connected"))
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        info = p.dest.wait_migration("failed")
        check("no pager is connected" in info["error-desc"], info)
        p.source.wait_migration("failed")
        p.check_goes_on()


def dest_waits(answer):
    """The destination waits for READY with its monitor alive; then answer."""
    with Pair() as p:
        p.arm(hold_ready=True)
        p.source.migrate(p.bench.listen(p.dest))
        p.d.wait_for(fp.IN_WAIT, timeout=30)
        time.sleep(0.3)
        check(p.dest.migration()["status"] == "active", "still waiting")
        check(p.dest.status() == "inmigrate", p.dest.status())
        answer(p, p.d.ready)


def dest_ready_late():
    def answer(p, held):
        held.put((0, ""))
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()
    dest_waits(answer)


def dest_not_ready():
    def answer(p, held):
        held.put((28, "the main host ran out of memory"))
        info = p.dest.wait_migration("failed")
        check("the main host ran out of memory" in info["error-desc"], info)
    dest_waits(answer)


def dest_pager_lost():
    def answer(p, held):
        p.d.close()
        info = p.dest.wait_migration("failed")
        check("the connection to the pager was lost" in info["error-desc"],
              info)
    dest_waits(answer)


def different_layout():
    with Pair() as p:
        p.dest.kill()
        size = p.bench.size
        p.bench.size = 32
        p.new_dest()
        p.bench.size = size
        p.arm()
        p.source.migrate(p.bench.listen(p.dest))
        p.dest.wait_migration("failed")
        p.source.wait_migration("failed")
        p.check_goes_on()


def incompatible():
    """What cannot be combined is refused in one sentence, and only then."""
    with Pair() as p:
        p.arm()
        for q in (p.source, p.dest):
            q.set_capabilities(["return-path"])
        for name, sentence in (("postcopy-ram", "postcopy"),
                               ("x-ignore-shared", "x-ignore-shared"),
                               ("background-snapshot",
                                "background-snapshot")):
            try:
                p.source.set_capabilities([name])
            except QMPError:
                continue  # this host or guest does not have it anyway
            p.source.migrate(p.bench.listen(p.dest))
            info = p.source.wait_migration("failed")
            check(f"together with {sentence}" in info["error-desc"], info)
            p.source.set_capabilities([name], False)
            p.dest.kill()
            p.new_dest()
        check(p.source.pager_property("armed"), "still armed")
        p.s.mover.dest = p.d
        p.source.set_capabilities(["return-path"], False)
        p.source.migrate(p.bench.listen(p.dest))
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def disarm():
    with Pair() as p:
        p.arm()
        check(p.s.request(fp.DISARM, fp.ARMED, bytes(16))[0] == 16,
              "not for another id")
        check(p.s.request(fp.DISARM, fp.ARMED, ID) == (0, ""), "disarmed")
        check(not p.source.pager_property("armed"), "disarmed")
        p.source.migrate(p.bench.listen(p.dest))
        info = p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        check(stream_bytes(info) > 8 << 20, "RAM was in the stream")
        p.check_moved()


def arm_too_late():
    """A migration that has begun as an ordinary one stays one."""
    with Pair(delay=1) as p:
        p.source.migrate(p.bench.listen(p.dest), max_bandwidth=8 << 20,
                         downtime_limit=10)
        wait_until("it has begun", lambda:
                   p.source.migration()["status"] == "active")
        status, reason = p.s.arm(ID, p.d)
        check(status == 16, f"busy: {status} {reason}")
        p.source.command("migrate-set-parameters", max_bandwidth=0,
                         downtime_limit=9000)
        p.source.wait_migration("completed")
        p.dest.wait_migration("completed")
        p.check_moved()


def savevm_file():
    """Saving a guest that is not armed writes its RAM."""
    with Pair() as p:
        path = p.bench.path("saved")
        p.source.command("stop")
        p.source.migrate("file:" + path)
        p.source.wait_migration("completed")
        check(os.path.getsize(path) > 8 << 20, "RAM is in the file")
        p.dest.command("migrate-incoming", uri="file:" + path)
        p.dest.wait_migration("completed")
        check(not p.bench.differences(p.a, p.b), "memory is equal")


main([moved, rounds, auto_converge, bandwidth, multifd_and_switchover,
      pager_fails, pager_fails_unasked, pager_fails_at_the_end, pager_lost,
      refused_by_pager, cancel_in_rounds, cancel_at_the_end, cancel_in_setup,
      quit_while_waiting,
      no_object_at_dest, no_pager_at_dest, dest_ready_late, dest_not_ready,
      dest_pager_lost, different_layout, incompatible, disarm, arm_too_late,
      savevm_file])
