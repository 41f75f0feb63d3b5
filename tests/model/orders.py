"""Operations of the played hosts: the model is who asks for them, who cancels them, and the agent that carries them out."""
from asking import Request, Want, refused
from ledger import GONE, Thing
from world import Wrong


class Orders:
    """A part of Played."""

    def do_operation(self):
        active = self.active()
        roll = self.rng.random()
        if not active or (roll < 0.3 and len(active) < 8):
            return self.ask_for_operation()
        if roll < 0.45:
            return self.cancel(self.rng.choice(active))
        running = [o for o in active if o.state == "running"]
        if running and roll < 0.7:
            return self.finish(self.rng.choice(running))
        if roll < 0.74:
            return self.finish(self.rng.choice(active))
        return self.poll(self.rng.randrange(len(self.hosts)))

    def ask_for_operation(self):
        rng, vm = self.rng, self.pick_vm()
        if vm is None:
            return self.do_create()
        slot = rng.choice(list(vm.slots) or [0])
        base, pages = vm.slots.get(slot, (0, 1))
        kinds = {"launch": {}, "terminate": {}, "abort": {}, "unplug": {"slot": slot},
                 "plug": {"slot": 6, "base_gfn": 300, "pages": 4}, "share": {"gfn": base, "count": 1},
                 "unshare": {"gfn": base, "count": pages}, "page_in": {"gfn": base, "count": 1},
                 "page_out": {"gfn": base, "count": pages}}
        kind = rng.choice(sorted(kinds))
        who = rng.choices(("operator", "admin", "viewer", f"agent{self.index(vm.host)}"), (60, 30, 5, 5))[0]
        body = {"kind": kind, "params": kinds[kind]} if kinds[kind] else {"kind": kind}
        wrong = rng.random() < 0.1 and kinds[kind]
        if wrong:
            body["params"] = rng.choice(({**kinds[kind], "surprise": 1}, {n: "x" for n in kinds[kind]}, {n: -1 for n in kinds[kind]}))
        request = Request(who, "POST", f"/v1/vms/{vm.id}/operations", body, f"o{self.number}-{self.count}")

        def predict():
            if who == "viewer" or who.startswith("agent"):
                return refused("forbidden")
            if wrong:
                return refused("invalid-params")
            if kind == "abort" and vm.state != "transient":
                return refused("vm-transition")
            if kind == "unplug" and slot not in vm.slots:
                return refused("slot-not-found")
            if kind == "plug" and vm.slots.get(6, (300, 4)) != (300, 4):
                return refused("slot-overlap")
            return Want(202)
        got = self.ask(request, predict)
        if got and got.status == 202:
            operation = Thing(id=got.json["id"], vm=vm.id, host=vm.host, kind=kind, state="pending",
                              params=kinds[kind], deliver=False, epoch=0)
            self.model.put(self.model.operations, operation.id, operation)
            self.model.commit()
        return got

    def finished(self, operation, state):
        """Finished ones are remembered for a while, so that a cut can be resolved."""
        self.model.set(operation, state=state, deliver=False)
        old = [o.id for o in self.model.operations.values() if o.state not in ("pending", "running") and o is not operation]
        for one in old[:-4]:
            self.model.put(self.model.operations, one, GONE)

    def active(self):
        return [o for o in self.model.operations.values() if o.state in ("pending", "running")]

    def cancel(self, operation):
        who = self.rng.choices(("operator", "admin", "viewer"), (60, 30, 10))[0]

        def predict():
            if who == "viewer":
                return refused("forbidden")
            if operation.state != "pending":
                return refused("operation-state")
            self.finished(operation, "cancelled")
            return Want(200)
        return self.ask(Request(who, "DELETE", "/v1/operations/" + operation.id), predict)

    def poll(self, i):
        host = self.model.hosts[self.hosts[i]]
        wanted = [o for o in self.model.operations.values()
                  if o.host == host.id and (o.state == "pending" or o.deliver) and not host.fenced]

        def predict():
            for o in wanted:
                if o.kind == "launch" and o.epoch != host.epoch and o.vm in self.model.vms:
                    self.model.set(self.model.vms[o.vm], hot=True)
                self.model.set(o, state="running", deliver=False, epoch=host.epoch)
            return Want(200)
        got = self.ask(Request(f"agent{i}", "GET", f"/v1/hosts/{host.id}/operations"), predict)
        if got and sorted(o["id"] for o in got.json["items"]) != sorted(o.id for o in wanted):
            raise Wrong(f"host {host.id} was delivered {got}, not {[o.id for o in wanted]}")
        return got

    def finish(self, operation):
        host = self.model.hosts[operation.host]
        body = dict(self.holder(host), state=self.rng.choice(("succeeded", "failed")))
        i = self.index(operation.host)
        who = self.rng.choices((f"agent{i}", f"agent{1 - i}", "operator"), (85, 10, 5))[0]

        def predict():
            if who != f"agent{i}":
                return refused("forbidden")
            if not self.model.is_current(host, body["boot_id"], body["epoch"]):
                return refused("host-fenced")
            if operation.state != "running":
                return refused("operation-state")
            self.finished(operation, body["state"])
            return Want(200)
        request = Request(who, "POST", f"/v1/operations/{operation.id}/result", body)
        got = self.ask(request, predict)
        if got and got.status == 200 and self.rng.random() < 0.3:  # and once more: the same is fine, another is not
            other = dict(body, state="failed" if body["state"] == "succeeded" else "succeeded")
            self.ask(request, lambda: Want(200))
            self.ask(Request(who, "POST", request.path, other), lambda: refused("operation-state"))
        return got
