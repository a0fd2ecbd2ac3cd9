#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""All of ours over TLS, told by a controller on a third host; strangers get nothing.

Pagers and sub-hosts have certificates of one authority and no plaintext listener off the host.
libvirt's own connections stay as they are in the other tests.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402
from pki import Pki  # noqa: E402

RAM, FILL, BUDGET = 192 * MIB, 64 * MIB, 32 * MIB


def arguments(bed, identity):
    return ["-c", bed.source.uri, "--tls-certificates", identity, "migrate", "--live", "--profile", "0", "--policy",
            bed.policy(BUDGET), "--pager", bed.source.pager_uri, "--dest-pager", bed.main.pager_uri,
            "g1", bed.main.uri]


def test_refused(bed, guest, controller):
    """A certificate of an unknown authority, an expired one, none at all, and plaintext."""
    strangers = [bed.pki.stranger(server=False), bed.pki.identity(server=False, expired="client"),
                 bed.pki.identity(server=False, client=False)]
    calls = [arguments(bed, stranger) for stranger in strangers]
    calls.append([word.replace("tls:", "tcp:") for word in arguments(bed, strangers[0])])
    for call in calls:
        status, out, err = bed.run(*call, on=controller)
        print("%d: %s" % (status, err.strip()))
        if status != 1 or err.count("\n") != 1:
            raise Failure("not refused with one sentence: %d %s%s" % (status, out, err))
    if guest.state() != "running" or bed.main.guests() or any(host.regions() for host in bed.subhosts):
        raise Failure("a refused controller changed something")
    if bed.source.pager_call("query-guest", uuid=guest.uuid)["state"] != "attached":
        raise Failure("a refused controller changed the source")


def test_moved(bed, guest, controller):
    admin = bed.pki.identity(server=False)
    status, out, err = bed.run(*arguments(bed, admin), on=controller)
    if status:
        raise Failure("migrate: %d %s%s" % (status, out, err))
    print(out)
    guest.at(bed.main)
    guest.expect_sweep(60)
    guest.check_clean()
    state = bed.main.pager_call("query-guest", uuid=guest.uuid)
    for subhost in state["subhosts"]:
        if not subhost["data"].startswith("tls:") or not subhost["connected"] or not subhost["pages"]:
            raise Failure("not paged over TLS: %s" % subhost)
    if not state["page_ins"] or state["lost_pages"]:
        raise Failure("no paging, or pages were lost: %s" % state)
    status, out, err = bed.run("-c", bed.main.uri, "--tls-certificates", admin, "dommemstat", "--pager",
                               bed.main.pager_uri, "g1", on=controller)
    if status or "remote.sub1" not in out or "remote.sub2" not in out:
        raise Failure("dommemstat by TLS: %d %s%s" % (status, out, err))
    bed.main.virsh("destroy", "g1")
    wait_until("the pager's end of it", 20, lambda: not bed.main.guests())


def test(bed):
    guest = bed.enabled("g1", RAM, "memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
    test_refused(bed, guest, bed.subhosts[1])
    test_moved(bed, guest, bed.subhosts[1])


with Pki() as authority:
    main(test, pki=authority)
