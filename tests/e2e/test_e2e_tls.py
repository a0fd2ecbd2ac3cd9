# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 240
"""A move with everything over TLS: the controller's connections, hot and cold pages, paging afterwards."""

import os
import random
import re
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import *  # noqa: F401,F403,E402
from pki import Pki

RAM, FILL, BUDGET = 256 * MIB, 160 * MIB, 64 * MIB


def free_ports(n):
    """Below those that the kernel gives to whoever asks for any, who may come before our daemons do."""
    socks, ports = [], random.sample(range(20000, 32000), 200)
    while len(socks) < n:
        try:
            socks.append(socket.create_server(("127.0.0.1", ports.pop())))
        except OSError:
            continue  # in use
    found = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return found


def tls_policy(cluster, ports, identity):
    """The cluster's policy, with the sub-hosts at their TLS addresses."""
    path = cluster.policy(BUDGET, tls={"tls-certificates": identity})
    with open(path) as file:
        text = file.read()
    for subhost, port in zip(cluster.subhosts, ports):
        text = text.replace("subhost://" + subhost.control_path, "subhost+tls://127.0.0.1:%d" % port)
    with open(path, "w") as file:
        file.write(text)
    return path


def plain_data(port):
    """True if an NBD server there offers anything before TLS."""
    done = subprocess.run(["nbdinfo", "--list", "nbd://127.0.0.1:%d" % port], capture_output=True, timeout=30)
    return done.returncode == 0


def test(cluster):
    with Pki() as pki:
        host, admin = pki.identity(), pki.identity(server=False)
        ports = free_ports(4)
        for port in ports[:2]:
            cluster.subhost(256 * MIB, options=[
                "--listen", "tls:127.0.0.1:0", "--control", "tls:127.0.0.1:%d" % port, "--tls-certificates", host])
        pagers = [cluster.pager(name, options=[
            "--handoff", "unix:%s/%s.handoff" % (cluster.dir, name), "--control",
            "unix:%s/%s/uffd-pager.sock" % (cluster.dir, name), "--control", "tls:127.0.0.1:%d" % port,
            "--data", "tls:127.0.0.1:0", "--tls-certificates", host])
                  for name, port in zip(("source", "main"), ports[2:])]
        for pager in pagers:
            pager.handoff = "%s/%s.handoff" % (cluster.dir, pager.name)
        source = cluster.guest("src", pagers[0], RAM,
                               append="memguest.size=%d memguest.rate=3000 memguest.hot=20" % FILL)
        source.wait_log("memguest: ready", 120)
        destination = cluster.guest("dst", pagers[1], RAM, incoming=True)
        destination.wait_handed_over()
        policy = tls_policy(cluster, ports, admin)
        uris = ["qmp:%s?pager=tls:127.0.0.1:%d" % (guest.qmp_path, port)
                for guest, port in ((source, ports[2]), (destination, ports[3]))]
        uris[1] += "&migrate=unix:%s/stream" % cluster.dir

        # Without a certificate, and with one that nobody knows, nothing begins.
        for bad, words in ((pki.identity(server=False, client=False), "refuses our TLS"),
                           (pki.stranger(), "refuses our TLS")):
            status, _, err = cluster.run("--tls-certificates", bad, "migrate", "--live", "--policy", policy, *uris)
            if status != 1 or words not in err:
                raise Failure("not refused: %d %s" % (status, err))
        if pagers[0].guest(cluster.uuid)["state"] != "attached" or pagers[1].guest(cluster.uuid)["state"] != "attached":
            raise Failure("a refused controller changed something")

        status, out, err = cluster.run("migrate", "--live", "--policy", policy, *uris)
        if status:
            raise Failure("migrate: %d %s %s" % (status, out, err))
        destination.expect_sweep(120)
        before = destination.reports()
        wait_until("the guest goes on", 30, lambda: destination.reports() >= before + 3)
        destination.check_clean()
        guest = pagers[1].guest(cluster.uuid)
        for subhost in guest["subhosts"]:
            if not subhost["data"].startswith("tls:") or not subhost["connected"] or not subhost["pages"]:
                raise Failure("not paged by TLS: %s" % subhost)
            if plain_data(int(subhost["data"].rsplit(":", 1)[1])):
                raise Failure("%s answers without TLS" % subhost["data"])
        if guest["lost_pages"] or guest["page_ins"] < 100:
            raise Failure("lost pages or no paging: %s" % guest)
        # The worker dies: the next one has the identity, too.
        os.kill(guest["worker_pid"], 9)
        before = destination.reports()
        wait_until("the guest goes on", 60, lambda: destination.reports() >= before + 5)
        destination.check_clean()
        status, out, err = cluster.run("--tls-certificates", admin, "status", "--pager",
                                       "tls:127.0.0.1:%d" % ports[3])
        if status or cluster.uuid not in out:
            raise Failure("status by TLS: %d %s %s" % (status, out, err))
        for daemon in cluster.subhosts + pagers:
            if re.search(r"\b[0-9a-f]{32}\b", daemon.tail(10000)):
                raise Failure("a ticket in the log of " + daemon.name)


main(test)
