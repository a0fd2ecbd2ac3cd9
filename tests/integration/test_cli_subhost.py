#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""split-migrate with real sub-hosts: what is reserved, kept, and given back however a move ends."""

import os
import re
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import eventually, main
from fakepagerctl import MIB, FakePager
from fakeqmp import UUID, FakeQemu, World
from subhost import SERVER, Subhost

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, os.environ.get("BUILD", "build"), "bin", "split-migrate")

for program in (PROGRAM, SERVER):
    if not os.path.exists(program):
        print("SKIP: %s is not built" % program)
        sys.exit(77)


class Bench(World):
    def __init__(self, hosts, memory):
        super().__init__()
        self.hosts = hosts
        self.controls = [host.control() for host in hosts]
        self.source = FakeQemu(self, "source")
        self.destination = FakeQemu(self, "destination", "inmigrate")
        self.source.peer, self.source.on_complete = self.destination, self.complete
        self.source_pager = FakePager(self, "source-pager", 256 * MIB, memory)
        self.main_pager = FakePager(self, "main-pager", 256 * MIB, memory)
        self.policy = self.path("policy")
        with open(self.policy, "w") as file:
            file.write("[main]\nbudget = 32 MiB\n[predictor]\nprofile-seconds = 0\n")
            for i, host in enumerate(hosts):
                file.write("[subhost h%d]\nuri = subhost://%s\n" % (
                    i, host.control_address[len("unix:"):]))

    def complete(self):
        """As the main host's pager does at the commit."""
        told = self.arguments["main-pager incoming-prepare"]["subhosts"]
        for control, subhost in zip(self.controls, told):
            control.call("region-keep", name=UUID, ticket=subhost["ticket"])
        self.main_pager.lease, self.main_pager.state = None, "split"

    def start(self, **env):
        return subprocess.Popen(
            [PROGRAM, "migrate", "--live", "--policy", self.policy,
             "qmp:%s?pager=unix:%s" % (self.source.path, self.source_pager.path),
             "qmp:%s?pager=unix:%s" % (self.destination.path, self.main_pager.path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, **env))

    def migrate(self, status, **env):
        process = self.start(**env)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status, (process.returncode, err)
        return err

    def regions(self):
        return [control.call("region-list") for control in self.controls]

    def check_free(self):
        eventually(lambda: not any(self.regions()), "regions are gone")
        for control in self.controls:
            status = control.call("query-status")
            assert status["free"] == status["memory"], status

    def close(self):
        for control in self.controls:
            control.close()
        super().close()


def test_kept():
    with Subhost(memory="128M") as a, Subhost(memory="256M") as b, \
            Bench((a, b), 200 * MIB) as bench:
        bench.migrate(0)
        regions = [one[0] for one in bench.regions()]
        assert [r["name"] for r in regions] == [UUID, UUID]
        assert not any(r["transient"] for r in regions), regions
        reserved = sum(r["reserve"] for r in regions)
        assert 200 * MIB - 32 * MIB < reserved < 256 * MIB, regions
        assert regions[0]["reserve"] < regions[1]["reserve"], regions
        # Only who has the ticket opens it.
        export = bench.arguments["main-pager incoming-prepare"]["subhosts"][0]["export"]
        assert re.fullmatch(UUID + r"\.[0-9a-f]{32}", export), export
        with a.peer(export) as peer:
            peer.write(0, b"page" * 1024)
        try:
            a.peer(UUID).close()
            raise AssertionError("the region opens without its ticket")
        except AssertionError:
            raise
        except Exception:  # NBD_REP_ERR_UNKNOWN, however the peer raises it
            pass


def test_given_back():
    with Subhost(memory="128M") as a, Subhost(memory="256M") as b:
        for what in ("source migrate", "source-pager outgoing-prepare", "main-pager incoming-prepare"):
            with Bench((a, b), 200 * MIB) as bench:
                bench.fail[what] = "refuse"
                bench.migrate(1)
                bench.check_free()
        with Bench((a, b), 200 * MIB) as bench:
            bench.migrate(-signal.SIGKILL, SPLIT_MIGRATE_FAULT="controller-exit-round")
            bench.check_free()
        with Bench((a, b), 200 * MIB) as bench:
            bench.source.steps = ["setup", "active"]
            process = bench.start()
            eventually(lambda: bench.called("source-pager outgoing-status") > 1, "it moves")
            assert all(bench.regions())
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
            assert process.returncode == 1
            bench.check_free()


def test_refused():
    with Subhost(memory="64M") as a, Subhost(memory="64M") as b:
        with Bench((a, b), 200 * MIB) as bench:
            err = bench.migrate(1)
            assert "'h0' has 64 MiB, 'h1' has 64 MiB" in err, err
            bench.check_free()
        # Somebody takes the memory between the look and the reservation.
        with Bench((a, b), 80 * MIB) as bench:
            def take():
                if bench.called("source-pager query-guest") == 2:  # the plan's
                    bench.controls[1].call("region-create", name="other", size=64 * MIB,
                                           reserve=60 * MIB)
            bench.hooks["source-pager query-guest"] = take
            err = bench.migrate(1)
            assert err.startswith("error: sub-host 'h1': cannot reserve"), err
            assert bench.regions()[0] == [] and len(bench.regions()[1]) == 1
            assert bench.called("destination quit") == 0


def test_dies_on_the_way():
    with Subhost(memory="128M") as a:
        b = Subhost(memory="256M")
        with Bench((a, b), 200 * MIB) as bench:
            bench.source.steps = ["setup", "active"]
            process = bench.start()
            eventually(lambda: bench.called("source-pager outgoing-status") > 1, "it moves")
            b.stop()
            _, err = process.communicate(timeout=20)
            assert process.returncode == 1 and "sub-host 'h1' closed its connection" in err, err
            assert bench.controls[0].call("region-list") == []
            assert bench.source.status == "running"


if __name__ == "__main__":
    main(globals())
