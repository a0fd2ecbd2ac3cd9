#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator sees of a split guest: figures that agree with the memfds and the sub-hosts, and
a budget that changes under load.  Real pager and sub-hosts; a native process plays the guest."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, PAGE, Failure, main, program, skip, wait_until
from guestplay import SIZES, GuestPlay, move

SLACK = 1 * MIB
FLAT = 80 * MIB  # the blocks, each at a 2 MiB boundary


def expect(condition, what):
    if not condition:
        raise Failure("not so: %s" % (what,))


class Look:
    """split-migrate's verbs on one guest."""

    def __init__(self, cluster, pager):
        self.cluster = cluster
        self.domain = "%s?pager=unix:%s" % (cluster.uuid, pager.control_path)
        self.pager = "unix:" + pager.control_path
        self.daemon = pager

    def run(self, *words, status=0, seconds=60):
        got, out, err = self.cluster.run(*words, seconds=seconds)
        one_sentence = re.fullmatch(r"error: [^\n]*[^.\n]\n", err) if status else err == ""
        expect(got == status and one_sentence, (words, got, out, err))
        return out if status == 0 else err

    def json(self, *words):
        return json.loads(self.run(*words))

    def within(self, value, budget):
        return value <= budget + SLACK or self.daemon.over_budget()

    def stat(self):
        return self.json("dommemstat", "--json", "--interval", "0.2", self.domain)


def memfds(pid):
    """Bytes that a process's memfds really hold."""
    files = {}
    for fd in os.listdir("/proc/%d/fd" % pid):
        path = "/proc/%d/fd/%s" % (pid, fd)
        try:
            if os.readlink(path).startswith("/memfd:"):
                info = os.stat(path)
                files[info.st_ino] = info.st_blocks * 512
        except FileNotFoundError:
            continue  # closed since the folder was listed
    return sum(files.values())


def stored(uri):
    """Bytes that exist in an export, asked by a program that is not ours."""
    out = subprocess.run(["nbdinfo", "--map", "--json", uri], check=True, capture_output=True, text=True,
                         timeout=60).stdout
    return sum(extent["length"] for extent in json.loads(out) if extent["type"] == 0)


def check_not_split(look, guest):
    out = look.run("dommemstat", look.domain)
    names = [line.split()[0] for line in out.splitlines()]
    expect(names == ["actual", "present", "resident"], out)
    resident = look.stat()["resident_bytes"]
    expect(resident == memfds(guest.process.pid), (resident, memfds(guest.process.pid)))
    expect("is not split" in look.run("setbudget", look.domain, "64", status=1), "a refusal")
    expect("M" in look.run("pages", "--heatmap", look.domain), "a map")


