#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Under real KVM: a live guest is split and runs on under paging (tests/split.py, in the lab)."""

import lab

lab.run("split")
