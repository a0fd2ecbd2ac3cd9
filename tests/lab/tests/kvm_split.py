# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests in the lab share: a small KVM guest, split over this host and two sub-hosts."""

import re

from cluster import Failure, MIB, memfd_blocks, wait_until

# Small, because each page fault takes a world switch that is emulated. The guest's kernel adds some
# 60 MiB to what is filled.
RAM, FILL, BUDGET = 144 * MIB, 40 * MIB, 28 * MIB
SLACK = 2 * MIB


def need_kvm(guest):
    answer = guest.qmp("query-kvm")
    if answer != {"enabled": True, "present": True}:
        raise Failure("%s does not run under KVM: %s" % (guest.name, answer))


def split(cluster, smp=2, extra=(), subhosts=((), ()), ram=RAM, fill=FILL, kernel=True, append="", **sections):
    """Start a guest, split it live; returns the main host's pager and the guest there.

    subhosts: options of each; append: more for the guest's kernel; sections: of the policy.
    """
    for options in subhosts:
        cluster.subhost(96 * MIB, options=options)
    source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
    source = cluster.guest("src", source_pager, ram, accel="kvm", smp=smp, extra=extra, kernel=kernel,
                           append="memguest.size=%d memguest.rate=100 memguest.hot=20 %s" % (fill, append))
    source.wait_log("memguest: ready", 120)
    destination = cluster.guest("dst", main_pager, ram, accel="kvm", smp=smp, extra=extra, kernel=kernel,
                                incoming=True)
    need_kvm(source)
    need_kvm(destination)
    result = cluster.migrate(source, destination, cluster.policy(BUDGET, **sections))
    print("moved: %s" % result, flush=True)
    if result["main_bytes"] > BUDGET or min(result["subhost_bytes"]) <= 0:
        raise Failure("the guest is not split as the policy says: %s" % result)
    return main_pager, destination


def sweep(guest, seconds=120, during=None, fill=FILL):
    """Have the guest check all its memory; raises if a page is wrong. Returns the most bytes resident.

    during(): called again and again while the guest is at it.
    """
    fd, start, most = guest.memfd(), len(guest.log_text()), 0

    def look():
        nonlocal most
        guest.drain()
        most = max(most, memfd_blocks(fd))
        match = re.search(r"sweep done pages=(\d+) errors=(\d+) ms=(\d+)", guest.log_text()[start:])
        if not match and guest.daemon.process.poll() is not None:
            raise Failure("QEMU ended during the guest's sweep")
        if not match and during:
            during()
        return match

    guest.say("sweep")
    try:
        pages, errors, took = map(int, wait_until("the guest's sweep", seconds, look).groups())
    except (Failure, KeyboardInterrupt) as failure:
        raise Failure("%s; its console ends:\n%s" % (failure, guest.log_text()[-3000:])) from None
    print("sweep: %d pages in %d ms, at most %d KiB resident" % (pages, took, most // 1024), flush=True)
    if errors or pages * 4096 != fill:
        raise Failure("a sweep of %d pages found %d wrong\n%s" % (pages, errors, guest.log_text()[-1500:]))
    guest.check_clean()
    return most
