# SPDX-License-Identifier: GPL-2.0-or-later
"""What breaks during a move ends it with one sentence that says what broke, and in no other way."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from moverkit import (BEGUN, FAILED, FINISH, FINISHED, HOT, MAGIC, PAGE, PROGRESS, REMOTE, RUNS,
                      TICKET, VERSION, ZERO, Failure, Lab, Mover, Nbd, fill, random_partition,
                      run_tests)

SIZES = {"pc.ram": 32 << 20, "a.rom": 300 << 10}


def expect(condition, text):
    if not condition:
        raise Failure(text)


class Moving:
    """A lab with random contents that is closed whatever happens."""

    def __init__(self, hot=0.5, seed=1, contents="random", sizes=None, **options):
        self.args = (hot, seed, contents, sizes or SIZES, options)

    def __enter__(self):
        hot, seed, contents, sizes, options = self.args
        rng = random.Random(seed)
        self.lab = Lab(sizes, **options)
        fill(self.lab.source, rng, contents)
        self.lab.partition = random_partition(self.lab.source, rng, len(self.lab.subhosts), hot)
        return self.lab

    def __exit__(self, *_):
        code = self.lab.close()
        expect(code in (0, 1, 3), "the mover exited with %d" % code)


def everything(lab, number=1):
    lab.mover.hand_over(lab.source, list(lab.source.pages()), number)


def expect_failed(lab, *words):
    status, reason = lab.mover.expect(FAILED)
    expect(status != 0 and all(word in reason for word in words), "the reason is %d: %s" % (status, reason))
    expect("\n" not in reason and len(reason) < 200, "the reason is not one sentence: " + reason)
    # It goes on answering until the worker closes.
    status, again = lab.mover.finish()
    expect(status != 0 and again == reason, "MIG_FINISHED says %d: %s" % (status, again))


def test_subhost_full():
    with Moving(hot=0, n_subhosts=2, sub_limits=[4 << 20, 1 << 30]) as lab:
        lab.begin(lab.partition)
        everything(lab)
        expect_failed(lab, "sub-host 'sub0'", "full")


def test_subhost_killed():
    with Moving(hot=0, n_subhosts=2) as lab:
        lab.begin(lab.partition, bandwidth=16 << 20)
        everything(lab)
        time.sleep(0.3)
        lab.subhosts[1].kill()
        expect_failed(lab, "sub-host 'sub1'")


def test_idle_subhost_killed():
    with Moving(n_subhosts=1) as lab:
        lab.begin(lab.partition)
        lab.subhosts[0].kill()
        expect_failed(lab, "sub-host 'sub0'")


def test_main_killed():
    with Moving() as lab:
        lab.begin(lab.partition, bandwidth=16 << 20)
        everything(lab)
        time.sleep(0.3)
        lab.receiver.process.kill()
        lab.receiver.process.wait()
        expect_failed(lab, "main host")


def test_main_killed_before_finish():
    with Moving() as lab:
        lab.begin(lab.partition)
        everything(lab)
        lab.mover.drain()
        lab.receiver.process.kill()
        lab.receiver.process.wait()
        expect_failed(lab, "main host")


def test_nobody_at_subhost():
    with Moving() as lab:
        listener = socket.create_server(("127.0.0.1", 0))
        lab.configs[0]["data"] = "tcp:127.0.0.1:%d" % listener.getsockname()[1]
        listener.close()
        status, reason = lab.configure(lab.partition)
        expect(status == 111 and "sub-host 'sub0'" in reason, "MIG_BEGUN says %d: %s" % (status, reason))


def test_wrong_ticket():
    with Moving() as lab:
        lab.configs[0]["export"] = lab.uuid + ".wrong"
        status, reason = lab.configure(lab.partition)
        expect(status == 2 and "sub-host 'sub0'" in reason, "MIG_BEGUN says %d: %s" % (status, reason))


def test_nobody_at_main():
    with Moving() as lab:
        lab.receiver.process.kill()
        lab.receiver.process.wait()
        status, reason = lab.configure(lab.partition)
        expect(status == 111 and "main host" in reason, "MIG_BEGUN says %d: %s" % (status, reason))


def test_wrong_main_ticket():
    with Moving() as lab:
        lab.receiver.export = lab.uuid + ".wrong"
        lab.begin(lab.partition)
        everything(lab)
        expect_failed(lab, "main host")


def test_stalled_subhost_does_not_block():
    """A sub-host that stops reading stops only its own pages, and neither progress nor the end."""
    with Moving(n_subhosts=1) as lab:
        lab.begin(lab.partition)
        lab.subhosts[0].process.send_signal(signal.SIGSTOP)
        try:
            everything(lab)
            hot = sum(512 for chunk in lab.partition if chunk & HOT)
            while lab.mover.progress[0] < hot - 512:
                lab.mover.recv()  # which has a time limit
        finally:
            lab.subhosts[0].process.send_signal(signal.SIGCONT)
        lab.check(lab.finish())


def test_map_refused():
    with Moving() as lab:
        lab.begin(lab.partition)
        everything(lab)
        lab.receiver.tell("refuse 5")
        status, reason = lab.mover.finish()
        expect(status == 5 and "main host" in reason, "MIG_FINISHED says %d: %s" % (status, reason))


def test_bad_frames():
    rng = random.Random(3)
    runs = struct.pack("<IIIIQQ", 1, 1, 0, 0, 0, 1)
    frames = [
        (rng.randbytes(64), "garbage"),
        (struct.pack("<IHHII", MAGIC, VERSION + 1, RUNS, 0, 0), "another version"),
        (struct.pack("<IHHII", MAGIC, VERSION, RUNS, 1 << 20, 0), "too long"),
        (struct.pack("<IHHII", MAGIC, VERSION, 999, 0, 0), "no such type"),
        (struct.pack("<IHHII", MAGIC, VERSION, RUNS, 8, 0) + struct.pack("<II", 1, 5), "runs cut off"),
        (struct.pack("<IHHII", MAGIC, VERSION, PROGRESS, 24, 0) + bytes(24), "not for the mover"),
    ]
    bad_runs = [
        (struct.pack("<IIIIQQ", 1, 1, 9, 0, 0, 1), "no such block"),
        (struct.pack("<IIIIQQ", 1, 1, 0, 0, 1 << 40, 1), "page beyond the end"),
        (struct.pack("<IIIIQQ", 1, 1, 0, 0, 1, 1 << 60), "count beyond the end"),
        (struct.pack("<IIIIQQ", 1, 1, 0, 0, (1 << 64) - 1, 2), "sum wraps"),
        (struct.pack("<IIIIQQ", 1, 1, 0, 0, 0, 0), "empty run"),
    ]
    frames += [(struct.pack("<IHHII", MAGIC, VERSION, RUNS, len(body), 0) + body, what)
               for body, what in bad_runs]
    for frame, what in frames:
        with Moving(contents="zero", sizes={"a": 4 << 20, "b": 4 << 20}) as lab:
            lab.begin(lab.partition)
            lab.mover.send(RUNS, runs)
            lab.mover.sock.sendall(frame)
            status, reason = lab.mover.expect(FAILED)
            expect(status != 0 and reason, what)
        mover = Mover()
        mover.sock.sendall(frame)
        mover.expect(BEGUN)
        expect(mover.close() == 1, what)


def test_round_goes_back():
    with Moving(contents="zero") as lab:
        lab.begin(lab.partition)
        lab.mover.hand_over(lab.source, [1], 5)
        lab.mover.hand_over(lab.source, [1], 4)
        expect_failed(lab, "round 4")


def test_fault_injection():
    for fault, rounds in (("mover-exit-round-1", 1), ("mover-exit-round-2", 2), ("mover-exit-finish", 2)):
        with Moving(env={"SPLIT_MIGRATE_FAULT": fault}) as lab:
            lab.begin(lab.partition)
            try:
                for number in range(1, rounds + 1):
                    everything(lab, number)
                    if number < rounds:
                        lab.mover.drain()
                lab.mover.finish()
                raise Failure("%s: the mover lives" % fault)
            except (ConnectionError, BrokenPipeError):
                pass
            expect(lab.mover.process.wait(20) == 3, fault)


def test_stall():
    with Moving(env={"SPLIT_MIGRATE_FAULT": "mover-stall-round-1"}) as lab:
        lab.begin(lab.partition)
        everything(lab)
        time.sleep(0.5)
        done = lab.mover.read_totals()[1]
        time.sleep(0.5)
        expect(lab.mover.read_totals()[1] == done < lab.source.n_pages, "it does not stall")
        expect(lab.mover.process.poll() is None, "it ended")


def test_ends_with_its_socket():
    with Moving() as lab:
        lab.begin(lab.partition, bandwidth=4 << 20)
        everything(lab)
        time.sleep(0.2)
        start = time.monotonic()
        lab.mover.close()
        expect(time.monotonic() - start < 20, "it took its time")


def test_hostile_receiver_clients():
    with Moving(sizes={"a": (4 << 20) + PAGE, "b": 2 << 20}, receiver_budget=16 * PAGE) as lab:
        data, export = lab.receiver.data, lab.receiver.export
        for name in (lab.uuid, lab.uuid + ".", lab.uuid + ".0123456789abcdeg", export + "/", export + "/map/map",
                     export + "x", "", "\0" * 4000):
            try:
                Nbd(data, name)
                raise Failure("%r opened" % name)
            except (Failure, ConnectionError) as error:
                if "opened" in str(error):
                    raise
        ram = Nbd(data, export)
        gap = (4 << 20) + PAGE
        expect(ram.write(gap, b"x") == 22 and ram.write(gap - PAGE, b"x" * 2 * PAGE) == 22, "gaps take data")
        expect(ram.trim(0, 8 << 20) == 0, "trimming everything")
        expect(ram.write(0, b"x" * 17 * PAGE) == 28, "17 pages fit in 16")
        expect(not lab.target.resident(), "a refused write left pages")
        expect(ram.write(100, b"x" * 15 * PAGE) == 0 and ram.write(0, b"y") == 0, "16 pages do not fit")
        expect(ram.write(16 * PAGE, b"x") == 28, "the 17th page fits")
        expect(ram.trim(0, PAGE) == 0 and ram.write(16 * PAGE, b"z") == 0, "a trimmed page's room is lost")
        expect(ram.read(16 * PAGE, 2) == b"z\0" and ram.read(0, PAGE) == ZERO, "wrong bytes")
        expect(ram.read(gap, PAGE) == ZERO, "the gap is not zero")
        expect(len(lab.target.resident()) == 16, "reading made pages")

        states = Nbd(data, export + "/map")
        n_pages, n_chunks = lab.source.n_pages, lab.source.n_chunks
        expect(states.size == n_pages + 2 * n_chunks, "the map's size")
        bad = [(0, b"\x03", "state 3"), (0, b"\xff", "state 255"), (0, b"\x01", "LOCAL, never came"),
               (gap // PAGE, b"\x02", "REMOTE in a gap"), (n_pages - 1, b"\x01", "LOCAL at the end")]
        for offset, byte, what in bad:
            expect(states.write(offset, byte) == 0, "write")
            expect(states.flush() == 22, what)
            expect(states.write(offset, b"\0") == 0, "write")
        expect(states.write(n_pages, b"\x01") == 0 and states.write(3, b"\x02") == 0, "write")
        expect(states.flush() == 22, "sub-host 1 of 1")
        expect(states.write(n_pages, b"\x00") == 0 and states.flush() == 0, "the good map")
        lab.receiver.page_map()
        # Pages 1 to 16 were not in the map, or not LOCAL.
        expect(not lab.target.resident(), "stale pages are left")
        expect(ram.write(0, b"late") == 1 and ram.trim(0, PAGE) == 1, "the guest's memory can still be changed")
        expect(states.flush() == 0, "a second flush")


def test_nbd_tools_read_the_ram():
    """An NBD client that is not ours sees the guest's memory, holes included."""
    with Moving(contents="sparse", hot=1.0) as lab:
        lab.begin(lab.partition)
        everything(lab)
        lab.mover.drain()
        address = lab.receiver.data.split(":", 1)[1]
        path = os.path.join(lab.dir, "copy")
        try:
            subprocess.run(["nbdcopy", "nbd://%s/%s" % (address, lab.receiver.export), path], check=True)
        except FileNotFoundError:
            return
        with open(path, "rb") as copy:
            for page in lab.source.pages():
                expect(os.pread(copy.fileno(), PAGE, page * PAGE) == lab.source.read(page), "page %d" % page)
        lab.check(lab.finish())


if __name__ == "__main__":
    run_tests([test_subhost_full, test_subhost_killed, test_idle_subhost_killed, test_main_killed,
               test_main_killed_before_finish, test_nobody_at_subhost, test_wrong_ticket, test_nobody_at_main,
               test_wrong_main_ticket, test_stalled_subhost_does_not_block, test_map_refused, test_bad_frames,
               test_round_goes_back, test_fault_injection, test_stall, test_ends_with_its_socket,
               test_hostile_receiver_clients, test_nbd_tools_read_the_ram])
