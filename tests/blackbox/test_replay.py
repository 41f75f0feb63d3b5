"""pagewarden replay: recorded scenarios against the models. It needs no server."""
import glob
import json
import os
import re
import subprocess
import tempfile
import unittest

from harness import BUILD

PAGEWARDEN = os.path.join(BUILD, "pagewarden")
TRACES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "traces")
WRONG, NOT_UNDERSTOOD = 1, 2
PKVM = os.path.join(TRACES, "pkvm", "selftest-1-48.jsonl")
PEF = os.path.join(TRACES, "pef", "launch.jsonl")


class Replay(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="pagewarden-replay-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.env = dict(os.environ, PAGEWARDEN_URL="http://127.0.0.1:1")

    def replay(self, *files, code=0):
        done = subprocess.run([PAGEWARDEN, "replay", *files], env=self.env, capture_output=True, text=True, timeout=240)
        self.assertEqual(done.returncode, code, (files, done.stdout[-2000:], done.stderr))
        return done

    def edited(self, path, line, change):
        """A copy of a trace whose 1-based line went through `change`."""
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(text) for text in f]
        change(lines[line - 1])
        name = os.path.join(self.folder, f"{self.id()}-{len(os.listdir(self.folder))}.jsonl")
        with open(name, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(one) + "\n" for one in lines)
        return name

    def test_every_recorded_scenario_is_reproduced(self):
        files = sorted(glob.glob(os.path.join(TRACES, "*", "*.jsonl")))
        last = self.replay(*files).stdout.splitlines()[-1]
        match = re.fullmatch(r"(\d+) files, (\d+) steps, 0 wrong", last)
        self.assertTrue(match, last)
        self.assertEqual(int(match[1]), len(files))
        self.assertGreater(int(match[2]), 441)

    def test_each_format_alone(self):
        for folder in sorted(os.listdir(TRACES)):
            files = sorted(glob.glob(os.path.join(TRACES, folder, "*.jsonl")))
            if files:
                with self.subTest(folder=folder):
                    self.assertIn(f"{len(files)} files, ", self.replay(*files).stdout)

    def test_a_step_that_differs_is_printed_and_counted(self):
        name = self.edited(PKVM, 3, lambda step: step.update(ret=0))
        lines = self.replay(name, PEF, code=WRONG).stdout.splitlines()
        self.assertEqual(lines[0], f"{name}:3: ret")
        self.assertEqual(lines[1].split(), ["expected", "0"])
        self.assertEqual(lines[2].split(), ["got", '"-EPERM"'])
        self.assertIn('"op":"HSH"', lines[3])
        self.assertRegex(lines[-1], r"^2 files, \d+ steps, 1 wrong$")

    def test_what_post_mentions_is_compared(self):
        def pins(step):
            step["post"]["pages"]["p0"]["pins"] = 3

        self.assertIn(":5: post", self.replay(self.edited(PKVM, 5, pins), code=WRONG).stdout)
        done = self.replay(self.edited(PEF, 2, lambda step: step["post"].update(pool_used=7)), code=WRONG)
        self.assertIn('"pool_used":7', done.stdout)

    def test_what_is_not_understood_names_file_and_line(self):
        def key(step):
            step["post"]["colour"] = "red"

        cases = [(PKVM, 1, lambda h: h.update(format="pkvm-trace/9")), (PKVM, 1, lambda h: h.update(colour="red")),
                 (PKVM, 4, lambda s: s.update(op="HXX")), (PKVM, 4, lambda s: s["args"].update(colour="red")),
                 (PKVM, 4, key), (PEF, 2, key), (PEF, 3, lambda s: s.update(op="H_SVM_DANCE")), (PKVM, 6, lambda s: s.pop("ret"))]
        for path, line, change in cases:
            with self.subTest(path=path, line=line):
                name = self.edited(path, line, change)
                done = self.replay(name, code=NOT_UNDERSTOOD)
                self.assertIn(f"pagewarden: {name}:{line}: ", done.stderr)
                self.assertRegex(done.stdout.splitlines()[-1], rf"^1 files, {max(line - 2, 0)} steps, 0 wrong$")

    def test_no_json_no_file_no_header(self):
        name = os.path.join(self.folder, "x.jsonl")
        for text, where in (("", "empty"), ("nonsense\n", ":1: "), ("[]\n", ":1: "), ('{"type":"final"}\n', ":1: ")):
            with self.subTest(text=text):
                with open(name, "w", encoding="utf-8") as f:
                    f.write(text)
                self.assertIn(where, self.replay(name, code=NOT_UNDERSTOOD).stderr)
        self.assertIn("nowhere", self.replay(os.path.join(self.folder, "nowhere"), code=NOT_UNDERSTOOD).stderr)

    def test_the_other_files_are_run_all_the_same(self):
        bad = self.edited(PKVM, 1, lambda h: h.update(format="x/1"))
        wrong = self.edited(PKVM, 3, lambda step: step.update(ret=0))
        done = self.replay(bad, wrong, PKVM, code=NOT_UNDERSTOOD)
        self.assertEqual(done.stdout.splitlines()[-1], "3 files, 96 steps, 1 wrong")

    def test_help_and_completion_know_it(self):
        self.assertTrue(self.replay(code=2).stderr.startswith("pagewarden: usage: pagewarden replay FILE..."))
        text = subprocess.run([PAGEWARDEN, "help"], capture_output=True, text=True, timeout=60, check=True).stdout
        self.assertIn("replay", text)
        script = subprocess.run([PAGEWARDEN, "completion", "bash"], capture_output=True, text=True, timeout=60,
                                check=True).stdout
        with open(os.path.join(self.folder, "scenario.jsonl"), "w", encoding="utf-8"):
            pass
        ask = script + '\nCOMP_WORDS=(pagewarden replay scen); COMP_CWORD=2; _pagewarden; echo "${COMPREPLY[@]}"\n' \
                       'COMP_WORDS=(pagewarden repl); COMP_CWORD=1; _pagewarden; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60, check=True, cwd=self.folder)
        self.assertEqual(done.stdout.split(), ["scenario.jsonl", "replay"])


if __name__ == "__main__":
    unittest.main()
