# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts with a libvirtd each and two sub-hosts, as namespaces of this machine.

Each host has network, mount, PID, UTS and IPC namespaces of its own; a bridge in a namespace of its
own joins them.  Over /usr lies the libvirt that build.sh has unpacked, over /etc and /var a tmpfs:
nothing is written to the machine.  The first process of each PID namespace dies with the test,
and everything in the namespaces with it.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import cluster as lib  # noqa: E402
from checks import sentence  # noqa: E402
from cluster import (CACHE, MIB, Control, Failure, Guest, patched_qemu, program,  # noqa: E402
                     skip, wait_until)

HERE = os.path.dirname(os.path.abspath(__file__))
PAGER_SOCKET = "/run/split-migrate/uffd-pager.sock"
PLAIN_QEMU = "/run/qemu/bin/qemu-system-x86_64"  # stands for the distribution's
SPLIT_QEMU = "/usr/lib/split-migrate/bin/qemu-system-x86_64"
PAGER_PORT = 10811
SUBHOST_PORT = 10810

SETUP = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
for dir in etc var usr; do
    mkdir -p /run/.over/$dir/up /run/.over/$dir/work
    lower=/$dir
    [ -d "$LIBVIRT/$dir" ] && lower="$LIBVIRT/$dir:/$dir"
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=/run/.over/$dir/up,workdir=/run/.over/$dir/work" /$dir
done
grep -q ^libvirt-qemu: /etc/passwd || echo "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin" >>/etc/passwd
for group in libvirt-qemu:x:64055 kvm:x:64056 libvirt:x:64057; do
    grep -q "^${group%%:*}:" /etc/group || echo "$group:" >>/etc/group
