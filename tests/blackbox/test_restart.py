"""What the server knows is the same after a clean stop (the picture) and after a crash (the journal's replay)."""
import re
import sqlite3
import threading
import time
import unittest

import harness
from harness import OTHER_BOOT, Case, Host, Server, Vm

# What may differ: when a host was last heard of, and a lease that begins anew.
FLEETING = (re.compile(rb'"last_seen":"[^"]*"'), re.compile(rb'"state":"(up|unreachable)"'))


def settled(raw):
    for pattern in FLEETING:
        raw = pattern.sub(b"*", raw)
    return raw


class World:
    """One of everything that the server keeps, made over the API."""

    def __init__(self, admin):
        self.admin = admin
        self.hosts, self.vms, self.operations = [], [], []
        self.fleet()
        self.pages()
        self.intents()
        self.endings()

    def must(self, answer, *statuses):
        if answer.status not in (statuses or (200, 201, 202, 204)):
            raise AssertionError(answer)
        return answer

    def fleet(self):
        first = Host(self.admin, frames=4096, base=16, name="first", arches=("pef", "tdx", "snp"))
        second = Host(self.admin, frames=4096, shift=12, name="zweit-ö", boot="b" * 40)
        self.hosts = [first, second]
        self.must(self.admin.put("/v1/pools/cxl-0", {"base_pfn": 1 << 30, "frames": 8192,
                                                     "hosts": [second.id, first.id]}))
        self.must(self.admin.put("/v1/pools/empty", {"base_pfn": 0, "frames": 1, "hosts": []}))

    def pages(self):
        first, second = self.hosts
        slots = [{"slot": 7, "base_gfn": 4096, "pages": 512}, {"slot": 0, "base_gfn": 0, "pages": 1024}]
        secure = Vm(first, slots=slots, state="secure", name="secure one")
        transient = Vm(first, arch="tdx", state="transient", gpa={"shared_bit": 47})
        other = Vm(second, arch="tdx", state="secure")
        self.vms = [secure, transient, other, Vm(second)]
        self.accept(first.send(secure.item("page_in", 0, 600, 20), secure.item("share", 700, 9),
                               secure.item("page_in", 601, 3, (1 << 30) + 5, pool="cxl-0"),
                               {"vm": secure.id, "op": "page_out", "gfns": [3, 5, 7, 590]},
                               secure.item("unshare", 703, 1, 4000), batch_seq=4))
        self.accept(first.send(transient.item("page_in", 9, 5, 700), transient.item("share", 100, 50)))
        self.accept(second.send(other.item("page_in", 4, 4, (1 << 30) + 100, pool="cxl-0"), batch_seq=1))
        self.must(self.admin.put(secure.path + "/slots/9", {"base_gfn": 1 << 20, "pages": 64}))
        self.must(secure.drop_slot(7))
        refused = second.send(other.item("page_in", 50, 1, (1 << 30) + 5, pool="cxl-0"))
        if refused["rejected"] != 1:
            raise AssertionError(refused)

    def accept(self, answer):
        if answer.status != 200 or answer["rejected"]:
            raise AssertionError(answer)

    def intents(self):
        first = self.hosts[0]
        run = {"gfn": 1, "count": 2}
        for kind, params in (("share", run), ("page_in", run), ("unshare", run), ("terminate", {}), ("launch", {"resident": 0.5})):
            made = self.must(self.admin.post(self.vms[0].path + "/operations",
                                             {"kind": kind, "params": params}))
            self.operations.append(made["id"])
        self.must(self.admin.get(first.path + "/operations?limit=3"))
        for op, end in zip(self.operations, ({"state": "succeeded"},
                                             {"state": "failed", "problem": {"why": "ünlucky"}})):
            self.must(self.admin.post(f"/v1/operations/{op}/result", dict(first.current(), **end)))
        self.must(self.admin.delete("/v1/operations/" + self.operations[4]))
        self.must(self.admin.post("/v1/tokens", {"role": "agent", "name": "its agent", "host": first.id}))
        gone = self.must(self.admin.post("/v1/tokens", {"role": "viewer", "name": "gone"}))
        self.must(self.admin.delete("/v1/tokens/" + gone["id"]))

    def endings(self):
        """What takes things away again: quarantine of bound frames, a reboot, a fence, lost backends, deletions."""
        first, second = self.hosts
        items = [{"pool": "local", "pfn": 25, "count": 10, "reason": "would not come back"},
                 {"pool": "cxl-0", "pfn": (1 << 30) + 6, "count": 1, "reason": "stuck"},
                 {"pool": "local", "pfn": 17, "count": 1}]
        self.must(self.admin.post(first.path + "/quarantine", dict(first.current(), items=items)))
        self.must(self.admin.post(first.path + "/quarantine/release",
                                  {"items": [{"pool": "local", "pfn": 28, "count": 2}]}))
        rebooted = Host(self.admin, name="rebooted")
        Vm(rebooted, state="secure")
        self.must(self.admin.post(rebooted.path + "/quarantine",
                                  {"items": [{"pool": "local", "pfn": 3, "count": 1, "reason": "lifted by the boot"}]}))
        rebooted.boot = OTHER_BOOT
        rebooted.register()
        fenced = Host(self.admin, name="fenced")
        lost = Vm(fenced, state="secure")
        self.accept(fenced.send(lost.item("page_in", 0, 4, 8)))
        self.must(self.admin.post(fenced.path + "/fence", {"force": True}))
        self.vms.append(lost)
        self.must(self.admin.delete(Vm(fenced).path))
        second.backends = [{"arch": "snp", "kind": "emulated", "extra": [1, None, {"x": 0.5}]}]
        second.register()
        self.hosts += [rebooted, fenced]

    def paths(self):
        yield from ("/v1/hosts", "/v1/pools", "/v1/pools/cxl-0", "/v1/pools/cxl-0/frames", "/v1/vms", "/v1/tokens",
                    "/v1/violations", "/v1/summary", "/v1/events?limit=1000")
        for host in self.hosts:
            for tail in ("", "/frames", "/frames?pool=local&pfn=0&count=100000", "/quarantine"):
                yield host.path + tail
        for vm in self.vms:
            for tail in ("", "/gfns", "/map?bins=3", "/digests", "/history", "/operations"):
                yield vm.path + tail
        for op in self.operations:
            yield "/v1/operations/" + op

    def look(self, client):
        seen = {}
        for path in self.paths():
            answer = client.get(path)
            seen[path] = (answer.status, answer.headers.get("etag"), settled(answer.raw))
        return seen


