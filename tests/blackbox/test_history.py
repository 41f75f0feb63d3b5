"""The history of pages, against what the feed told: random changes, pages of answers, starts, a damaged index."""
import os
import random
import time
import unittest

from harness import Case, Host, Vm

PAGES, ROUNDS = 256, 300
OF_ALL = ("vm.lifecycle", "vm.created", "slot.added", "slot.deleted", "quarantine.added")


class History(Case):
    def setUp(self):
        super().setUp()
        self.seed = random.randrange(1 << 32)
        self.random = random.Random(self.seed)
        self.host = Host(self.admin)
        self.vms = [Vm(self.host, slots=[{"slot": 0, "base_gfn": 0, "pages": PAGES}], state="secure", arch=arch)
                    for arch in ("pef", "pef")]

    def change(self, rounds):
        """Batches of items of one run and of several."""
        for _ in range(rounds):
            items = []
            for _ in range(self.random.randrange(1, 9)):
                vm, op = self.random.choice(self.vms), self.random.choice(("share", "unshare"))
                gfn = self.random.randrange(PAGES)
                if self.random.randrange(3):
                    items.append(vm.item(op, gfn, self.random.randrange(1, 1 + min(PAGES - gfn, 1 << self.random.randrange(9)))))
                else:
                    items.append({"vm": vm.id, "op": op, "gfns": sorted(self.random.sample(range(PAGES), 20))})
            self.accepted(self.host.send(*items))

    def told(self):
        events, after = [], 0
        while True:
            page = self.admin.get(f"/v1/events?after={after}&limit=1000")
            if not page["items"]:
                return events
            events += page["items"]
            after = page["next"]

    @staticmethod
    def touches(event, vm, gfn, count):
        if event["type"] in OF_ALL:
            return vm.id in (event.get("vm"), *event.get("vms", ()))
        if not event["type"].startswith("gfn.") or event["vm"] != vm.id:
            return False
        runs = event.get("runs") or [[event["gfn"], event["count"]]]
        return any(run[0] < gfn + count and gfn < run[0] + run[1] for run in runs)

    def compare(self, rounds=12):
        events = self.told()
        for _ in range(rounds):
            vm, gfn = self.random.choice(self.vms), self.random.randrange(PAGES)
            count = self.random.choice((1, 1, 3, PAGES - gfn))
            limit = self.random.choice((1, 7, 100, 1000))
            want = [e["revision"] for e in reversed(events) if self.touches(e, vm, gfn, count)]
            found = self.admin.items(f"{vm.path}/history?gfn={gfn}&count={count}&limit={limit}")
            with self.subTest(seed=self.seed, gfn=gfn, count=count, limit=limit):
                self.assertEqual([e["revision"] for e in found], want)
                for event in found:
                    if event["type"].startswith("gfn."):
                        self.assertTrue(self.touches(event, vm, gfn, count), event)

    def test_it_is_what_the_feed_told(self):
        self.change(ROUNDS)
        self.compare()
        self.server.crash()
        self.admin.close()
        self.compare()
        self.change(20)
        self.compare()

    def test_a_lost_or_damaged_index_changes_no_answer(self):
        self.change(60)
        path = os.path.join(self.server.data, "history.db")
        for damage in (lambda: os.unlink(path), lambda: self.scribble(path)):
            self.server.stop()
            self.admin.close()
            damage()
            self.server.start()
            self.compare()

    @staticmethod
    def scribble(path):
        with open(path, "wb") as f:
            f.write(b"no database at all" * 1000)

    def test_metrics_tell_how_far_it_is(self):
        self.change(1)
        end, line = time.monotonic() + 60, None
        while line != "pagewarden_history_lag_revisions 0" and time.monotonic() < end:
            line = [x for x in self.admin.get("/metrics").raw.decode().splitlines()
                    if x.startswith("pagewarden_history_lag_revisions ")][0]
        self.assertEqual(line, "pagewarden_history_lag_revisions 0")


if __name__ == "__main__":
    unittest.main()
