"""A ledger of pages, one dictionary entry for each page and frame: what pagewardend has to answer, and nothing faster.

Written from DESIGN's law and the API's order of checks. Every change is noted, so that `rollback` takes back what came
after a `mark` (an atomic batch that was refused, a request that a killed server never committed). What may be asked is
one method for each kind of request; it returns the refusal's slug or None, and has changed the model accordingly.
"""
import arch

NORMAL, IN, OUT, SHARED = "normal", "in", "out", "shared"
WORDS = {NORMAL: ("normal", False), IN: ("secure", True), OUT: ("secure", False), SHARED: ("shared", False)}

# The lifecycle of a VM: state -> event -> state; what is missing is an error.
VM_LAW = {
    "normal": {"start": "normal", "init_start": "transient", "terminate": "normal"},
    "transient": {"init_done": "secure", "init_abort": "normal", "terminate": "normal"},
    "secure": {"terminate": "normal"},
}
# After which of them hardware may have the VM.
ON_HARDWARE = {"start": True, "init_start": True, "init_done": True, "init_abort": False, "terminate": False}
# By which bit of a guest physical address an architecture's guests may tell the shared alias of a page.
SHARED_BITS = {"tdx": (47, 51), "cca": tuple(range(31, 48))}
EVENTS = ("start", "init_start", "init_done", "init_abort", "terminate")

# The lifecycle of a page: state -> operation -> state; unshare+ is one that names frames.
GFN_LAW = {
    NORMAL: {"share": SHARED, "unshare": OUT, "unshare+": IN, "page_in": IN},
    IN: {"share": SHARED, "unshare": IN, "page_out": OUT},
    OUT: {"share": SHARED, "unshare": OUT, "unshare+": IN, "page_in": IN},
    SHARED: {"share": SHARED, "unshare": OUT, "unshare+": IN},
}
OPS = ("share", "unshare", "page_in", "page_out")
LEAVES = {"terminate": "vm", "abort": "vm", "unplug": "slot"}  # operations while which pages are leaving

GONE = object()
FRESH = (NORMAL, None, None)  # of a page: the law's state, its frame (pool, pfn), the architecture's state if not at rest


class Thing:
    """A host, pool, VM or operation: attributes that `Ledger.put` changes and `rollback` puts back."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def runs_of(item):
    """An item's runs [(gfn, count, pfn or None)] and the pool it names, whatever its form."""
    if "runs" in item:
        return [(r[0], r[1], r[2] if len(r) > 2 else None) for r in item["runs"]], item.get("pool")
    if "gfns" in item:
        pfns = item.get("pfns") or [None] * len(item["gfns"])
        return [(g, 1, p) for g, p in zip(item["gfns"], pfns)], item.get("pool")
    if "gfn" not in item:
        return [], None
    frame = item.get("frame")
    return [(item["gfn"], item["count"], frame["pfn"] if frame else None)], frame["pool"] if frame else None


