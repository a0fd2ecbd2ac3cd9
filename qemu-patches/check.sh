#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Check the series: every patch applies and passes QEMU's own checkpatch.
# With --build, every patch builds, too.  We sign nothing off in the name of
# others, hence --no-signoff.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$here/build.sh" --source "$work" > /dev/null
cd "$work"
status=0
for patch in "$here"/0*.patch; do
    echo "== ${patch##*/}"
    scripts/checkpatch.pl --no-signoff "$patch" || status=1
done

# What is stored is what git would write, so that a refresh shows no noise.
mkdir refreshed
git format-patch -q --zero-commit -N --no-signature --full-index -o refreshed base
for patch in refreshed/*.patch; do
    diff -u <(sed '/^Date: /d' "$here/${patch##*/}") \
        <(sed '/^Date: /d' "$patch") || {
        echo "${patch##*/} is not in the form the README's refresh gives"
        status=1
    }
done

if [[ ${1:-} == --build ]]; then
    "$here/build.sh" --each || status=1
fi
exit $status
