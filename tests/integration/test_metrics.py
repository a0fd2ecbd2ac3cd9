#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Both daemons' metrics: what Prometheus's own parser reads agrees with the control sockets; bad requests cost nothing."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import MIB, Control, Failure, main, program, skip, wait_until
from guestplay import GuestPlay, move

try:
    from prometheus_client.parser import text_string_to_metric_families
except ImportError:
    skip("python3-prometheus-client is not installed")

UNITS = ("_bytes", "_seconds", "_total", "_info", "_ratio")
COUNTS = {"uffd_pager_guests", "uffd_pager_guest_up", "uffd_pager_guest_split", "uffd_pager_subhost_connected",
          "subhost_server_regions", "subhost_server_connections", "subhost_server_region_connections"}


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


def request(path, method="GET", url="/metrics"):
    connection = UnixHttp(path)
    connection.request(method, url)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def scrape(path):
    """{(sample name, labels): value}, after everything that Prometheus's conventions ask."""
    answer, text = request(path)
    if answer.status != 200 or answer.getheader("Content-Type") != "text/plain; version=0.0.4; charset=utf-8":
        raise Failure("%d %s" % (answer.status, answer.getheader("Content-Type")))
    if not text.endswith("\n") or len(re.findall("^# TYPE (.*)$", text, re.M)) != len(
            set(re.findall(r"^# TYPE (\S+)", text, re.M))):
        raise Failure("a family is there twice:\n" + text)
    samples = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if not family.documentation or family.type not in ("gauge", "counter", "histogram"):
            raise Failure("family %s: %s, '%s'" % (family.name, family.type, family.documentation))
        if not name.endswith(UNITS) and name not in COUNTS:
            raise Failure("%s names no unit" % name)
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key in samples:
                raise Failure("%s is there twice" % (key,))
            samples[key] = sample.value
    return samples


def check_histogram(samples, name, guest):
    buckets = [(float(dict(labels)["le"]), value) for (sample, labels), value in samples.items()
               if sample == name + "_bucket" and dict(labels)["guest"] == guest]
    count = samples[name + "_count", (("guest", guest),)]
    if buckets != sorted(buckets) or [v for _, v in buckets] != sorted(v for _, v in buckets):
        raise Failure("buckets that do not grow: %s" % buckets)
    if buckets[-1] != (float("inf"), count) or not count or len(buckets) < 10:
        raise Failure("the last bucket is not all: %s of %s" % (buckets[-1:], count))
    total = samples[name + "_sum", (("guest", guest),)]
    if not 0 < total < count * 60:
        raise Failure("%s faults took %s s" % (count, total))


def at_rest(look, scrape_it):
    """What the control socket says and what is scraped, from a time in which the former has not changed."""
    def both():
        before, samples = look(), scrape_it()
        return (before, samples) if look() == before else None
    return wait_until("nothing changes while it is scraped", 30, both)


def check_pager(cluster, pager):
    keys = ("page_ins", "page_outs", "lost_pages", "budget", "ram", "resident", "present", "subhosts")
    uuid = (("guest", cluster.uuid),)
    guest, samples = at_rest(lambda: {key: pager.guest(cluster.uuid)[key] for key in keys},
                             lambda: scrape(pager.metrics))
    for key, name in (("page_ins", "page_ins_total"), ("page_outs", "page_outs_total"),
                      ("lost_pages", "lost_pages_total"), ("budget", "guest_budget_bytes"),
                      ("ram", "guest_ram_bytes"), ("resident", "guest_resident_bytes"),
                      ("present", "guest_present_bytes")):
        if samples["uffd_pager_" + name, uuid] != guest[key]:
            raise Failure("%s: %s, %s" % (name, samples["uffd_pager_" + name, uuid], guest[key]))
    for subhost in guest["subhosts"]:
        labels = (("guest", cluster.uuid), ("subhost", subhost["name"]))
        if samples["uffd_pager_subhost_remote_bytes", labels] != subhost["pages"] * 4096 or \
                samples["uffd_pager_subhost_connected", labels] != 1:
            raise Failure("%s: %s" % (subhost, samples))
    if samples["uffd_pager_guest_up", uuid] != 1 or samples["uffd_pager_guest_split", uuid] != 1 or \
            samples["uffd_pager_guests", ()] != 1:
        raise Failure("the guest is not told of: %s" % samples)
    check_histogram(samples, "uffd_pager_fault_duration_seconds", cluster.uuid)


