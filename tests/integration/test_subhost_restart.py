#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Regions in --state-dir outlive the server: killed, upgraded, killed again; and are freed when they should be."""

import os
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import command, eventually, expect
from engineplay import NAME, EnginePlay
from nbdpeer import WRITE, NbdError
from subhost import MIB, PAGE, SERVER, ControlError, Subhost

SIZE = 64 * MIB
EIO = 5


class StateDir:
    """A directory on tmpfs; what is left in it is freed at the end."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="subhost-state-", dir="/dev/shm")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path)

    def files(self):
        return sorted(name for name in os.listdir(self.path) if name != ".lock")

    def pages(self, name):
        """Bytes of memory behind a region's pages, as the kernel counts them."""
        return os.stat(os.path.join(self.path, name + ".pages")).st_blocks * 512

    def memory(self):
        return sum(os.lstat(os.path.join(self.path, name)).st_blocks * 512 for name in self.files())


def host_in(state, **options):
    return Subhost("--state-dir", state.path, **options)


def test_kept_regions_come_back():
    mark = os.urandom(6 * MIB + 3 * PAGE)
    with StateDir() as state, host_in(state) as host:
        with host.control() as control:
            control.call("region-create", name="kept", size=SIZE, reserve=MIB, limit=32 * MIB, ticket="t1")
            control.call("region-keep", name="kept", ticket="t1")
            control.call("region-create", name="transient", size=SIZE)
            with host.peer("kept.t1") as peer, host.peer("transient") as other:
                peer.write(5 * MIB - PAGE, mark)
                peer.zeroes(MIB, 2 * MIB)
                peer.trim(6 * MIB, MIB)
                other.write(0, mark)
            before = control.region("kept")
            assert before["stored"] == len(mark) - MIB == state.pages("kept"), before
            host.kill()
        for end in (host.kill, lambda: host.process.send_signal(signal.SIGTERM) or host.process.wait(10), None):
            host.launch()
            assert "region kept is taken up again" in host.log(), host.log()
            with host.control() as control:
                assert [r["name"] for r in control.call("region-list")] == ["kept"]
                after = control.region("kept")
                assert dict(after, connections=0) == dict(before, connections=0, transient=False), after
                assert control.call("query-status")["stored"] == before["stored"]
                assert state.files() == ["kept.bits", "kept.json", "kept.pages"], state.files()
                expect(NbdError, host.peer, "kept")
                expect(NbdError, host.peer, "transient")
                with host.peer("kept.t1/strict") as peer:
                    assert peer.read(5 * MIB - PAGE, MIB + PAGE) == mark[:MIB + PAGE]
                    assert expect(NbdError, peer.read, 6 * MIB, PAGE).number == EIO
                    assert peer.read(7 * MIB, 4 * MIB + 2 * PAGE) == mark[2 * MIB + PAGE:]
                    assert peer.read(MIB, 2 * MIB) == bytes(2 * MIB)
                    assert expect(NbdError, peer.read, 40 * MIB, PAGE).number == EIO
            if end:
                end()
        with host.control() as control:
            assert expect(ControlError, control.call, "region-delete", name="kept", ticket="x").name == "EACCES"
            control.call("region-delete", name="kept", ticket="t1")
            assert control.call("query-status")["stored"] == 0
        assert state.files() == []


def test_killed_in_the_middle_of_a_write():
    with StateDir() as state, host_in(state) as host:
        with host.control() as control:
            control.call("region-create", name="r", size=SIZE)
            control.call("region-keep", name="r")
            with host.peer("r") as peer:
                peer.write(0, b"o" * (2 * MIB))
                peer.zeroes(8 * MIB, MIB)
            peer = host.peer("r")
            peer.request(WRITE, MIB, 8 * MIB, b"n" * (3 * MIB + 17))
            eventually(lambda: control.region("r")["stored"] == 9 * MIB, "the write is charged")
            host.kill()
            peer.close()
        host.launch()
        with host.control() as control, host.peer("r/strict") as peer:
            assert control.region("r")["stored"] == 2 * MIB == state.pages("r")
            assert peer.read(0, MIB) == b"o" * MIB
            assert expect(NbdError, peer.read, 2 * MIB, PAGE).number == EIO
            assert peer.read(8 * MIB, MIB) == bytes(MIB)
            peer.write(MIB, b"w" * (8 * MIB))
            assert control.region("r")["stored"] == 9 * MIB == state.pages("r")