def check_figures(look, guest):
    """Right after the move nothing has been paged: everything is in one place."""
    stat = look.stat()
    blocks = memfds(guest.process.pid)
    expect(stat["state"] == "split" and stat["ram_bytes"] == FLAT, stat)
    expect(stat["resident_bytes"] == blocks and blocks <= stat["budget_bytes"] == 24 * MIB, (stat, blocks))
    pages = look.json("pages", "--json", "--uris", "--heatmap", look.domain)
    expect(pages["resident_bytes"] == blocks and not pages["lost_bytes"], (pages, blocks))
    expect(pages["resident_bytes"] + pages["untouched_bytes"] + sum(
        s["remote_bytes"] for s in pages["subhosts"]) == FLAT, pages)
    heat = pages["heatmap"]
    expect(sum(heat["resident_pages"]) * PAGE == blocks, (heat, blocks))
    expect(len(heat["heat"]) == FLAT // heat["chunk_bytes"] and max(heat["heat"]) > 0, heat)
    for figures, named in zip(stat["subhosts"], pages["subhosts"]):
        here = stored(named["uri"])
        on_map = sum(n for n, host in zip(heat["remote_pages"], heat["subhost"]) if host == named["name"])
        expect(0 < here == figures["remote_bytes"] == figures["stored_bytes"] == on_map * PAGE,
               (figures, named, here, on_map))
    text = look.run("dommemstat", "--interval", "0.1", look.domain)
    lines = dict(line.split() for line in text.splitlines())
    expect(int(lines["remote.suba"]) + int(lines["remote.subb"]) == int(lines["remote"]), text)
    expect(int(lines["resident"]) * 1024 == blocks, text)


def check_rates(look, guest):
    before = look.stat()
    guest("go")
    stat = {}

    def pages():
        stat.update(look.stat())
        return stat["page_in_rate"] > 0 < stat["page_out_rate"]
    wait_until("it pages in and out", 20, pages)
    guest("halt")
    expect(stat["page_ins"] > before["page_ins"] and stat["page_outs"] > before["page_outs"], stat)
    expect(0 < stat["fault_p50_us"] <= stat["fault_p99_us"] <= stat["fault_max_us"], stat)
    # Copies of clean pages, and old ones of changed pages, are on the sub-hosts besides what is only there.
    pages = look.json("pages", "--json", "--uris", look.domain)
    stat = look.stat()
    for figures, named in zip(stat["subhosts"], pages["subhosts"]):
        expect(figures["remote_bytes"] <= figures["stored_bytes"] <= stored(named["uri"]), (figures, named))
    expect(stat["resident_bytes"] == memfds(guest.process.pid), stat)


def check_pictures(look, cluster):
    path = os.path.join(cluster.dir, "heat.svg")
    drawn = look.run("pages", "--heatmap", "--svg", path, look.domain)
    places = "".join(re.findall(r"^ +0 GiB ([M12-]+)$", drawn, re.M))
    # Most of each cell is on a sub-host: what is hot of this guest is strewn, and so is what is on the main host.
    expect(len(places) == FLAT // (2 * MIB) and {"2"} <= set(places) <= set("M12-"), drawn)
    expect(re.search(r"^ +M main [1-9]", drawn, re.M) and "1 suba" in drawn and "a cell is 2 MiB" in drawn and "\033" not in drawn, drawn)
    root = xml.etree.ElementTree.parse(path).getroot()
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    expect(any(t.startswith("suba ") for t in texts) and len(list(root)) > FLAT // (2 * MIB), texts)
    expect("cannot be written" in look.run("pages", "--svg", cluster.dir, look.domain, status=1), "a refusal")


def check_setbudget(look, guest):
    guest("mode", "random")
    guest("go")
    old = 24 * MIB
    for size, budget in ("16MiB", 16 * MIB), ("40MiB", 40 * MIB), ("16384k", 16 * MIB), ("24", 24 * MIB):
        out = look.run("setbudget", look.domain, size)
        expect(out.startswith("Budget is %d MiB" % (budget // MIB)) and "resident" in out, out)
        if budget < old:
            expect(look.within(memfds(guest.process.pid), budget), out)
        else:
            wait_until("the guest takes what it may", 20, lambda: memfds(guest.process.pid) > 20 * MIB)
        stat = look.stat()
        expect(stat["budget_bytes"] == budget and look.within(stat["resident_max_bytes"], max(old, budget)), stat)
        old = budget
        expect(0.8 < stat["low_watermark_bytes"] / budget <= stat["high_watermark_bytes"] / budget < 1, stat)
        most = 0
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            most = max(most, memfds(guest.process.pid))
        expect(look.within(most, budget), (size, most))
    expect(look.run("-q", "setbudget", "--timeout", "0", look.domain, "32 MiB") == "", "quiet")
    expect(look.stat()["budget_bytes"] == 32 * MIB, "no waiting")
    guest.check()


def check_no_room(look):
    """What must leave does not fit on the sub-hosts: nothing changes."""
    before = look.stat()
    err = look.run("setbudget", look.domain, "16MiB", status=1)
    expect(re.search(r"must leave this host, and the sub-hosts have room for [\d.]+ (MiB|KiB|B) \('suba' ", err), err)
    after = look.stat()
    expect(after["budget_bytes"] == before["budget_bytes"], (before, after))
    expect(after["resident_bytes"] == before["resident_bytes"], (before, after))


def check_top(look):
    top = look.json("top", "--json", "--interval", "0.2", "--pager", look.pager)
    expect([g["uuid"] for g in top["guests"]] == [look.cluster.uuid], top)
    expect(top["guests"][0]["budget_bytes"] and top["memory_available_bytes"] <= top["memory_total_bytes"], top)
    for words in (("--once",), ()):  # stdout is no terminal: the same
        out = look.run("top", "--interval", "0.2", "--pager", look.pager, *words)
        expect(look.cluster.uuid in out and "Resident" in out and "\033" not in out, out)
    expect("Resident" not in look.run("-q", "top", "--interval", "0.1", "--pager", look.pager), "quiet")
    child, fd = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        os.execv(program("split-migrate"), ["split-migrate", "top", "--interval", "0.1", "--pager", look.pager])
    shown = b""

    def frames():
        nonlocal shown
        if select.select([fd], [], [], 0.1)[0]:
            shown += os.read(fd, 65536)
        return shown.count(b"\033[H") >= 3
    wait_until("it is drawn anew", 20, frames)
    os.write(fd, b"q")
    _, status = os.waitpid(child, 0)
    while select.select([fd], [], [], 0)[0]:
        try:
            shown += os.read(fd, 65536)
        except OSError:
            break
    os.close(fd)
    expect(status == 0 and shown.endswith(b"\033[?25h\033[?1049l"), (status, shown[-200:]))
    expect(look.cluster.uuid.encode()[:20] in shown, shown)
    expect("cannot connect" in look.run("top", "--pager", "unix:/nonexistent", status=1), "a refusal")


def check_subhosts(look, cluster):
    uris = ["subhost://" + s.control_path for s in cluster.subhosts]
    policy = cluster.policy(24 * MIB)
    for words in (("--policy", policy), uris):
        for told, subhost in zip(look.json("subhost-list", "--json", *words), cluster.subhosts):
            status, region = subhost.call("query-status"), subhost.call("region-list")[0]
            expect(told["reachable"] and told["free"] == status["free"] and told["memory"] == 128 * MIB, told)
            expect(told["regions"][0]["stored"] == region["stored"] and region["name"] == cluster.uuid, told)
    table = look.run("subhost-list", "--policy", policy)
    expect(re.search(r"^ suba +unix:\S+ +running +128 MiB ", table, re.M), table)
    info = look.run("subhost-info", uris[0])
    expect(re.search(r"^Free: +\S", info, re.M) and re.search(r"^ %s .* kept " % cluster.uuid, info, re.M), info)
    expect(look.json("subhost-info", "--json", uris[0])["regions"][0]["name"] == cluster.uuid, "one object")
    status, out, err = cluster.run("subhost-list", uris[0], "subhost:///nonexistent")
    expect(status == 1 and " running " in out and " unreachable " in out and err.count("\n") == 1, (out, err))
    look.run("subhost-info", "subhost:///nonexistent", status=1)


def split(cluster, source, target, **limits):
    state = os.path.join(cluster.dir, "state")
    if os.path.exists(state):
        os.unlink(state)  # of the guest before
    here = GuestPlay(cluster, source, "source guest")
    there = GuestPlay(cluster, target, "destination guest", incoming=True)
    here("mode", "hot")
    here("fill", 80)
    check_not_split(Look(cluster, source), here)
    move(cluster, source, target, here, there, **limits)
    here.check()
    here.process.kill()
    return there


def test(cluster):
    if not shutil.which("nbdinfo"):
        skip("nbdinfo is not installed")
    expect(sum(SIZES) < FLAT, "the layout")
    source, target = cluster.pager("source"), cluster.pager("target")
    for name in "suba", "subb":
        cluster.subhost(128 * MIB, name)
    look = Look(cluster, target)
    guest = split(cluster, source, target)
    check_figures(look, guest)
    check_pictures(look, cluster)  # whole chunks are here or there, before pages of them are paged out
    guest.run(1)
    check_rates(look, guest)
    check_subhosts(look, cluster)
    guest("go")
    check_top(look)
    check_setbudget(look, guest)
    guest.process.kill()
    wait_until("the pagers' end of it", 20, lambda: not target.guests() and not source.guests())
    wait_until("the regions' end", 20, lambda: not any(s.call("region-list") for s in cluster.subhosts))
    look.run("dommemstat", look.domain, status=1)

    guest = split(cluster, source, target, budget=48 * MIB, reserve=0, limit=20 * MIB)
    check_no_room(look)
    guest.check()


main(test)
