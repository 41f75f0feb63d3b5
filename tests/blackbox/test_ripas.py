"""CCA's RIPAS from end to end: what a launch says is no memory, what a guest gives up and asks for again, and that both
survive page_in, kill -9 and a restart, on hardware and in the ledger alike."""
import os
import random
import time
import unittest

from harness import WAIT_S, Case
from test_crash_agent import Agent

PAGES = 64


class Ripas(Case):
    flags = ("--checkpoint-seconds", "1")

    def agent(self, name, *more):
        agent = Agent(self, name, "cca")
        self.script = os.path.join(agent.folder, "script")
        agent.start("--guest-script", self.script, *more)
        agent.wait_ready()
        return agent

    def again(self, agent, *more):
        """Another agent for the machine that the last one left."""
        agent.start("--guest-script", self.script, *more)
        agent.wait_ready()

    def operate(self, vm, kind, state="succeeded", **params):
        answer = self.admin.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": params})
        self.assertEqual(answer.status, 202, answer)
        done = self.admin.get(f"/v1/operations/{answer['id']}?wait=30")
        self.assertEqual(done["state"], state, f"{kind}: {done}")
        return done

    def launched(self, agent, pages=PAGES, **params):
        slots = [{"slot": 0, "base_gfn": 0, "pages": pages}]
        vm = self.admin.post("/v1/vms", {"host": agent.host, "arch": "cca", "slots": slots})["id"]
        self.operate(vm, "launch", **params)
        return vm

    def states(self, vm):
        """What each page is: (state, resident, the architecture's state)."""
        pages = {}
        for run in self.admin.items(f"/v1/vms/{vm}/gfns?limit=1000"):
            for gfn in range(run["gfn"], run["gfn"] + run["count"]):
                pages[gfn] = (run["state"], run["resident"], run["arch_state"])
        return pages

    def bound(self, agent):
        return self.admin.get("/v1/hosts/" + agent.host)["frames_bound"]

    def asks(self, vm, gfn, count, value, *more):
        with open(self.script, "a", encoding="ascii") as f:
            f.write(" ".join((vm, "ripas", str(gfn), str(count), value, *more)) + "\n")

    def until(self, agent, what):
        end = time.monotonic() + WAIT_S
        while not what():
            self.assertLess(time.monotonic(), end, agent.log()[-3000:])
            self.assertIsNone(agent.process.poll(), agent.log()[-3000:])
            time.sleep(0.02)

    def served(self, agent, vm, gfn, count, value, *more):
        """The guest asks, and has its answer."""
        said = agent.log().count("a guest's RIPAS")
        self.asks(vm, gfn, count, value, *more)
        self.until(agent, lambda: agent.log().count("a guest's RIPAS") > said)

    def expect(self, vm, first, count, *state):
        pages = self.states(vm)
        for gfn in range(first, first + count):
            self.assertEqual(pages[gfn], state, f"GFN {gfn}")

    def equal(self, agent):
        """Nothing differs between the two, the architecture's states included."""
        found = agent.compare()
        self.assertEqual((found["differences"], found["opened"], found["violations"]), (0, 0, 0), found["text"])

    def test_a_launch_says_what_is_no_memory(self):
        agent = self.agent("launch")
        vm = self.launched(agent, resident=PAGES, shared=[[50, 4]],
                           ripas=[[8, 16, "EMPTY"], [12, 4, "RAM"], [52, 4, "EMPTY"]])
        self.expect(vm, 0, 8, "secure", True, "ASSIGNED/RAM")
        self.expect(vm, 8, 4, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 12, 4, "secure", True, "ASSIGNED/RAM")
        self.expect(vm, 16, 8, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 50, 2, "shared", False, "ASSIGNED_NS")
        self.expect(vm, 52, 2, "shared", False, "ASSIGNED_NS, UNASSIGNED/EMPTY")
        self.expect(vm, 54, 2, "secure", False, "UNASSIGNED/EMPTY")
        self.assertEqual(self.bound(agent), PAGES - 12 - 2 - 4)
        self.operate(vm, "page_in", gfn=8, count=8)  # DATA_CREATE_UNKNOWN
        self.expect(vm, 8, 4, "secure", True, "ASSIGNED/EMPTY")
        self.operate(vm, "unshare", gfn=50, count=4, resident=True)
        self.expect(vm, 50, 2, "secure", True, "ASSIGNED/RAM")
        self.expect(vm, 52, 2, "secure", True, "ASSIGNED/EMPTY")
        self.assertEqual(agent.stop(), 0)
        self.equal(agent)

    def test_what_the_guest_gives_up_is_the_hosts_again(self):
        agent = self.agent("gives-up")
        vm = self.launched(agent)
        self.operate(vm, "share", gfn=20, count=2)
        self.operate(vm, "page_out", gfn=24, count=2)
        self.served(agent, vm, 16, 16, "EMPTY")
        self.expect(vm, 16, 4, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 20, 2, "shared", False, "ASSIGNED_NS, UNASSIGNED/EMPTY")
        self.expect(vm, 22, 10, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 32, 32, "secure", True, "ASSIGNED/RAM")
        self.assertEqual(self.bound(agent), PAGES - 16)
        told = {e["op"] for e in self.admin.items(f"/v1/vms/{vm}/history?gfn=16&count=1") if "op" in e}
        self.assertLessEqual({"cca.rtt_set_ripas_empty_cd", "cca.data_destroy"}, told)
        other = self.launched(agent, resident=PAGES)  # the frames are to be had
        self.assertEqual(self.bound(agent), 2 * PAGES - 16)
        self.operate(vm, "page_in", gfn=16, count=4)
        self.operate(vm, "page_out", gfn=16, count=2)
        self.expect(vm, 16, 2, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 18, 2, "secure", True, "ASSIGNED/EMPTY")
        self.served(agent, vm, 16, 16, "RAM")
        self.expect(vm, 16, 2, "secure", False, "UNASSIGNED/RAM")
        self.expect(vm, 18, 2, "secure", True, "ASSIGNED/RAM")
        self.expect(vm, 20, 2, "shared", False, "ASSIGNED_NS")
        self.operate(vm, "page_in", gfn=22, count=10)
        self.expect(vm, 22, 10, "secure", True, "ASSIGNED/RAM")
        self.operate(vm, "terminate")
        self.operate(other, "terminate")
        self.assertEqual(self.bound(agent), 0)
        self.assertEqual(agent.stop(), 0)
        self.equal(agent)

    def test_the_host_goes_along_with_a_part(self):
        agent = self.agent("part")
        vm = self.launched(agent)
        self.served(agent, vm, 8, 8, "EMPTY", "accept=3")
        self.expect(vm, 8, 3, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 11, 5, "secure", True, "ASSIGNED/RAM")
        self.served(agent, vm, 11, 5, "EMPTY", "accept=0")
        self.expect(vm, 11, 5, "secure", True, "ASSIGNED/RAM")
        self.served(agent, vm, 8, 3, "RAM", "accept=1")
        self.expect(vm, 8, 1, "secure", False, "UNASSIGNED/RAM")
        self.expect(vm, 9, 2, "secure", False, "UNASSIGNED/EMPTY")
        self.served(agent, vm, 8, 8, "EMPTY", "keep")
        self.expect(vm, 8, 8, "secure", False, "UNASSIGNED/EMPTY")
        self.served(agent, vm, PAGES - 4, 8, "EMPTY")  # not all of it is a slot's
        self.assertIn("a guest's RIPAS failed", agent.log())
        self.expect(vm, PAGES - 4, 4, "secure", True, "ASSIGNED/RAM")
        self.assertEqual(agent.stop(), 0)
        self.equal(agent)

    def test_a_frame_that_sticks_stays_the_pages(self):
        """EL3 keeps a granule: the page is EMPTY, resident and owned, on hardware and in the ledger."""
        agent = self.agent("sticks", "--fault", "frame:2")
        vm = self.launched(agent)
        self.served(agent, vm, 8, 4, "EMPTY")
        self.assertIn("a guest's RIPAS failed", agent.log())
        self.expect(vm, 8, 4, "secure", True, "ASSIGNED/EMPTY")
        self.assertEqual(self.bound(agent), PAGES)
        self.operate(vm, "page_out", gfn=8, count=4)
        self.expect(vm, 8, 4, "secure", False, "UNASSIGNED/EMPTY")
        self.assertEqual(agent.stop(), 0)
        self.equal(agent)

    def test_kill_9_anywhere_between_guest_hardware_and_ledger(self):
        for n, fault in enumerate(("set_ripas:1:crash", "set_ripas:1:crash-after", "page_out:1:crash",
                                   "page_out:1:crash-after")):
            with self.subTest(fault=fault):
                agent = self.agent(f"kill-{n}")
                vm = self.launched(agent)
                self.served(agent, vm, 0, 4, "EMPTY")
                agent.kill()
                self.again(agent, "--fault", fault)
                self.expect(vm, 0, 4, "secure", False, "UNASSIGNED/EMPTY")
                self.asks(vm, 8, 8, "EMPTY")
                self.assertEqual(agent.process.wait(WAIT_S), 137, agent.log()[-2000:])
                found = agent.compare()
                self.assertEqual((found["violations"], found["unrepaired"]), (0, 0), found["text"])
                self.again(agent)
                self.served(agent, vm, 8, 8, "EMPTY")  # the guest asks again
                self.operate(vm, "page_in", gfn=8, count=4)
                agent.kill()
                self.equal(agent)
                self.expect(vm, 0, 4, "secure", False, "UNASSIGNED/EMPTY")
                self.expect(vm, 8, 4, "secure", True, "ASSIGNED/EMPTY")
                self.expect(vm, 12, 4, "secure", False, "UNASSIGNED/EMPTY")
                self.assertEqual(self.bound(agent), PAGES - 8)

    def test_kill_9_in_a_launch_that_leaves_pages_empty(self):
        for n, fault in enumerate(("set_ripas:1:crash-after", "set_ripas:2:crash-after", "vm_event:1:crash-after",
                                   "page_in:1:crash-after", "share:1:crash-after", "vm_event:2:crash-after")):
            with self.subTest(fault=fault):
                agent = self.agent(f"launch-{n}", "--fault", fault)
                slots = [{"slot": 0, "base_gfn": 0, "pages": PAGES}]
                vm = self.admin.post("/v1/vms", {"host": agent.host, "arch": "cca", "slots": slots})["id"]
                params = {"resident": 1.0, "shared": [[6, 4]], "ripas": [[8, 8, "EMPTY"]]}
                asked = self.admin.post(f"/v1/vms/{vm}/operations", {"kind": "launch", "params": params})
                self.assertEqual(asked.status, 202, asked)
                self.assertEqual(agent.process.wait(WAIT_S), 137, agent.log()[-2000:])
                found = agent.compare()
                self.assertEqual((found["violations"], found["unrepaired"]), (0, 0), found["text"])
                self.again(agent)
                done = self.admin.get(f"/v1/operations/{asked['id']}?wait=30")
                self.assertEqual(done["state"], "succeeded", f"{done} {agent.log()[-2000:]}")
                self.assertEqual(agent.stop(), 0)
                self.equal(agent)
                self.expect(vm, 8, 2, "shared", False, "ASSIGNED_NS, UNASSIGNED/EMPTY")
                self.expect(vm, 10, 6, "secure", False, "UNASSIGNED/EMPTY")
                self.expect(vm, 16, PAGES - 16, "secure", True, "ASSIGNED/RAM")

    def test_blocks_are_given_up_as_blocks(self):
        agent = self.agent("blocks")
        vm = self.launched(agent, 2048, ripas=[[0, 512, "EMPTY"]])
        self.operate(vm, "page_in", gfn=0, count=1024)
        self.expect(vm, 0, 512, "secure", True, "ASSIGNED/EMPTY")
        self.operate(vm, "page_out", gfn=0, count=512)
        self.served(agent, vm, 512, 1024, "EMPTY", "accept=700")
        self.expect(vm, 0, 1212, "secure", False, "UNASSIGNED/EMPTY")
        self.expect(vm, 1212, 836, "secure", True, "ASSIGNED/RAM")
        self.assertEqual(self.bound(agent), 836)
        self.assertEqual(agent.stop(), 0)
        self.equal(agent)

    def test_guests_operations_and_kills_at_random(self):
        """What the ledger shows as EMPTY is what the guest gave up last and had an answer for, whatever came between."""
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        rng, pages = random.Random(seed), 2048
        print(f"{self.id()}: SEED={seed}", flush=True)
        agent = self.agent("random")
        vm = self.launched(agent, pages, resident=0.5, ripas=[[100, 600, "EMPTY"]])
        empty = set(range(100, 700))
        for _ in range(40):
            gfn = rng.choice((rng.randrange(pages), rng.randrange(4) * 512))
            count = min(pages - gfn, rng.choice((1, 5, 512, 1024)))
            what = rng.choice(("EMPTY", "EMPTY", "RAM", "share", "unshare", "page_in", "page_out", "kill"))
            if what == "kill":
                agent.kill()
                self.again(agent)
            elif what in ("EMPTY", "RAM"):
                self.served(agent, vm, gfn, count, what)
                (empty.update if what == "EMPTY" else empty.difference_update)(range(gfn, gfn + count))
            else:  # page_out of a shared page is refused
                asked = self.admin.post(f"/v1/vms/{vm}/operations", {"kind": what, "params": {"gfn": gfn, "count": count}})
                done = self.admin.get(f"/v1/operations/{asked['id']}?wait=30")
                self.assertIn(done["state"], ("succeeded", "failed"), done)
        self.assertEqual({gfn for gfn, page in self.states(vm).items() if "EMPTY" in page[2]}, empty)
        self.assertEqual(self.bound(agent), sum(page[1] for page in self.states(vm).values()))
        self.assertNotIn("a guest's RIPAS failed", agent.log())
        self.assertEqual(agent.stop(), 0)
        self.equal(agent)


if __name__ == "__main__":
    unittest.main()
