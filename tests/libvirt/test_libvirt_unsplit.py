#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""A guest that is enabled and not split: libvirt's own commands do with it what they do without us.

The same commands on a domain as an operator has it and on one that is enabled; what they leave is compared.
"""

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, FILL = 160 * MIB, 48 * MIB


def goes_on(guest):
    before = guest.reports()
    try:
        wait_until("the guest goes on", 60, lambda: guest.reports() >= before + 2, 0.1)
    except Failure as failure:
        raise Failure("%s: it is '%s', its console ends: %s" % (
            failure, guest.state(), guest.log_text()[-500:])) from None
    guest.check_clean()


def size(bed, path):
    return os.path.getsize(bed.source.path(path))


def save(bed, guest):
    path = "/run/guest/%s.save" % guest.name
    bed.source.virsh("save", guest.name, path)
    state, found = guest.state(), size(bed, path)
    bed.source.virsh("restore", path)
    os.unlink(bed.source.path(path))
    return {"state after save": state, "size of a saved guest": found}


def managedsave(bed, guest):
    bed.source.virsh("managedsave", guest.name)
    state = guest.state()
    found = size(bed, "/var/lib/libvirt/qemu/save/%s.save" % guest.name)
    bed.source.virsh("start", guest.name)
    return {"state after managedsave": state, "size of a managed save": found}


def snapshot(bed, guest):
    """With the memory in a file of its own; then back to it."""
    path = "/run/guest/%s.mem" % guest.name
    bed.source.virsh("snapshot-create-as", guest.name, "s1", "--memspec", "file=%s,snapshot=external" % path)
    found, state = size(bed, path), guest.state()
    goes_on(guest)
    bed.source.virsh("snapshot-revert", guest.name, "s1")
    goes_on(guest)
    bed.source.virsh("snapshot-delete", guest.name, "s1", "--metadata")
    os.unlink(bed.source.path(path))
    return {"state after a snapshot": state, "size of a snapshot's memory": found}


def migrate(bed, guest):
    bed.source.virsh("migrate", "--live", "--persistent", guest.name, bed.main.uri)
    total = re.search(r"Memory total: +([\d.]+ \w+)", bed.main.virsh("domjobinfo", "--completed", guest.name)).group(1)
    state = guest.state()
    guest.at(bed.main)
    goes_on(guest)
    bed.main.virsh("migrate", "--live", "--undefinesource", guest.name, bed.source.uri)
    guest.at(bed.source)
    return {"state after migrate": state, "memory of a migration": total}


def commands(bed, guest):
    bed.source.virsh("start", guest.name)
    guest.wait_log("memguest: ready", 120)
    found = {}
    for step in (save, managedsave, snapshot, migrate):
        start = time.monotonic()
        found.update(step(bed, guest))
        goes_on(guest)
        print("%s: %s: %.1f s" % (guest.name, step.__name__, time.monotonic() - start), flush=True)
    guest.expect_sweep(60)
    guest.check_clean()
    bed.source.virsh("destroy", guest.name)
    return found


def test(bed):
    append = "memguest.size=%d memguest.rate=2000 memguest.hot=20" % FILL
    without = commands(bed, bed.define("without", RAM, append))
    guest = bed.define("with", RAM, append)
    status, out, err = bed.run("enable", "with")
    if status:
        raise Failure("enable: %s%s" % (out, err))
    found = commands(bed, guest)
    for key, value in without.items():
        print("%-30s %12s without us, %12s with" % (key, value, found[key]))
        if isinstance(value, str):
            same = found[key] == value
        else:  # how much a guest has written by then differs a little
            same = value > FILL and abs(found[key] - value) < value / 8
        if not same:
            raise Failure("%s: %s without us, %s with" % (key, value, found[key]))
    wait_until("the pagers know nothing of it", 20, lambda: not bed.main.guests() + bed.source.guests(), 0.1)


main(test)
