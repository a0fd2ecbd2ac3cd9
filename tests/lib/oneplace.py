# SPDX-License-Identifier: GPL-2.0-or-later
"""The exactly-one-place check: every page of a stopped guest against its copy after the move.

Resident pages are read from the destination's memfd; remote ones from the sub-hosts' regions by
an NBD client that is not ours (nbdcopy).
"""

import os
import random
import re
import subprocess

from cluster import CLEAN, LOCAL, MIB, PAGE, REMOTE, UNTOUCHED, CHUNK_PAGES, Failure, memfd_extents

ZERO = bytes(PAGE)


def fill(fd, ram, kind, seed):
    """Write a guest's memory from outside; the low 2 MiB stay the firmware's."""
    rng = random.Random(seed)
    first, last = 2 * MIB // PAGE, ram // PAGE
    if kind == "random":
        for page in range(first, last - 64):
            os.pwrite(fd, rng.randbytes(PAGE), page * PAGE)
    elif kind == "sparse":
        for _ in range(6000):
            page = rng.randrange(first, last)
            # Some pages are zero but for one byte, the first or the last.
            content = rng.choice([rng.randbytes(PAGE), b"\1" + bytes(PAGE - 1), bytes(PAGE - 1) + b"\1"])
            os.pwrite(fd, content, page * PAGE)
    else:
        for page in range(first, last, 3):
            os.pwrite(fd, bytes(PAGE), page * PAGE)


def memfd_name(pid):
    folder = "/proc/%d/fd" % pid
    return next(name for name in os.listdir(folder)
                if os.readlink(os.path.join(folder, name)).startswith("/memfd:memory-backend-memfd"))


def move(cluster, ram, budget, kind, seed, accel="tcg,thread=multi", **sections):
    """Move a stopped guest to the cluster's sub-hosts and check it. Returns split-migrate's JSON and the counts."""
    source_pager, main_pager = cluster.pager("source"), cluster.pager("main")
    source = cluster.guest("src", source_pager, ram, kernel=False, paused=True, accel=accel)
    destination = cluster.guest("dst", main_pager, ram, kernel=False, incoming=True, accel=accel)
    fd = os.open("/proc/%d/fd/%s" % (source.pid, memfd_name(source.pid)), os.O_RDWR)
    fill(fd, ram, kind, seed)
    result = cluster.migrate(source, destination, cluster.policy(budget, **sections))
    guest = main_pager.guest(cluster.uuid)
    if destination.status() == "running":
        raise Failure("a stopped guest runs after its move")
    moved = destination.memfd()
    page_map, extents = main_pager.map_and_extents(cluster.uuid, moved)
    counts = check(cluster, fd, moved, page_map, extents, guest)
    os.close(moved)
    print("%s, %d sub-hosts: %s, %d MiB to main, %s to sub-hosts" % (
        kind, len(cluster.subhosts), counts, result["main_bytes"] // MIB,
        [n // MIB for n in result["subhost_bytes"]]), flush=True)
    if counts["local"] * PAGE > budget:
        raise Failure("the main host holds more than its budget")
    os.close(fd)
    return result, counts


def download(subhost, export, path):
    subprocess.run(["nbdcopy", "--allocated", subhost.nbd_uri(export), path], check=True,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def regions(cluster, guest):
    """One sparse file for each sub-host of the guest, in the page map's order."""
    files = []
    by_name = {subhost.name: subhost for subhost in cluster.subhosts}
    for entry in guest["subhosts"]:
        path = os.path.join(cluster.dir, "region-" + re.sub(r"\W", "_", entry["name"]))
        subhost = by_name[entry["name"]]
        size = subhost.call("region-list")[0]["size"]
        with open(path, "wb") as file:
            file.truncate(size)
        download(subhost, entry["export"], path)
        files.append(open(path, "rb"))
    return files


def check(cluster, source_fd, destination_fd, page_map, extents, guest):
    """Raise Failure at the first page that is in no place or differs; returns counts by place."""
    files = regions(cluster, guest)
    size = os.fstat(source_fd).st_size
    has_data = bytearray(size // PAGE)
    for start, end in memfd_extents(source_fd):
        has_data[start // PAGE:end // PAGE] = b"\1" * ((end - start) // PAGE)
    resident = bytearray(size // PAGE)
    for start, end in extents:
        resident[start // PAGE:end // PAGE] = b"\1" * ((end - start) // PAGE)
    counts = {"local": 0, "remote": 0, "untouched": 0, "zero_of_untouched": 0}
    for page in range(size // PAGE):
        state = page_map.pages[page]
        want = os.pread(source_fd, PAGE, page * PAGE) if has_data[page] else ZERO
        if state in (LOCAL, CLEAN):
            if not resident[page]:
                raise Failure("page %d is LOCAL but not resident" % page)
            got = os.pread(destination_fd, PAGE, page * PAGE)
            counts["local"] += 1
        elif state == REMOTE:
            if resident[page]:
                raise Failure("page %d is REMOTE and resident" % page)
            index = page_map.subhost[page // CHUNK_PAGES]
            got = os.pread(files[index].fileno(), PAGE, page * PAGE)
            counts["remote"] += 1
        elif state == UNTOUCHED:
            if resident[page]:
                raise Failure("page %d is UNTOUCHED and resident" % page)
            got = ZERO
            counts["untouched"] += 1
            counts["zero_of_untouched"] += has_data[page]
        else:
            raise Failure("page %d is in state %d" % (page, state))
        if got != want:
            at = next(i for i in range(PAGE) if got[i] != want[i])
            raise Failure("page %d (state %d) differs at byte %d; %s" % (
                page, state, at, "it is zero" if got == ZERO else "it is not zero"))
    for file in files:
        file.close()
    return counts
