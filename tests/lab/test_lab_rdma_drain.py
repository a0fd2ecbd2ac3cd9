#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Over real verbs (soft RoCE): memory that moves from one RDMA sub-host to another while the guest runs."""

import lab

lab.run("rdma-drain")
