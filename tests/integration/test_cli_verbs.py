#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""split-migrate's other verbs, its exit statuses, and what it says to mistakes."""

import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import main
from fakepagerctl import MIB, FakePager, FakeSubhost
from fakeqmp import UUID, FakeQemu, World

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, os.environ.get("BUILD", "build"), "bin", "split-migrate")
OTHER = "11111111-2222-4333-8444-555555555555"

if not os.path.exists(PROGRAM):
    print("SKIP: %s is not built" % PROGRAM)
    sys.exit(77)


def run(*words, status=0):
    """Returns stdout and stderr; a failure must have said one sentence."""
    done = subprocess.run([PROGRAM] + list(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, text=True, timeout=60)
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    if status:
        assert re.fullmatch(r"error: [^\n]*[^.\n]\n", done.stderr), (words, done.stderr)
    else:
        assert done.stderr == "", (words, done.stderr)
    return done.stdout, done.stderr


def test_usage():
    run("self-test")
    out, _ = run("--help")
    verbs = re.findall(r"^  ([a-z-]+)   ", out.split("Verbs:")[1], re.M)
    tables = json.loads(run("self-test", "--json")[0])
    assert verbs == [v["name"] for v in tables["verbs"] if not v["hidden"]], verbs
    assert {"migrate", "status", "dommemstat", "help"} <= set(verbs), verbs
    for verb in verbs:
        shown, _ = run("help", verb)
        assert run(verb, "--help")[0] == shown == run("--help", verb)[0]
        assert shown.startswith("Usage: split-migrate " + verb)
    assert re.match(r"split-migrate \d", run("--version")[0])
    for words in ((), ("nonsense",), ("--nonsense",), ("migrate",), ("migrate", "a"),
                  ("migrate", "qmp:/a", "qmp:/b", "c"), ("help", "nonsense"), ("pages", ""),
                  ("plan", "--policy"), ("migrate", "guest", "qmp:/b"),
                  ("migrate", "qmp:/a", "qmp:/b", "--downtime", "soon"),
                  ("migrate", "qmp:/a", "qmp:/b", "--bandwidth", "-1"),
                  ("plan", "qemu:///system"), ("migrate", "qmp:/a", "qmp:/b", "--persistent"),
                  ("migrate", "guest", "guest"), ("plan", "guest", "--dest-pager", "unix:/a"),
                  ("status", "--pager", "nowhere"),
                  ("status", "--pager", "unix:/a", UUID + "?pager=unix:/b"),
                  ("setbudget", UUID), ("setbudget", UUID, "lots"), ("setbudget", UUID, "8 MiB"),
                  ("setbudget", UUID, "64 MiB", "--timeout", "soon"),
                  ("dommemstat", UUID, "--interval", "0"), ("top", "x"), ("top", "--pager", "a"),
                  ("subhost-list", "host"), ("subhost-info",), ("subhost-info", "tcp:a:1"),
                  ("subhost-list", "--policy", "/p", "subhost://a")):
        run(*words, status=2)


def test_no_policy():
    _, err = run("plan", "--policy", "/nonexistent", "qmp:/a", status=1)
    assert "'/nonexistent' cannot be read" in err
    with World() as world:
        path = world.path("p")
        with open(path, "w") as file:
            file.write("[main]\nbudget = 1 GiB\n[subhost a]\nurl = x\n")
        _, err = run("plan", "--policy", path, "qmp:/a", status=1)
        assert err.startswith("error: %s:4: key 'url' is not known in [subhost]" % path), err


def guest(world):
    qemu, pager = FakeQemu(world, "qemu"), FakePager(world, "pager")
    address = "pager=unix:" + pager.path
    return qemu, pager, "qmp:%s?%s" % (qemu.path, address), "%s?%s" % (UUID, address)


def test_plan():
    with World() as world:
        _, _, uri, _ = guest(world)
        subhosts = [FakeSubhost(world, "s1"), FakeSubhost(world, "s2", 512 * MIB)]
        path = world.path("policy")
        with open(path, "w") as file:
            file.write("[main]\nbudget = 64 MiB\n" + "".join(
                "[subhost h%d]\nuri = subhost://%s\n" % (i, s.path)
                for i, s in enumerate(subhosts)))
        plan = json.loads(run("plan", "--json", "--policy", path, "--budget", "256 MiB", uri)[0])
        assert plan["main"]["budget"] == 256 * MIB and "free" not in plan["main"]
        shares = [s["bytes"] for s in plan["subhosts"]]
        assert plan["main"]["bytes"] + sum(shares) == plan["present_bytes"] == 800 * MIB
        assert 1.9 < shares[0] / shares[1] < 2.1, shares
        text, _ = run("plan", "--policy", path, uri)
        assert "Host" in text and " h1 " in text
        assert "Host" not in run("-q", "plan", "--policy", path, uri)[0]
        subhosts[0].free = 16 * MIB
        _, err = run("plan", "--policy", path, uri, status=1)
        assert "'h0' has 16 MiB, 'h1' has 512 MiB" in err and "needed" in err, err
        assert not [c for c in world.calls if "create" in c or "prepare" in c]


def test_status():
    with World() as world:
        _, pager, uri, name = guest(world)
        for domain in (uri, name, name.upper().replace("?PAGER=UNIX:" + pager.path.upper(),
                                                       "?pager=unix:" + pager.path)):
            out, _ = run("status", domain)
            assert re.search(r"^State: +attached$", out, re.M), out
        pager.state, pager.n_subhosts = "sending", 2
        out, _ = run("status", name)
        assert "Sent to sub-host 2:" in out and re.search(r"^Job state: +moving$", out, re.M), out
        assert json.loads(run("status", "--json", name)[0])["job"]["zero_pages"] == 17
        pager.state = "split"
        out, _ = run("status", name)
        assert "Sub-host b:" in out and "not connected" in out and "Page-ins:" in out, out
        out, _ = run("status", "--pager", "unix:" + pager.path)
        assert UUID in out and "Guest" in out
        assert "Guest" not in run("-q", "status", "--pager", "unix:" + pager.path)[0]
        assert len(json.loads(run("status", "--json", "--pager", "unix:" + pager.path)[0])) == 1
        run("status", name.replace(UUID, OTHER), status=1)
        run("status", "--pager", "unix:/nonexistent", status=1)
        run("status", "qmp:/nonexistent", status=1)


def test_pages():
    with World() as world:
        _, pager, uri, name = guest(world)
        pager.state = "split"
        pages = json.loads(run("pages", "--json", "--uris", uri)[0])
        page = 4096
        assert pages["resident_bytes"] == 1024 * page and pages["clean_bytes"] == 24 * page
        assert pages["lost_bytes"] == 6 * page and pages["untouched_bytes"] == 250 * page
        assert pages["subhosts"][0] == {"name": "a", "remote_bytes": 512 * page,
                                        "uri": "nbd+unix:///X.t?socket=/run/a.sock"}
        assert pages["subhosts"][1] == {"name": "b", "remote_bytes": 256 * page,
                                        "uri": "nbd://[::1]:10809/X.u"}
        out, _ = run("pages", name)
        assert re.search(r"^ a \(remote\) +2\.0 +512$", out, re.M) and "nbd" not in out, out
        assert re.search(r"^ nowhere \(lost\) +0\.0 +6$", out, re.M), out
        assert "nbd+unix:///X.t" in run("pages", "--uris", name)[0]


def test_abort():
    with World() as world:
        _, pager, uri, name = guest(world)
        _, err = run("abort", name, status=1)
        assert "is not being moved: it is attached" in err
        pager.state = "sending"
        run("abort", uri)
        assert pager.state == "attached" and world.called("pager outgoing-cancel") == 1
        pager.state = "incoming"
        run("abort", name)
        assert world.called("pager incoming-cancel") == 1
        pager.state = "split"
        run("abort", name, status=1)


class OverBudget(FakePager):
    """A pager that lets the guest over its budget as soon as one is set; @leaves bytes leave all the same with each look."""

    def __init__(self, world, leaves):
        self.leaves = leaves
        super().__init__(world, "over")
        self.state = "split"

    def verb_set_budget(self, sock, arguments):
        self._guest(arguments)
        self.event("OVER_BUDGET", uuid=UUID, reason="nothing leaves")

    def verb_query_guest(self, sock, arguments):
        self.present -= self.leaves
        return super().verb_query_guest(sock, arguments)


def test_over_budget():
    with World() as world:
        address = UUID + "?pager=unix:"
        out, _ = run("setbudget", address + OverBudget(world, 100 * MIB).path, "256 MiB")
        assert re.match(r"Budget is 256 MiB, reached after .* resident", out), out
    with World() as world:
        _, err = run("setbudget", address + OverBudget(world, 0).path, "256 MiB", status=1)
        assert err == "error: the guest goes over its budget of 256 MiB: nothing leaves\n", err


if __name__ == "__main__":
    main(globals())
