"""Each kind of change, alone after a picture: kill -9 and the journal give it back, and so does the next picture."""
import unittest

from harness import LIMIT, OTHER_BOOT, Case, Host, Vm, new_id

VOLATILE = {"last_seen", "state_since"}


def stable(value):
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE}
    return [stable(v) for v in value] if isinstance(value, list) else value


class Scene:
    """A host with a peer, a shared pool, and VMs in every state, with pages in every state."""

    def __init__(self, case):
        self.admin = case.admin
        self.host, self.peer = Host(self.admin), Host(self.admin)
        self.pool = "p" + new_id()
        case.assert_ok(self.admin.put("/v1/pools/" + self.pool, self.pool_body(1024)), 201)
        self.secure = Vm(self.host, state="secure")
        self.transient, self.normal = Vm(self.host, state="transient"), Vm(self.host)
        self.far = Vm(self.peer, state="secure")
        case.accepted(self.host.send(
            self.secure.item("page_in", 0, 16, 100), self.secure.item("share", 100, 8),
            self.secure.item("page_in", 32, 4, 10, pool=self.pool), self.transient.item("page_in", 0, 8, 200)))
        case.accepted(self.peer.send(self.far.item("page_in", 0, 8, 500, pool=self.pool)))
        items = [{"pool": "local", "pfn": 900, "count": 4, "reason": "hot"}]
        case.assert_ok(self.admin.post(self.host.path + "/quarantine", {"items": items}))
        self.pending, self.running, self.ended = (self.ask() for _ in range(3))
        self.deliver(case, [self.pending, self.running, self.ended])
        self.result(case, self.ended)
        self.pending = self.ask()
        self.token = case.assert_ok(self.admin.post("/v1/tokens", {"role": "viewer", "name": "x"}), 201)["id"]

    def pool_body(self, frames):
        return {"base_pfn": 0, "frames": frames, "hosts": [self.host.id, self.peer.id]}

    def ask(self):
        return self.admin.post(self.transient.path + "/operations", {"kind": "launch", "params": {"resident": 1}})["id"]

    def deliver(self, case, wanted):
        got = [o["id"] for o in self.admin.get(self.host.path + "/operations")["items"]]
        case.assertEqual(sorted(got), sorted(wanted))

    def result(self, case, op):
        problem = {"type": "/problems/backend", "title": "t", "status": 500, "detail": "d", "retryable": False}
        body = dict(self.host.current(), state="failed", problem=problem)
        case.assert_ok(self.admin.post(f"/v1/operations/{op}/result", body))

    def quarantine(self, pfn, count, pool="local", release=False):
        item = {"pool": pool, "pfn": pfn, "count": count}
        path = self.host.path + ("/quarantine/release" if release else "/quarantine")
        return self.admin.post(path, dict(self.host.current(), items=[item if release else dict(item, reason="it burns")]))

    def reboot(self):
        self.host.boot = OTHER_BOOT
        return self.host.register()


