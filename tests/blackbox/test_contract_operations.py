"""Operations: intents, long polls, delivery at least once, results."""
import http.client
import signal
import socket
import threading
import time
import unittest

from harness import OTHER_BOOT, Case, Host, Vm, new_id

RUN = {"gfn": 1, "count": 2}
KINDS = {"launch": {"resident": 2, "shared": [[0, 1]]}, "terminate": {}, "share": RUN, "unshare": dict(RUN, resident=True),
         "page_in": RUN, "page_out": RUN, "abort": {}, "plug": {"slot": 3, "base_gfn": 9000, "pages": 8}, "unplug": {"slot": 0}}


class Operations(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.vm = Vm(self.host)

    def ask(self, kind="launch", **more):
        return self.assert_ok(self.admin.post(self.vm.path + "/operations", {"kind": kind, **more}), 202)

    def deliver(self, wait=0, client=None):
        return self.assert_ok((client or self.admin).get(f"{self.host.path}/operations?wait={wait}"))["items"]

    def result(self, op, state="succeeded", host=None, **more):
        return self.admin.post(f"/v1/operations/{op}/result", {**(host or self.host).current(), "state": state, **more})

    def test_the_whole_life_of_each_kind(self):
        self.vm.must("init_start")
        for kind, params in KINDS.items():
            with self.subTest(kind=kind):
                made = self.ask(kind, params=params)
                op = made["id"]
                self.assertEqual(made.headers["location"], "/v1/operations/" + op)
                self.assertEqual((made["state"], made["kind"], made["vm"], made["host"]),
                                 ("pending", kind, self.vm.id, self.host.id))
                self.assertEqual([(o["id"], o["kind"], o["params"]) for o in self.deliver()],
                                 [(op, kind, params)])
                self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "running")
                self.assert_ok(self.result(op))
                done = self.admin.get("/v1/operations/" + op)
                self.assertEqual(done["state"], "succeeded")
                for member in ("created", "started", "finished"):
                    self.assertTrue(done[member], member)

    def test_they_are_delivered_oldest_first_and_once_an_epoch(self):
        ops = [self.ask()["id"] for _ in range(3)]
        self.assertEqual([o["id"] for o in self.deliver()], ops)
        self.assertEqual(self.deliver(), [])

    def test_a_poll_of_an_agent_that_is_gone_takes_nothing_from_the_next_one(self):
        gone = self.hang_on(self.host.path + "/operations?wait=50")
        time.sleep(0.3)
        gone.close()
        self.host.register()  # the next agent of the same boot
        op = self.ask()["id"]
        self.assertEqual([o["id"] for o in self.deliver(2)], [op])

    def test_a_failure_keeps_its_problem(self):
        op = self.ask()["id"]
        self.deliver()
        problem = {"type": "/problems/backend", "title": "The hardware or its driver failed", "status": 500,
                   "detail": "UV_PAGE_IN of gfn 3 failed", "retryable": False}
        self.assert_ok(self.result(op, "failed", problem=problem))
        got = self.admin.get("/v1/operations/" + op)
        self.assertEqual((got["state"], got["problem"]), ("failed", problem))

    def test_a_result_again_is_fine_and_another_one_is_not(self):
        op = self.ask()["id"]
        self.deliver()
        self.assert_ok(self.result(op))
        self.assertIn(self.result(op).status, (200, 409))
        self.assert_problem(self.result(op, "failed"), 409, "operation-state")
        self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "succeeded")

    def test_a_running_one_is_delivered_again_when_its_host_registers_again(self):
        op = self.ask()["id"]
        self.deliver()
        self.host.register()
        self.assertEqual([o["id"] for o in self.deliver()], [op])
        self.host.boot = OTHER_BOOT
        self.host.register()
        self.assertEqual([o["id"] for o in self.deliver()], [op])

    def test_they_survive_a_crash(self):
        pending, running = self.ask()["id"], None
        running = pending
        self.deliver()
        pending = self.ask("terminate")["id"]
        self.server.crash()
        self.assertEqual(self.admin.get("/v1/operations/" + running)["state"], "running")
        self.assertEqual([o["id"] for o in self.deliver()], [pending])

    def test_a_stale_holder_reports_nothing(self):
        op = self.ask()["id"]
        self.deliver()
        body = {"boot_id": OTHER_BOOT, "epoch": self.host.epoch, "state": "succeeded"}
        self.assert_problem(self.admin.post(f"/v1/operations/{op}/result", body), 409, "host-fenced")
        self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "running")

    def test_those_of_a_vm_by_state(self):
        first, second = self.ask("terminate"), self.ask("terminate")
        self.assert_ok(self.admin.delete("/v1/operations/" + first["id"]))
        path = self.vm.path + "/operations"
        self.assertEqual([o["id"] for o in self.admin.items(path + "?state=cancelled")], [first["id"]])
        self.assertEqual([o["id"] for o in self.admin.items(path + "?state=pending")], [second["id"]])
        self.assertEqual(self.admin.items(path + "?state=running"), [])
        self.assert_problem(self.admin.get(path + "?state=done"), 400, "invalid-request")

    def test_cancel_a_pending_one_alone(self):
        op = self.ask()["id"]
        self.assertIn(self.admin.delete("/v1/operations/" + op).status, (200, 204))
        self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "cancelled")
        self.assertEqual(self.deliver(), [])
        running = self.ask()["id"]
        self.deliver()
        self.assert_problem(self.admin.delete("/v1/operations/" + running), 409, "operation-state")

    def test_long_poll_of_the_agent_wakes_at_once(self):
        got = []
        agent = self.as_token("agent", self.host.id)
        waiter = threading.Thread(target=lambda: got.append((self.deliver(20, agent), time.monotonic())))
        began = time.monotonic()
        waiter.start()
        time.sleep(0.3)
        asked = time.monotonic()
        op = self.ask()["id"]
        waiter.join(25)
        self.assertEqual([o["id"] for o in got[0][0]], [op])
        self.assertGreaterEqual(got[0][1], asked)
        self.assertLess(got[0][1] - began, 10)

    def test_long_poll_for_an_end_wakes_at_once(self):
        op, got = self.ask()["id"], []
        self.deliver()
        reader = self.as_token("viewer")
        waiter = threading.Thread(target=lambda: got.append(reader.get(f"/v1/operations/{op}?wait=20")))
        began = time.monotonic()
        waiter.start()
        time.sleep(0.3)
        self.assert_ok(self.result(op))
        waiter.join(25)
        self.assertEqual(got[0]["state"], "succeeded")
        self.assertLess(time.monotonic() - began, 10)

    def test_long_polls_end_by_themselves(self):
        began = time.monotonic()
        self.assertEqual(self.deliver(1), [])
        waited = time.monotonic() - began
        self.assertGreaterEqual(waited, 0.9)
        self.assertLess(waited, 5)

    def test_a_stopping_server_does_not_wait_for_long_polls(self):
        paths = [self.host.path + "/operations?wait=50", "/v1/events?after=9999999&wait=50"] * 4
        for _ in range(5):
            pollers = [threading.Thread(target=self.poll_for_ever, args=(self.server.client(), path)) for path in paths]
            for poller in pollers:
                poller.start()
            time.sleep(0.2)
            began = time.monotonic()
            self.assertEqual(self.server.stop(), 0, self.server.log()[-1000:])
            self.assertLess(time.monotonic() - began, 5)
            for poller in pollers:
                poller.join(20)
            self.server.start()

    def test_waiters_that_hang_up_hold_no_stop_up(self):
        for when in ("before", "while", "after"):
            with self.subTest(hang_up=when):
                gone = [self.hang_on(path) for path in (self.host.path + "/operations?wait=50", "/v1/events?after=9999999&wait=50") * 3]
                time.sleep(0.3)
                if when == "before":
                    self.hang_up(gone)
                    time.sleep(0.3)
                began = time.monotonic()
                self.server.process.send_signal(signal.SIGTERM)
                if when == "while":
                    self.hang_up(gone)
                self.assertEqual(self.server.process.wait(30), 0, self.server.log()[-1000:])
                self.assertLess(time.monotonic() - began, 5)
                self.hang_up(gone)
                self.server.start()

    def hang_on(self, path):
        waiter = socket.create_connection(("127.0.0.1", self.server.port))
        waiter.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.server.token}\r\n\r\n".encode())
        return waiter

    @staticmethod
    def hang_up(waiters):
        for waiter in waiters:
            waiter.close()

    @staticmethod
    def poll_for_ever(client, path):
        try:
            while client.get(path).status in (200, 503):
                pass
        except (OSError, http.client.HTTPException):
            pass

    def test_parameters_are_checked_when_asked(self):
        path = self.vm.path + "/operations"
        for kind, params, pointer in (
                ("share", {}, "/params/gfn"), ("share", None, "/params/gfn"), ("share", {"gfn": 1}, "/params/count"),
                ("share", {"gfn": 1 << 40, "count": 1}, "/params/gfn"), ("page_in", {"gfn": 2, "count": (1 << 40) - 1}, "/params/count"),
                ("page_out", {"gfn": 2, "count": 0}, "/params/count"), ("unshare", dict(RUN, resident=1), "/params/resident"),
                ("share", dict(RUN, resident=True), "/params/resident"), ("terminate", RUN, "/params/gfn"),
                ("launch", {"resident": "x"}, "/params/resident"), ("launch", {"resident": 1.1}, "/params/resident"),
                ("launch", {"no_such": 1}, "/params/no_such"), ("launch", {"shared": [[1, 1], [1, 0]]}, "/params/shared/1/1"),
                ("launch", {"shared": [[1, 1]] * 1025}, "/params/shared"), ("unplug", {}, "/params/slot"),
                ("plug", {"slot": 1, "base_gfn": 2, "pages": (1 << 40) - 1}, "/params/pages"), ("plug", {"slot": 1 << 32}, "/params/slot"),
                ("plug", {"slot": 1, "base_gfn": 9000}, "/params/pages"), ("launch", {"ripas": [[0, 1, "RAM"]]}, "/params/ripas")):
            with self.subTest(kind=kind, params=str(params)[:60]):
                body = {"kind": kind} if params is None else {"kind": kind, "params": params}
                self.assert_problem(self.admin.post(path, body), 422, "invalid-params", pointer=pointer)
        self.assertEqual(self.admin.get(path)["items"], [])
        cca = Vm(Host(self.admin, arches=("cca",)), arch="cca")
        self.assert_ok(self.admin.post(cca.path + "/operations", {"kind": "launch", "params": {"ripas": [[0, 1, "RAM"]]}}), 202)

    def test_an_abort_is_for_a_vm_that_is_transient(self):
        path = self.vm.path + "/operations"
        self.assert_problem(self.admin.post(path, {"kind": "abort"}), 409, "vm-transition", state="normal", event="init_abort")
        self.vm.must("init_start")
        self.ask("abort")
        self.vm.must("init_done")
        self.assert_problem(self.admin.post(path, {"kind": "abort"}), 409, "vm-transition", state="secure", event="init_abort")

    def test_a_slot_that_cannot_come_or_go_is_refused_when_asked(self):
        path, revision = self.vm.path + "/operations", self.vm.get()["revision"]
        for params in ({"slot": 0, "base_gfn": 8192, "pages": 1}, {"slot": 1, "base_gfn": 4095, "pages": 1},
                       {"slot": 1, "base_gfn": 0, "pages": 1 << 39}):
            self.assert_problem(self.admin.post(path, {"kind": "plug", "params": params}), 409, "slot-overlap")
        self.assert_problem(self.admin.post(path, {"kind": "unplug", "params": {"slot": 1}}), 404, "slot-not-found")
        self.ask("plug", params={"slot": 0, "base_gfn": 0, "pages": 4096})  # it is so already
        self.assertEqual(self.vm.get()["revision"], revision, "a question changes no VM")

    def test_one_that_is_delivered_again_says_so(self):
        op = self.ask()["id"]
        self.assertNotIn("again", self.deliver()[0])
        for start in (self.host.register, self.server.crash):
            start()
            self.host.register()
            self.assertEqual([(o["id"], o.get("again")) for o in self.deliver()], [(op, True)])
        self.host.boot = OTHER_BOOT
        self.host.register()
        self.assertEqual([(o["id"], o.get("again")) for o in self.deliver()], [(op, None)])

    def test_wrong_requests(self):
        op = self.ask()["id"]
        path = self.vm.path + "/operations"
        for pointer, body in (("/kind", {"kind": "dance"}), ("/kind", {"kind": 1}), ("/params", {"kind": "launch", "params": []}),
                              ("/x", {"kind": "launch", "x": 1}), (None, {})):
            with self.subTest(body=body):
                self.assert_problem(self.admin.post(path, body), 400, "invalid-request", **({"pointer": pointer} if pointer else {}))
        for state in ("running", "pending", "odd", 1):
            with self.subTest(state=state):
                self.assert_problem(self.result(op, state), 400, "invalid-request", pointer="/state")
        for wait in ("-1", "x", "1e9"):
            self.assert_problem(self.admin.get(f"/v1/operations/{op}?wait={wait}"), 400, "invalid-request")
        for what in (new_id(), "no-uuid"):
            self.assert_problem(self.admin.get("/v1/operations/" + what), 404, "operation-not-found")

    def test_agents_work_for_their_own_host(self):
        op = self.ask()["id"]
        stranger = self.as_token("agent", Host(self.admin).id)
        self.assert_problem(stranger.get(self.host.path + "/operations"), 403, "forbidden")
        self.deliver()
        body = dict(self.host.current(), state="succeeded")
        self.assert_problem(stranger.post(f"/v1/operations/{op}/result", body), 403, "forbidden")


