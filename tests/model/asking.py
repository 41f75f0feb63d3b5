"""Saying something to the server and judging what comes back, against a model that has already moved on.

A request that a kill cut off is resolved by reading: the ledger is as it was before, or as the model predicted, and
nothing else. Reading compares all that the server shows with the model, page for page.
"""
import json
import threading
import time

from ledger import Ledger
from world import Cut, Wrong


class Want:
    """What an answer has to be: its status and slug, and (of a batch) each item's."""

    def __init__(self, status, slug=None, slugs=None, also=(), conflicts=None):
        self.status, self.slug, self.slugs, self.conflicts = status, slug, slugs, conflicts or {}
        self.also = also  # other (status, slug) that are as good, where time decides: then nothing has changed

    def __repr__(self):
        return f"{self.status} {self.slug or ''} {self.slugs or ''}".strip()


STATUS = {"vm-not-found": 404, "host-not-found": 404, "slot-not-found": 404, "operation-not-found": 404,
          "forbidden": 403, "invalid-request": 400, "invalid-params": 422, "arch-unsupported": 422,
          "idempotency-mismatch": 422, "stale": 412, "unauthorized": 401, "unsupported-media-type": 415}


def refused(slug):
    return Want(STATUS.get(slug, 409), slug)


class Request:
    """One call as it goes over the wire, so that it can be said again word for word."""

    def __init__(self, who, method, path, body=None, key=None, headers=(), holder=None):
        self.who, self.method, self.path, self.key, self.headers = who, method, path, key, headers
        self.body, self.raw = body, None if body is None else json.dumps(body).encode()
        self.vm = None
        self.holder = holder  # (host, boot, epoch) that a transition speaks for

    def __repr__(self):
        return f"{self.who} {self.method} {self.path} {self.raw.decode() if self.raw else ''} key={self.key} {self.headers}"


