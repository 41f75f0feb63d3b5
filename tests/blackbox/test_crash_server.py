"""kill -9 under load (L7): what was acknowledged stays, what was not is there whole or not at all, and nothing that was
read is taken back.

Each worker owns its VMs, frames and tokens, so its own model says exactly what the ledger must hold: after a crash the
ledger must equal the model, or the model with the one request that had no answer.
"""
import copy
import http.client
import os
import random
import subprocess
import threading
import time
import unittest

from harness import LIMIT, PAGEWARDEND, Host, Server, Vm, new_id

WORKERS = 4
SHARE = 1000  # frames of each pool that are one worker's
POOL = "cxl"
SLOT_PAGES = 32


def pages_of(runs):
    """Runs as {gfn: (state, pool, pfn)}."""
    pages = {}
    for run in runs:
        for i in range(run["count"]):
            frame = run.get("frame")
            pages[run["gfn"] + i] = (run["state"], frame["pool"], frame["pfn"] + i) if frame else (run["state"], None, None)
    return pages


def fingerprint(pages):
    return hash(tuple(sorted(pages.items(), key=lambda p: p[0])))


class VmModel:
    def __init__(self, host):
        self.host, self.state, self.slots, self.pages, self.operations = host, "normal", {}, {}, []

    def fresh(self):
        return ("secure" if self.state == "secure" else "normal", None, None)

    def add_slot(self, number, base, pages):
        self.slots[number] = (base, pages)
        self.pages.update({gfn: self.fresh() for gfn in range(base, base + pages)})

    def drop_slot(self, number):
        base, pages = self.slots.pop(number)
        for gfn in range(base, base + pages):
            del self.pages[gfn]

    def event(self, event):
        if event == "init_done":
            self.pages = {g: ("secure", None, None) if p[0] == "normal" else p for g, p in self.pages.items()}
        elif event in ("terminate", "init_abort"):
            self.pages = dict.fromkeys(self.pages, ("normal", None, None))
        self.state = {"init_start": "transient", "init_done": "secure"}.get(event, "normal")

    def apply(self, op, gfn, pool, pfn):
        state, old_pool, _ = self.pages[gfn]
        if op == "share":
            new = ("shared", None, None)
        elif op == "page_out":
            new = ("secure", None, None)
        elif pfn is not None:
            new = ("secure", pool, pfn)
        else:
            new = self.pages[gfn] if state == "secure" and old_pool else ("secure", None, None)
        self.pages[gfn] = new


class Model:
    """What one worker's part of the ledger holds."""

    def __init__(self):
        self.vms, self.tokens, self.quarantined = {}, {}, set()

    def bound(self):
        return {(vm.host if p[1] == "local" else "", p[1], p[2]) for vm in self.vms.values()
                for p in vm.pages.values() if p[1]}

    def view(self):
        """As comparable data."""
        return ({i: (vm.state, vm.slots, vm.pages, sorted(vm.operations)) for i, vm in self.vms.items()},
                set(self.tokens), self.quarantined)


class Request:
    def __init__(self, method, path, body, effect, key=None, about=None, kind=None):
        self.method, self.path, self.body, self.effect = method, path, body, effect
        self.headers = {"Idempotency-Key": key} if key else None
        self.about, self.kind = about, kind  # the VM and the event type that the answer's revision names
        self.answer, self.happened = None, None


