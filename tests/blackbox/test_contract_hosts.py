"""Hosts, pools and quarantine, as the contract says."""
import unittest

from harness import BOOT, LIMIT, OTHER_BOOT, Case, Host, Vm, new_id, pef_run


class Registration(Case):
    def test_new_is_201_and_known_is_200(self):
        host = new_id()
        body = {"name": "alpha", "boot_id": BOOT, "backends": [{"arch": "pef", "kind": "emulated"}],
                "pools": [{"pool": "local", "base_pfn": 0, "frames": 1024}]}
        first = self.assert_ok(self.admin.put("/v1/hosts/" + host, body), 201)
        self.assertEqual((first["state"], first["lease_seconds"], first["name"]), ("up", 15, "alpha"))
        self.assertGreaterEqual(first["epoch"], 1)
        again = self.assert_ok(self.admin.put("/v1/hosts/" + host, body))
        self.assertEqual((again["epoch"], again["revision"]), (first["epoch"], first["revision"]))

    def test_shows_what_it_has(self):
        host = Host(self.admin, frames=512)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 7, 100)))
        got = self.assert_ok(self.admin.get(host.path))
        self.assertEqual((got["frames_total"], got["frames_bound"], got["vms"]), (512, 7, 1))
        self.assertIn("last_seen", got.json)
        self.assertIn(host.id, [h["id"] for h in self.admin.items("/v1/hosts")])

    def test_extra_members_of_a_backend_are_kept_for_its_kind(self):
        body = Host(self.admin).body()
        body["backends"] = [{"arch": "kvm", "kind": "kvm", "guest_memfd": True}]
        body["agent_version"] = "1.2"
        got = self.assert_ok(self.admin.put("/v1/hosts/" + new_id(), body), 201)
        self.assertEqual(got["backends"], body["backends"])

    def test_another_boot_id_resets_its_vms_and_adds_one_to_the_epoch(self):
        host = Host(self.admin)
        vm, other = Vm(host, state="secure"), Vm(host, state="transient")
        self.accepted(host.send(vm.item("page_in", 0, 10, 0), vm.item("share", 20, 5), other.item("page_in", 0, 1, 50)))
        before, vm_epoch, mark = host.epoch, vm.get()["epoch"], self.admin.get(host.path)["revision"]
        host.boot = OTHER_BOOT
        self.assertEqual(host.register().status, 200)
        self.assertEqual(host.epoch, before + 1)
        self.assertEqual(host.frames(), [])
        for one in (vm, other):
            self.assertEqual(one.get()["state"], "normal")
            self.assertEqual([r["state"] for r in one.runs()], ["normal"])
        self.assertGreater(vm.get()["epoch"], vm_epoch)
        events = self.admin.get(f"/v1/events?after={mark}&limit=1000")["items"]
        self.assertTrue([e for e in events if e["type"] == "host.rebooted" and e.get("host") == host.id], events)

    def test_a_pool_may_grow(self):
        host = Host(self.admin, frames=100)
        host.pool["frames"] = 200
        self.assertEqual(host.register().status, 200)
        self.assertEqual(self.admin.get(host.path)["frames_total"], 200)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 199)))

    def test_a_pool_does_not_shrink_below_a_bound_frame(self):
        host = Host(self.admin, frames=100)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 60)))
        host.pool["frames"] = 60
        self.assert_problem(self.admin.put(host.path, host.body()), 409, "pool-in-use")
        self.assertEqual(self.admin.get(host.path)["frames_total"], 100)
        host.pool["frames"] = 61
        self.assertEqual(host.register().status, 200)

    def test_an_unknown_host_is_404(self):
        for path in ("/v1/hosts/" + new_id(), f"/v1/hosts/{new_id()}/frames?pool=local&pfn=0&count=1"):
            self.assert_problem(self.admin.get(path), 404, "host-not-found")
        self.assert_problem(self.admin.post(f"/v1/hosts/{new_id()}/heartbeat", {"boot_id": BOOT, "epoch": 1}), 404,
                            "host-not-found")

    def test_wrong_bodies_name_the_culprit(self):
        good = Host(self.admin).body()
        for pointer, change in (
                ("/name", {"name": 5}), ("/boot_id", {"boot_id": None}), ("/boot_id", {"boot_id": ""}),
                ("/surprise", {"surprise": 1}), ("/backends/0/arch", {"backends": [{"arch": "z80", "kind": "emulated"}]}),
                ("/backends", {"backends": {}}), ("/backends/0/kind", {"backends": [{"arch": "pef", "kind": "real"}]}),
                ("/pools/0/frames", {"pools": [{"pool": "local", "base_pfn": 0, "frames": -1}]}),
                ("/pools/0/frames", {"pools": [{"pool": "local", "base_pfn": 0, "frames": 1.5}]}),
                ("/pools/0/base_pfn", {"pools": [{"pool": "local", "base_pfn": LIMIT, "frames": 1}]}),
                ("/pools/0/page_shift", {"pools": [{"pool": "local", "base_pfn": 0, "frames": 1, "page_shift": 3}]}),
                ("/pools/0/extra", {"pools": [{"pool": "local", "base_pfn": 0, "frames": 1, "extra": 1}]})):
            with self.subTest(pointer=pointer, change=change):
                answer = self.admin.put("/v1/hosts/" + new_id(), {**good, **change})
                self.assert_problem(answer, 400, "invalid-request", pointer=pointer)

    def test_missing_members_are_refused(self):
        good = Host(self.admin).body()
        for member in ("name", "boot_id", "backends", "pools"):
            with self.subTest(member=member):
                body = {k: v for k, v in good.items() if k != member}
                self.assert_problem(self.admin.put("/v1/hosts/" + new_id(), body), 400, "invalid-request")

    def test_a_pool_must_not_run_past_the_last_frame(self):
        body = Host(self.admin).body()
        body["pools"] = [{"pool": "local", "base_pfn": LIMIT - 10, "frames": 11}]
        self.assert_problem(self.admin.put("/v1/hosts/" + new_id(), body), 400, "invalid-request")


