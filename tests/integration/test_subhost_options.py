#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one clear sentence for bad input, and a clean start and stop."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import command, eventually, main
from subhost import MIB, ROOT, SERVER, Subhost


def refused(*words):
    """Run with bad input; returns the one line it said."""
    done = command(SERVER, *words, ok=False, timeout=60)
    lines = done.stderr.decode().strip().split("\n")
    assert done.stdout == b"" and len(lines) == 1, done
    assert ": error: " in lines[0], lines
    return lines[0].split(": error: ", 1)[1]


def test_bad_words():
    for words, sentence in (
            ([], "--memory is required: how much memory to lend"),
            (["--memory", "much"], "--memory: 'much' is not a size such as 64G"),
            (["--memory", "-1"], "--memory: '-1' is not a size such as 64G"),
            (["--memory", "99999999T"], "--memory: '99999999T' is not a size such as 64G"),
            (["--memory", "100"], "--memory: '100' is less than one page of 4 KiB"),
            (["--memory", "1G", "--headroom", "some"], "--headroom: 'some' is not a size such as 4G"),
            (["--memory"], "--memory needs an argument; try --help"),
            (["--mem0ry", "1G"], "--mem0ry is not an option; try --help"),
            (["-x"], "-x is not an option; try --help"),
            (["--memory", "1G", "now"], "'now' is not expected: all settings are options"),
            (["--memory", "1G", "--spin-us", "1e3"],
             "--spin-us: '1e3' is not a number from 0 to 1000000"),
            (["--memory", "1G", "--max-connections", "0"],
             "--max-connections: '0' is not a number from 1 to 65536"),
            (["--memory", "1G", "--pidfile", ""], "--pidfile needs the name of a file"),
            (["--memory", "1G", "--verbose=yes"], "--verbose=yes is not an option; try --help")):
        said = refused(*words)
        assert said == sentence, (words, said)


def test_bad_addresses():
    for address in ("10809", "tcp:127.0.0.1:99999", "udp:127.0.0.1:1", "unix:", "unix:" + "x" * 200):
        for option in ("--listen", "--control"):
            assert address[:20] in refused("--memory", "1G", option, address) or "path" in address


def test_plaintext_must_be_typed_out():
    for address in ("tcp::0", "tcp:0.0.0.0:0", "tcp:192.0.2.1:10809", "tcp:[::]:0"):
        for option in ("--listen", "--control"):
            said = refused("--memory", "1G", option, address)
            assert "can be reached from other hosts and is not encrypted" in said, said
            assert "--plaintext" in said
    with Subhost("--listen", "tcp:0.0.0.0:0", "--plaintext") as host, host.control() as control:
        assert len(control.call("query-status")["data"]) == 3


def test_address_in_use_changes_nothing():
    with Subhost() as host, tempfile.TemporaryDirectory() as folder:
        for taken in (host.tcp, host.unix):
            pidfile = os.path.join(folder, "pid")
            done = command(SERVER, "--memory", "1G", "--listen", taken, "--control",
                           "unix:" + os.path.join(folder, "c"), "--pidfile", pidfile, ok=False)
            assert b"error" in done.stderr and not os.path.exists(pidfile)
        assert os.path.exists(host.unix[5:])
        with host.control() as control:
            control.call("region-create", name="r", size=MIB)
            host.peer("r").close()


def test_bad_pidfile():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "none", "pid")
        done = command(SERVER, "--memory", "1M", "--listen", "tcp:127.0.0.1:0", "--control",
                       "unix:" + os.path.join(folder, "c"), "--pidfile", path, ok=False)
        assert b"cannot write the pid file" in done.stderr
        assert os.listdir(folder) == []


def test_help_and_man_page_agree():
    shown = command(SERVER, "--help").stdout.decode()
    options = set(re.findall(r"^  --([a-z-]+)", shown, re.M))
    assert {"memory", "listen", "control", "plaintext", "pidfile", "max-connections", "spin-us",
            "exit-with-parent", "verbose", "version", "help"} <= options
    with open(os.path.join(ROOT, "subhost-server", "subhost-server.8")) as page:
        documented = set(re.findall(r"^\.It Fl Fl ([a-z-]+)", page.read(), re.M))
    assert documented == options, documented ^ options
    version = command(SERVER, "--version").stdout.decode()
    assert re.fullmatch(r"subhost-server \d+\.\d+\.\d+\n", version)


def test_start_and_stop():
    for number in (signal.SIGTERM, signal.SIGINT):
        host = Subhost()
        with host.control() as control:
            control.call("region-create", name="r", size=MIB)
            with open(host.pidfile) as file:
                assert int(file.read()) == host.process.pid
            idle, peer = host.peer(), host.peer("r")
            host.process.send_signal(number)
            assert host.process.wait(30) == 0, host.log()
            assert peer.until_closed() == b""
            idle.close()
            peer.close()
        assert not any(os.path.exists(path) for path in
                       (host.pidfile, host.unix[5:], host.control_address[5:]))
        host.stop()


def test_exit_with_parent():
    with tempfile.TemporaryDirectory() as folder:
        pidfile = os.path.join(folder, "pid")
        words = [SERVER, "--memory", "1M", "--listen", "tcp:127.0.0.1:0", "--control",
                 "unix:" + os.path.join(folder, "c"), "--pidfile", pidfile, "--exit-with-parent"]
        parent = subprocess.Popen([sys.executable, "-c",
                                   "import subprocess,sys; subprocess.Popen(sys.argv[1:]); input()"]
                                  + words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        eventually(lambda: os.path.exists(pidfile), "the server runs")
        parent.communicate(b"\n", 60)
        eventually(lambda: not os.path.exists(pidfile), "the server has stopped")


def test_stale_socket_is_replaced():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "control")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
        with Subhost("--control", "unix:" + path) as host:
            assert "unix:" + path in host.log()


def test_memory_that_is_not_there():
    with Subhost(memory="900T") as host:
        assert re.search(r"warning: --memory is 900 TiB, but this host has only .* available now",
                         host.log()), host.log()


if __name__ == "__main__":
    main(globals())