class Restart(Case):
    def setUp(self):
        self.server = Server("--checkpoint-seconds", "3600")
        self.addCleanup(self.server.close)
        super().setUp()
        self.world = World(self.admin)

    def same_as(self, before):
        after = self.world.look(self.server.client())
        for path, seen in before.items():
            self.assertEqual(after[path], seen, path)

    def test_a_clean_restart_and_crashes_show_the_same(self):
        before = self.world.look(self.admin)
        self.assertEqual({status for status, _, _ in before.values()}, {200}, before)
        self.server.crash()
        self.same_as(before)
        self.server.restart()
        self.same_as(before)
        self.server.crash()
        self.same_as(before)

    def test_the_record_of_ends_outlives_restarts(self):
        """Of VMs and of slots: what agents give guests up for (L11)."""
        host = Host(self.admin, name="ends")
        vm, gone = Vm(host, state="secure"), Vm(host)
        self.assert_ok(self.admin.delete(f"{vm.path}/slots/0?force=true"), 204)
        self.assert_ok(self.admin.delete(gone.path), 204)
        paths = (vm.path, gone.path)
        before = [self.admin.get(path) for path in paths]
        self.assertEqual([e["slot"] for e in before[0]["slots_ended"]], [0], before[0])
        self.assertLess(before[0]["ended"], before[0]["slots_ended"][0]["ended"])
        self.assertGreater(before[1]["ended"], before[0]["ended"])
        for again in (self.server.crash, self.server.restart, self.server.crash):
            again()
            after = [self.server.client().get(path) for path in paths]
            self.assertEqual([(a.status, a.json.get("ended"), a.json.get("slots_ended")) for a in after],
                             [(b.status, b.json.get("ended"), b.json.get("slots_ended")) for b in before])

    def test_changes_after_a_picture_are_in_the_next_one(self):
        self.server.restart()
        admin, (first, second, *_), secure = self.server.client(), self.world.hosts, self.world.vms[0]
        for owner in (first, secure):
            owner.client = admin
        secure.host.client = admin
        self.world.accept(first.send(secure.item("page_in", 800, 8, 3000)))
        self.world.must(admin.post(first.path + "/quarantine", dict(first.current(), items=[
            {"pool": "local", "pfn": 3001, "count": 2, "reason": "again"}])))
        self.world.must(admin.delete("/v1/vms/" + self.world.vms.pop(3).id))
        before = self.world.look(admin)
        self.server.restart()
        self.same_as(before)
        self.server.crash()
        self.same_as(before)

    def test_oldest_operations_first_also_after_a_restart(self):
        """Those of one commit have one time: their order is not the order of their ids."""
        first, vm = self.world.hosts[0], self.world.vms[0]
        self.server.restart()
        admin = self.server.client()
        left = [o["id"] for o in sorted(admin.get(vm.path + "/operations")["items"], key=lambda o: o["revision"])
                if o["state"] == "pending"]
        given = [o["id"] for o in admin.get(first.path + "/operations")["items"]]
        self.assertEqual(given, left)

    def test_a_repeated_batch_is_answered_again_after_a_crash(self):
        first, secure = self.world.hosts[0], self.world.vms[0]
        answer = first.send(secure.item("page_in", 900, 1, 3100), batch_seq=5)
        self.server.crash()
        again = first.send(secure.item("page_in", 900, 1, 3100), batch_seq=5, client=self.server.client())
        self.assertEqual(again.raw, answer.raw)
        older = first.send(secure.item("page_in", 901, 1, 3101), batch_seq=4, client=self.server.client())
        self.assert_problem(older, 409, "stale-batch")

    def test_a_deleted_admin_token_stays_deleted(self):
        """Without any admin left the next start makes one, and never the old one again."""
        old = self.server.token
        mine = next(t["id"] for t in self.admin.get("/v1/tokens")["items"] if t["role"] == "admin")
        self.assert_ok(self.admin.delete("/v1/tokens/" + mine), 204)
        self.assertEqual(self.admin.get("/v1/tokens").status, 401)
        self.server.restart()
        self.assertNotEqual(self.server.token, old)
        self.assertEqual(self.server.client(old).get("/v1/tokens").status, 401)
        self.assertEqual(self.server.client().get("/v1/tokens").status, 200)


