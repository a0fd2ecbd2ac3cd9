# SPDX-License-Identifier: GPL-2.0-or-later
"""The mover against real sub-hosts and the receiver: every page in exactly one place."""

import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from moverkit import (CHUNK_PAGES, HOT, LOCAL, PAGE, REMOTE, UNTOUCHED, ZERO, Failure, Lab, fill,
                      random_partition, run_tests)

SIZES = {"pc.ram": 40 << 20, "a.rom": 300 << 10, "z.vram": (4 << 20) + 12288}


def expect(condition, text):
    if not condition:
        raise Failure(text)


def test_hot_pages_of_cold_chunks():
    rng = random.Random(9)
    lab = Lab(SIZES, 2)
    try:
        fill(lab.source, rng, "mixed")
        pages = list(lab.source.pages())
        hot = {page for page in pages if rng.random() < 0.3 and lab.source.read(page) != ZERO}
        lab.begin(random_partition(lab.source, rng, 2, 0), hot=hot)
        lab.mover.hand_over(lab.source, pages, 1)
        page_map = lab.finish()
        lab.mover.drain()
        lab.check(page_map)
        local = {page for page in pages if page_map[0][page] == LOCAL}
        expect(local == hot, "%d pages on the main host, %d are hot" % (len(local), len(hot)))
    finally:
        lab.close()


