#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# NOT-UNDER: asan tsan (it is about texts)
"""The manual pages, the sample policy and the programs' tables say the same, in both directions."""

import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import command, main, require_tool

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, os.environ.get("BUILD", "build"), "bin")
DAEMONS = {"uffd-pager": "uffd-pager/uffd-pager.8", "subhost-server": "subhost-server/subhost-server.8"}

for name in ["split-migrate"] + list(DAEMONS):
    if not os.path.exists(os.path.join(BIN, name)):
        print("SKIP: %s is not built" % name)
        sys.exit(77)


def run(name, *words):
    return command(os.path.join(BIN, name), *words).stdout.decode()


def tables():
    return json.loads(run("split-migrate", "self-test", "--json"))


def plain(line):
    """A line of a page as it is read: what its macro makes of its words, without fonts."""
    macro = re.match(r"\.(BI|BR|IR|RB|RI|B|I)\s+", line)
    if macro:
        words = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', line[macro.end():])]
        line = ("" if len(macro.group(1)) == 2 else " ").join(words)
    return re.sub(r"\s+", " ", re.sub(r"\\f.|\\\|", "", line.replace("\\-", "-"))).strip()


def mdoc(text):
    """The few macros of mdoc(7) that say what an option is, as man(7) has them."""
    text = re.sub(r"^\.Sh (.*)$", r".SH \1", text, flags=re.M)
    text = re.sub(r"^\.It (Fl Fl .*)$", r".TP\n\1", text, flags=re.M)
    return re.sub(r"\bFl Fl (\w)", r"--\1", text).replace(" Ar ", " ")


class Page:
    """A page's sections, each a list of (sub-section, [heads of tagged paragraphs], text)."""

    def __init__(self, path):
        with open(os.path.join(ROOT, path)) as file:
            self.text = file.read()
        self.text = mdoc(self.text).replace("\\-", "-")
        self.sections = {}
        for section in self.text.split("\n.SH ")[1:]:
            title, _, body = section.partition("\n")
            parts = re.split(r"^\.SS ", body, flags=re.M)
            self.sections[plain(title)] = [("", parts[0])] + [
                (plain(p.partition("\n")[0]), p.partition("\n")[2]) for p in parts[1:]]

    def part(self, section, title=""):
        found = [body for name, body in self.sections[section] if name == title]
        assert len(found) == 1, (section, title, [name for name, _ in self.sections[section]])
        return found[0]

    @staticmethod
    def heads(body):
        return [plain(line) for line in re.findall(r"^\.TP.*\n(.*)$", body, re.M)]

    @staticmethod
    def options(heads):
        """{(letter, name, value in upper case)} of heads such as "-c, --connect URI"."""
        found = []
        for head in heads:
            for letter, name, value in re.findall(r"(?:-(\w), )?--([a-z-]+)(?:[= ]+([A-Za-z]+))?", head):
                found.append((letter, name, value.upper()))
        assert len(found) == len(set(found)), "twice: %s" % sorted(found)
        return set(found)


def of_table(options):
    return {(o["letter"] if "letter" in o else "", o["name"], o["value"] or "") for o in options}


def of_help(text):
    return {("", name, value.upper()) for name, value in re.findall(r"^  --([a-z-]+)[= ]?([A-Z]*)  *\S", text, re.M)}


def same(documented, there, what):
    assert documented == there, "%s: documented and not there: %s; there and not documented: %s" % (
        what, sorted(documented - there), sorted(there - documented))


def test_split_migrate():
    page, data = Page("split-migrate/split-migrate.1"), tables()
    same(page.options(page.heads(page.part("OPTIONS"))), of_table(data["options"]), "OPTIONS")
    verbs = [v for v in data["verbs"] if not v["hidden"]]
    usages = {"%s%s%s" % (v["name"], " [OPTION]..." if v["options"] else "", " " + v["words"] if v["words"] else ""): v
              for v in verbs}
    same({title for title, _ in page.sections["VERBS"] if title}, set(usages), "VERBS")
    for usage, verb in usages.items():
        same(page.options(page.heads(page.part("VERBS", usage))), of_table(verb["options"]), verb["name"])
        shown = run("split-migrate", "help", verb["name"])
        assert shown.startswith("Usage: split-migrate %s\n" % usage), shown
        same({name for _, name, _ in of_help(re.sub(r"^ {6}--", "  --", shown, flags=re.M))},
             {o["name"] for o in verb["options"]}, "help " + verb["name"])
    known = {o["name"] for v in data["verbs"] for o in v["options"]} | {o["name"] for o in data["options"]}
    mentioned = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", page.text))
    assert mentioned <= known, "mentioned and nowhere there: %s" % sorted(mentioned - known)
    synopsis = " ".join(plain(line) for line in page.part("SYNOPSIS").splitlines())
    assert synopsis == "split-migrate [OPTION]... VERB [ARG]...", synopsis


