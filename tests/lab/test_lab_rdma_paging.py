#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Over real verbs (soft RoCE): page-in by READ, page-out by WRITE; beside a sub-host by TCP."""

import lab

lab.run("rdma-paging", "rdma-mixed")