class Heartbeat(Case):
    def test_says_lease_and_what_waits(self):
        host = Host(self.admin)
        path = host.path + "/heartbeat"
        answer = self.assert_ok(self.admin.post(path, host.current()))
        self.assertEqual(answer.json, {"lease_seconds": 15, "operations_pending": 0})
        vm = Vm(host)
        self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": "launch"}), 202)
        self.assertEqual(self.admin.post(path, host.current())["operations_pending"], 1)

    def test_a_stale_holder_is_fenced_out(self):
        host = Host(self.admin)
        for body in ({"boot_id": OTHER_BOOT, "epoch": host.epoch}, {"boot_id": host.boot, "epoch": host.epoch + 1}):
            self.assert_problem(self.admin.post(host.path + "/heartbeat", body), 409, "host-fenced")
            self.assert_problem(self.admin.post(host.path + "/transitions", dict(body, items=[
                {"vm": new_id(), "op": "share", "gfn": 0, "count": 1}])), 409, "host-fenced")


class Lease(Case):
    flags = ("--lease-seconds", "1")

    def test_a_silent_host_is_unreachable_and_keeps_its_frames(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 1, 5)))
        state = wait_until(lambda: self.admin.get(host.path)["state"], "unreachable")
        self.assertEqual(state, "unreachable")
        self.assertEqual((len(host.frames()), vm.get()["state"]), (1, "secure"))
        self.assert_ok(self.admin.post(host.path + "/heartbeat", host.current()))
        self.assertEqual(self.admin.get(host.path)["state"], "up")


def wait_until(read, wanted, seconds=15):
    import time
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if read() == wanted:
            break
        time.sleep(0.05)
    return read()


