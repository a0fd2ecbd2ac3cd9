# SPDX-License-Identifier: GPL-2.0-or-later
"""What RDMA refuses is refused in one sentence: a wrong ticket, too little lockable memory, no room for a slab."""

import ctypes
import resource
import subprocess
import tempfile

import subhost
from rdma_lab import ADDRESS, MIB, NAME, SLAB, RdmaSubhost, eventually, play, with_region

CAP_IPC_LOCK, PR_CAPBSET_DROP = 14, 24


def without_lock(limit):
    """In a child: a process that may lock so many bytes."""
    def prepare():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) == 0
    return prepare


def test_wrong_ticket():
    """The region is another guest's by now, with another ticket: no connection, and no key."""
    with RdmaSubhost() as one, with_region(one, ticket="right") as control, \
            play([one.place(ticket="right")], local=70, remote=10, start=False) as guest:
        control.call("region-delete", name=NAME, ticket="right")
        with with_region(one, ticket="other") as other:
            guest.start()
            one.wait_log("an RDMA connection is refused: no such region, or not with this ticket", 60)
            region = other.region(NAME)
            assert region["connections"] == 0 and region["stored"] == 0, region


def test_locked_memory():
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [subhost.SERVER, "--memory", "64M", "--plaintext", "--listen", "rdma:%s:0" % ADDRESS,
             "--listen", "unix:%s/data" % folder, "--control", "unix:%s/control" % folder],
            preexec_fn=without_lock(8 * MIB), stderr=subprocess.PIPE, text=True, timeout=60)
    errors = [line for line in result.stderr.splitlines() if ": error: " in line]
    print(errors, flush=True)
    assert result.returncode == 1 and len(errors) == 1, result
    assert "may lock only 8 MiB (RLIMIT_MEMLOCK)" in errors[0], errors


def test_no_room_for_a_slab():
    """A region that may hold three slabs: what would need a fourth stays on the main host."""
    with RdmaSubhost() as one, with_region(one, limit=3 * SLAB) as control, \
            play([one.place()], local=100, remote=0, budget="12M") as guest:
        assert guest("budget", 8 * MIB, 4 * MIB, 6 * MIB)["err"] == 0
        guest("mode", "scan")
        stats = guest.play(4)
        eventually(lambda: guest("stats")["engine"]["write_refusals"], "a refusal", 120)
        assert control.region(NAME)["stored"] <= 3 * SLAB
        assert guest.check()["errors"] == 0, stats


test_locked_memory()
test_no_room_for_a_slab()
test_wrong_ticket()
print("ok")
