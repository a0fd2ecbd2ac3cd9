# SPDX-License-Identifier: GPL-2.0-or-later
"""Control endpoints that answer as they are told, and a QEMU that only has a monitor.

A World collects what was called, in order, as "who verb"; world.fail["who verb"] makes that call
fail: "refuse" answers an error, "close" closes the connection without an answer.
"""

import json
import os
import shutil
import socket
import tempfile
import threading

UUID = "7c1d3a52-6f0e-4d7f-9a53-0d6f5f1c2b11"


class Refused(Exception):
    def __init__(self, desc, name="GenericError"):
        super().__init__(desc)
        self.name = name


class World:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="split-migrate-cli-")
        self.lock = threading.RLock()
        self.calls = []
        self.arguments = {}  # of the last call of each
        self.fail = {}
        self.hooks = {}  # "who verb": called before the verb is
        self.servers = []
        self.guest_log = []  # "source runs", "destination runs", "... stops"

    def path(self, name):
        return os.path.join(self.folder, name)

    def called(self, what):
        with self.lock:
            return self.calls.count(what)

    def close(self):
        for server in self.servers:
            server.close()
        shutil.rmtree(self.folder, True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class ControlServer:
    """Serves verb_NAME(connection, arguments) methods on a UNIX socket."""

    greeting = {"split-migrate": {"program": "fake", "version": "0", "protocol": 1}}
    error_class = "EBUSY"

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.path = world.path(name + ".sock")
        self.connections = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(16)
        world.servers.append(self)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with self.world.lock:
                self.connections.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _send(self, sock, message):
        sock.sendall((json.dumps(message) + "\r\n").encode())

    def event(self, name, **data):
        with self.world.lock:
            for sock in self.connections:
                try:
                    self._send(sock, {"event": name, "data": data,
                                      "timestamp": {"seconds": 0, "microseconds": 0}})
                except OSError:
                    pass

    def _serve(self, sock):
        try:
            self._send(sock, self.greeting)
            for line in sock.makefile("rb"):
                if not self._request(sock, json.loads(line)):
                    break
        except (OSError, ValueError):
            pass
        with self.world.lock:
            if sock in self.connections:
                self.connections.remove(sock)
            self.closed(sock)
        sock.close()

    def _request(self, sock, request):
        verb = request["execute"]
        what = "%s %s" % (self.name, verb)
        arguments = request.get("arguments", {})
        with self.world.lock:
            self.world.calls.append(what)
            self.world.arguments[what] = arguments
            hook = self.world.hooks.get(what)
        if hook:
            hook()
        with self.world.lock:
            failure = self.world.fail.get(what)
            if failure == "close":
                sock.shutdown(socket.SHUT_RDWR)
                return False
            try:
                if failure:
                    raise Refused("%s was told to refuse" % self.name, self.error_class)
                method = getattr(self, "verb_" + verb.replace("-", "_"), None)
                if not method:
                    raise Refused("The command %s has not been found" % verb, "CommandNotFound")
                answer = {"return": method(sock, arguments) or {}}
            except Refused as refused:
                answer = {"error": {"class": refused.name, "desc": str(refused)}}
            if "id" in request:
                answer["id"] = request["id"]
            try:
                self._send(sock, answer)
            except OSError:
                return False
            self.after(verb)
            return True

    def closed(self, sock):
        """A connection has ended; world.lock is held."""

    def after(self, verb):
        """The answer has been sent."""

    def drop(self):
        """Close all connections, but go on listening."""
        with self.world.lock:
            for sock in self.connections:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.drop()


class FakeQemu(ControlServer):
    """A monitor.  The source moves on by a step with each query-migrate."""

    greeting = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""},
                        "capabilities": []}}
    error_class = "GenericError"

    def __init__(self, world, name, status="running", uuid=UUID):
        self.status = status
        self.uuid = uuid
        self.migration = None
        self.error = None
        self.objects = ["ram-pager", "memory-backend-memfd"]
        self.dirty_rate = 10  # MiB/s
        self.fast_writer = False  # each query finds another round with as much to send
        self.steps = ["setup", "active", "active", "active", "device", "completed"]
        self.step = self.rounds = 0
        self.capabilities = {"events": False, "return-path": False,
                             "pause-before-switchover": True, "postcopy-ram": False,
                             "auto-converge": False}
        self.parameters = {"max-bandwidth": 134217728, "downtime-limit": 333}
        self.peer = None      # the destination
        self.on_complete = lambda: None
        self.was_running = False
        self.ended = threading.Event()
        super().__init__(world, name)

    def _run(self, runs):
        before = self.status == "running"
        self.status = "running" if runs else "paused"
        if before != runs:
            self.world.guest_log.append("%s %s" % (self.name, "runs" if runs else "stops"))
            self.event("RESUME" if runs else "STOP")

    def verb_qmp_capabilities(self, sock, arguments):
        pass

    def verb_query_uuid(self, sock, arguments):
        return {"UUID": self.uuid}

    def verb_query_status(self, sock, arguments):
        return {"status": self.status, "running": self.status == "running"}

    def verb_qom_list(self, sock, arguments):
        return [{"name": "o%d" % i, "type": "child<%s>" % o} for i, o in enumerate(self.objects)]

    def verb_query_migrate_capabilities(self, sock, arguments):
        return [{"capability": k, "state": v} for k, v in self.capabilities.items()]

    def verb_query_migrate_parameters(self, sock, arguments):
        return dict(self.parameters, **{"cpu-throttle-initial": 20})

    def verb_migrate_set_capabilities(self, sock, arguments):
        for entry in arguments["capabilities"]:
            self.capabilities[entry["capability"]] = entry["state"]

    def verb_migrate_set_parameters(self, sock, arguments):
        self.parameters.update(arguments)

    def verb_calc_dirty_rate(self, sock, arguments):
        self.dirty_rate_asked = 0

    def verb_query_dirty_rate(self, sock, arguments):
        self.dirty_rate_asked += 1
        done = self.dirty_rate_asked > 2
        return {"status": "measured" if done else "measuring", **({"dirty-rate": self.dirty_rate} if done else {})}

    def verb_stop(self, sock, arguments):
        if self.status != "inmigrate":
            self._run(False)

    def verb_cont(self, sock, arguments):
        self._run(True)

    def verb_migrate_incoming(self, sock, arguments):
        self.migration = "setup"

    def verb_migrate(self, sock, arguments):
        if self.peer is None or self.peer.migration != "setup":
            raise Refused("nobody listens")
        self.was_running = self.status == "running"
        self.step = 0
        self.migration = self.steps[0]
        self.peer.migration = "active"

    def _enter(self, status):
        if status == self.migration:
            return
        self.migration = status
        if status == "device":
            self._run(False)
        elif status == "completed":
            self._run(False)
            self.status = "postmigrate"
            self.on_complete()
            self.peer.migration = "completed"
            self.peer.status = "paused"
        elif status in ("failed", "cancelled"):
            if self.was_running:
                self._run(True)
            self.peer.migration = "failed"
        self.event("MIGRATION", status=status)

    def verb_query_migrate(self, sock, arguments):
        if self.peer is not None and self.migration not in (None, "completed", "failed",
                                                            "cancelled"):
            self._enter(self.steps[self.step])
            self.step = min(self.step + 1, len(self.steps) - 1)
        if self.migration is None:
            return {}
        answer = {"status": self.migration, "total-time": 1234,
                  "ram": {"total": 1 << 30, "remaining": max(0, (4 - self.step)) << 28,
                          "dirty-sync-count": self.step}}
        if self.fast_writer and self.migration == "active":
            self.rounds += 1
            answer["ram"].update({"dirty-sync-count": self.rounds, "remaining": 500 << 20, "dirty-pages-rate": 61440})
            if self.capabilities["auto-converge"]:
                answer["cpu-throttle-percentage"] = min(99, 10 * self.rounds)
        if self.migration == "completed":
            answer["downtime"] = 56
        if self.migration == "failed" and self.error:
            answer["error-desc"] = self.error
        return answer

    def verb_migrate_cancel(self, sock, arguments):
        self._enter("cancelled")

    def verb_quit(self, sock, arguments):
        if self.status == "running":
            self.world.guest_log.append("%s stops" % self.name)
        self.status = "gone"

    def after(self, verb):
        if verb == "quit":
            self.ended.set()
            self.close()