class Leases(unittest.TestCase):
    def feed(self, admin, host):
        return [e["type"] for e in admin.get("/v1/events?limit=1000")["items"] if e.get("host") == host.id]

    def wait_for(self, admin, what, host):
        end = time.monotonic() + harness.WAIT_S
        while what not in self.feed(admin, host):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.05)

    def test_who_was_out_of_reach_still_is_after_a_restart(self):
        server = Server("--lease-seconds", "1")
        self.addCleanup(server.close)
        admin = server.client()
        host = Host(admin)
        self.wait_for(admin, "host.unreachable", host)
        for again in (server.crash, server.restart):
            again()
            admin = server.client()
            self.assertEqual(admin.get(host.path)["state"], "unreachable", again)
        end = time.monotonic() + harness.WAIT_S
        while "host.back" not in self.feed(admin, host):
            beat = admin.post(host.path + "/heartbeat", host.current())
            self.assertEqual(beat.status, 200, beat)
            self.assertLess(time.monotonic(), end)
            time.sleep(0.05)
        self.assertEqual(self.feed(admin, host)[:3], ["host.registered", "host.unreachable", "host.back"])

    def test_a_host_that_is_fenced_has_not_come_back(self):
        server = Server("--lease-seconds", "1")
        self.addCleanup(server.close)
        admin = server.client()
        host, other = Host(admin), Host(admin)
        self.wait_for(admin, "host.unreachable", host)
        self.assertEqual(admin.post(host.path + "/fence").status, 200)  # its lease is over: no force is needed
        self.wait_for(admin, "host.unreachable", other)
        while "host.back" not in self.feed(admin, other):
            other.register()
        self.assertEqual(self.feed(admin, host), ["host.registered", "host.unreachable", "host.fenced"])


class Memory(unittest.TestCase):
    def test_what_memory_does_not_suffice_for_leaves_nothing(self):
        server = Server("--memory-bytes", "3M")
        self.addCleanup(server.close)
        admin = server.client()
        host = Host(admin, frames=1 << 30)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 1 << 30}], state="secure")
        for turn in range(100):
            before = vm.get()
            items = [vm.item("page_in", g << 18, 1, g << 18) for g in range(64 * turn, 64 * turn + 64)]
            answer = host.send(*items, atomic=True, batch_seq=turn + 1)
            if answer.status != 200:
                break
        self.assertEqual((answer.status, answer.slug), (503, "no-memory"), answer)
        self.assertTrue(answer["retryable"])
        self.assertEqual(vm.get(), before)
        self.assertEqual(admin.get("/readyz").status, 200)
        again = host.send(*items, atomic=True, batch_seq=turn + 1)
        self.assertEqual(again.slug, "no-memory", "a refusal for want of memory is none to keep")
        server.crash()
        self.assertEqual(server.client().get(vm.path).json, before)


