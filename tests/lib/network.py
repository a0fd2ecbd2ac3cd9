# SPDX-License-Identifier: GPL-2.0-or-later
"""A network that can be cut."""

import os
import shutil

from checks import Skip, command


class Network:
    """A network namespace with the sub-hosts in it, and a link to it that can be taken down."""

    def __init__(self):
        self.name = "smlost%d" % os.getpid()
        self.inside, self.outside = "10.213.77.2", "10.213.77.1"

    def __enter__(self):
        if not shutil.which("ip") or os.geteuid() != 0:
            raise Skip("network namespaces need root and iproute2")
        command("ip", "netns", "add", self.name)
        command("ip", "link", "add", self.name[:12] + "a", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        command("ip", "addr", "add", self.outside + "/30", "dev", self.name[:12] + "a")
        command("ip", "-n", self.name, "addr", "add", self.inside + "/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            command("ip", "-n", self.name, "link", "set", device, "up")
        self.link("up")
        return self

    def link(self, state):
        command("ip", "link", "set", self.name[:12] + "a", state)

    def __exit__(self, *_):
        command("ip", "netns", "del", self.name)
        command("ip", "link", "del", self.name[:12] + "a", ok=None)
