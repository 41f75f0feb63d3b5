"""VMs: their lifecycle table, slots, GFN views, maps and history, as the contract says."""
import time
import unittest

from harness import LIMIT, OTHER_BOOT, Case, Host, Vm, new_id, pef_run

EVENTS = ("start", "init_start", "init_done", "init_abort", "terminate")
VM_TABLE = {  # the law; None is an error cell
    "normal": ("normal", "transient", None, None, "normal"),
    "secure": (None, None, None, None, "normal"),
    "transient": (None, None, "secure", "normal", "normal"),
}


class Lifecycle(Case):
    def test_every_cell_of_the_table(self):
        host = Host(self.admin)
        for state, row in VM_TABLE.items():
            for event, wanted in zip(EVENTS, row):
                with self.subTest(state=state, event=event):
                    vm = Vm(host, state=state)
                    before = vm.get()
                    answer = vm.event(event)
                    if wanted is None:
                        self.assert_problem(answer, 409, "vm-transition", state=state, event=event)
                        self.assertEqual(vm.get(), before)
                    else:
                        self.assert_ok(answer)
                        self.assertEqual((answer["id"], answer["state"]), (vm.id, wanted))
                        self.assertEqual(vm.get()["state"], wanted)

    def test_init_done_makes_left_over_pages_secure_and_out(self):
        host = Host(self.admin)
        vm = Vm(host, state="transient", slots=[{"slot": 0, "base_gfn": 0, "pages": 100}])
        self.accepted(host.send(vm.item("page_in", 10, 5, 0), vm.item("share", 20, 5), vm.item("unshare", 30, 5)))
        self.assertEqual(vm.get()["pages"], {"normal": 85, "secure_resident": 5, "secure_out": 5, "shared": 5})
        vm.must("init_done")
        self.assertEqual(vm.get()["pages"], {"normal": 0, "secure_resident": 5, "secure_out": 90, "shared": 5})
        self.assertEqual([(r["gfn"], r["count"], r["state"], r["resident"]) for r in vm.runs()], [
            (0, 10, "secure", False), (10, 5, "secure", True), (15, 5, "secure", False), (20, 5, "shared", False),
            (25, 75, "secure", False)])

    def test_abort_and_terminate_make_all_normal_and_release_every_frame(self):
        for state, event in (("transient", "init_abort"), ("transient", "terminate"), ("secure", "terminate")):
            with self.subTest(state=state, event=event):
                host = Host(self.admin)
                vm, other = Vm(host, state=state), Vm(host, state="secure")
                self.accepted(host.send(vm.item("page_in", 0, 8, 0), vm.item("share", 20, 5),
                                        other.item("page_in", 0, 1, 100)))
                epoch = vm.get()["epoch"]
                got = vm.must(event)
                self.assertEqual(got["pages"], {"normal": 4096, "secure_resident": 0, "secure_out": 0, "shared": 0})
                self.assertGreater(got["epoch"], epoch)
                self.assertEqual([r["vm"] for r in host.frames()], [other.id])

    def test_slots_mirror_the_vm(self):
        vm = Vm(Host(self.admin), slots=[{"slot": 0, "base_gfn": 0, "pages": 10}, {"slot": 3, "base_gfn": 50, "pages": 10}])
        for event, state in (("init_start", "transient"), ("init_done", "secure"), ("terminate", "normal")):
            got = vm.must(event)
            self.assertEqual([s["state"] for s in got["slots"]], [state, state])

    def test_an_agent_must_prove_that_it_is_current(self):
        host, other = Host(self.admin), Host(self.admin)
        vm, agent = Vm(host), self.as_token("agent", host.id)
        path = vm.path + "/lifecycle"
        self.assertIn(agent.post(path, {"event": "init_start"}).status, (400, 403, 409))
        stale = {"event": "init_start", "boot_id": OTHER_BOOT, "epoch": host.epoch}
        self.assert_problem(agent.post(path, stale), 409, "host-fenced")
        self.assertEqual(vm.get()["state"], "normal")
        self.assert_problem(self.as_token("agent", other.id).post(path, dict(other.current(), event="init_start")), 403,
                            "forbidden")
        self.assert_problem(self.as_token("operator").post(path, {"event": "init_start"}), 403, "forbidden")
        self.assert_ok(agent.post(path, dict(host.current(), event="init_start")))

    def test_refuses_what_is_no_event(self):
        vm = Vm(Host(self.admin))
        for body, pointer in (({"event": "explode"}, "/event"), ({"event": 1}, "/event"), ({}, None),
                              ({"event": "start", "x": 1}, "/x"), ({"event": "start", "epoch": "1"}, "/epoch")):
            with self.subTest(body=body):
                answer = self.admin.post(vm.path + "/lifecycle", body)
                self.assert_problem(answer, 400, "invalid-request", **({"pointer": pointer} if pointer else {}))


