#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Over real verbs (soft RoCE): exactly one place after the whole command, by RDMA and in a mixed pool."""

import lab

lab.run("rdma-one-place")
