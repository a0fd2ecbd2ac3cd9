# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab: a virtual machine, emulated in software, whose kernel has a working /dev/kvm.

Its processor is an emulated AMD one with SVM, so that KVM inside it is the real thing on any
machine, only slow.  build.sh makes what it boots from, init runs the tests inside, and lab.run()
starts it, follows its serial console and reports.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from cluster import BUILD, CACHE, patched_qemu, program, skip  # noqa: E402

MEMORY_MIB = 3072
BOOT_SECONDS = 90  # from power-on to the first test: 15 s on an idle machine


def build(qemu):
    """Return kernel and initramfs."""
    result = subprocess.run([os.path.join(HERE, "build.sh"), CACHE, BUILD, qemu], text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if result.returncode == 77:
        skip("the lab cannot be made: " + (result.stderr.strip().splitlines() or ["?"])[-1])
    if result.returncode:
        sys.exit("FAIL: build.sh ended with %d:\n%s" % (result.returncode, result.stderr))
    files = dict(re.findall(r"^(\w+)=(.*)$", result.stdout, re.M))
    return files["KERNEL"], files["INITRD"]


def start(qemu, tests, limit, cpus):
    kernel, initrd = build(qemu)
    return subprocess.Popen([
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm", "-smp", str(cpus), "-m", str(MEMORY_MIB),
        "-kernel", kernel, "-initrd", initrd, "-serial", "stdio",
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check nowatchdog "
                   "lab.tests=%s lab.limit=%d" % (",".join(tests), limit)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def verdict(console, tests):
    """What is wrong, as a list of sentences."""
    results = dict(re.findall(r"^lab: (\S+): (OK|FAIL.*)$", console, re.M))
    wrong = ["%s: %s" % item for item in results.items() if item[1] != "OK"]
    wrong += ["%s: did not end" % name for name in tests if name not in results]
    if not re.search(r"^lab: DONE$", console, re.M):
        wrong.append("the lab did not come to its end")
    return wrong


def run(*tests, limit=240, cpus=3):
    """Run tests of tests/lab/tests in a lab VM; the process's exit status says how it went."""
    qemu = patched_qemu()
    for name in ("split-migrate", "uffd-pager", "subhost-server"):
        program(name)
    began = time.monotonic()
    process = start(qemu, tests, limit, cpus)
    # The tests inside have limits of their own; this one is for a lab that hangs as a whole.
    alarm = threading.Timer(BOOT_SECONDS + len(tests) * (limit + 30), process.kill)
    alarm.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAIL: told to stop"))
    console = ""
    try:
        for line in process.stdout:
            line = line.decode(errors="replace").replace("\r", "")
            # What TCG lacks of that processor has nothing to do with us.
            if "TCG doesn't support requested feature" not in line:
                console += line
                print("%6.1f  %s" % (time.monotonic() - began, line), end="", flush=True)
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
    wrong = verdict(console, tests)
    if wrong:
        sys.exit("FAIL: in the lab: %s" % "; ".join(wrong))
    print("ok: %s after %.0f s" % (", ".join(tests), time.monotonic() - began))
