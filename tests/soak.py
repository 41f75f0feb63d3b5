#!/usr/bin/env python3
"""The model of tests/model for as long as one likes: SOAK_SECONDS (600), with real agents of all five architectures.

SEED repeats a run, as far as threads allow; without it each is another. `make soak` calls this.
"""
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "model"), os.path.join(HERE, "blackbox")]
import model  # noqa: E402


def main():
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    seconds = int(os.environ.get("SOAK_SECONDS") or 600)
    try:
        model.run(seed, sys.maxsize, seconds, ("snp", "tdx", "cca", "pkvm", "pef"), played=4,
                  say=lambda text: print(text, flush=True))
    except model.Wrong as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
