# SPDX-License-Identifier: GPL-2.0-or-later
"""The control side of the two daemons, as split-migrate sees it: docs/protocols.md without pages."""

from fakeqmp import UUID, ControlServer, Refused

MIB = 1 << 20


class FakePager(ControlServer):
    def __init__(self, world, name, ram=1024 * MIB, present=800 * MIB):
        self.state = "attached"
        self.waiting = 0  # times it says that QEMU has not handed the guest's memory over
        self.ram = ram
        self.present = present
        self.available = 1 << 40
        self.lease = None
        self.rounds = 0
        self.reason = ""
        self.n_subhosts = 0
        super().__init__(world, name)

    def _guest(self, arguments):
        if arguments.get("uuid") != UUID:
            raise Refused("guest is not known", "ENOENT")

    def verb_query_status(self, sock, arguments):
        return {"version": "0", "run_dir": "/", "memory_total": self.available,
                "memory_available": self.available, "guests": 1}

    def verb_query_guest(self, sock, arguments):
        self._guest(arguments)
        state, self.waiting = "waiting" if self.waiting else self.state, max(0, self.waiting - 1)
        guest = {"uuid": UUID, "state": state, "connected": state != "waiting", "ram": self.ram,
                 "present": self.present, "resident": self.present, "resident_max": self.present}
        if self.state == "split":
            guest.update(budget=256 * MIB, page_ins=3, fault_us={"p50": 1, "p99": 2, "max": 3},
                         subhosts=[{"name": "a", "data": "unix:/run/a.sock", "export": "X.t",
                                    "pages": 512, "connected": True},
                                   {"name": "b", "data": "tcp:[::1]:10809", "export": "X.u",
                                    "pages": 256, "connected": False}])
        return guest

    def verb_query_guests(self, sock, arguments):
        return [self.verb_query_guest(sock, {"uuid": UUID})]

    def verb_query_pages(self, sock, arguments):
        self._guest(arguments)
        return {"page_bytes": 4096, "chunk_bytes": 2 * MIB, "n_chunks": 4, "subhosts": ["a", "b"],
                "runs": [[0, 2, 500, 12, 0, 0, 0, 0, 200], [2, 1, 0, 0, 512, 0, 0, 0, 0],
                         [3, 1, 0, 0, 256, 250, 6, 1, 0]]}

    def verb_outgoing_profile(self, sock, arguments):
        self._guest(arguments)
        return {"ram": self.ram, "present": self.present, "chunks_accessed": 7, "periods": 1}

    def verb_outgoing_prepare(self, sock, arguments):
        self._guest(arguments)
        self.lease, self.state, self.n_subhosts = sock, "sending", len(arguments["subhosts"])
        self.rounds = 0
        return {"main_bytes": 0, "subhost_bytes": [0] * self.n_subhosts}

    def verb_outgoing_status(self, sock, arguments):
        self._guest(arguments)
        self.rounds += 1
        return {"state": "failed" if self.reason else "moving", "reason": self.reason,
                "rounds": self.rounds, "pages_done": 1000 * self.rounds, "zero_pages": 17,
                "wire_bytes": MIB * self.rounds, "busy_us": 1000 * self.rounds, "main_bytes": 2 * MIB,
                "subhost_bytes": [MIB] * self.n_subhosts, "ram": self.ram}

    def verb_outgoing_cancel(self, sock, arguments):
        self._guest(arguments)
        if self.state == "sending":
            self.lease, self.state = None, "attached"

    def verb_incoming_prepare(self, sock, arguments):
        self._guest(arguments)
        if arguments["budget"] < 16 * MIB or not arguments["subhosts"]:
            raise Refused("bad arguments", "EINVAL")
        self.lease, self.state = sock, "incoming"
        return {"data": "unix:" + self.world.path("main-data.sock"),
                "export": "%s.%s" % (UUID, arguments["ticket"])}

    def verb_incoming_cancel(self, sock, arguments):
        self._guest(arguments)
        if self.state == "split":
            raise Refused("guest has arrived already", "EBUSY")
        self.lease, self.state = None, "attached"

    def closed(self, sock):
        if sock is self.lease:
            self.lease, self.state = None, "attached"


class FakeSubhost(ControlServer):
    def __init__(self, world, name, free=1024 * MIB):
        self.free = free
        self.regions = {}  # name: (ticket, lease or None, arguments)
        super().__init__(world, name)

    def verb_query_status(self, sock, arguments):
        reserved = sum(r[2]["reserve"] for r in self.regions.values())
        return {"version": "0", "data": ["tcp:127.0.0.1:1", "unix:" + self.path + ".data"],
                "memory": self.free, "stored": 0, "reserved": reserved,
                "free": self.free - reserved, "regions": len(self.regions)}

    def verb_region_create(self, sock, arguments):
        name = arguments["name"]
        if name in self.regions:
            raise Refused("region %s exists" % name, "EEXIST")
        self.regions[name] = (arguments["ticket"], sock, arguments)
        return {"export": "%s.%s" % (name, arguments["ticket"])}

    def verb_region_delete(self, sock, arguments):
        region = self.regions.get(arguments["name"])
        if not region or region[0] != arguments["ticket"]:
            raise Refused("no such region", "ENOENT")
        del self.regions[arguments["name"]]

    def keep(self):
        """What the main host's pager does when the guest has arrived."""
        self.regions = {n: (r[0], None, r[2]) for n, r in self.regions.items()}

    def closed(self, sock):
        self.regions = {n: r for n, r in self.regions.items() if r[1] is not sock}
