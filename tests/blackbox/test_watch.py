"""An agent notices what others change of its VMs in the ledger, and compares them at once: without a restart, a lost poll or
an operation. What it did itself it does not look at. Also the filter of the feed that it uses, and periodic comparisons."""
import random
import threading
import time
import unittest

from harness import Case, Host, Vm, new_id
from test_absence import PAGES, Fleet
from test_crash_agent import ARCHES


class Noticing(Fleet):
    def holder(self, agent):
        host = self.admin.get("/v1/hosts/" + agent.host)
        return {"boot_id": host["boot_id"], "epoch": host["epoch"]}

    def send(self, agent, *items):
        answer = self.admin.post(f"/v1/hosts/{agent.host}/transitions", dict(self.holder(agent), items=list(items)))
        self.assertEqual((answer.status, answer["rejected"]), (200, 0), answer)

    def delete_slot(self, agent, vm, number):
        held = self.holder(agent)
        path = f"/v1/vms/{vm}/slots/{number}"
        answer = self.admin.delete(f"{path}?boot_id={held['boot_id']}&epoch={held['epoch']}")
        self.assert_ok(answer, 204)

    def two_slots(self, agent):
        slots = [{"slot": 0, "base_gfn": 0, "pages": PAGES}, {"slot": 1, "base_gfn": 4096, "pages": 64}]
        vm = self.assert_ok(self.admin.post("/v1/vms", {"host": agent.host, "arch": agent.arch, "slots": slots}), 201)["id"]
        self.operate(vm, "launch")
        return vm

    def test_a_guest_that_the_ledger_ended_ends_at_once(self):
        agent = self.agent("ended", "snp")
        vm, other = self.guest(agent), self.guest(agent)
        self.assert_ok(self.admin.post(f"/v1/vms/{vm}/lifecycle", {"event": "terminate", **self.holder(agent)}))
        self.eventually(lambda: self.assertEqual(set(self.hardware(agent)), {other}), 5)
        self.equal(agent, other)

    def test_a_vm_whose_launch_is_still_to_come_is_not_one_that_is_gone(self):
        """Its launch is handed out and waits behind operations that wait for free frames; meanwhile it is compared."""
        agent = self.agent("to-come", "tdx")
        full, vm = (self.assert_ok(self.admin.post("/v1/vms", {"host": agent.host, "arch": "tdx", "slots": [
            {"slot": 0, "base_gfn": 0, "pages": pages}]}), 201)["id"] for pages in (1 << 16, 64))
        self.operate(full, "launch")  # takes what the pool has
        ask = lambda of, kind, **params: self.assert_ok(
            self.admin.post(f"/v1/vms/{of}/operations", {"kind": kind, "params": params}), 202)["id"]
        state = lambda of: self.admin.get("/v1/operations/" + of)["state"]
        waiting = [ask(full, "page_in", gfn=(1 << 16) - 1, count=1)]
        self.eventually(lambda: self.assertEqual(state(waiting[0]), "running"), 20)
        waiting.append(ask(full, "page_in", gfn=(1 << 16) - 2, count=1))
        launch = ask(vm, "launch", resident=0)
        self.eventually(lambda: self.assertEqual(state(launch), "running"), 20)
        self.assert_ok(self.admin.put(f"/v1/vms/{vm}/slots/1", {"base_gfn": 4096, "pages": 64}), 201)
        self.eventually(lambda: self.assertEqual(state(launch), "succeeded"), 20)
        events = [e["event"] for e in self.events("vm.lifecycle") if e["vm"] == vm]
        self.assertEqual(events, ["init_start", "init_done"])
        self.assertEqual([state(o) for o in waiting], ["failed", "failed"])

    def test_the_guest_that_comes_after_one_that_was_ended_is_a_new_one(self):
        """Its operation may be there before the agent has heard of the end: nothing of the old guest is in the new one."""
        for arch in ARCHES:
            agent = self.agent("after-" + arch, arch)
            for anew, kind, params in ((False, "launch", {"resident": 8}), (True, "launch", {"resident": 8}), (False, "launch", {"plain": True}),
                                       (True, "launch", {"plain": True}), (False, "plug", {"slot": 1, "base_gfn": 4096, "pages": 64})):
                with self.subTest(arch=arch, anew=anew, kind=kind, params=params):
                    vm = self.guest(agent)
                    self.assert_ok(self.admin.post(f"/v1/vms/{vm}/lifecycle", {"event": "terminate", "force": True}))
                    if anew:
                        slots = [{"slot": 0, "base_gfn": 0, "pages": 64}]
                        self.assert_ok(self.admin.delete(f"/v1/vms/{vm}?force=true"), 204)
                        self.assert_ok(self.admin.post("/v1/vms", {"id": vm, "host": agent.host, "arch": arch, "slots": slots}), 201)
                    self.operate(vm, kind, **params)
                    state, frames = self.hardware(agent).get(vm, (None, {}))
                    self.assertEqual((state, len(frames)), {"resident": ("secure", 8), "plain": ("normal", 0), "slot": (None, 0)}[next(iter(params))])
                    self.operate(vm, "terminate")
            self.assertEqual(self.unknown(agent), [])
            self.assertEqual(agent.stop(), 0)

    def test_pages_that_somebody_else_changed_in_the_ledger(self):
        agent = self.agent("pages", "tdx")
        vm = self.guest(agent)
        running = self.hardware(agent)
        self.send(agent, {"vm": vm, "op": "page_out", "gfn": 3, "count": 5}, {"vm": vm, "op": "share", "gfn": 20, "count": 2})
        self.equal(agent, vm)
        self.assertEqual(self.hardware(agent), running)
        self.assertIn("violation", agent.log())

    def test_frames_that_somebody_else_gave_to_another_guest(self):
        """The ledger follows hardware, whichever of the two is compared first."""
        agent = self.agent("swapped", "pef")
        one, two = self.guest(agent), self.guest(agent)
        running = self.hardware(agent)
        frame = running[one][1][7]
        free = next(g for g in range(PAGES) if g not in running[two][1])
        self.send(agent, {"vm": one, "op": "page_out", "gfn": 7, "count": 1},
                  {"vm": two, "op": "page_in", "gfn": free, "count": 1, "frame": {"pool": "local", "pfn": frame}})
        self.equal(agent, one, two)
        self.assertEqual((self.hardware(agent), self.unknown(agent)), (running, []))

    def test_a_slot_deleted_and_put_back_while_operations_run(self):
        """In the same shape and in another one: what was on hardware leaves it, and ledger and hardware end equal."""
        seed = random.SystemRandom().randrange(1 << 32)
        rng = random.Random(seed)
        print(f"{self.id()}: SEED={seed}", flush=True)
        for arch in ARCHES:
            with self.subTest(arch=arch, seed=seed):
                agent = self.agent("slots-" + arch, arch)
                vm = self.two_slots(agent)
                over = threading.Event()
                worker = threading.Thread(target=self.churn, args=(vm, over))
                worker.start()
                try:
                    for _ in range(6):
                        time.sleep(rng.uniform(0, 0.3))
                        self.delete_slot(agent, vm, 1)
                        time.sleep(rng.choice((0, 0, 0.2)))
                        pages = rng.choice((64, 64, 32, 128))
                        self.assert_ok(self.admin.put(f"/v1/vms/{vm}/slots/1", {"base_gfn": 4096, "pages": pages}), 201)
                finally:
                    over.set()
                    worker.join()
                self.equal(agent, vm)
                self.operate(vm, "page_in", gfn=4096, count=pages)
                self.equal(agent, vm)
                self.operate(vm, "terminate")
                self.assertEqual(self.admin.get("/v1/hosts/" + agent.host)["frames_bound"], 0)
                self.assertEqual(agent.stop(), 0)
                found = agent.compare()
                self.assertEqual((found["differences"], found["violations"]), (0, 0), found["text"])

    def churn(self, vm, over):
        client = self.server.client()
        for i in range(1000):
            for kind in ("page_out", "page_in"):
                made = client.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": {"gfn": 4096 + i % 16, "count": 8}})
                if made.status == 202:
                    client.get(f"/v1/operations/{made['id']}?wait=10")
            if over.is_set():
                break
        client.close()

    def test_a_slot_of_the_same_shape_has_nothing_of_the_old_one(self):
        """Its pages were the old slot's, whose frames the ledger has given up: they leave hardware."""
        for arch in ARCHES:
            with self.subTest(arch=arch):
                agent = self.agent("same-" + arch, arch)
                vm = self.two_slots(agent)
                self.assertEqual(len([g for g in self.hardware(agent)[vm][1] if g >= 4096]), 64)
                self.delete_slot(agent, vm, 1)
                self.assert_ok(self.admin.put(f"/v1/vms/{vm}/slots/1", {"base_gfn": 4096, "pages": 64}), 201)
                self.eventually(lambda: self.assertEqual([g for g in self.hardware(agent)[vm][1] if g >= 4096], []), 5)
                self.equal(agent, vm)
                self.assertEqual(self.unknown(agent), [])
                self.assertEqual(agent.stop(), 0)

    def test_its_own_changes_are_no_news_to_an_agent(self):
        agent = self.agent("own", "snp", "--log-level", "debug", "--resync-seconds", "0")
        vm = self.guest(agent)
        for gfn in range(0, 60, 10):
            self.operate(vm, "share", gfn=gfn, count=5)
            self.operate(vm, "unshare", gfn=gfn, count=5, resident=True)
        time.sleep(0.5)
        looked = [line for line in agent.log().splitlines() if "looked at a VM" in line]
        self.assertLessEqual(len(looked), 1, looked)  # its creation was somebody else's
        self.send(agent, {"vm": vm, "op": "page_out", "gfn": 3, "count": 1})
        self.eventually(lambda: self.assertGreater(agent.log().count("looked at a VM"), len(looked)))
        self.equal(agent, vm)

    def test_each_vm_is_compared_from_time_to_time(self):
        agent = self.agent("period", "pef", "--log-level", "debug", "--resync-seconds", "1")
        vms = [self.guest(agent, 32) for _ in range(3)]
        began, before = time.monotonic(), agent.log()
        self.eventually(lambda: [self.assertGreater(agent.log().count("looked at a VM\" detail=\"vm " + vm),
                                                    before.count("looked at a VM\" detail=\"vm " + vm) + 2) for vm in vms])
        took = time.monotonic() - began
        for vm in vms:
            seen = agent.log().count("looked at a VM\" detail=\"vm " + vm)
            self.assertLessEqual(seen - before.count("looked at a VM\" detail=\"vm " + vm), took + 3)
        self.equal(agent, *vms)


