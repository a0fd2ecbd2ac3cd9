# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab's RDMA tests share: sub-hosts that are reached over soft RoCE, and a guest played on them."""

import subhost
from checks import eventually  # noqa: F401
from engineplay import NAME, EnginePlay

ADDRESS = "10.77.0.1"  # of the network card without wires that init made
BY_RDMA = ("--plaintext", "--listen", "rdma:%s:0" % ADDRESS)  # options of a sub-host
MIB = 1 << 20
SLAB = 2 * MIB  # as small as it may be, since the guests are
SIZE = 14 * MIB  # of the guests played here


def with_region(subhost, ticket=None, limit=SIZE):
    """Make the guest's region on a sub-host; return the control connection that keeps it."""
    control = subhost.control()
    options = {"ticket": ticket} if ticket else {}
    control.call("region-create", name=NAME, size=SIZE, reserve=0, limit=limit, slab=SLAB, **options)
    return control


class RdmaSubhost(subhost.Subhost):
    """A sub-host that serves its pages by RDMA as well; .rdma is where."""

    def __init__(self, *options, port=0, address=ADDRESS, **others):
        super().__init__("--listen", "rdma:%s:%d" % (address, port), "--plaintext",
                         *options, **others)
        with self.control() as control:
            self.rdma = control.call("query-status")["data"][-1]

    def place(self, ticket=None, tcp=False):
        """As engineplay's --subhost wants it; tcp: that will do too."""
        return "%s,%s,%s%s" % (self.unix, NAME + ("." + ticket if ticket else ""), self.rdma,
                               "+tcp" if tcp else "")


def play(places, **options):
    values = dict(size=["9M", "3M"], budget="5M", low="3M", high="4M", local=15, remote=60,
                  threads=2, granule="64K", prefetch=8, subhost=places)
    values.update(options)
    EnginePlay.patience = 200  # all is emulated, and the machine may be busy
    return EnginePlay([], **values)
