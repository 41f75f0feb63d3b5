#!/usr/bin/env python3
"""SOAK_SECONDS (1200) of the model of tests/model, with real agents of all five architectures, and beside it a fleet that must
not grow: its table is printed, and growth of memory, open files, write-ahead logs or disk fails.

SEED repeats the model's run, as far as threads allow; without it each is another. `make soak` calls this.
"""
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "model"), os.path.join(HERE, "blackbox")]
import model  # noqa: E402
import steady  # noqa: E402

ARCHES = ("snp", "tdx", "cca", "pkvm", "pef")


def judge(fleet):
    """0 if the fleet did not grow."""
    fleet.join()
    print(steady.table(fleet.series), flush=True)
    if fleet.error:
        print(f"the steady fleet: {fleet.error}", file=sys.stderr)
        return 1
    for name, (before, after) in steady.grown(fleet.series).items():
        print(f"{name} grew: {before:.1f} in the second quarter, {after:.1f} in the last", file=sys.stderr)
    return 1 if steady.grown(fleet.series) else 0


def main():
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    seconds = int(os.environ.get("SOAK_SECONDS") or 1200)
    fleet = steady.Steady(seconds, ARCHES)
    fleet.start()
    try:
        model.run(seed, sys.maxsize, seconds, ARCHES, played=4, say=lambda text: print(text, flush=True))
    except model.Wrong as error:
        print(error, file=sys.stderr)
        fleet.close()
        return 1
    return judge(fleet)


if __name__ == "__main__":
    sys.exit(main())
