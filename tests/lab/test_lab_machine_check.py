#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 600
"""Under real KVM: pages of a lost sub-host are machine checks (tests/machine-check.py, in the lab)."""

import lab

lab.run("machine-check", limit=360)
