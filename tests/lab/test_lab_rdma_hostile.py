#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 420
"""Over real verbs (soft RoCE): garbage instead of hellos; keys end with the ticket and with the last page of a slab."""

import lab

lab.run("rdma-hostile", "rdma-revoke")
