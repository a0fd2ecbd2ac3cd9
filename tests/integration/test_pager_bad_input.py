# SPDX-License-Identifier: GPL-2.0-or-later
"""Garbage and truncated bytes on the pager's hand-off and control sockets cost one connection and
nothing else; bad command lines end with one sentence and change nothing."""

import os
import random
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402

import struct  # noqa: E402

MAGIC = 0x484D5053


def frame(kind, body, cookie=0, magic=MAGIC, version=1, length=None):
    return struct.pack("<IHHII", magic, version, kind, len(body) if length is None else length,
                       cookie) + body


def throw(path, data):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    sock.settimeout(15)
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    sock.close()


def handoffs():
    rng = random.Random(5)
    hello = struct.pack("<16sIIQ", bytes(range(16)), 1, 0, os.getpid())
    yield b""
    yield b"x"
    yield rng.randbytes(4096)
    yield frame(1, hello)[:20]
    yield frame(1, hello, magic=1)
    yield frame(1, hello, version=99)
    yield frame(1, hello, length=1 << 31)
    yield frame(3, b"")
    yield frame(1, hello)                      # no descriptor with it
    yield frame(1, hello) + frame(2, b"short")
    yield frame(1, hello) + rng.randbytes(1000)
    yield frame(777, b"")


def test_sockets(cluster):
    pager = cluster.pager("main")
    for data in handoffs():
        throw(pager.handoff, data)
    for data in (b"\n", b"{}\n", b"[]\n", b"nonsense\n", b'{"execute": "query-guest"}\n', b"\xff" * 100 + b"\n",
                 b'{"execute": "query-guest", "arguments": {"uuid": "../../etc"}}\n'):
        throw(pager.control_path, data)
    if pager.process.poll() is not None:
        raise Failure("the pager ended: %s" % pager.tail())
    if pager.call("query-status")["version"] == "":
        raise Failure("no version")


def expect_refusal(call, *words):
    try:
        call()
    except Failure as failure:
        if not all(word in str(failure) for word in words):
            raise Failure("the sentence does not name %s: %s" % (words, failure)) from None
        return
    raise Failure("it was not refused: %s" % (words,))


def test_verbs(cluster):
    pager = cluster.pager("verbs")
    uuid = cluster.uuid
    good = {"migration": uuid, "ticket": "t", "budget": 64 * MIB, "subhosts": [
        {"name": "a", "data": "tcp:127.0.0.1:1", "control": "unix:/x", "export": uuid}]}
    expect_refusal(lambda: pager.call("query-guest", uuid=uuid), "no guest", uuid)
    expect_refusal(lambda: pager.call("query-guest", uuid="nonsense"), "UUID")
    expect_refusal(lambda: pager.call("nonsense"), "nonsense")
    for key, value, word in (("budget", -1, "budget"), ("budget", 4096, "16 MiB"), ("subhosts", [], "subhosts"),
                             ("granule", 5000, "granule"), ("migration", "x", "migration"),
                             ("ticket", "", "ticket"), ("high_watermark", 1 << 40, "high_watermark"),
                             ("listen", "nowhere", "nowhere"), ("listen", "tcp:0.0.0.0:0", "--plaintext"),
                             ("subhosts", [{"name": "a"}], "data")):
        expect_refusal(lambda: pager.call("incoming-prepare", **dict(good, uuid=uuid, **{key: value})), word)
    # Refused announcements leave nothing; an announcement ends with its connection.
    control = Control(pager.control_path)
    answer = control.call("incoming-prepare", uuid=uuid, **good)
    if answer["export"] != uuid + ".t" or not answer["data"].startswith("tcp:127.0.0.1:"):
        raise Failure("an odd answer: %s" % answer)
    expect_refusal(lambda: pager.call("incoming-prepare", uuid=uuid, **good), "incoming")
    expect_refusal(lambda: pager.call("outgoing-prepare", uuid=uuid), "cannot be sent")
    control.close()
    wait_until("the announcement's end", 20, lambda: uuid not in pager.guests())


def test_command_line(cluster):
    for arguments, words in ((["--nonsense"], ["nonsense"]), (["--data", "nowhere"], ["--data", "nowhere"]),
                             (["--data", "tcp:0.0.0.0:0"], ["--plaintext"]), (["stray"], ["stray"]),
                             (["--handoff", "tcp:127.0.0.1:1"], ["--handoff", "unix:"]),
                             (["--run-dir", "/" + "x" * 80], ["--run-dir", "48"])):
        result = subprocess.run([program("uffd-pager")] + arguments, capture_output=True, text=True, timeout=10)
        if result.returncode != 2 or len(result.stderr.strip().splitlines()) != 1 or \
                not all(word in result.stderr for word in words):
            raise Failure("%s: status %d, '%s'" % (arguments, result.returncode, result.stderr))


def test(cluster):
    test_sockets(cluster)
    test_verbs(cluster)
    test_command_line(cluster)


main(test)
