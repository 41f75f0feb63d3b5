"""The law, L1 to L9: each invariant with an attack on it, and an oracle that audits the whole ledger afterwards."""
import os
import random
import threading
import time
import unittest

from harness import OTHER_BOOT, Case, Host, Vm, new_id


def audit(case, hosts, vms, pools=()):
    """L1, L2, L4 and both directions of every binding, as seen from outside; returns bindings by frame."""
    owner = {}
    for vm in vms:
        view, slots = vm.get(), {}
        for slot in view["slots"]:
            for gfn in range(slot["base_gfn"], slot["base_gfn"] + slot["pages"]):
                case.assertNotIn(gfn, slots, "slots overlap")
                slots[gfn] = slot["slot"]
        seen = {"normal": 0, "secure_resident": 0, "secure_out": 0, "shared": 0}
        for run in vm.runs():
            case.assertEqual(run["resident"], "frame" in run, run)
            case.assertTrue(run["state"] == "secure" or not run["resident"], run)
            kind = run["state"] if run["state"] != "secure" else "secure_resident" if run["resident"] else "secure_out"
            seen[kind] += run["count"]
            for i in range(run["count"]):
                case.assertIn(run["gfn"] + i, slots)
                if run["resident"]:
                    pool = run["frame"]["pool"]
                    frame = (vm.host.id if pool == "local" else "", pool, run["frame"]["pfn"] + i)
                    case.assertNotIn(frame, owner, "L1: two owners")
                    owner[frame] = (vm.id, run["gfn"] + i)
        case.assertEqual(seen, view["pages"])
    claimed = {}
    for host in hosts:
        for run in host.frames():
            claimed.update({(host.id, "local", run["pfn"] + i): (run["vm"], run["gfn"] + i) for i in range(run["count"])})
    for pool in pools:
        for run in hosts[0].client.get(f"/v1/pools/{pool}/frames?pfn=0&count=65536")["items"]:
            claimed.update({("", pool, run["pfn"] + i): (run["vm"], run["gfn"] + i) for i in range(run["count"])})
    case.assertEqual(claimed, owner)
    return owner


class ExclusiveFrames(Case):
    def test_l1_many_clients_race_for_every_frame(self):
        host = Host(self.admin, frames=64)
        vms = [Vm(host, state="secure") for _ in range(4)]
        won, lock = [], threading.Lock()

        def grab(vm, seed):
            client, order = self.server.client(), list(range(64))
            random.Random(seed).shuffle(order)
            for pfn in order:
                answer = host.send(vm.item("page_in", pfn, 1, pfn), client=client)
                if answer["results"][0]["ok"]:
                    with lock:
                        won.append((pfn, vm.id))
            client.close()

        threads = [threading.Thread(target=grab, args=(vm, seed)) for seed, vm in enumerate(vms)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(pfn for pfn, _ in won), list(range(64)), "each frame was won exactly once")
        owner = audit(self, [host], vms)
        self.assertEqual({(f[2], o[0]) for f, o in owner.items()}, set(won))

    def test_l1_across_the_hosts_of_a_shared_pool(self):
        hosts = [Host(self.admin) for _ in range(3)]
        name = "cxl-" + new_id()[:8]
        self.assert_ok(self.admin.put("/v1/pools/" + name, {"base_pfn": 0, "frames": 32, "hosts": [h.id for h in hosts]}), 201)
        vms = [Vm(h, state="secure") for h in hosts]
        wins = []
        for pfn in range(32):
            oks = [h.send(v.item("page_in", pfn, 1, pfn, pool=name))["accepted"] for h, v in zip(hosts, vms)]
            wins.append(sum(oks))
        self.assertEqual(wins, [1] * 32)
        audit(self, hosts, vms, [name])

    def test_l1_every_way_to_bind_is_checked(self):
        host = Host(self.admin)
        vm, thief = Vm(host, state="secure"), Vm(host, state="transient")
        self.accepted(host.send(vm.item("page_in", 0, 8, 0)))
        for item in (thief.item("page_in", 0, 1, 3), thief.item("unshare", 0, 1, 3), thief.item("page_in", 0, 4, 7),
                     {"vm": thief.id, "op": "page_in", "pool": "local", "gfns": [9, 4], "pfns": [100, 3]},
                     {"vm": thief.id, "op": "unshare", "pool": "local", "runs": [[0, 1, 50], [1, 1, 0]]},
                     {"vm": thief.id, "op": "page_in", "pool": "local", "gfns": [1, 2], "pfns": [60, 60]},
                     vm.item("page_in", 100, 1, 0)):
            with self.subTest(item=item):
                self.refused(host.send(item), "frame-conflict")
        self.assertEqual(len(audit(self, [host], [vm, thief])), 8)


