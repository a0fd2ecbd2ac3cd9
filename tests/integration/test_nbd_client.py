#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our NBD client against other people's servers, and against hostile ones."""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import command, eventually, main, require_tool
from subhost import MIB, NBDTOOL, PAGE, Subhost

SIZE = 24 * MIB


def tool(address, export, *words, ok=True, data=None):
    return command(NBDTOOL, address, export, *words, ok=ok, input=data)


def exercise(address, export):
    """Write, read, zero, trim and flush through our client; the server must have what we sent."""
    data = os.urandom(SIZE)
    size, flags = tool(address, export, "size").stdout.split()
    assert int(size) == SIZE and int(flags, 16) & 1
    tool(address, export, "write", 0, SIZE, data=data)
    assert tool(address, export, "read", 0, SIZE).stdout == data
    tool(address, export, "write", 4097, 10 * MIB, data=data[:10 * MIB])
    expected = data[:4097] + data[:10 * MIB] + data[4097 + 10 * MIB:]
    tool(address, export, "zero", PAGE, 8 * PAGE)
    expected = expected[:PAGE] + bytes(8 * PAGE) + expected[9 * PAGE:]
    tool(address, export, "flush")
    assert tool(address, export, "read", 0, SIZE).stdout == expected
    tool(address, export, "trim", 0, 4 * PAGE)
    done = tool(address, export, "read", SIZE - 1, 2, ok=False)
    assert done.stderr == b"EINVAL: read\n", done.stderr


class Process:
    """A server that makes a socket when it is ready."""

    def __init__(self, path, *words):
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE)
        eventually(lambda: os.path.exists(path) or self.process.poll() is not None, words[0] + " runs")
        assert self.process.poll() is None, self.process.stderr.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        self.process.stderr.close()


def test_nbdkit():
    require_tool("nbdkit")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sock")
        with Process(path, "nbdkit", "-f", "-U", path, "memory", str(SIZE)):
            exercise("unix:" + path, "anything")
        if os.path.exists(path):
            os.unlink(path)
        with Process(path, "nbdkit", "-f", "-U", path, "--filter=error", "memory", "1M",
                     "error-pwrite=ENOSPC", "error-pwrite-rate=100%"):
            done = tool("unix:" + path, "", "write", 0, PAGE, ok=False, data=bytes(PAGE))
            assert done.stderr == b"ENOSPC: write\n", done.stderr


def test_qemu_nbd():
    require_tool("qemu-nbd")
    with tempfile.TemporaryDirectory() as folder:
        path, image = os.path.join(folder, "sock"), os.path.join(folder, "image")
        with open(image, "wb") as file:
            file.truncate(SIZE)
        with Process(path, "qemu-nbd", "-t", "-f", "raw", "-k", path, "-x", "disk", "--discard=unmap", image):
            exercise("unix:" + path, "disk")
            done = tool("unix:" + path, "other", "size", ok=False)
            assert done.stderr.startswith(b"ENOENT: NBD with unix:"), done.stderr
            assert b"the server has no such export" in done.stderr


def test_ours():
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=SIZE, ticket="t")
        for address in (host.unix, host.tcp):
            exercise(address, "r.t")
        done = tool(host.tcp, "r.t/strict", "read", 0, PAGE, ok=False)
        assert done.stderr == b"EIO: read\n", done.stderr
        done = tool(host.tcp, "r", "size", ok=False)
        assert done.stderr.startswith(b"ENOENT: "), done.stderr


def against(answer, *words):
    """What the client says of a server that sends these bytes and closes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve():
            peer, _ = listener.accept()
            with peer:
                try:
                    peer.sendall(answer)
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(65536):
                        pass
                except OSError:
                    pass  # the client was quicker to hang up

        thread = threading.Thread(target=serve)
        thread.start()
        done = tool("tcp:127.0.0.1:%d" % listener.getsockname()[1], "r", *(words or ("size",)), ok=None)
        thread.join()
        return done.stdout.decode() + done.stderr.decode()


def test_hostile_servers():
    greeting = b"NBDMAGICIHAVEOPT\0\3"
    reply = lambda kind, body=b"", option=7, length=None: struct.pack(
        ">QIII", 0x3E889045565A9, option, kind, len(body) if length is None else length) + body
    info = reply(3, struct.pack(">HQH", 0, MIB, 1))
    for answer, name in (
            (b"", "ECONNRESET"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "EPROTO"),
            (greeting, "ECONNRESET"), (b"NBDMAGICIHAVEOPT\0\0", "EPROTO"),
            (greeting + reply(1), "EPROTO"), (greeting + reply(1, option=3), "EPROTO"),
            (greeting + reply(3, b"", length=0xFFFFFFFF), "EPROTO"),
            (greeting + reply(0x80000006), "ENOENT"), (greeting + reply(0x80000002), "EACCES"),
            (greeting + reply(0x80000005, b"use \x1b[31mTLS"), "EACCES"),
            (greeting + reply(0x80000001), "EPROTO"), (greeting + info, "ECONNRESET"),
            (greeting + info * 200, "EPROTO"), (greeting + b"x" * 20, "EPROTO")):
        said = against(answer)
        assert said.startswith(name + ": ") and said.count("\n") == 1 and "\x1b" not in said, said
    ready = greeting + info + reply(1)
    assert against(ready) == "1048576 0x1\n"
    simple = lambda cookie, error=0: struct.pack(">IIQ", 0x67446698, error, cookie)
    for answer, name in ((b"", "ECONNRESET"), (simple(9), "EPROTO"), (b"y" * 16, "EPROTO"),
                         (simple(1, 28), "ENOSPC"), (simple(1, 12345), "EIO"),
                         (simple(1) + b"z" * 100, "ECONNRESET")):
        assert against(ready + answer, "read", 0, PAGE) == name + ": read\n", (answer, name)


if __name__ == "__main__":
    main(globals())