CHANGES = {
    "a claim": lambda s: s.host.send(s.secure.item("page_in", 200, 4, 300)),
    "a claim in a shared pool": lambda s: s.host.send(s.secure.item("page_in", 200, 4, 300, pool=s.pool)),
    "a page out": lambda s: s.host.send(s.secure.item("page_out", 3, 2)),
    "a share": lambda s: s.host.send(s.secure.item("share", 3, 2)),
    "an unshare": lambda s: s.host.send(s.secure.item("unshare", 101, 2)),
    "an unshare with frames": lambda s: s.host.send(s.secure.item("unshare", 101, 2, 700)),
    "a refusal": lambda s: s.host.send(s.secure.item("page_in", 300, 1, 100)),
    "init_start": lambda s: s.normal.must("init_start"),
    "init_done": lambda s: s.transient.must("init_done"),
    "init_abort": lambda s: s.transient.must("init_abort"),
    "terminate": lambda s: s.secure.must("terminate"),
    "a new VM": lambda s: Vm(s.host, name="new", gpa={"shared_bit": 47}, arch="tdx").created,
    "a deleted VM": lambda s: s.admin.delete(s.normal.path),
    "a VM deleted and made again": lambda s: (s.admin.delete(s.normal.path), Vm(s.peer, vm=s.normal.id).created)[1],
    "a new slot": lambda s: s.admin.put(s.secure.path + "/slots/4", {"base_gfn": 9000, "pages": 8}),
    "a deleted slot": lambda s: s.secure.drop_slot(0),
    "quarantine of free frames": lambda s: s.quarantine(950, 3),
    "quarantine of bound frames": lambda s: s.quarantine(104, 3),
    "quarantine of bound frames of a shared pool": lambda s: s.quarantine(11, 2, s.pool),
    "quarantine of bound frames of two VMs": lambda s: s.quarantine(110, 100),
    "a release from quarantine": lambda s: s.quarantine(901, 2, release=True),
    "a reboot": lambda s: s.reboot(),
    "a fence": lambda s: s.admin.post(s.host.path + "/fence", {"force": True}),
    "a new host": lambda s: Host(s.admin).register(),
    "a larger local pool": lambda s: s.admin.put(s.host.path, dict(s.host.body(), pools=[
        {"pool": "local", "base_pfn": 0, "frames": 1 << 21}])),
    "another name and agent": lambda s: s.admin.put(s.host.path, dict(s.host.body(), name="n2", agent_version="9")),
    "a larger shared pool": lambda s: s.admin.put("/v1/pools/" + s.pool, s.pool_body(2048)),
    "a new shared pool": lambda s: s.admin.put("/v1/pools/q" + new_id(), s.pool_body(64)),
    "a new operation": lambda s: s.admin.post(s.secure.path + "/operations", {"kind": "terminate"}),
    "a cancelled operation": lambda s: s.admin.delete("/v1/operations/" + s.pending),
    "a delivered operation": lambda s: s.admin.get(s.host.path + "/operations"),
    "a finished operation": lambda s: s.admin.post(f"/v1/operations/{s.running}/result",
                                                  dict(s.host.current(), state="succeeded")),
    "a new token": lambda s: s.admin.post("/v1/tokens", {"role": "operator", "name": "y"}),
    "a deleted token": lambda s: s.admin.delete("/v1/tokens/" + s.token),
}


class EachChangeAlone(Case):
    def view(self, scene):
        """All lists, and all that can be read of the scene's hosts, pools and VMs."""
        seen, everything = {}, "?limit=1000"
        for path in ("/v1/hosts", "/v1/pools", "/v1/vms", "/v1/tokens", "/v1/violations"):
            seen[path] = self.admin.items(path + everything)
        hosts = (scene.host.id, scene.peer.id)
        for host in hosts:
            path = "/v1/hosts/" + host
            seen[path] = self.admin.items(f"{path}/frames?pfn=0&count={LIMIT - 1}&limit=1000")
            seen[path, "q"] = self.admin.items(path + "/quarantine" + everything)
        path = f"/v1/pools/{scene.pool}/frames?pfn=0&count={LIMIT - 1}&limit=1000"
        seen[path] = self.admin.items(path)
        for vm in (vm for vm in seen["/v1/vms"] if vm["host"] in hosts):
            path = "/v1/vms/" + vm["id"]
            seen[path] = self.admin.items(path + "/gfns" + everything)
            seen[path, "operations"] = self.admin.items(path + "/operations" + everything)
        return stable({str(k): v for k, v in seen.items()})

    def started(self):
        self.admin.close()
        self.admin = self.server.client()

    def each_change(self, *ends):
        """After each change the server ends in these ways, one after the other, and all is as it was."""
        scenes = {name: Scene(self) for name in CHANGES}
        self.server.restart()
        self.started()
        for name, change in CHANGES.items():
            with self.subTest(change=name):
                scene = scenes[name]
                for thing in (scene, scene.host, scene.peer, scene.secure, scene.transient, scene.normal):
                    thing.admin = thing.client = self.admin
                answer = change(scene)
                self.assertIn(answer.status, (200, 201, 202, 204), answer)
                before = self.view(scene)
                for end in ends:
                    end()
                    self.started()
                    self.assertEqual(self.view(scene), before, end.__name__)

    def test_the_picture_has_it(self):
        self.each_change(self.server.restart)

    def test_the_journal_has_it_and_the_picture_made_from_that(self):
        self.each_change(self.server.crash, self.server.restart)


if __name__ == "__main__":
    unittest.main()
