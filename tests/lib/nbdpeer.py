# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD client written from the protocol document, not from our C code, for tests of the server.

It can also misbehave: raw() sends any bytes, request() any field.
"""

import os
import socket
import struct

NBDMAGIC, IHAVEOPT = b"NBDMAGIC", b"IHAVEOPT"
OPT_REPLY = 0x3E889045565A9
REQUEST, SIMPLE, STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
(OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META,
 OPT_SET_META) = 1, 2, 3, 5, 6, 7, 8, 9, 10
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (0x80000000 + n for n in (1, 3, 6, 9))
READ, WRITE, DISC, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 2, 3, 4, 6, 7
FUA, NO_HOLE, DF, REQ_ONE = 1, 2, 4, 8
HOLE, ZERO = 1, 2


class NbdError(Exception):
    """The server answered with this errno (or this option error)."""

    def __init__(self, number):
        super().__init__("error %#x %s" % (number, os.strerror(number) if number < 200 else ""))
        self.number = number


class Closed(Exception):
    """The server closed the connection."""


def dial(address, timeout=20):
    """Connect to unix:PATH or tcp:HOST:PORT."""
    kind, rest = address.split(":", 1)
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(rest)
        return sock
    host, port = rest.rsplit(":", 1)
    sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class NbdPeer:
    def __init__(self, address, export=None, structured=False, allocation=False, timeout=20):
        self.sock = dial(address, timeout)
        self.cookie = 1000
        self.structured = False
        self.size = self.flags = None
        if export is not None:
            self.greet()
            if structured or allocation:
                self.option(OPT_STRUCTURED)
                self.structured = True
            if allocation:
                self.meta(OPT_SET_META, export, ["base:allocation"])
            self.go(export)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def raw(self, data):
        self.sock.sendall(data)

    def receive(self, n):
        data = bytearray()
        while len(data) < n:
            try:
                part = self.sock.recv(min(n - len(data), 1 << 20))
            except (ConnectionResetError, BrokenPipeError) as error:
                raise Closed("reset") from error
            if not part:
                raise Closed("end of stream after %d of %d bytes" % (len(data), n))
            data += part
        return bytes(data)

    def until_closed(self):
        """Read until the server closes; returns what came."""
        data = bytearray()
        try:
            while True:
                part = self.sock.recv(1 << 16)
                if not part:
                    return bytes(data)
                data += part
        except (ConnectionResetError, BrokenPipeError):
            return bytes(data)

    # ---- negotiation ----

    def greet(self, flags=3):
        magic, option_magic, self.server_flags = struct.unpack(">8s8sH", self.receive(18))
        assert (magic, option_magic) == (NBDMAGIC, IHAVEOPT)
        self.raw(struct.pack(">I", flags))

    def option_raw(self, option, body=b"", length=None):
        self.raw(IHAVEOPT + struct.pack(">II", option, len(body) if length is None else length) + body)

    def option_reply(self, option):
        magic, answered, kind, length = struct.unpack(">QIII", self.receive(20))
        assert (magic, answered) == (OPT_REPLY, option), (magic, answered)
        return kind, self.receive(length)

    def option(self, option, body=b""):
        """Send an option; returns the replies before the ACK; NbdError for an error reply."""
        self.option_raw(option, body)
        replies = []
        while True:
            kind, data = self.option_reply(option)
            if kind == REP_ACK:
                return replies
            if kind & 0x80000000:
                raise NbdError(kind)
            replies.append((kind, data))

    def go(self, export, option=OPT_GO, infos=()):
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
        replies = self.option(option, body + b"".join(struct.pack(">H", i) for i in infos))
        for _, data in replies:
            if data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        return replies

    def list(self):
        return [data[4:].decode() for kind, data in self.option(OPT_LIST) if kind == REP_SERVER]

    def meta(self, option, export, queries):
        body = struct.pack(">I", len(export)) + export.encode() + struct.pack(">I", len(queries))
        for query in queries:
            body += struct.pack(">I", len(query)) + query.encode()
        return [(struct.unpack(">I", data[:4])[0], data[4:].decode())
                for kind, data in self.option(option, body) if kind == REP_META]

    # ---- transmission ----

    def request(self, kind, offset=0, length=0, payload=b"", flags=0, magic=REQUEST):
        """Send a request and do not wait; returns its cookie."""
        self.cookie += 1
        self.raw(struct.pack(">IHHQQI", magic, flags, kind, self.cookie, offset, length) + payload)
        return self.cookie

    def simple_reply(self, length=0):
        """One simple reply and its payload: (cookie, error, data)."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == SIMPLE, hex(magic)
        return cookie, error, b"" if error else self.receive(length)

    def chunk(self):
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
        assert magic == STRUCTURED, hex(magic)
        return flags, kind, cookie, self.receive(length)

    def chunks(self, cookie):
        """All chunks of a reply: [(type, body)]; NbdError if one is an error."""
        found, error = [], 0
        while True:
            flags, kind, answered, body = self.chunk()
            assert answered == cookie
            if kind & 0x8000:
                error = struct.unpack(">I", body[:4])[0]
            found.append((kind, body))
            if flags & 1:
                break
        if error:
            raise NbdError(error)
        return found

    def finish(self, cookie, length=0):
        answered, error, data = self.simple_reply(length)
        assert answered == cookie, (answered, cookie)
        if error:
            raise NbdError(error)
        return data

    def read(self, offset, length, flags=0):
        cookie = self.request(READ, offset, length, flags=flags)
        if not self.structured:
            return self.finish(cookie, length)
        data = bytearray(length)
        covered = 0
        for kind, body in self.chunks(cookie):
            at = struct.unpack(">Q", body[:8])[0] - offset
            n = len(body) - 8 if kind == 1 else struct.unpack(">I", body[8:])[0]
            assert kind in (1, 2) and at >= 0 and at + n <= length and n > 0
            data[at:at + n] = body[8:] if kind == 1 else bytes(n)
            covered += n
        assert covered == length
        return bytes(data)

    def write(self, offset, payload, flags=0):
        self.finish(self.request(WRITE, offset, len(payload), payload, flags))

    def trim(self, offset, length, flags=0):
        self.finish(self.request(TRIM, offset, length, flags=flags))

    def zeroes(self, offset, length, flags=0):
        self.finish(self.request(ZEROES, offset, length, flags=flags))

    def flush(self):
        self.finish(self.request(FLUSH))

    def status(self, offset, length, flags=0):
        """[(length, flags)] of base:allocation."""
        (kind, body), = self.chunks(self.request(STATUS, offset, length, flags=flags))
        assert kind == 5
        return [struct.unpack_from(">II", body, at) for at in range(4, len(body), 8)]