class Making(Case):
    def test_shows_what_was_asked_for(self):
        host = Host(self.admin)
        answer = self.assert_ok(self.admin.post("/v1/vms", {
            "name": "db-1", "host": host.id, "arch": "tdx", "gpa": {"shared_bit": 47},
            "slots": [{"slot": 1, "base_gfn": 256, "pages": 100}, {"slot": 0, "base_gfn": 0, "pages": 256}]}), 201)
        vm = answer.json
        self.assertEqual(answer.headers["location"], "/v1/vms/" + vm["id"])
        self.assertEqual(answer.headers["etag"], f'"{vm["revision"]}"')
        self.assertEqual((vm["name"], vm["host"], vm["arch"], vm["state"]), ("db-1", host.id, "tdx", "normal"))
        self.assertEqual(vm["pages"], {"normal": 356, "secure_resident": 0, "secure_out": 0, "shared": 0})
        self.assertEqual(sorted((s["slot"], s["base_gfn"], s["pages"], s["state"]) for s in vm["slots"]),
                         [(0, 0, 256, "normal"), (1, 256, 100, "normal")])
        self.assertGreaterEqual(vm["epoch"], 1)
        self.assertEqual(self.admin.get("/v1/vms/" + vm["id"]).json, vm)

    def test_refusals(self):
        host = Host(self.admin)
        good = {"host": host.id, "arch": "pef", "slots": [{"slot": 0, "base_gfn": 0, "pages": 10}]}
        taken = Vm(host)
        two = [{"slot": 0, "base_gfn": 0, "pages": 10}, {"slot": 1, "base_gfn": 9, "pages": 1}]
        same = [{"slot": 0, "base_gfn": 0, "pages": 10}, {"slot": 0, "base_gfn": 20, "pages": 1}]
        for status, slug, change in (
                (409, "vm-exists", {"id": taken.id}), (409, "slot-overlap", {"slots": two}),
                (409, "slot-overlap", {"slots": same}), (404, "host-not-found", {"host": new_id()}),
                (422, "arch-unsupported", {"arch": "cca"})):
            with self.subTest(slug=slug, change=change):
                self.assert_problem(self.admin.post("/v1/vms", {**good, **change}), status, slug)

    def test_wrong_bodies_name_the_culprit(self):
        good = {"host": Host(self.admin).id, "arch": "pef", "slots": [{"slot": 0, "base_gfn": 0, "pages": 10}]}
        slot = good["slots"][0]
        for pointer, change in (
                ("/id", {"id": "no-uuid"}), ("/id", {"id": new_id().upper()}), ("/host", {"host": 7}),
                ("/arch", {"arch": "vax"}), ("/slots/0/pages", {"slots": [dict(slot, pages=0)]}),
                ("/slots/0/base_gfn", {"slots": [dict(slot, base_gfn=LIMIT)]}),
                ("/slots/0/base_gfn", {"slots": [dict(slot, base_gfn=True)]}),
                ("/slots/0/slot", {"slots": [dict(slot, slot=-1)]}), ("/slots/0/who", {"slots": [dict(slot, who=1)]}),
                ("/gpa/shared_bit", {"gpa": {"shared_bit": "47"}}), ("/gpa/bit", {"gpa": {"bit": 47}}),
                ("/nothing", {"nothing": None})):
            with self.subTest(pointer=pointer, change=change):
                self.assert_problem(self.admin.post("/v1/vms", {**good, **change}), 400, "invalid-request", pointer=pointer)

    def test_slots_do_not_wrap_and_stay_below_the_shared_bit(self):
        host = Host(self.admin)
        for more in ({"slots": [{"slot": 0, "base_gfn": LIMIT - 5, "pages": 6}]},
                     {"slots": [{"slot": 0, "base_gfn": (1 << 35) - 5, "pages": 6}], "gpa": {"shared_bit": 47}}):
            with self.subTest(more=more):
                self.assert_problem(self.admin.post("/v1/vms", {"host": host.id, "arch": "tdx", **more}), 400,
                                    "invalid-request")
        Vm(host, slots=[{"slot": 0, "base_gfn": LIMIT - 5, "pages": 5}])

    def test_a_shared_bit_is_one_that_the_architecture_has(self):
        host = Host(self.admin, arches=("snp", "pef", "tdx", "cca", "pkvm"))
        host.backends += [{"arch": "kvm", "kind": "kvm", "shared_bits": [47, 50]}]
        host.register()
        plain = Host(self.admin, arches=("kvm",))
        has = {"tdx": {47, 51}, "cca": set(range(31, 48)), "kvm": {47, 50}}
        for where, arches in ((host, ("snp", "pef", "tdx", "cca", "pkvm", "kvm")), (plain, ("kvm",))):
            for arch in arches:
                for bit in (13, 20, 30, 31, 39, 40, 46, 47, 48, 50, 51):
                    with self.subTest(arch=arch, bit=bit, host=where.id):
                        answer = self.admin.post("/v1/vms", {
                            "host": where.id, "arch": arch, "gpa": {"shared_bit": bit},
                            "slots": [{"slot": 0, "base_gfn": 0, "pages": 2}]})
                        if where is host and bit in has.get(arch, ()):
                            self.assertEqual(self.assert_ok(answer, 201)["gpa"], {"shared_bit": bit})
                            self.assert_ok(self.admin.delete("/v1/vms/" + answer["id"]), 204)
                            continue
                        self.assert_problem(answer, 422, "invalid-params", pointer="/gpa/shared_bit")
                        self.assertIn(f"arch {arch} has no shared bit {bit}", answer["detail"])

    def test_a_backend_registers_bits_and_nothing_else(self):
        host = Host(self.admin, arches=("kvm",))
        for bits, pointer in (("47", ""), ([12], "/0"), ([47, 64], "/1"), ([True], "/0"), (47, "")):
            host.backends = [{"arch": "kvm", "kind": "kvm", "shared_bits": bits}]
            self.assert_problem(self.admin.put(host.path, host.body()), 400, "invalid-request",
                                pointer="/backends/0/shared_bits" + pointer)

    def test_reads_take_a_gpa_by_either_alias_and_say_which(self):
        host = Host(self.admin, arches=("tdx", "cca"))
        for arch, bit in (("tdx", 47), ("tdx", 51), ("cca", 40)):
            with self.subTest(arch=arch, bit=bit):
                vm = Vm(host, arch=arch, state="transient", gpa={"shared_bit": bit})
                self.accepted(host.send(vm.item("share", 5)))
                for gpa, alias in ((5 << 12, "private"), ((5 << 12) + 4095, "private"),
                                   ((5 << 12) | 1 << bit, "shared"), ((5 << 12) + 7 | 1 << bit, "shared")):
                    for what in ("gfns", "history", "digests"):
                        by_gfn = self.assert_ok(self.admin.get(f"{vm.path}/{what}?gfn=5&count=2")).json
                        by_gpa = self.assert_ok(self.admin.get(f"{vm.path}/{what}?gpa={gpa}&count=2")).json
                        self.assertNotIn("alias", by_gfn)
                        self.assertEqual(by_gpa.pop("alias"), alias)
                        self.assertEqual(by_gpa, by_gfn)
                    self.assertEqual(self.admin.items(f"{vm.path}/gfns?gpa={gpa}")[0]["state"], "shared")
                for bad in (f"gpa={1 << bit + 1}", f"gpa={3 << bit}", "gpa=-1", "gpa=x", f"gpa={1 << 63}", "gpa=0&gfn=0"):
                    self.assert_problem(self.admin.get(f"{vm.path}/gfns?{bad}"), 400, "invalid-request")

    def test_a_gpa_of_a_vm_without_aliases_is_just_an_address(self):
        vm = Vm(Host(self.admin))
        answer = self.assert_ok(self.admin.get(f"{vm.path}/gfns?gpa={9 << 12}"))
        self.assertEqual((answer["items"][0]["gfn"], answer.json.get("alias")), (9, None))
        self.assert_problem(self.admin.get(f"{vm.path}/gfns?gpa={1 << 52}"), 400, "invalid-request")
        self.assertEqual(self.assert_ok(self.admin.get(f"{vm.path}/gfns?gpa={(1 << 52) - 1}"))["items"], [])

    def test_an_unknown_vm_is_404_everywhere(self):
        path = "/v1/vms/" + new_id()
        for method, tail, body in (("GET", "", None), ("DELETE", "", None), ("GET", "/gfns", None),
                                   ("GET", "/map?bins=4", None), ("GET", "/history?gfn=0", None),
                                   ("POST", "/lifecycle", {"event": "start"}), ("POST", "/operations", {"kind": "launch"}),
                                   ("PUT", "/slots/0", {"base_gfn": 0, "pages": 1}), ("DELETE", "/slots/0", None)):
            with self.subTest(method=method, tail=tail):
                self.assert_problem(self.admin.request(method, path + tail, body), 404, "vm-not-found")

    def test_delete_only_what_is_normal_and_has_nothing(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure")
        self.assert_problem(self.admin.delete(vm.path), 409, "vm-busy")
        vm.must("terminate")
        gone = self.assert_ok(self.admin.delete(vm.path), 204)
        self.assertEqual(gone.raw, b"")
        self.assert_problem(self.admin.get(vm.path), 404, "vm-not-found")
        self.assert_problem(self.admin.delete(vm.path), 404, "vm-not-found")
        self.assertEqual(self.admin.get(host.path)["vms"], 0)

    def test_lists_filter(self):
        host = Host(self.admin)
        a, b, c = Vm(host), Vm(host, state="transient"), Vm(host, arch="tdx")
        listed = lambda query: {v["id"] for v in self.admin.items(f"/v1/vms?host={host.id}{query}")}
        self.assertEqual(listed(""), {a.id, b.id, c.id})
        self.assertEqual(listed("&state=transient"), {b.id})
        self.assertEqual(listed("&arch=tdx"), {c.id})
        self.assertEqual(listed("&arch=tdx&state=transient"), set())
        self.assertEqual(listed("&limit=1"), {a.id, b.id, c.id})
        for query in ("state=odd", "arch=odd", "host=odd"):
            self.assert_problem(self.admin.get("/v1/vms?" + query), 400, "invalid-request")


class Slots(Case):
    def test_new_ones_start_normal_and_in_a_secure_vm_secure_and_out(self):
        host = Host(self.admin)
        for state, wanted in (("normal", "normal"), ("transient", "normal"), ("secure", "secure")):
            vm = Vm(host, state=state)
            answer = self.admin.put(vm.path + "/slots/1", {"base_gfn": 10000, "pages": 16})
            self.assertIn(answer.status, (200, 201), answer)
            self.assertEqual(vm.runs(10000, 16),
                             [pef_run({"gfn": 10000, "count": 16, "state": wanted, "resident": False})])

    def test_the_same_again_changes_nothing_and_another_place_is_an_overlap(self):
        vm = Vm(Host(self.admin))
        path, body = vm.path + "/slots/1", {"base_gfn": 10000, "pages": 16}
        self.assertIn(self.admin.put(path, body).status, (200, 201))
        revision = vm.get()["revision"]
        self.assert_ok(self.admin.put(path, body))
        self.assertEqual(vm.get()["revision"], revision)
        self.assert_problem(self.admin.put(path, {"base_gfn": 20000, "pages": 16}), 409, "slot-overlap")
        self.assert_problem(self.admin.put(vm.path + "/slots/2", {"base_gfn": 4095, "pages": 2}), 409, "slot-overlap")
        self.assertEqual(len(vm.get()["slots"]), 2)

    def test_deleting_one_releases_its_frames_and_no_others(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 8}, {"slot": 1, "base_gfn": 8, "pages": 8}])
        self.accepted(host.send(vm.item("page_in", 0, 8, 0), vm.item("page_in", 8, 8, 8)))
        self.assert_ok(vm.drop_slot(1), 204)
        self.assertEqual(host.frames(), [pef_run({"pfn": 0, "count": 8, "vm": vm.id, "gfn": 0})])
        self.assertEqual([(r["gfn"], r["count"]) for r in vm.runs()], [(0, 8)])
        self.refused(host.send(vm.item("share", 8)), "gfn-out-of-slot", gfn=8)
        self.assert_problem(self.admin.delete(vm.path + "/slots/1"), 404, "slot-not-found")

    def test_wrong_ones_are_refused(self):
        vm = Vm(Host(self.admin))
        for body in ({"base_gfn": 0}, {"base_gfn": -1, "pages": 1}, {"base_gfn": LIMIT - 1, "pages": 2},
                     {"base_gfn": 9000, "pages": 0}, {"base_gfn": 9000, "pages": 1, "slot": 1}):
            with self.subTest(body=body):
                self.assert_problem(self.admin.put(vm.path + "/slots/1", body), 400, "invalid-request")
        for name in ("x", "-1", "99999999999999999999", "1.0"):
            with self.subTest(name=name):
                self.assertIn(self.admin.put(f"{vm.path}/slots/{name}", {"base_gfn": 9000, "pages": 1}).status, (400, 404))


