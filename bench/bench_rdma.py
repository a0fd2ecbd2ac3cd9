#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A remote fault by RDMA beside its floor and beside TCP, in the lab (tests/lab/tests/rdma-bench.py).

peer is the same by our TCP. Rows go to BUILD/bench-rdma.json.  BENCH_CPUS: processors of the lab; with 1 none is ever
idle while another works, and what wakes is woken on the spot.
"""

import json
import os
import re
import sys

from labkit import BUILD, TOP, NoLab, run


def main():
    try:
        console, rows = run("rdma-bench", cpus=int(os.environ.get("BENCH_CPUS", "3")))
    except NoLab as why:
        print(why)
        sys.exit(77)
    print("\n".join(re.findall(r"^ *[\d.]+  (.*; sleeps of .*|  READs without a pager.*)$", console, re.M)))
    for row in rows:
        print("%(name)-42s ours %(ours)10s   TCP %(peer)10s   floor %(floor)10s   %(unit)s   ratio %(ratio)s "
              "target %(target)s" % row)
    path = os.path.join(TOP, BUILD, "bench-rdma.json")
    with open(path, "w") as file:
        json.dump(rows, file, indent=1)
    sys.exit(0 if all(row["met"] is not False for row in rows) else "a target is not met")


main()
