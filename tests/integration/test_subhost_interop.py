#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Other people's NBD clients against our server."""

import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import Skip, command, eventually, main, require_tool
from subhost import MIB, PAGE, Subhost


def sparse_file(folder, name="image", size=64 * MIB):
    """A file with data, holes and odd edges; returns its path."""
    path = os.path.join(folder, name)
    rng = random.Random(20180702)
    with open(path, "wb") as file:
        for at, n in ((0, 3 * MIB), (5 * MIB + 123, 70001), (20 * MIB, 9 * MIB), (size - 5000, 5000)):
            file.seek(at)
            file.write(rng.randbytes(n))
        file.truncate(size)
    return path


def same(a, b):
    command("cmp", a, b)


def test_nbdinfo():
    require_tool("nbdinfo")
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="open", size=64 * MIB)
        control.call("region-create", name="shut", size=64 * MIB, ticket="t1")
        listed = json.loads(command("nbdinfo", "--list", "--json", host.uri("")).stdout)
        assert [e["export-name"] for e in listed["exports"]] == ["open"]
        info = json.loads(command("nbdinfo", "--json", host.uri("shut.t1")).stdout)["exports"][0]
        assert info["export-size"] == 64 * MIB
        assert info["can_multi_conn"] and info["can_trim"] and info["can_zero"] and info["can_flush"]
        assert info["can_df"] and not info["is_read_only"]
        assert (info["block_size_minimum"], info["block_size_preferred"],
                info["block_size_maximum"]) == (1, 4096, 32 * MIB)
        assert info["contexts"] == ["base:allocation"]
        with host.peer("open") as peer:
            peer.write(MIB, b"x" * PAGE)
            peer.zeroes(2 * MIB, PAGE)
        extents = json.loads(command("nbdinfo", "--map", "--json", host.uri("open")).stdout)
        assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
            (0, MIB, 3), (MIB, PAGE, 0), (MIB + PAGE, MIB - PAGE, 3), (2 * MIB, PAGE, 2),
            (2 * MIB + PAGE, 62 * MIB - PAGE, 3)]


def test_nbdcopy_up_and_down():
    require_tool("nbdcopy")
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        up = sparse_file(host.folder)
        for options in ([], ["--connections=4", "--requests=64"], ["--synchronous"]):
            down = os.path.join(host.folder, "down")
            command("nbdcopy", *options, up, host.uri("r"))
            command("nbdcopy", *options, host.uri("r"), down)
            same(up, down)
            os.unlink(down)
        # Holes of the file take no memory here.
        assert control.region("r")["stored"] <= 13 * MIB
        eventually(lambda: control.region("r")["connections"] == 0, "nobody is connected any more")


def test_qemu_img():
    require_tool("qemu-img")
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        up = sparse_file(host.folder)
        command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", up, host.uri("r"))
        command("qemu-img", "compare", "-f", "raw", "-F", "raw", up, host.uri("r"))
        extents = json.loads(command("qemu-img", "map", "--output=json", "-f", "raw",
                                     host.uri("r")).stdout)
        assert sum(e["length"] for e in extents) == 64 * MIB
        assert any(e["zero"] for e in extents) and any(e["data"] for e in extents)


def test_qemu_io():
    require_tool("qemu-io")
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        out = command("qemu-io", "-f", "raw", host.uri("r"),
                      "-c", "read -P 0 0 64M", "-c", "write -P 0x5a 1000 3M", "-c", "read -P 0 0 1000",
                      "-c", "read -P 0x5a 1000 3M", "-c", "write -z 1M 1M", "-c", "read -P 0 1M 1M",
                      "-c", "discard 0 1M", "-c", "read -P 0 0 2M", "-c", "read -P 0x5a 2M 1M",
                      "-c", "aio_write -P 1 8M 1M", "-c", "aio_write -P 2 9M 1M", "-c", "aio_flush",
                      "-c", "read -P 1 8M 1M", "-c", "read -P 2 9M 1M", "-c", "flush")
        assert b"failed" not in out.stdout, out.stdout
        failed = command("qemu-io", "-f", "raw", host.uri("r/strict"), "-c", "read 0 4k", ok=None)
        assert b"Input/output error" in failed.stdout + failed.stderr


def test_fio_verifies():
    require_tool("fio")
    if b"nbd" not in command("fio", "--enghelp").stdout.split():
        raise Skip("fio was built without its nbd engine")
    with Subhost() as host, host.control() as control:
        control.call("region-create", name="r", size=64 * MIB)
        common = ["--ioengine=nbd", "--uri=" + host.uri("r"), "--size=48m", "--verify=crc32c",
                  "--verify_fatal=1", "--output-format=terse", "--group_reporting"]
        command("fio", "--name=pages", "--rw=randwrite", "--bs=4k", "--iodepth=32", *common,
                cwd=host.folder)
        command("fio", "--name=mixed", "--rw=randrw", "--bsrange=512-256k", "--bs_unaligned=0",
                "--iodepth=8", *common, cwd=host.folder)
        status = control.call("stats")
        assert status["errors"] == 0 and status["enospc"] == 0


if __name__ == "__main__":
    main(globals())
