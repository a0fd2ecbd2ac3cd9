#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A sub-host is emptied while its guest runs: nothing is lost, nothing stays; and what if it cannot be."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import eventually
from engineplay import NAME, EnginePlay, with_region
from subhost import MIB, PAGE, Subhost

SIZE = 96 * MIB


@contextlib.contextmanager
def guest(n, limit=None, **options):
    """A guest on n sub-hosts; yields it, the hosts' control connections, and the hosts."""
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(Subhost(memory="512M")) for _ in range(n)]
        controls = [stack.enter_context(with_region(host, SIZE, limit=limit)) for host in hosts]
        values = dict(size=["71M", "23M"], budget="24M", low="16M", high="20M", local=15, remote=70, threads=4,
                      granule="256K", prefetch=8)
        values.update(options)
        yield stack.enter_context(EnginePlay([(h.unix, h.control_address) for h in hosts], **values)), controls, hosts


def rate(play, seconds):
    before, began = play("stats")["checks"], time.monotonic()
    time.sleep(seconds)
    return (play("stats")["checks"] - before) / (time.monotonic() - began)


def test_one_of_three_under_load():
    with guest(3) as (play, controls, _):
        play("mode", "random")
        play("go")
        usual = rate(play, 2)
        held = controls[1].region(NAME)["stored"]
        assert held > 8 * MIB, held
        began, before = time.monotonic(), play("stats")["checks"]
        assert play("drain", 1, 1)["err"] == 0
        eventually(lambda: play.event("SUBHOST_EMPTY"), "it is empty", 60)
        took = time.monotonic() - began
        during = (play("stats")["checks"] - before) / took
        assert controls[1].region(NAME)["stored"] == 0
        pulled = sum(control.call("stats")["pulled_bytes"] for control in (controls[0], controls[2]))
        assert pulled > held // 2, "the others fetch it by themselves: %d of %d" % (pulled, held)
        stats = play.play(1)
        assert stats["engine"]["lost_pages"] == 0 and stats["engine"]["chunks_moved"] >= 8, stats
        assert controls[1].region(NAME)["stored"] == 0, "nothing goes there any more"
        play.check()
        pages = play("pages")["subhosts"]
        assert pages[1] == {"remote": 0, "clean": 0}, pages
        print("%d MiB in %.1f s; the guest's rate was %.0f %% of the usual; longest access %.0f ms"
              % (held // MIB, took, 100 * during / usual, stats["longest_us"] / 1000))
        # It can be used again, and the engine that comes next goes on from where the chunks are now.
        assert play("drain", 1, 0)["err"] == 0
        play("kill")
        play.start()
        play.check()
        assert play("stats")["lost"] == 0


def test_killed_while_moving():
    with guest(2) as (play, controls, _):
        play("mode", "random")
        for turn in range(6):
            play("go")
            moved = play("stats")["engine"]["chunks_moved"]
            assert play("drain", turn % 2, 1)["err"] == 0
            eventually(lambda: play("stats")["engine"]["chunks_moved"] > moved + 1, "chunks are moving", 20)
            play("kill")
            del play.events[:]
            play.start()
            play("go")
            eventually(lambda: play.event("SUBHOST_EMPTY"), "the next engine goes on with it", 30)
            assert controls[turn % 2].region(NAME)["stored"] == 0, "nothing is left of what was cut short"
            assert play("drain", turn % 2, 0)["err"] == 0
        play.check()
        assert sum(control.call("stats")["pulled_bytes"] for control in controls)
        assert play("stats")["lost"] == 0, play.events


def test_killed_while_the_target_is_stopped():
    # The old worker's request for a copy is still on its way when the new worker comes.
    with guest(2) as (play, controls, hosts):
        play("mode", "random")
        play("go")
        assert play("drain", 0, 1)["err"] == 0
        eventually(lambda: play("stats")["engine"]["chunks_moved"] > 1, "chunks are moving", 20)
        hosts[1].process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)  # nothing tells that the request has been sent
        play("kill")
        play.start()
        settling = play("stats")["engine"]["subhosts"][1]["settling"]
        hosts[1].process.send_signal(signal.SIGCONT)
        assert settling, "the new worker knows that a copy may be going on"
        play("go")
        eventually(lambda: play.event("SUBHOST_EMPTY"), "it is empty", 60)
        assert not play("stats")["engine"]["subhosts"][1]["settling"]
        play.check()
        assert play("stats")["lost"] == 0 and controls[0].region(NAME)["stored"] == 0


def test_no_room_elsewhere():
    with guest(2, limit=40 * MIB) as (play, controls, _):
        play("go")
        assert play("drain", 0, 1)["err"] == 0
        eventually(lambda: play.event("DRAIN_STALLED"), "the operator is told", 30)
        assert play("drain", 1, 1)["err"] == -28
        stats = play.check()
        assert stats["lost"] == 0 and not play.event("SUBHOST_EMPTY"), stats


class Recorder:
    """Stands before a control socket and writes down what is asked."""

    def __init__(self, host):
        self.host, self.asked = host, b""
        path = os.path.join(host.folder, "recorder.sock")
        self.address = "unix:" + path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.host.control_address[5:])
            for words in (client, server, True), (server, client, False):
                threading.Thread(target=self.forward, args=words, daemon=True).start()

    def forward(self, source, sink, record):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.asked += data if record else b""
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_the_other_one_cannot_write():
    """Who fetches the pages is given no ticket with which it could change them."""
    with Subhost(memory="512M") as one, Subhost(memory="512M") as two, \
            with_region(one, SIZE, ticket="ticket-of-one") as first, with_region(two, SIZE, ticket="ticket-of-two") as second:
        recorder = Recorder(two)
        places = ["%s,%s.ticket-of-one,%s" % (one.unix, NAME, one.control_address),
                  "%s,%s.ticket-of-two,%s" % (two.unix, NAME, recorder.address)]
        with EnginePlay([], size=["71M", "23M"], budget="24M", low="16M", high="20M", local=15, remote=70, threads=4,
                        granule="256K", prefetch=8, subhost=places) as play:
            play("mode", "random")
            play("go")
            assert play("drain", 0, 1)["err"] == 0
            eventually(lambda: play.event("SUBHOST_EMPTY"), "it is empty", 60)
            assert first.region(NAME)["stored"] == 0 and second.call("stats")["pulled_bytes"] > 8 * MIB
            assert b"region-pull" in recorder.asked and b"ticket-of-two" in recorder.asked
            assert b"ticket-of-one" not in recorder.asked
            play.check()
            assert play("stats")["lost"] == 0, play.events


if __name__ == "__main__":
    checks.main(globals())
