#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Over real verbs (soft RoCE): exactly one place after a move; the sub-host's process sleeps while pages are read."""

import lab

lab.run("rdma-mover", "rdma-idle")
