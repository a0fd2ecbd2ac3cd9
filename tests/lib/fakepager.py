# SPDX-License-Identifier: GPL-2.0-or-later
"""A minimal pager for testing the QEMU series without uffd-pager.

It speaks the QEMU side of common/handoff.h, keeps what it received for tests
to look at, and moves a migrating guest's RAM by copying from one memory file
to the other.  It never touches the userfaultfd, so nothing is ever paged.

The second half of the file starts small QEMU guests and talks QMP to them.
"""

import atexit
import ctypes
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from checks import SLOWNESS, sentence

MAGIC = 0x484D5053
VERSION = 1
PAGE = 4096
ZEROS = bytes(PAGE)

(HELLO, BLOCK, LAYOUT_END, WELCOME, ZAP, ZAPPED, DISCARD, DISCARDED, ARM,
 DISARM, ARMED, MIG_BEGIN, MIG_BEGUN, MIG_RUNS, MIG_PROGRESS, MIG_FINISH,
 MIG_FINISHED, MIG_FAILED, MIG_END, IN_BEGIN, IN_BEGUN, IN_WAIT,
 IN_READY) = range(1, 24)

HELLO_INCOMING = 1


def result(status=0, reason=""):
    return struct.pack("<II256s", status, 0, reason.encode()[:255])


def parse_result(body):
    status, _, reason = struct.unpack("<II256s", body)
    return status, reason.split(b"\0")[0].decode()


def parse_ranges(body):
    n, _ = struct.unpack_from("<II", body)
    return [struct.unpack_from("<I4xQQ", body, 8 + 24 * i) for i in range(n)]


def make_ranges(ranges):
    body = struct.pack("<II", len(ranges), 0)
    for block, offset, length in ranges:
        body += struct.pack("<I4xQQ", block, offset, length)
    return body


class Block:
    def __init__(self, body, fd):
        (self.index, self.flags, self.hva, self.size, self.page_size,
         self.fd_offset, idstr) = struct.unpack("<IIQQQQ256s", body)
        self.idstr = idstr.split(b"\0")[0].decode()
        self.fd = fd


class Session:
    """One connection of a QEMU to the pager."""

    def __init__(self, pager, sock):
        self.pager = pager
        self.sock = sock
        self.uuid = None
        self.flags = None
        self.pid = None
        self.uffd = -1
        self.pagemap = -1
        self.blocks = []
        self.seen = []  # (type, cookie, body), in order
        self.cond = threading.Condition()
        self.send_lock = threading.Lock()
        self.closed = False
        self.next_cookie = 100
        self.on_discard = None
        # An outgoing migration
        self.mover = None
        # An incoming one: what to answer IN_WAIT with, once there is something
        self.ready = queue.Queue()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def send(self, msg_type, body=b"", cookie=0):
        with self.send_lock:
            self.sock.sendall(struct.pack("<IHHII", MAGIC, VERSION, msg_type,
                                          len(body), cookie) + body)

    def recv_exact(self, n, fds=None):
        data = b""
        while len(data) < n:
            if fds is None:
                chunk = self.sock.recv(n - len(data))
            else:
                chunk, new, _, _ = socket.recv_fds(self.sock, n - len(data), 8)
                fds += new
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def run(self):
        try:
            while True:
                fds = []
                head = self.recv_exact(16, fds)
                magic, version, kind, length, cookie = struct.unpack(
                    "<IHHII", head)
                assert magic == MAGIC and version == VERSION, "bad header"
                body = self.recv_exact(length)
                self.handle(kind, cookie, body, fds)
                with self.cond:
                    self.seen.append((kind, cookie, body))
                    self.cond.notify_all()
        except (EOFError, OSError):
            pass
        finally:
            with self.cond:
                self.closed = True
                self.cond.notify_all()
            if self.mover:
                self.mover.stop()

    def handle(self, kind, cookie, body, fds):
        if kind == HELLO:
            self.uuid = body[:16]
            self.n_blocks, self.flags, self.pid = struct.unpack_from(
                "<IIQ", body, 16)
            (self.uffd,) = fds
        elif kind == BLOCK:
            (fd,) = fds
            self.blocks.append(Block(body, fd))
        elif kind == LAYOUT_END:
            self.pagemap = fds[0] if fds else -1
            if self.pager.welcome is None:
                return
            status, reason = self.pager.welcome
            self.send(WELCOME, result(status, reason), cookie)
            if not status:
                self.pager.sessions.put(self)
        elif kind == DISCARD:
            if self.on_discard:
                self.on_discard(parse_ranges(body))
            if not self.pager.mute:
                self.send(DISCARDED, result(), cookie)
        elif kind == MIG_BEGIN:
            if not self.pager.mute:
                self.send(MIG_BEGUN, result(*self.pager.begin), cookie)
        elif kind == MIG_RUNS:
            self.mover.runs.put((kind, cookie, body))
        elif kind == MIG_FINISH:
            self.mover.runs.put((kind, cookie, body))
        elif kind == MIG_END:
            if self.mover:
                self.mover.stop()
        elif kind == IN_BEGIN:
            self.send(IN_BEGUN, result(), cookie)
        elif kind == IN_WAIT:
            threading.Thread(target=self.answer_in_wait, args=(cookie,),
                             daemon=True).start()

    def answer_in_wait(self, cookie):
        status, reason = self.ready.get()
        try:
            self.send(IN_READY, result(status, reason), cookie)
        except OSError:
            pass

    def wait_for(self, kind, timeout=10, cookie=None, count=1):
        """The body of the count-th message of a kind."""
        end = time.monotonic() + timeout + SLOWNESS
        with self.cond:
            while True:
                bodies = [b for k, c, b in self.seen
                          if k == kind and cookie in (None, c)]
                if len(bodies) >= count:
                    return bodies[count - 1]
                left = end - time.monotonic()
                if self.closed or left <= 0:
                    raise TimeoutError(f"no message of type {kind}")
                self.cond.wait(left)

    def request(self, kind, answer, body, timeout=10):
        self.next_cookie += 1
        cookie = self.next_cookie
        self.send(kind, body, cookie)
        return parse_result(self.wait_for(answer, timeout, cookie))

    def zap(self, ranges):
        return self.request(ZAP, ZAPPED, make_ranges(ranges))

    def arm(self, mig_id, dest, **mover_args):
        """Make the next migration ours; copy to the session dest."""
        self.mover = Mover(self, dest, **mover_args)
        return self.request(ARM, ARMED, mig_id)

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.thread.join(10)
        self.sock.close()

    def dispose(self):
        """After this, no thread may use the files any more."""
        if self.mover:
            self.mover.stop()
            self.mover.thread.join(10)
        for block in self.blocks:
            os.close(block.fd)
        if self.uffd >= 0:
            os.close(self.uffd)
        self.blocks, self.uffd = [], -1


