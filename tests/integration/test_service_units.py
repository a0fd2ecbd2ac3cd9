#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# NOT-UNDER: asan tsan (it is about texts)
"""The units are sound and give little away: systemd's own tools judge them, and the users they need are made."""

import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from checks import command, main, require_tool
from cluster import ROOT
from units import parse, unit_path

UNITS = ("uffd-pager", "subhost-server")
# Of systemd's 0 to 10; a service that restricts nothing has 9.6.
EXPOSURE = 1.9


def installed(folder, name):
    """The unit as make install writes it, with a program that is there."""
    path = os.path.join(folder, name + ".service")
    with open(unit_path(name)) as source, open(path, "w") as target:
        target.write(source.read().replace("@SBINDIR@/" + name, "/bin/true"))
    return path


def test_verify():
    require_tool("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        for name in UNITS:
            said = command("systemd-analyze", "verify", "--man=no", installed(folder, name))
            assert name not in said.stderr.decode(), said.stderr.decode()


def test_exposure():
    require_tool("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        for name in UNITS:
            said = command("systemd-analyze", "security", "--no-pager", "--offline=true",
                           "--threshold=%d" % (EXPOSURE * 10), installed(folder, name))
            print(said.stdout.decode().strip().splitlines()[-1])


def test_no_privileges():
    for name in UNITS:
        unit = parse(name)
        assert unit["CapabilityBoundingSet"] == [""] and unit["AmbientCapabilities"] == [""], name
        assert unit["User"] == [name]
    pager = parse("uffd-pager")
    assert pager["KillMode"] == ["process"] and pager["RuntimeDirectoryPreserve"] == ["yes"]


def test_users():
    require_tool("systemd-sysusers")
    with tempfile.TemporaryDirectory() as root:
        os.mkdir(os.path.join(root, "etc"))
        files = [os.path.join(ROOT, "packaging", name + ".sysusers") for name in UNITS]
        command("systemd-sysusers", "--root=" + root, *files)
        with open(os.path.join(root, "etc/passwd")) as file:
            users = {line.split(":")[0]: line.strip().split(":") for line in file}
        with open(os.path.join(root, "etc/group")) as file:
            groups = {line.split(":")[0]: line.strip().split(":")[3].split(",") for line in file}
    for name in UNITS:
        assert users[name][6].endswith("nologin"), users[name]
        for group in parse(name)["SupplementaryGroups"][0].split():
            assert name in groups[group], (name, group, groups)


if __name__ == "__main__":
    main(globals())
