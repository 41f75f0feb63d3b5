"""The model of tests/model speaks as everybody at once while everything is killed: 100000 steps, or 180 seconds.

SEED repeats a run (as far as threads allow), MODEL_STEPS and MODEL_SECONDS make it longer or shorter.
"""
import os
import random
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model"))
import model  # noqa: E402


class Everybody(unittest.TestCase):
    def test_the_law_holds_whoever_speaks_and_whatever_dies(self):
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        steps, seconds = int(os.environ.get("MODEL_STEPS", 100000)), int(os.environ.get("MODEL_SECONDS", 180))
        model.run(seed, steps, seconds, say=lambda text: print(f"{self.id()}: {text}", flush=True))


if __name__ == "__main__":
    unittest.main()