class Mover:
    """Copies handed-over pages into the destination's memory files."""

    def __init__(self, session, dest, fail_after=None, stuck_after=None,
                 stuck_at_finish=False, rate=None, hold_ready=False):
        self.session = session
        self.dest = dest
        self.fail_after = fail_after
        self.stuck_after = stuck_after
        self.stuck_at_finish = stuck_at_finish
        self.hold_ready = hold_ready  # the test answers IN_WAIT
        self.rate = rate
        self.runs = queue.Queue()
        self.done = self.zero = self.wire = 0
        self.rounds = []
        self.sent = set()
        self.stopped = threading.Event()
        self.stuck = threading.Event()
        self.duplicates = 0
        self.in_round = set()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self):
        self.stopped.set()
        self.runs.put(None)

    def progress(self):
        self.session.send(MIG_PROGRESS, struct.pack("<QQQ", self.done,
                                                    self.zero, self.wire))

    def run(self):
        try:
            self.serve()
        except OSError:  # the session has ended
            pass

    def block_for_ever(self):
        self.stuck.set()
        self.stopped.wait()

    def serve(self):
        while not self.stopped.is_set():
            item = self.runs.get()
            if item is None:
                return
            kind, cookie, body = item
            if kind == MIG_FINISH:
                if self.stuck_at_finish:
                    self.block_for_ever()
                    return
                self.progress()
                self.session.send(MIG_FINISHED, result(), cookie)
                if self.dest and not self.hold_ready:
                    self.dest.ready.put((0, ""))
                return
            if self.stuck_after is not None and self.done >= self.stuck_after:
                self.block_for_ever()
                return
            round_no, n = struct.unpack_from("<II", body)
            if not self.rounds or round_no != self.rounds[-1]:
                assert not self.rounds or round_no > self.rounds[-1]
                self.rounds.append(round_no)
                self.in_round = set()
            for i in range(n):
                block, page, count = struct.unpack_from("<I4xQQ", body,
                                                        8 + 24 * i)
                self.copy(block, page, count)
                if self.stopped.is_set():
                    return
            self.progress()
            if self.fail_after is not None and self.done >= self.fail_after:
                self.session.send(MIG_FAILED, result(
                    28, "sub-host b is full"))
                return

    def copy(self, index, page, count):
        source = self.session.blocks[index]
        dest = self.dest.blocks[index] if self.dest else None
        assert (page + count) * PAGE <= source.size
        for first in range(page, page + count, 256):
            n = min(256, page + count - first)
            data = os.pread(source.fd, n * PAGE, source.fd_offset +
                            first * PAGE)
            for i in range(n):
                key = (index, first + i)
                if key in self.in_round:
                    self.duplicates += 1
                self.in_round.add(key)
                piece = data[i * PAGE:(i + 1) * PAGE]
                if piece == ZEROS and key not in self.sent:
                    self.zero += 1
                    continue
                self.sent.add(key)
                if dest:
                    os.pwrite(dest.fd, piece, dest.fd_offset +
                              (first + i) * PAGE)
                self.wire += PAGE
            self.done += n
            if self.rate:
                time.sleep(n * PAGE / self.rate)


