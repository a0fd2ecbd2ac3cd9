#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Record the traces of this folder again: programs of Debian, run by qemu-user with the plugin pagetrace.c.
#
#   record.sh [NAME...]      all of them, or some: see the functions below
#   OUT=DIR record.sh ...    write them elsewhere (default: this folder)
#
# Needs (Debian 12): qemu-user gcc g++ redis-server sqlite3 python3-networkx python3-pandas xz-utils python3.  One to ten
# minutes each.  The inputs are seeded; addresses, and so pages, may differ a little from run to run.

set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$here}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 -shared -fPIC -pthread -o "$work/pagetrace.so" "$here/pagetrace.c"

# traced NAME OPTIONS PROGRAM ARGS...    OPTIONS are the plugin's
traced() {
    local name=$1 options=$2
    shift 2
    qemu-x86_64 -plugin "$work/pagetrace.so,out=$work/$name.trace,$options" "$@"
}

kv() {
    local mode=$1 keys=$2 operations=$3
    traced "kv-$mode" window=512 "$(command -v redis-server)" --port 0 --unixsocket "$work/redis.sock" \
        --save '' --appendonly no --dir "$work" >"$work/redis.log" &
    local pid=$!
    until [ -S "$work/redis.sock" ]; do sleep 0.2; done
    python3 "$here/kv_client.py" "$work/redis.sock" "$mode" "$keys" "$operations"
    wait "$pid"
}

kv_zipf() { kv zipf 120000 60000; }

kv_shift() { kv shift 120000 60000; }

# Reports over all rows between bursts of point queries and updates, most of them of recent orders.
database() {
    python3 - <<'END' >"$work/database.sql"
import random
random.seed(7)
print("create table orders(id integer primary key, customer int, cents int, note text);")
print("with recursive n(i) as (values(1) union all select i + 1 from n where i < 300000)"
      " insert into orders select i, abs(i * 7919 % 20011), i % 1000, hex(zeroblob(90)) from n;")
print("create index by_customer on orders(customer);")
for _ in range(6):
    print("select sum(cents), sum(length(note)) from orders;")
    for _ in range(6000):
        row = 300000 - int(random.paretovariate(0.5)) % 300000
        if random.random() < 0.1:
            print("update orders set cents = cents + 1 where id = %d;" % row)
        elif random.random() < 0.1:
            print("select count(cents), max(cents) from orders where customer = %d;" % (row % 20011))
        else:
            print("select cents, note from orders where id = %d;" % row)
END
    traced database window=256 "$(command -v sqlite3)" :memory: <"$work/database.sql" >"$work/database.out"
}

# A small world: breadth-first search from several places, then components.
graph() {
    traced graph window=512,events=1600000 /usr/bin/python3 - <<'END'
import random
import networkx
random.seed(7)
graph = networkx.watts_strogatz_graph(40000, 10, 0.03, seed=7)
for start in random.sample(range(40000), 4):
    print(sum(1 for _ in networkx.bfs_edges(graph, start)))
print(networkx.number_connected_components(graph))
END
}

sort_lines() {
    python3 -c '
import random
random.seed(7)
for _ in range(600000):
    print("%016x" % random.getrandbits(64), "item", "x" * random.randrange(60))' >"$work/lines"
    traced sort window=2048 "$(command -v sort)" --parallel=1 -S 500M "$work/lines" -o "$work/sorted"
}

# Two tables joined by hashing, then grouped and sorted.
join() {
    traced join window=512,events=1300000 /usr/bin/python3 - <<'END'
import numpy
import pandas
r = numpy.random.default_rng(7)
orders = pandas.DataFrame({"customer": r.zipf(1.3, 150000) % 60000, "cents": r.integers(0, 10000, 150000)})
customers = pandas.DataFrame({"customer": r.permutation(60000), "region": r.integers(0, 50, 60000)})
joined = orders.merge(customers, on="customer")
print(joined.groupby("region").cents.sum().nlargest(3).to_dict())
print(joined.sort_values(["cents", "customer"]).customer.iloc[1000])
END
}

compiler() {
    cat >"$work/heavy.cc" <<'END'
#include <algorithm>
#include <array>
#include <map>
#include <regex>
#include <unordered_map>
#include <variant>
template <int N> struct box {
    std::map<int, std::array<char, N>> m;
    std::unordered_map<std::string, std::vector<box<N - 1>>> u;
    std::variant<int, std::string, std::map<std::string, std::array<int, N>>> v;
    size_t walk(const std::string &s) {
        std::regex r(s);
        size_t n = std::regex_search(s, r);
        m[N] = {};
        for (auto &x : u[s]) n += x.walk(s);
        std::vector<std::pair<std::string, std::array<int, N>>> w;
        std::sort(w.begin(), w.end());
        std::visit([&](auto &) { n++; }, v);
        return n + w.size();
    }
};
template <> struct box<0> { size_t walk(const std::string &) { return 0; } };
int main(int argc, char **argv) { return (int)box<2>().walk(argv[argc - 1]); }
END
    g++ -std=c++17 -E "$work/heavy.cc" -o "$work/heavy.ii"
    traced compiler window=4096 "$(gcc -print-prog-name=cc1plus)" -fpreprocessed -quiet -O1 -std=c++17 \
        "$work/heavy.ii" -o "$work/heavy.s"
}

record() {
    case $1 in
    kv-zipf) kv_zipf ;;
    kv-shift) kv_shift ;;
    sort) sort_lines ;;
    database | graph | join | compiler) "$1" ;;
    *)
        echo "record.sh: no trace '$1'; one of kv-zipf kv-shift database graph sort join compiler" >&2
        exit 2
        ;;
    esac
    xz -9 -c "$work/$1.trace" >"$out/$1.trace.xz"
    ls -l "$out/$1.trace.xz"
}

[ $# -gt 0 ] || set -- kv-zipf kv-shift database graph sort join compiler
for name; do
    record "$name"
done