class Fence(Case):
    def test_releases_all_in_every_pool_and_lets_it_come_back(self):
        host, peer = Host(self.admin), Host(self.admin)
        name = "fence-" + new_id()[:8]
        self.assert_ok(self.admin.put("/v1/pools/" + name, {"base_pfn": 0, "frames": 64, "hosts": [host.id, peer.id]}), 201)
        vm, untouched = Vm(host, state="secure"), Vm(peer, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 2, 0), vm.item("page_in", 10, 2, 0, pool=name)))
        self.accepted(peer.send(untouched.item("page_in", 0, 2, 8, pool=name)))
        epoch = host.epoch
        fenced = self.assert_ok(self.admin.post(host.path + "/fence", {"force": True}))
        self.assertEqual((fenced["state"], fenced["epoch"]), ("fenced", epoch + 1))
        self.assertEqual(host.frames(), [])
        self.assertEqual([r["vm"] for r in self.admin.get(f"/v1/pools/{name}/frames?pfn=0&count=64")["items"]],
                         [untouched.id])
        self.assertEqual(vm.get()["state"], "normal")
        self.assert_problem(self.admin.post(host.path + "/heartbeat", host.current()), 409, "host-fenced")
        self.assert_problem(host.send(vm.item("share")), 409, "host-fenced")
        back = host.register()
        self.assertEqual((back["state"], back["epoch"]), ("up", epoch + 1))

    def test_of_a_host_whose_lease_lives_wants_force(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 2, 0)))
        for body in (None, {}, {"force": False}):
            refused = self.admin.post(host.path + "/fence", body)
            self.assert_problem(refused, 409, "host-alive")
            self.assertEqual(refused["host"], host.id)
            self.assertEqual((len(host.frames()), vm.get()["state"]), (1, "secure"))
        self.assert_ok(self.admin.post(host.path + "/heartbeat", host.current()))
        self.assert_ok(self.admin.post(host.path + "/fence", {"force": True}))
        self.assert_ok(self.admin.post(host.path + "/fence", {}))  # it is fenced already

    def test_is_for_admins(self):
        host = Host(self.admin)
        for role, of in (("operator", None), ("viewer", None), ("agent", host.id)):
            self.assert_problem(self.as_token(role, of).post(host.path + "/fence", {}), 403, "forbidden")


class Frames(Case):
    def test_runs_are_maximal_in_order_and_cut_to_the_window(self):
        host = Host(self.admin)
        vm, other = Vm(host, state="secure"), Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 4, 100), vm.item("page_in", 4, 4, 104),
                                other.item("page_in", 8, 2, 108), other.item("page_in", 20, 1, 110),
                                vm.item("page_in", 50, 1, 99)))
        self.assertEqual(host.frames(), [pef_run(run) for run in (
            {"pfn": 99, "count": 1, "vm": vm.id, "gfn": 50}, {"pfn": 100, "count": 8, "vm": vm.id, "gfn": 0},
            {"pfn": 108, "count": 2, "vm": other.id, "gfn": 8}, {"pfn": 110, "count": 1, "vm": other.id, "gfn": 20})])
        self.assertEqual(host.frames(103, 6), [pef_run({"pfn": 103, "count": 5, "vm": vm.id, "gfn": 3}),
                                               pef_run({"pfn": 108, "count": 1, "vm": other.id, "gfn": 8})])
        self.assertEqual(host.frames(0, 99), [])

    def test_answers_carry_the_revision(self):
        host = Host(self.admin)
        answer = self.admin.get(host.path + "/frames?pool=local&pfn=0&count=1")
        self.assertIsInstance(answer["revision"], int)

    def test_refuses_wrong_windows(self):
        host = Host(self.admin)
        for query in ("pfn=0&count=0", "pfn=-1&count=1", f"pfn={LIMIT}&count=1", "pfn=x&count=1", "pfn=0&count=1.5",
                      f"pfn={LIMIT - 1}&count=2", "pfn=0&count=1&what=1", f"pfn=0&count={1 << 70}"):
            with self.subTest(query=query):
                self.assert_problem(self.admin.get(f"{host.path}/frames?pool=local&{query}"), 400, "invalid-request")


