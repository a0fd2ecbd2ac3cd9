#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 1200
# The unit and the integration tests again (but for those marked NOT-UNDER), under TSan.
set -u
build=${BUILD:-build}
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
mapfile -t integration < <(grep -L '^# NOT-UNDER:.*tsan' tests/integration/test_*.py)
BUILD=$build-tsan exec tests/run --jobs 2 "$build"-tsan/tests/unit/test_*[!.]? "${integration[@]}"