done
hostname "$NAME"
ip link set lo up
echo ready
# Orphans, as libvirt's QEMUs are, shall vanish when they end.
exec /usr/bin/python3 -c "
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True: signal.pause()"
"""

LIBVIRTD_CONF = """listen_tls = 0
listen_tcp = 1
listen_addr = "%(address)s"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
host_uuid = "%(uuid)s"
keepalive_interval = -1
log_outputs = "2:file:/run/libvirtd-full.log"
"""

QEMU_CONF = """security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
max_core = 0
"""


class Missing(Exception):
    """Why two libvirtd cannot run on this machine."""


def libvirt_folder():
    if os.geteuid() != 0:
        raise Missing("must be root: the hosts are namespaces")
    for tool in ("ip", "nsenter", "unshare"):
        if not shutil.which(tool):
            raise Missing("%s is not there" % tool)
    result = subprocess.run([os.path.join(HERE, "build.sh"), CACHE], capture_output=True, text=True)
    if result.returncode == 77:
        raise Missing(result.stderr.strip())
    if result.returncode:
        raise Failure("build.sh: " + result.stderr)
    return result.stdout.strip()


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Host:
    """A namespace that is a host."""

    def __init__(self, bed, name, number):
        self.bed, self.name = bed, name
        self.addresses = [network % number for network in bed.networks]
        # As they stand in URIs.  Control goes over the first network, memory over the last.
        self.address, self.data = ["[%s]" % text if ":" in text else text for text in
                                   (self.addresses[0], self.addresses[-1])]
        self.log_dir = os.path.join(bed.dir, name)
        os.mkdir(self.log_dir)
        env = dict(os.environ, LIBVIRT=bed.libvirt, NAME=name)
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child",
             "--mount-proc", "sh", "-c", SETUP],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, preexec_fn=die_with_parent)
        bed.holders.append(self.holder)
        line = self.holder.stdout.readline()
        if line != "ready\n":
            raise Missing("a host cannot be made of namespaces here: %s" % (line + self.holder.stdout.read()))
        with open("/proc/%d/task/%d/children" % (self.holder.pid, self.holder.pid)) as file:
            self.pid = int(file.read().split()[0])
        bed.connect(self)
        self.write("/etc/hosts", "127.0.0.1 localhost\n" + "".join(
            "%s %s\n" % (bed.networks[0] % (i + 1), host) for i, host in enumerate(bed.NAMES)))

    def transport(self):
        """What a daemon here is told of TLS."""
        if not self.bed.pki:
            return ["--plaintext"]
        return ["--tls-certificates", self.bed.pki.identity(names=(self.name,), addresses=self.addresses)]

    def path(self, path):
        """A path of the host as this process reaches it."""
        return "/proc/%d/root%s" % (self.pid, path)

    def write(self, path, text):
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "w") as file:
            file.write(text)

    def enter(self, argv):
        return ["nsenter", "--target", str(self.pid), "--root", "--mount", "--net", "--pid", "--uts", "--ipc",
                "--"] + list(argv)

    def popen(self, argv, **more):
        process = subprocess.Popen(self.enter(argv), stdin=subprocess.DEVNULL, text=True, **more)
        self.bed.processes.append(process)
        return process

    def daemon(self, name, argv, env=None):
        self.log = os.path.join(self.log_dir, name + ".log")
        with open(self.log, "ab") as log:
            return self.popen(argv, stdout=log, stderr=log, env=dict(os.environ, **(env or {})))

    def run(self, *argv, seconds=60):
        """Run a command on the host: (status, stdout, stderr)."""
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err

    def expect(self, *argv, seconds=60):
        status, out, err = self.run(*argv, seconds=seconds)
        if status:
            raise Failure("on %s: %s ended with %d: %s%s" % (self.name, " ".join(argv), status, out, err))
        return out

    def virsh(self, *argv, seconds=60):
        return self.expect("virsh", "-q", "-c", "qemu:///system", *argv, seconds=seconds).strip()

    def control(self, path):
        return Control(self.path(path), timeout=60)

    def call(self, path, verb, **arguments):
        control = self.control(path)
        try:
            return control.call(verb, **arguments)
        finally:
            control.close()

    def pids(self, name):
        """Processes of this host (seen from here) whose program is called so."""
        namespace, found = os.readlink("/proc/%d/ns/pid" % self.pid), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink("/proc/%s/ns/pid" % pid) != namespace:
                    continue
                with open("/proc/%s/cmdline" % pid, "rb") as file:
                    program_name = file.read().split(b"\0")[0].decode()
            except OSError:
                continue
            if os.path.basename(program_name) == name:
                found.append(int(pid))
        return found


class LibvirtHost(Host):
    """A host that runs guests: libvirtd, both QEMUs, a pager."""

    def __init__(self, bed, name, number, emulator=True):
        super().__init__(bed, name, number)
        self.uri = "qemu+tcp://%s/system" % self.address
        self.pager_uri = "%s:%s:%d" % (bed.scheme, self.address, PAGER_PORT)
        self.write("/etc/libvirt/libvirtd.conf", LIBVIRTD_CONF % {
            "address": self.addresses[0],
            "uuid": "6f0a6d3c-93c1-4b7f-8f5e-0000000000%02x" % number})
        self.write("/etc/libvirt/qemu.conf", QEMU_CONF)
        prefix = os.path.dirname(os.path.dirname(patched_qemu()))
        os.symlink(prefix, self.path("/run/qemu"))
        if emulator:
            os.makedirs(self.path("/usr/lib"), exist_ok=True)
            os.symlink(prefix, self.path("/usr/lib/split-migrate"))
        for folder in ("/run/guest", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"):
            os.makedirs(self.path(folder), exist_ok=True)
        self.start_pager()
        self.start_libvirtd()

    def start_libvirtd(self):
        self.libvirtd = self.daemon("libvirtd", ["libvirtd", "--listen", "--timeout", "0"])
        wait_until("libvirtd on %s" % self.name, 60, self._libvirtd_ready, 0.1)

    def _libvirtd_ready(self):
        if self.libvirtd.poll() is not None:
            with open(os.path.join(self.log_dir, "libvirtd.log")) as log:
                raise Failure("libvirtd on %s ended at once: %s" % (self.name, log.read()))
        return self.run("virsh", "-q", "-c", self.uri, "list")[0] == 0

    def start_pager(self, env=None):
        self.pager = self.daemon("uffd-pager", [
            program("uffd-pager"), "--control", "unix:" + PAGER_SOCKET, "--control",
            self.pager_uri, "--data", "%s:%s:0" % (self.bed.scheme, self.data), "--pidfile",
            "/run/uffd-pager.pid"] + self.transport(), env)
        wait_until("uffd-pager on %s" % self.name, 20, lambda: self.pager.poll() is not None or
                   os.path.exists(self.path("/run/uffd-pager.pid")))
        if self.pager.poll() is not None:
            raise Failure("uffd-pager on %s ended at once" % self.name)

    def pager_call(self, verb, **arguments):
        return self.call(PAGER_SOCKET, verb, **arguments)

    def guests(self):
        """UUIDs the pager knows."""
        return [guest["uuid"] for guest in self.pager_call("query-guests")]


class SubhostHost(Host):
    """A host that lends memory."""

    def __init__(self, bed, name, number, memory):
        super().__init__(bed, name, number)
        self.memory = memory
        self.socket = "/run/split-migrate/subhost.sock"
        self.server = self.daemon("subhost-server", [
            program("subhost-server"), "--memory", str(memory), "--listen",
            "%s:%s:10809" % (bed.scheme, self.data), "--control", "unix:" + self.socket, "--control",
            "%s:%s:%d" % (bed.scheme, self.address, SUBHOST_PORT), "--pidfile",
            "/run/subhost.pid"] + self.transport())
        wait_until("subhost-server on %s" % name, 20,
                   lambda: os.path.exists(self.path("/run/subhost.pid")))

    def status(self):
        return self.call(self.socket, "query-status")

    def regions(self):
        return self.call(self.socket, "region-list")


class Domain(Guest):
    """A libvirt domain; what is known about a guest's console is inherited."""

    def __init__(self, bed, host, name, uuid, memory):  # pylint: disable=super-init-not-called
        self.bed, self.name, self.uuid, self.memory = bed, name, uuid, memory
        self.host, self.serial, self.daemon = None, None, self
        self.at(host)

    def at(self, host):
        """From now on look at the console on this host."""
        if self.serial:
            self.serial.close()
        self.host, self.serial = host, None
        self.serial_log = host.path("/run/guest/%s.log" % self.name)
        self.serial_path = host.path("/run/guest/%s.ser" % self.name)
        return self

    # What Guest asks of its process.
    @property
    def process(self):
        return self

    def poll(self):
        return None if self.state() in ("running", "paused", "in shutdown") else 1

    def tail(self):
        path = self.host.path("/var/log/libvirt/qemu/%s.log" % self.name)
        if not os.path.exists(path):
            return "(no log)"
        with open(path, errors="replace") as log:
            return "".join(log.readlines()[-6:])

    def state(self, host=None):
        status, out, _ = (host or self.host).run("virsh", "-q", "-c", "qemu:///system", "domstate", self.name)
        return out.strip() if status == 0 else ""

    def sweep(self, seconds=300):
        result = super().sweep(seconds)
        # A client that does not read holds the console up, for good if the guest then moves.
        self.serial.close()
        self.serial = None
        return result

    def log_text(self):
        self.drain()
        return super().log_text() if os.path.exists(self.serial_log) else ""