class Pools(Case):
    def setUp(self):
        super().setUp()
        self.name = "pool-" + new_id()[:8]
        self.path = "/v1/pools/" + self.name

    def test_put_and_list(self):
        a, b = Host(self.admin), Host(self.admin)
        body = {"base_pfn": 1000, "frames": 64, "hosts": [a.id, b.id]}
        made = self.assert_ok(self.admin.put(self.path, body), 201)
        self.assertIn("revision", made.json)
        self.assertEqual(self.assert_ok(self.admin.put(self.path, body))["revision"], made["revision"])
        self.assertIn(self.name, [p["pool"] if "pool" in p else p["name"] for p in self.admin.items("/v1/pools")])

    def test_two_hosts_cannot_have_one_frame(self):
        a, b = Host(self.admin), Host(self.admin)
        self.assert_ok(self.admin.put(self.path, {"base_pfn": 0, "frames": 64, "hosts": [a.id, b.id]}), 201)
        va, vb = Vm(a, state="secure"), Vm(b, state="secure")
        self.accepted(a.send(va.item("page_in", 5, 4, 8, pool=self.name)))
        problem = self.refused(b.send(vb.item("page_in", 0, 8, 4, pool=self.name)), "frame-conflict", conflict_frames=4)
        self.assertEqual(problem["conflicts"], [{"pool": self.name, "pfn": 8, "count": 4, "vm": va.id, "gfn": 5}])
        self.assertEqual(vb.page(0), ("secure", False, None))

    def test_an_unattached_pool_is_out_of_pool(self):
        a, b = Host(self.admin), Host(self.admin)
        self.assert_ok(self.admin.put(self.path, {"base_pfn": 0, "frames": 64, "hosts": [a.id]}), 201)
        vb = Vm(b, state="secure")
        self.refused(b.send(vb.item("page_in", 0, 1, 0, pool=self.name)), "frame-out-of-pool", pool=self.name)

    def test_attaches_only_to_hosts_of_its_page_size(self):
        small, big = Host(self.admin), Host(self.admin, shift=16)
        body = {"base_pfn": 0, "frames": 64, "page_shift": 16, "hosts": [small.id, big.id]}
        answer = self.admin.put(self.path, body)
        self.assertIn(answer.status, (409, 422), answer)
        self.assertEqual(answer.slug, "pool-mismatch")
        self.assert_ok(self.admin.put(self.path, dict(body, hosts=[big.id])), 201)

    def test_may_grow_and_not_shrink_below_a_bound_frame(self):
        a = Host(self.admin)
        body = {"base_pfn": 0, "frames": 64, "hosts": [a.id]}
        self.assert_ok(self.admin.put(self.path, body), 201)
        vm = Vm(a, state="secure")
        self.accepted(a.send(vm.item("page_in", 0, 1, 63, pool=self.name)))
        self.assert_problem(self.admin.put(self.path, dict(body, frames=63)), 409, "pool-in-use")
        self.assert_problem(self.admin.put(self.path, dict(body, hosts=[])), 409, "pool-in-use")
        self.assert_ok(self.admin.put(self.path, dict(body, frames=65)))
        self.assertEqual(self.admin.get(self.path + "/frames?pfn=0&count=65")["items"],
                         [pef_run({"pfn": 63, "count": 1, "vm": vm.id, "gfn": 0})])

    def test_names_hosts_and_roles_are_checked(self):
        a = Host(self.admin)
        body = {"base_pfn": 0, "frames": 64, "hosts": [a.id]}
        for name in ("UPPER", "a_b", "x" * 64, "local"):
            with self.subTest(name=name):
                self.assertIn(self.admin.put("/v1/pools/" + name, body).status, (400, 404, 409))
        self.assert_problem(self.admin.put(self.path, dict(body, hosts=[new_id()])), 404, "host-not-found")
        self.assert_problem(self.as_token("operator").put(self.path, body), 403, "forbidden")
        self.assert_problem(self.admin.get(self.path + "/frames?pfn=0&count=1"), 404, "pool-not-found")


class UnknownVms(Case):
    def report(self, host, count):
        items = [{"vm": new_id(), "reason": "absent", "detail": "none", "arch": "pef", "state": "secure", "pages": 4,
                  "disputed_pages": 0, "disputed": []} for _ in range(count)]
        return self.admin.put(host.path + "/unknown-vms", dict(host.current(), items=items))

    def test_all_hosts_together_report_no_more_than_a_limit(self):
        hosts = [Host(self.admin) for _ in range(17)]
        for host in hosts[:16]:
            self.assert_ok(self.report(host, 1024), 204)
        self.assert_problem(self.report(hosts[16], 1), 409, "limit-exceeded")
        self.assert_problem(self.report(hosts[0], 1025), 400, "invalid-request")
        self.assert_ok(self.report(hosts[0], 1024), 204)
        self.assert_ok(self.report(hosts[0], 1000), 204)
        self.assert_problem(self.report(hosts[16], 25), 409, "limit-exceeded")
        self.assert_ok(self.report(hosts[16], 24), 204)
        self.assertEqual(self.admin.get("/v1/summary")["unknown_vms"], 16384)


