#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""The patched QEMU without a ram-pager object migrates as it always did."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))

from fakepager import Bench, check, main  # noqa: E402


def migrate(capabilities=(), memory="memory-backend-memfd,share=on",
            **parameters):
    bench = Bench()
    try:
        source = bench.qemu("source", memory=memory)
        dest = bench.qemu("dest", incoming=True, memory=memory)
        a, b = source.ram_fd(), dest.ram_fd()
        bench.fill(a, 50, 60)
        bench.wait_running(a)
        for q in (source, dest):
            if capabilities:
                q.set_capabilities(capabilities)
            if parameters:
                q.command("migrate-set-parameters", **parameters)
        source.command("migrate-set-parameters", downtime_limit=2000)
        source.migrate(bench.listen(dest))
        info = source.wait_migration("completed")
        dest.wait_migration("completed")
        check(info["ram"]["normal"] * 4096 > 8 << 20,
              f"RAM went through the stream: {info['ram']}")
        different = bench.differences(a, b)
        check(not different, f"pages differ: {different[:20]}")
        dest.command("cont")
        bench.wait_running(b)
        os.close(a)
        os.close(b)
    finally:
        bench.close()


def precopy():
    migrate()


def multifd():
    migrate(["multifd"], multifd_channels=2)


main([precopy, multifd], needs_userfaultfd=False)
