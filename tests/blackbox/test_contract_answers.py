"""What a kept answer is worth: it is given again to the holder of then alone, and for the same bytes alone."""
import hashlib
import json
import os
import socket
import sqlite3
import time
import unittest

from harness import BOOT, OTHER_BOOT, Case, Host, Server, Vm, new_id

# Every POST whose body names a holder, and a request of it that is accepted.
HELD = {
    "/v1/vms": lambda w: ("/v1/vms", {"id": new_id(), "host": w.host.id, "arch": "pef", "slots": [], "adopted": True}),
    "/v1/hosts/{host}/transitions": lambda w: (w.host.path + "/transitions", {"items": [w.vm.item("page_in", 3, 1, 7)]}),
    "/v1/hosts/{host}/heartbeat": lambda w: (w.host.path + "/heartbeat", {}),
    "/v1/hosts/{host}/quarantine": lambda w: (w.host.path + "/quarantine", {"items": [
        {"pool": "local", "pfn": 9, "count": 1, "reason": "it burns"}]}),
    "/v1/hosts/{host}/quarantine/release": lambda w: (w.host.path + "/quarantine/release", {"items": [
        {"pool": "local", "pfn": 9, "count": 1}]}),
    "/v1/vms/{vm}/lifecycle": lambda w: (w.vm.path + "/lifecycle", {"event": "init_done"}),
    "/v1/operations/{op}/result": lambda w: (f"/v1/operations/{w.running()}/result", {"state": "succeeded"}),
}
ADMINS_OWN = ("/v1/hosts/{host}/quarantine/release",)


class World:
    """A host with a transient VM, its agent, and an operation that it runs."""

    def __init__(self, case):
        self.host = Host(case.admin)
        self.vm = Vm(self.host, state="transient")
        self.admin, self.agent = case.admin, case.as_token("agent", self.host.id)

    def running(self):
        made = self.admin.post(self.vm.path + "/operations", {"kind": "share", "params": {"gfn": 1, "count": 1}})
        assert made.status == 202, made
        assert self.agent.get(self.host.path + "/operations")["items"], "nothing was delivered"
        return made["id"]

    def ask(self, route):
        """A keyed request by whoever may, and a way to repeat it."""
        path, body = HELD[route](self)
        body, key = dict(self.host.current(), **body), {"Idempotency-Key": new_id()}
        client = self.admin if route in ADMINS_OWN else self.agent
        return lambda: client.post(path, body, headers=key)


def fenced(world):
    answer = world.admin.post(world.host.path + "/fence", {"force": True})
    assert answer.status == 200, answer


def fenced_and_back(world):
    fenced(world)
    world.host.register()


def rebooted(world):
    world.host.boot = OTHER_BOOT
    world.host.register()