class Quarantine(Case):
    def items(self, *pfns, pool="local"):
        return [{"pool": pool, "pfn": p, "count": n, "reason": "undelegate failed"} for p, n in pfns]

    def put_away(self, host, *pfns, pool="local"):
        return self.admin.post(host.path + "/quarantine", dict(host.current(), items=self.items(*pfns, pool=pool)))

    def test_none_can_be_claimed_until_it_is_released(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.assert_ok(self.put_away(host, (10, 4)))
        problem = self.refused(host.send(vm.item("page_in", 0, 8, 8)), "frame-quarantined")
        runs = problem["frames"]
        self.assertEqual([(r["pool"], r["pfn"], r["count"]) for r in runs], [("local", 10, 4)])
        listed = self.admin.get(host.path + "/quarantine")["items"]
        self.assertEqual([(r["pool"], r["pfn"], r["count"], r["reason"]) for r in listed],
                         [("local", 10, 4, "undelegate failed")])
        self.assert_ok(self.admin.post(host.path + "/quarantine/release", dict(host.current(), items=self.items((10, 4)))))
        self.accepted(host.send(vm.item("page_in", 0, 8, 8)))

    def test_a_bound_frame_is_unbound_and_its_page_is_out(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 8, 100)))
        self.assert_ok(self.put_away(host, (102, 2)))
        self.assertEqual([(r["gfn"], r["count"], r["resident"]) for r in vm.runs(0, 8)],
                         [(0, 2, True), (2, 2, False), (4, 4, True)])
        self.assertEqual([r["pfn"] for r in host.frames()], [100, 104])

    def test_bound_frames_of_a_host_which_is_alive_are_the_holders_to_put_away(self):
        """Put away and released again they would be free, and hardware still has them (L5)."""
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 0, 8, 100)))
        before, revision = (vm.get(), vm.runs(0, 8)), self.admin.get("/v1/events?after=0&limit=1000")["next"]
        unnamed = {"items": self.items((50, 1), (102, 2))}
        self.assert_problem(self.admin.post(host.path + "/quarantine", unnamed), 409, "host-alive", host=host.id)
        self.assertEqual((vm.get(), vm.runs(0, 8)), before)
        self.assertEqual(self.admin.get(host.path + "/quarantine")["items"], [])
        self.assertEqual(self.admin.get(f"/v1/events?after={revision}")["items"], [])
        self.assert_ok(self.admin.post(host.path + "/quarantine", {"items": self.items((50, 1), (108, 2))}))
        self.assert_ok(self.put_away(host, (102, 2)))

    def test_survives_a_restart_and_ends_with_a_new_boot(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.assert_ok(self.put_away(host, (7, 1)))
        self.server.crash()
        self.refused(host.send(vm.item("page_in", 0, 1, 7)), "frame-quarantined")
        host.boot = OTHER_BOOT
        host.register()
        self.assertEqual(self.admin.get(host.path + "/quarantine")["items"], [])

    def test_release_is_for_admins_and_putting_away_for_its_agent_too(self):
        host, other = Host(self.admin), Host(self.admin)
        agent, stranger = self.as_token("agent", host.id), self.as_token("agent", other.id)
        body = dict(host.current(), items=self.items((1, 1)))
        self.assert_ok(agent.post(host.path + "/quarantine", body))
        self.assert_problem(stranger.post(host.path + "/quarantine", body), 403, "forbidden")
        self.assert_problem(agent.post(host.path + "/quarantine/release", body), 403, "forbidden")

    def test_outside_of_the_pool_is_refused(self):
        host = Host(self.admin, frames=10)
        answer = self.put_away(host, (10, 1))
        self.assertIn(answer.status, (400, 409, 422), answer)
        self.assertEqual(answer.slug, "frame-out-of-pool", answer)
        self.assertEqual(self.admin.get(host.path + "/quarantine")["items"], [])


if __name__ == "__main__":
    unittest.main()
