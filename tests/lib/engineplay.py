# SPDX-License-Identifier: GPL-2.0-or-later
"""Run tests/tools/engineplay (a guest and an engine) against sub-hosts, and talk to it."""

import json
import os
import queue
import subprocess
import threading
import time

from checks import SLOWNESS, eventually
from subhost import BUILD, PAGE

ENGINEPLAY = os.path.join(BUILD, "tests", "tools", "engineplay")
NAME = "11111111-2222-3333-4444-555555555555"


def with_region(subhost, size, limit=None, reserve=0, name=NAME, **more):
    """Make the guest's region on a sub-host; return the control connection that keeps it."""
    control = subhost.control()
    control.call("region-create", name=name, size=size, reserve=reserve, limit=limit or size, **more)
    return control


class EnginePlay:
    """Options become --name=value; addresses are the sub-hosts' data addresses, or pairs of data and control."""

    def __init__(self, addresses, start=True, name=NAME, **options):
        words = [ENGINEPLAY]
        for address in addresses:
            data, control = address if isinstance(address, tuple) else (address, None)
            words += ["--subhost", "%s,%s%s" % (data, name, "," + control if control else "")]
        for name, value in options.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            for one in values:
                words += ["--" + name.replace("_", "-"), str(one)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.events = []
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._answer(self.patience) == "ready"
        if start:
            self.start()

    def _read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            if "event" in message:
                message["event"]["time"] = time.monotonic()
                self.events.append(message["event"])
            else:
                self.answers.put(message["return"])
        self.answers.put(None)

    def _answer(self, seconds):
        answer = self.answers.get(timeout=seconds)
        assert answer is not None, "engineplay ended: %s" % self.process.wait(5)
        return answer

    patience = 60  # seconds an answer may take

    def __call__(self, *words, seconds=None):
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        return self._answer(seconds or self.patience)

    def start(self):
        answer = self("engine")
        assert answer["err"] == 0, answer

    def play(self, seconds):
        """Let the guest run for a while; return the statistics."""
        self("go")
        time.sleep(seconds)
        self("halt")
        return self("stats")

    def play_until(self, condition, what, seconds=20):
        """Let the guest run until condition(what the engine counts) holds; return the statistics."""
        seen = {}

        def holds():
            seen.update(self("stats"))
            return condition(seen["engine"])
        self("go")
        try:
            eventually(holds, what, seconds)
        except AssertionError as error:
            raise AssertionError("%s: %s" % (error, seen)) from None
        self("halt")
        return self("stats")

    def within(self, stats, limit):
        """Residents stay below the limit; or the operator is told, as when no page can leave for a second."""
        assert stats["resident_max"] <= limit or self.event("OVER_BUDGET"), stats

    def event(self, name):
        return [e for e in self.events if e["name"] == name]

    def still_pages(self):
        """Where the pages of a halted guest are, once page-out has come to its end."""
        deadline = time.monotonic() + 10 + SLOWNESS
        last, pages = None, self("pages")
        while pages["busy"] or pages != last:
            assert time.monotonic() < deadline, pages
            time.sleep(0.1)
            last, pages = pages, self("pages")
        return pages

    def check(self):
        """All that the guest can see must be right."""
        self("halt")
        self("verify")
        stats = self("stats")
        assert stats["errors"] == 0, stats
        # Page-out may go on for a moment, so figures that are taken one after the other may disagree at first.
        deadline = time.monotonic() + 10 + SLOWNESS
        while True:
            stats, pages = self("stats"), self("pages")
            counted = stats["engine"].get("resident_counted", stats["resident"])
            agree = counted == stats["resident"] == (pages["local"] + pages["clean"]) * PAGE
            if "resident_counted" not in stats["engine"] or agree and not pages["busy"]:
                return stats
            assert time.monotonic() < deadline, (pages, stats)
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.process.stdin.close()
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