class OneFrameForOneGfn(Case):
    def test_l2_a_resident_page_takes_no_second_frame(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 1)))
        for op in ("page_in", "unshare"):
            self.refused(host.send(vm.item(op, 0, 1, 2)), "gfn-transition")
        self.assertEqual(audit(self, [host], [vm]), {(host.id, "local", 1): (vm.id, 0)})

    def test_l2_what_stops_being_resident_gives_its_frame_back(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        for op in ("page_out", "share"):
            self.accepted(host.send(vm.item("unshare", 0), vm.item("page_in", 0, 1, 9), vm.item(op, 0)))
            self.assertEqual(audit(self, [host], [vm]), {})


class LifecycleHolds(Case):
    def test_l3_a_thousand_random_steps_against_the_tables(self):
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        rng, pages = random.Random(seed), 24
        host = Host(self.admin, frames=40)
        vms = [Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": pages}]) for _ in range(2)]
        model = Model(pages)
        for step in range(1000):
            which = rng.randrange(2)
            with self.subTest(seed=seed, step=step):
                if rng.random() < 0.03:
                    event = rng.choice(["start", "init_start", "init_done", "init_abort", "terminate"])
                    self.assertEqual(vms[which].event(event).status == 200, model.event(which, event), event)
                else:
                    op, gfn, count = rng.choice(["share", "unshare", "page_in", "page_out"]), rng.randrange(pages), rng.randint(1, 4)
                    pfn = rng.randrange(40) if op == "page_in" or op == "unshare" and rng.random() < 0.5 else None
                    ok = host.send(vms[which].item(op, gfn, count, pfn))["results"][0]["ok"]
                    self.assertEqual(ok, model.apply(which, op, gfn, count, pfn), (op, gfn, count, pfn))
        for which, vm in enumerate(vms):
            self.assertEqual(vm.get()["state"], model.vms[which])
            for gfn in range(pages):
                state, resident, pfn = vm.page(gfn)
                wanted, frame = model.pages[which][gfn]
                self.assertEqual((state, resident, pfn), (wanted if wanted != "out" else "secure", wanted == "secure", frame))
        audit(self, [host], vms)


class Model:
    """The naive ledger: a dictionary for each page."""

    def __init__(self, pages):
        self.vms = ["normal", "normal"]
        self.pages = [[("normal", None)] * pages for _ in range(2)]

    def event(self, which, event):
        table = {("normal", "start"): "normal", ("normal", "init_start"): "transient", ("normal", "terminate"): "normal",
                 ("secure", "terminate"): "normal", ("transient", "init_done"): "secure",
                 ("transient", "init_abort"): "normal", ("transient", "terminate"): "normal"}
        wanted = table.get((self.vms[which], event))
        if wanted is None:
            return False
        if event == "init_done":
            self.pages[which] = [("out", None) if p[0] == "normal" else p for p in self.pages[which]]
        elif wanted == "normal" and event != "start":
            self.pages[which] = [("normal", None)] * len(self.pages[which])
        self.vms[which] = wanted
        return True

    def apply(self, which, op, gfn, count, pfn):
        pages = self.pages[which]
        if self.vms[which] == "normal" or gfn + count > len(pages):
            return False
        bound = {p[1] for vm in self.pages for p in vm if p[1] is not None}
        new = []
        for i in range(count):
            state, frame = pages[gfn + i]
            if op == "share":
                new.append(("shared", None))
            elif op == "page_out":
                if state != "secure":
                    return False
                new.append(("out", None))
            elif pfn is None:
                new.append((state, frame) if state == "secure" else ("out", None))
            else:
                if state == "secure" or op == "page_in" and state == "shared":
                    return False
                if pfn + i >= 40 or pfn + i in bound:
                    return False
                new.append(("secure", pfn + i))
        pages[gfn:gfn + count] = new
        return True


class SlotsHold(Case):
    def test_l4_no_transition_crosses_or_leaves_a_slot(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 10, "pages": 10}, {"slot": 1, "base_gfn": 20, "pages": 10}])
        for gfn, count, first in ((9, 1, 9), (9, 2, 9), (15, 10, 20), (10, 20, 20), (29, 2, 30), (30, 1, 30)):
            for op in ("share", "unshare", "page_out"):
                with self.subTest(gfn=gfn, count=count, op=op):
                    self.refused(host.send(vm.item(op, gfn, count)), "gfn-out-of-slot", gfn=first)
        self.accepted(host.send(vm.item("share", 10, 10), vm.item("share", 20, 10)))

    def test_l4_slots_never_overlap(self):
        vm = Vm(Host(self.admin), slots=[{"slot": 0, "base_gfn": 100, "pages": 100}])
        for base, pages in ((0, 101), (199, 1), (150, 10), (0, 1000), (100, 100)):
            with self.subTest(base=base):
                self.assert_problem(self.admin.put(vm.path + "/slots/1", {"base_gfn": base, "pages": pages}), 409, "slot-overlap")
        for base, pages in ((0, 100), (200, 100)):
            self.assertIn(self.admin.put(f"{vm.path}/slots/{base + 1}", {"base_gfn": base, "pages": pages}).status, (200, 201))


