# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands before a sub-host, between it and a pager, and can be made to misbehave."""

import socket
import struct
import threading

from nbdpeer import IHAVEOPT, OPT_GO, WRITE, dial
from redundancy import Guest

GO = IHAVEOPT + struct.pack(">I", OPT_GO)


class Gate:
    """Stands before a sub-host. While it is shut it ends every connection that is not for strict reads; and it
    passes all on but requests of the kinds in .swallowed, which nobody ever hears of again."""

    def __init__(self, target):
        self.target = target
        self.lock = threading.Lock()
        self.shut = False
        self.turned_away = 0
        self.swallowed = frozenset()
        self.n_swallowed = 0
        self.writers = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = "tcp:127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        server = dial(self.target, timeout=None)
        threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
        sent = self.negotiate(client, server)
        if sent:
            self.pump(client, server, Sieve(self).sift)
        self.end(client)
        self.end(server)

    def negotiate(self, client, server):
        """Pass on what the client says up to the name of its export. Return: may it go on?"""
        said = b""
        while True:
            part = self.receive(client)
            said += part
            at = said.find(GO)
            if not part:
                return False
            if at >= 0 and len(said) >= at + 20:
                whole, length = struct.unpack(">II", said[at + 12:at + 20])
                if len(said) >= at + 16 + whole:
                    break
            server.sendall(part)
        if not said[at + 20:at + 20 + length].endswith(b"/strict"):
            with self.lock:
                if self.shut:
                    self.turned_away += 1
                    return False
                self.writers.add(client)
        server.sendall(part)
        return True

    @staticmethod
    def receive(sock):
        try:
            return sock.recv(1 << 18)
        except OSError:
            return b""

    def pump(self, source, sink, sift=lambda part: part):
        while True:
            part = self.receive(source)
            try:
                if part:
                    sink.sendall(sift(part))
                    continue
            except OSError:
                pass
            self.end(source)
            self.end(sink)
            return

    @staticmethod
    def end(sock):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close_writers(self):
        with self.lock:
            self.shut = True
            for client in self.writers:
                self.end(client)
            self.writers.clear()

    def open_again(self):
        with self.lock:
            self.shut = False


class Sieve:
    """The requests of one connection, without those that are swallowed."""

    def __init__(self, gate):
        self.gate = gate
        self.head = b""
        self.payload, self.passes = 0, True

    def sift(self, part):
        kept = bytearray()
        while part:
            if self.payload:
                taken, part = part[:self.payload], part[self.payload:]
                self.payload -= len(taken)
                kept += taken if self.passes else b""
                continue
            taken, part = part[:28 - len(self.head)], part[28 - len(self.head):]
            self.head += taken
            if len(self.head) == 28:
                kind, length = struct.unpack(">H", self.head[6:8])[0], struct.unpack(">I", self.head[24:])[0]
                self.payload = length if kind == WRITE else 0
                self.passes = kind not in self.gate.swallowed
                self.gate.n_swallowed += not self.passes
                kept += self.head if self.passes else b""
                self.head = b""
        return bytes(kept)


class Gated(Guest):
    """Sub-host 1 is behind a gate."""

    def address_of(self, index, address):
        if index != 1:
            return address
        self.gate = Gate(address)
        return self.gate.address
