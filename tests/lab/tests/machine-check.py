# SPDX-License-Identifier: GPL-2.0-or-later
"""A sub-host dies for good under a KVM guest: machine checks for exactly what it held, and the guest lives.

A page that the guest's kernel itself needs would be its end, as with any memory that breaks.  So what stays
on the sub-hosts is memory where only programs' pages may lie: that of movablecore, without the kernel's image,
which nokaslr keeps at the bottom, without the top, from which the kernel has taken memory before there were
zones, without both ends of what programs were given, and without
the test program's own code and variables: a page of its handler for memory errors, say, would be a memory error
in the handler, and so on for ever.
"""

import re

from cluster import Failure, MIB, main, wait_until
from kvm_split import need_kvm, split

RAM, MOVABLE = 272 * MIB, 80 * MIB
LOW, HIGH = RAM - MOVABLE + 8 * MIB, RAM - 50 * MIB  # what stays on the sub-hosts
PAGE, CHUNK = 4096, 2 * MIB
REMOTE, LOST = 2, 4
ERRORS = 12  # each takes a world switch or two, and the guest's kernel says a lot about it
# A processor that recovers from memory errors.  As in pager-dies.py it waits for pages in the fault itself: a
# page that KVM has waited for on the side is reported when the vCPU is somewhere else, in its kernel, too.
GUEST = dict(smp=1, ram=RAM, kernel="/lab/guest/vmlinuz-full", append="nokaslr movablecore=%dM" % (MOVABLE // MIB),
             extra=("-cpu", "qemu64,+succor,+overflow-recov,kvm-asyncpf=off", "-overcommit", "cpu-pm=on"))


def pages_of(cluster, pager, subhost, state):
    """How many pages are in a state, and belong to a sub-host."""
    page_map = pager.map(cluster.uuid)
    return sum(page_map.pages[page] == state and page_map.subhost[page * PAGE // CHUNK] == subhost
               for page in range(RAM // PAGE))


def fetch(guest, low, high):
    """Have QEMU read guest memory, and with it page it in."""
    for start in range(low, high, 4 * MIB):
        guest.qmp("pmemsave", val=start, size=min(4 * MIB, high - start), filename="/dev/null")


def errors(guest):
    """The pages that the guest's program has had a memory error for, and those of its own records."""
    text = guest.log_text()
    return (re.findall(r"MEMORY-ERROR page=(\d+)", text), re.findall(r"MEMORY-ERROR records of pages (\d+)", text))


def places(guest):
    """Where the test program's own pages are; asked for again if the console has garbled the answer."""
    for _ in range(5):
        start = len(guest.log_text())
        pages = guest.command("places", "places")
        found = [(int(at, 16), int(at, 16) + int(size, 16)) for at, size in re.findall(
            r"memguest: place (0x[0-9a-f]+)\+(0x[0-9a-f]+)$", guest.log_text()[start:], re.M)]
        if sum(end - at for at, end in found) == pages * PAGE and all(end <= RAM for _, end in found):
            return found
    raise Failure("the guest does not say where its program is: %s" % guest.log_text()[-1500:])


def test(cluster):
    pager, guest = split(cluster, pages={"subhost-timeout": 5, "subhost-lost": "poison"}, **GUEST)
    pager.call("set-budget", uuid=cluster.uuid, budget=RAM)
    fetch(guest, 0, 0xa0000)
    fetch(guest, 0x100000, LOW)
    fetch(guest, HIGH, RAM)
    needed, before = places(guest), pager.map(cluster.uuid)
    print("of the program's own pages %d were not here" % sum(
        before.pages[page] == REMOTE for start, end in needed for page in range(start // PAGE, end // PAGE)))
    for start, end in needed:
        fetch(guest, start, end)
    print("on the sub-hosts: %s pages" % [pages_of(cluster, pager, i, REMOTE) for i in (0, 1)], flush=True)
    cluster.subhosts[1].kill()
    guest.say("sweep")  # comes to the lost pages sooner than the guest's own accesses
    guest.wait("%d memory errors in the guest" % ERRORS, 120, lambda: len(errors(guest)[0]) >= ERRORS)
    guest.qmp("stop")
    pages, records = errors(guest)
    poisoned, unhurt = pages_of(cluster, pager, 1, LOST), pages_of(cluster, pager, 0, LOST)
    print("memory errors: %d pages, and %d pages of records; poisoned: %d of the lost sub-host, %d of the other" % (
        len(pages), len(records), poisoned, unhurt), flush=True)
    # The guest's program may not have come to say what its kernel has told it of the last one.
    if len(set(pages)) != len(pages) or not 0 <= poisoned - len(pages) - len(records) <= 1 or unhurt:
        raise Failure("not the pages of the lost sub-host: %s" % pages)
    guest.qmp("cont")
    before = guest.reports()
    wait_until("the guest goes on", 60, lambda: guest.reports() > before + 1)
    need_kvm(guest)
    if re.search(r"memguest: ERROR| errors=[1-9]|Kernel panic", guest.log_text()):
        raise Failure("wrong pages: %s" % guest.log_text()[-1500:])
    if pager.guest(cluster.uuid)["lost_pages"] < poisoned:
        raise Failure("the operator is not told of %d lost pages" % poisoned)


main(test)