class ClaimBeforeUse(Case):
    def test_l5_an_answered_claim_is_in_the_ledger_after_any_crash(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        for i in range(5):
            self.accepted(host.send(vm.item("page_in", 2 * i, 1, 7 * i)))
            self.server.crash()
            self.assertEqual(vm.page(2 * i), ("secure", True, 7 * i))
        audit(self, [host], [vm])


class ExactUndo(Case):
    def test_l6_a_refusal_in_the_middle_touches_nobody(self):
        host = Host(self.admin)
        vm, victim = Vm(host, state="secure"), Vm(host, state="secure")
        self.accepted(host.send(victim.item("page_in", 0, 4, 50), vm.item("page_in", 10, 2, 40), vm.item("share", 20, 2)))
        before = (audit(self, [host], [vm, victim]), vm.runs(), victim.runs())
        attacks = ([vm.item("page_in", 0, 8, 46)], [vm.item("share", 10, 4087)],
                   [{"vm": vm.id, "op": "page_in", "pool": "local", "runs": [[0, 4, 0], [4, 4, 8], [30, 2, 51]]}],
                   [{"vm": vm.id, "op": "page_out", "gfns": [10, 11, 12]}])
        for items in attacks:
            with self.subTest(items=items):
                self.assertEqual(host.send(*items)["rejected"], 1)
                self.assertEqual((audit(self, [host], [vm, victim]), vm.runs(), victim.runs()), before)
        atomic = [vm.item("share", 10, 2), victim.item("page_out", 0, 4), vm.item("page_in", 0, 4, 50),
                  vm.item("page_out", 20)]
        self.assert_problem(host.send(*atomic, atomic=True), 409, "batch-rejected")
        self.assertEqual((audit(self, [host], [vm, victim]), vm.runs(), victim.runs()), before)


class DurableAnswers(Case):
    def test_l7_what_was_acknowledged_survives_kill_9_under_load(self):
        host = Host(self.admin)
        vms = [Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 1 << 16}]) for _ in range(4)]
        acknowledged = [[] for _ in vms]

        def claim(which):
            client = self.server.client()
            for i in range(10 ** 6):
                pfn = which * 100000 + i
                try:
                    answer = host.send(vms[which].item("page_in", i, 1, pfn), client=client)
                except Exception:
                    return
                if answer.status == 200 and answer["accepted"] == 1:
                    acknowledged[which].append((i, pfn))

        threads = [threading.Thread(target=claim, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        threads[0].join(0.7)
        self.server.kill()
        for thread in threads:
            thread.join()
        self.server.start()
        self.admin = self.server.client()
        for which, vm in enumerate(vms):
            self.assertTrue(acknowledged[which], "nothing was acknowledged before the kill")
            vm.client = self.admin
            have = {}
            for run in vm.runs():
                if run["resident"]:
                    have.update({run["gfn"] + i: run["frame"]["pfn"] + i for i in range(run["count"])})
            for gfn, pfn in acknowledged[which]:
                self.assertEqual(have.get(gfn), pfn)
            self.assertLessEqual(len(have) - len(acknowledged[which]), 1, "more than the one request under way")

    def test_l7_a_clean_stop_under_load_is_quick_and_loses_nothing(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 1 << 20}])
        for round_ in range(5):
            acknowledged, base = [], round_ * 100000

            def claim(which, acknowledged=acknowledged, base=base):
                client = self.server.client()
                for i in range(10000):
                    page = base + which * 10000 + i
                    try:
                        answer = host.send(vm.item("page_in", page, 1, page), client=client)
                        client.get(f"/v1/operations/{new_id()}?wait=1")
                    except Exception:
                        return
                    if answer.status == 200 and answer["accepted"] == 1:
                        acknowledged.append(page)

            threads = [threading.Thread(target=claim, args=(which,)) for which in range(8)]
            for thread in threads:
                thread.start()
            threads[0].join(0.3)
            began = time.monotonic()
            self.assertEqual(self.server.stop(), 0, self.server.log()[-2000:])
            self.assertLess(time.monotonic() - began, 5)
            for thread in threads:
                thread.join()
            self.server.start()
            bound = {r["pfn"] + i for r in host.frames(base, 100000) for i in range(r["count"])}
            self.assertTrue(acknowledged)
            self.assertLessEqual(set(acknowledged), bound)

    def test_l7_a_clean_stop_keeps_everything(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 8, 0), vm.item("share", 20, 2)))
        before = (vm.get(), vm.runs(), host.frames())
        self.server.restart()
        self.assertEqual((vm.get(), vm.runs(), host.frames()), before)


