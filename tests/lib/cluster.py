# SPDX-License-Identifier: GPL-2.0-or-later
"""A source host, a main host and sub-hosts as processes on one machine, for tests and the demo.

Everything started here is stopped by Cluster.close(), by pid; run folders are on tmpfs.  Waiting
is for events, each with a deadline; a deadline that passes raises with the tail of the logs.
"""

import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid as uuidlib

from checks import SLOWNESS, sentence

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
CACHE = os.environ.get("SPLIT_MIGRATE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "split-migrate")
PAGE = 4096
CHUNK_PAGES = 512
MIB = 1 << 20
UNTOUCHED, LOCAL, REMOTE, CLEAN, LOST = range(5)
BUSY = 8


class Failure(Exception):
    """A test's expectation that did not hold; its text is the report."""


def skip(reason):
    print("SKIP: " + reason)
    sys.exit(77)


def program(name):
    path = os.path.join(BUILD, "bin", name)
    if not os.path.exists(path):
        skip("%s is not built (make)" % name)
    return path


def patched_qemu():
    path = os.environ.get("QEMU")
    if not path:
        skip("QEMU names no patched QEMU (make qemu)")
    return path


def wait_until(what, seconds, probe, interval=0.02):
    """Call probe() until it returns something true; what it returned is returned.

    @seconds: what it may take on a machine that has nothing else to do.
    """
    seconds += SLOWNESS
    deadline = time.monotonic() + seconds
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > deadline:
            raise Failure("not in %g s: %s" % (seconds, what))
        time.sleep(interval)


class Control:
    """QMP and our control protocol: one JSON object a line."""

    def __init__(self, path, timeout=30):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.file = self.sock.makefile("rwb")
        self.events = []
        self.id = 0
        greeting = self._read()
        if "QMP" in greeting:
            self.call("qmp_capabilities")

    def _read(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("the control connection was closed")
        return json.loads(line)

    def call(self, verb, **arguments):
        arguments = {key.replace("_", "-") if verb.startswith(("migrate", "query-migrate", "qom", "object"))
                     else key: value for key, value in arguments.items()}
        self.id += 1
        request = {"execute": verb, "arguments": arguments, "id": self.id}
        self.file.write(json.dumps(request).encode() + b"\n")
        self.file.flush()
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif answer.get("id") != self.id:
                continue  # of a client before us: QMP's socket serves one after the other
            elif "error" in answer and answer["error"]["desc"].startswith("Expecting capabilities negotiation"):
                # QEMU greets a client that comes just as its monitor is set up twice, and wants this after each.
                self.call("qmp_capabilities")
                return self.call(verb, **arguments)
            elif "error" in answer:
                raise Failure("%s: %s" % (verb, answer["error"]["desc"]))
            else:
                return answer["return"]

    def close(self):
        self.file.close()
        self.sock.close()


class Daemon:
    """A process of ours with a log file."""

    def __init__(self, cluster, name, argv, env=None):
        self.name = name
        self.log = os.path.join(cluster.dir, name + ".log")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=dict(os.environ, **(env or {})))
        cluster.processes.append(self.process)

    @property
    def pid(self):
        return self.process.pid

    def tail(self, lines=15):
        with open(self.log, errors="replace") as log:
            return "".join(log.readlines()[-lines:])

    def over_budget(self):
        """Has a pager said that a guest takes more than its budget, as when no page can leave for a second?"""
        return "goes over its budget" in self.tail(10000)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(20 + SLOWNESS)


class Subhost(Daemon):
    def __init__(self, cluster, name, memory, options=()):
        self.control_path = os.path.join(cluster.dir, name + ".sock")
        pidfile = os.path.join(cluster.dir, name + ".pid")
        if os.path.exists(pidfile):
            os.unlink(pidfile)
        super().__init__(cluster, name, [
            program("subhost-server"), "--memory", str(memory), "--listen", "tcp:127.0.0.1:0",
            "--control", "unix:" + self.control_path, "--pidfile", pidfile, "--exit-with-parent"] + list(options))
        wait_until("%s is ready" % name, 20, lambda: os.path.exists(pidfile) or self._check())
        self.memory = memory
        control = Control(self.control_path)
        data = control.call("query-status")["data"]
        self.data = data[0]
        self.rdma = next((address for address in data if address.startswith("rdma:")), None)
        control.close()

    def _check(self):
        if self.process.poll() is not None:
            raise Failure("%s ended at once: %s" % (self.name, self.tail()))

    def call(self, verb, **arguments):
        control = Control(self.control_path)
        try:
            return control.call(verb, **arguments)
        finally:
            control.close()

    def nbd_uri(self, export):
        host, port = re.match(r"tcp:(.*):(\d+)$", self.data).groups()
        return "nbd://%s:%s/%s" % (host, port, export)


class Pager(Daemon):
    def __init__(self, cluster, name, env=None, options=()):
        self.run_dir = os.path.join(cluster.dir, name)
        pidfile = os.path.join(cluster.dir, name + ".pid")
        if os.path.exists(pidfile):
            os.unlink(pidfile)
        super().__init__(cluster, name, [
            program("uffd-pager"), "--run-dir", self.run_dir, "--pidfile", pidfile,
            "--exit-with-parent"] + list(options), env)
        wait_until("%s is ready" % name, 20, lambda: os.path.exists(pidfile) or self._check())
        self.handoff = os.path.join(self.run_dir, "handoff.sock")
        self.control_path = os.path.join(self.run_dir, "uffd-pager.sock")

    def _check(self):
        if self.process.poll() is not None:
            raise Failure("%s ended at once: %s" % (self.name, self.tail()))

    def call(self, verb, **arguments):
        control = Control(self.control_path, timeout=120)
        try:
            return control.call(verb, **arguments)
        finally:
            control.close()

    def guest(self, uuid):
        return self.call("query-guest", uuid=uuid)

    def guests(self):
        return os.listdir(os.path.join(self.run_dir, "guests"))

    def map(self, uuid):
        """The page map of a stopped guest, at a moment when no page is being changed."""
        path = os.path.join(self.run_dir, "guests", uuid, "map")

        def quiet():
            page_map = PageMap(path)
            return page_map if max(page_map.pages) < BUSY else None
        return wait_until("no page is busy", 20, quiet)

    def map_and_extents(self, uuid, fd):
        """The page map of a stopped guest, and what is resident at that moment: page-out and prefetch may go on."""
        def still():
            page_map, extents = self.map(uuid), list(memfd_extents(fd))
            return (page_map, extents) if self.map(uuid).pages == page_map.pages else None
        return wait_until("no page is moved", 30, still)


class PageMap:
    """A snapshot of the page map file (common/pagemap.h)."""

    def __init__(self, path):
        with open(path, "rb") as file:
            data = file.read()
        fields = [int.from_bytes(data[i * 8:i * 8 + 8], "little") for i in range(7)]
        self.n_pages, self.n_chunks, pages, subhost = fields[1:5]
        # Without PAGE_REMARKS, which are no states.
        self.pages = data[pages:pages + self.n_pages].translate(bytes(byte & 0x1f for byte in range(256)))
        self.subhost = data[subhost:subhost + self.n_chunks]


class Guest:
    """A QEMU with our test guest (tests/guest) or any other machine in it.

    @kernel: True for the test guest's, a file for another, False for none.
    """

    def __init__(self, cluster, name, pager, memory, uuid, append="", incoming=False, extra=(),
                 paused=False, kernel=True, accel="tcg,thread=multi", smp=1, max_memory=None):
        self.name, self.cluster, self.uuid, self.pager = name, cluster, uuid, pager
        base = os.path.join(cluster.dir, name)
        self.qmp_path, self.serial_log = base + ".qmp", base + ".serial"
        self.serial_path = base + ".ser"
        argv = [patched_qemu(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-machine", "pc,memory-backend=ram", "-accel", accel, "-smp", str(smp),
                "-m", "%dM" % (memory // MIB),
                "-object", "memory-backend-memfd,id=ram,share=on,size=%d" % memory,
                "-uuid", uuid, "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path,
                "-chardev", "socket,id=ser,path=%s,server=on,wait=off,logfile=%s" % (
                    self.serial_path, self.serial_log),
                "-serial", "chardev:ser"]
        if pager:
            argv += ["-object", "ram-pager,id=pager0,path=" + pager.handoff]
        if kernel:
            guest = cluster.guest_files()
            argv += ["-kernel", guest["KERNEL"] if kernel is True else kernel, "-initrd", guest["INITRD"], "-append",
                     "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check nowatchdog " + append]
        if incoming:
            argv += ["-incoming", "defer"]
        if paused:
            argv += ["-S"]
        open(self.serial_log, "w").close()
        if os.path.exists(self.qmp_path):
            os.unlink(self.qmp_path)  # of a machine of this name before: it would look ready at once
        self.daemon = Daemon(cluster, name, argv + list(extra))
        wait_until("QMP of %s" % name, 30, lambda: os.path.exists(self.qmp_path) or self._check())
        # The controller needs the QMP socket: the test must not sit on it.
        self.serial = None
        cluster.guests.append(self)

    def _check(self):
        if self.daemon.process.poll() is not None:
            raise Failure("QEMU %s ended at once: %s" % (self.name, self.daemon.tail()))

    @property
    def pid(self):
        return self.daemon.pid

    def qmp(self, verb, **arguments):
        control = Control(self.qmp_path)
        try:
            return control.call(verb, **arguments)
        finally:
            control.close()

    def status(self):
        return self.qmp("query-status")["status"]

    def handed_over(self):
        try:
            return self.pager.guest(self.uuid)["state"] != "waiting"
        except Failure:
            return False

    def wait_handed_over(self):
        """QEMU answers before it has handed its memory over."""
        wait_until("the hand-off of %s" % self.name, 30, self.handed_over)

    def uri(self):
        return "qmp:%s?pager=unix:%s" % (self.qmp_path, self.pager.control_path)

    def log_text(self):
        self.drain()  # a console that nobody reads makes the guest wait
        with open(self.serial_log, errors="replace") as log:
            return log.read().replace("\r", "")

    def say(self, line):
        if self.serial is None:
            self.serial = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.serial.connect(self.serial_path)
            self.serial.setblocking(False)
        try:
            while self.serial.recv(65536):
                pass
        except BlockingIOError:
            pass
        self.serial.setblocking(True)
        self.serial.sendall(line.encode() + b"\n")
        self.serial.setblocking(False)

    def drain(self):
        """Read the console socket, or QEMU's side would fill."""
        if self.serial:
            try:
                while self.serial.recv(65536):
                    pass
            except BlockingIOError:
                pass

    def hang_up(self):
        """Leave the console: a client that does not read holds it up, for good if the guest then moves."""
        if self.serial:
            self.serial.close()
            self.serial = None

    def command(self, line, done, seconds=120):
        """Have the guest do something with its memory (drop, refill): pages, which were all as expected."""
        start = len(self.log_text())
        self.say(line)
        match = self.wait_log(done + r" done pages=(\d+) errors=(\d+)", seconds, start)
        if match.group(2) != "0":
            raise Failure("%s on %s: %s" % (line, self.name, match.group(0)))
        return int(match.group(1))

    def wait(self, what, seconds, probe):
        """wait_until() for what the guest is to do; a failure shows the end of its console."""
        try:
            return wait_until(what, seconds, probe, 0.05)
        except Failure as failure:
            raise Failure("%s; its console ends:\n%s" % (failure, self.log_text()[-3000:])) from None

    def wait_log(self, pattern, seconds, start=0):
        def probe():
            self.drain()
            if self.daemon.process.poll() is not None and not re.search(
                    pattern, self.log_text()[start:], re.M):
                raise Failure("QEMU %s ended while waiting for '%s': %s\n%s" % (
                    self.name, pattern, self.daemon.tail(), self.log_text()[-800:]))
            return re.search(pattern, self.log_text()[start:], re.M)
        return self.wait("'%s' on the console of %s" % (pattern, self.name), seconds, probe)

    def report(self):
        """The last whole report line as a dictionary of numbers."""
        lines = re.findall(r"^memguest: (t=.*)$", self.log_text(), re.M)
        return dict((k, float(v)) for k, v in re.findall(r"(\w+)=([\d.]+)", lines[-1])) if lines else {}

    def reports(self):
        return len(re.findall(r"^memguest: t=", self.log_text(), re.M))

    def check_clean(self):
        """No error line, no memory error, no crash on the console."""
        text = self.log_text()
        bad = re.findall(r"^.*(?:memguest: ERROR|MEMORY-ERROR|Kernel panic|BUG:|Oops|general protection"
                         r"|segfault).*$", text, re.M)
        if bad:
            raise Failure("the guest on %s reports: %s" % (self.name, "\n".join(bad[:5])))
        report = self.report()
        if report.get("errors") or report.get("memerrs"):
            raise Failure("the guest on %s counts errors: %s" % (self.name, report))

    def sweep(self, seconds=300):
        """Have the guest check all its pages. Returns (pages, errors)."""
        start = len(self.log_text())
        self.say("sweep")
        match = self.wait_log(r"sweep done pages=(\d+) errors=(\d+)", seconds, start)
        return int(match.group(1)), int(match.group(2))

    def expect_sweep(self, seconds=300):
        pages, errors = self.sweep(seconds)
        if errors or not pages:
            raise Failure("sweep on %s: %d pages, %d errors\n%s" % (
                self.name, pages, errors, self.log_text()[-1500:]))
        return pages

    def memfd(self):
        """A descriptor of our own on the guest's RAM; it outlives QEMU."""
        folder = "/proc/%d/fd" % self.pid
        for name in os.listdir(folder):
            try:
                target = os.readlink(os.path.join(folder, name))
            except OSError:
                continue
            if target.startswith("/memfd:memory-backend-memfd"):
                return os.open(os.path.join(folder, name), os.O_RDONLY)
        raise Failure("QEMU %s has no memfd" % self.name)

    def quit(self):
        if self.daemon.process.poll() is None:
            self.daemon.kill()


class Cluster:
    def __init__(self, name="t"):
        self.dir = tempfile.mkdtemp(prefix="sm-", dir="/dev/shm")
        self.processes, self.guests, self.subhosts = [], [], []
        self._guest_files = None
        self.uuid = str(uuidlib.uuid4())
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if value and not isinstance(value, SystemExit):
            self.show_logs()
        self.close()

    def show_logs(self):
        for name in sorted(os.listdir(self.dir)):
            if name.endswith(".log"):
                with open(os.path.join(self.dir, name), errors="replace") as log:
                    lines = log.readlines()[-25:]
                if lines:
                    print("--- %s\n%s" % (name, "".join(lines)), end="")

    def close(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.reap_workers()
        shutil.rmtree(self.dir, ignore_errors=True)

    def reap_workers(self):
        """Workers end with their QEMU; what is still there after a moment is killed by pid."""
        def workers():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open("/proc/%s/cmdline" % pid, "rb") as file:
                        argv = file.read().split(b"\0")
                except OSError:
                    continue
                if b"--worker" in argv and any(self.dir.encode() in arg for arg in argv):
                    found.append(int(pid))
            return found
        deadline = time.monotonic() + 5
        while workers() and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in workers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def guest_files(self):
        if not self._guest_files:
            out = subprocess.run([os.path.join(ROOT, "tests/guest/build.sh"),
                                  os.path.join(CACHE, "guest")], check=True, capture_output=True,
                                 text=True).stdout
            self._guest_files = dict(re.findall(r"^(\w+)=(.*)$", out, re.M))
        return self._guest_files

    def subhost(self, memory, name=None, options=()):
        subhost = Subhost(self, name or "subhost%d" % (len(self.subhosts) + 1), memory, options)
        self.subhosts.append(subhost)
        return subhost

    def pager(self, name, env=None, options=()):
        return Pager(self, name, env, options)

    def guest(self, name, pager, memory, **arguments):
        return Guest(self, name, pager, memory, self.uuid, **arguments)

    def policy(self, budget, subhosts=None, **sections):
        """Write a policy file; sections={'pages': {'granule': '4KiB'}}."""
        path = os.path.join(self.dir, "policy.ini")
        main = dict(sections.pop("main", {}))
        with open(path, "w") as file:
            file.write("[main]\nbudget = %dKiB\n" % (budget // 1024))
            for key, value in main.items():
                file.write("%s = %s\n" % (key, value))
            for subhost in subhosts or self.subhosts:
                file.write("\n[subhost %s]\nuri = %s://%s\nmemory = %dKiB\n" % (
                    subhost.name, "rdma" if subhost.rdma else "subhost", subhost.control_path,
                    subhost.memory // 1024))
            for section, keys in sections.items():
                file.write("\n[%s]\n" % section)
                for key, value in keys.items():
                    file.write("%s = %s\n" % (key, value))
        return path

    def command(self, *arguments, env=None):
        """Start split-migrate; returns the Popen with pipes."""
        process = subprocess.Popen([program("split-migrate")] + list(arguments),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True,
                                   env=dict(os.environ, **(env or {})))
        self.processes.append(process)
        return process

    def run(self, *arguments, seconds=180, env=None):
        """Run split-migrate to its end; returns (status, stdout, stderr)."""
        process = self.command(*arguments, env=env)
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err

    def migrate(self, source, destination, policy, *more, seconds=300, env=None):
        """Split a guest; raises unless it succeeds. Returns split-migrate's JSON."""
        source.wait_handed_over()
        destination.wait_handed_over()
        status, out, err = self.run("migrate", "--live", "--json", "--policy", policy, *more,
                                    source.uri(), destination.uri(), seconds=seconds, env=env)
        if status:
            raise Failure("split-migrate ended with %d: %s%s" % (status, out, err))
        return json.loads(out)


def memfd_extents(fd):
    """(start, end) of the data extents of a memfd."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, data, os.SEEK_HOLE)
        yield data, at


def memfd_blocks(fd):
    return os.fstat(fd).st_blocks * 512


def main(test):
    """Run a test function with a cluster; the process's exit status says how it went."""
    try:
        with Cluster() as cluster:
            test(cluster)
    except (Failure, subprocess.TimeoutExpired, ConnectionError) as failure:
        print("FAIL: %s" % failure)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        print("FAIL: %s" % sentence(error))
        sys.exit(1)
    print("ok")


__all__ = [name for name in dir() if not name.startswith("_") and name not in ("mmap",)]
