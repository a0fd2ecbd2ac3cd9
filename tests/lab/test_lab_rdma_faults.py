#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 600
"""Over real verbs (soft RoCE): a sub-host dies in mid-READ; one of a replica dies; wrong ticket, RLIMIT_MEMLOCK, quota."""

import lab

lab.run("rdma-peer-dies", "rdma-replica", "rdma-refusals")
