"""Watching: events, violations, summary, health, metrics."""
import re
import threading
import time
import unittest

from harness import Case, Client, Host, Vm, slug_of


class Events(Case):
    def after(self, revision, query="limit=1000"):
        return self.assert_ok(self.admin.get(f"/v1/events?after={revision}&{query}"))

    def now(self):
        return self.admin.get("/v1/events?after=0&limit=1000")["next"]

    def everything(self):
        found, after = [], 0
        while True:
            page = self.after(after)
            if not page["items"]:
                return found
            found += page["items"]
            after = page["next"]

    def test_every_change_is_there_in_order(self):
        mark = len(self.everything())
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 3, 0), vm.item("share", 10)))
        vm.must("terminate")
        self.assert_ok(self.admin.delete(vm.path), 204)
        events = self.everything()[mark:]
        revisions = [e["revision"] for e in events]
        self.assertEqual(revisions, sorted(revisions))
        for event in events:
            for member in ("revision", "time", "type", "actor"):
                self.assertIn(member, event)
        self.assertTrue([e for e in events if e.get("host") == host.id and "vm" not in e])
        self.assertGreaterEqual(len([e for e in events if e.get("vm") == vm.id]), 6)

    def test_pages_follow_each_other_without_a_gap(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        for gfn in range(10):
            self.accepted(host.send(vm.item("share", gfn)))
        whole = [(e["revision"], e["type"]) for e in self.everything()]
        paged, after = [], 0
        while True:
            page = self.after(after, "limit=3")
            if not page["items"]:
                break
            paged += [(e["revision"], e["type"]) for e in page["items"]]
            after = page["next"]
        self.assertEqual(paged, whole)

    def test_long_poll_wakes_with_the_change(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        mark, got = vm.get()["revision"], []
        reader = self.as_token("viewer")
        mark = max(mark, self.everything()[-1]["revision"])
        waiter = threading.Thread(target=lambda: got.append(reader.get(f"/v1/events?after={mark}&wait=20")))
        began = time.monotonic()
        waiter.start()
        time.sleep(0.3)
        self.accepted(host.send(vm.item("share", 5)))
        waiter.join(25)
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual([e["vm"] for e in got[0]["items"]], [vm.id])

    def test_long_poll_ends_empty(self):
        mark = self.everything()[-1]["revision"] if self.everything() else 0
        began = time.monotonic()
        answer = self.after(mark, "wait=1")
        self.assertEqual(answer["items"], [])
        self.assertGreaterEqual(time.monotonic() - began, 0.9)

    def test_they_are_the_same_after_a_crash(self):
        host = Host(self.admin)
        Vm(host, state="secure")
        before = self.everything()
        self.server.crash()
        self.assertEqual(self.everything()[:len(before)], before)

    def test_a_refusal_changes_no_page_history(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        path = vm.path + "/history?gfn=0"
        before = self.admin.get(path)["items"]
        self.refused(host.send(vm.item("page_out")), "gfn-transition")
        self.assertEqual(self.admin.get(path)["items"], before)

    def test_wrong_queries(self):
        for query in ("after=-1", "after=x", "limit=0", "wait=-1", "wait=x", "odd=1"):
            with self.subTest(query=query):
                self.assert_problem(self.admin.get("/v1/events?" + query), 400, "invalid-request")


class Large(Case):
    """What is large is told in brief to those who follow the feed, whatever they follow it from."""
    MANY = 30000

    def test_an_item_of_many_runs(self):
        host = Host(self.admin)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 4 * self.MANY}], state="secure")
        mark = vm.get()["revision"]
        gfns = [10 + 3 * k for k in range(self.MANY)]
        made = self.accepted(host.send({"vm": vm.id, "op": "share", "gfns": gfns}))["revision"]
        told = self.assert_ok(self.admin.get(f"/v1/events?after={mark}&host={host.id}"))
        self.assertLess(len(told.raw), 4096)
        event = [e for e in told["items"] if e["revision"] == made][0]
        self.assertEqual((event["type"], event["runs_total"], event["bounds"]),
                         ("gfn.share", self.MANY, [10, 3 * self.MANY - 2]))
        self.assertNotIn("runs", event)
        whole = self.assert_ok(self.admin.get(event["link"]))["items"][0]
        self.assertEqual([run[0] for run in whole["runs"]], gfns)
        self.assertEqual(whole["revision"], made)
        found = self.admin.get(f"{vm.path}/history?gfn={gfns[7]}")["items"][0]
        self.assertEqual((found["revision"], found["gfn"], found["count"]), (made, gfns[7], 1))
        self.server.crash()
        self.admin.close()
        again = self.admin.get(f"/v1/events?after={mark}&host={host.id}")["items"]
        self.assertEqual([e for e in again if e["revision"] <= made], told["items"])
        self.assertEqual(vm.page(gfns[-1])[0], "shared")

    def test_an_event_of_many_frames(self):
        host = Host(self.admin)
        frames = [{"pool": "local", "pfn": 2 * k, "count": 1, "reason": "stuck"} for k in range(2000)]
        made = self.assert_ok(self.admin.post(host.path + "/quarantine", dict(host.current(), items=frames)))["revision"]
        event = self.admin.get(f"/v1/events?after={made - 1}&limit=1")["items"][0]
        self.assertEqual((event["type"], event["omitted"]), ("quarantine.added", ["items"]))
        whole = self.admin.get(event["link"])["items"][0]
        self.assertEqual(len(whole["items"]), 2000)
        self.assertEqual({k: v for k, v in whole.items() if k != "items"},
                         {k: v for k, v in event.items() if k not in ("omitted", "link")})

    def test_connections_of_one_token_may_all_follow(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        mark = self.accepted(host.send(vm.item("share", 1)))["revision"]
        reader = self.as_token("viewer")
        got, threads = [], []

        def follow():
            client = self.server.client(reader.token)
            got.append(client.get(f"/v1/events?after={mark}&wait=30"))
            client.close()
        for _ in range(12):
            threads.append(threading.Thread(target=follow))
            threads[-1].start()
        time.sleep(0.2)
        self.accepted(host.send(vm.item("share", 2)))
        for thread in threads:
            thread.join(60)
        self.assertEqual([answer.status for answer in got], [200] * 12)

    def test_wrong_queries(self):
        self.assert_problem(self.admin.get("/v1/events?full=yes"), 400, "invalid-request")


class LeftOver(Case):
    """Pages that nothing moved before init_done, which makes them secure and paged out."""

    def done(self, vm):
        return [e for e in self.admin.items("/v1/events?limit=1000&after=0")
                if e["type"] == "vm.lifecycle" and e["vm"] == vm.id and e["event"] == "init_done"][-1]

    def moved(self, vm, gfn, count=1):
        history = self.admin.items(f"{vm.path}/history?gfn={gfn}&count={count}")
        self.assertTrue(all("moved" not in e for e in history if e.get("event") != "init_done"), history)
        return [e.get("moved") for e in history if e.get("event") == "init_done"]

    def test_init_done_says_how_many_and_which(self):
        host = Host(self.admin)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 100}, {"slot": 1, "base_gfn": 100, "pages": 28},
                             {"slot": 2, "base_gfn": 1000, "pages": 10}], state="transient")
        self.accepted(host.send(vm.item("page_in", 10, 5, 50), vm.item("share", 20, 2), vm.item("page_in", 1000, 10, 200)))
        self.accepted(host.send(vm.item("page_out", 12)))
        vm.must("init_done")
        done = self.done(vm)
        self.assertEqual(done["left_over"], 121)
        self.assertEqual(done["left_over_runs"], [[0, 10], [15, 5], [22, 106]])
        self.assertNotIn("left_over_unlisted", done)
        for gfn, run in ((0, (0, 10)), (9, (0, 10)), (15, (15, 5)), (127, (22, 106))):
            self.assertEqual(self.moved(vm, gfn), [{"gfn": run[0], "count": run[1], "from": "normal", "to": "secure"}])
        for gfn in (10, 12, 20, 1003):
            self.assertEqual(self.moved(vm, gfn), [None])
        self.assertEqual(self.moved(vm, 10, 10), [{"gfn": 15, "count": 5, "from": "normal", "to": "secure"}])

    def test_it_is_said_of_none_and_of_init_done_alone(self):
        host = Host(self.admin)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 4}], state="transient")
        self.accepted(host.send(vm.item("share", 0, 4)))
        vm.must("init_done")
        vm.must("terminate")
        self.assertEqual((self.done(vm)["left_over"], self.done(vm)["left_over_runs"]), (0, []))
        others = [e for e in self.admin.items("/v1/events?limit=1000&after=0")
                  if e["type"] == "vm.lifecycle" and e["vm"] == vm.id and e["event"] != "init_done"]
        self.assertEqual(len(others), 2)
        self.assertTrue(all("left_over" not in e for e in others))

    def test_scattered_ones_are_counted_though_not_all_are_listed(self):
        host = Host(self.admin)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 1024}], state="transient")
        self.accepted(host.send({"vm": vm.id, "op": "share", "gfns": list(range(0, 1024, 2))}))
        vm.must("init_done")
        done = self.done(vm)
        self.assertEqual((done["left_over"], len(done["left_over_runs"]), done["left_over_unlisted"]), (512, 256, 256))
        self.server.crash()
        self.admin.close()
        self.assertEqual(self.done(vm), done)
        self.assertEqual(vm.page(1023), ("secure", False, None))


