"""Follows the feed of events from the first revision and plays it against the model: whatever the journal says has to be
lawful, and every answer that names a frame's owner at a revision has to name the one that the feed made it then.
"""
import bisect
import heapq
import threading

from ledger import GONE, Ledger
from world import Cut, Over, Wire, Wrong

KEPT = 256  # changes of one frame that are remembered
EVENTS_OF_NO_PAGE = ("token.", "operation.", "violation", "host.unreachable", "host.back", "backup.", "vcpu.", "vm.unknown",
                     "vm.known", "ledger.")


class Owners(dict):
    """A pool's frames: pfn -> (vm, gfn)."""


class History(Ledger):
    """A ledger that remembers when each frame changed hands."""

    def __init__(self, laws=None):
        super().__init__(laws)
        self.revision, self.changes = 0, {}

    def add_pool(self, key, base, frames, hosts):
        known = self.pools.get(key)
        super().add_pool(key, base, frames, hosts)
        if not known:
            pool = self.pools[key]
            pool.owner = Owners()
            pool.owner.key = key

    def put(self, where, key, value):
        super().put(where, key, value)
        if isinstance(where, Owners):
            self.note(where.key, key, None if value is GONE else value)

    def note(self, pool, pfn, owner):
        line = self.changes.setdefault((pool, pfn), [])
        if line and line[-1][0] == self.revision:
            line[-1] = (self.revision, owner)
        else:
            line.append((self.revision, owner))
        if len(line) > KEPT:
            del line[:KEPT // 2]

    def owner_at(self, pool, pfn, revision):
        """(vm, gfn) or None; raises KeyError if that is too long ago."""
        line = self.changes.get((pool, pfn))
        if not line:
            return None
        at = bisect.bisect_right(line, revision, key=lambda change: change[0]) - 1
        if at < 0:
            if len(line) >= KEPT // 2:
                raise KeyError(pfn)
            return None
        return line[at][1]


class Feed(threading.Thread):
    def __init__(self, world):
        super().__init__(name="feed", daemon=True)
        self.world, self.history = world, History()
        self.lock, self.moved = threading.Lock(), threading.Condition()
        self.waiting, self.count, self.looked_at = [], 0, 0
        self.done, self.unknown, self.told, self.by_host = False, {}, {}, {}
        self.may_release = set()  # VMs whose frames somebody other than their agent may release (played, or forced)
        self.lines = {}           # vm -> [(revision, type, runs)], newest last

    @property
    def at(self):
        return self.history.revision

    # Observations: what an answer said of owners at a revision.

    def saw_frames(self, pool, first, end, runs, revision, where):
        """A whole window of a pool: what is not in a run was free."""
        said = {}
        for run in runs:
            for i in range(run["count"]):
                if run["pfn"] + i in said:
                    raise Wrong(f"{where}: frame {run['pfn'] + i} of {pool} is twice in one answer")
                said[run["pfn"] + i] = (run["vm"], run["gfn"] + i)
        self.observe(revision, pool, [(pfn, said.get(pfn)) for pfn in range(first, end)], where)

    def saw_pages(self, host, runs, vm, revision, where):
        """Runs of a VM's GFNs: who has a frame has it."""
        seen = {}
        for run in runs:
            if "frame" not in run:
                continue
            name = run["frame"]["pool"]
            pool = (host, "local") if name == "local" else ("", name)
            frames = seen.setdefault(pool, [])
            frames += [(run["frame"]["pfn"] + i, (vm, run["gfn"] + i)) for i in range(run["count"])]
        for pool, frames in seen.items():
            self.observe(revision, pool, frames, where)

    def observe(self, revision, pool, frames, where):
        with self.lock:
            if revision > self.at:
                self.count += 1
                heapq.heappush(self.waiting, (revision, self.count, pool, frames, where))
                return
            self.judge(revision, pool, frames, where)

    def judge(self, revision, pool, frames, where):
        self.looked_at += len(frames)
        for pfn, owner in frames:
            try:
                made = self.history.owner_at(pool, pfn, revision)
            except KeyError:
                continue
            if made != owner:
                raise Wrong(f"{where} at revision {revision}: frame {pfn} of pool {pool} belongs to {owner}, "
                            f"where the feed made it {made}'s")

    # Following.

    def run(self):
        wire = Wire(self.world, self.world.server.token)
        try:
            while not self.done:
                try:
                    self.read(wire, wait=1)
                except Cut:
                    self.world.wait_up()
        except Over:
            pass
        except Exception as error:
            self.world.fail("feed", error)

    def read(self, wire, wait=0):
        got = wire.call("GET", f"/v1/events?after={self.at}&limit=1000" + (f"&wait={wait}" if wait else ""))
        self.world.step(-1)
        if got.status == 503:
            raise Cut("events: 503")
        if got.status != 200:
            raise Wrong(f"GET /v1/events after {self.at}: {got}")
        for event in got.json["items"]:
            self.apply(event)
        return len(got.json["items"])

    def catch_up(self, wire):
        """Reads on until there is nothing more."""
        while self.read(wire):
            pass

    def apply(self, event):
        with self.lock:
            if event["revision"] != self.at + 1:
                raise Wrong(f"after revision {self.at} the feed tells {event}")
            self.history.revision = event["revision"]
            self.told[event["type"]] = self.told.get(event["type"], 0) + 1
            host = event.get("host")
            self.by_host[host] = self.by_host.get(host, 0) + 1
            try:
                why = self.replay(event)
            except Wrong:
                raise
            except Exception as error:
                raise Wrong(f"the feed's {event} cannot be played: {error!r}") from error
            if why:
                raise Wrong(f"the feed tells a step that the law refuses ({why}): {event}")
            self.history.commit()
            while self.waiting and self.waiting[0][0] <= self.at:
                revision, _, pool, frames, where = heapq.heappop(self.waiting)
                self.judge(revision, pool, frames, where)

    def note_line(self, event, runs):
        lines = self.lines.setdefault(event["vm"], [])
        lines.append((event["revision"], event["type"], runs))

    def replay(self, event):
        kind, h = event["type"], self.history
        vm = h.vms.get(event.get("vm"))
        if kind.startswith("gfn.") or (kind.startswith("vm.") and "op" in event):
            return self.replay_item(event, vm)
        take = getattr(self, "on_" + kind.replace(".", "_"), None)
        if take:
            return take(event, vm)
        if not kind.startswith(EVENTS_OF_NO_PAGE):
            self.unknown[kind] = self.unknown.get(kind, 0) + 1
        return self.on_operation(event) if kind.startswith("operation.") else None

    def replay_item(self, event, vm):
        item = {k: event[k] for k in ("vm", "op", "gfn", "count", "frame", "runs", "pool") if k in event}
        runs = [(r[0], r[1]) for r in item["runs"]] if "runs" in item else [(item["gfn"], item["count"])] \
            if "gfn" in item else []
        self.note_line(event, runs)
        return self.history.item(self.history.hosts[event["host"]], item)

    def on_operation(self, event):
        h, kind = self.history, event["type"]
        if kind == "operation.created":
            from ledger import Thing
            h.put(h.operations, event["operation"], Thing(id=event["operation"], vm=event["vm"], kind=event["kind"],
                                                          state="pending", params=event.get("params", {})))
            return None
        known = h.operations.get(event["operation"])
        if known is None:
            return "operation-not-found"
        was, now = known.state, event["state"]
        if (was, now) not in (("pending", "running"), ("pending", "cancelled"), ("running", "running"),
                              ("running", "succeeded"), ("running", "failed"), ("running", "cancelled")):
            return f"operation-state {was} -> {now}"
        h.set(known, state=now)
        if now == "running" and known.kind == "launch" and known.vm in h.vms:
            h.set(h.vms[known.vm], hot=True)
        if now not in ("pending", "running"):
            h.put(h.operations, event["operation"], GONE)
        return None

    # One method for each type of event.

    def on_host_registered(self, event, vm):
        return self.host(event)

    on_host_rebooted = on_host_updated = on_host_registered

    def host(self, event):
        spec, pools = event["spec"], event["spec"]["pools"]
        local = pools[0] if pools else {"base_pfn": 0, "frames": 0}
        self.history.register(event["host"], spec["boot_id"], [b["arch"] for b in spec["backends"]],
                              local["base_pfn"], local["frames"])
        epoch = self.history.hosts[event["host"]].epoch
        return None if epoch == event["epoch"] else f"epoch {epoch}"

    def on_host_fenced(self, event, vm):
        self.history.fence(self.history.hosts[event["host"]])
        return None

    def on_vm_reset(self, event, vm):
        self.note_line(event, None)
        return None if vm.state == "normal" else "not reset"

    def on_vm_created(self, event, vm):
        spec = event["spec"]
        self.note_line(event, None)
        return self.history.create_vm(spec["id"], spec["host"], spec["arch"], spec["slots"],
                                      spec.get("gpa", {}).get("shared_bit"))

    def on_vm_deleted(self, event, vm):
        self.lines.pop(event["vm"], None)
        self.released(event, vm)
        self.history.reset(vm)
        return self.history.delete_vm(vm)

    def on_vm_lifecycle(self, event, vm):
        self.note_line(event, None)
        if event["event"] in ("terminate", "init_abort"):
            self.released(event, vm)
        why = self.history.event(vm, event["event"])
        return why or (None if vm.state == event["state"] else f"state {vm.state}")

    def released(self, event, vm):
        """Frames that hardware may have are released: only its agent says so, or force."""
        if vm.hot and vm.id not in self.may_release and not event["actor"].startswith("agent"):
            raise Wrong(f"somebody else than the agent of its host released what hardware has: {event}")

    def on_slot_added(self, event, vm):
        self.note_line(event, [(event["base_gfn"], event["pages"])])
        return self.history.put_slot(vm, event["slot"], event["base_gfn"], event["pages"])[0]

    def on_slot_deleted(self, event, vm):
        if event["slot"] in vm.slots:
            self.note_line(event, [vm.slots[event["slot"]]])
        self.released(event, vm)
        return self.history.delete_slot(vm, event["slot"])

    def on_quarantine_added(self, event, vm):
        return self.history.quarantine(self.history.hosts[event["host"]], event["items"])

    def on_quarantine_released(self, event, vm):
        return self.history.unquarantine(self.history.hosts[event["host"]], event["items"])

    def on_pool_changed(self, event, vm):
        spec = event["spec"]
        self.history.add_pool(("", event["pool"]), spec["base_pfn"], spec["frames"], spec["hosts"])
        return None
