# SPDX-License-Identifier: GPL-2.0-or-later
"""Play the worker to a mover, beside a receiver and sub-hosts; know where every page must be.

The guest's memory is memfds of the test itself, on both sides, so that it can be changed between
rounds and compared afterwards without asking the programs under test.
"""

import errno
import json
import mmap
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import types
import uuid as uuidlib

from cluster import BUILD, CHUNK_PAGES, LOCAL, PAGE, REMOTE, UNTOUCHED, Control, Failure, Subhost, \
    memfd_extents, skip

CHUNK = CHUNK_PAGES * PAGE
HOT = 0x80
MAGIC, VERSION = 0x484d5053, 1
RUNS, PROGRESS, FINISH, FINISHED, FAILED, BEGUN, CONFIG = 14, 15, 16, 17, 18, 13, 32
ZERO = bytes(PAGE)
TICKET = "0123456789abcdef"


# A sanitizer's report must be seen.
for _name in ("ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"):
    os.environ.setdefault(_name, "exitcode=99:halt_on_error=1:print_stacktrace=1")


def tool():
    path = os.path.join(BUILD, "tests", "tools", "movertool")
    if not os.path.exists(path):
        skip("movertool is not built (make check)")
    return path


class Memory:
    """RAM blocks: {idstr: size}; each in a memfd of its own, at an offset that is not 0."""

    OFFSET = 3 * PAGE

    def __init__(self, sizes, offset=OFFSET):
        self.blocks = []
        flat = 0
        self.offset = offset
        for idstr in sorted(sizes):
            fd = os.memfd_create(idstr)
            os.ftruncate(fd, offset + sizes[idstr])
            self.blocks.append(types.SimpleNamespace(
                idstr=idstr, fd=fd, size=sizes[idstr], flat=flat, index=len(sizes) - 1 - len(self.blocks),
                map=mmap.mmap(fd, offset + sizes[idstr])))
            flat += (sizes[idstr] + CHUNK - 1) // CHUNK * CHUNK
        self.size = flat
        self.n_pages = flat // PAGE
        self.n_chunks = flat // CHUNK

    def block(self, page):
        for block in self.blocks:
            if block.flat <= page * PAGE < block.flat + block.size:
                return block
        return None

    def pages(self):
        for block in self.blocks:
            yield from range(block.flat // PAGE, (block.flat + block.size) // PAGE)

    def write(self, page, data):
        block = self.block(page)
        os.pwrite(block.fd, data, self.offset + page * PAGE - block.flat)

    def punch(self, page, count=1):
        block = self.block(page)
        libc_fallocate(block.fd, self.offset + page * PAGE - block.flat, count * PAGE)

    def read(self, page):
        block = self.block(page)
        return os.pread(block.fd, PAGE, self.offset + page * PAGE - block.flat) if block else ZERO

    def resident(self):
        """Flat pages that have data, without touching them."""
        found = set()
        for block in self.blocks:
            for start, end in memfd_extents(block.fd):
                first = (start - self.offset + block.flat) // PAGE
                found.update(range(first, first + (end - start) // PAGE))
        return found

    def close(self):
        for block in self.blocks:
            block.map.close()
            os.close(block.fd)


def libc_fallocate(fd, offset, length):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, 3, offset, length):  # KEEP_SIZE | PUNCH_HOLE
        raise OSError(ctypes.get_errno(), "fallocate")


class Nbd:
    """The least of an NBD client: open, read, write, trim, flush, each with its error."""

    def __init__(self, data, export, timeout=30):
        _, host, port = data.split(":")
        self.sock = socket.create_connection((host, int(port)), timeout)
        self.sock.settimeout(timeout)
        if self._recv(18)[:16] != b"NBDMAGICIHAVEOPT":
            raise Failure("not NBD")
        name = export.encode()
        self.sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(name) + 6) +
                          struct.pack(">I", len(name)) + name + b"\0\0")
        while True:
            _, _, reply, length = struct.unpack(">QIII", self._recv(20))
            body = self._recv(length)
            if reply & 0x80000000:
                raise Failure("%s does not open" % export)
            if reply == 1:
                break
            if body[:2] == b"\0\0":
                self.size, = struct.unpack(">Q", body[2:10])

    def _recv(self, n):
        data = bytearray()
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise ConnectionError("NBD peer closed")
            data += part
        return bytes(data)

    def call(self, kind, offset, length, payload=b""):
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length) + payload)
        _, error, _ = struct.unpack(">IIQ", self._recv(16))
        return error

    def read(self, offset, length):
        error = self.call(0, offset, length)
        return self._recv(length) if not error else None

    def read_pages(self, pages):
        """Many page reads, pipelined; None for a page that is refused."""
        result = {}
        for start in range(0, len(pages), 64):
            part = pages[start:start + 64]
            self.sock.sendall(b"".join(struct.pack(">IHHQQI", 0x25609513, 0, 0, page, page * PAGE, PAGE)
                                       for page in part))
            for _ in part:
                _, error, page = struct.unpack(">IIQ", self._recv(16))
                result[page] = None if error else self._recv(PAGE)
        return result

    def write(self, offset, payload):
        return self.call(1, offset, len(payload), payload)

    def trim(self, offset, length):
        return self.call(4, offset, length)

    def flush(self):
        return self.call(3, 0, 0)

    def close(self):
        self.sock.close()


