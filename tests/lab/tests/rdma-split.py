# SPDX-License-Identifier: GPL-2.0-or-later
"""A KVM guest is split live by the whole command, its memory lent by RDMA, and checks all of it under paging."""

from cluster import Failure, MIB, main
from kvm_split import BUDGET, SLACK, need_kvm, split, sweep
from rdma_lab import BY_RDMA


# Soft RoCE is slow under emulation.
FILL = 16 * MIB


def test(cluster):
    # A slab is taken whole, and neighbouring chunks may go to different sub-hosts.
    pager, guest = split(cluster, subhosts=(BY_RDMA, BY_RDMA), fill=FILL, pages={"slab": "2MiB"})
    before = [subhost.call("stats") for subhost in cluster.subhosts]
    if any(each["writes"] for each in before) or not all(each["stored"] for each in before):
        raise Failure("cold memory did not come by RDMA: %s" % before)
    most = sweep(guest, 150, fill=FILL)
    if most > BUDGET + SLACK:
        raise Failure("%d KiB were resident, the budget is %d" % (most // 1024, BUDGET // 1024))
    need_kvm(guest)
    numbers = pager.guest(cluster.uuid)
    print(numbers)
    if not numbers["page_ins"] or not numbers["page_outs"] or numbers["lost_pages"]:
        raise Failure("no paging, or pages lost: %s" % numbers)
    after = [subhost.call("stats") for subhost in cluster.subhosts]
    if any(each["reads"] or each["writes"] for each in after):
        raise Failure("a sub-host served pages over NBD: %s" % after)


main(test)
