# SPDX-License-Identifier: GPL-2.0-or-later
"""A cgroup with a memory limit, and a process in it that eats memory."""

import os
import signal
import subprocess
import sys

from checks import Skip, eventually

HOG = """
import mmap, sys
for line in sys.stdin:
    eaten = mmap.mmap(-1, int(line))
    for at in range(0, len(eaten), 4096):
        eaten[at] = 1
    print("full", flush=True)
"""


class MemoryGroup:
    """Version 2 where it has the memory controller, else version 1."""

    def __init__(self, limit):
        root, name = "/sys/fs/cgroup", "split-migrate-test-%d" % os.getpid()
        try:
            if os.path.exists(root + "/cgroup.controllers"):
                with open(root + "/cgroup.subtree_control", "w") as control:
                    control.write("+memory")
                self.path, key = "%s/%s" % (root, name), "memory.max"
            else:
                self.path, key = "%s/memory/%s" % (root, name), "memory.limit_in_bytes"
            os.mkdir(self.path)
            with open(os.path.join(self.path, key), "w") as file:
                file.write(str(limit))
        except OSError as error:
            raise Skip("no cgroup with a memory limit can be made here: %s" % error)
        self.hog = None

    @property
    def prefix(self):
        """Words before a command, so that it runs in here."""
        return ["sh", "-c", 'echo $$ > %s/cgroup.procs && exec "$@"' % self.path, "sh"]

    def eat(self, size):
        """Have a process take memory; returns when it has it."""
        self.release()
        self.hog = subprocess.Popen(self.prefix + [sys.executable, "-c", HOG], stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE)
        self.hog.stdin.write(b"%d\n" % size)
        self.hog.stdin.flush()
        assert self.hog.stdout.readline() == b"full\n", "the hog was killed: the cgroup is too small"

    def release(self):
        if self.hog:
            self.hog.send_signal(signal.SIGKILL)
            self.hog.wait()
            self.hog.stdin.close()
            self.hog.stdout.close()
        self.hog = None

    def gone(self):
        try:
            os.rmdir(self.path)
        except OSError:
            return False
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()
        eventually(self.gone, "the cgroup is empty", 20)