class Holders(Case):
    def test_every_route_with_a_holder_is_here(self):
        api = self.admin.get("/openapi.json").json
        found = {path for path, ops in api["paths"].items()
                 if {"boot_id", "epoch"} <= self.members(api, ops.get("post", {}).get("requestBody", {}))}
        self.assertEqual(found, set(HELD))

    def members(self, api, node):
        """The names of all members that a request body may have."""
        if isinstance(node, list):
            return set().union(*(self.members(api, each) for each in node)) if node else set()
        if not isinstance(node, dict):
            return set()
        if "$ref" in node:
            at = api
            for step in node["$ref"].removeprefix("#/").split("/"):
                at = at[step]
            return self.members(api, at)
        own = set(node.get("properties", {}))
        return own.union(*(self.members(api, node[k]) for k in ("schema", "content", "application/json", "allOf", "oneOf", "anyOf")
                           if k in node))

    def accepted_by(self, answer):
        self.assertIn(answer.status, (200, 201), answer)
        return answer

    def test_the_holder_is_answered_again(self):
        for route in HELD:
            with self.subTest(route=route):
                world = World(self)
                ask = world.ask(route)
                first = self.accepted_by(ask())
                again = ask()
                self.assertEqual((again.status, again.raw), (first.status, first.raw))

    def test_who_was_fenced_is_not(self):
        for route in HELD:
            for change in (fenced, fenced_and_back, rebooted):
                with self.subTest(route=route, change=change.__name__):
                    world = World(self)
                    ask = world.ask(route)
                    self.accepted_by(ask())
                    change(world)
                    self.assert_problem(ask(), 409, "host-fenced")

    def test_nor_after_a_crash(self):
        worlds = [(World(self), route) for route in HELD]
        asks = [(world, world.ask(route)) for world, route in worlds]
        firsts = [self.accepted_by(ask()).raw for _, ask in asks]
        self.server.crash()
        self.assertEqual([ask().raw for _, ask in asks], firsts)
        for world, ask in asks:
            fenced_and_back(world)
        self.server.crash()
        for _, ask in asks:
            self.assert_problem(ask(), 409, "host-fenced")

    def test_the_frame_of_another_is_not_promised_again(self):
        first, second, pool = Host(self.admin), Host(self.admin), "cxl-" + new_id()[:8]
        self.assert_ok(self.admin.put("/v1/pools/" + pool, {"base_pfn": 0, "frames": 100, "hosts": [first.id, second.id]}), 201)
        one, two = Vm(first, state="transient"), Vm(second, state="transient")
        body = dict(first.current(), batch_seq=5, items=[one.item("page_in", 1, 1, 7, pool=pool)])
        key = {"Idempotency-Key": new_id()}
        self.accepted(self.admin.post(first.path + "/transitions", body, headers=key))
        self.assert_ok(self.admin.post(first.path + "/fence", {"force": True}))
        self.accepted(second.send(two.item("page_in", 1, 1, 7, pool=pool)))
        for headers in (key, None):
            self.assert_problem(self.admin.post(first.path + "/transitions", body, headers=headers), 409, "host-fenced")
        first.register()
        for headers in (key, None):
            self.assert_problem(self.admin.post(first.path + "/transitions", body, headers=headers), 409, "host-fenced")
        self.assertEqual([run["vm"] for run in second.frames(pool=pool)], [two.id])

    def test_a_refusal_is_fenced_too(self):
        world, key = World(self), {"Idempotency-Key": new_id()}
        body = dict(world.host.current(), event="init_start")
        self.assert_problem(world.agent.post(world.vm.path + "/lifecycle", body, headers=key), 409, "vm-transition")
        fenced_and_back(world)
        self.assert_problem(world.agent.post(world.vm.path + "/lifecycle", body, headers=key), 409, "host-fenced")

    def test_another_body_is_told_first(self):
        world, key = World(self), {"Idempotency-Key": new_id()}
        self.assert_ok(world.agent.post(world.host.path + "/heartbeat", world.host.current(), headers=key))
        fenced_and_back(world)
        self.assert_problem(world.agent.post(world.host.path + "/heartbeat", world.host.current(), headers=key), 422,
                            "idempotency-mismatch")

    def test_an_admin_who_names_no_holder_is_answered_again(self):
        world = World(self)
        for path, body in ((world.vm.path + "/lifecycle", {"event": "init_done"}),
                           (world.host.path + "/fence", {"force": True}),
                           (world.host.path + "/quarantine", {"items": [{"pool": "local", "pfn": 4, "count": 1, "reason": "so"}]})):
            with self.subTest(path=path):
                key = {"Idempotency-Key": new_id()}
                first = self.assert_ok(self.admin.post(path, body, headers=key))
                fenced_and_back(world)
                self.assertEqual(self.admin.post(path, body, headers=key).raw, first.raw)

    def test_a_vm_that_is_elsewhere_now_is_its_new_hosts(self):
        world, other = World(self), Host(self.admin, boot=OTHER_BOOT)
        body = dict(world.host.current(), event="init_abort")
        keys = [{"Idempotency-Key": new_id()} for _ in range(2)]
        self.assert_ok(world.agent.post(world.vm.path + "/lifecycle", body, headers=keys[0]))
        world.vm.must("init_start")
        self.assert_ok(self.admin.post(world.vm.path + "/lifecycle", body, headers=keys[1]))
        self.assert_ok(self.admin.delete(world.vm.path), 204)
        self.assert_ok(world.agent.post(world.vm.path + "/lifecycle", body, headers=keys[0]))
        self.assert_problem(self.admin.post(world.vm.path + "/lifecycle", body, headers=keys[1]), 404, "vm-not-found")
        Vm(other, vm=world.vm.id, state="transient")
        self.assert_problem(world.agent.post(world.vm.path + "/lifecycle", body, headers=keys[0]), 403, "forbidden")
        self.assert_problem(self.admin.post(world.vm.path + "/lifecycle", body, headers=keys[1]), 409, "host-fenced")