class Receiver:
    def __init__(self, memory, uuid, budget, n_subhosts, layout=True):
        fds = [block.fd for block in memory.blocks]
        self.map_path = os.path.join(tempfile.mkdtemp(prefix="mover-"), "map")
        # The receiver's blocks begin at 0 of their files.
        self.process = subprocess.Popen(
            [tool(), "receive", self.map_path, "tcp:127.0.0.1:0", uuid, TICKET, str(budget), str(n_subhosts)] +
            ["%s:%d:%d" % (block.idstr, block.fd, block.size) for block in memory.blocks],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds)
        line = self.process.stdout.readline().split()
        if not line:
            raise Failure("the receiver did not start")
        self.data = line[1]
        self.export = "%s.%s" % (uuid, TICKET)
        if layout:
            self.tell("layout")

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer.startswith("ok"):
            raise Failure("the receiver said %r" % answer)
        return answer

    def page_map(self):
        """(states, sub-hosts, history) of the commit."""
        line = self.process.stdout.readline()
        if line != "map\n":
            raise Failure("the receiver said %r, not that it has the map" % line)
        with open(self.map_path, "rb") as file:
            data = file.read()
        _, n_pages, n_chunks, pages, subhost, history = struct.unpack("<6Q", data[:48])
        return [data[pages:pages + n_pages], data[subhost:subhost + n_chunks],
                data[history:history + n_chunks]]

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(30)
        shutil.rmtree(os.path.dirname(self.map_path), ignore_errors=True)
        if self.process.returncode not in (0, -9):
            raise Failure("the receiver exited with %s" % self.process.returncode)


