#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where slabs go, simulated: random, d = 1, 2, 3 and greedy on 1,000 unequal sub-hosts and 10,000 guests with churn.

Each guest has eight sub-hosts, as its policy names them, and decides alone (uffd-pager/pageout_place.c): of d of
them, drawn at random, it asks the room and takes the one with the most; a full one is left out and the next is
tried.  'random' asks nobody, 'greedy' asks all eight.  All policies see the same guests.  Ours is d = 2, the peer
is random, the floor (the best that can be had without a central node) is greedy.  Rows go to BUILD/bench-placement.json.
"""

import json
import os
import random
import statistics

BUILD = os.environ.get("BUILD", "build")
HOSTS, GUESTS, CHOSEN, ROUNDS = 1000, 10000, 8, 10
CHURN = 0.2  # of the guests, each round
FILL = 0.85  # of all memory, on average
POLICIES = {"random": 0, "d=1": 1, "d=2": 2, "d=3": 3, "greedy": CHOSEN}


def world(seed):
    """Sub-hosts' sizes in slabs (4 to 64 GiB of 64 MiB), and an endless row of guests: its sub-hosts, its slabs."""
    rng = random.Random(seed)
    sizes = [round(64 * 16 ** rng.random()) for _ in range(HOSTS)]
    mean = FILL * sum(sizes) / GUESTS

    def guests():
        while True:
            # Bigger sub-hosts are in more policies.
            hosts = set()
            while len(hosts) < CHOSEN:
                hosts.update(rng.choices(range(HOSTS), weights=sizes, k=CHOSEN - len(hosts)))
            yield sorted(hosts), max(1, round(rng.expovariate(1 / mean)))
    return sizes, guests()


class Pool:
    def __init__(self, choices, seed):
        self.sizes, self.guests = world(seed)
        self.room = list(self.sizes)
        self.choices = choices
        self.rng = random.Random(seed + 1)
        self.slabs = self.refused = self.homeless = self.messages = 0

    def place(self, hosts):
        """One slab: Return where it is, or None."""
        left = list(hosts)
        while left:
            drawn = self.rng.sample(left, min(max(self.choices, 1), len(left)))
            best = max(drawn, key=self.room.__getitem__)
            self.messages += 2 * len(drawn) if self.choices else 0  # a question and an answer
            if self.room[best]:
                self.room[best] -= 1
                return best
            self.refused += 1
            left = [host for host in left if host not in drawn]
        self.homeless += 1
        return None

    def arrive(self):
        hosts, slabs = next(self.guests)
        self.slabs += slabs
        return [self.place(hosts) for _ in range(slabs)]

    def run(self):
        guests = [self.arrive() for _ in range(GUESTS)]
        order = random.Random(7)
        spread, share, fullest = [], [], []
        for _ in range(ROUNDS):
            for at in order.sample(range(GUESTS), int(CHURN * GUESTS)):
                for host in guests[at]:
                    if host is not None:
                        self.room[host] += 1
                guests[at] = self.arrive()
            used = [1 - room / size for room, size in zip(self.room, self.sizes)]
            spread.append(statistics.pstdev(self.room))
            share.append(statistics.pstdev(used))
            fullest.append(sum(u >= 0.999 for u in used) / HOSTS)
        return {"room left, standard deviation": (statistics.mean(spread), "slabs"),
                "share used, standard deviation": (100 * statistics.mean(share), "%"),
                "sub-hosts that are full": (100 * statistics.mean(fullest), "%"),
                "tries refused, of 1000 slabs": (1000 * self.refused / self.slabs, ""),
                "slabs with no room anywhere, of 1000": (1000 * self.homeless / self.slabs, ""),
                "messages a slab": (self.messages / self.slabs, "")}


def main():
    results = {name: Pool(choices, 1).run() for name, choices in POLICIES.items()}
    rows = []
    targets = {"room left, standard deviation": 0.75, "tries refused, of 1000 slabs": 0.5}
    print("%-38s" % "" + "".join("%9s" % name for name in POLICIES))
    for measure in results["d=2"]:
        print("%-38s" % measure + "".join("%9.2f" % results[name][measure][0] for name in POLICIES))
        ours, peer, floor = (results[name][measure][0] for name in ("d=2", "random", "greedy"))
        ratio = ours / peer if peer else None
        target = targets.get(measure)
        rows.append({"name": measure, "ours": ours, "peer": peer, "floor": floor, "unit": results["d=2"][measure][1],
                     "ratio": ratio, "target": target, "met": target is None or ratio <= target,
                     "all": {name: results[name][measure][0] for name in POLICIES}})
    os.makedirs(BUILD, exist_ok=True)
    with open(os.path.join(BUILD, "bench-placement.json"), "w") as file:
        json.dump(rows, file, indent=2)


main()
