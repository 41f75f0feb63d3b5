"""What `make soak` judges by: figures that grow are told, those that stay or fill up early are not; and its fleet runs."""
import os
import random
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model"))
import steady  # noqa: E402

SAMPLES = 400


def series(**changed):
    """A flat run with some noise, in which some figures go otherwise: name=f(sample)."""
    rng = random.Random(7)
    made = {name: [50 + rng.uniform(-2, 2) for _ in range(SAMPLES)] for name in steady.FIGURES}
    for name, of in changed.items():
        name = name.replace("_", " ")
        made[name] = [value + of(i) for i, value in enumerate(made[name])]
    return made


class Judge(unittest.TestCase):
    def test_noise_is_flat(self):
        self.assertEqual(steady.grown(series()), {})

    def test_each_figure_that_grows_is_told(self):
        for name in steady.FIGURES:
            with self.subTest(name):
                found = steady.grown(series(**{name.replace(" ", "_"): lambda i: i / SAMPLES * 60}))
                self.assertEqual(list(found), [name])
                self.assertLess(*found[name])

    def test_what_fills_up_in_the_first_quarter_is_flat(self):
        self.assertEqual(steady.grown(series(disk_MiB=lambda i: min(i, SAMPLES // 4 - 1))), {})

    def test_a_step_in_the_second_half_is_growth(self):
        self.assertEqual(list(steady.grown(series(server_files=lambda i: 20 * (i > SAMPLES * 0.6)))), ["server files"])

    def test_peaks_that_come_and_go_are_flat(self):
        self.assertEqual(steady.grown(series(WAL_MiB=lambda i: i % 40 * 2)), {})

    def test_what_shrinks_is_no_growth(self):
        self.assertEqual(steady.grown(series(server_MiB=lambda i: -i / SAMPLES * 40)), {})


class Fleet(unittest.TestCase):
    def test_it_runs_and_all_figures_are_sampled(self):
        run = steady.Steady(4, ("pef", "snp"))
        run.start()
        run.join(120)
        if run.error:
            raise run.error
        self.assertGreater(run.crowd.rounds, 7)
        for name, values in run.series.items():
            self.assertGreater(len(values), 1, name)
            self.assertGreater(max(values), 0, name)
        self.assertEqual(len(steady.table(run.series).splitlines()), 13)


if __name__ == "__main__":
    unittest.main()
