# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""QEMU's own migration of a split guest, as virsh save, snapshot and migrate use it: whole, never less.

To a file with the guest running on (a snapshot) and stopped (a save), to another QEMU; what cannot
work is refused with one sentence, the second split among it, and the guest runs on, split.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402
import leaks  # noqa: E402

RAM, FILL, BUDGET = 256 * MIB, 160 * MIB, 64 * MIB


def migrate(guest, uri):
    guest.qmp("migrate", uri=uri)

    def over():
        state = guest.qmp("query-migrate")
        if state["status"] in ("failed", "cancelled"):
            raise Failure("migration to %s: %s" % (uri, state.get("error-desc")))
        return state["status"] == "completed"
    wait_until("the migration to %s" % uri, 120, over, 0.1)


def arrive(guest, uri):
    guest.qmp("migrate-incoming", uri=uri)


def still_split(cluster, pager, guest):
    before = guest.reports()
    try:
        wait_until("the guest goes on", 30, lambda: guest.reports() >= before + 2)
    except Failure as failure:
        raise Failure("%s: it is %s, %s; its console ends: %s" % (
            failure, guest.status(), pager.guest(cluster.uuid), guest.log_text()[-500:])) from None
    guest.check_clean()
    info = pager.guest(cluster.uuid)
    if info["state"] != "split" or guest.status() != "running":
        raise Failure("it is %s: %s" % (guest.status(), info))
    wait_until("it is within its budget", 30, lambda: memfd_blocks(guest.memfd()) <= BUDGET + 2 * MIB)


def refusals(cluster, pagers, guest):
    """A second split wants our map, a background snapshot a userfaultfd of its own."""
    other = cluster.guest("other", pagers[0], RAM, incoming=True)
    status, out, err = cluster.run("migrate", "--live", "--policy", cluster.policy(BUDGET), guest.uri(),
                                   other.uri())
    print("a second split: %s" % err.strip(), flush=True)
    if status != 1 or err.count("\n") != 1 or "split already" not in err:
        raise Failure("a second split: %d %s%s" % (status, out, err))
    still_split(cluster, pagers[1], guest)
    other.quit()
    try:
        guest.qmp("migrate-set-capabilities", capabilities=[
            {"capability": "background-snapshot", "state": True}])
    except Failure as failure:
        print("a background snapshot: %s" % failure, flush=True)
    else:
        raise Failure("a background snapshot of a split guest is not refused")
    still_split(cluster, pagers[1], guest)


def test(cluster):
    cluster.subhost(256 * MIB)
    cluster.subhost(256 * MIB)
    pagers = cluster.pager("source"), cluster.pager("main")
    third = cluster.pager("third")
    before = leaks.look(cluster, pagers + (third,))
    source = cluster.guest("src", pagers[0], RAM,
                           append="memguest.size=%d memguest.rate=2000 memguest.hot=30" % FILL)
    source.wait_log("memguest: ready", 120)
    guest = cluster.guest("dst", pagers[1], RAM, incoming=True)
    cluster.migrate(source, guest, cluster.policy(BUDGET))
    source.quit()
    guest.expect_sweep(120)
    guest.hang_up()
    refusals(cluster, pagers, guest)

    # A snapshot: everything is fetched once, and the guest runs on within its budget.
    snapshot = os.path.join(cluster.dir, "snapshot")
    migrate(guest, "file:" + snapshot)
    if os.path.getsize(snapshot) < FILL:
        raise Failure("the snapshot has %d bytes, the guest fills %d" % (os.path.getsize(snapshot), FILL))
    guest.qmp("cont")
    still_split(cluster, pagers[1], guest)
    guest.expect_sweep(120)
    guest.hang_up()
    still_split(cluster, pagers[1], guest)

    # To another QEMU, alive, on a host with room for all of it.
    moved = cluster.guest("moved", third, RAM, incoming=True)
    address = "unix:" + os.path.join(cluster.dir, "stream")
    arrive(moved, address)
    migrate(guest, address)
    guest.quit()
    moved.expect_sweep(120)
    moved.check_clean()
    wait_until("it is attached", 20, lambda: third.guest(cluster.uuid)["state"] == "attached")
    if memfd_blocks(moved.memfd()) < FILL:
        raise Failure("not whole: %s" % third.guest(cluster.uuid))
    for subhost in cluster.subhosts:
        wait_until("%s is empty" % subhost.name, 20, lambda s=subhost: not s.call("region-list"))
    moved.quit()

    # The snapshot is the guest as it was, all of it.
    restored = cluster.guest("restored", third, RAM, incoming=True)
    arrive(restored, "file:" + snapshot)
    wait_until("the snapshot is loaded", 60, lambda: restored.status() in ("paused", "running", "postmigrate"))
    if restored.status() != "running":
        restored.qmp("cont")
    restored.expect_sweep(120)
    restored.check_clean()
    restored.quit()
    leaks.expect_same(cluster, pagers + (third,), before)


main(test)
