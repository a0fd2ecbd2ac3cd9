#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 1200
# The unit and the quicker integration tests again, under TSan.
set -u
build=${BUILD:-build}
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
BUILD=$build-tsan exec tests/run --jobs 2 "$build"-tsan/tests/unit/test_*[!.]? tests/integration/test_*.py
