#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 780
"""Over real verbs (soft RoCE) and TCP, on a wire with 50 ms and 1 % loss either way: page-in and page-out without an error."""

import lab

lab.run("rdma-slow", limit=600)