class Worker:
    """Draws valid requests from its model, one at a time, and keeps the model at what was acknowledged."""

    def __init__(self, world, index, seed):
        self.world, self.index, self.rng = world, index, random.Random(seed)
        self.model, self.pending, self.unanswered, self.last_keyed, self.last_batch = Model(), None, None, None, None
        self.seq, self.names, self.acknowledged, self.error = 0, 0, 0, None
        self.operations, self.secrets, self.dead_secrets = {}, {}, []
        self.unknown, self.refusals = None, 0  # by the disk; after a kill -9 the unknown one may turn out to be there
        self.host = world.own[index]
        self.seen = {}  # vm -> fingerprints of every acknowledged state

    def name(self):
        self.names += 1
        return f"w{self.index}-{self.names}"

    # Drawing.

    def draw(self):
        vms = self.model.vms
        draw = self.rng.random()
        live = [i for i, vm in vms.items() if vm.state != "normal"]
        if len(vms) < 3 or (len(vms) < 6 and draw < 0.05):
            return self.create()
        if not live or draw < 0.12:
            return self.lifecycle()
        if draw < 0.16:
            return self.slot()
        if draw < 0.20:
            return self.quarantine()
        if draw < 0.25:
            return self.operation()
        if draw < 0.28:
            return self.token()
        return self.batch(live)

    def create(self):
        vm, host = new_id(), self.rng.choice([self.host.id, self.world.common.id])
        slots = [{"slot": n, "base_gfn": 100 * n, "pages": SLOT_PAGES} for n in range(self.rng.randint(1, 2))]

        def effect(model, _):
            made = VmModel(host)
            for s in slots:
                made.add_slot(s["slot"], s["base_gfn"], s["pages"])
            model.vms[vm] = made

        return Request("POST", "/v1/vms", {"id": vm, "host": host, "arch": "pef", "slots": slots}, effect, about=vm,
                       kind="vm.created", key=new_id() if self.rng.random() < 0.3 else None)

    def lifecycle(self):
        vm = self.rng.choice(list(self.model.vms))
        state = self.model.vms[vm].state
        if state == "normal" and self.rng.random() < 0.3 and "pending" not in {o[1] for o in self.model.vms[vm].operations}:
            return Request("DELETE", "/v1/vms/" + vm, None, lambda model, _: model.vms.pop(vm))
        event = {"normal": ["init_start"], "transient": ["init_done"] * 4 + ["init_abort"], "secure": ["terminate"]}[state]
        event = self.rng.choice(event)
        body = dict(self.holder(vm), event=event)
        return Request("POST", f"/v1/vms/{vm}/lifecycle", body, lambda model, _: model.vms[vm].event(event),
                       about=vm, kind="vm.lifecycle")

    def holder(self, vm):
        """What the agent of the VM's host says of itself."""
        return (self.host if self.model.vms[vm].host == self.host.id else self.world.common).current()

    def slot(self):
        vm = self.rng.choice(list(self.model.vms))
        slots = self.model.vms[vm].slots
        number = self.rng.randint(1, 4)
        path = f"/v1/vms/{vm}/slots/{number}"
        if number in slots:
            by = "&".join(f"{name}={value}" for name, value in self.holder(vm).items())
            return Request("DELETE", f"{path}?{by}", None, lambda model, _: model.vms[vm].drop_slot(number))
        return Request("PUT", path, {"base_gfn": 100 * number, "pages": SLOT_PAGES}, about=vm, kind="slot.added",
                       effect=lambda model, _: model.vms[vm].add_slot(number, 100 * number, SLOT_PAGES))

    def quarantine(self):
        """Of frames in the common host's local pool, free or bound."""
        host, base = self.world.common, self.index * SHARE
        if self.model.quarantined and self.rng.random() < 0.5:
            pfn = self.rng.choice(sorted(self.model.quarantined))
            return Request("POST", host.path + "/quarantine/release", {"items": [{"pool": "local", "pfn": pfn, "count": 1}]},
                           lambda model, _: model.quarantined.discard(pfn), kind="quarantine.released")
        pfn = self.rng.choice([f for f in range(base, base + SHARE // 4) if f not in self.model.quarantined])

        def effect(model, _):
            for vm in model.vms.values():
                for gfn, page in vm.pages.items():
                    if vm.host == host.id and page[1:] == ("local", pfn):
                        vm.pages[gfn] = ("secure", None, None)
            model.quarantined.add(pfn)

        return Request("POST", host.path + "/quarantine", dict(host.current(), items=[
            {"pool": "local", "pfn": pfn, "count": 1, "reason": "it burns"}]), effect, kind="quarantine.added")

    def operation(self):
        vm = self.rng.choice(list(self.model.vms))
        pending = [o for o in self.operations.items() if o[1][1] == "pending" and o[1][0] in self.model.vms]
        if pending and self.rng.random() < 0.5:
            op, (vm, _) = self.rng.choice(pending)

            def cancel(model, _):
                model.vms[vm].operations.remove(("launch", "pending"))
                model.vms[vm].operations.append(("launch", "cancelled"))

            return Request("DELETE", "/v1/operations/" + op, None, cancel, about=vm, kind="operation.cancelled")
        return Request("POST", f"/v1/vms/{vm}/operations", {"kind": "launch"}, key=new_id(), about=vm,
                       kind="operation.created",
                       effect=lambda model, _: model.vms[vm].operations.append(("launch", "pending")))

    def token(self):
        if self.model.tokens and self.rng.random() < 0.5:
            name = self.rng.choice(sorted(self.model.tokens))
            return Request("DELETE", "/v1/tokens/" + self.model.tokens[name], None, lambda model, _: model.tokens.pop(name))
        name = self.name()
        return Request("POST", "/v1/tokens", {"role": "viewer", "name": name}, key=new_id(), kind="token.created",
                       effect=lambda model, answer: model.tokens.update({name: answer and answer["id"]}))

    def free_frames(self, host, count):
        """`count` consecutive frames of this worker's, in either pool; or None."""
        bound, base = self.model.bound(), self.index * SHARE
        for _ in range(20):
            pool = self.rng.choice(["local", POOL])
            pfn = base + self.rng.randrange(SHARE - count)
            key = host if pool == "local" else ""
            wanted = range(pfn, pfn + count)
            if any((key, pool, p) in bound for p in wanted):
                continue
            if pool == "local" and host == self.world.common.id and any(p in self.model.quarantined for p in wanted):
                continue
            return pool, pfn
        return None

    def batch(self, live):
        """Items that the model says are legal, for VMs of one host."""
        host = self.model.vms[self.rng.choice(live)].host
        live = [i for i in live if self.model.vms[i].host == host]
        kept, after = self.model, copy.deepcopy({i: self.model.vms[i] for i in live})
        self.model = copy.copy(kept)
        self.model.vms = dict(kept.vms, **after)
        try:
            items = [self.item(host, i, after[i]) for i in (self.rng.choice(live) for _ in range(self.rng.randint(1, 8)))]
        finally:
            self.model = kept
        items = [item for item in items if item]
        own = self.host.id == host
        where = self.host if own else self.world.common
        body = dict(where.current(), items=items, atomic=self.rng.random() < 0.3)
        if own:
            body["batch_seq"] = self.seq + 1
        if not items:
            return self.lifecycle()

        def effect(model, _):
            for i, vm in after.items():
                model.vms[i].pages = vm.pages
            self.seq = max(self.seq, body.get("batch_seq", 0))

        request = Request("POST", where.path + "/transitions", body, effect)
        if not own and self.rng.random() < 0.3:
            request.headers = {"Idempotency-Key": new_id()}
        return request

    def item(self, host, vm_id, vm):
        base, pages = self.rng.choice(list(vm.slots.values()) or [(0, 0)])
        if not pages:
            return None
        count = self.rng.randint(1, 6)
        first = base + self.rng.randrange(pages - count)
        run = range(first, first + count)
        states = {vm.pages[g][0] + ("" if vm.pages[g][1] else "-") for g in run}
        choices = ["share"]
        if states == {"secure"}:
            choices += ["page_out"] * 2
        if not states - {"normal-", "secure-", "shared-"}:
            choices += ["unshare framed"] * 2
        if not states - {"secure-"} or (vm.state == "transient" and not states - {"secure-", "normal-"}):
            choices += ["page_in"] * 6
        if states - {"secure", "secure-"}:
            choices.append("unshare")
        op = self.rng.choice(choices)
        framed = op in ("page_in", "unshare framed")
        op = op.split()[0]
        pool, pfn = (self.free_frames(host, count) or (None, None)) if framed else (None, None)
        if framed and pfn is None:
            return None
        for i, gfn in enumerate(run):
            vm.apply(op, gfn, pool, None if pfn is None else pfn + i)
        item = {"vm": vm_id, "op": op}
        if self.rng.random() < 0.5:
            item.update(gfn=first, count=count)
            if framed:
                item["frame"] = {"pool": pool, "pfn": pfn}
        elif self.rng.random() < 0.5:
            half = (count + 1) // 2
            parts = [part for part in ((0, half), (half, count - half)) if part[1]]
            item["runs"] = [[first + at, n] + ([pfn + at] if framed else []) for at, n in parts]
        else:
            item["gfns"] = list(run)
            if framed:
                item["pfns"] = [pfn + i for i in range(count)]
        if framed and "gfn" not in item:
            item["pool"] = pool
        return item

    # Sending.

    def send(self, client, request):
        return client.request(request.method, request.path, request.body, headers=request.headers)

    def run(self, stop):
        client = self.world.server.client()
        try:
            while not stop.is_set():
                if self.last_batch and self.rng.random() < 0.03:
                    self.world.same(self, self.last_batch, self.send(client, self.last_batch))
                if self.last_keyed and self.rng.random() < 0.03:
                    self.world.same(self, self.last_keyed, self.send(client, self.last_keyed))
                self.pending = self.draw()
                answer = self.send(client, self.pending)
                self.settle(self.pending, answer)
                self.pending = None
        except (OSError, http.client.HTTPException):
            pass  # the server is gone
        except Exception as e:  # pylint: disable=broad-except
            self.error = e
        finally:
            client.close()

    def settle(self, request, answer):
        """An answer has come: the model follows it."""
        if answer.status == 503 and answer.slug in ("not-ready", "storage", "outcome-unknown") and answer["retryable"]:
            self.refusals += answer.slug != "not-ready"
            if answer.slug == "outcome-unknown" and self.unknown is None:
                self.unknown = request  # the ones after it were not even tried
            return
        if answer.status not in (200, 201, 202, 204) or answer.json and answer.json.get("rejected"):
            raise AssertionError(f"{request.method} {request.path} {request.body}: {answer}")
        request.effect(self.model, answer.json)
        self.note(request, answer)

    def note(self, request, answer):
        self.acknowledged += 1
        self.unknown = None
        request.answer = answer
        self.learn(request, answer)
        for vm, held in self.model.vms.items():
            self.seen.setdefault(vm, set()).add(fingerprint(held.pages))
        if "batch_seq" in (request.body or {}):
            self.last_batch = request
        elif request.headers:
            self.last_keyed = request
        if request.kind and answer.json and "revision" in answer.json:
            self.world.named[answer["revision"]] = (request.kind, request.about)

    def learn(self, request, answer):
        if request.path.endswith("/operations"):
            self.operations[answer["id"]] = (request.about, "pending")
        elif request.path.startswith("/v1/operations/"):
            self.operations[answer["id"]] = (request.about, "cancelled")
        elif request.path == "/v1/tokens":
            self.secrets[request.body["name"]] = answer["secret"]
        elif request.path.startswith("/v1/tokens/"):
            for name in set(self.secrets) - set(self.model.tokens):
                self.dead_secrets.append(self.secrets.pop(name))


class World:
    """A server, its hosts, the workers, and what everybody has been told."""

    def __init__(self, case, seed, server):
        self.case, self.server, self.rng = case, server, random.Random(seed)
        case.addCleanup(server.close)
        self.admin = self.server.client()
        frames = WORKERS * SHARE + 16
        self.common = Host(self.admin, frames=frames)
        self.own = [Host(self.admin, frames=frames) for _ in range(WORKERS)]
        hosts = [self.common] + self.own
        self.case.assertEqual(self.admin.put("/v1/pools/" + POOL, {
            "base_pfn": 0, "frames": frames, "hosts": [h.id for h in hosts]}).status, 201)
        self.hosts, self.named, self.feed, self.reads = hosts, {}, {}, []
        self.victim = Vm(self.common, state="secure")
        case.assertEqual(self.common.send(self.victim.item("page_in", 0, 16, WORKERS * SHARE))["accepted"], 1)
        self.workers = [Worker(self, i, self.rng.random()) for i in range(WORKERS)]
        self.conflicts, self.checked_reads = 0, 0

    def same(self, worker, request, answer):
        """A request that was answered before, sent again."""
        first = request.answer
        if (answer.status, answer.json) != (first.status, first.json) and worker.error is None and answer.status != 503:
            raise AssertionError(f"{request.path} again: {answer} instead of {first}")

    # Load.

    def watch(self, stop):
        """Follows the feed: what it has shown must stay."""
        client, after = self.server.client(), max(self.feed, default=0)
        try:
            while not stop.is_set():
                answer = client.get(f"/v1/events?after={after}&limit=1000&wait=1")
                if answer.status == 503:
                    return
                for event in answer["items"]:
                    self.feed[event["revision"]] = event
                after = answer["next"]
        except (OSError, http.client.HTTPException):
            pass  # the server is gone
        finally:
            client.close()

    def read(self, stop, seed):
        """Reads VMs of all workers and remembers what it saw."""
        client, rng = self.server.client(), random.Random(seed)
        try:
            while not stop.is_set():
                worker = rng.choice(self.workers)
                vm = rng.choice(list(worker.seen) or [None])
                if vm is None:
                    continue
                answer = client.get(f"/v1/vms/{vm}/gfns?limit=1000")
                if answer.status == 404:
                    self.reads.append((worker, vm, None, 0))
                elif answer.status == 200 and "next_cursor" not in answer.json:
                    self.reads.append((worker, vm, fingerprint(pages_of(answer["items"])), answer["revision"]))
        except (OSError, http.client.HTTPException):
            pass  # the server is gone
        finally:
            client.close()

    def steal(self, stop):
        """Claims frames that are taken: refused, and each refusal recorded."""
        client = self.server.client()
        try:
            while not stop.is_set():
                answer = self.common.send(self.victim.item("page_in", 100, 1, WORKERS * SHARE + 3), client=client)
                if answer.status == 200 and answer["rejected"] == 1:
                    self.conflicts += 1
                stop.wait(0.02)
        except (OSError, http.client.HTTPException):
            pass  # the server is gone
        finally:
            client.close()

    def round(self, end):
        """Load until `end()` has ended the server."""
        stop = threading.Event()
        threads = [threading.Thread(target=w.run, args=(stop,)) for w in self.workers]
        threads += [threading.Thread(target=self.watch, args=(stop,)), threading.Thread(target=self.steal, args=(stop,))]
        threads += [threading.Thread(target=self.read, args=(stop, self.rng.random())) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            end()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            for worker in self.workers:  # before a failure of `end`, which may follow from it
                if worker.error:
                    raise worker.error

    # After a crash.

    def verify(self):
        done = subprocess.run([PAGEWARDEND, "--verify", "--data", self.server.data], capture_output=True, text=True,
                              check=False)
        self.case.assertEqual((done.returncode, done.stdout[:3]), (0, "ok "), done)

    def ledger(self):
        """All VMs as they are, and L1 with it: both views of every binding agree."""
        vms, by_frame = {}, {}
        for vm in self.admin.items("/v1/vms?limit=1000"):
            pages = pages_of(self.admin.items(f"/v1/vms/{vm['id']}/gfns?limit=1000"))
            operations = self.admin.items(f"/v1/vms/{vm['id']}/operations?limit=1000")
            slots = {s["slot"]: (s["base_gfn"], s["pages"]) for s in vm["slots"]}
            vms[vm["id"]] = (vm["state"], slots, pages, sorted((o["kind"], o["state"]) for o in operations))
            for gfn, (_, pool, pfn) in pages.items():
                if pool:
                    frame = (vm["host"] if pool == "local" else "", pool, pfn)
                    self.case.assertNotIn(frame, by_frame, "L1: two owners")
                    by_frame[frame] = (vm["id"], gfn)
            self.case.assertLessEqual(vm["revision"], self.newest)
        claimed = {}
        for host in self.hosts:
            where = f"{host.path}/frames?pool=local&pfn=0&count={LIMIT - 1}&limit=1000"
            claimed.update(self.bindings(host.id, "local", self.admin.items(where)))
        claimed.update(self.bindings("", POOL, self.admin.items(f"/v1/pools/{POOL}/frames?pfn=0&count={LIMIT - 1}&limit=1000")))
        self.case.assertEqual(claimed, by_frame)
        return vms

    @staticmethod
    def bindings(host, pool, runs):
        return {(host, pool, r["pfn"] + i): (r["vm"], r["gfn"] + i) for r in runs for i in range(r["count"])}

    def check_feed(self):
        """Gapless, and all that was shown or acknowledged is as it was."""
        feed, after = {}, 0
        while True:
            items = self.admin.get(f"/v1/events?after={after}&limit=1000")["items"]
            if not items:
                break
            feed.update({e["revision"]: e for e in items})
            after = items[-1]["revision"]
        self.newest = after
        self.case.assertEqual(sorted(feed), list(range(1, after + 1)))
        for revision, event in self.feed.items():
            self.case.assertEqual(feed.get(revision), event, "an event that was shown")
        for revision, (kind, vm) in self.named.items():
            event = feed.get(revision, {})
            self.case.assertEqual((event.get("type"), event.get("vm")), (kind, vm), f"acknowledged revision {revision}")
        violations = {v["revision"]: v["count"] for v in self.admin.items("/v1/violations?limit=1000")}
        self.case.assertEqual(set(violations), {r for r, e in feed.items() if e["type"] == "violation"})
        self.case.assertGreaterEqual(len(violations), bool(self.conflicts))  # a kill takes back a second of counting repeats
        self.feed = feed

    def check(self, crashed=True, repeat=True):
        """The oracle. Returns how many requests without an answer had taken effect, and how many had not."""
        self.admin.close()
        self.admin = self.server.client()
        for host in self.hosts:
            host.client = self.admin
        self.check_feed()
        vms = self.ledger()
        tokens = {t["name"]: t["id"] for t in self.admin.items("/v1/tokens?limit=1000")}
        quarantined = {q["pfn"] + i for q in self.admin.items(self.common.path + "/quarantine?limit=1000")
                       for i in range(q["count"])}
        outcome = [0, 0]
        for worker in self.workers:
            if crashed and worker.pending is None:
                worker.pending = worker.unknown
            self.settle(worker, vms, tokens, quarantined, outcome)
        for worker, vm, seen, revision in self.reads:
            self.case.assertLessEqual(revision, self.newest, "a read showed a revision that is gone")
            if seen is None:
                self.case.assertNotIn(vm, worker.model.vms, "a read said that this VM is gone")
            else:
                self.case.assertIn(seen, worker.seen[vm], "a read showed what never was")
        self.checked_reads += len(self.reads)
        self.reads = []
        for worker in self.workers if crashed and repeat else []:
            self.repeat(worker)
        ours = {i for w in self.workers for i in w.model.vms} | {self.victim.id}
        self.case.assertEqual(set(vms) - ours, set(), "a VM of nobody")
        return outcome

    def settle(self, worker, vms, tokens, quarantined, outcome):
        """The ledger is the worker's model, or that with its pending request: the model becomes what is there."""
        def actual(model):
            mine = {i for i in vms if i in model.vms or i in worker.seen or request and i == request.about}
            own = range(worker.index * SHARE, (worker.index + 1) * SHARE)
            return ({i: vms[i] for i in mine}, {n for n in tokens if n.startswith(f"w{worker.index}-")},
                    {q for q in quarantined if q in own})

        request, worker.pending, worker.unknown = worker.pending, None, None
        without = worker.model.view()
        if actual(worker.model) == without:
            outcome[1] += request is not None
            self.open(worker, request, False)
            return
        self.case.assertIsNotNone(request, f"worker {worker.index}: acknowledged {without}, there is {actual(worker.model)}")
        changed = copy.deepcopy(worker.model)
        request.effect(changed, None)
        self.case.assertEqual(actual(changed), changed.view(), f"half of {request.method} {request.path} {request.body}")
        worker.model = changed
        for name in set(changed.tokens):
            changed.tokens[name] = tokens[name]
        for vm, held in changed.vms.items():
            worker.seen.setdefault(vm, set()).add(fingerprint(held.pages))
        if request.path.startswith("/v1/operations/"):
            worker.operations[request.path.rsplit("/", 1)[1]] = (request.about, "cancelled")
        elif request.path.startswith("/v1/tokens/"):
            for name in set(worker.secrets) - set(changed.tokens):
                worker.dead_secrets.append(worker.secrets.pop(name))
        outcome[0] += 1
        self.open(worker, request, True)

    @staticmethod
    def open(worker, request, happened):
        """A request that can be repeated, because it has a key or a number, is."""
        if request and (request.headers or "batch_seq" in (request.body or {})):
            worker.unanswered, request.happened = request, happened

    def repeat(self, worker):
        """What was numbered or keyed, again: the same answer and nothing changes; or, unanswered so far, it happens once."""
        request, worker.unanswered = worker.unanswered, None
        if request:
            answer = worker.send(self.admin, request)
            self.case.assertIn(answer.status, (200, 201, 202), answer)
            if request.happened:
                worker.note(request, answer)
            else:
                worker.settle(request, answer)
        for request in (worker.last_keyed, worker.last_batch):
            if request:
                self.same(worker, request, worker.send(self.admin, request))
        if worker.seq > 1:
            stale = self.admin.post(worker.host.path + "/transitions", dict(worker.last_batch.body, batch_seq=worker.seq - 1))
            self.case.assertEqual(stale.slug, "stale-batch", stale)
        for name, secret in worker.secrets.items():
            self.case.assertEqual(self.status_with(secret), 200, name)
        for secret in worker.dead_secrets[-3:]:
            self.case.assertEqual(self.status_with(secret), 401)

    def status_with(self, secret):
        client = self.server.client(secret)
        try:
            return client.get("/v1/hosts").status
        finally:
            client.close()


class Crash(unittest.TestCase):
    maxDiff = None

    def begin(self, *flags):
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        print(f"{self.id()}: SEED={seed}", flush=True)
        self.outcome = [0, 0]
        self.world = World(self, seed, Server(*flags))
        return self.world

    def end(self, crash, clean=False):
        """One round that `crash` ends, then the oracle."""
        world = self.world
        world.round(crash)
        world.verify()
        world.server.start()
        if clean:
            self.check_picture()
        self.outcome = [a + b for a, b in zip(self.outcome, world.check())]

    def kill_after(self, seconds):
        def crash():
            time.sleep(seconds)
            self.world.server.kill()
        self.end(crash)

    def kill_in_checkpoint(self):
        """As soon as the picture is being written (or after 4 s)."""
        wal = os.path.join(self.world.server.data, "ledger.db-wal")

        def stamp():
            try:
                info = os.stat(wal)
                return info.st_size, info.st_mtime_ns
            except OSError:
                return None

        def crash():
            before, limit = stamp(), time.monotonic() + 4
            while stamp() == before and time.monotonic() < limit:
                time.sleep(0.0005)
            time.sleep(self.world.rng.random() * 0.01)
            self.world.server.kill()
        self.end(crash)

    def terminate(self, seconds):
        def stop():
            time.sleep(seconds)
            self.assertEqual(self.world.server.stop(), 0, self.world.server.log())
        self.end(stop, clean=True)

    def check_picture(self):
        """After a clean stop the readable tables are those of the last revision."""
        admin = self.world.server.client()
        text = admin.get("/metrics").raw.decode()
        admin.close()
        figures = dict(line.split(" ") for line in text.splitlines() if line[:1] != "#")
        self.assertEqual(figures["pagewarden_picture_revision"], figures["pagewarden_revision"], "the last picture")

    def report(self):
        did, did_not = self.outcome
        total = sum(w.acknowledged for w in self.world.workers)
        print(f"{self.id()}: {total} changes acknowledged; of those without an answer {did} happened, {did_not} did not; "
              f"{self.world.checked_reads} reads")
        self.assertGreater(total, 500, "hardly any load")
        self.assertGreater(self.world.checked_reads, 100, "hardly any reads")

    def test_kill_9_at_any_moment(self):
        world = self.begin()
        for number in range(15):
            if number == 7:
                self.terminate(0.4)
            self.kill_after(world.rng.uniform(0.2, 1))
        self.report()

    def test_kill_9_while_the_picture_is_written(self):
        world = self.begin("--checkpoint-seconds", "1", "--lease-seconds", "1")
        for number in range(6):
            if number == 3:
                self.terminate(1.3)
            self.kill_in_checkpoint()
        self.kill_after(world.rng.uniform(0.2, 1))
        self.report()


if __name__ == "__main__":
    unittest.main()
