#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# run.sh TARGET - run one fuzz target for FUZZ_SECONDS (60); what it finds stays in BUILD-fuzz/TARGET.found
set -u
build=${BUILD:-build}-fuzz
target=$1
corpus=$build/$target.corpus
found=$build/$target.found
[ -x "$build/$target" ] || { echo "SKIP: $target is not built (make fuzzers)"; exit 77; }
mkdir -p "$corpus" "$found"
here=$(dirname "$0")
seeds=()
dict=()
case $target in
fuzz_handoff) /usr/bin/python3 "$here/make_seeds.py" "$corpus" ;;
fuzz_nbd_server) seeds=("$here/seeds_nbd") dict=(-dict="$here/nbd.dict") ;;
fuzz_rdma) seeds=("$here/seeds_rdma") ;;
fuzz_control) seeds=("$here/seeds_control") dict=(-dict="$here/control.dict") ;;
esac
# What it finds must not count as a skip, whose status libFuzzer would end with.
exec "$build/$target" -error_exitcode=1 -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=2048 -max_len=65536 \
    -artifact_prefix="$found/" -print_final_stats=1 -verbosity=1 "${dict[@]}" "$corpus" "${seeds[@]}"
