#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's copy of the hand-off protocol says the same as common/handoff.h."""

import glob
import os
import re
import sys

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
# The pager's own: QEMU has no use for them.
NOT_IN_QEMU = {"MOVER_CONFIG"}


def from_patches(path):
    """The text of a file that the series adds."""
    lines, inside = [], False
    for patch in sorted(glob.glob(os.path.join(TOP, "qemu-patches",
                                               "0*.patch"))):
        with open(patch) as f:
            for line in f:
                if line.startswith("diff --git "):
                    inside = line.rstrip().endswith(" b/" + path)
                elif inside and line.startswith("+") and \
                        not line.startswith("+++"):
                    lines.append(line[1:])
    return "".join(lines)


def definitions(text, prefix):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    values = {}
    for name, value in re.findall(
            prefix + r"_(\w+)\s*=\s*(\d+)", text) + re.findall(
            r"#define\s+" + prefix + r"_(\w+)\s+([^\n]+)", text):
        values[name] = re.sub(r"\s+|(?<=\d)u", "", value)
    structs = {}
    for name, body in re.findall(
            r"struct (?:handoff_|RAMPager)(\w+) \{(.*?)\n\}", text, re.S):
        fields = re.findall(r"([\w ]+) (\w+)(\[\w*\])?;", body)
        structs[name.lower()] = [
            (re.sub(r"struct handoff_|RAMPager", "", kind).strip().lower(),
             field, array.replace(prefix + "_", ""))
            for kind, field, array in fields]
    return values, structs


def main():
    with open(os.path.join(TOP, "common", "handoff.h")) as f:
        ours = definitions(f.read(), "HANDOFF")
    theirs = definitions(
        from_patches("include/system/ram-pager-proto.h"), "RAM_PAGER")
    for name in NOT_IN_QEMU | {"H"}:
        ours[0].pop(name, None)
    failed = 0
    if len(ours[0]) < 28 or len(ours[1]) < 10:
        print(f"handoff.h was not understood: {ours}")
        failed = 1
    for what, mine, qemu in zip(("value", "structure"), ours, theirs):
        for name in sorted(set(mine) | set(qemu)):
            if mine.get(name) != qemu.get(name):
                print(f"{what} {name}: handoff.h {mine.get(name)}, "
                      f"QEMU {qemu.get(name)}")
                failed = 1
    if not failed:
        print(f"{len(ours[0])} values and {len(ours[1])} structures agree")
    sys.exit(failed)


main()
