"""Hosts whose agents the model plays itself: two of them, a shared pool, an administrator, an operator, a viewer, a
stranger and a liar, in one thread, so that the model knows what each answer has to be.

Each action is one request, right or wrong in one way; `predict` moves the model and says what the answer has to be.
"""
import json
import time

from asking import Request, Speaker, Want, refused
from ledger import EVENTS, GONE, SHARED_BITS
from orders import Orders
from world import Cut, Over, Wire, Wrong, uuid_of

SLOTS = {0: (0, 24), 1: (64, 16), 2: (96, 8)}
OTHER_SHAPES = [(20, 8), (64, 12), (100, 8), (200, 4), (0, 4)]
LOCAL, SHARED_FRAMES = 48, 32
ARCHES = (("snp", "tdx", "pef"), ("cca", "pkvm", "snp"))
OLD = 40  # requests that may be said again


class Played(Orders, Speaker):
    def __init__(self, world, feed, number):
        super().__init__(world, feed, f"played-{number}")
        self.number, self.pool, self.generation = number, f"cxl-{number}", 0
        self.beats, self.seqs, self.past, self.silent = {}, {}, [], {}

    # Setting up.

    def uuid(self):
        return uuid_of(self.rng)

    def begin(self):
        """Hosts, tokens, the shared pool. Before the thread starts."""
        world = self.world
        self.hosts = [self.uuid() for _ in ARCHES]
        self.wires = {"admin": world.admin(), "operator": Wire(world, world.token("operator")),
                      "viewer": Wire(world, world.token("viewer")), "nobody": Wire(world, "pw_nonsense")}
        for i, host in enumerate(self.hosts):
            self.wires[f"agent{i}"] = Wire(world, world.token("agent", host, f"agent-{self.number}-{i}"))
        self.silent = {host: False for host in self.hosts}
        for i, host in enumerate(self.hosts):
            self.ask(*self.registration(i, self.uuid()))
        body = {"base_pfn": 100, "frames": SHARED_FRAMES, "hosts": self.hosts}
        got = self.wires["admin"].call("PUT", "/v1/pools/" + self.pool, body)
        if got.status != 201:
            raise Wrong(f"PUT /v1/pools/{self.pool}: {got}")
        self.model.add_pool(("", self.pool), 100, SHARED_FRAMES, self.hosts)
        self.model.commit()

    # The run.

    def run(self):
        try:
            while not self.world.over():
                try:
                    self.step()
                except Cut:
                    time.sleep(0.02)
                    self.world.wait_up()
        except Over:
            pass
        except Exception as error:
            text = "\n".join(f"  {n}: {request}\n      should be {want}; was {was}" for n, request, want, was in self.trail)
            self.world.fail(self.name, Wrong(f"{error}\nits last requests:\n{text}") if isinstance(error, Wrong) else error)

    def end(self):
        """After the run: everything once more."""
        why = self.differs()
        if why:
            raise Wrong(f"{self.name}: at the end {why}")

    def after_restart(self):
        """Nothing acknowledged is lost, nothing refused is there. Who delivers what is begun anew by registering."""
        self.generation = self.world.generation
        self.beats.clear()
        why = self.differs()
        if why:
            raise Wrong(f"after a restart: {why}")
        for i, host in enumerate(self.hosts):
            if not self.model.hosts[host].fenced:
                self.ask(*self.registration(i, self.model.hosts[host].boot))

    def step(self):
        if self.generation != self.world.generation:
            self.after_restart()
        self.keep_alive()
        roll, actions = self.rng.random(), ACTIONS
        for weight, name in actions:
            roll -= weight
            if roll < 0:
                got = getattr(self, "do_" + name)()
                if got is not None and (got.status >= 400 or got.json and got.json.get("rejected")):
                    self.look_again(self.trail[-1][1])
                return None
        return self.do_read()

    def look_again(self, request):
        """Nothing refused is there."""
        named = [item["vm"] for item in (request.body or {}).get("items", ()) if "vm" in item]
        named += [part for part in request.path.split("/") if part in self.model.vms]
        vms = [self.model.vms[vm] for vm in dict.fromkeys(named) if vm in self.model.vms]
        if vms and self.rng.random() < 0.5:
            why = self.vm_differs(self.rng.choice(vms))
            if why:
                raise Wrong(f"after a refusal: {why}")

    def keep_alive(self):
        """The hosts that are not silent are heard of long before their leases end."""
        now = time.monotonic()
        for i, host_id in enumerate(self.hosts):
            host = self.model.hosts[host_id]
            last = self.beats.get(host_id, 0)
            if self.silent[host_id]:
                if now > self.silent[host_id]:
                    self.silent[host_id] = False
            elif now - last > 1 and not host.fenced:
                self.beat(i)
            elif host.fenced and self.rng.random() < 0.03:
                self.ask(*self.registration(i, host.boot if self.rng.random() < 0.5 else self.uuid()))

    def beat(self, i):
        host = self.model.hosts[self.hosts[i]]
        body = {"boot_id": host.boot, "epoch": host.epoch}
        began = time.monotonic()
        if self.ask(Request(f"agent{i}", "POST", f"/v1/hosts/{host.id}/heartbeat", body), lambda: Want(200)):
            self.beats[host.id] = began

    def alive(self, host):
        """Does its lease live? True, False or (time will tell) None."""
        last = self.beats.get(host.id)
        if host.fenced or last is None:
            return None
        age = time.monotonic() - last
        return True if age < self.world.lease_s - 2 else None if age < self.world.lease_s + 2 else False

    # Choosing.

    def pick_vm(self, states=None):
        found = [vm for vm in self.model.vms.values() if states is None or vm.state in states]
        return self.rng.choice(found) if found else None

    def index(self, host_id):
        return self.hosts.index(host_id)

    def holder(self, host):
        """boot_id and epoch of a host: mostly the current ones, sometimes a lie."""
        if self.rng.random() < 0.92:
            return {"boot_id": host.boot, "epoch": host.epoch}
        return self.rng.choice(({"boot_id": self.uuid(), "epoch": host.epoch},
                                {"boot_id": host.boot, "epoch": host.epoch + 1},
                                {"boot_id": host.boot, "epoch": max(host.epoch - 1, 0)},
                                {"boot_id": host.boot + "x", "epoch": host.epoch}))

    def frames_for(self, host, count):
        """(pool, first pfn) for so many frames: free ones mostly."""
        name = "local" if self.rng.random() < 0.55 else self.pool
        key = self.model.pool_key(host, name)
        pool = self.model.pools[key]
        if self.rng.random() < 0.02:
            return "no-such-pool", self.rng.randrange(64)
        if pool.owner and self.rng.random() < 0.1:
            return name, self.rng.choice(sorted(pool.owner))
        if self.rng.random() < 0.2:
            return name, self.rng.randrange(pool.base - min(pool.base, 3), pool.base + pool.frames + 2)
        starts = [p for p in range(pool.base, pool.base + pool.frames - count + 1)
                  if all(p + i not in pool.owner and p + i not in pool.quarantine for i in range(count))]
        return name, self.rng.choice(starts) if starts else pool.base

    def make_item(self, host):
        """One item of a batch, for a VM of the host mostly."""
        rng, roll = self.rng, self.rng.random()
        mine = [vm for vm in self.model.vms.values() if vm.host == host.id]
        secure = [vm for vm in mine if vm.state != "normal"]
        if roll < 0.03 or not mine:
            return {"vm": self.uuid(), "op": "share", "gfn": 0, "count": 1}
        if roll < 0.07:
            vm = rng.choice(list(self.model.vms.values()))
        else:
            vm = rng.choice(secure or mine) if roll < 0.95 else rng.choice(mine)
        op, framed = self.pick_op(vm)
        if op in getattr(self.model.laws.get(op.split(".")[0]), "vm_ops", {}):
            return {"vm": vm.id, "op": op}
        return self.fill_item(host, vm, op, framed)

    def pick_op(self, vm):
        rng, law = self.rng, self.model.laws.get(vm.arch)
        if rng.random() < 0.6 or law is None:
            op = rng.choice(("share", "unshare", "unshare+", "page_in", "page_in", "page_out"))
            return op.rstrip("+"), op in ("unshare+", "page_in")
        if rng.random() < 0.05:
            law = rng.choice(list(self.model.laws.values()))
        if law.vm_ops and rng.random() < 0.06:
            return rng.choice(sorted(law.vm_ops)), False
        return rng.choice(sorted(law.ops))

    def fill_item(self, host, vm, op, framed):
        rng, item = self.rng, {"vm": vm.id, "op": op}
        def place():
            base, pages = rng.choice(list(vm.slots.values())) if vm.slots else (0, 8)
            gfn = base + rng.randrange(pages) if rng.random() < 0.97 else rng.randrange(256)
            if vm.bit and rng.random() < 0.02:
                gfn |= 1 << vm.bit - 12  # its shared alias, which no item may name
            room = base + pages - gfn if gfn >= base else 1
            return gfn, rng.randint(1, max(1, min(4, room))) if rng.random() < 0.95 else rng.randint(1, 6)
        form = rng.random()
        if form < 0.6:
            item["gfn"], item["count"] = place()
            if framed:
                pool, pfn = self.frames_for(host, item["count"])
                item["frame"] = {"pool": pool, "pfn": pfn}
            return item
        if form < 0.85:
            item["runs"] = [list(place()) for _ in range(rng.randint(1, 3))]
            if framed:
                item["pool"] = self.frames_for(host, 1)[0]
                for run in item["runs"]:
                    run.append(self.frames_for(host, run[1])[1])
            return item
        item["gfns"] = [place()[0] for _ in range(rng.randint(1, 4))]
        if framed:
            item["pool"] = self.frames_for(host, 1)[0]
            item["pfns"] = [self.frames_for(host, 1)[1] for _ in item["gfns"]]
        return item

    # Actions. Each is one request.

    def registration(self, i, boot):
        host_id, base = self.hosts[i], 1000 * i
        body = {"name": f"host-{self.number}-{i}", "boot_id": boot,
                "backends": [{"arch": a, "kind": "emulated"} for a in ARCHES[i]],
                "pools": [{"pool": "local", "base_pfn": base, "frames": LOCAL}]}

        def predict():
            known = self.model.hosts.get(host_id)
            self.model.register(host_id, boot, ARCHES[i], base, LOCAL)
            for operation in self.model.operations.values():
                if operation.host == host_id and operation.state == "running":
                    self.model.set(operation, deliver=True)
            return Want(200 if known else 201)
        return Request(f"agent{i}", "PUT", "/v1/hosts/" + host_id, body), predict

    def do_register(self):
        i = self.rng.randrange(len(self.hosts))
        host = self.model.hosts[self.hosts[i]]
        if self.rng.random() < 0.3:
            request, _ = self.registration(i, host.boot)
            request.who = f"agent{1 - i}"
            return self.ask(request, lambda: refused("forbidden"))
        again = host.fenced or self.rng.random() < 0.4
        request, predict = self.registration(i, host.boot if again else self.uuid())
        began = time.monotonic()
        if self.ask(request, predict):
            self.beats[host.id] = began
        return None

    def do_fence(self):
        host = self.model.hosts[self.rng.choice(self.hosts)]
        force, alive = self.rng.random() < 0.6, self.alive(host)
        request = Request("admin", "POST", f"/v1/hosts/{host.id}/fence", {"force": True} if force else {})
        if host.fenced:
            return self.ask(request, lambda: Want(200))
        if not force:
            if alive is not False:
                return self.ask(request, lambda: refused("host-alive")) if alive else None

        def predict():
            self.model.fence(host)
            return Want(200, also=() if force else ((409, "host-alive"),))
        return self.ask(request, predict)

    def do_silence(self):
        """A host is not heard of any more until its lease is over."""
        host = self.rng.choice(self.hosts)
        self.silent[host] = time.monotonic() + self.world.lease_s + 4

    def do_transitions(self):
        rng, i = self.rng, self.rng.randrange(len(self.hosts))
        host = self.model.hosts[self.hosts[i]]
        who = rng.choices((f"agent{i}", "admin", f"agent{1 - i}", "operator", "viewer", "nobody"), (84, 9, 3, 2, 1, 1))[0]
        items = [self.make_item(host) for _ in range(rng.choice((1, 1, 1, 2, 3, 4)))]
        body = dict(self.holder(host), items=items)
        if rng.random() < 0.2:
            body["atomic"] = rng.random() < 0.8
        key, roll = None, rng.random()
        if roll < 0.5 and who == f"agent{i}":
            last = self.seqs.get(host.id, 0)
            body["batch_seq"] = last + rng.choice((1, 1, 1, 2, 10))
        elif roll < 0.75:
            key = f"k{self.number}-{self.count}"
        request = Request(who, "POST", f"/v1/hosts/{host.id}/transitions", body, key,
                          holder=(host.id, body["boot_id"], body["epoch"]))
        return self.transit(request)

    def predict_transitions(self, request):
        body, host = request.body, self.model.hosts[request.holder[0]]
        if request.who == "nobody":
            return refused("unauthorized")
        if request.who in ("operator", "viewer"):
            return refused("forbidden")
        if request.who.startswith("agent") and request.who != f"agent{self.index(host.id)}":
            return refused("forbidden")
        if request.who == "admin" and any("." in item["op"] for item in body["items"]):
            return refused("forbidden")
        if not self.model.is_current(host, body["boot_id"], body["epoch"]):
            return refused("host-fenced")
        atomic = body.get("atomic", False)
        slugs = self.model.batch(host, body["items"], atomic)
        if atomic and any(slugs):
            return Want(409, "batch-rejected", slugs, conflicts=self.model.conflicts)
        return Want(200, None, slugs, conflicts=self.model.conflicts)

    def transit(self, request):
        got = self.ask(request, lambda: self.predict_transitions(request))
        if got is None:
            return None
        if "batch_seq" in request.body and got.slug != "host-fenced" and got.status in (200, 409):
            self.seqs[request.holder[0]] = request.body["batch_seq"]
            self.remember(request, got)
        elif request.key and got.status in (200, 409):
            self.remember(request, got)
        return got

    def remember(self, request, got):
        self.past.append((request, got))
        if len(self.past) > OLD:
            self.past.pop(self.rng.randrange(OLD // 2))

    def do_repeat(self):
        """An earlier request again: the same, or with another body under the same key or number."""
        if not self.past:
            return self.do_transitions()
        old, first = self.rng.choice(self.past)
        if old.vm and old.vm not in self.model.vms:
            return self.do_read()
        host = self.model.hosts[old.holder[0]] if old.holder else None
        current = host is None or self.model.is_current(host, *old.holder[1:])
        changed = self.rng.random() < 0.4 and current
        if changed:
            body = dict(old.body)
            if "items" in body:
                body["items"] = body["items"] + [{"vm": self.uuid(), "op": "share", "gfn": 0, "count": 1}]
            else:
                body["event"] = "start" if body["event"] == "terminate" else "terminate"
            request = Request(old.who, old.method, old.path, body, old.key, old.headers, old.holder)
        else:
            request = old
        seq = old.body.get("batch_seq") if old.key is None else None
        if not current:
            want = refused("host-fenced")
        elif seq is not None and (changed or seq != self.seqs.get(host.id)):
            want = refused("stale-batch")
        elif changed:
            want = refused("idempotency-mismatch")
        else:
            want = Want(first.status, first.slug)
        got = self.ask(request, lambda: want)
        if got and current and (want.status, want.slug) == (first.status, first.slug) and got.json != first.json:
            raise Wrong(f"{request}\n  was answered: {first}\n  and the second time: {got}")
        return got

    def speaker(self, host_id):
        """Who asks for something of a VM's lifecycle or slots, and what it says of itself."""
        i = self.index(host_id)
        return self.rng.choices((f"agent{i}", "admin", f"agent{1 - i}", "operator", "viewer"), (55, 30, 5, 6, 4))[0]

    def do_lifecycle(self):
        rng = self.rng
        vm = (self.pick_vm(("normal", "transient")) if rng.random() < 0.6 else None) or self.pick_vm()
        if rng.random() < 0.02:
            vm = None
        if vm is None:
            return self.ask(Request("admin", "POST", f"/v1/vms/{self.uuid()}/lifecycle", {"event": "start"}),
                            lambda: refused("vm-not-found"))
        host = self.model.hosts[vm.host]
        who = self.speaker(vm.host)
        legal = {"normal": ("init_start",), "transient": ("init_done", "init_done", "init_abort"), "secure": ("terminate",)}
        # Ends are rare, or nothing would grow.
        event = rng.choice(legal[vm.state]) if rng.random() < 0.7 else rng.choice(EVENTS)
        if event in ("terminate", "init_abort") and vm.state != "normal" and rng.random() < 0.6:
            return self.do_transitions()
        body = {"event": event}
        if who.startswith("agent") and rng.random() < 0.95 or who == "admin" and rng.random() < 0.4:
            body.update(self.holder(host))
        force = who == "admin" and "boot_id" not in body and rng.random() < 0.2 or \
            who == "operator" and rng.random() < 0.2
        if force:
            body["force"] = True
        key = f"l{self.number}-{self.count}" if rng.random() < 0.2 else None
        request = Request(who, "POST", f"/v1/vms/{vm.id}/lifecycle", body, key)
        if rng.random() < 0.03:
            request.headers = (("If-Match", '"1"'),)
        if not self.may_ask(vm, host, "boot_id" in body or force):
            return None
        got = self.ask(request, lambda: self.predict_lifecycle(vm, host, request))
        if got and key and got.status in (200, 409):
            request.vm = vm.id
            request.holder = (host.id, body["boot_id"], body["epoch"]) if "boot_id" in body else None
            self.remember(request, got)
        return got

    def predict_lifecycle(self, vm, host, request):
        body, who = request.body, request.who
        if who in ("operator", "viewer"):
            return refused("forbidden")
        if who.startswith("agent") and who != f"agent{self.index(host.id)}":
            return refused("forbidden")
        if who.startswith("agent") and "boot_id" not in body:
            return refused("invalid-request")
        if "boot_id" in body and not self.model.is_current(host, body["boot_id"], body["epoch"]):
            return refused("host-fenced")
        if request.headers:
            return refused("stale")
        return self.release(vm, host, "boot_id" in body or body.get("force"),
                            lambda: self.model.event(vm, body["event"]), 200,
                            self.model.releases(vm, body["event"]))

    def release(self, vm, host, entitled, change, status, releases):
        """A change that may release frames: its own refusals come first, then whether the caller may say so."""
        mark, alive = self.model.mark(), self.alive(host)
        why = change()
        if why:
            return refused(why)
        if entitled or not releases:
            return Want(status)
        if alive is False:  # a server that was slow itself gives a lease one more term
            return Want(status, also=((409, "host-alive"),))
        self.model.rollback(mark)
        return refused("host-alive")

    def may_ask(self, vm, host, entitled):
        """Is it sure what becomes of a release that nobody is entitled to?"""
        return entitled or not vm.hot or self.alive(host) is not None

    def do_slot_put(self):
        vm = self.pick_vm()
        if vm is None:
            return self.do_create()
        number = self.rng.choice((0, 1, 2, 3))
        shape = self.rng.choice([SLOTS[number]] * 3 + OTHER_SHAPES) if number in SLOTS else self.rng.choice(OTHER_SHAPES)
        who = self.rng.choices((f"agent{self.index(vm.host)}", "admin", "operator", "viewer",
                                f"agent{1 - self.index(vm.host)}"), (30, 30, 30, 5, 5))[0]
        request = Request(who, "PUT", f"/v1/vms/{vm.id}/slots/{number}", {"base_gfn": shape[0], "pages": shape[1]})

        def predict():
            if who == "viewer" or who == f"agent{1 - self.index(vm.host)}":
                return refused("forbidden")
            why, new = self.model.put_slot(vm, number, *shape)
            return refused(why) if why else Want(201 if new else 200)
        return self.ask(request, predict)

    def do_slot_delete(self):
        rng, vm = self.rng, self.pick_vm()
        if vm is None:
            return self.do_create()
        host, i = self.model.hosts[vm.host], self.index(vm.host)
        number = rng.choice(list(vm.slots) or [7]) if rng.random() < 0.93 else 9
        who = rng.choices((f"agent{i}", "admin", "operator", "viewer", f"agent{1 - i}"), (40, 25, 25, 5, 5))[0]
        query, entitled = "", False
        if rng.random() < 0.45:
            said = self.holder(host)
            query, entitled = f"?boot_id={said['boot_id']}&epoch={said['epoch']}", True
        elif who in ("admin", "operator") and rng.random() < 0.3:
            query, entitled = "?force=true", True
        request = Request(who, "DELETE", f"/v1/vms/{vm.id}/slots/{number}{query}")

        def predict():
            if who == "viewer" or who == f"agent{1 - i}":
                return refused("forbidden")
            if who == "operator" and "force" in query:
                return refused("forbidden")
            if who.startswith("agent") and not query:
                return refused("invalid-request")
            if "boot_id" in query and not self.model.is_current(host, said["boot_id"], said["epoch"]):
                return refused("host-fenced")
            return self.release(vm, host, entitled, lambda: self.model.delete_slot(vm, number), 204, vm.hot)
        return self.ask(request, predict) if self.may_ask(vm, host, entitled) else None

    def do_create(self):
        rng = self.rng
        i = rng.randrange(len(self.hosts))
        if len(self.model.vms) >= 6:
            return self.do_delete()
        kind = rng.choice(ARCHES[i]) if rng.random() < 0.95 else "kvm"
        vm = self.uuid() if rng.random() < 0.95 or not self.model.vms else rng.choice(list(self.model.vms))
        slots = [{"slot": n, "base_gfn": SLOTS[n][0], "pages": SLOTS[n][1]} for n in sorted(rng.sample((0, 1, 2), rng.randint(1, 3)))]
        if rng.random() < 0.05:
            slots.append({"slot": 5, "base_gfn": slots[0]["base_gfn"] + 1, "pages": 2})
        who = rng.choices(("operator", "admin", "viewer", f"agent{i}"), (60, 30, 5, 5))[0]
        body = {"id": vm, "host": self.hosts[i] if rng.random() < 0.97 else self.uuid(), "arch": kind, "slots": slots}
        bit = None
        if rng.random() < (0.6 if kind in SHARED_BITS else 0.05):
            bit = rng.choice(SHARED_BITS[kind]) if kind in SHARED_BITS and rng.random() < 0.85 else rng.randrange(13, 64)
            body["gpa"] = {"shared_bit": bit}
        key = f"c{self.number}-{self.count}" if rng.random() < 0.3 else None

        def predict():
            if who == "viewer" or who.startswith("agent"):
                return refused("forbidden")
            why = self.model.create_vm(vm, body["host"], kind, slots, bit)
            return refused(why) if why else Want(201)
        self.feed.may_release.add(vm)
        return self.ask(Request(who, "POST", "/v1/vms", body, key), predict)

    def do_delete(self):
        rng = self.rng
        vm = self.pick_vm(("normal",)) if rng.random() < 0.7 else self.pick_vm()
        if vm is None:
            return self.do_create()
        who = rng.choices(("operator", "admin", "viewer", f"agent{self.index(vm.host)}"), (60, 30, 5, 5))[0]
        force = rng.random() < 0.15

        def predict():
            if who == "viewer" or who.startswith("agent") or force and who != "admin":
                return refused("forbidden")
            mine = [o for o in self.active() if o.vm == vm.id]
            if vm.state != "normal" or (vm.hot or mine) and not force:
                return refused("vm-busy")
            for operation in mine:
                self.finished(operation, "cancelled")
            self.model.reset(vm)
            self.model.delete_vm(vm)
            self.model.put(self.model.ended, vm.id, True)
            for old in list(self.model.ended)[:-3]:
                self.model.put(self.model.ended, old, GONE)
            return Want(204)
        return self.ask(Request(who, "DELETE", f"/v1/vms/{vm.id}{'?force=true' if force else ''}"), predict)

    def do_quarantine(self):
        rng, i = self.rng, self.rng.randrange(len(self.hosts))
        host = self.model.hosts[self.hosts[i]]
        release = rng.random() < 0.6
        name = "local" if rng.random() < 0.8 else self.pool
        pool = self.model.pools[self.model.pool_key(host, name)]
        kept = sorted(pool.quarantine)
        bound = sorted(p for p, (vm, _) in pool.owner.items() if self.model.vms[vm].host == host.id)
        pfn = rng.choice(kept) if release and kept else pool.base + rng.randrange(pool.frames)
        if not release and bound and rng.random() < 0.3:
            pfn = rng.choice(bound)
        count = rng.randint(1, min(3, pool.base + pool.frames - pfn))
        who = "admin" if release else rng.choice((f"agent{i}", f"agent{i}", "admin", f"agent{1 - i}"))
        item = {"pool": name, "pfn": pfn, "count": count}
        body = {"items": [item]}
        if not release:
            item["reason"] = "the model says so"
        if who.startswith("agent") or rng.random() < 0.5:
            body.update(self.holder(host))

        def predict():
            if who == f"agent{1 - i}":
                return refused("forbidden")
            if "boot_id" in body and not self.model.is_current(host, body["boot_id"], body["epoch"]):
                return refused("host-fenced")
            change = self.model.unquarantine if release else self.model.quarantine
            takes = not release and any(pfn + n in pool.owner for n in range(count))
            return self.release(None, host, "boot_id" in body, lambda: change(host, body["items"]), 200, takes)
        if not release and "boot_id" not in body and bound and self.alive(host) is None:
            return None
        path = f"/v1/hosts/{host.id}/quarantine" + ("/release" if release else "")
        return self.ask(Request(who, "POST", path, body), predict)

    # Malformed requests: refused before anything is looked at.

    def do_malformed(self):
        rng, host = self.rng, self.model.hosts[self.rng.choice(self.hosts)]
        vm = self.pick_vm()
        item = self.make_item(host)
        holder = {"boot_id": host.boot, "epoch": host.epoch}
        bodies = [("POST", f"/v1/hosts/{host.id}/transitions", dict(holder, items=[item])),
                  ("POST", f"/v1/hosts/{host.id}/heartbeat", holder),
                  ("POST", "/v1/vms", {"host": host.id, "arch": "snp", "slots": []})]
        if vm:
            bodies.append(("POST", f"/v1/vms/{vm.id}/lifecycle", dict(holder, event="terminate")))
        method, path, body = rng.choice(bodies)
        text = json.dumps(body)
        name = rng.choice(sorted(body))
        ways = {"unknown": json.dumps(dict(body, surprise=1)), "type": json.dumps(dict(body, **{name: None})),
                "cut": text[:rng.randrange(1, len(text))], "twice": text[:-1] + f', "{name}": 1}}', "list": f"[{text}]",
                "utf8": text.replace(host.id, host.id[:-2] + "\udcff"), "deep": '{"items":' + "[" * 40 + "]" * 40 + "}",
                "missing": json.dumps({k: v for k, v in body.items() if k != name}), "after": text + "1"}
        if "event" in body and name in ("boot_id", "epoch"):
            ways.pop("missing")  # half a holder is malformed too, but none at all is not
        way = rng.choice(sorted(ways))
        raw = ways[way].encode("utf-8", "surrogateescape")
        if way == "utf8" and host.id not in text:
            raw = text.encode() + b"\xff"
        kind = "text/plain" if rng.random() < 0.05 else "application/json"
        want = refused("unsupported-media-type" if kind == "text/plain" else "invalid-request")
        request = Request("admin", method, path)
        request.raw = raw
        if any("." in i.get("op", "") for i in body.get("items", ())) and way in ("after",):
            return None
        got = self.wire("admin").call(method, path, raw=raw, kind=kind)
        if got.slug == "storage":
            return None
        self.judge(request, want, got)
        self.tally[want.slug] = self.tally.get(want.slug, 0) + 1
        return got

    # Reading: always the whole truth of something.

    def do_read(self):
        rng, vm = self.rng, self.pick_vm()
        roll = rng.random()
        if roll < 0.01:
            why = self.differs()
        elif roll < 0.25 or vm is None:
            host = rng.choice(self.hosts)
            why = self.pool_differs(host, "local", f"/v1/hosts/{host}/frames") if rng.random() < 0.5 else \
                self.pool_differs("", self.pool, f"/v1/pools/{self.pool}/frames")
        elif roll < 0.5:
            why = self.shape_differs(vm)
        elif roll < 0.75:
            why = self.pages_differ(vm)
        else:
            first = rng.randrange(110)
            why = self.pages_differ(vm, first, rng.randint(1, 40), rng.random() < 0.3)
        if why:
            raise Wrong(why)


ACTIONS = ((0.42, "transitions"), (0.06, "repeat"), (0.10, "lifecycle"), (0.03, "slot_put"), (0.03, "slot_delete"),
           (0.03, "create"), (0.01, "delete"), (0.02, "quarantine"), (0.07, "operation"), (0.04, "malformed"),
           (0.004, "register"), (0.003, "fence"), (0.0002, "silence"))
