# SPDX-License-Identifier: GPL-2.0-or-later
"""A network that can be cut."""

import os
import shutil

from checks import Skip, command


class Network:
    """A network namespace with the sub-hosts in it, and a link to it that can be taken down."""

    def __init__(self):
        # Of our own, names and addresses: another test may have such a network at the same time.
        self.name = "sml%d" % os.getpid()
        self.device = self.name + "a"  # 15 characters at most
        third, fourth = divmod(os.getpid() % (128 * 64), 64)
        self.inside, self.outside = ("10.213.%d.%d" % (128 + third, 4 * fourth + i) for i in (2, 1))

    def __enter__(self):
        if not shutil.which("ip") or os.geteuid() != 0:
            raise Skip("network namespaces need root and iproute2")
        command("ip", "netns", "add", self.name)
        command("ip", "link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        command("ip", "addr", "add", self.outside + "/30", "dev", self.device)
        command("ip", "-n", self.name, "addr", "add", self.inside + "/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            command("ip", "-n", self.name, "link", "set", device, "up")
        self.link("up")
        return self

    def link(self, state):
        command("ip", "link", "set", self.device, state)

    def __exit__(self, *_):
        command("ip", "netns", "del", self.name)
        command("ip", "link", "del", self.device, ok=None)
