#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""IPv6, and a migration network of its own: control over one, all of a guest's memory over the other.

Both libvirts, both pagers and the sub-hosts are named by IPv6 addresses; what each network has
carried is what the kernel counted.
"""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, FILL, BUDGET = 192 * MIB, 64 * MIB, 32 * MIB
CONTROL, MEMORY = "eth0", "eth1"


def carried(host, device):
    """Bytes a device has received, and sent."""
    line = re.search(r"^ *%s:(.*)$" % device, host.expect("cat", "/proc/net/dev"), re.M)
    numbers = line.group(1).split()
    return int(numbers[0]), int(numbers[8])


def expect(bed, *argv, seconds=120):
    status, out, err = bed.run(*argv, seconds=seconds)
    if status:
        raise Failure("%s ended with %d: %s%s" % (" ".join(argv), status, out, err))
    return out


def migrate(bed, guest, *more):
    """Returns what the source has sent over the two networks meanwhile."""
    before = [carried(bed.source, device)[1] for device in (CONTROL, MEMORY)]
    print(expect(bed, "-c", bed.source.uri, "migrate", "--live", "--profile", "0", "--policy", bed.policy(BUDGET),
                 *more, "g1", bed.main.uri))
    sent = [carried(bed.source, device)[1] - count for device, count in zip((CONTROL, MEMORY), before)]
    print("the source has sent %.1f MiB over the control network, %.1f MiB over that for memory"
          % (sent[0] / MIB, sent[1] / MIB))
    return sent


def test_named(bed):
    """What cannot be reached is named as it was written."""
    policy = bed.policy(BUDGET)
    with open(policy, "r+") as file:
        text = file.read().replace(bed.subhosts[0].address, "[fd00:213::99]")
        file.seek(0)
        file.write(text)
    for more in (["--dest-pager", "tcp:[fd00:213::2]:1"], []):
        status, _, err = bed.run("plan", "--policy", policy, *more, "g1", bed.main.uri)
        print(err.strip())
        if status != 1 or ("[fd00:213::2]:1" if more else "[fd00:213::99]:10810") not in err or err.count("\n") != 1:
            raise Failure("plan for what cannot be reached: %d %s" % (status, err))


def test(bed):
    guest = bed.define("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    expect(bed, "-c", bed.source.uri, "enable", "g1")
    bed.source.virsh("start", "g1")
    guest.wait_log("memguest: ready", 60)
    print(expect(bed, "-c", bed.source.uri, "check", "--policy", bed.policy(BUDGET), "g1", bed.main.uri))

    test_named(bed)
    control, memory = migrate(bed, guest, "--migrateuri", "tcp://" + bed.main.data,
                              "--dest-data", "tcp:%s:0" % bed.main.data)
    if memory < FILL or control > 4 * MIB:
        raise Failure("memory went over the wrong network")
    guest.at(bed.main)
    guest.expect_sweep(60)
    guest.check_clean()
    status = bed.main.pager_call("query-guest", uuid=guest.uuid)
    for subhost in status["subhosts"]:
        if not subhost["data"].startswith("tcp:[fd00:214::"):
            raise Failure("it pages over %s" % subhost["data"])
    count = carried(bed.main, CONTROL)[0]
    print("the main host has paged in %d pages; over the control network came %.1f MiB in all"
          % (status["page_ins"], count / MIB))
    if not status["page_ins"] or count > 4 * MIB:
        raise Failure("paging went over the wrong network: %d" % count)
    print(expect(bed, "-c", bed.main.uri, "status", "g1"))

    bed.main.virsh("destroy", "g1")
    wait_until("the pager's end of it", 20, lambda: not bed.main.guests())


main(test, networks=("fd00:213::%d", "fd00:214::%d"))