class Leaving(Case):
    """While a terminate, abort or unplug runs, what it ends keeps its frames and gets no others."""

    def setUp(self):
        super().setUp()
        self.host = Host(self.admin, arches=("pef", "snp"))
        self.agent = self.as_token("agent", self.host.id)

    def vm(self, state="secure", arch="pef"):
        vm = Vm(self.host, state=state, arch=arch, slots=[{"slot": 0, "base_gfn": 0, "pages": 64}, {"slot": 1, "base_gfn": 64, "pages": 64}])
        self.base = getattr(self, "base", 0) + 1000
        self.accepted(self.host.send(vm.item("page_in", 0, 8, self.base), vm.item("page_in", 64, 8, self.base + 64)))
        return vm

    def running(self, vm, kind, **params):
        op = self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": kind, "params": params}), 202)["id"]
        self.assertEqual(self.shown(vm), ([], False), "it is not running yet")
        self.assertIn(op, [o["id"] for o in self.admin.get(self.host.path + "/operations")["items"]])
        return op

    def finish(self, op, state="succeeded"):
        self.assert_ok(self.admin.post(f"/v1/operations/{op}/result", {**self.host.current(), "state": state}))

    @staticmethod
    def shown(vm):
        """Which slots are leaving, and is the VM?"""
        now = vm.get()
        return [s["slot"] for s in now["slots"] if s.get("leaving")], now.get("leaving", False)

    def claims(self, vm, gfn):
        return vm.item("page_in", gfn + 8, 1, self.base + 500), vm.item("unshare", gfn + 8, 1, self.base + 500)

    def leaves(self, vm, gfn, slug, kind):
        for claim in self.claims(vm, gfn):
            refused = self.refused(self.host.send(claim), slug, **({"gfn": gfn + 8} if slug == "gfn-transition" else {"state": vm.get()["state"]}))
            self.assertIn("operation " + kind, refused["detail"])
            self.assertIn("leaving", refused["detail"])
        self.accepted(self.host.send(vm.item("unshare", gfn + 20), vm.item("share", gfn + 20)))  # no claims

    def stays(self, vm, gfn):
        self.accepted(self.host.send(self.claims(vm, gfn)[0]))
        self.accepted(self.host.send(vm.item("page_out", gfn + 8, 1)))

    def test_a_vm_whose_end_runs(self):
        for state, kind in (("secure", "terminate"), ("transient", "terminate"), ("transient", "abort")):
            for end in ("succeeded", "failed"):
                with self.subTest(state=state, kind=kind, end=end):
                    vm = self.vm(state)
                    op = self.running(vm, kind)
                    self.assertEqual(self.shown(vm), ([], True))
                    bound = self.host.frames()
                    for gfn in (0, 64):
                        self.leaves(vm, gfn, "vm-transition", kind)
                    self.assertEqual(self.host.frames(), bound)
                    self.finish(op, end)
                    self.assertEqual(self.shown(vm), ([], False))
                    self.stays(vm, 0)

    def test_a_slot_whose_unplug_runs(self):
        for end in ("succeeded", "failed"):
            with self.subTest(end=end):
                vm = self.vm()
                op = self.running(vm, "unplug", slot=1)
                self.assertEqual(self.shown(vm), ([1], False))
                self.leaves(vm, 64, "gfn-transition", "unplug")
                self.stays(vm, 0)
                self.finish(op, end)
                self.assertEqual(self.shown(vm), ([], False))
                self.stays(vm, 64)

    def test_an_item_of_an_architecture_is_a_claim_too(self):
        vm = self.vm(arch="snp")
        op = self.running(vm, "unplug", slot=1)
        claim = vm.item("snp.rmpupdate", 80, 1, self.base + 700)
        self.refused(self.host.send(claim, client=self.agent), "gfn-transition", gfn=80)
        self.finish(op)
        op = self.running(vm, "terminate")
        self.refused(self.host.send(claim, client=self.agent), "vm-transition")
        self.finish(op)
        self.accepted(self.host.send(claim, client=self.agent))

    def test_all_of_them_count_and_a_crash_forgets_none(self):
        vm = self.vm()
        one, two, all_ = (self.running_too(vm, "unplug", slot=0), self.running_too(vm, "unplug", slot=1), self.running_too(vm, "terminate"))
        for restart in (self.server.crash, self.server.restart):
            restart()
            self.assertEqual(self.shown(vm), ([0, 1], True))
            self.leaves(vm, 0, "vm-transition", "terminate")
        self.finish(all_)
        self.assertEqual(self.shown(vm), ([0, 1], False))
        self.finish(one, "failed")
        self.server.crash()
        self.assertEqual(self.shown(vm), ([1], False))
        self.leaves(vm, 64, "gfn-transition", "unplug")
        self.stays(vm, 0)
        self.finish(two)
        self.server.crash()
        self.assertEqual(self.shown(vm), ([], False))

    def running_too(self, vm, kind, **params):
        op = self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": kind, "params": params}), 202)["id"]
        self.admin.get(self.host.path + "/operations")
        return op

    def test_a_vm_that_goes_by_force_takes_its_operations_along(self):
        vm = self.vm()
        op = self.running(vm, "terminate")
        vm.must("terminate")
        self.assert_ok(self.admin.delete(vm.path + "?force=true"), 204)
        self.assertEqual(self.admin.get("/v1/operations/" + op)["state"], "cancelled")
        again = Vm(self.host, vm=vm.id, state="secure")
        self.assertEqual(self.shown(again), ([], False))
        self.server.crash()
        self.assertEqual(self.shown(again), ([], False))


if __name__ == "__main__":
    unittest.main()
