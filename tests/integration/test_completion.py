#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# NOT-UNDER: asan tsan (shells have time limits of their own)
"""Bash completes verbs, options, values and the names of guests; make install puts it in place."""

import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import command, main
from fakepagerctl import FakePager
from fakeqmp import UUID, World

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("BUILD", "build")
BIN = os.path.join(ROOT, BUILD, "bin")

# What readline does: the line, the cursor at its end, the words as bash divides them.
HARNESS = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
function=$(complete -p "$3" | grep -o -- '-F [^ ]*')
"${function#-F }" "$4" "${2##* }" "" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""

for program in "split-migrate", "uffd-pager", "subhost-server":
    if not os.path.exists(os.path.join(BIN, program)):
        print("SKIP: %s is not built" % program)
        sys.exit(77)


def complete(line, script="split-migrate/split-migrate.bash", cwd=ROOT):
    name = line.split()[0]
    out = subprocess.run(["bash", "-c", HARNESS, "bash", os.path.join(ROOT, script), line, name, os.path.join(BIN, name)],
                         check=True, capture_output=True, text=True, cwd=cwd, timeout=60).stdout
    return out.split()


def expect(line, *words, **more):
    found = complete(line, **more)
    assert sorted(found) == sorted(words), (line, found)


def test_verbs_and_options():
    verbs = complete("split-migrate ")
    assert {"migrate", "dommemstat", "help"} <= set(verbs) and "self-test" not in verbs, verbs
    expect("split-migrate dis", "disable")
    expect("split-migrate -q subhost-", "subhost-drain", "subhost-list", "subhost-info")
    expect("split-migrate --con", "--connect")
    expect("split-migrate -d in", "info")
    expect("split-migrate -c qemu:///system pages --s", "--svg")
    expect("split-migrate help setb", "setbudget")
    expect("split-migrate nonsense ")
    assert "--auto-converge" in complete("split-migrate migrate --live --")


def test_values():
    with tempfile.TemporaryDirectory() as folder:
        for name in "big.ini", "big.txt", "other":
            with open(os.path.join(folder, name), "w"):
                pass
        expect("split-migrate plan --policy bi", "big.ini", "big.txt", cwd=folder)
    expect("split-migrate status --pager u", "unix:")
    # Of what bash takes for a word of its own only the rest is completed.
    expect("split-migrate subhost-info subhost:", "//")
    expect("split-migrate migrate g1 qemu+t", "qemu+tls://")


def test_guests():
    with World() as world:
        pager = FakePager(world, "pager")
        for verb in "pages", "setbudget", "status":
            expect("split-migrate -c test:///nothing %s --pager unix:%s %s" % (verb, pager.path, UUID[:4]), UUID)
        expect("split-migrate setbudget --pager unix:%s %s 1" % (pager.path, UUID))


def test_daemons():
    for line in "uffd-pager --run", "subhost-server --mem":
        expect(line, {"u": "--run-dir", "s": "--memory"}[line[0]], script="common/daemons.bash")


def test_installed():
    with tempfile.TemporaryDirectory() as folder:
        command("make", "-C", ROOT, "install", "B=" + BUILD, "DESTDIR=" + folder, "PREFIX=/usr")
        for name in "split-migrate", "uffd-pager", "subhost-server":
            path = os.path.join(folder, "usr/share/bash-completion/completions", name)
            assert complete(name + " --verb" if name != "split-migrate" else "split-migrate to",
                            script=path) in (["--verbose"], ["top"]), path
        assert os.path.exists(os.path.join(folder, "usr/share/man/man5/split-migrate-policy.5"))
        assert os.path.exists(os.path.join(folder, "usr/share/doc/split-migrate/sample.policy"))


if __name__ == "__main__":
    main(globals())
