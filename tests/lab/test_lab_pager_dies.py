#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Under real KVM: the pager's worker is killed under a split guest (tests/pager-dies.py, in the lab)."""

import lab

lab.run("pager-dies")
