# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a replica or a backup, on sub-hosts that have accidents."""

import os
import shutil
import signal
import tempfile

from checks import eventually
from engineplay import EnginePlay, with_region
from subhost import MIB, PAGE, Subhost

SIZE = 64 * MIB
LOST_MS = 3600 if os.environ.get("BUILD", "").endswith("san") else 1500  # what is only slow is not lost


class Guest:
    """Under load, with everything in two places; .hosts are its sub-hosts."""

    def __init__(self, redundancy, hosts, limit=None, networks=None, ready=True, **options):
        self.redundancy = redundancy
        self.n_hosts = hosts
        self.limit = limit or {}
        self.networks = networks or {}
        self.ready = ready
        self.longest_ms = 0
        self.hosts, self.regions = [], []
        self.folder = tempfile.mkdtemp(prefix="redundancy-", dir=os.environ.get("TMPDIR", "/var/tmp"))
        self.options = dict(size=["47M", "15M"], budget="24M", low="16M", high="20M", local=15, remote=60, threads=4,
                            granule="256K", lost_ms=LOST_MS, redundancy=redundancy)
        if redundancy == "backup":
            self.options["backup"] = os.path.join(self.folder, "guest.backup")
        self.options.update(options)

    def __enter__(self):
        addresses = []
        for i in range(self.n_hosts):
            network = self.networks.get(i)
            if network:
                address = "tcp:%s:10809" % network.inside
                host = Subhost("--listen", address, "--plaintext", memory="512M",
                               prefix=("ip", "netns", "exec", network.name))
            else:
                host = Subhost(memory="512M")
                address = host.unix
            self.hosts.append(host)
            self.regions.append(with_region(host, SIZE, limit=self.limit.get(i)))
            addresses.append(self.address_of(i, address))
        self.play = EnginePlay(addresses, **self.options)
        self.play("mode", "random")
        before = self.play("stats")["engine"]
        if self.ready:
            eventually(lambda: self.at_risk() == 0, "what has arrived is in two places", 60)
        self.play("go")
        eventually(lambda: all(self.play("stats")["engine"][k] > before[k] for k in ("page_ins", "page_outs")),
                   "pages come and go", 30)
        self.checks = self.play("stats")["checks"]
        return self

    def __exit__(self, *_):
        self.play.__exit__()
        for region in self.regions:
            region.close()
        for host in self.hosts:
            if host.alive():
                host.process.send_signal(signal.SIGCONT)
                host.stop()
        shutil.rmtree(self.folder)

    def address_of(self, index, address):  # pylint: disable=unused-argument
        """Where the pager is to find sub-host @index, which listens at @address."""
        return address

    def accident(self, index, how):
        """Return what brings the sub-host back."""
        self.longest_ms = 0
        self.checks = self.play("stats")["checks"]
        host = self.hosts[index]
        if how == "stop":
            host.process.send_signal(signal.SIGSTOP)
            return lambda: host.process.send_signal(signal.SIGCONT)
        if how == "cut":
            self.networks[index].link("down")
            return lambda: self.networks[index].link("up")
        host.kill()
        return host.launch

    def stats(self):
        stats = self.play("stats")
        self.longest_ms = max(self.longest_ms, stats["longest_us"] / 1000)
        return stats

    def has_run(self, n):
        """Has the guest checked @n pages since the accident?"""
        return self.stats()["checks"] > self.checks + n

    def run_for(self, seconds):
        eventually(lambda: self.has_run(0), "the guest runs", 20)
        self.play.play(seconds)

    def at_risk(self):
        """Bytes that are on one sub-host and nowhere else."""
        return sum(s["at_risk"] for s in self.stats()["engine"]["subhosts"]) * PAGE
