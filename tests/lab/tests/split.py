# SPDX-License-Identifier: GPL-2.0-or-later
"""A KVM guest is split live and checks all its memory twice while it is paged in and out."""

from cluster import Failure, main, wait_until
from kvm_split import BUDGET, SLACK, need_kvm, split, sweep


def test(cluster):
    pager, guest = split(cluster)
    most = max(sweep(guest) for _ in range(2))
    if most > BUDGET + SLACK:
        raise Failure("%d KiB were resident, the budget is %d" % (most // 1024, BUDGET // 1024))
    before = guest.reports()
    wait_until("the guest goes on", 30, lambda: guest.drain() or guest.reports() > before + 1)
    guest.check_clean()
    need_kvm(guest)
    numbers = pager.guest(cluster.uuid)
    print(numbers)
    if not numbers["page_ins"] or not numbers["page_outs"] or numbers["lost_pages"]:
        raise Failure("no paging, or pages lost: %s" % numbers)


main(test)
