"""Real agents, each on an emulated machine of its own that outlives it, and who plays operator, administrator and liar
towards them. What hardware has is read from the machine's file (`pagewarden-agent --dump`), not from the agent.
"""
import os
import re
import signal
import subprocess
import threading
import time

from ledger import WORDS
from world import AGENT, Cut, Over, WAIT_S, Wire, Wrong, uuid_of

FRAMES = 256
SETTLE_S = 20
SLOT = {"slot": 0, "base_gfn": 0, "pages": 64}
MORE = {"slot": 1, "base_gfn": 4096, "pages": 32}
RESYNCED = re.compile(r'msg="resynced" detail="([^"]*)"')
HARD_STATES = {"normal": "normal", "resident": "in", "out": "out", "shared": "shared"}


class Hardware:
    """What a machine has: VM states, frames (pfn -> (vm, gfn)), pages (vm -> {gfn: (state, pfn, arch state)}), stuck."""

    def __init__(self, text):
        self.vms, self.frames, self.pages, self.stuck = {}, {}, {}, set()
        for line in text.splitlines():
            kind, *rest = line.split("\t")
            if kind == "vm":
                self.vms[rest[0]] = rest[1]
                self.pages[rest[0]] = {}
            elif kind == "run":
                self.add_run(rest[0], int(rest[1]), int(rest[2]), rest[3], rest[4], rest[5])
            elif kind == "stuck":
                self.stuck.update(range(int(rest[0]), int(rest[0]) + int(rest[1])))

    def add_run(self, vm, gfn, count, state, pfn, arch_state):
        for i in range(count):
            frame = int(pfn) + i if pfn else None
            self.pages[vm][gfn + i] = (HARD_STATES[state], frame, arch_state)
            if frame is None:
                continue
            if frame in self.frames:
                raise Wrong(f"hardware gave frame {frame} to {self.frames[frame]} and to {(vm, gfn + i)}")
            self.frames[frame] = (vm, gfn + i)