def test_every_verb_that_looks_has_json():
    changes = {"migrate", "enable", "disable", "abort", "setbudget", "subhost-drain", "help"}
    for verb in tables()["verbs"]:
        names = {o["name"] for o in verb["options"]}
        if not verb["hidden"] and verb["name"] not in changes:
            assert "json" in names, verb["name"]
        if verb["words"].startswith("DOMAIN") and verb["name"] not in ("enable", "disable"):
            assert "pager" in names, verb["name"]


def test_daemons():
    for name, path in DAEMONS.items():
        page, there = Page(path), of_help(run(name, "--help"))
        assert len(there) > 8, there
        section = "OPTIONS" if "OPTIONS" in page.sections else "DESCRIPTION"
        same(page.options(page.heads(page.part(section))), there, "%s(8), %s" % (name, section))
        synopsis = page.part("SYNOPSIS")
        found = {("", n, v.upper()) for n, v in re.findall(
            r"--([a-z-]+)[= ]*(?:\\fI)?([A-Za-z]*)", re.sub(r"\n\.\w+ ?", "\n", synopsis))}
        same(found, there, "%s(8), SYNOPSIS" % name)


def policy_keys():
    return {(key["section"], key["name"]) for key in tables()["policy"]}


def sample():
    """{(section, key): value} of the sample, commented out or not; indented ones are alternatives."""
    found, section = {}, None
    with open(os.path.join(ROOT, "split-migrate", "sample.policy")) as file:
        for line in file:
            header = re.match(r"\[(\w+)", line)
            setting = re.match(r"(?:# +)?([a-z-]+) = (.*)$", line)
            section = header.group(1) if header else section
            if setting:
                found.setdefault((section, setting.group(1)), setting.group(2))
    return found


def test_policy():
    page = Page("split-migrate/split-migrate-policy.5")
    documented, defaults = set(), {}
    for title, parts in page.sections.items():
        for sub_title, body in parts:
            section = re.match(r"\[(\w+)", sub_title or title)
            for item in re.split(r"^\.TP.*\n", body, flags=re.M)[1:] if section else []:
                key = section.group(1), plain(item.partition("\n")[0]).split()[0]
                documented.add(key)
                text = " ".join(plain(line) for line in item.splitlines()[1:])
                default = re.search(r"Default is ([^.]*)\.", text)
                defaults[key] = default.group(1) if default else None
    same(documented, policy_keys(), "split-migrate-policy(5)")
    shown = sample()
    same(set(shown), policy_keys(), "the sample")
    for key, value in shown.items():
        if key not in (("main", "budget"), ("subhost", "uri"), ("subhost", "memory")) and key[0] not in (
                "tls", "redundancy"):
            assert value.rstrip() == defaults[key].strip(), (key, value, defaults[key])


def test_the_sample_is_a_good_policy():
    """Also with every key uncommented."""
    with open(os.path.join(ROOT, "split-migrate", "sample.policy")) as file:
        text = file.read()
    for this in text, re.sub(r"^# ?([a-z-]+ = )", r"\1", text, flags=re.M):
        with tempfile.NamedTemporaryFile("w", suffix=".policy") as file:
            file.write(this)
            file.flush()
            failed = command(os.path.join(BIN, "split-migrate"), "plan", "--policy", file.name, "qmp:/nonexistent",
                             ok=False)
            assert failed.stderr.startswith(b"error: source QEMU: "), failed.stderr


def test_pages_have_no_mistakes():
    require_tool("mandoc")
    for path in subprocess.run(["git", "ls-files", "*.1", "*.5", "*.8"], cwd=ROOT, check=True, capture_output=True,
                               text=True).stdout.split() or list(DAEMONS.values()):
        lint = command("mandoc", "-T", "lint", "-W", "warning", os.path.join(ROOT, path), ok=None)
        assert not re.search(rb": (ERROR|UNSUPP): ", lint.stdout), lint.stdout


if __name__ == "__main__":
    main(globals())
