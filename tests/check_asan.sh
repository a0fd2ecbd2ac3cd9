#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 900
# The unit and the integration tests again (but for those marked NOT-UNDER), under ASan and UBSan.
set -u
build=${BUILD:-build}
export ASAN_OPTIONS=abort_on_error=0:detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
mapfile -t integration < <(grep -L '^# NOT-UNDER:.*asan' tests/integration/test_*.py)
BUILD=$build-asan exec tests/run --jobs 2 "$build"-asan/tests/unit/test_*[!.]? "${integration[@]}"