class Mover:
    """The worker's side of a mover's socket."""

    def __init__(self, env=None):
        self.sock, other = socket.socketpair()
        self.sock.settimeout(60)
        os.set_inheritable(other.fileno(), True)
        self.process = subprocess.Popen([tool(), "mover", str(other.fileno())], pass_fds=[other.fileno()],
                                        env=dict(os.environ, **(env or {})))
        other.close()
        self.progress = (0, 0, 0)
        self.handed = 0
        self.frames = 0

    def send(self, kind, body=b"", cookie=0, fds=()):
        frame = struct.pack("<IHHII", MAGIC, VERSION, kind, len(body), cookie) + body
        sent = socket.send_fds(self.sock, [frame], list(fds)) if fds else self.sock.send(frame)
        self.sock.sendall(frame[sent:])

    def _recv(self, n):
        data = b""
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise ConnectionError("the mover closed its socket")
            data += part
        return data

    def recv(self):
        """(type, cookie, body); keeps the progress."""
        magic, _, kind, length, cookie = struct.unpack("<IHHII", self._recv(16))
        assert magic == MAGIC
        body = self._recv(length)
        if kind == PROGRESS:
            self.progress = struct.unpack("<QQQ", body)
            self.frames += 1
        return kind, cookie, body

    def expect(self, kind):
        """Read until a result of this type; (status, reason)."""
        while True:
            got, _, body = self.recv()
            if got == kind:
                status, _, reason = struct.unpack("<II256s", body)
                return status, reason.split(b"\0")[0].decode()
            if got != PROGRESS:
                raise Failure("the mover sent %d: %s" % (got, body[8:].split(b"\0")[0].decode()))

    def configure(self, memory, partition, history, main, subhosts, uuid, connections=2, bandwidth=0,
                  compress=None, hot=()):
        self.partition = os.memfd_create("partition")
        totals = (2 * memory.n_chunks + 63) & ~63
        bits = bytearray(memory.n_chunks * CHUNK_PAGES // 8)
        for page in hot:
            bits[page // 8] |= 1 << page % 8
        os.pwrite(self.partition, bytes(partition) + bytes(history), 0)
        os.pwrite(self.partition, bits, totals + 8 * (5 + 127 + 2))
        self.totals = totals
        config = {
            "migration": str(uuidlib.uuid4()), "uuid": uuid, "connections": connections,
            "bandwidth": bandwidth, "flat_size": memory.size, "main": main, "subhosts": subhosts,
            "blocks": [{"index": block.index, "idstr": block.idstr, "size": block.size,
                        "fd_offset": memory.offset, "flat": block.flat} for block in memory.blocks]}
        if compress:
            config["compress"] = compress
        self.send(CONFIG, json.dumps(config).encode(), 7,
                  [self.partition] + [block.fd for block in memory.blocks])
        return self.expect(BEGUN)

    def read_totals(self):
        """(rounds, pages_done, zero_pages, wire_bytes, main_bytes, subhost_bytes...)"""
        return struct.unpack("<132Q", os.pread(self.partition, 8 * 132, self.totals))

    def hand_over(self, memory, pages, round_number, per_frame=2000):
        """Flat pages as runs, many to a frame, like QEMU."""
        runs = []
        for page in pages:
            block = memory.block(page)
            if runs and runs[-1][0] is block and runs[-1][1] + runs[-1][2] == page:
                runs[-1][2] += 1
            else:
                runs.append([block, page, 1])
        for start in range(0, len(runs), per_frame):
            part = runs[start:start + per_frame]
            self.send(RUNS, struct.pack("<II", round_number, len(part)) + b"".join(
                struct.pack("<IIQQ", block.index, 0, page - block.flat // PAGE, count)
                for block, page, count in part))
        self.handed += len(pages)

    def drain(self):
        """Until everything handed over is done."""
        while self.progress[0] < self.handed:
            kind, _, body = self.recv()
            if kind != PROGRESS:
                raise Failure("the mover sent %d: %s" % (kind, body[8:].split(b"\0")[0].decode()))
        if self.progress[0] != self.handed:
            raise Failure("%d pages done of %d" % (self.progress[0], self.handed))

    def finish(self):
        self.send(FINISH, b"", 9)
        return self.expect(FINISHED)

    def close(self):
        self.sock.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failure("the mover did not end with its socket")
        return self.process.returncode


class Lab:
    """Sub-hosts, a receiver and a mover for one guest."""

    def __init__(self, sizes, n_subhosts=1, budget=None, sub_limits=None, uuid=None, layout=True, env=None,
                 receiver_budget=None, subhost_options=()):
        self.dir = tempfile.mkdtemp(prefix="mover-")
        self.processes = []
        self.leases = []
        self.uuid = uuid or str(uuidlib.uuid4())
        self.source = Memory(sizes)
        self.target = Memory(sizes, 0)
        self.budget = budget if budget is not None else self.source.size
        self.subhosts = []
        self.configs = []
        for i in range(n_subhosts):
            subhost = Subhost(self, "sub%d" % i, 1 << 30, subhost_options)
            lease = Control(subhost.control_path)
            limit = sub_limits[i] if sub_limits else self.source.size
            export = lease.call("region-create", name=self.uuid, size=self.source.size, reserve=0,
                                limit=limit, slab=CHUNK, ticket=TICKET)["export"]
            self.leases.append(lease)
            self.subhosts.append(subhost)
            self.configs.append({"name": "sub%d" % i, "data": subhost.data, "export": export})
            if subhost.rdma:
                self.configs[i]["rdma"] = subhost.rdma
        self.receiver = Receiver(self.target, self.uuid,
                                 self.budget if receiver_budget is None else receiver_budget,
                                 n_subhosts, layout)
        self.mover = Mover(env)

    def configure(self, partition, history=None, **options):
        main = {"data": self.receiver.data, "export": self.receiver.export, "budget": self.budget}
        self.partition = partition
        return self.mover.configure(self.source, partition, history or bytes(self.source.n_chunks), main,
                                    self.configs, self.uuid, **options)

    def begin(self, partition, **options):
        status, reason = self.configure(partition, **options)
        if status:
            raise Failure("the mover did not begin: " + reason)

    def finish(self):
        status, reason = self.mover.finish()
        if status:
            raise Failure("the mover did not finish: " + reason)
        return self.receiver.page_map()

    def check(self, page_map):
        """Every page in exactly one place, with the source's bytes. Return: counts by state."""
        states, indices, _ = page_map
        counts = [0, 0, 0]
        resident = self.target.resident()
        for chunk in range(self.source.n_chunks):
            if indices[chunk] != self.partition[chunk] & 0x7f:
                raise Failure("chunk %d is of sub-host %d" % (chunk, indices[chunk]))
        stores = []
        for config in self.configs:
            client = Nbd(config["data"], config["export"] + "/strict")
            stores.append(client.read_pages(list(range(self.source.n_pages))))
            client.close()
        for page in range(self.source.n_pages):
            state = states[page]
            counts[state] += 1
            # In a slab that is used by RDMA all pages exist: one that is zero holds nothing.
            remote = [i for i, store in enumerate(stores) if store[page] is not None and
                      not (self.subhosts[i].rdma and state != REMOTE and store[page] == ZERO)]
            want_remote = [indices[page // CHUNK_PAGES]] if state == REMOTE else []
            if (page in resident) != (state == LOCAL) or remote != want_remote:
                raise Failure("page %d is in state %d, resident %s, on sub-hosts %s" % (
                    page, state, page in resident, remote))
            got = self.target.read(page) if state == LOCAL else stores[remote[0]][page] if remote else ZERO
            if got != self.source.read(page):
                raise Failure("page %d (state %d) differs" % (page, state))
        return counts

    def close(self):
        code = self.mover.close()
        for lease in self.leases:
            lease.close()
        self.receiver.close()
        for process in self.processes:
            process.terminate()
            process.wait(20)
        self.source.close()
        self.target.close()
        shutil.rmtree(self.dir)
        return code


def fill(memory, rng, kind):
    """Contents: 'random', 'sparse', 'zero' (pages that exist and are zero), 'mixed', 'text'."""
    for page in memory.pages():
        choice = rng.random()
        if kind == "random" or (kind == "sparse" and choice < 0.1) or (kind == "mixed" and choice < 0.6):
            memory.write(page, rng.randbytes(PAGE))
        elif kind == "text":
            memory.write(page, (b"page %d, %d; " % (page, rng.getrandbits(30)) * 400)[:PAGE])
        elif kind == "zero" or (kind == "mixed" and choice < 0.8):
            memory.write(page, ZERO)


def random_partition(memory, rng, n_subhosts, hot=0.5):
    return bytes((HOT if rng.random() < hot else 0) | rng.randrange(n_subhosts)
                 for _ in range(memory.n_chunks))


def run_tests(tests):
    """Run functions; print a line for each; exit 1 if one failed."""
    failed = 0
    for test in tests:
        start = time.monotonic()
        try:
            test()
            print("ok   %s (%.1f s)" % (test.__name__, time.monotonic() - start), flush=True)
        except (Failure, OSError, AssertionError, subprocess.SubprocessError) as error:
            failed += 1
            print("FAIL %s: %s: %s" % (test.__name__, type(error).__name__, error), flush=True)
    raise SystemExit(1 if failed else 0)