def check_subhost(cluster, subhost):
    stats, samples = at_rest(lambda: subhost.call("stats"), lambda: scrape(subhost.metrics))
    for key, name in (("memory", "memory_bytes"), ("stored", "stored_bytes"), ("reserved", "reserved_bytes"),
                      ("free", "free_bytes"), ("regions", "regions"), ("connections", "connections"),
                      ("writes", "writes_total"), ("read_bytes", "read_bytes_total"), ("errors", "errors_total"),
                      ("headroom", "headroom_bytes"), ("lendable", "lendable_bytes"),
                      ("given_back", "given_back_bytes_total"), ("pulled_bytes", "pulled_bytes_total")):
        if samples["subhost_server_" + name, ()] != stats[key]:
            raise Failure("%s: %s, %s" % (name, samples["subhost_server_" + name, ()], stats[key]))
    if samples["subhost_server_region_stored_bytes", (("region", cluster.uuid),)] != stats["stored"]:
        raise Failure("the region is not told of: %s" % samples)


def check_hostile(path):
    """Nothing that a client sends may end the service or keep others out for ever."""
    for method, url, status in (("POST", "/metrics", 405), ("DELETE", "/metrics", 405), ("GET", "/", 404),
                                ("GET", "/metrics/../etc", 404)):
        answer, _ = request(path, method, url)
        if answer.status != status:
            raise Failure("%s %s: %d" % (method, url, answer.status))
    answer, text = request(path, "HEAD")
    if answer.status != 200 or text:
        raise Failure("HEAD: %d, '%s'" % (answer.status, text))
    idle = []
    for data in (b"", b"GET", b"\0" * 1000, b"GET /metrics HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100000,
                 b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 10000, b"POST /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                 b"POST /metrics HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        idle.append(sock)
    idle += [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(12)]
    for sock in idle[-12:]:
        sock.connect(path)

    def served():
        try:
            return request(path)[0].status == 200
        except (OSError, http.client.HTTPException):
            return False
    # Silent clients hold the few connections until their time is up, which is 5 s.
    wait_until("a scrape behind silent clients", 40, served, interval=0.5)
    for sock in idle:
        sock.close()


def check_addresses():
    for words in (["uffd-pager"], ["subhost-server", "--memory", "1M"]):
        for address, word in (("tcp:0.0.0.0:0", "plaintext"), ("tcp::0", "plaintext"), ("tls:127.0.0.1:0", "not encrypted"), ("nowhere", "nowhere")):
            done = subprocess.run([program(words[0])] + words[1:] + ["--metrics", address], capture_output=True,
                                  text=True, timeout=20)
            if not done.returncode or word not in done.stderr or len(done.stderr.splitlines()) != 1:
                raise Failure("%s --metrics %s: %d, %s" % (words, address, done.returncode, done.stderr))


def test(cluster):
    check_addresses()
    source = cluster.pager("source")
    target = cluster.pager("target", options=["--metrics", "unix:%s/target.http" % cluster.dir])
    target.metrics = cluster.dir + "/target.http"
    subhosts = []
    for name in "suba", "subb":
        path = "%s/%s.http" % (cluster.dir, name)
        subhosts.append(cluster.subhost(128 * MIB, name, options=["--metrics", "unix:" + path, "--headroom", "1M"]))
        subhosts[-1].metrics = path
    if scrape(target.metrics)["uffd_pager_guests", ()] != 0:
        raise Failure("guests before there are any")
    here = GuestPlay(cluster, source, "source guest")
    there = GuestPlay(cluster, target, "destination guest", incoming=True)
    here("mode", "hot")
    here("fill", 80)
    move(cluster, source, target, here, there)
    here.process.kill()
    there.run(1)
    wait_until("page-out rests", 20, lambda: quiet(target, cluster.uuid), interval=0.3)
    check_pager(cluster, target)
    for subhost in subhosts:
        check_subhost(cluster, subhost)
    check_hostile(target.metrics)
    check_hostile(subhosts[0].metrics)
    there.check()
    # A worker that is there and does not answer is told as down, and the others are not kept waiting.
    worker = target.guest(cluster.uuid)["worker_pid"]
    os.kill(worker, 19)
    wait_until("the worker stands still", 10, lambda: stopped(worker))
    up = scrape(target.metrics)["uffd_pager_guest_up", (("guest", cluster.uuid),)]
    os.kill(worker, 18)
    if up != 0:
        raise Failure("a stopped worker is told as up")


def stopped(pid):
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


def quiet(pager, uuid, seen={}):
    """True when no counter has changed since the last call."""
    guest = json.dumps({k: v for k, v in pager.guest(uuid).items() if k != "uptime_ms"}, sort_keys=True)
    before, seen["last"] = seen.get("last"), guest
    return before == guest


main(test)