def test_forget_and_refusals():
    with StateDir() as state:
        run = (SERVER, "--memory", "64M", "--state-dir", state.path)
        with host_in(state) as host, host.control() as control:
            control.call("region-create", name="r", size=SIZE)
            control.call("region-keep", name="r")
            with host.peer("r") as peer:
                peer.write(0, os.urandom(4 * MIB))
            for words in (run, run + ("--forget",)):
                assert b"another server uses" in command(*words, ok=False).stderr
            assert control.region("r")["stored"] == 4 * MIB
        assert state.memory() >= 4 * MIB
        done = command(*run[:2], "2M", *run[3:], ok=False)
        assert b"cannot be taken up" in done.stderr, done.stderr
        assert state.pages("r") == 4 * MIB
        assert b"1 regions" in command(SERVER, "--state-dir", state.path, "--forget").stderr
        assert state.memory() == 0 and state.files() == []
        os.chmod(state.path, 0o750)
        assert b"chmod 0700" in command(*run, ok=False).stderr
        os.chmod(state.path, 0o700)
        with open(os.path.join(state.path, "r.json"), "w") as file:
            file.write('{"version": 7}')
        assert b"was not written by this version" in command(*run, ok=False).stderr
        assert state.files() == ["r.json"]
    for words, sentence in ((("--state-dir", "/proc"), b"is not on tmpfs"), (("--state-dir", "x"), b"must begin with /"),
                            (("--forget",), b"needs --state-dir")):
        assert sentence in command(SERVER, "--memory", "64M", *words, ok=False).stderr, words


def test_killed_twenty_times_under_load():
    def keep(host):
        with host.control() as control:
            control.call("region-create", name=NAME, size=SIZE)
            control.call("region-keep", name=NAME)

    with StateDir() as state, host_in(state, memory="512M") as one, Subhost(memory="512M") as two:
        keep(one)
        keep(two)
        with EnginePlay([one.unix, two.unix], size=["47M", "15M"], budget="24M", low="16M", high="20M", local=15,
                        remote=60, threads=4, granule="256K", lost_ms=30000) as play:
            play("mode", "random")
            play("go")
            worst, ended = 0, []
            for _ in range(20):
                before = play("stats")
                eventually(lambda: play("stats")["engine"]["page_outs"] > before["engine"]["page_outs"] and
                           play("stats")["engine"]["page_ins"] > before["engine"]["page_ins"], "pages come and go", 20)
                play("stats") # the longest wait begins again
                killed = time.monotonic()
                one.kill()
                one.launch()
                ended.append(time.monotonic() - killed)
                assert one.log().count("is taken up again") == 1, one.log()
                eventually(lambda: play("stats")["engine"]["subhosts"][0]["connected"], "the pager is connected", 10)
                stats = play("stats")
                worst = max(worst, stats["longest_us"])
                assert stats["errors"] == 0 and stats["engine"]["lost_pages"] == 0, stats
            play("halt")
            stats = play.check()
            assert stats["lost"] == 0 and not play.event("PAGES_LOST"), (stats, play.events)
            with one.control() as control:
                stored = control.region(NAME)["stored"]
            pages = play("pages")["subhosts"][0]
            assert stored == state.pages(NAME) and stored >= (pages["remote"] + pages["clean"]) * PAGE, (stored, pages)
            print("20 restarts, each %.0f to %.0f ms; no page lost; the longest access took %.0f ms; %d checks"
                  % (min(ended) * 1000, max(ended) * 1000, worst / 1000, stats["checks"]))
        with one.control() as control:
            control.call("region-delete", name=NAME)
        assert state.memory() == 0, state.files()


if __name__ == "__main__":
    checks.main(globals())
