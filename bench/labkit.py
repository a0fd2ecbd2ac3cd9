# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmarks in the lab share: a script of tests/lab/tests is run there, which prints lines `bench: {...}`."""

import json
import os
import re
import subprocess
import sys

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BUILD = os.environ.get("BUILD", "build")


class NoLab(Exception):
    """Says why there is no lab here."""


def run(name, limit=500, cpus=3):
    """The lab's console, and what the script printed as a list; ends this process if the lab ends badly.

    @limit: seconds, on a machine that is busy with other things; only what hangs takes so long.
    @cpus: emulated processors, each of which takes one of this machine's when it works.
    """
    lab = subprocess.run([sys.executable, "-c", "import lab; lab.run('%s', limit=%d, cpus=%d)" % (name, limit, cpus)],
                         cwd=os.path.join(TOP, "tests", "lab"), stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, text=True, env=dict(os.environ, BUILD=BUILD))
    if lab.returncode == 77:
        raise NoLab(lab.stdout.strip())
    results = [json.loads(text) for text in re.findall(r"bench: (\{.*\})$", lab.stdout, re.M)]
    if lab.returncode or not results:
        print(lab.stdout)
        sys.exit(lab.returncode or "the lab printed no results")
    return lab.stdout, results