class Speaker(threading.Thread):
    """A thread with a model: `wires` by who speaks, `hosts` and `pool` are what the model is about."""

    def __init__(self, world, feed, name):
        super().__init__(name=name, daemon=True)
        self.world, self.feed, self.rng = world, feed, world.random(name)
        self.model = Ledger(feed.history.laws)
        self.wires, self.hosts, self.pool = {}, [], None
        self.trail, self.count, self.tally = [], 0, {}
        self.resolved, self.stored_not = {"done": 0, "not done": 0}, 0

    # Asking, and judging the answer.

    def wire(self, who):
        return self.wires[who]

    def ask(self, request, predict):
        """Says it, with what `predict` makes of the model; resolves it if the answer is cut off."""
        mark = self.model.mark()
        want = predict()
        self.count += 1
        line = [self.count, request, want, "no answer"]
        self.trail.append(line)
        del self.trail[:-12]
        try:
            got = self.wire(request.who).call(request.method, request.path, key=request.key, headers=request.headers,
                                              raw=request.raw)
        except Cut as cut:
            line[3] = str(cut)
            return self.resolve(mark, request, predict, want)
        line[3] = f"{got.status} {got.slug or ''}"
        if (got.status, got.slug) == (503, "storage"):  # "nothing was changed"
            self.model.rollback(mark)
            self.stored_not += 1
            time.sleep(0.005)
            return None
        if self.judge(request, want, got):
            self.model.rollback(mark)
        self.model.commit()
        for what in want.slugs if want.slugs and got.status == 200 else [want.slug or want.status]:
            self.tally[what or "accepted"] = self.tally.get(what or "accepted", 0) + 1
        return got

    def judge(self, request, want, got):
        """Was it one of the other answers?"""
        said = (got.status, got.slug)
        if said in want.also:
            return True
        if said != (want.status, want.slug):
            raise Wrong(f"{request}\n  should be answered: {want}\n  was: {got}")
        if want.slugs is not None:
            results = got.json["results"]
            slugs = [None if r["ok"] else r["problem"]["type"][len("/problems/"):] for r in results]
            if slugs != want.slugs:
                raise Wrong(f"{request}\n  items should be answered: {want.slugs}\n  were: {slugs}\n  {got}")
            for i, taken in want.conflicts.items():
                said = {run["pfn"] + n: (run["vm"], run["gfn"] + n)
                        for run in results[i]["problem"]["conflicts"] for n in range(run["count"])}
                if said != taken or results[i]["problem"]["conflict_frames"] != len(taken):
                    raise Wrong(f"{request}\n  item {i} is in conflict with {taken}\n  named were: {said}\n  {got}")
        return False

    def resolve(self, mark, request, predict, want):
        """After a cut: done or not, nothing between, and no other. The answer, if it can be had by asking again."""
        while True:
            try:
                self.world.wait_ready()
                self.model.rollback(mark)
                predict()
                why = self.differs()
                done = why is None
                if not done:
                    self.model.rollback(mark)
                    first, why = why, self.differs()
                    if why:
                        raise Wrong(f"cut off: {request}\n  if it was done: {first}\n  if it was not: {why}")
                self.model.commit()
            except Cut:
                time.sleep(0.02)
                continue
            self.resolved["done" if done else "not done"] += 1
            if request.key is None and "batch_seq" not in (request.body or {}):
                return None
            return self.ask(request, (lambda: want) if done else predict)

    # Reading everything, and comparing.

    def get(self, path, who=None):
        got = self.wire(who or self.rng.choice(("admin", "viewer", "operator"))).call("GET", path)
        return got

    def must(self, path):
        got = self.get(path)
        if got.status != 200:
            raise Wrong(f"GET {path}: {got}")
        return got.json

    def differs(self):
        """The first difference between what the server shows and the model; None if there is none."""
        for host in self.hosts:
            why = self.host_differs(host)
            if why:
                return why
        for vm in list(self.model.vms.values()):
            why = self.vm_differs(vm)
            if why:
                return why
        for vm in self.model.ended:
            if self.get("/v1/vms/" + vm).status != 404:
                return f"VM {vm} was deleted and is there"
        for operation in self.model.operations.values():
            why = self.operation_differs(operation)
            if why:
                return why
        return self.pool_differs("", self.pool, f"/v1/pools/{self.pool}/frames")

    def host_differs(self, host_id):
        host, path = self.model.hosts[host_id], "/v1/hosts/" + host_id
        said = self.must(path)
        if (said["boot_id"], said["epoch"], said["state"] == "fenced") != (host.boot, host.epoch, host.fenced):
            return f"GET {path}: {said}, not boot {host.boot} epoch {host.epoch} fenced {host.fenced}"
        kept = {}
        listed = self.must(path + "/quarantine?limit=1000")
        for item in listed["items"]:
            key = (host_id, "local") if item["pool"] == "local" else ("", item["pool"])
            kept.setdefault(key, set()).update(range(item["pfn"], item["pfn"] + item["count"]))
        for key in ((host_id, "local"), ("", self.pool)):
            if kept.get(key, set()) != set(self.model.pools[key].quarantine):
                return f"GET {path}/quarantine: {listed}, not {key[1]} {sorted(self.model.pools[key].quarantine)}"
        return self.pool_differs(host_id, "local", path + "/frames")

    def pool_differs(self, host, name, path):
        pool = self.model.pools[host, name]
        first, count = pool.base, pool.frames
        said = self.must(f"{path}?pfn={first}&count={count}" + ("&pool=local" if host else ""))
        self.feed.saw_frames((host, name), first, first + count, said["items"], said["revision"], f"GET {path}")
        bound = {run["pfn"] + i: (run["vm"], run["gfn"] + i) for run in said["items"] for i in range(run["count"])}
        if bound != pool.owner:
            odd = sorted(set(bound.items()) ^ set(pool.owner.items()))[:4]
            return f"GET {path}: {said['items']}, differs at {odd}"
        return None

    def vm_differs(self, vm):
        return self.shape_differs(vm) or self.pages_differ(vm)

    def shape_differs(self, vm):
        path = "/v1/vms/" + vm.id
        got = self.get(path)
        if got.status != 200:
            return f"GET {path}: {got}"
        said, leaves, slots = got.json, *self.model.leaving(vm)
        shown = {s["slot"]: (s["base_gfn"], s["pages"]) for s in said["slots"]}
        want = {"state": vm.state, "pages": self.model.counts(vm), "epoch": vm.epoch, "on_hardware": vm.hot,
                "gpa": {"shared_bit": vm.bit} if vm.bit else None}
        for name, value in want.items():
            if said.get(name) != value:
                return f"GET {path}: {name} is {said.get(name)}, not {value}"
        if shown != vm.slots:
            return f"GET {path}: slots are {shown}, not {vm.slots}"
        stages = self.model.stages(vm)
        if stages and vm.stage is not None and said.get("arch_state") != stages[vm.stage].name:
            return f"GET {path}: arch_state is {said.get('arch_state')}, not {stages[vm.stage].name}"
        if bool(said.get("leaving")) != leaves:
            return f"GET {path}: leaving is {said.get('leaving')}, not {leaves}"
        for s in said["slots"]:
            if bool(s.get("leaving")) != (s["slot"] in slots):
                return f"GET {path}: slot {s} should be {'' if s['slot'] in slots else 'not '}leaving"
        return None

    def pages_differ(self, vm, first=None, count=None, by_address=False):
        path, shared = f"/v1/vms/{vm.id}/gfns?limit=1000", False
        if by_address:  # anywhere in the page, by either alias
            shared = bool(vm.bit) and self.rng.random() < 0.5
            path += f"&gpa={first << 12 | self.rng.randrange(4096) | (1 << vm.bit if shared else 0)}&count={count}"
        elif first is not None:
            path += f"&gfn={first}&count={count}"
        got = self.get(path)
        if got.status != 200:
            return f"GET {path}: {got}"
        said = got.json
        if said.get("alias") != (("shared" if shared else "private") if by_address and vm.bit else None):
            return f"GET {path}: alias {said.get('alias')}"
        self.feed.saw_pages(vm.host, said["items"], vm.id, said["revision"], f"GET {path}")
        shown = {}
        for run in said["items"]:
            frame = run.get("frame")
            for i in range(run["count"]):
                if run["gfn"] + i in shown:
                    return f"GET {path}: GFN {run['gfn'] + i} is twice in one answer"
                shown[run["gfn"] + i] = (run["state"], run["resident"], (frame["pool"], frame["pfn"] + i) if frame else None,
                                         run.get("arch_state"))
        pages = self.model.view_pages(vm)
        if first is not None:
            pages = {gfn: page for gfn, page in pages.items() if first <= gfn < first + count}
        if shown != pages:
            odd = [(g, shown.get(g), pages.get(g)) for g in sorted(set(shown) | set(pages)) if shown.get(g) != pages.get(g)]
            return f"GET {path}: (GFN, shown, the model's) {odd[:4]}"
        return None

    def operation_differs(self, operation):
        said = self.must("/v1/operations/" + operation.id)
        if said["state"] != operation.state:
            return f"GET /v1/operations/{operation.id}: {said['state']}, not {operation.state}"
        return None
