"""Transitions: every cell of the GFN table, every problem with its members and order, and all forms of an item."""
import unittest

from harness import LIMIT, OTHER_BOOT, Case, Host, Vm, new_id, slug_of

OPS = ("share", "unshare", "unshare+frame", "page_in", "page_out")
GFN_TABLE = {  # the law, with residency; None is an error cell
    "secure": ("shared", "secure", None, None, "out"),
    "out": ("shared", "out", "secure", "secure", None),
    "shared": ("shared", "out", "secure", None, None),
    "normal": ("shared", "out", "secure", "secure", None),
}
AS_SEEN = {"secure": ("secure", True), "out": ("secure", False), "shared": ("shared", False), "normal": ("normal", False)}


class Table(Case):
    def test_every_cell_in_both_vm_states(self):
        host, pfn = Host(self.admin), 0
        for vm_state in ("transient", "secure"):
            vm = Vm(host, state=vm_state)
            gfn = 0
            for state, row in GFN_TABLE.items():
                if vm_state == "secure" and state == "normal":
                    continue  # a secure VM has no normal pages
                for op, wanted in zip(OPS, row):
                    with self.subTest(vm=vm_state, state=state, op=op):
                        gfn, pfn = gfn + 2, pfn + 2
                        vm.place(gfn, state, pfn)
                        self.check(host, vm, gfn, pfn, state, op, wanted)

    def check(self, host, vm, gfn, pfn, state, op, wanted):
        framed = op in ("page_in", "unshare+frame")
        name = op.split("+")[0]
        before = vm.page(gfn)
        answer = host.send(vm.item(name, gfn, pfn=pfn + 1 if framed else None))
        if wanted is None:
            seen, resident = AS_SEEN[state]
            self.refused(answer, "gfn-transition", gfn=gfn, state=seen, resident=resident, op=name)
            self.assertEqual(vm.page(gfn), before)
            return
        self.accepted(answer)
        self.assertEqual(vm.page(gfn)[:2], AS_SEEN[wanted])
        frames = [r["pfn"] for r in host.frames(pfn, 2)]
        self.assertEqual(frames, [pfn + 1] if wanted == "secure" and framed else [pfn] if wanted == "secure" else [])

    def test_a_normal_vm_has_no_page_operations(self):
        host = Host(self.admin)
        vm = Vm(host)
        for op, pfn in (("share", None), ("unshare", None), ("unshare", 1), ("page_in", 1), ("page_out", None)):
            with self.subTest(op=op, pfn=pfn):
                self.refused(host.send(vm.item(op, pfn=pfn)), "vm-transition", state="normal", op=op)

    def test_what_is_so_already_is_ok_and_changes_nothing(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("share", 0), vm.item("page_in", 1, 1, 7)))
        before, revision = vm.runs(), vm.get()["revision"]
        self.accepted(host.send(vm.item("share", 0), vm.item("unshare", 1), vm.item("unshare", 2)))
        self.assertEqual((vm.runs(), vm.get()["revision"]), (before, revision))