class Fencing(Case):
    def test_l8_the_old_holder_can_do_nothing(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 0)))
        old = host.current()
        host.boot = OTHER_BOOT
        host.register()
        mixed = ({"boot_id": old["boot_id"], "epoch": host.epoch}, {"boot_id": host.boot, "epoch": old["epoch"]})
        agent = self.as_token("agent", host.id)
        for stale in (old, *mixed):
            for path, more in ((host.path + "/transitions", {"items": [vm.item("share")]}), (host.path + "/heartbeat", {}),
                               (vm.path + "/lifecycle", {"event": "init_start"}),
                               (host.path + "/quarantine", {"items": [{"pool": "local", "pfn": 1, "count": 1, "reason": "x"}]})):
                with self.subTest(stale=stale, path=path):
                    self.assert_problem(agent.post(path, dict(stale, **more)), 409, "host-fenced")
        self.assertEqual((vm.get()["state"], host.frames()), ("normal", []))

    def test_l8_a_silent_host_keeps_its_frames_a_rebooted_one_does_not(self):
        host, peer = Host(self.admin), Host(self.admin)
        name = "l8-" + new_id()[:8]
        self.assert_ok(self.admin.put("/v1/pools/" + name, {"base_pfn": 0, "frames": 8, "hosts": [host.id, peer.id]}), 201)
        vm, waiting = Vm(host, state="secure"), Vm(peer, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 3, pool=name)))
        claim = waiting.item("page_in", 0, 1, 3, pool=name)
        self.refused(peer.send(claim), "frame-conflict")
        self.server.restart()
        self.refused(peer.send(claim), "frame-conflict")
        host.boot = OTHER_BOOT
        host.register()
        self.accepted(peer.send(claim))

    def test_l8_only_the_current_placement_acts(self):
        a, b = Host(self.admin), Host(self.admin)
        vm = Vm(a, state="secure")
        self.refused(b.send(vm.item("share")), "vm-not-on-host", host=a.id)
        self.assertEqual(vm.page(0)[0], "secure")


class OneAlias(Case):
    def test_l9_a_page_has_one_key_whatever_its_alias(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", arch="tdx", gpa={"shared_bit": 47})
        alias = 1 << (47 - 12)
        self.accepted(host.send(vm.item("page_in", 5, 1, 0)))
        for op, pfn in (("share", None), ("page_in", 1), ("unshare", None)):
            problem = self.refused(host.send(vm.item(op, 5 | alias, pfn=pfn)), "gfn-out-of-slot", gfn=5 | alias)
            self.assertIn("the shared alias of GFN 5", problem["detail"])
        problem = self.refused(host.send(vm.item("share", alias << 1)), "gfn-out-of-slot")
        self.assertNotIn("alias", problem["detail"])
        self.assertEqual(vm.page(5), ("secure", True, 0))
        self.assertEqual(len(audit(self, [host], [vm])), 1)

    def test_l9_a_page_is_private_or_shared_never_both(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", arch="tdx", gpa={"shared_bit": 47})
        self.accepted(host.send(vm.item("page_in", 5, 1, 0), vm.item("share", 5)))
        self.assertEqual((vm.page(5), host.frames()), (("shared", False, None), []))
        self.refused(host.send(vm.item("page_in", 5, 1, 0)), "gfn-transition", state="shared")
        self.accepted(host.send(vm.item("unshare", 5, 1, 0)))
        self.assertEqual(vm.page(5), ("secure", True, 0))


class NothingSecret(Case):
    def test_l10_tokens_are_in_no_log(self):
        made = self.admin.post("/v1/tokens", {"role": "viewer", "name": "x"})
        self.server.client(made["secret"]).get("/v1/hosts")
        self.server.client(made["secret"] + "x").get("/v1/hosts")
        self.assertNotIn(made["secret"], self.server.log())
        self.assertNotIn(self.server.token, self.server.log())


if __name__ == "__main__":
    unittest.main()
