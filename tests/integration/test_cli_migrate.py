#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""split-migrate migrate against endpoints that only talk: the sequence, and that every failure undoes all."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import Skip, eventually, main
from fakepagerctl import MIB, FakePager, FakeSubhost
from fakeqmp import UUID, FakeQemu, World

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, os.environ.get("BUILD", "build"), "bin", "split-migrate")

POLICY = """[main]
budget = 256 MiB
[subhost a]
uri = subhost://%s
[subhost b]
uri = subhost://%s
memory = 512 MiB
[predictor]
profile-seconds = 1
[migration]
connections = 3
"""


class Bench(World):
    """A source, a main host and two sub-hosts, ready for a move."""

    def __init__(self, running=True):
        super().__init__()
        self.source = FakeQemu(self, "source", "running" if running else "paused")
        self.destination = FakeQemu(self, "destination", "inmigrate")
        self.source.peer = self.destination
        self.source.on_complete = self.complete
        self.source_pager = FakePager(self, "source-pager")
        self.main_pager = FakePager(self, "main-pager")
        self.subhosts = [FakeSubhost(self, "subhost-a"), FakeSubhost(self, "subhost-b")]
        self.before = (dict(self.source.capabilities), dict(self.source.parameters))
        self.policy = self.path("policy.ini")
        with open(self.policy, "w") as file:
            file.write(POLICY % tuple(s.path for s in self.subhosts))

    def complete(self):
        self.main_pager.lease, self.main_pager.state = None, "split"
        self.source_pager.lease, self.source_pager.state = None, "sent"
        for subhost in self.subhosts:
            subhost.keep()

    def uris(self):
        return ["qmp:%s?pager=unix:%s" % (q.path, p.path) for q, p in (
            (self.source, self.source_pager), (self.destination, self.main_pager))]

    def start(self, *more, env=None):
        return subprocess.Popen(
            [PROGRAM, "migrate", "--policy", self.policy] + list(more) + self.uris(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
            env=dict(os.environ, **(env or {})))

    def migrate(self, *more, env=None, status=0):
        process = self.start(*more, env=env)
        out, err = process.communicate(timeout=60)
        assert "Sanitizer" not in err, err
        assert process.returncode == status, (process.returncode, out, err, self.calls)
        if status > 0:
            assert err.splitlines()[-1].startswith("error: "), err
        return out, err

    def check_undone(self, what):
        """The guest runs at the source as before; nobody has anything left of the move."""
        eventually(lambda: not any(s.regions for s in self.subhosts), what + ": regions are freed")
        # A source's pager that has sent everything waits for its QEMU to end or to be sent again.
        sent = self.source.migration == "completed"
        eventually(lambda: self.source_pager.state == ("sent" if sent else "attached"),
                   what + ": source pager")
        assert self.source.status == "running", (what, self.source.status)
        assert "destination runs" not in self.guest_log, (what, self.guest_log)
        if self.destination.status == "gone":
            eventually(lambda: self.main_pager.state in ("attached", "split"), what)
        else:
            assert self.destination.status == "inmigrate", (what, self.destination.status)
            eventually(lambda: self.main_pager.state == "attached", what + ": main pager")
        assert not os.path.exists(self.destination.path + ".migrate"), what


if not os.path.exists(PROGRAM):
    print("SKIP: %s is not built" % PROGRAM)
    sys.exit(77)


def test_live():
    with Bench() as b:
        out, _ = b.migrate("--live", "--json", "--bandwidth", "100", "--downtime", "7")
        result = json.loads(out)
        assert result["result"] == "completed" and result["reason"] == ""
        assert result["downtime_ms"] == 56 and result["total_time_ms"] == 1234
        assert result["ram_bytes"] == 1 << 30 and result["skipped_pages"] == 17
        assert result["main_bytes"] == 2 * MIB and result["subhost_bytes"] == [MIB, MIB]
        assert result["rounds"] > 1 and result["stopped_ms"] >= 0
        # Exactly one side at a time, and the source only after the destination runs.
        assert b.guest_log == ["source stops", "destination runs"], b.guest_log
        calls = b.calls
        order = ["source query-uuid", "destination query-uuid", "subhost-b query-status",
                 "source-pager outgoing-profile", "subhost-a region-create",
                 "subhost-b region-create", "main-pager incoming-prepare",
                 "source-pager outgoing-prepare", "destination stop",
                 "destination migrate-incoming", "source migrate", "destination cont",
                 "source quit"]
        places = [calls.index(call) for call in order]
        assert places == sorted(places), calls
        assert "source stop" not in calls and "source cont" not in calls
        assert calls.count("destination cont") == 1
        assert b.source.capabilities["pause-before-switchover"] is False
        assert b.destination.capabilities["late-block-activate"] is True
        assert b.source.parameters["max-bandwidth"] == 100 * MIB
        assert b.source.parameters["downtime-limit"] == 7
        # The regions live on, with what the pagers were told about them.
        incoming = b.arguments["main-pager incoming-prepare"]
        outgoing = b.arguments["source-pager outgoing-prepare"]
        assert incoming["subhosts"] == outgoing["subhosts"]
        assert incoming["migration"] == outgoing["migration"]
        assert incoming["budget"] == 256 * MIB
        assert incoming["low_watermark"] < incoming["high_watermark"] < incoming["budget"]
        assert outgoing["main"]["budget"] == incoming["low_watermark"]
        assert outgoing["main"]["export"] == "%s.%s" % (UUID, incoming["ticket"])
        assert outgoing["connections"] == 3 and "bandwidth" not in outgoing  # QEMU paces
        for subhost, told in zip(b.subhosts, incoming["subhosts"]):
            ticket, _, created = subhost.regions[UUID]
            assert told["ticket"] == ticket and told["export"] == "%s.%s" % (UUID, ticket)
            assert told["control"] == "unix:" + subhost.path
            assert told["data"] == "unix:" + subhost.path + ".data"
            assert created["size"] == 1 << 30 and created["limit"] == told["limit"]
        assert incoming["subhosts"][1]["limit"] == 512 * MIB
        assert b.source.ended.is_set() and not b.destination.ended.is_set()


def test_offline_and_paused():
    with Bench() as b:
        b.migrate()
        assert b.called("source stop") == 1 and b.called("destination cont") == 1
        assert b.called("source-pager outgoing-profile") == 0
        assert b.guest_log == ["source stops", "destination runs"]
    with Bench(running=False) as b:
        out, _ = b.migrate("--live", "--keep-source", "--verbose")
        assert "Downtime:" in out
        assert b.called("destination cont") == 0 and b.called("source quit") == 0
        assert b.guest_log == [] and b.destination.status == "paused"


def test_dry_run_changes_nothing():
    with Bench() as b:
        out, _ = b.migrate("--live", "--dry-run", "--json")
        plan = json.loads(out)
        assert plan["present_bytes"] == 800 * MIB
        assert plan["main"]["bytes"] + sum(s["bytes"] for s in plan["subhosts"]) == 800 * MIB
        changing = [c for c in b.calls if not c.split()[1].startswith("query-")
                    and c.split()[1] not in ("qmp_capabilities", "qom-list")]
        assert not changing, changing


def test_estimate():
    with Bench() as b:
        out, _ = b.migrate("--live", "--dry-run", "--json", "--bandwidth", "100")
        estimate = json.loads(out)["estimate"]
        assert estimate["bandwidth"] == 100 * MIB and estimate["dirty_rate"] == 10 * MIB and estimate["ends"]
        assert 8000 * 1.09 < estimate["total_time_ms"] < 8000 * 1.15, estimate
        assert 0 < estimate["downtime_ms"] <= 160, estimate
        b.source.dirty_rate = 300
        out, _ = b.migrate("--live", "--dry-run", "--bandwidth", "100")
        assert re.search(r"^Guest writes: +300 MiB/s$", out, re.M), out
        assert re.search(r"^Estimated time: +no end: the guest writes too fast for 100 MiB/s$", out, re.M), out
        assert not b.called("source migrate")


def test_options_that_do_not_fit():
    def refused(says, *more):
        with Bench() as b:
            _, err = b.migrate("--live", *more, status=2)
            assert says in err and err.count("\n") == 1, err
            assert not b.calls, b.calls
    refused("--timeout-suspend' needs '--timeout", "--timeout-suspend")
    refused("--timeout-abort' needs '--timeout", "--timeout-abort", "--timeout", "0")
    refused("exclude each other", "--timeout-abort", "--timeout-suspend", "--timeout", "9")
    refused("--dname' is for domains of libvirt", "--dname", "x")


# Every call of the sequence before the guest is handed over.
STEPS = [
    "source query-uuid", "source query-status", "source qom-list", "source query-migrate",
    "destination query-status", "destination query-uuid", "destination qom-list",
    "source-pager query-guest", "main-pager query-status", "main-pager query-guest",
    "subhost-a query-status", "subhost-b query-status", "source-pager outgoing-profile",
    "subhost-a region-create", "subhost-b region-create", "main-pager incoming-prepare",
    "source-pager outgoing-prepare", "source query-migrate-capabilities",
    "source query-migrate-parameters", "source migrate-set-capabilities",
    "source migrate-set-parameters", "destination migrate-set-capabilities", "destination stop",
    "destination migrate-incoming", "source migrate", "source-pager outgoing-status",
    "destination query-migrate",
]


def test_every_step_refused():
    for step in STEPS:
        with Bench() as b:
            b.fail[step] = "refuse"
            out, err = b.migrate("--live", "--json", status=1)
            assert "was told to refuse" in err, (step, err)
            assert json.loads(out)["result"] == "failed" and json.loads(out)["reason"], step
            b.check_undone(step)
            early = STEPS.index(step) < STEPS.index("subhost-a region-create")
            if early or step == "destination query-migrate":
                assert b.called("destination quit") == 0, step
            if b.source.parameters != b.before[1] and step != "source migrate-set-parameters":
                raise AssertionError("%s: settings were not restored" % step)


def test_every_step_broken():
    for step in STEPS:
        with Bench() as b:
            b.fail[step] = "close"
            b.migrate("--live", status=1)
            b.check_undone(step)


def test_destination_fails_to_load():
    for how in ("refuse", "close"):
        with Bench() as b:
            def complete():
                b.complete()
                b.fail["destination query-migrate"] = how
            b.source.on_complete = complete
            b.migrate("--live", status=1)
            b.check_undone(how)
            assert b.guest_log == ["source stops", "source runs"], b.guest_log
            assert b.destination.ended.is_set()


def test_wrong_guests():
    def refused(says, change, *more):
        with Bench() as b:
            change(b)
            _, err = b.migrate("--live", *more, status=1)
            assert says in err, err
            b.check_undone(says)
            assert b.called("subhost-a region-create") == 0 and b.called("destination quit") == 0

    refused("-incoming defer", lambda b: setattr(b.destination, "status", "prelaunch") or
            setattr(b, "check_undone", lambda what: None))
    refused("another guest", lambda b: setattr(b.destination, "uuid", "0" * 7 + UUID[7:]))
    refused("must be started with -uuid",
            lambda b: setattr(b.source, "uuid", "00000000-0000-0000-0000-000000000000"))
    refused("source QEMU has no ram-pager object", lambda b: b.source.objects.pop(0))
    refused("destination QEMU has no ram-pager object", lambda b: b.destination.objects.pop(0))
    refused("must be started anew", lambda b: setattr(b.destination, "migration", "setup"))
    refused("is migrating already", lambda b: setattr(b.source, "migration", "active"))
    refused("moving a split guest is not supported yet",
            lambda b: setattr(b.source_pager, "state", "split") or
            setattr(b, "check_undone", lambda what: None))
    refused("'a' has 64 MiB, 'b' has 64 MiB",
            lambda b: [setattr(s, "free", 64 * MIB) for s in b.subhosts])
    refused("the main host lacks memory", lambda b: setattr(b.main_pager, "available", MIB))
    refused("budget", lambda b: None, "--high-watermark", "1 GiB")


def test_hand_off_under_way():
    """QEMU answers before it has handed its memory over: a move asked for just then waits for that."""
    with Bench() as b:
        b.source_pager.waiting, b.main_pager.waiting = 2, 4
        b.migrate("--live")
        assert not b.main_pager.waiting and b.main_pager.state == "split"
    with Bench() as b:
        b.main_pager.waiting = 1 << 20
        _, err = b.migrate("--live", status=1)
        assert "has not handed its memory over" in err, err
        b.check_undone("no hand-off")


def test_qemu_fails():
    with Bench() as b:
        b.source.steps = ["setup", "active", "failed"]
        b.source.error = "the stream broke"
        _, err = b.migrate("--live", status=1)
        assert "the migration failed: the stream broke" in err, err
        b.check_undone("failed")
        assert b.destination.ended.is_set()
        assert (b.source.capabilities, b.source.parameters) == b.before
    with Bench() as b:
        def complete():  # the main host's pager never takes the guest over
            b.source_pager.lease, b.source_pager.state = None, "sent"
        b.source.on_complete = complete
        _, err = b.migrate("--live", status=1)
        assert "has not taken the guest over" in err, err
        assert b.guest_log[-1] == "source runs" and b.called("destination cont") == 0
        b.check_undone("not split")


def test_pager_says_why():
    with Bench() as b:
        def fail():
            b.main_pager.event("INCOMING_FAILED", uuid=UUID, reason="the map is wrong")
        b.source.steps = ["setup", "active"]
        b.hooks["source-pager outgoing-status"] = fail
        _, err = b.migrate("--live", status=1)
        assert "the migration failed: the map is wrong" in err, err
        assert b.called("source migrate_cancel") == 1
        b.check_undone("event")


def test_lease_lost():
    for who in ("subhost-b", "main-pager", "source-pager"):
        with Bench() as b:
            b.source.steps = ["setup", "active"]
            server = next(s for s in b.servers if s.name == who)
            done = []

            def drop():
                if not done:
                    done.append(1)
                    server.drop()
            b.hooks["source query-migrate"] = lambda: (
                b.source.migration == "active" and drop())
            b.migrate("--live", status=1)
            b.check_undone(who)


def test_signal_and_timeout():
    for number in (signal.SIGINT, signal.SIGTERM):
        with Bench() as b:
            b.source.steps = ["setup", "active"]
            process = b.start("--live")
            eventually(lambda: b.called("source-pager outgoing-status") > 2, "the guest moves")
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 1 and "interrupted" in err, (process.returncode, err)
            b.check_undone("signal")
            assert b.called("source migrate_cancel") and b.called("source-pager outgoing-cancel")
            assert b.called("main-pager incoming-cancel") and b.called("destination quit")
    with Bench() as b:
        b.source.steps = ["setup", "active"]
        _, err = b.migrate("--live", "--timeout", "1", status=1)
        assert "did not finish within 1 s" in err, err
        b.check_undone("timeout")


def test_fast_writer():
    """It is said that a guest writes too fast, what slows it down, and why the time was not enough."""
    with Bench() as b:
        b.source.steps, b.source.fast_writer = ["setup", "active"], True
        _, err = b.migrate("--live", "--timeout", "3", status=1)
        assert err.count("the move does not come to an end, as the guest writes 240 MiB/s and ") == 1, err
        assert re.search(r"can be sent: --auto-converge would slow it down$", err, re.M), err
        assert re.search(r"^error: the migration did not finish within 3 s, as the guest writes 240 MiB/s and "
                         r"[\d.]+ [KMG]iB/s can be sent: it was cancelled$", err, re.M), err
        b.check_undone("timeout")
        assert b.source.capabilities["auto-converge"] is False
    with Bench() as b:
        b.source.steps, b.source.fast_writer = ["setup", "active"], True
        _, err = b.migrate("--live", "--verbose", "--auto-converge", "--timeout", "3", status=1)
        assert "Slowing the guest down by 20 %" in err and "would slow" not in err, err
        assert re.search(r"within 3 s, as the guest writes 240 MiB/s although it is slowed down by \d+ % and ", err), err
        b.check_undone("timeout")
        assert b.source.capabilities["auto-converge"] is False, "QEMU has back what it had"


def test_signal_while_profiling():
    with Bench() as b:
        go = threading.Event()
        b.hooks["source-pager outgoing-profile"] = lambda: go.wait(20)
        process = b.start("--live")
        eventually(lambda: b.called("source-pager outgoing-profile"), "profiling")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        go.set()
        assert process.returncode == 1 and "interrupted" in err, err
        b.check_undone("profiling")


def test_completed_before_the_signal():
    with Bench() as b:
        b.source.steps = ["setup", "active", "completed"]
        started = []

        def interrupt():
            if b.source.step == 2 and not started:
                started.append(1)
                process.send_signal(signal.SIGINT)
                b.source._enter("completed")
        b.hooks["source-pager outgoing-status"] = interrupt
        process = b.start("--live")
        process.communicate(timeout=20)
        assert process.returncode == 0 and b.guest_log == ["source stops", "destination runs"]


def test_no_way_back():
    # From the moment `cont` was sent the source must not run, whatever becomes of the answer.
    for how in ("refuse", "close"):
        with Bench() as b:
            b.fail["destination cont"] = how
            _, err = b.migrate("--live", status=3)
            assert "at the destination" in err, err
            assert b.called("source cont") == 0 and b.called("destination quit") == 0
            assert b.called("source quit") == 0
            assert b.called("subhost-a region-delete") == 0
    # The destination's monitor is gone before it: then nothing was sent, and the source goes on.
    with Bench() as b:
        b.hooks["main-pager query-guest"] = lambda: (
            b.source.migration == "completed" and b.destination.close())
        b.migrate("--live", status=1)
        assert b.guest_log == ["source stops", "source runs"], b.guest_log


def test_source_is_lost():
    with Bench() as b:
        b.source.steps = ["setup", "active"]
        b.hooks["source-pager outgoing-status"] = lambda: b.source.close()
        _, err = b.migrate("--live", status=3)
        assert "needs attention" in err, err
        assert b.called("destination cont") == 0 and b.called("destination quit") == 1


def test_faults():
    for place, calls in (("controller-exit-before-round-1", 0), ("controller-exit-round", 1),
                         ("controller-exit-switchover", 1)):
        with Bench() as b:
            process = b.start("--live", env={"SPLIT_MIGRATE_FAULT": place})
            process.communicate(timeout=20)
            assert process.returncode == -signal.SIGKILL, (place, process.returncode)
            assert b.called("source migrate") == calls and b.called("destination cont") == 0
            eventually(lambda: not any(s.regions for s in b.subhosts), "leases end")
            eventually(lambda: b.main_pager.state == "attached", "leases end")


if __name__ == "__main__":
    main(globals())
