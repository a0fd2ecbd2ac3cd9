#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A remote fault by RDMA beside its floor and beside TCP, in the lab (tests/lab/tests/rdma-bench.py).

peer is the same by our TCP. Rows go to BUILD/bench-rdma.json.
"""

import json
import os
import re
import subprocess
import sys

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BUILD = os.environ.get("BUILD", "build")


def main():
    lab = subprocess.run([sys.executable, "-c", "import lab; lab.run('rdma-bench', limit=240)"],
                         cwd=os.path.join(TOP, "tests", "lab"), stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, text=True, env=dict(os.environ, BUILD=BUILD))
    rows = [json.loads(text) for text in re.findall(r"bench: (\{.*\})$", lab.stdout, re.M)]
    if lab.returncode or not rows:
        print(lab.stdout)
        sys.exit(lab.returncode or "the lab printed no results")
    print("\n".join(re.findall(r"^ *[\d.]+  (.*; sleeps of .*|  READs without a pager.*)$", lab.stdout, re.M)))
    for row in rows:
        print("%(name)-42s ours %(ours)10s   TCP %(peer)10s   floor %(floor)10s   %(unit)s   ratio %(ratio)s "
              "target %(target)s" % row)
    path = os.path.join(TOP, BUILD, "bench-rdma.json")
    with open(path, "w") as file:
        json.dump(rows, file, indent=1)
    sys.exit(0 if all(row["met"] is not False for row in rows) else "a target is not met")


main()