class Ledger:
    def __init__(self, laws=None):
        self.laws = laws if laws is not None else arch.read_laws()
        self.hosts, self.pools, self.vms, self.operations, self.ended = {}, {}, {}, {}, {}
        self.log, self.taken, self.conflicts = [], {}, {}

    # Changing, and taking it back.

    def put(self, where, key, value):
        self.log.append((where, key, where.get(key, GONE)))
        if value is GONE:
            where.pop(key, None)
        else:
            where[key] = value

    def set(self, thing, **attributes):
        for name, value in attributes.items():
            self.put(thing.__dict__, name, value)

    def mark(self):
        return len(self.log)

    def rollback(self, mark):
        while len(self.log) > mark:
            where, key, old = self.log.pop()
            if old is GONE:
                where.pop(key, None)
            else:
                where[key] = old

    def commit(self):
        self.log.clear()

    # Hosts and pools.

    def pool_key(self, host, name):
        """The key of a pool that is attached to the host; None if it is not."""
        if name == "local":
            return (host.id, "local")
        pool = self.pools.get(("", name))
        return ("", name) if pool and host.id in pool.hosts else None

    def add_pool(self, key, base, frames, hosts):
        known = self.pools.get(key)
        if known:
            self.set(known, base=base, frames=frames, hosts=frozenset(hosts))
        else:
            self.put(self.pools, key, Thing(base=base, frames=frames, hosts=frozenset(hosts), owner={}, quarantine={}))

    def register(self, host_id, boot, arches, base, frames):
        """A registration; how many VMs a reboot reset (None: no reboot)."""
        host = self.hosts.get(host_id)
        self.add_pool((host_id, "local"), base, frames, {host_id})
        if host is None:
            self.put(self.hosts, host_id, Thing(id=host_id, boot=boot, epoch=1, fenced=False, arches=frozenset(arches)))
            return None
        if host.boot == boot:
            self.set(host, fenced=False, arches=frozenset(arches))
            return None
        count = self.reset_host(host)
        pool = self.pools[host_id, "local"]
        for pfn in list(pool.quarantine):
            self.put(pool.quarantine, pfn, GONE)
        self.set(host, boot=boot, epoch=host.epoch + 1, fenced=False, arches=frozenset(arches))
        return count

    def fence(self, host):
        if not host.fenced:
            self.reset_host(host)
            self.set(host, fenced=True, epoch=host.epoch + 1)

    def reset_host(self, host):
        mine = [vm for vm in self.vms.values() if vm.host == host.id and vm.hot]
        for vm in mine:
            self.reset(vm)
        return len(mine)

    def is_current(self, host, boot, epoch):
        return not host.fenced and host.boot == boot and host.epoch == epoch

    def ranges(self, host, items):
        """[(pool, first, end)] of quarantine items, or the refusal's slug."""
        found = []
        for item in items:
            key = self.pool_key(host, item["pool"])
            if key is None:
                return "frame-out-of-pool"
            found.append((key, item["pfn"], item["pfn"] + item["count"]))
        return found

    def quarantine(self, host, items):
        ranges = self.ranges(host, items)
        if isinstance(ranges, str):
            return ranges
        for key, first, end in ranges:
            pool = self.pools[key]
            if first < pool.base or end > pool.base + pool.frames:
                return "frame-out-of-pool"
            if any(self.vms[pool.owner[p][0]].host != host.id for p in range(first, end) if p in pool.owner):
                return "vm-not-on-host"
        for key, first, end in ranges:
            pool = self.pools[key]
            for pfn in range(first, end):
                if pfn in pool.owner:
                    vm, gfn = pool.owner[pfn]
                    page = self.vms[vm].pages[gfn]
                    self.put_page(self.vms[vm], gfn, (OUT, None, self.kept(self.vms[vm], page, OUT)))
                self.put(pool.quarantine, pfn, True)
        return None

    def unquarantine(self, host, items):
        ranges = self.ranges(host, items)
        if isinstance(ranges, str):
            return ranges
        for key, first, end in ranges:
            pool = self.pools[key]
            if first < pool.base or end > pool.base + pool.frames:
                return "frame-out-of-pool"
        for key, first, end in ranges:
            for pfn in range(first, end):
                self.put(self.pools[key].quarantine, pfn, GONE)
        return None

    # VMs and slots.

    def create_vm(self, vm_id, host_id, kind, slots, bit=None):
        host = self.hosts.get(host_id)
        if host is None:
            return "host-not-found"
        if bit and kind in host.arches and bit not in SHARED_BITS.get(kind, ()):
            return "invalid-params"
        if vm_id in self.vms:
            return "vm-exists"
        if kind not in host.arches:
            return "arch-unsupported"
        table, pages = {}, {}
        for slot in slots:
            if slot["slot"] in table or self.overlap(table, slot["base_gfn"], slot["pages"]):
                return "slot-overlap"
            table[slot["slot"]] = (slot["base_gfn"], slot["pages"])
            pages.update((gfn, FRESH) for gfn in range(slot["base_gfn"], slot["base_gfn"] + slot["pages"]))
        self.put(self.vms, vm_id, Thing(id=vm_id, host=host_id, arch=kind, state="normal", stage=None, epoch=1, hot=False, bit=bit,
                                        slots=table, pages=pages))
        return None

    @staticmethod
    def overlap(table, base, pages):
        return any(base < b + n and b < base + pages for b, n in table.values())

    def delete_vm(self, vm):
        if vm.state != "normal":
            return "vm-busy"
        self.put(self.vms, vm.id, GONE)
        return None

    def put_slot(self, vm, number, base, pages):
        """The refusal; (None, True) if the slot is new."""
        if number in vm.slots:
            return (None, False) if vm.slots[number] == (base, pages) else ("slot-overlap", False)
        if self.overlap(vm.slots, base, pages):
            return "slot-overlap", False
        self.put(vm.slots, number, (base, pages))
        fresh = (OUT, None, None) if vm.state == "secure" else FRESH
        for gfn in range(base, base + pages):
            self.put(vm.pages, gfn, fresh)
        return None, True

    def delete_slot(self, vm, number):
        if number not in vm.slots:
            return "slot-not-found"
        base, pages = vm.slots[number]
        for gfn in range(base, base + pages):
            self.put_page(vm, gfn, FRESH)
            self.put(vm.pages, gfn, GONE)
        self.put(vm.slots, number, GONE)
        return None

    def slot_of(self, vm, gfn):
        for number, (base, pages) in vm.slots.items():
            if base <= gfn < base + pages:
                return number
        return None

    # Events of a VM.

    def stages(self, vm):
        law = self.laws.get(vm.arch)
        return law.vm_states if law else []

    def event(self, vm, event):
        """The refusal; the model has moved if it is None."""
        to = VM_LAW[vm.state].get(event)
        if to is None:
            return "vm-transition"
        stages = self.stages(vm)
        if event == "init_done":
            stage = stages[vm.stage].done if stages else None
            if stages and stage is None:
                return "vm-transition"
            for gfn, page in vm.pages.items():
                if page[0] == NORMAL:
                    self.put_page(vm, gfn, (OUT, None, self.kept(vm, page, OUT)))
            self.set(vm, state="secure", stage=stage)
        elif to == "normal":
            self.reset(vm)
        else:
            self.set(vm, state=to, stage=0 if stages and to == "transient" else vm.stage)
        self.set(vm, hot=ON_HARDWARE[event])
        return None

    def releases(self, vm, event):
        """Would it give up what hardware may have?"""
        return vm.hot and not ON_HARDWARE[event]

    def kept(self, vm, page, to):
        """The architecture's state after an operation of the law: what a realm gave up stays EMPTY, all else rests."""
        law = self.laws.get(vm.arch)
        if law is None or page[2] is None or "/EMPTY" not in law.states[page[2]][0]:
            return None
        return next(i for i, (name, is_) in enumerate(law.states) if is_ == to and "/EMPTY" in name)

    def reset(self, vm):
        self.set(vm, hot=False)
        if vm.state == "normal":
            return
        for gfn, page in vm.pages.items():
            if page != FRESH:
                self.put_page(vm, gfn, FRESH)
        self.set(vm, state="normal", stage=None, epoch=vm.epoch + 1)

    def put_page(self, vm, gfn, page):
        old = vm.pages[gfn]
        if old[1] != page[1]:
            if old[1]:
                self.put(self.pools[old[1][0]].owner, old[1][1], GONE)
            if page[1]:
                self.put(self.pools[page[1][0]].owner, page[1][1], (vm.id, gfn))
        self.put(vm.pages, gfn, page)

    # Transitions.

    def leaving(self, vm):
        """What is leaving of a VM: (all of it, the slots that are)."""
        running = [o for o in self.operations.values() if o.vm == vm.id and o.state == "running" and o.kind in LEAVES]
        return (any(LEAVES[o.kind] == "vm" for o in running),
                {o.params.get("slot") for o in running if LEAVES[o.kind] == "slot"})

    def next_law(self, vm, op, framed):
        name = "unshare+" if op == "unshare" and framed else op

        def step(page, frame):
            to = GFN_LAW[page[0]].get(name)
            if to is None:
                return None
            return page if to == page[0] else (to, frame if to == IN else None, self.kept(vm, page, to))
        return step

    def next_arch(self, vm, law, row):
        def step(page, frame):
            here = law.rest[page[0]] if page[2] is None else page[2]
            to = row.next[here]
            if to is None:
                return None
            is_ = law.states[to][1]
            resident = page[0] == IN
            if row.framed and (page[1] != frame if resident else is_ != IN):
                return None
            if not row.framed and not resident and is_ == IN:
                return None
            kept = page[1] if is_ == page[0] else frame if is_ == IN else None
            return (is_, kept, None if law.rest[is_] == to else to)
        return step

    def item(self, host, item):
        """One item of a batch, all or nothing. The refusal, or None."""
        mark = self.mark()
        why = self.item_checked(host, item)
        if why:
            self.rollback(mark)
        return why

    def item_checked(self, host, item):
        vm, op = self.vms.get(item["vm"]), item["op"]
        if vm is None:
            return "vm-not-found"
        if vm.host != host.id:
            return "vm-not-on-host"
        runs, pool = runs_of(item)
        framed = pool is not None
        if op in OPS:
            law = row = None
            step = self.next_law(vm, op, framed)
        else:
            law = self.laws.get(vm.arch)
            if law is None or op.split(".")[0] != vm.arch:
                return "arch-unsupported"
            if not runs:
                return self.vm_item(vm, law, op)
            row = law.find(op, framed)
            step = self.next_arch(vm, law, row)
        if vm.state == "normal" or (row and row.vm is not None and vm.stage not in row.vm):
            return "vm-transition"
        all_leave, slots = self.leaving(vm)
        if all_leave and framed:
            return "vm-transition"
        key = self.pool_key(host, pool) if framed else None
        for run in runs:
            why = self.run(vm, run, step, framed, key, slots)
            if why:
                return why
        return None

    def vm_item(self, vm, law, op):
        to = law.vm_ops[op][vm.stage] if vm.stage is not None else None
        if to is None:
            return "vm-transition"
        self.set(vm, stage=to)
        return None

    def run(self, vm, run, step, framed, key, leaving):
        gfn, count, pfn = run
        slot = self.slot_of(vm, gfn)
        if slot is None or gfn + count > sum(vm.slots[slot]):
            return "gfn-out-of-slot"
        wanted = []
        for i in range(count):
            frame = (key, pfn + i) if framed else None
            page = step(vm.pages[gfn + i], frame)
            if page is None or (framed and slot in leaving):
                return "gfn-transition"
            wanted.append(page)
        if framed:
            why = self.claimable(vm, gfn, key, pfn, count)
            if why:
                return why
        for i, page in enumerate(wanted):
            if page != vm.pages[gfn + i]:
                self.put_page(vm, gfn + i, page)
        return None

    def claimable(self, vm, gfn, key, pfn, count):
        pool = self.pools.get(key)
        if pool is None or pfn < pool.base or pfn + count > pool.base + pool.frames:
            return "frame-out-of-pool"
        frames = range(pfn, pfn + count)
        if any(p in pool.quarantine for p in frames):
            return "frame-quarantined"
        self.taken = {p: pool.owner[p] for p in frames if p in pool.owner and pool.owner[p] != (vm.id, gfn + p - pfn)}
        return "frame-conflict" if self.taken else None

    def batch(self, host, items, atomic):
        """Slugs or None of the items that were tried; an atomic one ends at its first refusal, and is undone. What the
        conflicts name is in `conflicts`: item -> {pfn: (vm, gfn)}."""
        mark, slugs, self.conflicts = self.mark(), [], {}
        for item in items:
            slugs.append(self.item(host, item))
            if slugs[-1] == "frame-conflict":
                self.conflicts[len(slugs) - 1] = self.taken
            if atomic and slugs[-1]:
                self.rollback(mark)
                break
        return slugs

    # Views, as the API shows them.

    def arch_name(self, vm, page):
        law = self.laws.get(vm.arch)
        return None if law is None else law.states[law.rest[page[0]] if page[2] is None else page[2]][0]

    def view_pages(self, vm):
        """{gfn: (state, resident, (pool name, pfn) or None, architecture's state)}"""
        return {gfn: WORDS[page[0]] + ((page[1][0][1], page[1][1]) if page[1] else None, self.arch_name(vm, page))
                for gfn, page in vm.pages.items()}

    def counts(self, vm):
        found = {"normal": 0, "secure_resident": 0, "secure_out": 0, "shared": 0}
        names = {NORMAL: "normal", IN: "secure_resident", OUT: "secure_out", SHARED: "shared"}
        for page in vm.pages.values():
            found[names[page[0]]] += 1
        return found