class Groups(Case):
    def test_many_ranges_go_into_quarantine_at_once(self):
        """They once took memory with the square of their number."""
        host = Host(self.admin, frames=1 << 20)
        items = [{"pool": "local", "pfn": 3 * i, "count": 1, "reason": "stuck"} for i in range(12000)]
        began = time.monotonic()
        self.assert_ok(self.admin.post(host.path + "/quarantine", {"items": items}))
        self.assert_ok(self.admin.post(host.path + "/quarantine/release", {"items": [
            {"pool": "local", "pfn": 1, "count": 35990}]}))
        self.assertLess(time.monotonic() - began, harness.WAIT_S)
        listed = self.admin.get(host.path + "/quarantine")["items"]
        self.assertEqual([(i["pfn"], i["count"]) for i in listed], [(0, 1), (35991, 1), (35994, 1), (35997, 1)])

    def test_quarantine_tells_its_vms(self):
        host = Host(self.admin, frames=64)
        vm = Vm(host, state="secure")
        self.accepted(host.send(vm.item("page_in", 3, 4, 8)))
        before = vm.get()["revision"]
        made = self.assert_ok(self.admin.post(host.path + "/quarantine", dict(host.current(), items=[
            {"pool": "local", "pfn": 9, "count": 2, "reason": "stuck"}])))
        self.assertEqual(vm.get()["revision"], made["revision"])
        self.assertGreater(made["revision"], before)
        newest = self.admin.get(vm.path + "/history?gfn=4")["items"][0]
        self.assertEqual((newest["type"], newest["vms"]), ("quarantine.added", [vm.id]), newest)

    def test_an_idempotent_backup_is_made_once(self):
        headers = {"Idempotency-Key": "one backup"}
        first = self.admin.post("/v1/backups", {"name": "b1"}, headers=headers)
        self.assertEqual(first.status, 202, first)
        self.assertEqual(self.admin.post("/v1/backups", {"name": "b1"}, headers=headers).raw, first.raw)
        made = self.job("/v1/backups", {"name": "b1"}, headers=headers)
        self.assert_problem(self.admin.post("/v1/backups", {"name": "b2"}, headers=headers), 422,
                            "idempotency-mismatch")
        self.assert_problem(self.admin.post("/v1/backups", {"name": "b1"}), 409, "backup-exists")
        with sqlite3.connect(f"file:{made['path']}/journal.db?mode=ro", uri=True) as db:
            self.assertEqual(db.execute("PRAGMA integrity_check").fetchone(), ("ok",))

    def test_if_match_any_wants_something_to_be_there(self):
        host = harness.new_id()
        body = {"name": "h", "boot_id": "b", "backends": [{"arch": "pef", "kind": "emulated"}], "pools": []}
        self.assert_problem(self.admin.put("/v1/hosts/" + host, body, headers={"If-Match": "*"}), 412, "stale")
        self.assert_ok(self.admin.put("/v1/hosts/" + host, body), 201)
        self.assert_ok(self.admin.put("/v1/hosts/" + host, body, headers={"If-Match": "*"}))


class LongReplay(unittest.TestCase):
    """A long journal to replay: the server is there at once, says that it is not ready, and answers nothing else."""

    PAGES, BATCH, BATCHES = 1 << 22, 65536, 40

    def test_it_is_alive_and_not_ready_until_the_replay_is_done(self):
        server = Server("--checkpoint-seconds", "3600")
        self.addCleanup(server.close)
        admin = server.client()
        host = Host(admin)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": self.PAGES}], state="secure")
        gfns = [n * 61 % self.PAGES for n in range(self.BATCH)]
        for n in range(self.BATCHES):
            answer = host.send({"vm": vm.id, "op": ("share", "unshare")[n % 2], "gfns": gfns})
            self.assertEqual((answer.status, answer["rejected"]), (200, 0), answer)
        expected = vm.get()
        server.kill()
        start = threading.Thread(target=server.start)
        start.start()
        seen = set()
        while start.is_alive():
            try:
                probe = harness.Client(server.port, server.token, timeout=5)
                seen.add(tuple(probe.get(path).status for path in ("/healthz", "/readyz", vm.path)))
            except (OSError, harness.http.client.HTTPException):
                time.sleep(0.002)
        start.join()
        self.assertIn((200, 503, 503), seen)
        self.assertLessEqual(seen, {(200, 503, 503), (200, 503, 200), (200, 200, 200)})
        self.assertEqual(server.client().get(vm.path).json, expected)


if __name__ == "__main__":
    unittest.main()
