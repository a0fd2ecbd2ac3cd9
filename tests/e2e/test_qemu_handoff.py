#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 300
"""The ram-pager object: what it hands to a pager, and what it refuses."""

import fcntl
import os
import struct
import sys
import time
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))

import fakepager as fp  # noqa: E402
from fakepager import Bench, check, main, pages_in, wait_until  # noqa: E402


def with_bench(test):
    def run():
        bench = Bench()
        try:
            test(bench)
        finally:
            bench.close()
    run.__name__ = test.__name__
    return run


def same_file(a, b):
    x, y = os.fstat(a), os.fstat(b)
    return (x.st_dev, x.st_ino) == (y.st_dev, y.st_ino)


@with_bench
def handoff(bench):
    pager = bench.pager("pager")
    q = bench.qemu("guest", pager)
    s = pager.session()
    check(s.uuid == uuid.UUID(bench.UUID).bytes, "UUID")
    check(s.pid == q.process.pid, "pid")
    check(s.flags == 0, "flags of a guest that is not incoming")
    check([(b.index, b.idstr, b.size, b.page_size, b.fd_offset, b.flags)
           for b in s.blocks] ==
          [(0, "ram0", bench.size << 20, 4096, 0, 0)],
          f"layout {[vars(b) for b in s.blocks]}")
    fd = q.ram_fd()
    check(same_file(fd, s.blocks[0].fd), "the guest's own memfd")
    check("userfaultfd" in os.readlink(f"/proc/self/fd/{s.uffd}"), "uffd")
    check(os.readlink(f"/proc/self/fd/{s.pagemap}").endswith("/pagemap"), "page tables")
    # UFFDIO_API works once on a userfaultfd: QEMU must have left it to us.
    api = bytearray(struct.pack("<QQQ", 0xAA, 0, 0))
    fcntl.ioctl(s.uffd, 0xC018AA3F, api)
    wait_until("connected", lambda: q.pager_property("connected"))
    check(q.pager_property("armed") is False, "not armed")
    bench.wait_running(fd)
    os.close(fd)


@with_bench
def incoming_flag(bench):
    pager = bench.pager("pager")
    bench.qemu("guest", pager, incoming=True)
    check(pager.session().flags == fp.HELLO_INCOMING, "flags")


@with_bench
def reconnect(bench):
    """No pager at first, then one, then it goes, then another one."""
    path = bench.path("pager.sock")
    q = bench.qemu("guest", path)
    fd = q.ram_fd()
    bench.wait_running(fd)
    check(not q.pager_property("connected"), "nobody to connect to")
    check(q.log().count("warning:") == 1, f"one warning: {q.log()}")
    pager = bench.pager("pager")
    first = pager.session()
    wait_until("connected", lambda: q.pager_property("connected"))
    first.close()
    second = pager.session()
    check(len(second.blocks) == 1 and same_file(second.blocks[0].fd, fd),
          "the layout again")
    wait_until("connected again", lambda: q.pager_property("connected"))
    warnings = q.log().count("warning:")
    check(warnings == 2, f"a warning per loss: {q.log()}")
    # It is the userfaultfd of before, enabled by the first pager or not.
    api = bytearray(struct.pack("<QQQ", 0xAA, 0, 0))
    fcntl.ioctl(second.uffd, 0xC018AA3F, api)
    second.close()
    third = pager.session()
    try:
        fcntl.ioctl(third.uffd, 0xC018AA3F, api)
        fp.fail("a userfaultfd that was not enabled before")
    except OSError:
        pass
    pager.close()
    wait_until("disconnected", lambda: not q.pager_property("connected"))
    bench.wait_running(fd)
    time.sleep(1.5)
    check(q.log().count("warning:") == warnings + 2, f"a storm: {q.log()}")
    os.close(fd)


@with_bench
def rejected(bench):
    pager = bench.pager("pager")
    pager.welcome = (13, "guest is not known here")
    q = bench.qemu("guest", pager)
    wait_until("the reason", lambda: "guest is not known here" in q.log())
    check(not q.pager_property("connected"), "connected")
    pager.welcome = (0, "")
    pager.session()
    wait_until("connected", lambda: q.pager_property("connected"))