class Problems(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin, frames=1000)
        self.vm = Vm(self.host, state="secure")

    def test_frame_conflict_names_every_owner(self):
        host, vm, other = self.host, self.vm, Vm(self.host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 4, 10), vm.item("page_in", 100, 2, 14), other.item("page_in", 7, 1, 17)))
        problem = self.refused(host.send(other.item("page_in", 50, 16, 6)), "frame-conflict", conflict_frames=7)
        self.assertEqual(problem["conflicts"], [
            {"pool": "local", "pfn": 10, "count": 4, "vm": vm.id, "gfn": 0},
            {"pool": "local", "pfn": 14, "count": 2, "vm": vm.id, "gfn": 100},
            {"pool": "local", "pfn": 17, "count": 1, "vm": other.id, "gfn": 7}])
        self.assertEqual(other.page(50), ("secure", False, None))

    def test_frame_conflict_with_another_page_of_the_same_vm(self):
        self.accepted(self.host.send(self.vm.item("page_in", 0, 1, 10)))
        problem = self.refused(self.host.send(self.vm.item("page_in", 1, 1, 10)), "frame-conflict")
        self.assertEqual(problem["conflicts"], [{"pool": "local", "pfn": 10, "count": 1, "vm": self.vm.id, "gfn": 0}])

    def test_frame_conflict_lists_sixteen_runs_and_counts_all(self):
        host, vm, other = self.host, self.vm, Vm(self.host, state="secure")
        self.accepted(host.send({"vm": vm.id, "op": "page_in", "gfns": list(range(20)), "pool": "local",
                                 "pfns": list(range(0, 40, 2))}))
        problem = self.refused(host.send(other.item("page_in", 0, 40, 0)), "frame-conflict", conflict_frames=20)
        self.assertEqual([c["pfn"] for c in problem["conflicts"]], list(range(0, 32, 2)))

    def test_a_run_that_meets_itself_conflicts(self):
        item = {"vm": self.vm.id, "op": "page_in", "pool": "local", "runs": [[0, 4, 0], [10, 4, 2]]}
        self.refused(self.host.send(item), "frame-conflict")
        self.assertEqual(self.vm.page(0), ("secure", False, None))

    def test_frame_out_of_pool(self):
        for pfn, count, pool in ((1000, 1, "local"), (999, 2, "local"), (LIMIT - 1, 1, "local"), (0, 1, "no-such-pool")):
            with self.subTest(pfn=pfn, pool=pool):
                self.refused(self.host.send(self.vm.item("page_in", 0, count, pfn, pool=pool)), "frame-out-of-pool",
                             pool=pool)

    def test_gfn_transition_names_the_first_page(self):
        self.accepted(self.host.send(self.vm.item("page_in", 5, 1, 0), self.vm.item("share", 7)))
        self.refused(self.host.send(self.vm.item("page_in", 0, 10, 100)), "gfn-transition", gfn=5, state="secure",
                     resident=True, op="page_in")

    def test_gfn_out_of_slot_names_the_first_page_outside(self):
        for gfn, count, first in ((4096, 1, 4096), (4095, 2, 4096), (LIMIT - 1, 1, LIMIT - 1)):
            with self.subTest(gfn=gfn):
                self.refused(self.host.send(self.vm.item("share", gfn, count)), "gfn-out-of-slot", gfn=first)

    def test_frame_quarantined_lists_the_frames(self):
        body = dict(self.host.current(), items=[{"pool": "local", "pfn": 5, "count": 2, "reason": "reset failed"}])
        self.assert_ok(self.admin.post(self.host.path + "/quarantine", body))
        problem = self.refused(self.host.send(self.vm.item("page_in", 0, 10, 0)), "frame-quarantined")
        self.assertEqual([(f["pfn"], f["count"]) for f in problem["frames"]], [(5, 2)])

    def test_vm_not_on_host_and_vm_not_found(self):
        there = Vm(Host(self.admin), state="secure")
        self.refused(self.host.send(there.item("share")), "vm-not-on-host", host=there.host.id)
        unknown = new_id()
        self.refused(self.host.send({"vm": unknown, "op": "share", "gfn": 0, "count": 1}), "vm-not-found", vm=unknown)

    def test_checks_are_made_in_the_order_of_the_contract(self):
        host, vm = self.host, self.vm
        normal, there = Vm(host), Vm(Host(self.admin))
        self.accepted(host.send(vm.item("page_in", 0, 1, 0), vm.item("share", 1)))
        away = [{"pool": "local", "pfn": 20, "count": 1, "reason": "reset failed"}]
        self.assert_ok(self.admin.post(host.path + "/quarantine", dict(host.current(), items=away)))
        for slug, item in (
                ("vm-not-on-host", there.item("page_in", 9999, 1, 9999)),  # also normal, out of slot, out of pool
                ("vm-transition", normal.item("page_in", 9999, 1, 9999)),
                ("gfn-out-of-slot", vm.item("page_in", 4095, 2, 9999)),
                ("gfn-transition", vm.item("page_in", 1, 1, 9999)),
                ("frame-out-of-pool", vm.item("page_in", 2, 1000, 1)),     # also in quarantine
                ("frame-quarantined", vm.item("page_in", 2, 30, 0))):      # also a conflict
            with self.subTest(slug=slug):
                self.refused(host.send(item), slug)
        self.assert_problem(host.send(dict(there.item("share"), count=0)), 400, "invalid-request")

    def test_the_first_refused_run_decides(self):
        item = {"vm": self.vm.id, "op": "page_out", "runs": [[10, 1], [9999, 1]]}
        self.refused(self.host.send(item), "gfn-transition", gfn=10)
        item["runs"].reverse()
        self.refused(self.host.send(item), "gfn-out-of-slot", gfn=9999)

    def test_refusals_are_violations(self):
        agent = self.as_token("agent", self.host.id)
        self.accepted(self.host.send(self.vm.item("page_in", 0, 1, 0)))
        self.refused(self.host.send(self.vm.item("page_in", 1, 1, 0), client=agent), "frame-conflict")
        self.refused(self.host.send(self.vm.item("page_out", 3), client=agent), "gfn-transition")
        items = self.admin.get(f"/v1/violations?host={self.host.id}")["items"]
        self.assertEqual([slug_of(v["problem"]) for v in items], ["gfn-transition", "frame-conflict"])
        self.assertEqual(self.admin.get(f"/v1/violations?vm={self.vm.id}")["items"], items)
        self.assertEqual(self.admin.get(f"/v1/violations?vm={new_id()}")["items"], [])