class FakePager:
    """Listens for QEMUs; .sessions gets one Session per accepted hand-off."""

    def __init__(self, path):
        self.path = path
        self.welcome = (0, "")  # None: never
        self.begin = (0, "")
        self.mute = False  # do not answer DISCARD and MIG_BEGIN
        self.sessions = queue.Queue()
        self.all = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)
        self.listener.bind(path)
        self.listener.listen(4)
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.all.append(Session(self, sock))

    def session(self, timeout=10):
        return self.sessions.get(timeout=timeout + SLOWNESS)

    def close(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        self.thread.join(10)
        for session in self.all:
            session.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


# Guests ---------------------------------------------------------------------

def boot_sector(start, end, delay, balloon=()):
    """A guest that for ever increments the first word of each page in
    [start, end), idling for about `delay` loop turns per page.  Before that,
    it gives the page frames `balloon` to a virtio-balloon-pci at 00:04.0."""
    code = bytes.fromhex("fa 31c0 8ed8")                # cli; ds = 0
    code += b"\x0f\x01\x16" + struct.pack("<H", 0x7DC0)  # lgdt [0x7dc0]
    code += bytes.fromhex("0f20c0 6683c801 0f22c0")     # cr0 |= PE
    target = 0x7C00 + len(code) + 5
    code += b"\xea" + struct.pack("<HH", target, 8)     # jmp 8:next
    code += bytes.fromhex("66b81000 8ed8 8ec0 8ed0")    # ds = es = ss = 16
    code += bytes.fromhex("e492 0c02 e692")             # A20 on
    if balloon:
        code += bytes.fromhex(
            "b804200080 baf80c0000 ef b2fc"     # PCI command register
            "b807000000 ef"                     # I/O, memory, bus master
            "b810200080 baf80c0000 ef b2fc ed"  # eax = BAR 0
            "24fc 89c3"                         # ebx = its port
            "8d5312 b003 ee"                    # status: acknowledge, driver
            "8d530e 31c0 66ef"                  # queue 0, inflate
            "c70500000100 007d0000"             # descriptor 0: at 0x7d00
            "c70508000100")                     # its length
        code += struct.pack("<I", 4 * len(balloon))
        code += bytes.fromhex(
            "c70500400100 00000100"             # available: index 1
            "8d5308 b810000000 ef"              # queue at 0x10000
            "8d5312 b007 ee"                    # status: driver ok
            "8d5310 31c0 66ef")                 # notify queue 0
    code += b"\xbf" + struct.pack("<I", start)          # outer: edi = start
    code += bytes.fromhex("ff07")                       # inner: inc [edi]
    code += b"\xb9" + struct.pack("<I", max(1, delay))  # ecx = delay
    code += bytes.fromhex("e2fe")                       # loop here
    code += b"\x81\xc7" + struct.pack("<I", PAGE)       # edi += 4096
    code += b"\x81\xff" + struct.pack("<I", end)        # cmp edi, end
    code += bytes.fromhex("72e9 ebe2")                  # jb inner; jmp outer
    assert len(code) <= 0x100 and len(balloon) <= 40
    code = code.ljust(0x100, b"\0")
    code += struct.pack(f"<{len(balloon)}I", *balloon)  # at 0x7d00
    code = code.ljust(0x1C0, b"\0")
    code += struct.pack("<HI", 23, 0x7DD0)              # gdtr
    code = code.ljust(0x1D0, b"\0")
    code += struct.pack("<QQQ", 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF)
    return code.ljust(510, b"\0") + b"\x55\xaa"


class Skip(Exception):
    pass


def fail(message):
    raise AssertionError(message)


def check(condition, message):
    if not condition:
        fail(message)


def wait_until(what, predicate, timeout=30, step=0.02):
    end = time.monotonic() + timeout + SLOWNESS
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            fail(f"timed out waiting for {what}")
        time.sleep(step)


class QMPError(Exception):
    pass


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Qemu:
    """One QEMU process and its QMP connection."""

    running = []
    ended = []  # logs of those killed in the present test

    def __init__(self, work, name, args, qmp=True):
        self.name = name
        self.qmp_path = os.path.join(work, name + ".qmp")
        self.log_path = os.path.join(work, name + ".log")
        for path in (self.qmp_path, self.log_path):
            if os.path.exists(path):
                os.unlink(path)
        command = [os.environ["QEMU"], "-name", name, "-nodefaults",
                   "-no-user-config", "-display", "none", "-accel", "tcg"]
        if qmp:
            command += ["-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command + args, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, preexec_fn=_die_with_parent)
        Qemu.running.append(self)
        self.events = []
        self.sock = None
        if qmp:
            self.connect()

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def connect(self):
        end = time.monotonic() + 20
        while True:
            if self.process.poll() is not None:
                fail(f"{self.name} ended: {self.log()}")
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.sock.connect(self.qmp_path)
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > end:
                    fail(f"{self.name}: no QMP")
                time.sleep(0.02)
        self.sock.settimeout(30)
        self.reader = self.sock.makefile("r")
        self.reader.readline()
        self.command("qmp_capabilities")

    def command(self, execute, /, **arguments):
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.sock.sendall(json.dumps({"execute": execute,
                                      "arguments": arguments}).encode())
        while True:
            line = self.reader.readline()
            if not line:
                fail(f"{self.name} went away: {self.log()}")
            message = json.loads(line)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                if not message["error"]["desc"].startswith("Expecting capabilities negotiation"):
                    raise QMPError(message["error"]["desc"])
                self.command("qmp_capabilities")
                return self.command(execute, **arguments)
            elif "return" in message:
                return message["return"]
            # Else a second greeting: QEMU gives two to a client that comes just as its monitor is set up,
            # and wants the capabilities to be negotiated after each.

    def pager_property(self, name):
        return self.command("qom-get", path="/objects/pager0", property=name)

    def migrate(self, uri, capabilities=(), **parameters):
        if capabilities:
            self.set_capabilities(capabilities)
        if parameters:
            self.command("migrate-set-parameters", **parameters)
        self.command("migrate", uri=uri)

    def set_capabilities(self, names, state=True):
        self.command("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": state} for name in names])

    def migration(self):
        return self.command("query-migrate")

    def wait_migration(self, *states, timeout=60):
        def ended():
            info = self.migration()
            return info if info.get("status") in (
                "completed", "failed", "cancelled") else None
        info = wait_until("the migration", ended, timeout)
        check(info["status"] in states,
              f"migration {info['status']}, not {states}: "
              f"{info.get('error-desc')}\n{self.log()}")
        return info

    def status(self):
        return self.command("query-status")["status"]

    def ram_fd(self):
        """Our own file descriptor for the guest's memfd."""
        folder = f"/proc/{self.process.pid}/fd"
        for name in os.listdir(folder):
            try:
                target = os.readlink(os.path.join(folder, name))
            except OSError:
                continue
            if target.startswith("/memfd:memory-backend-memfd"):
                return os.open(os.path.join(folder, name), os.O_RDWR)
        fail(f"{self.name} has no memfd")

    def end(self, timeout=20):
        """Wait for a QEMU that ends by itself; its exit status."""
        return self.process.wait(timeout + SLOWNESS)

    def kill(self):
        if self.sock:
            self.sock.close()
            self.sock = None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self in Qemu.running:
            Qemu.running.remove(self)
            Qemu.ended.append(f"--- {self.name} (exit status "
                              f"{self.process.returncode})\n{self.log()}")