class Numbers(Case):
    """batch_seq: the answer kept is that of one body under one holder."""

    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.vm = Vm(self.host, state="transient")

    def claim(self, gfn, seq, **more):
        return self.host.send(self.vm.item("page_in", gfn, 1, gfn), batch_seq=seq, **more)

    def test_another_body_is_stale(self):
        first = self.accepted(self.claim(1, 5))
        for _ in range(2):
            self.assert_problem(self.claim(2, 5), 409, "stale-batch")
            self.assert_problem(self.claim(1, 5, atomic=True), 409, "stale-batch")
        body = dict(self.host.current(), items=[self.vm.item("page_in", 1, 1, 1)] * 3, batch_seq=5)
        self.assert_problem(self.admin.post(self.host.path + "/transitions", body), 409, "stale-batch")
        self.assertEqual(self.claim(1, 5).raw, first.raw)
        self.server.crash()
        self.assert_problem(self.claim(2, 5), 409, "stale-batch")
        self.assertEqual(self.claim(1, 5).raw, first.raw)
        self.assertEqual([run["pfn"] for run in self.host.frames()], [1])

    def test_another_epoch_is_another_body(self):
        self.accepted(self.claim(1, 5))
        old = dict(self.host.current(), items=[self.vm.item("page_in", 1, 1, 1)], batch_seq=5)
        self.assert_ok(self.admin.post(self.host.path + "/fence", {"force": True}))
        self.host.register()
        self.vm.must("init_start")
        self.assert_problem(self.admin.post(self.host.path + "/transitions", old), 409, "host-fenced")
        self.assert_problem(self.claim(1, 5), 409, "stale-batch")
        self.assert_problem(self.claim(1, 4), 409, "stale-batch")
        self.assertEqual(self.host.frames(), [])
        self.accepted(self.claim(1, 6))
        self.assertEqual([run["pfn"] for run in self.host.frames()], [1])

    def test_numbers_begin_anew_with_a_boot_and_not_with_another_token(self):
        first = self.accepted(self.claim(1, 5))
        agent = self.as_token("agent", self.host.id)
        self.assertEqual(self.claim(1, 5, client=agent).raw, first.raw)
        self.assert_problem(self.claim(2, 5, client=agent), 409, "stale-batch")
        self.host.boot = OTHER_BOOT
        self.host.register()
        self.vm.must("init_start")
        self.accepted(self.claim(1, 5))

    def test_a_refused_atomic_batch_is_kept_like_any(self):
        first = self.assert_problem_of_batch(self.claim(5000, 7, atomic=True))
        self.assertEqual(self.claim(5000, 7, atomic=True).raw, first)
        self.assert_problem(self.claim(1, 7, atomic=True), 409, "stale-batch")

    def assert_problem_of_batch(self, answer):
        self.assert_problem(answer, 409, "batch-rejected")
        return answer.raw


class Revoked(Case):
    """A token that is deleted while its request is on its way."""

    def setUp(self):
        super().setUp()
        self.host = Host(self.admin)
        self.agent = self.as_token("agent", self.host.id)

    def revoke(self):
        self.assert_ok(self.admin.delete("/v1/tokens/" + self.agent.id), 204)

    def answer_to(self, s):
        got = b""
        while more := s.recv(65536):
            got += more
        return got

    def send_head(self, method, path, *more):
        s = socket.create_connection(("127.0.0.1", self.server.port), timeout=60)
        self.addCleanup(s.close)
        lines = (f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Authorization: Bearer {self.agent.token}", *more)
        s.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return s

    def assert_unknown(self, got):
        self.assertTrue(got.startswith(b"HTTP/1.1 401 ") and b"/problems/unauthorized" in got, got)

    def test_a_body_that_comes_late_changes_nothing(self):
        vm = Vm(self.host, state="transient")
        body = json.dumps(dict(self.host.current(), items=[vm.item("page_in", 1, 1, 1)])).encode()
        s = self.send_head("POST", self.host.path + "/transitions", "Content-Type: application/json",
                           f"Content-Length: {len(body)}")
        s.sendall(body[:20])
        time.sleep(0.2)  # until its head was read
        self.revoke()
        s.sendall(body[20:])
        self.assert_unknown(self.answer_to(s))
        self.assertEqual(self.host.frames(), [])

    def test_a_poll_that_waits_is_told_nothing_any_more(self):
        vm = Vm(self.host)
        made = self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": "launch"}), 202)
        self.agent.get(self.host.path + "/operations")
        after = self.admin.get("/v1/events?limit=1000")["next"]
        polls = [self.send_head("GET", path) for path in (f"/v1/events?after={after}&wait=60", self.host.path + "/operations?wait=60",
                                                          f"/v1/operations/{made['id']}?wait=60")]
        time.sleep(0.3)
        self.revoke()
        later = self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": "launch"}), 202)
        for s in polls:
            self.assert_unknown(self.answer_to(s))
        self.assertEqual(self.admin.get("/v1/operations/" + later["id"])["state"], "pending")


class Upgrade(unittest.TestCase):
    def test_a_number_kept_without_its_body(self):
        """As the first servers kept it: headers hold the number alone, the hash is that of the boot."""
        server = Server()
        self.addCleanup(server.close)
        admin = server.client()
        self.addCleanup(admin.close)
        host = Host(admin)
        vm = Vm(host, state="transient")
        claim = lambda gfn, seq: host.send(vm.item("page_in", gfn, 1, gfn), batch_seq=seq)  # noqa: E731
        self.assertEqual(claim(1, 5)["accepted"], 1)
        self.assertEqual(server.stop(), 0)
        with sqlite3.connect(os.path.join(server.data, "journal.db")) as db:
            db.execute("UPDATE answer SET headers = '5', request_hash = ? WHERE scope = ?",
                       (hashlib.blake2b(BOOT.encode(), digest_size=32).digest(), host.id))
        db.close()
        server.start()
        for gfn, seq in ((1, 4), (1, 5), (2, 5)):
            self.assertEqual(claim(gfn, seq).slug, "stale-batch")
        self.assertEqual(claim(2, 6)["accepted"], 1)


if __name__ == "__main__":
    unittest.main()
