# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's memory is moved while it changes, cold pages by RDMA WRITE: every page in exactly one place."""

import random

from moverkit import LOCAL, PAGE, REMOTE, ZERO, Failure, Lab, fill, random_partition
from rdma_lab import ADDRESS

SIZES = {"pc.ram": 10 << 20, "a.rom": 300 << 10}
ROUNDS = 3


def change(lab, rng, pages):
    for page in pages:
        what = rng.random()
        if what < 0.25:
            lab.source.write(page, ZERO)
        elif what < 0.4:
            lab.source.punch(page)
        else:
            lab.source.write(page, rng.randbytes(PAGE))


def move(n_subhosts, seed):
    rng = random.Random(seed)
    lab = Lab(SIZES, n_subhosts, subhost_options=("--plaintext", "--listen", "rdma:%s:0" % ADDRESS))
    try:
        fill(lab.source, rng, "mixed")
        lab.begin(random_partition(lab.source, rng, n_subhosts))
        pages = list(lab.source.pages())
        lab.mover.hand_over(lab.source, pages, 1)
        for number in range(2, 2 + ROUNDS):
            lab.mover.drain()
            changed = sorted(rng.sample(pages, len(pages) // 5))
            change(lab, rng, changed)
            lab.mover.hand_over(lab.source, changed, number)
        page_map = lab.finish()
        lab.mover.drain()
        counts = lab.check(page_map)
        print("%d sub-hosts: %d pages on the main host, %d remote" % (n_subhosts, counts[LOCAL], counts[REMOTE]),
              flush=True)
        if not counts[LOCAL] or not counts[REMOTE]:
            raise Failure("both places must be used")
        stats = [subhost.call("stats") for subhost in lab.subhosts]
        if any(each["writes"] for each in stats) or not any(each["stored"] for each in stats):
            raise Failure("pages came by NBD: %s" % stats)
    finally:
        code = lab.close()
    if code:
        raise Failure("the mover exited with %d" % code)


move(1, 1)
move(2, 2)
print("ok")