def move(kind, n_subhosts, seed, rounds=0, hot=0.5, budget=None, **options):
    rng = random.Random(seed)
    lab = Lab(SIZES, n_subhosts, budget)
    try:
        fill(lab.source, rng, kind)
        lab.begin(random_partition(lab.source, rng, n_subhosts, hot), **options)
        pages = list(lab.source.pages())
        lab.mover.hand_over(lab.source, pages, 1)
        for number in range(2, 2 + rounds):
            if number % 2:
                lab.mover.drain()
            changed = sorted(rng.sample(pages, len(pages) // 5))
            for page in changed:
                what = rng.random()
                if what < 0.25:
                    lab.source.write(page, ZERO)
                elif what < 0.4:
                    lab.source.punch(page)
                else:
                    lab.source.write(page, rng.randbytes(PAGE))
            lab.mover.hand_over(lab.source, changed, number)
        page_map = lab.finish()
        lab.mover.drain()
        counts = lab.check(page_map)
        totals = lab.mover.read_totals()
        expect(totals[0] == 1 + rounds, "%d rounds" % totals[0])
        expect(totals[1] == lab.mover.handed, "%d pages done" % totals[1])
        if not rounds:
            expect(totals[4] == counts[LOCAL] * PAGE, "bytes to the main host")
            expect(sum(totals[5:]) == counts[REMOTE] * PAGE, "bytes to sub-hosts")
        if budget is not None:
            expect(counts[LOCAL] * PAGE <= budget, "main holds %d pages" % counts[LOCAL])
        marked = [chunk for chunk, byte in enumerate(page_map[2]) if byte & 0x80]
        expect(bool(marked) == (rounds > 0), "history says %d hot chunks" % len(marked))
        return counts
    finally:
        code = lab.close()
        expect(code == 0, "the mover exited with %d" % code)


def test_random_one_subhost():
    counts = move("random", 1, 1)
    expect(counts[LOCAL] and counts[REMOTE], "both places are used")


def test_sparse_two_subhosts():
    move("sparse", 2, 2)


def test_mixed_five_subhosts():
    move("mixed", 5, 3)


def test_zero():
    counts = move("zero", 1, 4)
    expect(counts[LOCAL] == counts[REMOTE] == 0, "zero pages were sent")


def test_rounds():
    for seed in range(5, 8):
        move("mixed", 2, seed, rounds=5)


def test_rounds_five_subhosts_one_connection():
    move("mixed", 5, 9, rounds=4, connections=1)


def test_rounds_many_connections():
    move("sparse", 2, 10, rounds=4, connections=8)


def test_budget_smaller_than_hot_pages():
    counts = move("random", 2, 11, rounds=3, hot=1.0, budget=10 << 20)
    expect(counts[LOCAL] > 0 and counts[REMOTE] > counts[LOCAL], "the rest went to sub-hosts")


def test_budget_zero():
    counts = move("random", 1, 12, rounds=2, hot=1.0, budget=0)
    expect(counts[LOCAL] == 0, "main got pages")


def test_main_full_before_its_budget():
    """The receiver holds less than the mover was told: the rest goes to the sub-host."""
    rng = random.Random(13)
    lab = Lab(SIZES, 1, receiver_budget=5 << 20)
    try:
        fill(lab.source, rng, "random")
        lab.begin(bytes([HOT]) * lab.source.n_chunks)
        pages = list(lab.source.pages())
        lab.mover.hand_over(lab.source, pages, 1)
        lab.mover.drain()
        for page in pages[::3]:
            lab.source.write(page, rng.randbytes(PAGE))
        lab.mover.hand_over(lab.source, pages[::3], 2)
        counts = lab.check(lab.finish())
        expect(0 < counts[LOCAL] <= (5 << 20) // PAGE, "main holds %d pages" % counts[LOCAL])
    finally:
        lab.close()


def test_stale_pages_are_punched():
    """What QEMU wrote on the main host before the guest came is not part of the guest."""
    rng = random.Random(14)
    lab = Lab(SIZES, 1)
    try:
        fill(lab.source, rng, "sparse")
        for page in lab.target.pages():
            if page % 7 == 0:
                lab.target.write(page, b"stale" * 800)
        lab.begin(random_partition(lab.source, rng, 1))
        lab.mover.hand_over(lab.source, list(lab.source.pages()), 1)
        lab.check(lab.finish())
    finally:
        lab.close()


def test_main_arrives_late():
    """MIG_BEGUN does not wait for the main host's QEMU; pages do."""
    rng = random.Random(15)
    lab = Lab(SIZES, 1, layout=False)
    try:
        fill(lab.source, rng, "sparse")
        lab.begin(random_partition(lab.source, rng, 1))
        lab.mover.hand_over(lab.source, list(lab.source.pages()), 1)
        lab.receiver.tell("layout")
        lab.check(lab.finish())
    finally:
        lab.close()


def test_compressed():
    for seed, how in enumerate(("lz4", "zstd", "adaptive")):
        for kind in ("text", "mixed"):
            move(kind, 2, 20 + seed, rounds=3, compress=how)


def test_compressed_is_less():
    """On the wire; and what does not become less goes as it is."""
    sent = {}
    for kind in ("text", "random"):
        for how in ("none", "lz4", "zstd"):
            rng = random.Random(30)
            lab = Lab({"pc.ram": 8 << 20}, 1)
            try:
                fill(lab.source, rng, kind)
                lab.begin(random_partition(lab.source, rng, 1), compress=how)
                lab.mover.hand_over(lab.source, list(lab.source.pages()), 1)
                lab.check(lab.finish())
                sent[kind, how] = lab.mover.read_totals()[3]
            finally:
                lab.close()
    for how in ("lz4", "zstd"):
        expect(sent["text", how] * 10 < sent["text", "none"], "text: %s" % sent)
        expect((8 << 20) < sent["random", how] < sent["random", "none"] * 1.01, "random bytes: %s" % sent)


def test_compress_unknown():
    lab = Lab({"pc.ram": 4 << 20}, 1)
    try:
        status, reason = lab.configure(bytes(lab.source.n_chunks), compress="gzip")
        expect(status and reason == "'compress' must be none, lz4, zstd or adaptive, and not 'gzip'", reason)
    finally:
        lab.close()


def guest_writes_all_the_time(**options):
    rng = random.Random(17)
    lab = Lab(SIZES, 2)
    try:
        fill(lab.source, rng, "mixed")
        lab.begin(random_partition(lab.source, rng, 2), **options)
        pages = list(lab.source.pages())
        dirty, stop = [set()], threading.Event()

        def write():
            own = random.Random(18)
            contents = [own.randbytes(PAGE) for _ in range(16)] + [ZERO] * 6
            while not stop.is_set():
                page = own.choice(pages)
                lab.source.write(page, own.choice(contents))
                dirty[0].add(page)

        guest = threading.Thread(target=write)
        guest.start()
        lab.mover.hand_over(lab.source, pages, 1)
        for number in range(2, 12):
            time.sleep(0.05)
            taken, dirty[0] = dirty[0], set()
            time.sleep(0.001)  # a writer that is between its write and its mark has marked `taken`
            lab.mover.hand_over(lab.source, sorted(taken), number)
        stop.set()
        guest.join()
        lab.mover.hand_over(lab.source, sorted(dirty[0] | taken), 12)
        page_map = lab.finish()
        lab.mover.drain()
        lab.check(page_map)
    finally:
        lab.close()


def test_guest_writes_all_the_time():
    """As a live guest does: what changes after a page was handed over is handed over again."""
    guest_writes_all_the_time()


def test_guest_writes_while_it_is_compressed():
    for how in ("lz4", "zstd"):
        guest_writes_all_the_time(compress=how)


def test_bandwidth_limit():
    rng = random.Random(16)
    lab = Lab({"pc.ram": 8 << 20}, 1)
    try:
        fill(lab.source, rng, "random")
        lab.begin(random_partition(lab.source, rng, 1), bandwidth=8 << 20)
        start = time.monotonic()
        lab.mover.hand_over(lab.source, list(lab.source.pages()), 1)
        lab.mover.drain()
        took = time.monotonic() - start
        expect(took > 0.8, "8 MiB at 8 MiB/s took %.2f s" % took)
        lab.check(lab.finish())
    finally:
        lab.close()


if __name__ == "__main__":
    run_tests([test_hot_pages_of_cold_chunks, test_random_one_subhost, test_sparse_two_subhosts, test_mixed_five_subhosts, test_zero,
               test_rounds, test_rounds_five_subhosts_one_connection, test_rounds_many_connections,
               test_budget_smaller_than_hot_pages, test_budget_zero, test_main_full_before_its_budget,
               test_stale_pages_are_punched, test_main_arrives_late,
               test_guest_writes_all_the_time, test_guest_writes_while_it_is_compressed, test_compressed,
               test_compressed_is_less, test_compress_unknown, test_bandwidth_limit])