DOMAIN_XML = """<domain type='qemu'>
  <name>%(name)s</name>
  <uuid>%(uuid)s</uuid>
  <memory unit='MiB'>%(memory)d</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>%(kernel)s</kernel>
    <initrd>%(initrd)s</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check nowatchdog %(append)s</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>%(emulator)s</emulator>
    <controller type='usb' model='none'/>
    <serial type='unix'>
      <source mode='bind' path='/run/guest/%(name)s.ser'/>
      <log file='/run/guest/%(name)s.log' append='on'/>
    </serial>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""


class Testbed:
    NAMES = ("source", "main", "sub1", "sub2")

    def __init__(self, subhost_memory=(512 * MIB, 512 * MIB), networks=("10.213.0.%d",), pki=None):
        """@pki: whose certificates all daemons of ours use; None: plaintext."""
        self.subhost_memory, self.networks, self.pki = subhost_memory, networks, pki
        self.scheme = "tls" if pki else "tcp"
        self.dir = tempfile.mkdtemp(prefix="smv-", dir="/dev/shm")
        self.holders, self.processes, self.subhosts, self._files = [], [], [], None

    def start(self):
        """Raises Missing if this machine cannot have them."""
        self.libvirt = libvirt_folder()
        self._guest_files()
        self._switch()
        self.source = LibvirtHost(self, "source", 1)
        self.main = LibvirtHost(self, "main", 2)
        for i, memory in enumerate(self.subhost_memory):
            self.subhosts.append(SubhostHost(self, self.NAMES[2 + i], 3 + i, memory))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if value and not isinstance(value, (SystemExit, Missing)):
            self.show_logs()
        self.close()

    def _switch(self):
        self.switch = subprocess.Popen(
            ["unshare", "--net", "sh", "-c",
             " && ".join("ip link add br%d type bridge && ip link set br%d up" % (i, i)
                         for i in range(len(self.networks))) + " && echo ready && exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=die_with_parent)
        self.holders.append(self.switch)
        line = self.switch.stdout.readline()
        if line != "ready\n":
            raise Missing("there is no bridge to be had: %s" % line)

    def connect(self, host):
        def ip(where, *words):
            subprocess.run(["nsenter", "--target", str(where), "--net", "--", "ip"] + list(words), check=True)
        for i, address in enumerate(host.addresses):
            port, device = "p%d-%s" % (i, host.name), "eth%d" % i
            ip(self.switch.pid, "link", "add", port, "type", "veth", "peer", "name", device, "netns",
               str(host.pid))
            ip(self.switch.pid, "link", "set", port, "master", "br%d" % i, "up")
            # An IPv6 address can be used at once if nobody asks whether it is somebody else's.
            ip(host.pid, "addr", "add", *(
                (address + "/64", "dev", device, "nodad") if ":" in address else (address + "/24", "dev", device)))
            ip(host.pid, "link", "set", device, "up")

    def _guest_files(self):
        if not self._files:
            out = subprocess.run([os.path.join(lib.ROOT, "tests/guest/build.sh"),
                                  os.path.join(CACHE, "guest")], check=True, capture_output=True,
                                 text=True).stdout
            self._files = dict(re.findall(r"^(\w+)=(.*)$", out, re.M))
        return self._files

    def define(self, name, memory, append, emulator=PLAIN_QEMU):
        """Define a domain on the source as an operator has it: nothing of ours in it."""
        uuid = open("/proc/sys/kernel/random/uuid").read().strip()
        self.source.write("/run/guest/%s.xml" % name, DOMAIN_XML % {
            "name": name, "uuid": uuid, "memory": memory // MIB, "append": append,
            "kernel": self._guest_files()["KERNEL"], "initrd": self._guest_files()["INITRD"],
            "emulator": emulator})
        self.source.virsh("define", "/run/guest/%s.xml" % name)
        return Domain(self, self.source, name, uuid, memory)

    def enabled(self, name, memory, append):
        """Define a domain, enable it, start it on the source; its test program is ready."""
        guest = self.define(name, memory, append)
        status, out, err = self.run("enable", name)
        if status:
            raise Failure("enable: %s%s" % (out, err))
        self.source.virsh("start", name)
        guest.wait_log("memguest: ready", 60)
        return guest

    def policy(self, budget, memory=None):
        lines = ["[main]", "budget = %dKiB" % (budget // 1024)]
        for host in self.subhosts:
            lines += ["[subhost %s]" % host.name,
                      "uri = subhost+%s://%s:%d" % (self.scheme, host.address, SUBHOST_PORT),
                      "memory = %dKiB" % ((memory or host.memory) // 1024)]
        path = os.path.join(self.dir, "policy.ini")
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        return path

    def command(self, *argv, env=None, on=None):
        """Start split-migrate, on the source host if nothing else is said; the Popen with pipes."""
        return (on or self.source).popen([program("split-migrate")] + list(argv), stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=dict(os.environ, **(env or {})))

    def run(self, *argv, seconds=180, env=None, on=None):
        process = self.command(*argv, env=env, on=on)
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err

    def show_logs(self):
        for folder, _, names in sorted(os.walk(self.dir)):
            for name in sorted(names):
                if name.endswith(".log"):
                    with open(os.path.join(folder, name), errors="replace") as log:
                        lines = log.readlines()[-25:]
                    if lines:
                        print("--- %s/%s\n%s" % (os.path.basename(folder), name, "".join(lines)), end="")

    def close(self):
        for holder in self.holders:
            holder.kill()
        for process in self.holders + self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def main(test, **arguments):
    """Run a test function with a test bed; the process's exit status says how it went."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with Testbed(**arguments) as bed:
            bed.start()
            test(bed)
    except Missing as missing:
        skip(str(missing))
    except (Failure, subprocess.TimeoutExpired, ConnectionError) as failure:
        print("FAIL: %s" % failure)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        print("FAIL: %s" % sentence(error))
        sys.exit(1)
    print("ok")
