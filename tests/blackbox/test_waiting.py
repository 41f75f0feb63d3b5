"""Long polls beside each other: a change wakes those that wait for it and nobody else, whatever they wait for; and a poll ends
when its token is deleted."""
import threading
import time
import unittest

from harness import Case, Client, Host, Vm, new_id


class Waiting(Case):
    def metric(self, name):
        text = self.admin.get("/metrics").raw.decode()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))

    def woken(self):
        return self.metric("pagewarden_long_polls_woken_total")

    def all_wait(self, n):
        self.eventually(lambda: self.metric("pagewarden_long_polls") == n)

    def poll(self, path, token=None, into=None):
        """Asks in a thread of its own; `into` gets the answer."""
        client = Client(self.server.port, token or self.admin.token)
        thread = threading.Thread(target=lambda: into.append(client.get(path)) if into is not None else client.get(path), daemon=True)
        thread.start()
        self.addCleanup(thread.join, 60)
        self.addCleanup(client.close)
        return thread

    def eventually(self, check, within=30):
        end = time.monotonic() + within
        while not check():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def operation(self, vm, gfn=0):
        return self.assert_ok(self.admin.post(f"/v1/vms/{vm.id}/operations", {"kind": "page_in", "params": {"gfn": gfn, "count": 1}}), 202)["id"]

    def test_a_change_wakes_those_alone_that_wait_for_it(self):
        busy, quiet = Host(self.admin), Host(self.admin)
        vm, other = Vm(busy, state="transient"), Vm(quiet, state="transient")
        operation = self.operation(other)
        self.admin.get(f"/v1/hosts/{quiet.id}/operations")  # it is running now
        now = self.admin.get("/v1/events?after=0&limit=1000")["next"]
        answers = {what: [] for what in ("future", "host", "future of host", "delivery", "operation", "unknown")}
        threads = [self.poll(path + "wait=30", into=answers[what]) for what, path in (
            ("future", f"/v1/events?after={1 << 40}&"), ("host", f"/v1/events?after={now}&host={quiet.id}&"),
            ("future of host", f"/v1/events?after={1 << 40}&host={busy.id}&"), ("delivery", f"/v1/hosts/{quiet.id}/operations?"),
            ("operation", f"/v1/operations/{operation}?"), ("unknown", f"/v1/events?after=0&host={new_id()}&")) for _ in range(10)]
        self.all_wait(60)
        before = self.woken()
        for _ in range(50):
            self.accepted(busy.send(vm.item("share")))
            self.accepted(busy.send(vm.item("unshare")))
        self.assertEqual(self.woken(), before, "a hundred changes of another host")
        result = {"boot_id": quiet.boot, "epoch": quiet.epoch, "state": "succeeded"}
        self.assert_ok(self.admin.post(f"/v1/operations/{operation}/result", result))
        self.eventually(lambda: len(answers["host"]) == 10 and len(answers["operation"]) == 10)
        self.assertEqual({a["state"] for a in answers["operation"]}, {"succeeded"})
        self.assertEqual({a["items"][0]["type"] for a in answers["host"]}, {"operation.finished"})
        self.assertEqual(self.woken() - before, 20)
        created = self.operation(other, 5)
        self.eventually(lambda: any(a["items"] for a in answers["delivery"]))
        self.assertEqual([i["id"] for a in answers["delivery"] for i in a["items"]], [created], "delivered once")
        self.assertFalse(answers["future"] + answers["future of host"] + answers["unknown"])
        for thread in threads:
            thread.join()
        self.assertEqual({len(some) for some in answers.values()}, {10})

    def test_polls_end_when_their_token_is_deleted(self):
        host = Host(self.admin)
        vm = Vm(host, state="transient")
        operation = self.operation(vm)
        made = self.admin.post("/v1/tokens", {"role": "agent", "host": host.id, "name": "going"})
        kept = self.admin.post("/v1/tokens", {"role": "viewer", "name": "staying"})
        self.admin.get(f"/v1/hosts/{host.id}/operations")
        gone, stays = [], []
        began = time.monotonic()
        for path in (f"/v1/events?after={1 << 40}&", f"/v1/events?after={1 << 40}&host={host.id}&",
                     f"/v1/hosts/{host.id}/operations?", f"/v1/operations/{operation}?"):
            self.poll(path + "wait=55", made["secret"], gone)
        self.poll(f"/v1/events?after={1 << 40}&wait=5", kept["secret"], stays)
        self.all_wait(5)
        self.assert_ok(self.admin.delete("/v1/tokens/" + made["id"]), 204)
        self.eventually(lambda: len(gone) == 4)
        self.assertLess(time.monotonic() - began, 45)
        self.assertEqual({a.status for a in gone}, {401})
        self.eventually(lambda: stays)
        self.assertEqual(stays[0].status, 200)


if __name__ == "__main__":
    unittest.main()