class Filter(Case):
    def test_a_host_has_its_own_events_alone(self):
        one, two = Host(self.admin), Host(self.admin)
        start = self.admin.get("/v1/summary")["revision"]
        vms = {h.id: Vm(h, state="secure") for h in (one, two)}
        for host in (one, two):
            self.accepted(host.send(vms[host.id].item("page_in", 1, 4, 8), vms[host.id].item("share", 100, 1)))
        everything = self.admin.get(f"/v1/events?after={start}&limit=1000")
        for host in (one, two):
            own = self.admin.get(f"/v1/events?after={start}&limit=1000&host={host.id}")
            self.assertEqual(own["items"], [e for e in everything["items"] if e.get("host") == host.id])
            self.assertEqual(own["next"], everything["next"], "it goes on behind what was skipped")
            few = self.admin.get(f"/v1/events?after={start}&limit=2&host={host.id}")
            self.assertEqual(few["items"], own["items"][:2])
            rest = self.admin.get(f"/v1/events?after={few['next']}&limit=1000&host={host.id}")
            self.assertEqual(few["items"] + rest["items"], own["items"])
        nobody = self.admin.get(f"/v1/events?after={start}&host={new_id()}")
        self.assertEqual((nobody["items"], nobody["next"]), ([], everything["next"]))
        self.assert_problem(self.admin.get("/v1/events?host=somebody"), 400, "invalid-request")
        for again in (self.server.crash, self.server.restart):
            again()
            self.admin.close()
            self.admin = self.server.client()
            own = self.admin.get(f"/v1/events?after={start}&limit=1000&host={one.id}")
            self.assertEqual([e["revision"] for e in own["items"]],
                             [e["revision"] for e in everything["items"] if e.get("host") == one.id])

    def test_events_of_others_wake_nobody(self):
        one, two = Host(self.admin), Host(self.admin)
        vm = Vm(two, state="secure")
        after = self.admin.get("/v1/summary")["revision"]
        got, began = [], time.monotonic()

        def poll():
            client = self.server.client()
            got.append((client.get(f"/v1/events?after={after}&host={one.id}&wait=2"), time.monotonic() - began))
            client.close()

        waiter = threading.Thread(target=poll)
        waiter.start()
        for gfn in range(20):
            self.accepted(two.send(vm.item("page_in", gfn, 1, gfn)))
            time.sleep(0.02)
        waiter.join()
        (answer, took), = got
        self.assertEqual(answer["items"], [])
        self.assertGreater(took, 1.5, "it was woken for nothing")
        self.assertEqual(answer["next"], self.admin.get("/v1/summary")["revision"])

    def test_its_own_event_wakes_it(self):
        one = Host(self.admin)
        vm = Vm(one, state="secure")
        after, got = self.admin.get("/v1/summary")["revision"], []

        def poll():
            client = self.server.client()
            got.append(client.get(f"/v1/events?after={after}&host={one.id}&wait=20"))
            client.close()

        waiter, began = threading.Thread(target=poll), time.monotonic()
        waiter.start()
        time.sleep(0.1)
        self.accepted(one.send(vm.item("page_in", 0, 1, 0)))
        waiter.join()
        self.assertEqual([e["type"] for e in got[0]["items"]], ["gfn.page_in"])
        self.assertLess(time.monotonic() - began, 10)


if __name__ == "__main__":
    unittest.main()
