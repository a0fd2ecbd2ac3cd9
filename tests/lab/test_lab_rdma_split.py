#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Under real KVM, over real verbs (soft RoCE): a live guest is split by the whole command and runs on under paging."""

import lab

lab.run("rdma-split")