class Violations(Case):
    def test_newest_first_and_filtered(self):
        a, b = Host(self.admin), Host(self.admin)
        for host in (a, b):
            vm = Vm(host, state="secure")
            self.accepted(host.send(vm.item("page_in", 0, 1, 0)))
            self.refused(host.send(vm.item("page_in", 1, 1, 0)), "frame-conflict")
            self.refused(host.send(vm.item("page_in", 2, 1, 0)), "frame-conflict")
        everything = self.admin.get("/v1/violations")["items"]
        revisions = [v["revision"] for v in everything]
        self.assertEqual(revisions, sorted(revisions, reverse=True))
        mine = self.admin.get("/v1/violations?host=" + a.id)["items"]
        self.assertEqual([v["host"] for v in mine], [a.id, a.id])
        self.assertEqual([slug_of(v["problem"]) for v in mine], ["frame-conflict", "frame-conflict"])
        after = self.admin.get(f"/v1/violations?host={a.id}&after={mine[1]['revision']}")["items"]
        self.assertEqual(after, [v for v in mine if v["revision"] > mine[1]["revision"]])
        self.server.crash()
        self.assertEqual(self.admin.get("/v1/violations?host=" + a.id)["items"], mine)

    def test_an_atomic_batch_that_was_refused_leaves_one(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 0)))
        self.assert_problem(host.send(vm.item("share", 9), vm.item("page_in", 1, 1, 0), atomic=True), 409, "batch-rejected")
        self.assertEqual(len(self.admin.get("/v1/violations?host=" + host.id)["items"]), 1)

    def test_wrong_queries(self):
        for query in ("host=x", "vm=x", "after=x", "limit=0", "odd=1"):
            self.assert_problem(self.admin.get("/v1/violations?" + query), 400, "invalid-request")


