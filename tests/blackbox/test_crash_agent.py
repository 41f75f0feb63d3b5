"""kill -9 of agents and server under load (L5): at every crash point the ledger covers the hardware, and once all is
quiet the two are equal.

The emulated machine outlives its agent (--state), so `--once` after a crash compares what hardware has with what the
ledger says: a `violation` there is a page of hardware that the ledger does not own for the same VM.
"""
import os
import random
import re
import signal
import subprocess
import time
import unittest

from harness import BUILD, WAIT_S, Case, new_id

AGENT = os.path.join(BUILD, "pagewarden-agent")
LOAD = "vms=3,pages=1024,rate=400"
# Calls of hardware, and which of them may be the last one.
VM_CALLS = ("create_vm", "vm_event", "run_vm")
ARCHES = ("pef", "snp", "tdx", "cca", "pkvm")
PAGE_CALLS = ("reserve", "page_in", "page_out", "share", "unshare")
RESYNCED = re.compile(r'msg="resynced" detail="([^"]*)"')


class Agent:
    """One agent and the machine that it leaves behind."""

    def __init__(self, case, name, arch="pef"):
        self.case, self.server, self.host, self.process, self.arch = case, case.server, new_id(), None, arch
        self.folder = os.path.join(case.server.folder, name)
        os.makedirs(self.folder)
        self.write("token", case.admin.post("/v1/tokens", {"role": "agent", "host": self.host, "name": name})["secret"])
        self.write("load-token", case.admin.post("/v1/tokens", {"role": "operator", "name": name + "-load"})["secret"])
        case.addCleanup(self.kill)

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="ascii") as f:
            f.write(text + "\n")

    def command(self, *more):
        path = {name: os.path.join(self.folder, name) for name in ("token", "load-token", "machine")}
        return [AGENT, "--server", f"http://127.0.0.1:{self.server.port}", "--token-file", path["token"],
                "--load-token-file", path["load-token"], "--state", path["machine"], "--host", self.host,
                "--backend", "emulated", "--arch", self.arch, "--frames", "4096", *more]

    def start(self, *more):
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.began = log.tell()
            self.process = subprocess.Popen(self.command(*more), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait_ready(self):
        """It has registered and resynced."""
        end = time.monotonic() + WAIT_S
        while 'msg="registered"' not in self.log()[self.began:]:
            self.case.assertLess(time.monotonic(), end, self.log()[-2000:])
            time.sleep(0.02)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def compare(self):
        """What a resync finds: {"vms", "regions", "opened", "differences", "violations", "unrepaired"}."""
        done = subprocess.run(self.command("--once"), capture_output=True, text=True, check=False, timeout=WAIT_S)
        self.case.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        said = RESYNCED.search(done.stderr + done.stdout)
        self.case.assertTrue(said, done.stderr + done.stdout)
        figures = {k: int(v) for k, v in (pair.split("=") for pair in said.group(1).split())}
        figures["text"] = done.stderr + done.stdout
        return figures


class CrashingAgents(Case):
    flags = ("--checkpoint-seconds", "1")

    def audit(self):
        """L1 over all VMs: both views of every binding agree. Returns how many frames are bound."""
        by_frame, claimed = {}, {}
        hosts = {agent.host for agent in self.agents}
        for vm in (vm for vm in self.admin.items("/v1/vms?limit=1000") if vm["host"] in hosts):
            for run in self.admin.items(f"/v1/vms/{vm['id']}/gfns?limit=1000"):
                for i in range(run["count"] if run["resident"] else 0):
                    frame = (vm["host"], run["frame"]["pfn"] + i)
                    self.assertNotIn(frame, by_frame, "L1: two owners")
                    by_frame[frame] = (vm["id"], run["gfn"] + i)
        for agent in self.agents:
            for run in self.admin.items(f"/v1/hosts/{agent.host}/frames?pfn=0&count=4096&limit=1000"):
                for i in range(run["count"]):
                    claimed[agent.host, run["pfn"] + i] = (run["vm"], run["gfn"] + i)
        self.assertEqual(claimed, by_frame)
        return len(by_frame)

    def changes(self):
        return self.admin.get("/v1/summary")["revision"]

    def covered(self, agent):
        """L5, as a new agent sees it. Returns how many differences the crash had left."""
        found = agent.compare()
        self.assertEqual((found["violations"], found["unrepaired"]), (0, 0), found["text"] + agent.log()[-3000:])
        again = agent.compare()
        self.assertEqual((again["differences"], again["violations"]), (0, 0), again["text"])
        return found["differences"]

    def crash_server(self):
        self.server.crash()
        self.admin.close()
        self.admin = self.server.client()

    def active(self):
        operations = self.admin.get("/v1/summary")["operations"]
        return operations["pending"] + operations["running"]

    def finished(self):
        """Waits for operations to end; how many did not."""
        end = time.monotonic() + 20
        while self.active() and time.monotonic() < end:
            time.sleep(0.05)
        return self.active()

    def test_the_ledger_covers_hardware_at_every_crash(self):
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        rng, left = random.Random(seed), 0
        print(f"{self.id()}: SEED={seed}", flush=True)
        self.agents = [Agent(self, name) for name in ("a", "b")]
        first = self.changes()
        for agent in self.agents:
            agent.start("--load", f"{LOAD},seed={rng.randrange(1000)}")
        for _ in range(14):
            time.sleep(rng.uniform(0.2, 0.9))
            victims = rng.choice([[0], [1], [0, 1], [], [0], [0, 1]])
            for v in victims:
                self.agents[v].kill()
            if not victims or rng.random() < 0.4:
                self.crash_server()
            for v in victims:
                left += self.covered(self.agents[v])
                self.agents[v].start("--load", f"{LOAD},seed={rng.randrange(1000)}")
            for agent in self.agents:
                self.assertIsNone(agent.process.poll(), agent.log()[-3000:])
        bound = self.quiet()
        changes = self.changes() - first
        print(f"{self.id()}: {changes} changes, {left} differences after crashes, {bound} frames bound at the end")
        self.assertGreater(changes, 200, self.agents[0].log()[-2000:])

    def quiet(self):
        """Load ends, agents finish what is under way; then hardware and ledger are equal."""
        for agent in self.agents:
            agent.wait_ready()
            self.assertEqual(agent.stop(), 0, agent.log()[-2000:])
            agent.start()
            agent.wait_ready()
        self.assertEqual(self.finished(), 0, "an operation that nobody finishes")
        for agent in self.agents:
            self.assertEqual(agent.stop(), 0, agent.log()[-2000:])
            found = agent.compare()
            self.assertEqual((found["differences"], found["violations"], found["opened"]), (0, 0, 0), found["text"])
        slugs = [v["problem"]["type"] for v in self.admin.items("/v1/violations?limit=1000")]
        self.assertNotIn("/problems/frame-conflict", slugs)
        return self.audit()

    def test_a_mixed_fleet_of_all_architectures(self):
        """Five hosts under load, one of each architecture, killed at random: the ledger covers each of their models,
        and in the end equals it, the architectures' own states of pages included."""
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        rng, left = random.Random(seed), {}
        print(f"{self.id()}: SEED={seed}", flush=True)
        self.agents = [Agent(self, "fleet-" + arch, arch) for arch in ARCHES]
        for agent in self.agents:
            agent.start("--load", f"vms=2,pages=1024,rate=100,seed={rng.randrange(1000)}")
        for victim in rng.sample(self.agents * 2, 2 * len(ARCHES)):
            time.sleep(rng.uniform(0.2, 0.9))
            victim.kill()
            left[victim.arch] = left.get(victim.arch, 0) + self.covered(victim)
            victim.start("--load", f"vms=2,pages=1024,rate=100,seed={rng.randrange(1000)}")
        for agent in self.agents:
            self.assertIsNone(agent.process.poll(), agent.log()[-3000:])
        bound = self.quiet()
        vms = self.admin.items("/v1/vms?limit=1000")
        told = {v["arch"] for v in vms if v["revision"]}
        self.assertEqual(told, set(ARCHES))
        self.assertGreater(bound, 0)
        print(f"{self.id()}: differences after crashes {left}, {bound} frames bound at the end")

    def test_an_agent_with_an_admins_token_speaks_in_the_laws_words(self):
        """The server takes an architecture's operations from the agent of a host alone."""
        self.agents = [Agent(self, "as-admin", "tdx")]
        agent = self.agents[0]
        agent.write("token", self.server.token)
        agent.start()
        agent.wait_ready()
        vm = self.launched(agent, 64)
        self.operate(vm, "share", gfn=8, count=8)
        self.operate(vm, "page_out", gfn=20, count=4)
        self.assertEqual(self.admin.get("/v1/vms/" + vm)["pages"], {"secure_resident": 52, "secure_out": 4, "shared": 8, "normal": 0})
        told = {event["op"] for event in self.admin.items(f"/v1/vms/{vm}/history?gfn=8&count=16") if "op" in event}
        self.assertEqual(told, {"page_in", "share", "page_out"})
        self.operate(vm, "terminate")
        self.assertEqual(agent.stop(), 0)
        self.covered(agent)

    def test_an_agent_that_dies_before_it_has_said_what_hardware_did(self):
        """Claims stand, hardware has the pages, and the architecture's own state was never told."""
        for arch, secure in (("snp", True), ("snp", False), ("tdx", True)):  # whose claims are followed by an item
            with self.subTest(arch=arch, secure=secure):
                self.agents = [Agent(self, f"mute-{arch}-{secure}", arch)]
                agent = self.agents[0]
                agent.start("--fault", f"page_in:{2 if secure else 1}:crash-after")
                agent.wait_ready()
                body = {"host": agent.host, "arch": arch, "slots": [{"slot": 0, "base_gfn": 0, "pages": 64}]}
                vm = self.admin.post("/v1/vms", body)["id"]
                self.admin.post(f"/v1/vms/{vm}/operations", {"kind": "launch", "params": {"resident": 32}})
                if secure:
                    self.admin.post(f"/v1/vms/{vm}/operations", {"kind": "page_in", "params": {"gfn": 40, "count": 4}})
                self.assertEqual(agent.process.wait(20), 137, agent.log()[-2000:])
                said = {run["arch_state"] for run in self.admin.items(f"/v1/vms/{vm}/gfns") if run["resident"]}
                self.assertNotIn({"snp": "Guest-Valid", "tdx": "MAPPED"}[arch], said if not secure else set())
                self.assertGreater(self.covered(agent), 0, "the crash left no difference")
                agent.start()  # what it had begun is finished
                agent.wait_ready()
                self.assertEqual(self.finished(), 0)
                self.assertEqual(agent.stop(), 0)
                if secure:
                    runs = [r for r in self.admin.items(f"/v1/vms/{vm}/gfns") if r["resident"]]
                    self.assertEqual({r["arch_state"] for r in runs}, {{"snp": "Guest-Valid", "tdx": "MAPPED"}[arch]})

    def test_frames_that_a_teardown_does_not_get_back_go_to_quarantine(self):
        """Single failures of firmware while VMs end: the frame is kept with its reason, the rest goes on."""
        for arch in ARCHES:
            with self.subTest(arch=arch):
                self.agents = [Agent(self, "stuck-" + arch, arch)]
                agent = self.agents[0]
                agent.start("--fault", "frame:5")
                agent.wait_ready()
                vm = self.launched(agent, 64)
                self.operate(vm, "terminate")
                kept = self.admin.get(f"/v1/hosts/{agent.host}/quarantine")["items"]
                self.assertEqual(sum(run["count"] for run in kept), 1, kept)
                self.assertRegex(kept[0]["reason"], r"\w+ .*\w+", "a reason that says what was refused")
                state = self.admin.get("/v1/vms/" + vm).json
                self.assertEqual((state["state"], state["pages"]["secure_resident"]), ("normal", 0), state)
                agent.kill()
                self.covered(agent)
                agent.start()
                agent.wait_ready()
                bound = self.launched(agent, 4096)  # all but the stuck one
                self.assertEqual(self.admin.get("/v1/vms/" + bound)["pages"]["secure_resident"], 4095)
                self.operate(bound, "terminate")
                self.assertEqual(agent.stop(), 0)
                self.covered(agent)

    def launched(self, agent, pages):
        """A secure VM with all that it gets of its memory resident; its id."""
        body = {"host": agent.host, "arch": agent.arch, "slots": [{"slot": 0, "base_gfn": 0, "pages": pages}]}
        vm = self.admin.post("/v1/vms", body)["id"]
        self.operate(vm, "launch")
        return vm

    def operate(self, vm, kind, **params):
        operation = self.admin.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": params})["id"]
        done = self.admin.get(f"/v1/operations/{operation}?wait=30")
        self.assertEqual(done["state"], "succeeded", f"{kind}: {done}")
        return done

    def test_a_slot_that_comes_again_in_another_shape(self):
        """Deleted by force while hardware had its pages: the old one leaves hardware before the new one is used."""
        for arch in ARCHES:
            with self.subTest(arch=arch):
                self.agents = [Agent(self, "slot-" + arch, arch)]
                agent = self.agents[0]
                agent.start()
                agent.wait_ready()
                slots = [{"slot": 0, "base_gfn": 0, "pages": 64}, {"slot": 1, "base_gfn": 4096, "pages": 32}]
                vm = self.admin.post("/v1/vms", {"host": agent.host, "arch": arch, "slots": slots})["id"]
                self.operate(vm, "launch")
                self.assertEqual(self.admin.delete(f"/v1/vms/{vm}/slots/1?force=true").status, 204)
                self.assertEqual(self.admin.put(f"/v1/vms/{vm}/slots/1", {"base_gfn": 4096, "pages": 128}).status, 201)
                self.operate(vm, "page_in", gfn=4096, count=128)
                self.assertEqual(self.admin.get("/v1/vms/" + vm)["pages"]["secure_resident"], 192)
                self.operate(vm, "terminate")
                self.assertEqual(self.admin.get(f"/v1/hosts/{agent.host}")["frames_bound"], 0)
                self.assertEqual(agent.stop(), 0)
                self.covered(agent)

    def test_each_operation_on_each_architecture(self):
        for arch in ARCHES:
            with self.subTest(arch=arch):
                self.agents = [Agent(self, "ops-" + arch, arch)]
                agent = self.agents[0]
                agent.start()
                agent.wait_ready()
                vm = self.launched(agent, 2048)
                expect = {"secure_resident": 2048, "secure_out": 0, "shared": 0, "normal": 0}
                self.assertEqual(self.admin.get("/v1/vms/" + vm)["pages"], expect)
                for kind, params, pages in (("share", {"gfn": 100, "count": 600}, (1448, 0, 600)),
                                            ("page_out", {"gfn": 1024, "count": 512}, (936, 512, 600)),
                                            ("unshare", {"gfn": 100, "count": 300, "resident": True}, (1236, 512, 300)),
                                            ("unshare", {"gfn": 400, "count": 100}, (1236, 612, 200)),
                                            ("page_in", {"gfn": 1024, "count": 256}, (1492, 356, 200)),
                                            ("page_in", {"gfn": 400, "count": 1}, (1493, 355, 200))):
                    self.operate(vm, kind, **params)
                    expect.update(zip(("secure_resident", "secure_out", "shared"), pages))
                    self.assertEqual(self.admin.get("/v1/vms/" + vm)["pages"], expect, f"{arch}: {kind} {params}")
                self.covered_running(agent)
                self.operate(vm, "terminate")
                self.assertEqual(self.admin.get(f"/v1/hosts/{agent.host}")["frames_bound"], 0)
                self.assertEqual(agent.stop(), 0)
                self.covered(agent)

    def covered_running(self, agent):
        """The same agent again, without a crash between: nothing may differ at all."""
        self.assertEqual(agent.stop(), 0)
        found = agent.compare()
        self.assertEqual((found["opened"], found["violations"]), (0, 0), found["text"])
        agent.start()
        agent.wait_ready()

    def test_an_agent_that_dies_in_any_call_of_hardware(self):
        """Before hardware was asked, and after it did it but before the ledger heard."""
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        rng, died, left = random.Random(seed), {}, 0
        print(f"{self.id()}: SEED={seed}", flush=True)
        self.agents = [Agent(self, "c")]
        agent = self.agents[0]
        for op in VM_CALLS + PAGE_CALLS:
            for how in ("crash", "crash-after"):
                for nth in (1, 2) if op in VM_CALLS else (1, 2, rng.randint(3, 12)):
                    agent.start("--load", f"{LOAD},seed={rng.randrange(1000)}", "--fault", f"{op}:{nth}:{how}")
                    try:
                        self.assertEqual(agent.process.wait(1.5), 137, agent.log()[-2000:])
                        died[op] = died.get(op, 0) + 1
                    except subprocess.TimeoutExpired:  # this load does not call it so often
                        agent.kill()
                    with self.subTest(fault=f"{op}:{nth}:{how}", seed=seed):
                        left += self.covered(agent)
        agent.start()
        self.quiet()
        print(f"{self.id()}: died in {died}; {left} differences")
        self.assertGreaterEqual(set(died), {"create_vm", "vm_event", "reserve", "page_in", "page_out", "share", "unshare"})
        self.assertGreater(left, 3, "no crash left a difference: the test has no teeth")

    def test_a_page_that_the_ledger_does_not_cover_is_a_violation(self):
        """Somebody else's batch releases a frame that hardware still has: what all tests here rely on to be seen."""
        self.agents = [Agent(self, "e")]
        agent = self.agents[0]
        agent.start("--load", LOAD)
        resident, end = [], time.monotonic() + 15
        while not resident and time.monotonic() < end:
            for vm in self.admin.items(f"/v1/vms?host={agent.host}&state=secure"):
                resident += [(vm["id"], r["gfn"]) for r in self.admin.items(f"/v1/vms/{vm['id']}/gfns") if r["resident"]]
        agent.kill()
        host = self.admin.get("/v1/hosts/" + agent.host)
        vm, gfn = next((v, g) for v, g in resident if self.admin.get(f"/v1/vms/{v}/gfns?gfn={g}&count=1")["items"][0]["resident"])
        item = {"vm": vm, "op": "page_out", "gfn": gfn, "count": 1}
        answer = self.admin.post(f"/v1/hosts/{agent.host}/transitions",
                                 {"boot_id": host["boot_id"], "epoch": host["epoch"], "items": [item]})
        self.assertEqual(answer["accepted"], 1, answer)
        self.assertEqual(agent.compare()["violations"], 1)
        self.covered(agent)
        agent.start()
        self.quiet()

    def test_hardware_that_fails_in_any_call(self):
        self.agents = [Agent(self, "d")]
        agent = self.agents[0]
        faults = ",".join(f"{op}:{nth}" for op in VM_CALLS + PAGE_CALLS for nth in (2, 5, 11))
        succeeded = self.admin.get("/v1/summary")["operations"]["succeeded"]
        agent.start("--load", LOAD, "--fault", faults)
        end = time.monotonic() + 15
        while self.admin.get("/v1/summary")["operations"]["succeeded"] < succeeded + 100:
            self.assertLess(time.monotonic(), end, "the load does not go on after faults: " + agent.log()[-2000:])
            time.sleep(0.05)
        self.assertIsNone(agent.process.poll(), agent.log()[-2000:])
        self.assertIn("injected fault", agent.log())
        self.assertEqual(agent.stop(), 0)
        self.covered(agent)
        agent.start()
        self.quiet()


if __name__ == "__main__":
    unittest.main()
