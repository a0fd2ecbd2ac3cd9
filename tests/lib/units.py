# SPDX-License-Identifier: GPL-2.0-or-later
"""Start a daemon as its systemd unit says, without systemd: its user, groups, capabilities, limits, environment.

What only systemd can do (namespaces, system call filter) is tried by tests/package.
"""

import os
import re
import resource
import shlex
import shutil
import socket
import subprocess

from cluster import ROOT, Failure, program, skip, wait_until

# Users and groups by number, so that the machine's own are left alone.
IDS = {"uffd-pager": 64210, "subhost-server": 64211, "libvirt-qemu": 64212, "kvm": 64200, "split-migrate": 64201}


def unit_path(name):
    return os.path.join(ROOT, "packaging", name + ".service")


def parse(name):
    """{key: [values]} of the [Service] section; lines that end in a backslash go on."""
    with open(unit_path(name)) as file:
        text = re.sub(r"\\\n\s*", "", file.read())
    section = text.split("[Service]")[1].split("\n[")[0]
    keys = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", section, re.M):
        keys.setdefault(key, []).append(value)
    return keys


def as_user(user, groups=(), capabilities=()):
    """The words of setpriv for one that has these capabilities and can get no others."""
    if os.geteuid() != 0:
        skip("must be root to become another user")
    if not shutil.which("setpriv"):
        skip("setpriv is not there")
    caps = ",".join(["-all"] + ["+" + c.lower().replace("cap_", "") for c in capabilities])
    words = ["setpriv", "--reuid", str(IDS[user]), "--regid", str(IDS[user]), "--no-new-privs",
             "--inh-caps=" + caps, "--ambient-caps=" + caps, "--bounding-set=" + caps]
    return words + (["--groups", ",".join(str(IDS[g]) for g in groups)] if groups else ["--clear-groups"])


class Service:
    """The daemon of unit NAME, with paths below /run moved to FOLDER; options are what /etc/default would add."""

    def __init__(self, cluster, name, folder, options=""):
        self.cluster, self.name, self.folder = cluster, name, folder
        self.unit = parse(name)
        user = self.unit["User"][0]
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, int(self.unit["RuntimeDirectoryMode"][0], 8))
        os.chown(folder, IDS[user], IDS[user])
        command = self.unit["ExecStart"][0].replace("@SBINDIR@/" + name, program(name))
        command = re.sub(r"/run/[a-z-]+", folder, command)
        command = re.sub(r"(--\w+-group[= ])([\w-]+)", lambda m: m.group(1) + str(IDS[m.group(2)]), command)
        self.argv = as_user(user, self.unit.get("SupplementaryGroups", [""])[0].split(),
                            (self.unit.get("AmbientCapabilities", [""])[-1]).split())
        self.argv += shlex.split(re.sub(r"\$\w+", options, command))
        self.log = os.path.join(cluster.dir, os.path.basename(folder) + ".log")
        self.process = None

    def start(self, seconds=20):
        """As Type=notify: it has started when it says so."""
        assert self.unit["Type"] == ["notify"]
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = self.folder + ".notify"
        if os.path.exists(path):
            os.unlink(path)
        notify.bind(path)
        os.chmod(path, 0o666)
        notify.settimeout(seconds)
        limits = {"NOFILE": resource.RLIMIT_NOFILE, "CORE": resource.RLIMIT_CORE}

        def prepare():
            os.umask(int(self.unit["UMask"][0], 8))
            for key, number in limits.items():
                hard = resource.getrlimit(number)[1]  # as systemd does: what is nearest, if more is forbidden
                value = int(self.unit["Limit" + key][0])
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(number, (value, value))
        with open(self.log, "ab") as log:
            stat = os.fstat(log.fileno())
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=prepare, cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin", "NOTIFY_SOCKET": path,
                     "JOURNAL_STREAM": "%d:%d" % (stat.st_dev, stat.st_ino)})
        self.cluster.processes.append(self.process)
        try:
            state = notify.recv(100).decode()
        except TimeoutError:
            raise Failure("%s does not say that it is ready: %s" % (self.name, self.text())) from None
        finally:
            notify.close()
            os.unlink(path)
        if "READY=1" not in state:
            raise Failure("%s says '%s'" % (self.name, state))

    def stop(self, seconds=10):
        """As KillMode=process or control-group: SIGTERM, and success within the time."""
        self.process.terminate()
        if self.process.wait(seconds):
            raise Failure("%s ended with %d: %s" % (self.name, self.process.returncode, self.text()))

    def text(self):
        with open(self.log, errors="replace") as file:
            return file.read()

    def credentials(self, pid=None):
        """The lines of /proc/PID/status that say what a process may do."""
        with open("/proc/%d/status" % (pid or self.process.pid)) as file:
            return dict(re.findall(r"^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):\s*(.*?)\s*$",
                                   file.read(), re.M))

    def wait_socket(self, path):
        wait_until("the socket " + path, 20, lambda: os.path.exists(path))
