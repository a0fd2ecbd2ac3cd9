#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 900
"""The Debian packages are built, installed in a clean Debian with systemd of its own, used there, and purged.

Used: a guest in the packaged QEMU, as another user, is split by the packaged command between packaged services,
both of which are then restarted under it by systemctl. After the purge the files are those of before.
"""

import ctypes
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import BUILD, CACHE, MIB, ROOT, Control, Failure, main, skip, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = ("split-migrate", "uffd-pager", "subhost-server", "split-migrate-qemu")
QEMU = "/usr/lib/split-migrate/bin/qemu-system-x86_64"
RAM, FILL, BUDGET = 256 * MIB, 128 * MIB, 64 * MIB
UUID = "7d1c1f0e-51f2-4b07-9a3e-1f2e3d4c5b6a"
# Users and groups stay, as Debian has it; the rest is what any installation writes.
KEPT = re.compile(r"^/(etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|var/lib/(dpkg|systemd)|var/log|var/cache/ldconfig"
                  r"|etc/ld\.so\.cache|etc/\.pwd\.lock|etc/machine-id|root$|root/)")


def packages():
    """Build them; {name: file}."""
    for tool in ("dpkg-buildpackage", "dh", "nsenter", "unshare"):
        if not shutil.which(tool):
            skip("%s is not installed" % tool)
    done = subprocess.run([os.path.join(ROOT, "packaging/deb.sh"), BUILD + "-deb"], capture_output=True, text=True)
    if done.returncode:
        raise Failure("the packages are not built: " + done.stderr)
    found = {os.path.basename(path).split("_")[0]: path for path in done.stdout.split()}
    if sorted(found) != sorted(NAMES):
        raise Failure("other packages than expected: %s" % sorted(found))
    return found


def check_lintian():
    if not shutil.which("lintian"):
        skip("lintian is not installed")
    done = subprocess.run(["lintian", "--fail-on", "error,warning"] + glob.glob(BUILD + "-deb/*.changes"),
                          capture_output=True, text=True)
    if done.returncode:
        raise Failure("lintian: " + done.stdout)


def dependencies(files):
    """The first choice of each dependency, but for our own."""
    names = set()
    for path in files.values():
        field = subprocess.run(["dpkg-deb", "-f", path, "Depends"], check=True, capture_output=True, text=True).stdout
        names |= {re.split(r"[ |(]", word.strip())[0] for word in field.split(",")}
    return sorted(names - set(NAMES))


