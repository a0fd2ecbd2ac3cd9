#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tickets guard a guest's memory on the wire, and end: with the migration, or after their time."""

import os
import subprocess
import sys
import tempfile
import time
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import eventually, expect, main
from nbdpeer import NbdError, NbdPeer
from subhost import BUILD, MIB, PAGE, Control, ControlError, Subhost

ERR_POLICY, ERR_UNKNOWN = 0x80000002, 0x80000006


def refused(address, export):
    """The option error that opening gives, None if it opens."""
    with NbdPeer(address) as peer:
        peer.greet()
        try:
            peer.go(export)
        except NbdError as error:
            return error.number
    return None


def answers(address):
    try:
        NbdPeer(address).close()
    except OSError:
        return False
    return True


def test_keeping_ends_the_migrations_ticket():
    with Subhost() as host, host.control() as control, host.control() as main_host:
        control.call("region-create", name="g", size=MIB, ticket="first")
        with host.peer("g.first") as source:
            source.write(0, b"a" * PAGE)
            answer = main_host.call("region-keep", name="g", ticket="first", new_ticket="second")
            assert answer == {"export": "g.second"}
            assert expect(NbdError, source.read, 0, PAGE).number == 1
            assert expect(NbdError, source.write, 0, b"b" * PAGE).number == 1
            assert expect(NbdError, source.trim, 0, PAGE).number == 1
        assert refused(host.unix, "g.first") == ERR_POLICY
        assert refused(host.unix, "g.first/strict") == ERR_POLICY
        assert refused(host.unix, "g.other") == ERR_UNKNOWN
        with host.peer("g.second/strict") as peer:
            assert peer.read(0, PAGE) == b"a" * PAGE
        for verb in "region-keep", "region-delete":
            error = expect(ControlError, main_host.call, verb, name="g", ticket="first")
            assert error.name == "EKEYEXPIRED" and error.desc == "this ticket of region 'g' has expired"
        assert "first" not in host.log() and "second" not in host.log()
        # Who made the region may still clear it away, until it leaves.
        control.call("region-delete", name="g", ticket="first")
        assert refused(host.unix, "g.second") == ERR_UNKNOWN


def test_the_maker_has_left():
    with Subhost() as host, host.control() as observer:
        with host.control() as control:
            control.call("region-create", name="g", size=MIB, ticket="first")
            control.call("region-keep", name="g", ticket="first", new_ticket="second")
        with host.control() as control:
            assert expect(ControlError, control.call, "region-delete", name="g", ticket="first").name == "EKEYEXPIRED"
            assert observer.call("query-status")["regions"] == 1
            control.call("region-delete", name="g", ticket="second")


def test_a_ticket_opens_for_a_while_only():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="g", size=MIB, ticket="first", ticket_seconds=3)
        with host.peer("g.first") as early:
            eventually(lambda: refused(host.unix, "g.first") == ERR_POLICY, "the ticket expires")
            early.write(0, b"a" * PAGE)  # what was opened in time goes on
            control.call("region-keep", name="g", ticket="first", new_ticket="second")
        assert refused(host.unix, "g.second") is None


def test_arrivals_ticket():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Subhost() as host:
        pidfile, sock = os.path.join(folder, "pid"), os.path.join(folder, "uffd-pager.sock")
        pager = subprocess.Popen([os.path.join(BUILD, "bin", "uffd-pager"), "--run-dir", folder,
                                  "--pidfile", pidfile, "--exit-with-parent"], stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: os.path.exists(pidfile), "the pager is ready")
            with Control("unix:" + sock) as control:
                guest = str(uuid.uuid4())
                answer = control.call(
                    "incoming-prepare", uuid=guest, migration=str(uuid.uuid4()), ticket="first",
                    ticket_seconds=1, budget=64 * MIB, subhosts=[{
                        "name": "one", "data": host.tcp, "control": host.control_address,
                        "export": guest + ".first", "ticket": "first"}])
                data = answer["data"]
                assert refused(data, guest + ".wrong") == ERR_UNKNOWN
                time.sleep(1.1)  # its time; in time, opening would wait for QEMU
                assert refused(data, guest + ".first") == ERR_POLICY
            # The controller has left, and so the arrival is given up.
            eventually(lambda: not answers(data), "nobody listens any more")
        finally:
            pager.kill()
            pager.wait()


main(globals())
