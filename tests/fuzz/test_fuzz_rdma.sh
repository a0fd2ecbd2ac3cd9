#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 900
exec bash "$(dirname "$0")/run.sh" fuzz_rdma
