# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the test_* functions of a file: exit 0 if all pass, 77 if all were skipped, 1 otherwise."""

import linecache
import os
import re
import shutil
import subprocess
import sys
import time
import traceback

# Seconds that a machine which is busy with other things may add to any wait: a deadline is there to
# find what hangs, and costs nothing as long as nothing does.
SLOWNESS = 160 if os.environ.get("BUILD", "").endswith("san") else 40


class Skip(Exception):
    """Raised with the reason why a test cannot run here."""


def require_tool(name):
    if not shutil.which(name):
        raise Skip("%s is not installed" % name)


def command(*words, ok=True, **options):
    """Run a command, capture its output; unless ok is None its success must be what ok says."""
    options.setdefault("timeout", 120)
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **options)
    if ok is not None and (done.returncode == 0) != ok:
        raise AssertionError("%s\nexit status %d\n%s\n%s" % (
            " ".join(map(str, words)), done.returncode, done.stdout[-3000:], done.stderr[-3000:]))
    return done


def eventually(condition, what, seconds=10):
    """For facts nobody announces: look until they hold or the time is over, and SLOWNESS with it.

    @what: a string, or a function that tells what there is instead
    """
    end = time.monotonic() + seconds + SLOWNESS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("still not so after %s s: %s" % (seconds + SLOWNESS, what() if callable(what) else what))
        time.sleep(0.01)


def sentence(error):
    """One line for an exception: what it says, or for a bare assertion its line and what its names stood for."""
    frames = list(traceback.walk_tb(error.__traceback__))
    frame, number = next((f for f in reversed(frames) if f[0].f_code.co_filename != __file__), frames[-1])
    place = "%s:%d" % (os.path.basename(frame.f_code.co_filename), number)
    if isinstance(error, AssertionError) and not str(error):
        line = linecache.getline(frame.f_code.co_filename, number).strip()
        names = [name for name in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", line)) if name in frame.f_locals]
        return "; ".join(["%s: %s" % (place, line)] + ["%s = %.120r" % (name, frame.f_locals[name]) for name in names])
    return "%s: %s: %s" % (place, type(error).__name__, " ".join(str(error).split()))


def expect(error, function, *args, **kwargs):
    """Call and return the exception of type error that must come."""
    try:
        function(*args, **kwargs)
    except error as caught:
        return caught
    raise AssertionError("%s did not raise %s" % (function, error))


def main(names):
    """Run all functions of names (a module's globals()) that begin with test_, in order."""
    wanted = sys.argv[1:]
    tests = [(n, f) for n, f in names.items() if n.startswith("test_") and callable(f)]
    failed, skipped = 0, 0
    for name, function in tests:
        if wanted and name not in wanted:
            continue
        try:
            function()
            print("ok      ", name, flush=True)
        except Skip as reason:
            skipped += 1
            print("skipped ", name, "-", reason, flush=True)
        except Exception as error:
            failed += 1
            traceback.print_exc()
            print("FAILED  ", name, "at", sentence(error), flush=True)
    sys.exit(1 if failed else 77 if skipped and skipped == len(tests) else 0)
