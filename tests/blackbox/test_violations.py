"""Refusals: the same one again is counted with the first, past a host's budget they are counted only, and none fill the disk."""
import os
import time
import unittest

from harness import Case, Host, Vm

BURST = 200


class Repeats(Case):
    flags = ("--violation-burst", str(BURST), "--violation-rate", "1", "--checkpoint-seconds", "1")

    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.vm = Vm(self.host, state="secure")
        self.agent = self.as_token("agent", self.host.id)

    def disk(self):
        files = [os.path.join(self.server.data, f) for f in os.listdir(self.server.data)]
        return sum(os.path.getsize(f) for f in files if f.endswith((".db", "-wal")))

    def mine(self, host=None):
        return self.admin.items(f"/v1/violations?host={(host or self.host).id}")

    def refuse(self, gfns, host=None, vm=None, agent=None):
        answer = (host or self.host).send(*[(vm or self.vm).item("page_out", gfn) for gfn in gfns], client=agent or self.agent)
        self.assertEqual((answer.status, answer["accepted"]), (200, 0), answer)

    def test_the_same_refusal_is_one_violation_with_a_count(self):
        for _ in range(3):
            self.refuse([7] * 5)
        self.refuse([8])
        other, first = self.mine()
        self.assertEqual((first["count"], other["count"]), (15, 1))
        self.assertEqual(first["first"], first["time"])
        self.assertGreaterEqual(first["last"], first["first"])
        self.assertEqual(other["last"], other["first"])
        feed = [e for e in self.admin.items("/v1/events?limit=1000&after=0") if e["type"] == "violation" and e["host"] == self.host.id]
        self.assertEqual([e["revision"] for e in feed], [first["revision"], other["revision"]], "the feed has each once")

    def test_a_count_survives_a_kill_but_for_the_last_second(self):
        self.refuse([7] * 40)
        time.sleep(2.5)  # saved once a second
        self.server.crash()
        self.assertEqual([v["count"] for v in self.mine()], [40])

    def test_a_count_survives_a_stop(self):
        self.refuse([7] * 40)
        self.server.restart()
        self.assertEqual([v["count"] for v in self.mine()], [40])

    def test_past_a_hosts_budget_refusals_are_counted_only(self):
        before = self.admin.get("/v1/summary")
        self.refuse(range(1000))
        n = len(self.mine())
        self.assertGreaterEqual(n, BURST)
        self.assertLess(n, 2 * BURST)
        after = self.admin.get("/v1/summary")
        member = "violations_not_stored_last_hour"
        self.assertEqual(after[member] - before[member], 1000 - n)
        honest = Host(self.admin)
        self.refuse([1, 2, 3], honest, Vm(honest, state="secure"), self.as_token("agent", honest.id))
        self.assertEqual(len(self.mine(honest)), 3, "the budget is the host's own")

    def test_a_flood_costs_little_disk(self):
        before = self.disk()
        for i in range(10):
            self.refuse([7] * 2000)
            self.refuse(range(i * 2000, i * 2000 + 2000))
        self.assertLess(self.disk() - before, 1 << 20)
        metrics = self.admin.get("/metrics").raw.decode()
        self.assertIn("pagewarden_violation_repeats_total ", metrics)
        self.assertIn("pagewarden_violations_not_stored_total ", metrics)
        self.assertIn('pagewarden_wal_bytes{file="journal.db"} ', metrics)


if __name__ == "__main__":
    unittest.main()
