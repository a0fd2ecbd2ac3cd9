#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""region-pull: a sub-host fetches pages from another one with a ticket that only reads, and writes nothing once
the copy was given up.
"""

import contextlib
import errno
import hashlib
import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import checks
from checks import expect
from nbdpeer import NbdError
from pki import Pki
from subhost import MIB, PAGE, ControlError, Subhost

SIZE = 8 * MIB


@contextlib.contextmanager
def pair(limit=SIZE):
    with Subhost() as source, Subhost() as target, source.control() as there, target.control() as here:
        there.call("region-create", name="guest", size=SIZE, ticket="one")
        here.call("region-create", name="guest", size=SIZE, ticket="two", limit=limit)
        yield source, target, there, here


def reading(ticket):
    """The ticket made from it that only reads, as docs/protocols.md says."""
    return hashlib.sha256(b"read only:" + ticket.encode()).hexdigest()


def settle(here):
    return here.call("region-settle", name="guest", ticket="two")["serial"]


def pull(here, source, serial, runs, **other):
    values = dict(name="guest", ticket="two", serial=serial, data=source.unix, export="guest.one", runs=runs)
    values.update(other)
    return here.call("region-pull", **values)["bytes"]


def pattern(number):
    return bytes([number % 251 + 1]) * PAGE


def test_copied_as_it_is():
    with pair() as (source, target, there, here):
        with source.peer("guest.one") as peer, target.peer("guest.two") as mine, \
                target.peer("guest.two/strict") as strict:
            for page in (0, 1, 2, 64, 65, 700):
                peer.write(page * PAGE, pattern(page))
            for page in (5, 64):
                mine.write(page * PAGE, b"old" + bytes(PAGE - 3))
            serial = settle(here)
            assert pull(here, source, serial, [[0, 8 * PAGE], [64 * PAGE, PAGE], [700 * PAGE, 2 * PAGE]]) == 5 * PAGE
            for page in (0, 1, 2, 64, 700):
                assert strict.read(page * PAGE, PAGE) == pattern(page), page
            for page in (3, 5, 65, 701):
                expect(NbdError, strict.read, page * PAGE, PAGE)
            # The same connection, after the other server was asked for more.
            assert pull(here, source, serial, [[65 * PAGE, PAGE]]) == PAGE
            assert strict.read(65 * PAGE, PAGE) == pattern(65)
        assert here.call("stats")["pulled_bytes"] == 6 * PAGE


def test_refused():
    with pair(limit=2 * PAGE) as (source, _, there, here):
        with source.peer("guest.one") as peer:
            peer.write(0, pattern(1) * 16)
        serial = settle(here)
        refused = lambda *args, **kwargs: expect(ControlError, pull, here, source, *args, **kwargs)
        assert refused(serial, [[0, 16 * PAGE]]).name == "ENOSPC"
        for runs in ([[0, 100]], [[SIZE, PAGE]], [[0, 1 << 62]], [[-PAGE, PAGE]], [7], {}, [["a", "b"]]):
            assert refused(serial, runs).name == "EINVAL", runs
        assert refused(serial, [[0, PAGE]], export="guest.wrong").name == "EREMOTEIO"
        assert refused(serial, [[0, PAGE]], export="x" * 5000).name == "EINVAL"
        assert refused(serial, [[0, PAGE]], data="nonsense").name == "EINVAL"
        assert refused(serial, [[0, PAGE]], data="unix:/nobody/is/here").name == "EREMOTEIO"
        plain = refused(serial, [[0, PAGE]], data="tcp:192.0.2.1:1").desc
        assert "plaintext" in plain, plain
        assert refused(serial, [[0, PAGE]], ticket="one").name == "EACCES"
        assert refused(serial + 1, [[0, PAGE]]).name == "ESTALE"
        assert refused(serial - 1, [[0, PAGE]]).name == "ESTALE"
        assert pull(here, source, serial, [[0, PAGE]]) == PAGE
        assert here.region("guest")["stored"] <= 2 * PAGE


class Between:
    """Stands between two servers; holds answers back when told to."""

    def __init__(self, server):
        self.server = server
        self.path = os.path.join(server.folder, "between.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.open, self.asked = threading.Event(), threading.Event()
        self.open.set()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        client, _ = self.listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.server.unix[5:])
        threading.Thread(target=self.forward, args=(server, client, True), daemon=True).start()
        self.forward(client, server, False)

    def forward(self, source, sink, answers):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers:
                    self.open.wait()
                elif not self.open.is_set():
                    self.asked.set()
                sink.sendall(data)


def test_given_up():
    with pair() as (source, target, there, here), target.control() as other:
        between = Between(source)
        address = "unix:" + between.path
        with source.peer("guest.one") as peer:
            peer.write(0, pattern(1) * 512)
        serial = settle(here)
        assert pull(other, source, serial, [[0, PAGE]], data=address) == PAGE
        between.open.clear()
        failed = []
        late = threading.Thread(target=lambda: failed.append(
            expect(ControlError, pull, other, source, serial, [[PAGE, 500 * PAGE]], data=address)))
        late.start()
        assert between.asked.wait(10), "the copy has begun"
        after = settle(here)
        # From here on nothing is written, whenever the answer comes.
        between.open.set()
        late.join(20)
        assert failed and failed[0].name == "ESTALE", failed
        assert here.region("guest")["stored"] == PAGE
        assert expect(ControlError, pull, here, source, serial, [[0, PAGE]]).name == "ESTALE"
        assert pull(here, source, after, [[PAGE, 500 * PAGE]]) == 500 * PAGE


def test_ticket_that_only_reads():
    with pair() as (source, target, there, here):
        export = "guest." + reading("one")
        with source.peer("guest.one") as peer, source.peer(export) as reader, \
                source.peer(export + "/strict") as strict:
            peer.write(0, pattern(1))
            assert peer.flags & 2 == 0 and reader.flags & 2 and strict.flags & 2, "NBD_FLAG_READ_ONLY"
            for mine in reader, strict:
                assert mine.read(0, PAGE) == pattern(1)
                for change in (lambda: mine.write(0, pattern(2)), lambda: mine.trim(0, PAGE),
                               lambda: mine.zeroes(0, PAGE), lambda: mine.write(PAGE, pattern(2))):
                    assert expect(NbdError, change).number == errno.EPERM
                assert mine.read(0, PAGE) == pattern(1), "it goes on, and nothing has changed"
            expect(NbdError, strict.read, PAGE, PAGE)
            assert pull(here, source, settle(here), [[0, PAGE]], export=export) == PAGE
            for verb in "region-query", "region-settle", "region-keep", "region-delete":
                assert expect(ControlError, there.call, verb, name="guest", ticket=reading("one")).name == "EACCES"
            # It ends with the ticket it was made from.
            there.call("region-keep", name="guest", ticket="one", new_ticket="three")
            assert expect(NbdError, reader.read, 0, PAGE).number == errno.EPERM
        for old in "guest." + reading("one"), "guest." + reading(reading("three")), "guest." + reading(""):
            expect(Exception, lambda name=old: source.peer(name).close())
        with source.peer("guest." + reading("three")) as reader:
            assert reader.read(0, PAGE) == pattern(1)


def test_over_tls():
    """The sub-host that fetches shows its certificate as client, and looks at the other one's."""
    with Pki() as pki:
        good, no_client = pki.identity(), pki.identity(client=False)
        by_tls = lambda identity: Subhost("--listen", "tls:127.0.0.1:0", "--tls-certificates", identity)
        with by_tls(good) as source, by_tls(good) as target, by_tls(no_client) as other, \
                by_tls(pki.stranger()) as stranger, contextlib.ExitStack() as stack:
            there, here, elsewhere, foreign = (stack.enter_context(host.control())
                                               for host in (source, target, other, stranger))
            for control, ticket in (there, "one"), (foreign, "one"), (here, "two"), (elsewhere, "two"):
                control.call("region-create", name="guest", size=SIZE, ticket=ticket)
            with source.peer("guest.one") as peer:
                for page in range(300):
                    peer.write(page * PAGE, pattern(page))
            tls = there.call("query-status")["data"][2]
            values = dict(data=tls, export="guest." + reading("one"))
            assert pull(here, source, settle(here), [[0, 301 * PAGE]], **values) == 300 * PAGE
            with target.peer("guest.two/strict") as mine:
                for page in range(300):
                    assert mine.read(page * PAGE, PAGE) == pattern(page), page
                expect(NbdError, mine.read, 300 * PAGE, PAGE)
            for control, address in (elsewhere, tls), (here, foreign.call("query-status")["data"][2]):
                refused = expect(ControlError, pull, control, source, settle(control), [[0, PAGE]],
                                 **dict(values, data=address))
                assert refused.name == "EREMOTEIO", refused
                print(refused.desc)


if __name__ == "__main__":
    checks.main(globals())
