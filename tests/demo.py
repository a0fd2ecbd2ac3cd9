# SPDX-License-Identifier: GPL-2.0-or-later
"""make demo: a live 2 GiB guest is split over a main host and two sub-hosts, and checks itself.

Prints what happens, a table of figures, and `demo: OK`; the same figures go to BUILD/demo.json.
"""

import json
import os
import re
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cluster import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 2048 * MIB, 1280 * MIB, 512 * MIB
SUBHOSTS = (1024 * MIB, 2048 * MIB)


def say(text):
    print(text, flush=True)


def run(cluster):
    say("1. two sub-hosts lend %s MiB; a source host and a main host run uffd-pager"
        % " and ".join(str(memory // MIB) for memory in SUBHOSTS))
    for memory in SUBHOSTS:
        cluster.subhost(memory)
    source_pager, main_pager = cluster.pager("source"), cluster.pager("main")

    say("2. a guest of %d MiB boots on the source host and fills %d MiB" % (RAM // MIB, FILL // MIB))
    source = cluster.guest("src", source_pager, RAM, append="memguest.size=%d memguest.rate=4000" % FILL)
    source.wait_log("memguest: ready", 300)
    before = source.reports()
    wait_until("the guest's reports", 30, lambda: source.reports() > before + 1)

    say("3. it is moved, live: at most %d MiB to the main host, the rest straight to the sub-hosts"
        % (BUDGET // MIB))
    destination = cluster.guest("dst", main_pager, RAM, incoming=True)
    policy = cluster.policy(BUDGET)
    arguments = ["migrate", "--live", "--verbose", "--json", "--policy", policy,
                 source.uri(), destination.uri()]
    say("   split-migrate migrate --live --verbose --policy policy.ini SOURCE DESTINATION")
    command = subprocess.run([program("split-migrate")] + arguments, stdout=subprocess.PIPE, text=True,
                             timeout=600)
    if command.returncode:
        raise Failure("split-migrate ended with %d: %s" % (command.returncode, command.stdout))
    moved = json.loads(command.stdout)
    source.quit()

    say("4. the guest runs on the main host and touches all of its memory, twice")
    for _ in range(2):
        pages = destination.expect_sweep(600)
        say("   %d pages checked, no error" % pages)
    before = destination.reports()
    wait_until("the guest's reports", 60, lambda: destination.reports() > before + 2)
    destination.check_clean()
    paged = main_pager.guest(cluster.uuid)
    destination.say("quit")
    match = destination.wait_log(r"memguest: bye verified=(\d+) writes=(\d+) errors=(\d+)", 60)
    stall = max(float(n) for n in re.findall(r"stall_max_ms=([\d.]+)", destination.log_text()))
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


def demo(cluster):
    start = time.monotonic()
    moved, paged, guest = run(cluster)
    figures = {key: moved[key] for key in ("total_time_ms", "downtime_ms", "rounds", "main_bytes",
                                           "subhost_bytes", "skipped_pages")}
    figures.update(page_ins=paged["page_ins"], page_outs=paged["page_outs"] + paged["clean_drops"],
                   fault_us={"p50": paged["fault_us"]["p50"], "p99": paged["fault_us"]["p99"]},
                   resident_bytes_max=paged["resident_max"], budget_bytes=BUDGET, guest=guest)
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
    say("(driver: qmp; %.0f s in all; figures in %s)" % (
        time.monotonic() - start, os.path.relpath(os.path.join(BUILD, "demo.json"))))


try:
    with Cluster() as cluster_:
        demo(cluster_)
except (Failure, subprocess.TimeoutExpired) as failure:
    print("demo: FAILED: %s" % failure)
    sys.exit(1)
print("demo: OK")
