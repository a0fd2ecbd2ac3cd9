#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# TEST-TIMEOUT: 180
"""migrate --abort-on-error: a guest whose disk fails in mid-move stays at the source.

The guest is a boot sector that fills some memory and reads its disk for ever; the disk is an NBD server's, which both hosts
reach and which fails when it is told to.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from testbed import *  # noqa: F401,F403,E402

RAM, DISK_PORT = 64 * MIB, 10900
UUID = "1b4e28ba-2fa1-4d1a-8c5e-0242ac130003"

# xor ax,ax; mov es,ax; mov ds,ax; mov ss,ax; mov sp,0x7000
# fill: mov ah,0x87; mov cx,0x8000; mov si,0x7d00; int 0x15; inc byte [0x7d1c]; jnz fill
# again: mov ax,0x0201; mov cx,2; mov dx,0x80; mov bx,0x8000; int 0x13; jmp again
CODE = bytes.fromhex("31c0 8ec0 8ed8 8ed0 bc0070 b487 b90080 be007d cd15 fe061c7d 75f0 "
                     "b80102 b90200 ba8000 bb0080 cd13 ebf0")
# At 0x7d00, what int 0x15 copies: 64 KiB of the BIOS to 1 MiB, which the code moves on until 16 MiB.
TABLE = bytes.fromhex("0000000000000000 0000000000000000 ffff00000f930000 ffff000010930000 "
                      "0000000000000000 0000000000000000")
BOOT = (CODE.ljust(256, b"\0") + TABLE).ljust(510, b"\0") + b"\x55\xaa"

XML = """<domain type='qemu'>
  <name>reader</name>
  <uuid>%s</uuid>
  <memory unit='MiB'>%d</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <emulator>%s</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' error_policy='stop' rerror_policy='stop'/>
      <source protocol='nbd'><host name='%s' port='%d'/></source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def serve_disk(bed):
    os.makedirs(bed.source.path("/run/disk"))
    with open(bed.source.path("/run/disk/image"), "wb") as file:
        file.write(BOOT + b"\x11" * 512)
        file.truncate(1 * MIB)
    bed.source.daemon("nbdkit", ["nbdkit", "-f", "-i", bed.source.address, "-p", str(DISK_PORT), "--filter=error",
                                 "-P", "/run/disk/pid", "file", "/run/disk/image", "error=EIO",
                                 "error-pread-rate=100%", "error-file=/run/disk/fail"])
    wait_until("the disk is served", 20, lambda: os.path.exists(bed.source.path("/run/disk/pid")))


def state(host, *more):
    return host.run("virsh", "-q", "-c", "qemu:///system", "domstate", "reader", *more)[1].split("\n")[0]


def reads(bed):
    for line in bed.source.virsh("domblkstat", "reader", "vda").splitlines():
        if "rd_req" in line:
            return int(line.split()[-1])
    raise Failure("no statistics of the disk")


def test(bed):
    serve_disk(bed)
    bed.source.write("/run/guest/reader.xml", XML % (UUID, RAM // MIB, PLAIN_QEMU, bed.source.address, DISK_PORT))
    bed.source.virsh("define", "/run/guest/reader.xml")
    status, _, err = bed.run("enable", "reader")
    if status:
        raise Failure("enable: " + err)
    bed.source.virsh("start", "reader")
    wait_until("it reads its disk", 60, lambda: reads(bed) > 100, 0.1)

    process = bed.command("migrate", "--live", "--profile", "0", "--abort-on-error", "--bandwidth", "1", "--timeout",
                          "60", "--policy", bed.policy(16 * MIB), "reader", bed.main.uri)

    def under_way():
        if process.poll() is not None:
            raise Failure("the move ended early: %s" % (process.communicate(),))
        guest = bed.source.pager_call("query-guest", uuid=UUID)
        return guest["state"] == "sending" and bed.source.pager_call("outgoing-status", uuid=UUID)["wire_bytes"]
    wait_until("memory is under way", 60, under_way, 0.1)
    with open(bed.source.path("/run/disk/fail"), "w"):
        pass
    out, err = process.communicate(timeout=60)
    print("ended with %d: %s" % (process.returncode, err.strip()))
    if process.returncode != 1 or err.count("\n") != 1 or "I/O error" not in err:
        raise Failure("ended with %d: %s%s" % (process.returncode, out, err))
    where = lambda: (state(bed.source, "--reason"), state(bed.main))
    try:
        wait_until("it is at the source alone", 20, lambda: where() == ("paused (I/O error)", ""), 0.1)
    except Failure as failure:
        raise Failure("%s: at the source and the destination it is %s" % (failure, where())) from None
    for host in bed.subhosts:
        wait_until("%s is empty" % host.name, 20, lambda h=host: not h.regions(), 0.1)
    wait_until("the main host is free of it", 20, lambda: not bed.main.guests(), 0.1)

    # The operator mends the disk, and the guest goes on where it was.
    os.unlink(bed.source.path("/run/disk/fail"))
    bed.source.virsh("resume", "reader")
    before = reads(bed)
    wait_until("it reads its disk again", 30, lambda: reads(bed) > before + 100, 0.1)


main(test)
