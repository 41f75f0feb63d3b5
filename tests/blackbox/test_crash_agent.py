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
PAGE_CALLS = ("reserve", "page_in", "page_out", "share", "unshare")
RESYNCED = re.compile(r'msg="resynced" detail="([^"]*)"')


class Agent:
    """One agent and the machine that it leaves behind."""

    def __init__(self, case, name):
        self.case, self.server, self.host, self.process = case, case.server, new_id(), None
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
                "--frames", "4096", *more]

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
        end = time.monotonic() + 20
        while self.active() and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual(self.active(), 0, "an operation that nobody finishes")
        for agent in self.agents:
            self.assertEqual(agent.stop(), 0, agent.log()[-2000:])
            found = agent.compare()
            self.assertEqual((found["differences"], found["violations"], found["opened"]), (0, 0, 0), found["text"])
        slugs = [v["problem"]["type"] for v in self.admin.items("/v1/violations?limit=1000")]
        self.assertNotIn("/problems/frame-conflict", slugs)
        return self.audit()

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
