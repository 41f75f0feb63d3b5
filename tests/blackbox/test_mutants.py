"""A sample of the mutants of all tables: tests notice each. `make mutants` runs them all."""
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest

from harness import BUILD

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SAMPLE = 12


def mutants(*options, jobs=2):
    command = [sys.executable, os.path.join("tests", "mutants.py"), "--build", os.path.abspath(BUILD), "--jobs", str(jobs)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


class Mutants(unittest.TestCase):
    def test_a_random_sample_is_caught(self):
        seed = os.environ.get("SEED", str(random.randrange(1 << 32)))
        code, output = mutants("--sample", str(SAMPLE), "--seed", seed, jobs=os.cpu_count())
        self.assertEqual(code, 0, output)
        self.assertRegex(output, rf"(?m)^all +\d+ +{SAMPLE} +{SAMPLE} +0 ")
        self.assertIn(f"seed {seed}\n", output)

    def test_a_mutant_that_nothing_notices_is_shown_and_fails(self):
        """A refused move's next state is read by nobody; here it is not listed as an equivalent."""
        with tempfile.NamedTemporaryFile("w", suffix=".equivalent") as none:
            code, output = mutants("--only", "lifecycle.vm_edges[VM_SECURE][VM_START].*", "--equivalent", none.name)
        self.assertEqual(code, 1, output)
        self.assertRegex(output, r"(?m)^survived: lifecycle\.vm_edges\[VM_SECURE\]\[VM_START\]\.next 0 -> \d$")
        self.assertRegex(output, r"(?m)^all +\d+ +2 +1 +1 ")

    def test_every_kind_of_table_is_seen(self):
        """Static or shared between files, an array or a struct, of structs or of numbers."""
        code, output = mutants("--list")
        self.assertEqual(code, 0, output)
        for field in ("snp_fw_checks.init_checks[0].status", "snp_swap.fw_swap_in_checks[0].status", "pef_law.pef_law.rest",
                      "pef_law.ops[0].next", "cca_tables.cells[CCA_TABLE]", "snp_tables.command_ids"):
            self.assertIn(f"\n{field}", "\n" + output)

    def test_equivalents_give_a_reason(self):
        for line in ("lifecycle.*\n", "lifecycle.* when kind: x\n", "lifecycle.* when kind=REFUSE:\n"):
            with self.subTest(line=line), tempfile.NamedTemporaryFile("w", suffix=".equivalent") as f:
                f.write(line)
                f.flush()
                code, output = mutants("--list", "--equivalent", f.name)
                self.assertEqual(code, 1)
                self.assertTrue(re.search("not understood: lifecycle", output), output)


if __name__ == "__main__":
    unittest.main()