class Forms(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.vm = Vm(self.host, state="secure")

    def test_runs_with_and_without_frames(self):
        vm = self.vm
        self.accepted(self.host.send({"vm": vm.id, "op": "page_in", "pool": "local", "runs": [[0, 4, 100], [10, 2, 50]]},
                                     {"vm": vm.id, "op": "share", "runs": [[20, 2], [30, 1]]}))
        self.assertEqual([(r["gfn"], r["pfn"], r["count"]) for r in self.host.frames()], [(10, 50, 2), (0, 100, 4)])
        self.assertEqual([vm.page(g)[0] for g in (19, 20, 21, 22, 30, 31)],
                         ["secure", "shared", "shared", "secure", "shared", "secure"])

    def test_gfns_with_and_without_pfns(self):
        vm = self.vm
        self.accepted(self.host.send({"vm": vm.id, "op": "page_in", "pool": "local", "gfns": [5, 3, 9], "pfns": [1, 9, 5]},
                                     {"vm": vm.id, "op": "share", "gfns": [40, 42]}))
        self.assertEqual([(r["gfn"], r["pfn"]) for r in self.host.frames()], [(5, 1), (9, 5), (3, 9)])
        self.assertEqual([vm.page(g)[0] for g in (40, 41, 42)], ["shared", "secure", "shared"])

    def test_one_verdict_for_the_item_all_or_none(self):
        vm = self.vm
        self.accepted(self.host.send(vm.item("page_in", 3, 1, 500)))
        before = (vm.runs(), self.host.frames())
        for item in ({"vm": vm.id, "op": "share", "runs": [[0, 8], [9999, 1]]},
                     {"vm": vm.id, "op": "page_in", "pool": "local", "gfns": [0, 1, 2], "pfns": [0, 1, 500]},
                     {"vm": vm.id, "op": "unshare", "pool": "local", "runs": [[0, 2, 0], [4, 2, 499]]}):
            self.assertEqual(self.host.send(item)["rejected"], 1)
            self.assertEqual((vm.runs(), self.host.frames()), before)

    def test_each_item_sees_the_ones_before_it(self):
        vm, other = self.vm, Vm(self.host, state="secure")
        answer = self.host.send(vm.item("page_in", 0, 1, 7), vm.item("share", 0), other.item("page_in", 0, 1, 7),
                                vm.item("page_in", 1, 1, 7), other.item("page_out", 0), vm.item("page_in", 1, 1, 7))
        self.assertEqual([r["ok"] for r in answer["results"]], [True, True, True, False, True, True])
        self.assertEqual((answer["accepted"], answer["rejected"]), (5, 1))

    def test_wrong_items_refuse_the_whole_request(self):
        vm = self.vm.id
        good = {"vm": vm, "op": "share", "gfn": 0, "count": 1}
        frame = {"pool": "local", "pfn": 0}
        for pointer, item in (
                ("/items/1/vm", dict(good, vm="x")), ("/items/1/op", dict(good, op="steal")), ("/items/1/op", dict(good, op=1)),
                ("/items/1/gfn", dict(good, gfn=-1)), ("/items/1/gfn", dict(good, gfn=LIMIT)),
                ("/items/1/gfn", dict(good, gfn="0")), ("/items/1/gfn", dict(good, gfn=0.5)),
                ("/items/1/count", dict(good, count=0)), ("/items/1/count", dict(good, count=LIMIT)),
                ("/items/1/count", dict(good, gfn=LIMIT - 1, count=2)), ("/items/1/frame", dict(good, frame=frame)),
                ("/items/1/frame", dict(good, op="page_out", frame=frame)), ("/items/1/colour", dict(good, colour=1)),
                ("/items/1/frame/pfn", dict(good, op="page_in", frame={"pool": "local", "pfn": -1})),
                ("/items/1/frame/pool", dict(good, op="page_in", frame={"pool": "Not A Pool", "pfn": 0})),
                ("/items/1/frame/x", dict(good, op="page_in", frame=dict(frame, x=1))),
                (None, dict(good, op="page_in")), (None, {"vm": vm, "op": "share"}), (None, {"vm": vm, "op": "share", "gfn": 0}),
                (None, dict(good, runs=[[0, 1]])), (None, {"vm": vm, "op": "share", "runs": []}),
                (None, {"vm": vm, "op": "share", "runs": [[0]]}), (None, {"vm": vm, "op": "share", "runs": [[0, 1, 2]]}),
                (None, {"vm": vm, "op": "share", "runs": [[0, 0]]}), (None, {"vm": vm, "op": "share", "runs": [[0, 1, 2, 3]]}),
                (None, {"vm": vm, "op": "page_in", "runs": [[0, 1]], "pool": "local"}),
                (None, {"vm": vm, "op": "page_in", "runs": [[0, 1, LIMIT]], "pool": "local"}),
                (None, {"vm": vm, "op": "page_in", "gfns": [0, 1], "pfns": [0], "pool": "local"}),
                (None, {"vm": vm, "op": "share", "gfns": ["0"]}), (None, {"vm": vm, "op": "share", "gfns": [LIMIT]}),
                (None, {"vm": vm, "op": "share", "gfns": [0], "pfns": [0], "pool": "local"}),
                (None, 5), (None, None), (None, [])):
            with self.subTest(item=item):
                members = {"pointer": pointer} if pointer else {}
                problem = self.host.send(good, item)
                self.assert_problem(problem, 400, "invalid-request", **members)
                self.assertTrue(problem["pointer"].startswith("/items/1"), problem)
        self.assertEqual(self.vm.page(0)[0], "secure")

    def test_wrong_envelopes_are_refused(self):
        good = dict(self.host.current(), items=[self.vm.item("share")])
        path = self.host.path + "/transitions"
        for pointer, change in (("/items", {"items": []}), ("/items", {"items": {}}), ("/atomic", {"atomic": 1}),
                                ("/batch_seq", {"batch_seq": -1}), ("/batch_seq", {"batch_seq": "1"}),
                                ("/epoch", {"epoch": None}), ("/boot_id", {"boot_id": 1}), ("/more", {"more": 1})):
            with self.subTest(pointer=pointer):
                self.assert_problem(self.admin.post(path, {**good, **change}), 400, "invalid-request", pointer=pointer)
        for member in good:
            body = {k: v for k, v in good.items() if k != member}
            self.assert_problem(self.admin.post(path, body), 400, "invalid-request")
        self.assertEqual(self.vm.page(0)[0], "secure")

    def test_as_many_items_as_the_contract_allows(self):
        item = self.vm.item("share")
        agent = self.as_token("agent", self.host.id)
        answer = self.host.send(*[item] * 65536, client=agent)
        self.accepted(answer)
        self.assertEqual((answer["accepted"], len(answer["results"])), (65536, 65536))
        self.assert_problem(self.host.send(*[item] * 65537, client=agent), 400, "invalid-request")


class Batches(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.vm = Vm(self.host, state="secure")

    def test_an_atomic_batch_is_all_or_nothing(self):
        vm = self.vm
        self.accepted(self.host.send(vm.item("share", 50)))
        before = vm.runs()
        answer = self.host.send(vm.item("share", 0), vm.item("page_in", 1, 1, 1), vm.item("page_in", 50, 1, 2),
                                vm.item("share", 9), atomic=True)
        self.assert_problem(answer, 409, "batch-rejected")
        self.assertTrue(answer["results"][0].get("undone"), answer)
        self.assertTrue(answer["results"][1].get("undone"), answer)
        self.check_problem(answer["results"][2]["problem"], "gfn-transition", gfn=50, state="shared")
        self.assertEqual((vm.runs(), self.host.frames()), (before, []))
        self.accepted(self.host.send(vm.item("share", 0), vm.item("page_in", 1, 1, 1), atomic=True))

    def test_an_atomic_batch_sees_itself(self):
        vm, other = self.vm, Vm(self.host, state="secure")
        self.accepted(self.host.send(vm.item("page_in", 0, 1, 7), vm.item("page_out", 0), other.item("page_in", 0, 1, 7),
                                     atomic=True))
        self.assertEqual([r["vm"] for r in self.host.frames()], [other.id])

    def test_the_last_batch_again_gets_its_answer_again(self):
        first = self.host.send(self.vm.item("page_in", 0, 1, 5), self.vm.item("page_in", 1, 1, 5), batch_seq=10)
        again = self.host.send(self.vm.item("page_in", 0, 1, 5), self.vm.item("page_in", 1, 1, 5), batch_seq=10)
        self.assertEqual((again.status, again.json), (first.status, first.json))
        self.assertEqual((first["accepted"], first["rejected"]), (1, 1))
        self.accepted(self.host.send(self.vm.item("share", 9), batch_seq=11))
        self.assert_problem(self.host.send(self.vm.item("share", 8), batch_seq=10), 409, "stale-batch")
        self.assertEqual(self.vm.page(8)[0], "secure")

    def test_the_last_batch_is_known_after_a_crash(self):
        first = self.host.send(self.vm.item("page_in", 0, 1, 5), batch_seq=3)
        self.server.crash()
        again = self.host.send(self.vm.item("page_in", 0, 1, 5), batch_seq=3)
        self.assertEqual(again.json, first.json)
        self.assert_problem(self.host.send(self.vm.item("share", 8), batch_seq=2), 409, "stale-batch")

    def test_batch_numbers_begin_anew_with_a_boot(self):
        self.accepted(self.host.send(self.vm.item("share"), batch_seq=100))
        self.host.boot = OTHER_BOOT
        self.host.register()
        vm = Vm(self.host, state="secure")
        self.accepted(self.host.send(vm.item("share", 3), batch_seq=1))
        self.assertEqual(vm.page(3)[0], "shared")

    def test_revisions_grow_and_show_in_the_answer(self):
        one = self.accepted(self.host.send(self.vm.item("share", 0)))["revision"]
        two = self.accepted(self.host.send(self.vm.item("share", 1)))["revision"]
        self.assertGreater(two, one)
        self.assertGreaterEqual(self.vm.get()["revision"], two)

    def test_only_its_agent_and_admins_may(self):
        other = Host(self.admin)
        body = dict(self.host.current(), items=[self.vm.item("share", 4)])
        path = self.host.path + "/transitions"
        for client in (self.as_token("agent", other.id), self.as_token("viewer"), self.as_token("operator")):
            self.assert_problem(client.post(path, body), 403, "forbidden")
        self.assertEqual(self.vm.page(4)[0], "secure")
        self.accepted(self.as_token("agent", self.host.id).post(path, body))


if __name__ == "__main__":
    unittest.main()
