# SPDX-License-Identifier: GPL-2.0-or-later
"""Start subhost-server for a test, and talk to its control socket."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading

from checks import SLOWNESS
from nbdpeer import NbdPeer, dial

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
SERVER = os.path.join(BUILD, "bin", "subhost-server")
NBDTOOL = os.path.join(BUILD, "tests", "tools", "nbdtool")
MIB = 1 << 20
PAGE = 4096


class ControlError(Exception):
    def __init__(self, error):
        super().__init__("%s: %s" % (error["class"], error["desc"]))
        self.name = error["class"]
        self.desc = error["desc"]


class Control:
    """One connection to a control socket."""

    def __init__(self, address):
        self.sock = dial(address)
        self.file = self.sock.makefile("rb")
        self.greeting = json.loads(self.file.readline())

    def call(self, verb, **arguments):
        line = json.dumps({"execute": verb, "arguments": arguments}) + "\n"
        self.sock.sendall(line.encode())
        answer = json.loads(self.file.readline())
        if "error" in answer:
            raise ControlError(answer["error"])
        return answer["return"]

    def region(self, name):
        return next(r for r in self.call("region-list") if r["name"] == name)

    def close(self):
        self.file.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Subhost:
    """A running server: .unix, .tcp and .control are addresses, .log() what it said."""

    def __init__(self, *options, memory="256M", seconds=20, prefix=()):
        self.folder = tempfile.mkdtemp(prefix="subhost-")
        self.control_address = "unix:" + os.path.join(self.folder, "control.sock")
        self.unix = "unix:" + os.path.join(self.folder, "data.sock")
        self.pidfile = os.path.join(self.folder, "pid")
        self.lines = []
        self.changed = threading.Condition()
        self.words = list(prefix) + [SERVER, "--memory", memory, "--listen", self.unix, "--listen", "tcp:127.0.0.1:0",
                 "--control", self.control_address, "--pidfile", self.pidfile, "--exit-with-parent"]
        self.words += options
        self.reader = None
        self.launch(seconds)

    def launch(self, seconds=20):
        """Start the server, or another one after it was killed or stopped."""
        if self.reader:
            self.reader.join(10)  # what the old one said last is not the new one's
        del self.lines[:]
        self.process = subprocess.Popen(self.words, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self.reader.start()
        self.wait_log("is ready", seconds)
        with Control(self.control_address) as control:
            self.tcp = control.call("query-status")["data"][1]

    def kill(self):
        """As a crash would end it."""
        self.process.kill()
        self.process.wait()
        self.reader.join(10)
        self.process.stderr.close()

    def _read(self, stderr):
        for line in stderr:
            with self.changed:
                self.lines.append(line.decode(errors="replace"))
                self.changed.notify_all()
        with self.changed:
            self.lines.append("")
            self.changed.notify_all()

    def log(self):
        return "".join(self.lines)

    def wait_log(self, text, seconds=20):
        with self.changed:
            ended = lambda: self.lines and self.lines[-1] == ""
            self.changed.wait_for(lambda: text in self.log() or ended(), seconds + SLOWNESS)
            assert text in self.log(), "no '%s' in the log:\n%s" % (text, self.log())

    def control(self):
        return Control(self.control_address)

    def peer(self, export=None, **options):
        return NbdPeer(self.unix, export, **options)

    def uri(self, export):
        return "nbd+unix:///%s?socket=%s" % (export, self.unix[5:])

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """End it as an operator would; it must obey, quickly and with success."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(10 + SLOWNESS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("SIGTERM was not obeyed:\n" + self.log())
        finally:
            self.reader.join(10)
            self.process.stderr.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        assert status == 0, "exit status %d:\n%s" % (status, self.log())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            print(self.log())
        self.stop()