@with_bench
def protocol_errors(bench):
    """A pager that talks nonsense costs its connection and nothing else."""
    pager = bench.pager("pager")
    q = bench.qemu("guest", pager)
    for message in (b"\0" * 64,
                    struct.pack("<IHHII", fp.MAGIC, 2, fp.ZAP, 0, 1),
                    struct.pack("<IHHII", fp.MAGIC, 1, fp.ZAP, 1 << 20, 1),
                    struct.pack("<IHHII", fp.MAGIC, 1, 99, 0, 1),
                    struct.pack("<IHHII", fp.MAGIC, 1, fp.MIG_PROGRESS, 0,
                                0)):
        s = pager.session()
        s.sock.sendall(message)
        wait_until("the connection to end", lambda: s.closed)
    s = pager.session()
    # An answer nobody waits for is not an error.
    s.send(fp.DISCARDED, fp.result(), 12345)
    check(s.zap([(0, 0, 4096)]) == (0, ""), "still served")
    check(q.status() == "running", "the guest runs")


@with_bench
def zap(bench):
    pager = bench.pager("pager")
    q = bench.qemu("guest", pager)
    s = pager.session()
    fd = q.ram_fd()
    bench.wait_running(fd)
    hva = s.blocks[0].hva

    def resident(page):
        with open(f"/proc/{q.process.pid}/pagemap", "rb") as f:
            f.seek((hva // 4096 + page) * 8)
            return struct.unpack("<Q", f.read(8))[0] >> 63

    first = bench.dirty[0] // 4096
    q.command("stop")
    check(resident(first) and resident(first + 7), "mapped before")
    before = os.pread(fd, 1 << 20, bench.dirty[0])
    check(s.zap([(0, bench.dirty[0], 4096),
                 (0, bench.dirty[0] + 7 * 4096, 8192)]) == (0, ""), "zapped")
    check([resident(first + i) for i in (0, 1, 6, 7, 8, 9)] ==
          [0, 1, 1, 0, 0, 1], "exactly these pages went out of the tables")
    check(os.pread(fd, 1 << 20, bench.dirty[0]) == before, "contents stay")
    size = bench.size << 20
    for bad in ([(1, 0, 4096)], [(0, size, 4096)], [(0, 4096, size)],
                [(0, 0, 100)], [(0, 1, 4096)], [(0, size - 4096, 1 << 63)],
                [(0, (1 << 64) - 4096, 8192)]):
        check(s.zap(bad)[0] == 22, f"zap {bad} refused")
    check(s.request(fp.ZAP, fp.ZAPPED, struct.pack("<II", 9, 0))[0] == 22,
          "a count without ranges")
    check(s.zap([]) == (0, ""), "nothing is fine")
    q.command("cont")
    bench.wait_running(fd)
    os.close(fd)


def discard():
    """Pages given to a balloon: the pager hears of them first."""
    frames = [(50 << 8) + i for i in (0, 1, 2, 7)]
    for pager_mode in ("answers", "mute", "gone"):
        bench = Bench(balloon=frames)
        try:
            balloon(bench, frames, pager_mode)
        finally:
            bench.close()


def balloon(bench, frames, pager_mode):
    pager = bench.pager("pager")
    pager.mute = pager_mode == "mute"
    q = bench.qemu("guest", pager, extra=[
        "-S", "-device", "virtio-balloon-pci,addr=4"])
    s = pager.session()
    fd = q.ram_fd()
    os.pwrite(fd, b"x" * 16 * 4096, 50 << 20)
    present = []
    s.on_discard = lambda ranges: present.append(
        [pages_in(fd, offset, length) for _, offset, length in ranges])
    if pager_mode == "gone":
        pager.close()
        wait_until("disconnected", lambda: not q.pager_property("connected"))
    q.command("cont")
    left = (16 - len(frames)) * 4096
    wait_until("the pages to be given up", lambda:
               pages_in(fd, 50 << 20, 16 * 4096) == left)
    bench.wait_running(fd)
    if pager_mode == "answers":
        got = [fp.parse_ranges(b) for k, _, b in s.seen if k == fp.DISCARD]
        check(got == [[(0, frame << 12, 4096)] for frame in frames],
              f"discards reported: {got}")
        check(present == [[4096]] * len(frames),
              f"told before the page went: {present}")
    elif pager_mode == "mute":
        # It delays a discard, but does not prevent it.
        check("not acknowledged" in q.log(), "said so")
    os.close(fd)


@with_bench
def hotplug(bench):
    """A DIMM plugged later joins the layout, one unplugged leaves it."""
    pager = bench.pager("pager")
    q = bench.qemu("guest", pager,
                   extra=["-m", f"{bench.size},maxmem=512M,slots=2"])
    s = pager.session()
    check(len(s.blocks) == 1, "one block")
    q.command("object-add", qom_type="memory-backend-memfd", id="dimm-ram",
              size=128 << 20, share=True)
    q.command("device_add", driver="pc-dimm", id="dimm0", memdev="dimm-ram")
    s = pager.session()
    check([b.size for b in s.blocks] == [bench.size << 20, 128 << 20],
          "two blocks")
    check(s.zap([(1, 4096, 4096)]) == (0, ""), "which are served")


def refused(bench, sentence, **arguments):
    q = bench.qemu("guest", bench.path("none.sock"), qmp=False, **arguments)
    status = q.end()
    log = q.log()
    check(status != 0 and sentence in log, f"status {status}: {log}")
    check(len(log.strip().splitlines()) == 1, f"one sentence: {log}")


@with_bench
def refusals(bench):
    refused(bench, "UUID", uuid=False)
    refused(bench, "prealloc=on",
            memory="memory-backend-memfd,share=on,prealloc=on")
    refused(bench, "share=on", memory="memory-backend-memfd,share=off")
    refused(bench, "share=on", memory="memory-backend-ram")
    refused(bench, "mem-lock", extra=["-overcommit", "mem-lock=on"])
    refused(bench, "mem-lock", extra=["-overcommit", "mem-lock=on-fault"])
    refused(bench, "only one", extra=[
        "-object", "ram-pager,id=pager1,path=/none"])


@with_bench
def vhost_user_refused(bench):
    import socket
    path = bench.path("vhost.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    q = bench.qemu("guest", bench.path("none.sock"), qmp=False, extra=[
        "-chardev", f"socket,id=v0,path={path}",
        "-device", "vhost-user-vsock-pci,chardev=v0"])
    status = q.end()
    listener.close()
    check(status != 0 and "vhost-user cannot be used together with ram-pager"
          in q.log(), f"status {status}: {q.log()}")


@with_bench
def not_hot(bench):
    pager = bench.pager("pager")
    q = bench.qemu("guest", pager)
    for command, arguments in (
            ("object-add", {"qom_type": "ram-pager", "id": "p1",
                            "path": "/none"}),
            ("object-del", {"id": "pager0"})):
        try:
            q.command(command, **arguments)
            fp.fail(f"{command} worked")
        except fp.QMPError:
            pass


@with_bench
def quits(bench):
    """QEMU ends at once, whatever the pager does or does not."""
    for welcome in ((0, ""), (13, "no"), None, "no pager"):
        pager = bench.pager("pager")
        if welcome == "no pager":
            pager.close()
        else:
            pager.welcome = welcome
        q = bench.qemu("guest", pager)
        if welcome == (0, ""):
            pager.session()
        bench.wait_running(fd := q.ram_fd())
        os.close(fd)
        q.command("quit")
        check(q.end(timeout=5) == 0, f"exit status: {q.log()}")
        q.kill()
        pager.close()


@with_bench
def stock_migration(bench):
    """With a pager on both sides but nothing armed, QEMU moves the RAM."""
    pagers = [bench.pager("source"), bench.pager("dest")]
    source = bench.qemu("source-guest", pagers[0])
    dest = bench.qemu("dest-guest", pagers[1], incoming=True)
    s = pagers[0].session()
    pagers[1].session()
    a, b = source.ram_fd(), dest.ram_fd()
    bench.fill(a, 50, 60)
    bench.wait_running(a)
    source.migrate(bench.listen(dest), downtime_limit=2000)
    info = source.wait_migration("completed")
    dest.wait_migration("completed")
    check(info["ram"]["normal"] * 4096 > 8 << 20, "RAM was in the stream")
    check(not bench.differences(a, b), "memory is equal")
    check(fp.MIG_BEGIN not in [k for k, _, _ in s.seen], "pager not asked")
    dest.command("cont")
    bench.wait_running(b)
    os.close(a)
    os.close(b)


main([handoff, incoming_flag, reconnect, rejected, protocol_errors, zap,
      discard, hotplug, refusals, vhost_user_refused, not_hot,
      quits, stock_migration])
