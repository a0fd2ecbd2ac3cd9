#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 900
# clang-tidy, cppcheck, shellcheck, and the house rules a grep can see.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
complain() {
    printf 'lint: %s\n' "$*"
    status=1
}

mapfile -t sources < <(git ls-files 'common/*.c' 'predictor/*.c' 'split-migrate/*.c' 'uffd-pager/*.c' 'subhost-server/*.c')
mapfile -t all_c < <(git ls-files '*.c' '*.h' | grep -v '^qemu-patches/')
mapfile -t scripts < <(git ls-files | while read -r f; do
    [ -f "$f" ] && head -c 128 "$f" | grep -aqE '^#!.*(bash|/sh)|shellcheck shell=' && echo "$f"
done)

# shellcheck disable=SC2016 # for the inner shell
printf '%s\n' "${sources[@]}" |
    xargs -P "$(nproc)" -n 4 sh -c 'clang-tidy --quiet "$@" -- -std=gnu11 -D_GNU_SOURCE -I. $(pkg-config --cflags libxml-2.0) 2>/dev/null' sh |
    grep -E 'warning:|error:' && complain "clang-tidy found the above"
cppcheck --quiet --std=c11 --inline-suppr -j "$(nproc)" --error-exitcode=1 -D_GNU_SOURCE -I. \
    --enable=warning,portability --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches \
    "${sources[@]}" || complain "cppcheck found the above"
shellcheck -x "${scripts[@]}" || complain "shellcheck found the above"

for f in "${all_c[@]}"; do
    head -n 1 "$f" | grep -q 'SPDX-License-Identifier: GPL-2.0-or-later' || complain "$f: the first line must be the SPDX line"
done
grep -nP '\t' "${all_c[@]}" && complain "tabs in C files"
grep -nE '[[:space:]]+$' "${all_c[@]}" && complain "blanks at the end of lines"
grep -nE '\b(TODO|FIXME|XXX)\b' "${all_c[@]}" && complain "a TODO belongs in an issue"
grep -nE '\b(strcpy|strcat|sprintf|gets|strncpy)\(' "${all_c[@]}" | grep -v 'units.c' && complain "unbounded string functions"
for f in "${all_c[@]}"; do
    lines=$(wc -l <"$f")
    [ "$lines" -le 700 ] || complain "$f has $lines lines: would a reader find two nouns in it?"
done
[ $status = 0 ] && echo ok
exit $status
