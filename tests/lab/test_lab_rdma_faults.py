#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Over real verbs (soft RoCE): a sub-host dies in mid-READ; wrong ticket, RLIMIT_MEMLOCK, quota."""

import lab

lab.run("rdma-peer-dies", "rdma-refusals")
