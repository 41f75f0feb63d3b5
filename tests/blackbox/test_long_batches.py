"""Batches that take long: others have their turns between the items, a crash in the middle is gone on from, and what an answer
tells of refusals has a bound."""
import concurrent.futures
import threading
import unittest

from harness import Case, Client, Host, Server, Vm

ITEMS = 20000


class LongBatches(unittest.TestCase):
    def setUp(self):
        self.server = Server("--writer-ms", "1")
        self.addCleanup(self.server.close)
        self.admin = self.server.client()

    def big(self):
        host = Host(self.admin)
        token = self.admin.post("/v1/tokens", {"role": "agent", "host": host.id, "name": "big"})["secret"]
        return host, token, Vm(host, [{"slot": 0, "base_gfn": 0, "pages": 1 << 16}], state="transient")

    def send_later(self, host, token, body, **more):
        answer = []

        def send():
            client = Client(self.server.port, token)
            try:
                answer.append(client.post(host.path + "/transitions", body, **more))
            except OSError:
                pass
            client.close()
        thread = threading.Thread(target=send)
        thread.start()
        self.addCleanup(thread.join)
        return thread, answer

    def claims(self, host, vm, pfn=0):
        return {"boot_id": host.boot, "epoch": host.epoch,
                "items": [{"vm": vm.id, "op": "page_in", "gfn": i, "count": 1, "frame": {"pool": "local", "pfn": pfn + (i ^ 1)}}
                          for i in range(ITEMS)]}

    def test_others_have_turns_between_the_items_of_a_batch(self):
        (host, token, vm), quiet = self.big(), Host(self.admin)
        other = Vm(quiet, state="transient")
        thread, answer = self.send_later(host, token, self.claims(host, vm))
        revisions = []
        while thread.is_alive():
            revisions.append(quiet.send(other.item("share"), other.item("unshare"))["revision"])
        self.assertEqual((answer[0].status, answer[0]["accepted"]), (200, ITEMS), answer)
        first = self.admin.get(f"/v1/events?after=0&host={host.id}&limit=1000")["items"]
        first = next(e["revision"] for e in first if e["type"] == "gfn.page_in")
        self.assertTrue([r for r in revisions if first < r < answer[0]["revision"]], "nobody came between")
        own = answer[0]["first"], answer[0]["revision"]
        self.assertFalse([r for r in revisions if own[0] <= r <= own[1]], "what it calls its own is its own")

    def crash_between(self, send):
        """The batch is sent, the server killed when some of it is durable and not all, and the batch sent again."""
        for attempt in range(10):
            host, token, vm = self.big()
            body = self.claims(host, vm)
            thread, _ = send(host, token, body, attempt)
            bound = 0
            while thread.is_alive() and not bound:
                bound = self.admin.get(host.path)["frames_bound"]
            self.server.crash()
            thread.join()
            self.admin = self.server.client()
            kept = self.admin.get(host.path)["frames_bound"]
            self.assertGreaterEqual(kept, bound)
            thread, answer = send(host, token, body, attempt)
            thread.join()
            self.assertEqual((answer[0].status, answer[0]["accepted"], answer[0]["rejected"]), (200, ITEMS, 0), str(answer)[:300])
            self.assertEqual(len(answer[0]["results"]), ITEMS)
            again, same = send(host, token, body, attempt)
            again.join()
            self.assertEqual(same[0].raw, answer[0].raw, "and its answer is kept")
            self.assertEqual(self.admin.get(host.path)["frames_bound"], ITEMS)
            if 0 < kept < ITEMS:
                return
        self.fail("the batch was never caught in the middle")

    def test_a_numbered_batch_goes_on_after_a_crash(self):
        self.crash_between(lambda host, token, body, n: self.send_later(host, token, dict(body, batch_seq=n + 1)))

    def test_a_batch_with_a_key_goes_on_after_a_crash(self):
        self.crash_between(lambda host, token, body, n: self.send_later(host, token, body, headers={"Idempotency-Key": f"k{n}"}))

    def sent_twice_at_once(self, **more):
        host, token, vm = self.big()
        body = dict(self.claims(host, vm), **more.pop("body", {}))
        sent = [self.send_later(host, token, body, **more) for _ in range(3)]
        for thread, _ in sent:
            thread.join()
        answers = [answer[0] for _, answer in sent]
        self.assertEqual([(a.status, a["accepted"], a["rejected"]) for a in answers], [(200, ITEMS, 0)] * 3, str(answers)[:300])
        self.assertEqual(len({a.raw for a in answers}), 1, "one batch has one answer")

    def test_a_numbered_batch_may_be_on_its_way_twice(self):
        self.sent_twice_at_once(body={"batch_seq": 1})

    def test_a_batch_with_a_key_may_be_on_its_way_twice(self):
        self.sent_twice_at_once(headers={"Idempotency-Key": "twice"})


class Refusals(Case):
    def test_the_problems_of_one_answer_have_a_bound(self):
        host = Host(self.admin)
        vm, thief = Vm(host, state="transient"), Vm(host, state="transient")
        self.assertEqual(host.send(*[vm.item("page_in", 2 * (64 - i), pfn=1000 + i) for i in range(64)])["rejected"], 0)
        n = 2000
        for more in ({}, {"batch_seq": 1}):
            answer = host.send(*[thief.item("page_in", 0, 64, pfn=1000)] * n, **more)
            self.assertEqual((answer.status, answer["rejected"], len(answer["results"])), (200, n, n))
            problems = [result["problem"] for result in answer["results"] if not result["ok"]]
            self.assertEqual({(p["type"], p["status"]) for p in problems}, {("/problems/frame-conflict", 409)})
            self.assertEqual(sum(len(p.get("conflicts", ())) for p in problems), 16)
            self.assertEqual({p["conflict_frames"] for p in problems if "detail" in p}, {64})
            self.assertEqual(answer["problems_omitted"], sum("detail" not in p for p in problems))
            self.assertLess(len(answer.raw), (66 << 10) + n * 100)
            if more:
                self.assertEqual(host.send(*[thief.item("page_in", 0, 64, pfn=1000)] * n, **more).raw, answer.raw)

    def test_a_large_change_of_an_atomic_batch_that_is_refused_leaves_nothing_in_the_feed(self):
        runs = [[2 * i, 1] for i in range(1000)]

        def send(refused):
            client = self.server.client()
            host = Host(client)
            vm = Vm(host, state="transient")
            large = [{"vm": vm.id, "op": op, "runs": runs} for op in ("share", "unshare")]
            for _ in range(5):
                if refused:
                    self.assertEqual(host.send(*large, vm.item("share", 4096), atomic=True).status, 409)
                else:
                    self.assertEqual(host.send(*[vm.item("share"), vm.item("unshare")] * 100, *large)["accepted"], 202)
            client.close()

        start = self.admin.get("/v1/summary")["revision"]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(send, i % 2) for i in range(8)]:
                done.result()
        seen = 0
        while events := (answer := self.admin.get(f"/v1/events?after={start}&limit=1000"))["items"]:
            self.assertEqual([e["revision"] for e in events], list(range(start + 1, answer["next"] + 1)))
            seen += sum(e["type"] in ("gfn.share", "gfn.unshare") for e in events)
            start = answer["next"]
        self.assertEqual(seen, 4 * 5 * 202)


if __name__ == "__main__":
    unittest.main()