class Machine:
    """A systemd in namespaces of its own."""

    def __init__(self, cluster, root):
        self.log = os.path.join(cluster.dir, "machine.log")
        with open(self.log, "wb") as log:
            self.holder = subprocess.Popen(
                ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child",
                 os.path.join(HERE, "boot.sh"), root], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))
        cluster.processes.append(self.holder)
        children = "/proc/%d/task/%d/children" % (self.holder.pid, self.holder.pid)

        def child():
            if self.holder.poll() is not None:
                skip("a machine cannot be made of namespaces here: " + open(self.log).read()[-300:])
            with open(children) as file:
                return file.read().split()
        self.pid = int(wait_until("the machine", 20, child)[0])
        wait_until("systemd", 20, lambda: b"systemd" in open("/proc/%d/cmdline" % self.pid, "rb").read())
        wait_until("systemd answers", 60, lambda: self.run("systemctl", "is-system-running", ok=None).stdout.strip()
                   in ("running", "degraded"), 0.2)

    def words(self, *words):
        return ["nsenter", "-t", str(self.pid), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--root",
                "--wdns=/", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"] + list(words)

    def run(self, *words, ok=True, seconds=120):
        done = subprocess.run(self.words(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=seconds)
        if ok is not None and (done.returncode == 0) != ok:
            raise Failure("%s: %d\n%s%s\n%s" % (" ".join(words), done.returncode, done.stdout, done.stderr,
                                               self.run("journalctl", "-n", "30", "--no-pager", ok=None).stdout))
        return done

    def path(self, path):
        return "/proc/%d/root%s" % (self.pid, path)

    def control(self, path, verb, **arguments):
        control = Control(self.path(path))
        try:
            return control.call(verb, **arguments)
        finally:
            control.close()

    def write(self, path, text):
        with open(self.path(path), "w") as file:
            file.write(text)

    def read(self, path):
        with open(self.path(path), errors="replace") as file:
            return file.read().replace("\r", "")

    def files(self):
        found = self.run("find", "/", "-xdev", "-not", "-path", "/proc/*", "-not", "-path", "/sys/*").stdout.splitlines()
        found += self.run("find", "/run", "-maxdepth", "1").stdout.splitlines()
        return {path for path in found if not KEPT.match(path)}


def install(machine, files):
    os.mkdir(machine.path("/tmp/debs"))
    for path in files.values():
        shutil.copy(path, machine.path("/tmp/debs"))
    machine.run("sh", "-c", "dpkg --install /tmp/debs/*.deb")
    for page in ("man1/split-migrate.1", "man5/split-migrate-policy.5", "man8/uffd-pager.8", "man8/subhost-server.8"):
        if not os.path.exists(machine.path("/usr/share/man/%s.gz" % page)):
            raise Failure("%s is not installed" % page)
    if machine.run("systemctl", "is-active", "uffd-pager", ok=None).stdout != "active\n":
        raise Failure("the pager does not run: " + machine.run("journalctl", "-u", "uffd-pager", ok=None).stdout)
    if machine.run("systemctl", "is-active", "subhost-server", ok=None).stdout != "inactive\n":
        raise Failure("a sub-host lends memory nobody has allowed")
    machine.run("split-migrate", "--version")
    # As its administrator would.
    machine.write("/etc/default/subhost-server", 'SUBHOST_SERVER_OPTIONS="--memory 256M"\n')
    machine.run("systemctl", "enable", "--now", "subhost-server")


def check_service(machine, name):
    """It runs as the unit says, by the kernel's word."""
    pid = machine.run("systemctl", "show", "-P", "MainPID", name).stdout.strip()
    status = machine.run("cat", "/proc/%s/status" % pid).stdout
    uid = machine.run("id", "-u", name).stdout.strip()
    for pattern in (r"^Uid:\s+%s\s" % uid, r"^CapEff:\s+0+$", r"^CapBnd:\s+0+$", r"^NoNewPrivs:\s+1$", r"^Seccomp:\s+2$"):
        if not re.search(pattern, status, re.M):
            raise Failure("%s: no %s in\n%s" % (name, pattern, status))


class Guest:
    """The packaged QEMU as a user in group kvm, which is all that libvirt-qemu is."""

    def __init__(self, machine, name, pager, incoming=False):
        self.machine, self.name, base = machine, name, "/tmp/" + name
        self.serial, self.pager = base + ".log", pager
        self.uri = "qmp:%s.qmp?pager=unix:%s/uffd-pager.sock" % (base, pager)
        words = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc,memory-backend=ram",
                 "-accel", "tcg", "-m", "%dM" % (RAM // MIB), "-uuid", UUID,
                 "-object", "memory-backend-memfd,id=ram,share=on,size=%d" % RAM,
                 "-object", "ram-pager,id=pager0,path=%s/handoff.sock" % pager,
                 "-qmp", "unix:%s.qmp,server=on,wait=off" % base, "-serial", "file:" + self.serial,
                 "-kernel", "/tmp/kernel", "-initrd", "/tmp/initrd", "-append",
                 "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check nowatchdog memguest.size=%d memguest.rate=3000 "
                 "memguest.hot=80" % FILL] + (["-incoming", "defer"] if incoming else [])
        machine.run("systemd-run", "--unit=guest-" + name, "--uid=qemu-test", "--gid=qemu-test", "-p",
                    "SupplementaryGroups=kvm", *words)
        wait_until("QMP of " + name, 30, lambda: os.path.exists(machine.path(base + ".qmp")))

    def text(self):
        return self.machine.read(self.serial) if os.path.exists(self.machine.path(self.serial)) else ""

    def wait(self, pattern, seconds):
        try:
            wait_until(pattern, seconds, lambda: re.search(pattern, self.text()), 0.1)
        except Failure as failure:
            raise Failure("%s; the console's end is:\n%s\n%s" % (failure, self.text()[-800:], self.machine.run(
                "journalctl", "-n", "30", "--no-pager", ok=None).stdout)) from None

    def go_on(self):
        """The guest reports several times more, and no error ever."""
        count = lambda: len(re.findall(r"^memguest: t=", self.text(), re.M))
        before = count()
        wait_until("%s goes on" % self.name, 60, lambda: count() >= before + 3, 0.1)
        if re.search(r"ERROR|panic|errors=[1-9]|memerrs=[1-9]", self.text()):
            raise Failure("the guest has errors:\n" + self.text()[-1500:])


def use(cluster, machine):
    for name in ("uffd-pager", "subhost-server"):
        check_service(machine, name)
    files = cluster.guest_files()
    shutil.copy(files["KERNEL"], machine.path("/tmp/kernel"))
    shutil.copy(files["INITRD"], machine.path("/tmp/initrd"))
    machine.run("useradd", "--system", "qemu-test")
    # The source host's pager is a second one here.
    machine.run("systemd-run", "--unit=source-pager", "--uid=uffd-pager", "-p", "SupplementaryGroups=kvm split-migrate", "-p",
                "RuntimeDirectory=source", "-p", "Type=notify", "/usr/sbin/uffd-pager", "--run-dir=/run/source",
                "--handoff-group=kvm")
    source = Guest(machine, "src", "/run/source")
    source.wait("memguest: ready", 120)
    target = Guest(machine, "dst", "/run/split-migrate", incoming=True)
    machine.write("/tmp/policy", "[main]\nbudget = %dMiB\n[subhost one]\nuri = subhost:///run/subhost/subhost.sock\n"
                  "memory = 256MiB\n" % (BUDGET // MIB))
    print(machine.run("split-migrate", "migrate", "--live", "--policy", "/tmp/policy", source.uri, target.uri,
                      seconds=240).stdout.strip())
    machine.run("systemctl", "stop", "guest-src", ok=None)  # it may have ended and been forgotten already
    target.go_on()
    query = lambda: machine.control("/run/split-migrate/uffd-pager.sock", "query-guest", uuid=UUID)
    guest = query()
    if guest["state"] != "split" or not guest["subhosts"][0]["pages"]:
        raise Failure("after the move: %s" % guest)
    for name in ("uffd-pager", "subhost-server") * 2:
        machine.run("systemctl", "restart", name)
        before = query()["page_ins"]
        wait_until("paging after the restart of " + name, 60, lambda: query()["page_ins"] > before + 50, 0.1)
        target.go_on()
    after = query()
    if after["worker_pid"] != guest["worker_pid"] or after["lost_pages"]:
        raise Failure("after the restarts: %s" % after)
    # dpkg does not take a sub-host away from under its guests.
    refused = machine.run("dpkg", "--remove", "subhost-server", ok=False)
    if "memory of guests is still in" not in refused.stderr:
        raise Failure(refused.stderr)
    machine.run("systemctl", "is-active", "subhost-server")
    machine.run("systemctl", "stop", "guest-dst")
    wait_until("the guest's end everywhere", 30, lambda: not machine.control(
        "/run/split-migrate/uffd-pager.sock", "query-guests") and not machine.control(
        "/run/subhost/subhost.sock", "region-list"), 0.1)
    machine.run("systemctl", "stop", "source-pager")
    errors = machine.run("journalctl", "-p", "err", "-u", "uffd-pager", "-u", "subhost-server", "-q", "-o", "cat").stdout
    if errors:
        raise Failure("the journal has errors: " + errors)


def purge(machine, before):
    machine.run("rm", "-rf", "/tmp/debs")
    machine.run("userdel", "qemu-test")
    machine.run("dpkg", "--purge", *NAMES)
    left = sorted(machine.files() - before)
    if left:
        raise Failure("purge leaves: " + " ".join(left))
    names = machine.run("ps", "-eo", "comm").stdout if os.path.exists(machine.path("/usr/bin/ps")) else ""
    if re.search("uffd-pager|subhost-server|qemu", names):
        raise Failure("processes are left: " + names)


def test(cluster):
    if os.geteuid() != 0:
        skip("must be root")
    begin = time.monotonic()
    files = packages()
    check_lintian()
    print("built after %.0f s" % (time.monotonic() - begin), flush=True)
    root = subprocess.run([os.path.join(HERE, "root.sh"), CACHE] + dependencies(files) + ["procps"], capture_output=True, text=True)
    if root.returncode:
        skip("no clean Debian: " + root.stderr.strip())
    print("root after %.0f s" % (time.monotonic() - begin), flush=True)
    machine = Machine(cluster, root.stdout.strip())
    before = machine.files()
    install(machine, files)
    print("installed after %.0f s" % (time.monotonic() - begin), flush=True)
    use(cluster, machine)
    print("used after %.0f s" % (time.monotonic() - begin), flush=True)
    purge(machine, before)
    print("purged after %.0f s" % (time.monotonic() - begin), flush=True)


main(test)
