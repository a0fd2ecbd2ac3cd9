# SPDX-License-Identifier: GPL-2.0-or-later
"""make demo: a live 2 GiB guest is split over a main host and two sub-hosts, and checks itself.

Through two libvirtd in namespaces of their own where that is possible, else by QEMU's QMP sockets.
Prints what happens, a table of figures, and `demo: OK`; the same figures go to BUILD/demo.json.
"""

import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "lib"), os.path.join(HERE, "libvirt")]
from cluster import *  # noqa: F401,F403,E402
from testbed import Missing, Testbed  # noqa: E402

RAM, FILL, BUDGET = 2048 * MIB, 1280 * MIB, 512 * MIB
SUBHOSTS = (1024 * MIB, 2048 * MIB)
APPEND = "memguest.size=%d memguest.rate=4000" % FILL


def say(text):
    print(text, flush=True)


def finish(process):
    """What split-migrate found; its progress has gone to stderr meanwhile."""
    out, _ = process.communicate(timeout=600)
    if process.returncode:
        raise Failure("split-migrate ended with %d: %s" % (process.returncode, out))
    return json.loads(out)


class Libvirt:
    """A source host and a main host with libvirtd, each in namespaces of its own."""

    name = "libvirt"
    hosts = "a source host and a main host run libvirtd and uffd-pager"

    def __init__(self, bed):
        self.bed = bed

    def boot(self):
        self.guest = self.bed.define("guest", RAM, APPEND)
        status, _, err = self.bed.run("enable", "guest")
        if status:
            raise Failure("split-migrate enable: " + err)
        self.bed.source.virsh("start", "guest")
        return self.guest

    def move(self):
        say("   split-migrate migrate --live --verbose --policy policy.ini guest %s" % self.bed.main.uri)
        moved = finish(self.bed.source.popen(
            [program("split-migrate"), "migrate", "--live", "--verbose", "--json", "--policy",
             self.bed.policy(BUDGET), "guest", self.bed.main.uri], stdout=subprocess.PIPE))
        return moved, self.guest.at(self.bed.main)

    def paged(self):
        return self.bed.main.pager_call("query-guest", uuid=self.guest.uuid)


class Qmp:
    """A source host and a main host as processes."""

    name = "qmp"
    hosts = "a source host and a main host run uffd-pager"

    def __init__(self, cluster):
        self.cluster = cluster
        for memory in SUBHOSTS:
            cluster.subhost(memory)
        self.source_pager, self.main_pager = cluster.pager("source"), cluster.pager("main")

    def boot(self):
        self.source = self.cluster.guest("src", self.source_pager, RAM, append=APPEND)
        return self.source

    def move(self):
        destination = self.cluster.guest("dst", self.main_pager, RAM, incoming=True)
        say("   split-migrate migrate --live --verbose --policy policy.ini SOURCE DESTINATION")
        moved = finish(subprocess.Popen(
            [program("split-migrate"), "migrate", "--live", "--verbose", "--json", "--policy",
             self.cluster.policy(BUDGET), self.source.uri(), destination.uri()],
            stdout=subprocess.PIPE, text=True))
        self.source.quit()
        return moved, destination

    def paged(self):
        return self.main_pager.guest(self.cluster.uuid)


