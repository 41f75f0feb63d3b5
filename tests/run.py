#!/usr/bin/env python3
"""Runs test programs (Criterion) and black-box files (unittest) in parallel, shows what failed, and counts.

The last line is `N passed, N failed, N skipped`. A program that crashes, hangs or leaves no report is one failure.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor


def run_unittest(path, report):
    """Runs one black-box file in this process and writes its counts."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=1).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    skipped = len(result.skipped)
    with open(report, "w", encoding="utf-8") as out:
        json.dump({"passed": max(result.testsRun - failed - skipped, 0), "failed": failed, "skipped": skipped,
                   "why_skipped": sorted({why for _, why in result.skipped})}, out)
    return 1 if failed else 0


def read_counts(report):
    """(passed, failed, skipped, reasons) of a report, or None if there is none."""
    try:
        with open(report, encoding="utf-8", errors="replace") as f:
            data = json.load(f, strict=False)
    except (OSError, ValueError):
        return None
    if "test_suites" not in data:
        return data["passed"], data["failed"], data["skipped"], data["why_skipped"]
    tests = [t for s in data["test_suites"] for t in s["tests"]]
    passed = sum(t["status"] == "PASSED" for t in tests)
    skipped = [t for t in tests if t["status"] == "SKIPPED"]
    reasons = sorted({" ".join(t.get("messages", [])) for t in skipped})
    return passed, len(tests) - passed - len(skipped), len(skipped), reasons


def run_one(path, options, folder):
    report = os.path.join(folder, path.replace("/", "_") + ".json")
    if path.endswith(".py"):
        command = [sys.executable, os.path.abspath(__file__), "--one", path, "--report", report]
    else:
        command = [os.path.abspath(path), "--jobs", "1", "--json=" + report, "--color=never", "--ignore-warnings"]
    env = dict(os.environ, LC_ALL="C.UTF-8", PAGEWARDEN_BUILD=os.path.abspath(options.build), PYTHONDONTWRITEBYTECODE="1")
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
                             start_new_session=True)
    try:
        output, _ = child.communicate(timeout=options.timeout)
        ended = f"exit status {child.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        output, _ = child.communicate()
        ended = f"stopped after {options.timeout} s"
    counts = read_counts(report)
    if counts is None:
        counts = (0, 1, 0, [])
    elif child.returncode != 0 and counts[1] == 0:
        counts = (counts[0], 1, counts[2], counts[3])
    return path, counts, ended, output.decode("utf-8", "replace"), time.monotonic() - began


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--build", default="build", help="folder of the programs that black-box tests drive")
    ap.add_argument("--jobs", type=int, default=os.cpu_count())
    ap.add_argument("--timeout", type=int, default=240, help="seconds for each program or file")
    ap.add_argument("--failed-steps", default="", help="names of steps that failed before: one failure each")
    ap.add_argument("--times", action="store_true", help="show how long each took")
    ap.add_argument("--one", help=argparse.SUPPRESS)
    ap.add_argument("--report", help=argparse.SUPPRESS)
    ap.add_argument("tests", nargs="*")
    options = ap.parse_args()
    if options.one:
        return run_unittest(options.one, options.report)

    passed, failed, skipped = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="pagewarden-tests-") as folder, \
            ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        for path, counts, ended, output, seconds in pool.map(lambda p: run_one(p, options, folder), options.tests):
            passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + counts[2]
            if counts[1]:
                print(f"--- {path}: {ended}\n{output.rstrip()}\n", flush=True)
            for why in counts[3]:
                print(f"{path}: skipped: {why}", flush=True)
            if options.times:
                print(f"{seconds:7.1f} s  {path}", flush=True)
    for step in options.failed_steps.split():
        failed += 1
        print(f"--- step failed: {step}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
