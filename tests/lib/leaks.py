# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest may leave behind on pagers and sub-hosts: taken before it came and compared after it went."""

import os

from cluster import Failure, wait_until


def _children(pid):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % entry) as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry))
    return found


def _links(pid):
    folder = "/proc/%d/fd" % pid
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink(os.path.join(folder, name)))
        except OSError:
            pass
    return found


def _files(folder):
    return sorted(os.path.relpath(os.path.join(at, name), folder)
                  for at, dirs, names in os.walk(folder) for name in dirs + names)


def _threads(pid):
    return len(os.listdir("/proc/%d/task" % pid))


def look(cluster, pagers):
    """What is there when all daemons are at rest: they hear a little later of connections that have ended."""
    seen = {}

    def at_rest():
        before = dict(seen)
        seen.update(_look(cluster, pagers))
        return seen == before
    wait_until("the daemons are at rest", 20, at_rest, 0.5)
    return dict(seen)


def _look(cluster, pagers):
    """Descriptors, threads, processes, files on tmpfs, regions and memory of all daemons."""
    seen = {}
    for subhost in cluster.subhosts:
        status = subhost.call("query-status")
        seen[subhost.name] = {
            "regions": subhost.call("region-list"), "stored": status["stored"],
            "reserved": status["reserved"], "descriptors": len(_links(subhost.pid)),
            "threads": _threads(subhost.pid)}
    for pager in pagers:
        links = _links(pager.pid)
        seen[pager.name] = {
            "guests": pager.call("query-guests"), "files": _files(pager.run_dir),
            "processes": len(_children(pager.pid)), "descriptors": len(links),
            "memfds": sum(link.startswith("/memfd:") for link in links),
            "threads": _threads(pager.pid)}
    return seen


def _left(was, now):
    """Is there more than before?  Less can only be a connection that had not ended when it began."""
    return now > was if isinstance(was, int) else now != was


def expect_same(cluster, pagers, before, seconds=30):
    """All is as it was before, within some seconds: connections end a little later than guests."""
    now = {}

    def same():
        now.update(_look(cluster, pagers))
        return not any(_left(before[name][key], now[name][key]) for name in now for key in now[name])
    try:
        wait_until("nothing is left of the guest", seconds, same, 0.1)
    except Failure:
        left = ["%s: %s was %s, is %s" % (name, key, before[name][key], value)
                for name in now for key, value in now[name].items() if _left(before[name][key], value)]
        raise Failure("left behind: " + "; ".join(left)) from None
