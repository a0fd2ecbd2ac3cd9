# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire between two network cards of the lab, with verbs on both, that can be made slow and lossy.

The kernel keeps what is for an address of its own within, and soft RoCE knows no network namespaces.
So rules that come before the table of own addresses lead to each card by way of the other.
"""

import subprocess

HERE, THERE = "10.78.0.1", "10.78.0.2"


def run(*words):
    subprocess.run(words, check=True)


def ip(line):
    run("/usr/bin/ip", *line.split())


def mac(card):
    with open("/sys/class/net/%s/address" % card) as file:
        return file.read().strip()


def wire():
    """Make it. Sub-hosts listen at HERE; who connects to that comes from THERE."""
    ip("link add w0 type veth peer name w1")
    for card, own, other, table in ("w0", HERE, THERE, 101), ("w1", THERE, HERE, 102):
        for what, value in ("rp_filter", 0), ("accept_local", 1):
            with open("/proc/sys/net/ipv4/conf/%s/%s" % (card, what), "w") as file:
                file.write("%d" % value)
        ip("link set %s mtu 9000 up" % card)
        ip("addr add %s/32 dev %s" % (own, card))
        ip("rule add pref 1 iif %s to %s lookup local" % (card, own))
        ip("rule add pref 2 to %s lookup %d" % (other, table))
    verbs()
    with open("/proc/sys/net/ipv4/conf/all/rp_filter", "w") as file:
        file.write("0")
    for card, own, other, table, far in ("w0", HERE, THERE, 101, "w1"), ("w1", THERE, HERE, 102, "w0"):
        ip("route add %s dev %s src %s table %d" % (other, card, own, table))
        ip("neigh replace %s lladdr %s dev %s nud permanent" % (other, mac(far), card))
    ip("rule add pref 100 lookup local")
    ip("rule del pref 0")


def verbs(again=False):
    """Verbs on both cards; again: as after a reset, for soft RoCE may be at its wits' end after a lossy wire."""
    for card in "w0", "w1":
        if again:
            run("/usr/bin/rdma", "link", "delete", "rx" + card)
        run("/usr/bin/rdma", "link", "add", "rx" + card, "type", "rxe", "netdev", card)


def slow(*words):
    """From now on packets take so long, and so many are lost, either way: netem's words; none: as before."""
    for card in "w0", "w1":
        if words:
            run("/usr/bin/tc", "qdisc", "replace", "dev", card, "root", "netem", *words)
        else:
            run("/usr/bin/tc", "qdisc", "del", "dev", card, "root")
