"""Agents that race for the frames of one shared pool, a thread each. Who wins is not foreseen; what is: each answer is one
of those that are possible, the frame that was granted is this VM's from that revision on, and a conflict names whom the
feed says at that revision.
"""
import threading
import time

from ledger import EVENTS
from world import Cut, Over, Wire, Wrong, uuid_of

FRAMES, PAGES, RACERS = 24, 32, 3


class Race:
    """The pool, its hosts and their VMs."""

    def __init__(self, world, feed, number=0):
        self.world, self.feed, self.pool = world, feed, f"race-{number}"
        rng = world.random(self.pool)
        self.hosts = [uuid_of(rng) for _ in range(RACERS)]
        self.racers = [Racer(self, n, host, uuid_of(rng)) for n, host in enumerate(self.hosts)]

    def begin(self):
        for racer in self.racers:
            racer.register()
        got = self.world.admin().call("PUT", "/v1/pools/" + self.pool,
                                      {"base_pfn": 0, "frames": FRAMES, "hosts": self.hosts})
        if got.status != 201:
            raise Wrong(f"PUT /v1/pools/{self.pool}: {got}")
        for racer in self.racers:
            racer.launch()

    def check(self, wire):
        got = wire.call("GET", f"/v1/pools/{self.pool}/frames?pfn=0&count={FRAMES}")
        if got.status != 200:
            raise Wrong(f"GET /v1/pools/{self.pool}/frames: {got}")
        self.feed.saw_frames(("", self.pool), 0, FRAMES, got.json["items"], got.json["revision"], f"GET {self.pool}/frames")


class Racer(threading.Thread):
    def __init__(self, race, number, host, vm):
        super().__init__(name=f"{race.pool}-{number}", daemon=True)
        self.race, self.world, self.feed, self.host, self.vm = race, race.world, race.feed, host, vm
        self.rng = self.world.random(self.name)
        self.boot, self.epoch, self.seq, self.has, self.won, self.lost, self.beat = uuid_of(self.rng), 0, 0, {}, 0, 0, 0

    def register(self):
        self.wire = Wire(self.world, self.world.token("agent", self.host, "agent-" + self.name))
        body = {"name": self.name, "boot_id": self.boot, "backends": [{"arch": "snp", "kind": "emulated"}],
                "pools": [{"pool": "local", "base_pfn": 0, "frames": 1}]}
        got = self.wire.call("PUT", "/v1/hosts/" + self.host, body)
        if got.status != 201:
            raise Wrong(f"PUT /v1/hosts/{self.host}: {got}")
        self.epoch = got.json["epoch"]

    def launch(self):
        admin, current = self.world.admin(), {"boot_id": self.boot, "epoch": self.epoch}
        body = {"id": self.vm, "host": self.host, "arch": "snp", "slots": [{"slot": 0, "base_gfn": 0, "pages": PAGES}]}
        made = [admin.call("POST", "/v1/vms", body)]
        made += [self.wire.call("POST", f"/v1/vms/{self.vm}/lifecycle", dict(current, event=e)) for e in EVENTS[1:3]]
        if [got.status for got in made] != [201, 200, 200]:
            raise Wrong(f"{self.name}: {made}")

    def run(self):
        try:
            while not self.world.over():
                self.step()
                time.sleep(0.01)  # the played hosts are to have most of the steps
        except Over:
            pass
        except Exception as error:
            self.world.fail(self.name, error)

    def step(self):
        if time.monotonic() - self.beat > 1:
            self.beat = time.monotonic()
            self.say("heartbeat", {"boot_id": self.boot, "epoch": self.epoch})
        if self.rng.random() < 0.05:
            try:
                return self.race.check(self.wire)
            except Cut:
                return self.world.wait_up()
        gfn, pfn = self.rng.randrange(PAGES), self.rng.randrange(FRAMES)
        if self.has and self.rng.random() < 0.5:
            gfn = self.rng.choice(sorted(self.has))
            item = {"vm": self.vm, "op": self.rng.choice(("page_out", "share")), "gfn": gfn, "count": 1}
        else:
            item = {"vm": self.vm, "op": "unshare", "gfn": gfn, "count": 1, "frame": {"pool": self.race.pool, "pfn": pfn}}
        self.seq += 1
        got = self.say("transitions", {"boot_id": self.boot, "epoch": self.epoch, "batch_seq": self.seq, "items": [item]})
        return self.judge(item, gfn, pfn, got)

    def say(self, what, body):
        """Says it until it is answered: a numbered batch is answered once and for all."""
        while True:
            try:
                got = self.wire.call("POST", f"/v1/hosts/{self.host}/{what}", body)
                if got.status != 503:
                    return got
            except Cut:
                self.world.wait_up()
            time.sleep(0.02)

    def judge(self, item, gfn, pfn, got):
        if got.status != 200:
            raise Wrong(f"{item} was answered {got}")
        result, revision = got.json["results"][0], got.json["revision"]
        slug = None if result["ok"] else result["problem"]["type"][len("/problems/"):]
        pool, claims = ("", self.race.pool), "frame" in item
        if slug is None:
            if claims and gfn in self.has:
                raise Wrong(f"{item} was accepted, and GFN {gfn} had frame {self.has[gfn]}")
            if not claims:
                del self.has[gfn]
                return
            self.has[gfn] = pfn
            self.won += 1
            self.feed.observe(revision, pool, [(pfn, (self.vm, gfn))], f"{self.name}'s claim")
        elif slug == "frame-conflict" and claims and gfn not in self.has:
            self.lost += 1
            named = [(run["pfn"] + i, (run["vm"], run["gfn"] + i)) for run in result["problem"]["conflicts"]
                     for i in range(run["count"])]
            if [p for p, _ in named] != [pfn]:
                raise Wrong(f"{item}: the conflict names {named}")
            self.feed.observe(revision, pool, named, f"a conflict of {self.name}")
        elif slug != "gfn-transition" or not claims or gfn not in self.has:
            raise Wrong(f"{item} was refused, with GFN {gfn} on {self.has.get(gfn)}: {got}")

    def end(self):
        """All that was granted is there, and nothing else."""
        got = self.wire.call("GET", f"/v1/vms/{self.vm}/gfns?limit=1000")
        shown = {run["gfn"] + i: run["frame"]["pfn"] + i for run in got.json["items"] if run["resident"]
                 for i in range(run["count"])}
        if shown != self.has:
            raise Wrong(f"{self.name}: VM {self.vm} shows {shown}, was granted {self.has}")