def run(driver):
    say("1. two sub-hosts lend %s MiB; %s"
        % (" and ".join(str(memory // MIB) for memory in SUBHOSTS), driver.hosts))
    say("2. a guest of %d MiB boots on the source host and fills %d MiB" % (RAM // MIB, FILL // MIB))
    guest = driver.boot()
    guest.wait_log("memguest: ready", 300)
    before = guest.reports()
    wait_until("the guest's reports", 30, lambda: guest.reports() > before + 1)

    say("3. it is moved, live: at most %d MiB to the main host, the rest straight to the sub-hosts"
        % (BUDGET // MIB))
    moved, guest = driver.move()

    say("4. the guest runs on the main host and touches all of its memory, twice")
    for _ in range(2):
        pages = guest.expect_sweep(600)
        say("   %d pages checked, no error" % pages)
    before = guest.reports()
    wait_until("the guest's reports", 60, lambda: guest.reports() > before + 2)
    guest.check_clean()
    paged = driver.paged()
    guest.say("quit")
    match = guest.wait_log(r"memguest: bye verified=(\d+) writes=(\d+) errors=(\d+)", 60)
    stall = max(float(n) for n in re.findall(r"stall_max_ms=([\d.]+)", guest.log_text()))
    return moved, paged, {"verified_pages": int(match.group(1)), "errors": int(match.group(3)),
                          "longest_stall_ms": stall}


def table(figures):
    def mib(count):
        return "%d MiB" % (count // MIB)
    guest = figures["guest"]
    rows = [("total time", "%d ms" % figures["total_time_ms"]),
            ("downtime", "%d ms" % figures["downtime_ms"]),
            ("rounds", figures["rounds"]),
            ("to the main host", mib(figures["main_bytes"]))]
    rows += [("to sub-host %d" % (i + 1), mib(count)) for i, count in enumerate(figures["subhost_bytes"])]
    rows += [("pages skipped (never written or zero)", figures["skipped_pages"]),
             ("page-ins", figures["page_ins"]), ("page-outs", figures["page_outs"]),
             ("fault p50 / p99", "%d / %d us" % (figures["fault_us"]["p50"], figures["fault_us"]["p99"])),
             ("resident at most / budget", "%s / %s" % (mib(figures["resident_bytes_max"]),
                                                        mib(figures["budget_bytes"]))),
             ("guest: pages verified", guest["verified_pages"]), ("guest: errors", guest["errors"]),
             ("guest: longest stall", "%d ms" % guest["longest_stall_ms"])]
    say("")
    for name, value in rows:
        say("  %-40s %16s" % (name, value))
    say("")


def demo(driver):
    start = time.monotonic()
    moved, paged, guest = run(driver)
    figures = {key: moved[key] for key in ("total_time_ms", "downtime_ms", "rounds", "main_bytes",
                                           "subhost_bytes", "skipped_pages")}
    figures.update(page_ins=paged["page_ins"], page_outs=paged["page_outs"] + paged["clean_drops"],
                   fault_us={"p50": paged["fault_us"]["p50"], "p99": paged["fault_us"]["p99"]},
                   resident_bytes_max=paged["resident_max"], budget_bytes=BUDGET, guest=guest, driver=driver.name)
    table(figures)
    with open(os.path.join(BUILD, "demo.json"), "w") as file:
        json.dump(figures, file, indent=2)
        file.write("\n")
    if guest["errors"] or paged["lost_pages"]:
        raise Failure("the guest's memory is not whole")
    if figures["resident_bytes_max"] > BUDGET + 2 * MIB:
        raise Failure("more was resident than the budget allows")
    if not paged["page_ins"] or not paged["page_outs"]:
        raise Failure("nothing was paged")
    say("(driver: %s; %.0f s in all; figures in %s)" % (
        driver.name, time.monotonic() - start, os.path.relpath(os.path.join(BUILD, "demo.json"))))


def main():
    with Testbed(subhost_memory=SUBHOSTS) as bed:
        try:
            bed.start()
        except (Missing, Failure, OSError, subprocess.SubprocessError) as why:
            say("Driver: qmp, QEMU's own sockets; libvirt cannot run here: %s" % str(why).split("\n", 1)[0])
        else:
            say("Driver: libvirt, two libvirtd in namespaces of their own")
            demo(Libvirt(bed))
            return
    with Cluster() as cluster:
        demo(Qmp(cluster))


try:
    main()
except (Failure, subprocess.TimeoutExpired) as failure:
    print("demo: FAILED: %s" % failure)
    sys.exit(1)
print("demo: OK")
