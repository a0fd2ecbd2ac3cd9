# SPDX-License-Identifier: GPL-2.0-or-later
"""make_seeds.py FOLDER - well-formed hand-offs for fuzz_handoff to start from"""

import os
import struct
import sys

MAGIC, VERSION = 0x484D5053, 1


def frame(kind, body, cookie=0):
    return struct.pack("<IHHII", MAGIC, VERSION, kind, len(body), cookie) + body


def message(data, fds):
    return struct.pack("<HB", len(data), fds) + data


def block(index, idstr, size, offset):
    return struct.pack("<IIQQQQ", index, 0, 0x7f0000000000 + offset, size, 4096, offset) + \
        idstr.encode().ljust(256, b"\0")


def handoff(n):
    hello = struct.pack("<16sIIQ", bytes(range(16)), n, 0, 4242)
    data = message(frame(1, hello), 1)
    for i in range(n):
        data += message(frame(2, block(i, "ram-node%d" % i, 4 << 20, i * (4 << 20))), 1)
    return data + message(frame(3, b"", 7), 0)


folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
for count in (0, 1, 2, 5):
    with open(os.path.join(folder, "handoff-%d" % count), "wb") as file:
        file.write(handoff(count))
