#!/usr/bin/env python3
"""One table of limits: what --print-limits, --help, --print-config and docs/limits.md say is the same."""
import configparser
import pathlib
import re
import subprocess
import unittest

from harness import PAGEWARDEND

ROOT = pathlib.Path(__file__).resolve().parents[2]


def says(flag):
    return subprocess.run([PAGEWARDEND, flag], capture_output=True, text=True, check=True).stdout


class Limits(unittest.TestCase):
    def limits(self):
        rows = [[c.strip() for c in line.strip("|\n").split("|")] for line in says("--print-limits").splitlines()[2:]]
        self.assertGreater(len(rows), 5)
        return [(name.strip("`").removeprefix("--"), default, unit, what) for name, default, _, unit, what in rows]

    def test_the_page_of_limits_is_what_the_server_prints(self):
        text = (ROOT / "docs/limits.md").read_text()
        table = text[text.index("| limit |"):]
        self.assertEqual(table, says("--print-limits"), "docs/limits.md is behind: make limits")

    def test_help_and_configuration_know_every_limit(self):
        config = configparser.ConfigParser()
        config.read_string(says("--print-config"))
        helps = re.sub(r"\s+", " ", says("--help"))
        for name, default, unit, what in self.limits():
            with self.subTest(name=name):
                self.assertIn(name, config["pagewardend"])
                self.assertIn(f"--{name} ", helps)
                self.assertIn(f"{what} (default {default})", helps)
                self.assertTrue(unit)


if __name__ == "__main__":
    unittest.main()