class RealAgent:
    """One pagewarden-agent and its machine."""

    def __init__(self, world, arch, host):
        self.world, self.arch, self.host, self.process = world, arch, host, None
        self.folder = os.path.join(world.server.folder, "agent-" + arch)
        os.makedirs(self.folder)
        with open(self.path("token"), "w", encoding="ascii") as f:
            f.write(world.token("agent", self.host, "agent-" + arch))
        self.vms, self.exempt = [], {}  # exempt: VMs that an administrator ended by force -> when

    def path(self, name):
        return os.path.join(self.folder, name)

    def command(self, *more):
        return [AGENT, "--server", f"http://127.0.0.1:{self.world.server.port}", "--token-file", self.path("token"),
                "--state", self.path("state"), "--host", self.host, "--backend", "emulated", "--arch", self.arch,
                "--frames", str(FRAMES), "--log-level", "warning", *more]

    def start(self):
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self):
        with open(self.path("log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)

    def power_off(self):
        """The machine loses all it had; its next boot is another one."""
        machine = self.path("state/machine")
        if os.path.exists(machine):
            os.unlink(machine)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def pause(self, how):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)

    def hardware(self):
        """The machine's truth."""
        done = subprocess.run([AGENT, "--state", self.path("state"), "--arch", self.arch, "--dump"], capture_output=True,
                              text=True, check=False, timeout=WAIT_S)
        if done.returncode == 0:
            return Hardware(done.stdout)
        if "holds no machine" in done.stderr or "No such file" in done.stderr:
            return Hardware("")
        raise Wrong(f"the {self.arch} machine cannot be read: {done.stderr}")

    def compare(self):
        """What a resync finds: its figures, and all it said."""
        done = subprocess.run(self.command("--once", "--log-level", "info"), capture_output=True, text=True, check=False,
                              timeout=WAIT_S)
        said = RESYNCED.search(done.stderr + done.stdout)
        if done.returncode != 0 or not said:
            raise Wrong(f"--once of the {self.arch} agent: exit status {done.returncode}\n{done.stderr}{done.stdout}")
        return dict((k, int(v)) for k, v in (pair.split("=") for pair in said.group(1).split())), done.stderr + done.stdout


class Fleet(threading.Thread):
    """The thread that talks about the real agents' hosts, and compares hardware with the ledger all the time."""

    def __init__(self, world, feed, arches):
        super().__init__(name="fleet", daemon=True)
        self.world, self.feed, self.rng = world, feed, world.random("fleet")
        self.arches, self.agents, self.lock = arches, [], threading.Lock()
        self.checks, self.frames_seen, self.asked, self.lies, self.trail = 0, 0, {}, {}, []

    def begin(self):
        self.wires = {"admin": self.world.admin(), "killer": self.world.admin(), "operator": Wire(self.world, self.world.token("operator"))}
        self.agents = [RealAgent(self.world, arch, uuid_of(self.rng)) for arch in self.arches]
        self.wires["stranger"] = Wire(self.world, self.world.token("agent", uuid_of(self.rng), "agent-of-nobody"))
        for agent in self.agents:
            agent.start()

    def call(self, who, method, path, body=None, **more):
        got = self.wires[who].call(method, path, body, **more)
        if got.status == 503:
            raise Cut(f"{method} {path}: {got.slug}")
        self.trail.append(f"{who} {method} {path} {body or ''} -> {got.status} {got.slug or ''}")
        del self.trail[:-15]
        return got

    def run(self):
        check_at = 0
        try:
            while not self.world.over():
                try:
                    if time.monotonic() > check_at:
                        self.check(self.rng.choice(self.agents))
                        check_at = time.monotonic() + 0.15
                    self.act(self.rng.choice(self.agents))
                except Cut:
                    self.world.wait_up()
        except Over:
            pass
        except Exception as error:
            text = "\n".join("  " + line for line in self.trail)
            self.world.fail("fleet", Wrong(f"{error}\nthe last calls:\n{text}") if isinstance(error, Wrong) else error)

    # Hardware against the ledger.

    def check(self, agent):
        """No frame that hardware has is free, or somebody else's, in the ledger. The agent is held meanwhile: hardware
        is read first, so that what it tells the ledger in between can only be of what it had given up before."""
        with self.lock:
            agent.pause(signal.SIGSTOP)
            try:
                self.covered(agent, agent.hardware())
            finally:
                agent.pause(signal.SIGCONT)

    def covered(self, agent, hardware, who="admin"):
        path = f"/v1/hosts/{agent.host}"
        got = self.call(who, "GET", f"{path}/frames?pfn=0&count={FRAMES}")
        if got.status == 404 and not hardware.frames:
            return
        if got.status != 200:
            raise Wrong(f"GET {path}/frames: {got}")
        self.feed.saw_frames((agent.host, "local"), 0, FRAMES, got.json["items"], got.json["revision"], f"GET {path}/frames")
        owner = {run["pfn"] + i: (run["vm"], run["gfn"] + i) for run in got.json["items"] for i in range(run["count"])}
        bad = {pfn: (has, owner.get(pfn)) for pfn, has in hardware.frames.items() if owner.get(pfn) != has}
        self.settle(agent, {has[0] for has, _ in bad.values()})
        bad = {pfn: both for pfn, both in bad.items() if both[0][0] not in agent.exempt}
        loose = {pfn for pfn in hardware.stuck if pfn not in owner}
        if bad or loose:
            kept = self.quarantined(agent, who)
            bad = {pfn: both for pfn, both in bad.items() if pfn not in kept}
            loose -= kept
        if bad:
            raise Wrong(f"{agent.arch} host {agent.host}: hardware has frames that the ledger does not cover at revision "
                        f"{got.json['revision']} (pfn: hardware's, the ledger's): {dict(sorted(bad.items())[:6])}\n"
                        f"{agent.log()[-1500:]}")
        if loose:
            raise Wrong(f"{agent.arch} host {agent.host}: stuck frames are free in the ledger: {sorted(loose)[:6]}")
        self.checks += 1
        self.frames_seen += len(hardware.frames)

    def settle(self, agent, uncovered):
        """An agent notices what was done to its VMs by force, and hardware follows."""
        for vm, since in list(agent.exempt.items()):
            if vm not in uncovered:
                del agent.exempt[vm]
            elif time.monotonic() - since > SETTLE_S:
                raise Wrong(f"{agent.arch}: VM {vm} was ended by force {SETTLE_S} s ago, and hardware still has frames of it\n"
                            f"{agent.log()[-1500:]}")

    def force(self, agent, vm):
        """An administrator says that the host is off, which is not so: for a while hardware has what the ledger gave up."""
        agent.exempt[vm] = time.monotonic()
        self.feed.may_release.add(vm)
        if self.rng.random() < 0.5:
            got = self.call("admin", "POST", f"/v1/vms/{vm}/lifecycle", {"event": "terminate", "force": True})
        else:
            got = self.call("admin", "DELETE", f"/v1/vms/{vm}/slots/1?force=true")
        if got.status >= 400 and got.slug not in ("vm-not-found", "slot-not-found", "vm-transition"):
            raise Wrong(f"by force: {got}")
        self.lies["by force"] = self.lies.get("by force", 0) + 1

    def quarantined(self, agent, who):
        got = self.call(who, "GET", f"/v1/hosts/{agent.host}/quarantine?limit=1000")
        return {item["pfn"] + i for item in got.json["items"] for i in range(item["count"]) if item["pool"] == "local"}

    def equal(self, agent):
        """With the agent stopped and nothing under way: hardware and ledger are the same, page for page."""
        hardware, shown = agent.hardware(), self.wires["admin"].call("GET", f"/v1/vms?host={agent.host}&limit=1000")
        for vm in shown.json["items"]:
            if vm["state"] == "normal":
                if hardware.vms.get(vm["id"], "normal") != "normal":
                    raise Wrong(f"{agent.arch}: VM {vm['id']} is normal in the ledger, {hardware.vms[vm['id']]} on hardware")
                continue
            if hardware.vms.get(vm["id"]) != vm["state"]:
                raise Wrong(f"{agent.arch}: VM {vm['id']} is {vm['state']} in the ledger, {hardware.vms.get(vm['id'])} on hardware")
            self.equal_pages(agent, vm, hardware.pages[vm["id"]])
        known = {vm["id"] for vm in shown.json["items"]}
        extra = [vm for vm, state in hardware.vms.items() if vm not in known and state != "normal"]
        if extra:
            raise Wrong(f"{agent.arch}: hardware has VMs that the ledger does not show: {extra}")

    def equal_pages(self, agent, vm, hard):
        got = self.wires["admin"].call("GET", f"/v1/vms/{vm['id']}/gfns?limit=1000")
        told = {}
        for run in got.json["items"]:
            state = next(name for name, word in WORDS.items() if word == (run["state"], run["resident"]))
            for i in range(run["count"]):
                frame = run["frame"]["pfn"] + i if run["resident"] else None
                told[run["gfn"] + i] = (state, frame, run.get("arch_state"))
        odd = [(g, told.get(g), hard.get(g)) for g in sorted(set(told) | set(hard)) if told.get(g) != hard.get(g)]
        if odd:
            raise Wrong(f"{agent.arch}: VM {vm['id']}: (GFN, ledger, hardware) {odd[:6]}")

    def end(self):
        """After the run: agents finish what is under way; then there is no difference left."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            operations = self.wires["admin"].call("GET", "/v1/summary").json["operations"]
            mine = [o for a in self.agents for vm in a.vms for o in self.under_way(vm)]
            if not mine:
                break
            time.sleep(0.1)
        else:
            raise Wrong(f"operations that nobody finishes: {mine[:4]}, {operations}")
        for agent in self.agents:
            if agent.process.poll() is not None:
                raise Wrong(f"the {agent.arch} agent ended with {agent.process.returncode}:\n{agent.log()[-3000:]}")
            if agent.stop() != 0:
                raise Wrong(f"the {agent.arch} agent: exit status {agent.process.returncode}\n{agent.log()[-3000:]}")
            figures, text = agent.compare()
            if figures["unrepaired"]:
                raise Wrong(f"{agent.arch}: differences that are not repaired:\n{text}")
            figures, text = agent.compare()
            if figures["differences"] or figures["violations"]:
                raise Wrong(f"{agent.arch}: differences after a resync:\n{text}")
            agent.exempt.clear()
            self.covered(agent, agent.hardware())
            self.equal(agent)

    # A ledger that went back in time.

    def launch_more(self):
        """A VM on each machine that a ledger of before does not know."""
        for agent in self.agents:
            agent.start()
        for agent in self.agents:
            agent.newest = uuid_of(self.rng)
            body = {"id": agent.newest, "host": agent.host, "arch": agent.arch, "slots": [SLOT]}
            if self.call("operator", "POST", "/v1/vms", body).status != 201:
                raise Wrong(f"POST /v1/vms {body}")
            got = self.call("operator", "POST", f"/v1/vms/{agent.newest}/operations", {"kind": "launch", "params": {"resident": 24}})
            done = self.call("operator", "GET", f"/v1/operations/{got.json['id']}?wait=20")
            if done.json["state"] != "succeeded":
                raise Wrong(f"{agent.arch}: a launch on an idle host: {done}")
            agent.before = agent.hardware()

    def kept(self, seconds):
        """Absence proves nothing: the guests run on, and within that time their frames are the VMs' in the ledger again."""
        until = time.monotonic() + seconds
        waiting = list(self.agents)
        while waiting and time.monotonic() < until:
            for agent in list(waiting):
                now = agent.hardware()
                if now.vms.get(agent.newest) != "secure" or now.pages[agent.newest] != agent.before.pages[agent.newest]:
                    raise Wrong(f"{agent.arch}: VM {agent.newest}, which the restored ledger does not show, was ended or changed "
                                f"on hardware: {now.vms.get(agent.newest)}\n{agent.log()[-2000:]}")
                try:
                    self.check(agent)
                    waiting.remove(agent)
                except Cut:
                    pass
                except Wrong as error:
                    last = error
            time.sleep(0.2)
        if waiting:
            raise Wrong(f"the {waiting[0].arch} agent's guest is not in the ledger after {seconds} s: {last}")

    def under_way(self, vm):
        got = self.wires["admin"].call("GET", f"/v1/vms/{vm}/operations?limit=1000")
        return [] if got.status == 404 else [o for o in got.json["items"] if o["state"] in ("pending", "running")]

    # What is asked of them.

    def act(self, agent):
        roll = self.rng.random()
        if len(agent.vms) < 2:
            return self.create(agent)
        vm = self.rng.choice(agent.vms)
        if roll < 0.30:
            return self.lie(agent, vm)
        if roll < 0.33:
            return self.look(agent, vm)
        if roll < 0.34:
            return self.force(agent, vm)
        return self.operate(agent, vm)

    def create(self, agent):
        vm = uuid_of(self.rng)
        body = {"id": vm, "host": agent.host, "arch": agent.arch, "slots": [SLOT, MORE] if self.rng.random() < 0.5 else [SLOT]}
        got = self.call("operator", "POST", "/v1/vms", body)
        if got.status == 201:
            agent.vms.append(vm)
        elif got.slug not in ("host-not-found", "arch-unsupported"):
            raise Wrong(f"POST /v1/vms {body}: {got}")
        else:
            time.sleep(0.1)

    def operate(self, agent, vm):
        """An operation that makes sense, or not; its outcome is waited for (a while), cancelled or left alone."""
        rng = self.rng
        state = self.call("operator", "GET", "/v1/vms/" + vm)
        if state.status == 404:
            agent.vms.remove(vm)
            return
        state = state.json
        gfn = rng.randrange(64)
        span = {"gfn": gfn, "count": rng.randint(1, 64 - gfn)}
        slots = {s["slot"] for s in state["slots"]}
        if state["state"] == "normal" and rng.random() < 0.8:
            kind, params = "launch", {"resident": rng.choice((8, 32, 64))}
        else:
            kind = rng.choices(("share", "unshare", "page_in", "page_out", "terminate", "abort", "unplug" if 1 in slots else "plug"),
                               (20, 20, 20, 20, 4, 2, 8))[0]
            params = {"unplug": {"slot": 1}, "plug": MORE, "terminate": {}, "abort": {}}.get(kind, span)
            if kind == "unshare" and rng.random() < 0.5:
                params = dict(params, resident=True)
        got = self.call("operator", "POST", f"/v1/vms/{vm}/operations", {"kind": kind, "params": params})
        self.asked[kind] = self.asked.get(kind, 0) + 1
        if got.status != 202:
            if got.slug in ("vm-not-found", {"abort": "vm-transition", "plug": "slot-overlap", "unplug": "slot-not-found"}.get(kind)):
                return  # it has changed meanwhile
            raise Wrong(f"operation {kind} {params} of {vm}: {got}")
        path = "/v1/operations/" + got.json["id"]
        roll = rng.random()
        if roll < 0.08:
            self.call("operator", "DELETE", path)
        elif roll < 0.5:
            self.call("operator", "GET", path + "?wait=1")
        if kind == "terminate" and rng.random() < 0.5:
            self.call("operator", "GET", path + "?wait=2")
            if self.call("operator", "DELETE", "/v1/vms/" + vm).status == 204:
                agent.vms.remove(vm)

    def look(self, agent, vm):
        got = self.call("admin", "GET", f"/v1/vms/{vm}/gfns?limit=1000")
        if got.status == 200:
            self.feed.saw_pages(agent.host, got.json["items"], vm, got.json["revision"], f"GET /v1/vms/{vm}/gfns")

    def lie(self, agent, vm):
        """Somebody who is not the holder says something of hardware: nothing may come of it."""
        rng = self.rng
        host = self.call("admin", "GET", "/v1/hosts/" + agent.host)
        if host.status != 200:
            return
        host = host.json
        wrong = rng.choice(({"boot_id": host["boot_id"], "epoch": host["epoch"] + 1}, {"boot_id": uuid_of(self.rng), "epoch": host["epoch"]}))
        item = {"vm": vm, "op": "page_out", "gfn": rng.randrange(64), "count": 1}
        path = f"/v1/hosts/{agent.host}"
        right = {"boot_id": host["boot_id"], "epoch": host["epoch"]}
        lies = {
            "stale transitions": ("admin", "POST", path + "/transitions", dict(wrong, items=[item]), ("host-fenced",)),
            "stranger's transitions": ("stranger", "POST", path + "/transitions", dict(right, items=[item]), ("forbidden",)),
            "stale terminate": ("admin", "POST", f"/v1/vms/{vm}/lifecycle", dict(wrong, event="terminate"), ("host-fenced",)),
            "bare terminate": ("admin", "POST", f"/v1/vms/{vm}/lifecycle", {"event": "terminate"}, None),
            "bare abort": ("admin", "POST", f"/v1/vms/{vm}/lifecycle", {"event": "init_abort"}, None),
            "forced by an operator": ("operator", "DELETE", f"/v1/vms/{vm}/slots/0?force=true", None, ("forbidden",)),
            "bare slot": ("operator", "DELETE", f"/v1/vms/{vm}/slots/1", None, None),
            "stranger's slot": ("stranger", "DELETE", f"/v1/vms/{vm}/slots/0", None, ("forbidden",)),
            "bare fence": ("admin", "POST", path + "/fence", {}, None),
            "another's heartbeat": ("stranger", "POST", path + "/heartbeat", right, ("forbidden",)),
            "stale result": ("stranger", "POST", f"/v1/operations/{uuid_of(self.rng)}/result", dict(right, state="succeeded"),
                             ("operation-not-found",)),
        }
        name = rng.choice(sorted(lies))
        who, method, where, body, slugs = lies[name]
        if name == "bare fence" and host["state"] != "up":
            return
        self.lies[name] = self.lies.get(name, 0) + 1
        got = self.call(who, method, where, body)
        if got.slug == "vm-not-found":
            return
        if slugs and got.slug not in slugs:
            raise Wrong(f"{name}: {who} {method} {where} {body}: {got}, not {slugs}")
        # A bare one may be about a VM that has just become normal: the feed says whether hardware had anything.
        if slugs is None and got.status >= 400 and got.slug not in ("host-alive", "vm-transition", "slot-not-found"):
            raise Wrong(f"{name}: {who} {method} {where} {body}: {got}")
        if name == "bare fence" and got.slug != "host-alive" and self.world.up.is_set() and self.fresh(agent):
            raise Wrong(f"{name}: {got}")

    def fresh(self, agent):
        """Has its agent been running without a break for so long that its lease lives for sure?"""
        return agent.process.poll() is None