class Figures(Case):
    def test_the_summary_counts_what_is_there(self):
        before = self.assert_ok(self.admin.get("/v1/summary")).json
        host = Host(self.admin)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 100}])
        self.accepted(host.send(vm.item("page_in", 0, 10, 0), vm.item("share", 50, 5)))
        after = self.admin.get("/v1/summary").json
        self.assertGreater(count(after), count(before))
        text = str(after)
        for word in ("up", "secure", "shared", "local"):
            self.assertIn(word, text)

    def test_metrics_are_prometheus_text(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("share")))
        for client in (self.admin, self.as_token("viewer")):
            answer = self.assert_ok(client.get("/metrics"))
        self.assertTrue(answer.headers["content-type"].startswith("text/plain"))
        kinds = {}
        for line in answer.raw.decode().splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                self.assertNotIn(name, kinds)
                kinds[name] = kind
            elif line and not line.startswith("#"):
                self.assertRegex(line, r'^[a-z_:][a-z0-9_:]*(\{([a-z_]+="[^"]*",?)*\})? [-+0-9.eEinfNa]+$')
                name = re.split(r"[{ ]", line)[0]
                self.assertIn(re.sub(r"_(bucket|sum|count)$", "", name) if name not in kinds else name, kinds)
        self.assertIn("counter", kinds.values())
        self.assertIn("histogram", kinds.values())

    def test_health_needs_no_token(self):
        nobody = Client(self.server.port)
        self.assert_ok(nobody.get("/healthz"))
        self.assert_ok(nobody.get("/readyz"))

    def test_openapi_is_served(self):
        answer = self.assert_ok(self.admin.get("/openapi.json"))
        self.assertTrue(answer["openapi"].startswith("3.1"))
        self.assertIn("/v1/hosts/{host}/transitions", answer["paths"])


def count(tree):
    """The sum of all numbers in a JSON value."""
    if isinstance(tree, dict):
        return sum(count(v) for v in tree.values())
    if isinstance(tree, list):
        return sum(count(v) for v in tree)
    return tree if isinstance(tree, (int, float)) and not isinstance(tree, bool) else 0


if __name__ == "__main__":
    unittest.main()