def kill_all():
    for qemu in list(Qemu.running):
        qemu.kill()


class Bench:
    """A folder, a boot disk, and the way to start guests with them."""

    UUID = "7c1d3a52-6f0e-4d7f-9a53-0d6f5f1c2b11"

    def __init__(self, size=64, dirty=(16, 48), delay=20000, balloon=()):
        self.size = size
        self.work = tempfile.mkdtemp(prefix="split-migrate-qemu.")
        atexit.register(shutil.rmtree, self.work, True)
        self.dirty = tuple(x << 20 for x in dirty)
        self.disk = self.path("boot.img")
        with open(self.disk, "wb") as f:
            f.write(boot_sector(*self.dirty, delay, balloon))
            f.truncate(1440 * 1024)
        self.pagers = []

    def path(self, name):
        return os.path.join(self.work, name)

    def pager(self, name):
        pager = FakePager(self.path(name + ".sock"))
        self.pagers.append(pager)
        return pager

    def qemu(self, name, pager=None, incoming=False, extra=(), qmp=True,
             uuid=True, memory="memory-backend-memfd,share=on", share_of=None):
        args = ["-machine", "pc,memory-backend=ram0", "-m", str(self.size),
                "-object", f"{memory},id=ram0,size={self.size}M,"
                "x-use-canonical-path-for-ramblock-id=false",
                "-drive", f"if=floppy,format=raw,readonly=on,file={self.disk}",
                "-boot", "a"]
        if uuid:
            args += ["-uuid", self.UUID]
        if pager:
            path = pager if isinstance(pager, str) else pager.path
            args += ["-object", f"ram-pager,id=pager0,path={path}"]
        if incoming:
            args += ["-S", "-incoming", "defer"]
        return Qemu(self.work, name, args + list(extra), qmp)

    def listen(self, dest):
        uri = "unix:" + self.path("migrate.sock")
        if os.path.exists(self.path("migrate.sock")):
            os.unlink(self.path("migrate.sock"))
        dest.command("migrate-incoming", uri=uri, exit_on_error=False)
        return uri

    def counter(self, fd, page=0):
        return struct.unpack("<I", os.pread(fd, 4, self.dirty[0] +
                                            page * PAGE))[0]

    def wait_running(self, fd, turns=2, timeout=60):
        """Wait until the guest has gone through its memory a few times more."""
        first = self.counter(fd)
        wait_until("the guest to write its memory", lambda:
                   self.counter(fd) - first >= turns, timeout)

    def fill(self, fd, start, end):
        """Something recognizable where the guest does not write."""
        for offset in range(start << 20, end << 20, PAGE):
            if offset // PAGE % 5 == 0:  # leave holes
                continue
            os.pwrite(fd, struct.pack("<QQ", offset, 0x5EED) * (PAGE // 16),
                      offset)

    def differences(self, a, b):
        """Page numbers in which two memory files differ."""
        found = []
        for first in range(0, self.size << 20, 1 << 20):
            x, y = os.pread(a, 1 << 20, first), os.pread(b, 1 << 20, first)
            if x != y:
                found += [(first + i) // PAGE
                          for i in range(0, 1 << 20, PAGE)
                          if x[i:i + PAGE] != y[i:i + PAGE]]
        return found

    def close(self):
        kill_all()
        for pager in self.pagers:
            pager.close()
        for pager in self.pagers:  # one's mover uses the other's files
            for session in pager.all:
                session.dispose()


def pages_in(fd, start, length):
    """How many bytes from start to start + length are not holes."""
    total, position, end = 0, start, start + length
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        total += max(0, min(hole, end) - max(data, start))
        position = hole
    return total


def userfaultfd_works():
    """Whether a process like ours may create a userfaultfd."""
    try:
        os.close(os.open("/dev/userfaultfd", os.O_RDWR))
        return True
    except OSError:
        pass
    fd = ctypes.CDLL(None, use_errno=True).syscall(323, os.O_CLOEXEC)
    if fd < 0:
        return False
    os.close(fd)
    return True


def main(tests, needs_userfaultfd=True):
    """Run the functions; exit 0, 1 or 77 as tests/ expects."""
    binary = os.environ.get("QEMU", "")
    if not binary or not os.access(binary, os.X_OK):
        print("skip: QEMU does not name a QEMU built by qemu-patches/build.sh")
        sys.exit(77)
    if os.uname().machine != "x86_64":
        print("skip: the guest's boot sector is for x86")
        sys.exit(77)
    if needs_userfaultfd and not userfaultfd_works():
        print("skip: no permission to create a userfaultfd")
        sys.exit(77)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, lambda *_: sys.exit(1))
    only = sys.argv[1:]
    failed = []
    for test in tests:
        if only and test.__name__ not in only:
            continue
        begin = time.monotonic()
        Qemu.ended.clear()
        try:
            test()
            verdict = "ok"
        except Skip as reason:
            verdict = f"skip: {reason}"
        except Exception as error:  # go on with the other tests
            import traceback
            traceback.print_exc()
            kill_all()
            logs = "".join(Qemu.ended)
            verdict = f"FAILED: {error}\n{logs}"
            failed.append(f"{test.__name__}: {sentence(error)}")
        finally:
            kill_all()
        print(f"{test.__name__}: {verdict} "
              f"({time.monotonic() - begin:.1f} s)", flush=True)
    if failed:
        print("FAILED: " + "; ".join(failed))
    sys.exit(1 if failed else 0)
