"""Operations have an owner and a limit: their texts, how many of a host are unfinished, how many finished ones are kept."""
import json
import unittest

from harness import Case, Host, Vm, new_id

FLAGS = {"host-operations": 5, "host-finished": 4, "operations": 200, "operation-bytes": 1000, "result-bytes": 2000}


class Bounded(Case):
    flags = [f"--{name}={value}" for name, value in FLAGS.items()]

    def setUp(self):
        super().setUp()
        self.hosts = []
        self.addCleanup(self.clear)

    def clear(self):
        """The server is every test's: nothing unfinished stays."""
        for host, vm in self.hosts:
            self.admin.delete(vm.path + "/slots/0?force=true")
            for o in self.admin.items(vm.path + "/operations"):
                if o["state"] == "pending":
                    self.assert_ok(self.admin.delete("/v1/operations/" + o["id"]))
                elif o["state"] == "running":
                    self.finish(host, o["id"])

    def a_host(self):
        host = Host(self.admin)
        self.hosts.append((host, Vm(host)))
        return self.hosts[-1]

    def ask(self, vm, kind="page_in", params=None, **more):
        return self.admin.post(vm.path + "/operations", {"kind": kind, "params": params or {"gfn": 0, "count": 1}}, **more)

    def asked(self, vm, **more):
        return self.assert_ok(self.ask(vm, **more), 202)["id"]

    def finish(self, host, operation, **more):
        self.admin.get(host.path + "/operations")
        return self.admin.post(f"/v1/operations/{operation}/result", dict(host.current(), state="failed", **more))

    def pending(self, host):
        return self.assert_ok(self.admin.post(host.path + "/heartbeat", host.current()))["operations_pending"]

    def limited(self, answer, status, slug, flag, asked):
        self.assert_problem(answer, status, slug, flag=flag, limit=FLAGS[flag], asked=asked)
        self.assertEqual(answer["retryable"], status != 413)
        if status != 413:
            self.assertGreater(int(answer.headers["retry-after"]), 0)

    def test_parameters_have_a_size(self):
        _, vm = self.a_host()
        params = {"shared": [[i, 1] for i in range(0, 400, 2)]}
        size = len(json.dumps(params, separators=(",", ":")))
        self.limited(self.ask(vm, "launch", params), 413, "too-much-work", "operation-bytes", size)
        params["shared"] = params["shared"][:100]
        self.asked(vm, kind="launch", params=params)

    def test_a_result_s_problem_has_a_size(self):
        host, vm = self.a_host()
        operation = self.asked(vm)
        problem = {"detail": "x" * 1990}
        self.limited(self.finish(host, operation, problem=problem), 413, "too-much-work", "result-bytes", 2003)
        self.assertEqual(self.admin.get("/v1/operations/" + operation)["state"], "running")
        problem["detail"] = "x" * 1987
        self.assert_ok(self.finish(host, operation, problem=problem))

    def test_unfinished_ones_of_a_host(self):
        host, vm = self.a_host()
        first = [self.asked(vm) for _ in range(5)][0]
        key = {"Idempotency-Key": new_id()}
        self.limited(self.ask(vm, headers=key), 429, "rate-limited", "host-operations", 6)
        self.assertEqual(self.pending(host), 5)
        self.asked(self.a_host()[1])  # nobody else's business
        self.finish(host, first)
        self.assertEqual(self.pending(host), 0)
        self.asked(vm, headers=key)  # the refusal was not kept as the key's answer
        self.limited(self.ask(vm), 429, "rate-limited", "host-operations", 6)
        self.assertEqual(self.pending(host), 1)
        self.server.restart()
        self.limited(self.ask(vm), 429, "rate-limited", "host-operations", 6)
        self.assertEqual(self.pending(host), 1)
        host.register()  # what was running is given out again, oldest first
        given = self.admin.get(host.path + "/operations")["items"]
        self.assertEqual(len(given), 5)
        self.assertEqual([o["created"] for o in given], sorted(o["created"] for o in given))
        self.assertEqual(self.admin.get(host.path + "/operations")["items"], [])

    def test_finished_ones_of_a_host(self):
        host, vm = self.a_host()
        other_host, other_vm = self.a_host()
        mine = self.asked(other_vm)
        self.assert_ok(self.finish(other_host, mine))
        ids = []
        for n in range(9):
            ids.append(self.asked(vm))
            self.assert_ok(self.finish(host, ids[-1]) if n % 2 else self.admin.delete("/v1/operations/" + ids[-1]))
        self.assertEqual({o["id"] for o in self.admin.items(vm.path + "/operations")}, set(ids[-4:]))
        self.assert_problem(self.admin.get("/v1/operations/" + ids[0]), 404, "operation-not-found")
        self.assert_ok(self.admin.get("/v1/operations/" + mine))
        self.server.kill()  # the journal has them all: after a replay it is the same
        self.server.start()
        self.assertEqual({o["id"] for o in self.admin.items(vm.path + "/operations")}, set(ids[-4:]))
        self.assert_ok(self.admin.get("/v1/operations/" + mine))

    def test_a_vm_s_operations_are_listed_by_state_and_page(self):
        host, vm = self.a_host()
        _, other = self.a_host()
        ids = {self.asked(vm) for _ in range(4)}
        self.asked(other)
        self.assertEqual({o["id"] for o in self.admin.items(vm.path + "/operations?limit=1")}, ids)
        done = min(ids)
        self.finish(host, done)
        self.assertEqual([o["id"] for o in self.admin.items(vm.path + "/operations?state=failed&limit=1")], [done])
        self.assertEqual({o["id"] for o in self.admin.items(vm.path + "/operations?state=running&limit=2")}, ids - {done})

    def test_all_of_them_together(self):
        hosts = [self.a_host() for _ in range(50)]
        states = ("pending", "running", "succeeded", "failed", "cancelled")

        def there():
            counts = self.admin.get("/v1/summary")["operations"]
            self.assertEqual(sorted(counts), sorted(states))
            return counts

        for _, vm in hosts * 3:  # finished ones never fill more than half
            self.assert_ok(self.admin.delete("/v1/operations/" + self.asked(vm)))
        self.assertLessEqual(there()["cancelled"], 100)
        before = sum(there().values())
        for n in range(200 - before):
            self.asked(hosts[n % 50][1])
        self.limited(self.ask(hosts[-1][1]), 503, "busy", "operations", 201)
        self.assertEqual(sum(there().values()), 200)


if __name__ == "__main__":
    unittest.main()
