# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive a redis-server: kv_client.py SOCKET zipf|shift KEYS OPERATIONS

Fills KEYS values, then reads (nine of ten) and writes them.  zipf: exponent 0.99, the same keys popular
throughout.  shift: nine of ten operations go to a twentieth of the keys, which moves on by half of itself
eight times.  Seeded, so the same operations each time.
"""

import bisect
import itertools
import random
import socket
import sys

BATCH = 16


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def replies(file, n):
    for _ in range(n):
        line = file.readline()
        if line.startswith(b"$") and int(line[1:]) >= 0:
            file.read(int(line[1:]) + 2)
        elif not line or line.startswith(b"-"):
            raise SystemExit("kv_client.py: redis says %r" % line)


def run(sock, commands):
    file = sock.makefile("rb")
    commands = iter(commands)
    while batch := list(itertools.islice(commands, BATCH)):
        sock.sendall(b"".join(batch))
        replies(file, len(batch))


def choices(mode, n_keys, n_operations):
    order = list(range(n_keys))
    random.shuffle(order)
    if mode == "zipf":
        sums = list(itertools.accumulate((rank + 1) ** -0.99 for rank in range(n_keys)))
        for _ in range(n_operations):
            yield order[min(bisect.bisect(sums, random.random() * sums[-1]), n_keys - 1)]
        return
    hot = n_keys // 20
    for i in range(n_operations):
        first = i * 8 // n_operations * hot // 2
        far = random.random() < 0.1
        yield order[random.randrange(n_keys) if far else (first + random.randrange(hot)) % n_keys]


def main():
    path, mode, n_keys, n_operations = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    random.seed(7)
    key = lambda i: b"user:%08d" % i
    value = lambda: random.randbytes(random.randrange(200, 1000))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        run(sock, (command(b"SET", key(i), value()) for i in range(n_keys)))
        run(sock, (command(b"SET", key(i), value()) if random.random() < 0.1 else command(b"GET", key(i))
                   for i in choices(mode, n_keys, n_operations)))
        sock.sendall(command(b"SHUTDOWN", b"NOSAVE"))
        sock.recv(64)


main()