class Ends(Case):
    """Only the holder, or an admin's force, ends what hardware has on a host that is alive (L5)."""

    ENDS = (("transient", "init_abort"), ("transient", "terminate"), ("secure", "terminate"))
    NOBODY = {"boot_id": None, "epoch": None}

    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)

    def secure(self):
        """A secure VM with a resident slot 1, and who may claim its frames once they are free."""
        vm = Vm(self.host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 8}, {"slot": 1, "base_gfn": 8, "pages": 8}])
        self.accepted(self.host.send(vm.item("page_in", 8, 8, 100)))
        return vm, Vm(self.host, state="secure")

    def test_an_event_that_ends_a_vm_is_the_holders(self):
        for state, event in self.ENDS:
            with self.subTest(state=state, event=event):
                vm = Vm(self.host, state=state)
                before = vm.get()
                self.assertTrue(before["on_hardware"])
                refused = vm.event(event, **self.NOBODY)
                self.assert_problem(refused, 409, "host-alive", host=self.host.id)
                self.assertIn("operation abort" if event == "init_abort" else "operation terminate", refused["detail"])
                self.assert_problem(vm.event(event, force=False, **self.NOBODY), 409, "host-alive")
                self.assert_problem(vm.event(event, boot_id=OTHER_BOOT), 409, "host-fenced")
                self.assert_problem(vm.event(event, boot_id=OTHER_BOOT, force=True), 409, "host-fenced")
                self.assertEqual(vm.get(), before)
                ended = self.assert_ok(vm.event(event))
                self.assertEqual((ended["state"], ended["on_hardware"]), ("normal", False))

    def test_force_ends_it_and_is_for_admins(self):
        agent = self.as_token("agent", self.host.id)
        for state, event in self.ENDS:
            with self.subTest(state=state, event=event):
                vm = Vm(self.host, state=state)
                body = dict(self.host.current(), event=event, force=True)
                self.assert_problem(agent.post(vm.path + "/lifecycle", body), 403, "forbidden")
                self.assertEqual(vm.get()["state"], state)
                self.assertEqual(self.assert_ok(vm.event(event, force=True, **self.NOBODY))["state"], "normal")

    def test_error_cells_are_answered_first(self):
        for state, event in (("secure", "init_abort"), ("normal", "init_abort"), ("secure", "start")):
            self.assert_problem(Vm(self.host, state=state).event(event, **self.NOBODY), 409, "vm-transition", state=state, event=event)

    def test_what_releases_nothing_is_anybodys(self):
        vm = Vm(self.host)
        for event in ("terminate", "init_start", "init_done"):
            self.assert_ok(vm.event(event, **self.NOBODY))

    def test_a_slot_is_the_holders(self):
        vm, other = self.secure()
        path, before = vm.path + "/slots/1", vm.get()
        agent, operator = self.as_token("agent", self.host.id), self.as_token("operator")
        refused = self.admin.delete(path)
        self.assert_problem(refused, 409, "host-alive", host=self.host.id)
        self.assertIn("operation unplug", refused["detail"])
        self.assert_problem(operator.delete(path), 409, "host-alive")
        self.assert_problem(operator.delete(path + "?force=true"), 403, "forbidden")
        self.assert_problem(agent.delete(path + "?force=true"), 403, "forbidden")
        self.assert_problem(agent.delete(path), 400, "invalid-request")
        self.assert_problem(vm.drop_slot(1, boot_id=OTHER_BOOT), 409, "host-fenced")
        self.assert_problem(self.admin.delete(vm.path + "/slots/7"), 404, "slot-not-found")
        for query in (f"boot_id={self.host.boot}", "epoch=1", "force=yes", "force=", f"boot_id={self.host.boot}&epoch=x", "why=1"):
            self.assert_problem(self.admin.delete(f"{path}?{query}"), 400, "invalid-request")
        self.assertEqual(vm.get(), before)
        claim = other.item("page_in", 0, 8, 100)
        self.refused(self.host.send(claim), "frame-conflict")
        self.assert_ok(vm.drop_slot(1), 204)
        self.accepted(self.host.send(claim))
        self.assert_ok(self.admin.delete(vm.path + "/slots/0?force=true"), 204)

    def test_a_slot_of_a_vm_that_no_hardware_has_is_anybodys(self):
        vm = Vm(self.host)
        self.assert_ok(self.as_token("operator").delete(vm.path + "/slots/0"), 204)
        plain = Vm(self.host)
        plain.must("start")
        self.assert_problem(self.admin.delete(plain.path + "/slots/0"), 409, "host-alive")
        self.assert_problem(plain.event("terminate", **self.NOBODY), 409, "host-alive")
        plain.must("terminate")
        self.assert_ok(self.admin.delete(plain.path + "/slots/0"), 204)

    def test_a_vm_that_hardware_may_have_is_not_deleted(self):
        def busy(vm):
            refused = self.admin.delete(vm.path)
            self.assert_problem(refused, 409, "vm-busy")
            self.assertIn("terminate", refused["detail"])

        plain = Vm(self.host)
        made = plain.get()["ended"]
        plain.must("start")
        self.assertEqual((plain.get()["state"], plain.get()["on_hardware"], plain.get()["ended"]), ("normal", True, made))
        busy(plain)
        self.server.crash()
        busy(plain)
        self.server.restart()
        busy(plain)
        self.assertEqual(plain.get()["ended"], made)
        plain.must("terminate")
        self.server.crash()
        self.assertFalse(plain.get()["on_hardware"])
        self.assertGreater(plain.get()["ended"], made)
        self.assert_ok(self.admin.delete(plain.path), 204)

    def test_a_launch_that_was_handed_out_may_be_on_hardware(self):
        vm = Vm(self.host)
        op = self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": "launch"}), 202)["id"]
        self.assertFalse(vm.get()["on_hardware"])
        self.assert_ok(self.admin.get(self.host.path + "/operations"))
        self.assertTrue(vm.get()["on_hardware"])
        self.assert_ok(self.admin.post(f"/v1/operations/{op}/result", dict(self.host.current(), state="failed")))
        self.assert_problem(self.admin.delete(vm.path), 409, "vm-busy")
        self.server.crash()
        self.assertTrue(vm.get()["on_hardware"])
        self.assert_problem(self.admin.delete(vm.path), 409, "vm-busy")
        vm.must("terminate")
        self.assert_ok(self.admin.delete(vm.path), 204)

    def test_a_forced_deletion_ends_what_is_under_way(self):
        for delivered in (False, True):
            with self.subTest(delivered=delivered):
                vm = Vm(self.host)
                op = self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": "launch"}), 202)["id"]
                if delivered:
                    self.assert_ok(self.admin.get(self.host.path + "/operations"))
                self.assert_problem(self.admin.delete(vm.path), 409, "vm-busy")
                self.assert_problem(self.as_token("operator").delete(vm.path + "?force=true"), 403, "forbidden")
                self.assert_ok(self.admin.delete(vm.path + "?force=true"), 204)
                self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "cancelled")
                self.server.crash()
                self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "cancelled")
                self.assert_problem(self.admin.get(vm.path), 404, "vm-not-found")
                self.assertEqual(self.admin.get(self.host.path + "/operations")["items"], [])
        bound = Vm(self.host, state="secure")
        self.assert_problem(self.admin.delete(bound.path + "?force=true"), 409, "vm-busy")

    def test_a_cold_boot_and_a_fence_take_normal_vms_off_hardware(self):
        def reboot():
            self.host.boot = OTHER_BOOT
            self.host.register()

        def fence():
            self.assert_ok(self.admin.post(self.host.path + "/fence", {"force": True}))

        for lose in (reboot, fence):
            vm = Vm(self.host)
            vm.must("start")
            lose()
            self.server.crash()
            self.assertFalse(vm.get()["on_hardware"], lose.__name__)
            self.assert_ok(self.admin.delete(vm.path), 204)


