# SPDX-License-Identifier: GPL-2.0-or-later
"""The part kvm of bench/fault.py: what a vCPU under KVM waits for a page, in the lab (tests/lab/tests/kvm-fault.py).

A vCPU waits in one of two ways (tests/tools/vcpu.h): as QEMU's do, while a worker of the kernel takes the fault, and,
in the rows that end in -sync, in its own thread.  The floor waits in the same way.
"""

from labkit import NoLab, run


def part(row):
    try:
        _, (us,) = run("kvm-fault")
    except NoLab as why:
        print("kvm: not measured (%s)" % why)
        return
    print("in the lab: floor: exchange %.0f us (p99 %.0f); after a pause, as between faults, %.0f us (p99 %.0f)" % (
        us["floor exchange p50"], us["floor exchange p99"], us["gap exchange p50"], us["gap exchange p99"]))
    for way, suffix in (("async", ""), ("sync", "-sync")):
        print("  %s: UFFDIO_COPY %.0f us (p99 %.0f), UFFDIO_ZEROPAGE %.0f us (p99 %.0f)" % (
            way, *(us["floor %s %s %s" % (way, what, mark)] for what in ("remote", "untouched") for mark in ("p50", "p99"))))
        base = us["floor exchange p50"] + us["floor %s remote p50" % way]
        row("kvm-remote-fault-p50" + suffix, us["ours %s remote p50" % way], base, "us", 1.15)
        row("kvm-remote-fault-p99" + suffix, us["ours %s remote p99" % way], base, "us", 2.0)
        row("kvm-untouched-page-p50" + suffix, us["ours %s untouched p50" % way],
            us["floor %s untouched p50" % way], "us", 1.1)