class Leases(Case):
    flags = ("--lease-seconds", "1")

    def test_a_host_that_is_silent_does_not_stand_in_the_way(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 8}, {"slot": 1, "base_gfn": 8, "pages": 8}])
        end = time.monotonic() + 20
        while self.admin.get(host.path)["state"] == "up":
            self.assertLess(time.monotonic(), end)
            time.sleep(0.1)
        self.assert_ok(self.admin.delete(vm.path + "/slots/1"), 204)
        self.assert_ok(vm.event("terminate", boot_id=None, epoch=None))
        self.assert_ok(self.admin.delete(vm.path), 204)


class Views(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.vm = Vm(self.host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 64},
                                                       {"slot": 1, "base_gfn": 64, "pages": 64},
                                                       {"slot": 2, "base_gfn": 1000, "pages": 8}])

    def test_runs_are_maximal_and_end_where_the_contract_says(self):
        vm, host = self.vm, self.host
        self.accepted(host.send(vm.item("page_in", 0, 4, 100), vm.item("page_in", 4, 4, 104), vm.item("page_in", 8, 2, 300),
                                vm.item("share", 20, 4)))
        frame = lambda pfn: {"pool": "local", "pfn": pfn}
        self.assertEqual(vm.runs(), [pef_run(run) for run in (
            {"gfn": 0, "count": 8, "state": "secure", "resident": True, "frame": frame(100)},
            {"gfn": 8, "count": 2, "state": "secure", "resident": True, "frame": frame(300)},
            {"gfn": 10, "count": 10, "state": "secure", "resident": False},
            {"gfn": 20, "count": 4, "state": "shared", "resident": False},
            {"gfn": 24, "count": 40, "state": "secure", "resident": False},
            {"gfn": 64, "count": 64, "state": "secure", "resident": False},
            {"gfn": 1000, "count": 8, "state": "secure", "resident": False})])
        self.assertEqual(vm.runs(2, 3), [
            pef_run({"gfn": 2, "count": 3, "state": "secure", "resident": True, "frame": frame(102)})])
        self.assertEqual(vm.runs(128, 800), [])
        self.assertEqual(len(self.admin.items(vm.path + "/gfns?limit=1")), 7)

    def test_maps_count_pages_by_bins(self):
        self.accepted(self.host.send(self.vm.item("page_in", 0, 32, 0), self.vm.item("share", 64, 64)))
        bins = self.assert_ok(self.admin.get(self.vm.path + "/map?bins=8"))["bins"]
        self.assertEqual(len(bins), 8)
        for member, wanted in (("normal", 0), ("secure_resident", 32), ("shared", 64), ("secure_out", 40)):
            self.assertEqual(sum(b[member] for b in bins), wanted)
        for bad in ("0", "4097", "x"):
            self.assert_problem(self.admin.get(self.vm.path + "/map?bins=" + bad), 400, "invalid-request")

    def test_history_is_newest_first_and_of_that_page_alone(self):
        vm, host = self.vm, self.host
        self.accepted(host.send(vm.item("page_in", 0, 8, 0)))
        self.accepted(host.send(vm.item("share", 3)))
        self.accepted(host.send(vm.item("share", 50)))
        self.accepted(host.send(vm.item("unshare", 3)))
        items = self.assert_ok(self.admin.get(vm.path + "/history?gfn=3"))["items"]
        revisions = [i["revision"] for i in items]
        self.assertEqual(revisions, sorted(revisions, reverse=True))
        self.assertEqual([i["op"] for i in items if "op" in i][:3], ["unshare", "share", "page_in"])
        self.assertEqual(len(self.admin.get(vm.path + "/history?gfn=3&limit=1")["items"]), 1)
        self.assert_problem(self.admin.get(vm.path + "/history?gfn=-3"), 400, "invalid-request")

    def test_wrong_windows_are_refused(self):
        for query in ("gfn=-1", f"gfn={LIMIT}", "gfn=0&count=0", f"gfn={LIMIT - 1}&count=2", "gfn=a", "limit=0",
                      "limit=1001", "what=1"):
            with self.subTest(query=query):
                self.assert_problem(self.admin.get(f"{self.vm.path}/gfns?{query}"), 400, "invalid-request")


if __name__ == "__main__":
    unittest.main()
