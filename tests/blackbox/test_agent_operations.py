"""Operations on real agents: every emulated machine, and real guests where this machine has KVM."""
import os
import subprocess
import time
import unittest

from harness import WAIT_S, Case
from test_crash_agent import AGENT, ARCHES, Agent


class KvmAgent(Agent):
    """An agent of real guests; it has no state beside its process."""

    def __init__(self, case, name):
        super().__init__(case, name, "kvm")

    def command(self, *more):
        return [AGENT, "--server", f"http://127.0.0.1:{self.server.port}", "--token-file", os.path.join(self.folder, "token"),
                "--host", self.host, "--backend", "kvm", *more]

    def is_there(self):
        """Registers, compares and ends; false where there is no KVM for us."""
        done = subprocess.run(self.command("--once"), capture_output=True, text=True, check=False, timeout=WAIT_S)
        if done.returncode and "KVM" not in done.stderr and "CAP_SYS_ADMIN" not in done.stderr:
            raise AssertionError(done.stderr)
        return done.returncode == 0


class OnAgents(Case):
    def each_agent(self):
        """A running agent of each architecture, and of kvm if there is one; each in its own subtest."""
        for arch in (*ARCHES, "kvm"):
            with self.subTest(arch=arch):
                agent = KvmAgent(self, "kvm-" + self.id()) if arch == "kvm" else Agent(self, f"{arch}-{self.id()}", arch)
                if arch == "kvm" and not agent.is_there():
                    continue
                agent.start()
                agent.wait_ready()
                yield agent
                self.assertEqual(self.admin.get(f"/v1/hosts/{agent.host}")["frames_bound"], 0, arch)
                self.assertEqual(agent.stop(), 0)
                if arch != "kvm":
                    found = agent.compare()
                    self.assertEqual((found["differences"], found["violations"], found["unrepaired"]), (0, 0, 0), found["text"])

    def vm(self, agent, *slots):
        slots = [{"slot": n, "base_gfn": base, "pages": pages} for n, (base, pages) in enumerate(slots or [(0, 64)])]
        made = self.admin.post("/v1/vms", {"host": agent.host, "arch": agent.arch, "slots": slots})
        return self.assert_ok(made, 201)["id"]

    def ask(self, vm, kind, **params):
        return self.admin.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": params})

    def ended(self, vm, kind, **params):
        """How an operation ended."""
        made = self.assert_ok(self.ask(vm, kind, **params), 202)
        return self.assert_ok(self.admin.get(f"/v1/operations/{made['id']}?wait=30")).json

    def operate(self, vm, kind, **params):
        done = self.ended(vm, kind, **params)
        self.assertEqual(done["state"], "succeeded", f"{kind} {params}: {done}")
        return done

    def pages(self, vm):
        counts = self.admin.get("/v1/vms/" + vm)["pages"]
        return counts["secure_resident"], counts["secure_out"], counts["shared"], counts["normal"]


class Operations(OnAgents):
    def test_a_plain_vm_runs_and_stays_normal(self):
        for agent in self.each_agent():
            vm = self.vm(agent)
            self.operate(vm, "launch", plain=True, guest={"rate": 200})
            self.assert_problem(self.ask(vm, "abort"), 409, "vm-transition", state="normal")
            time.sleep(0.3 if agent.arch == "kvm" else 0)  # its guest asks for conversions meanwhile
            self.operate(vm, "launch", plain=True)  # said again
            refused = self.ended(vm, "share", gfn=0, count=1)
            self.assertEqual((refused["state"], refused["problem"]["type"]), ("failed", "/problems/vm-transition"))
            self.assertEqual((self.admin.get("/v1/vms/" + vm)["state"], self.pages(vm)), ("normal", (0, 0, 0, 64)))
            self.assertEqual(self.admin.get(f"/v1/violations?host={agent.host}")["items"], [])
            self.operate(vm, "terminate")

    def test_a_launch_of_a_vm_that_runs_already_changes_nothing(self):
        for agent in self.each_agent():
            vm = self.vm(agent)
            self.operate(vm, "launch", resident=8, guest={"idle": True})
            self.operate(vm, "launch", plain=True)  # it runs already
            self.assertEqual(self.pages(vm), (8, 56, 0, 0))
            self.operate(vm, "terminate")


class PlainVms(OnAgents):
    def on_hardware(self, vm):
        return self.admin.get("/v1/vms/" + vm)["on_hardware"]

    def test_the_ledger_knows_whether_hardware_has_one(self):
        """An emulated machine outlives its agent; kvm's guests end with it."""
        for agent in self.each_agent():
            vm = self.vm(agent)
            self.assertFalse(self.on_hardware(vm))
            self.operate(vm, "launch", plain=True)
            self.assertTrue(self.on_hardware(vm))
            self.assert_problem(self.admin.delete("/v1/vms/" + vm), 409, "vm-busy")
            agent.kill()
            agent.start()
            agent.wait_ready()
            self.assertEqual(self.on_hardware(vm), agent.arch != "kvm")
            if agent.arch != "kvm":
                self.operate(vm, "terminate")
            self.assert_ok(self.admin.delete("/v1/vms/" + vm), 204)

    def test_one_that_runs_is_not_launched_as_another(self):
        """It would lose what it has in memory, and its launch could fail. Nor does a malformed launch end it."""
        for agent in self.each_agent():
            vm = self.vm(agent)
            self.operate(vm, "launch", plain=True, guest={"rate": 200})
            for params in ({}, {"resident": 4}, {"resident": 100000}):
                refused = self.ended(vm, "launch", **params)
                self.assertEqual((refused["state"], refused["problem"]["type"]), ("failed", "/problems/operation-state"), refused)
                self.assertIn("terminate it first", refused["problem"]["detail"])
                self.assertTrue(self.on_hardware(vm))
            self.assertEqual(self.admin.get("/v1/vms/" + vm)["state"], "normal")
            self.operate(vm, "terminate")
            self.operate(vm, "launch", resident=4, guest={"idle": True})
            self.operate(vm, "terminate")

    def test_a_launch_that_fails_leaves_none(self):
        for arch in ARCHES:
            agent = Agent(self, "fails-" + arch, arch)
            agent.start("--fault", "create_vm:1,run_vm:1")
            agent.wait_ready()
            vm = self.vm(agent)
            for params in ({"resident": 4}, {"plain": True}):
                self.assertEqual(self.ended(vm, "launch", **params)["state"], "failed")
                self.assertFalse(self.on_hardware(vm), params)
            self.assert_ok(self.admin.delete("/v1/vms/" + vm), 204)
            self.assertEqual(agent.stop(), 0)


class Plugging(OnAgents):
    """Memory that comes and goes while the VM runs."""

    MORE = {"slot": 5, "base_gfn": 4096, "pages": 32}

    def slots(self, vm):
        return [(s["slot"], s["base_gfn"], s["pages"]) for s in self.admin.get("/v1/vms/" + vm)["slots"]]

    def free(self, agent, vm):
        """Frames that the ledger says are bound are those of the VM."""
        return self.admin.get(f"/v1/hosts/{agent.host}")["frames_bound"] - self.pages(vm)[0]

    def test_what_can_never_be_resident_at_once_is_refused_before_anything_is_paged_out(self):
        """The pool has 4,096 frames; a page_in of more would page all others out, again and again."""
        for agent in self.each_agent():
            if agent.arch == "kvm":
                continue
            small, big = self.vm(agent, (0, 64)), self.vm(agent, (0, 8192))
            self.operate(small, "launch", resident=64)
            self.operate(big, "launch", resident=1)
            before = self.admin.get("/v1/summary")["revision"]
            for kind, params in (("page_in", {"gfn": 0, "count": 4097}), ("unshare", {"gfn": 0, "count": 4097, "resident": True})):
                failed = self.ended(big, kind, **params)
                self.assertEqual(failed["state"], "failed", failed)
                self.assertIn("4097", failed["problem"]["detail"])
                self.assertIn("4096", failed["problem"]["detail"])
                self.assertFalse(failed["problem"]["retryable"])
            never = self.vm(agent, (0, 8192))
            failed = self.ended(never, "launch", resident=4097)
            self.assertEqual(failed["state"], "failed", failed)
            self.assertIn("4096", failed["problem"]["detail"])
            self.assertEqual(self.pages(small)[:2], (64, 0))
            types = {e["type"] for e in self.admin.get(f"/v1/events?after={before}&host={agent.host}")["items"]}
            self.assertFalse(types & {"gfn.page_out", "gfn.page_in", "gfn.unshare"}, types)
            for vm in (small, big):
                self.operate(vm, "terminate")

    def test_a_slot_comes_and_goes(self):
        for agent in self.each_agent():
            vm = self.vm(agent, (0, 64), (1024, 64))
            self.operate(vm, "launch", resident=128, guest={"idle": True})
            for _ in range(2):
                self.operate(vm, "plug", **self.MORE)
                self.assertEqual((self.slots(vm), self.pages(vm)), ([(0, 0, 64), (1, 1024, 64), (5, 4096, 32)], (128, 32, 0, 0)))
                self.operate(vm, "plug", **self.MORE)  # it is there already
                self.operate(vm, "page_in", gfn=4096, count=16)
                self.operate(vm, "share", gfn=4112, count=8)
                self.assertEqual(self.pages(vm), (144, 8, 8, 0))
                self.operate(vm, "unplug", slot=5)
                self.assertEqual((self.slots(vm), self.pages(vm)), ([(0, 0, 64), (1, 1024, 64)], (128, 0, 0, 0)))
                self.assertEqual(self.free(agent, vm), 0)
            self.operate(vm, "unplug", slot=1)
            self.assertEqual((self.slots(vm), self.pages(vm)), ([(0, 0, 64)], (64, 0, 0, 0)))
            other = self.vm(agent, (0, 64))
            self.operate(other, "launch", resident=64, guest={"idle": True})  # takes frames that are free on hardware, too
            self.assertEqual(self.admin.get(f"/v1/violations?host={agent.host}")["items"], [])
            for one in (vm, other):
                self.operate(one, "terminate")
                self.assert_ok(self.admin.delete("/v1/vms/" + one), 204)

    def test_what_can_be_seen_is_refused_when_asked(self):
        for agent in self.each_agent():
            vm = self.vm(agent, (0, 64))
            self.assert_problem(self.ask(vm, "unplug", slot=7), 404, "slot-not-found")
            for params in ({"slot": 1, "base_gfn": 63, "pages": 2}, {"slot": 0, "base_gfn": 64, "pages": 2}):
                self.assert_problem(self.ask(vm, "plug", **params), 409, "slot-overlap")
            self.operate(vm, "plug", **self.MORE)  # no hardware has the VM yet
            self.operate(vm, "launch", resident=96, guest={"idle": True})
            self.assertEqual(self.pages(vm), (96, 0, 0, 0))
            self.operate(vm, "terminate")
            self.operate(vm, "unplug", slot=5)
            self.assertEqual(self.slots(vm), [(0, 0, 64)])

    def test_a_plug_that_hardware_refuses_leaves_no_slot(self):
        for arch in ARCHES:
            agent = Agent(self, f"refuses-{arch}", arch)
            agent.start("--fault", "map_slot:1")
            agent.wait_ready()
            vm = self.vm(agent)
            self.operate(vm, "launch", resident=8)
            failed = self.ended(vm, "plug", **self.MORE)
            self.assertEqual((failed["state"], self.slots(vm)), ("failed", [(0, 0, 64)]), failed)
            self.operate(vm, "plug", **self.MORE)
            self.operate(vm, "terminate")
            self.assertEqual(agent.stop(), 0)

    def test_an_unplug_that_hardware_refuses_takes_nothing(self):
        """A frame that firmware keeps: the slot stays whole, on both sides; the next attempt works."""
        for arch in ARCHES:
            agent = Agent(self, f"keeps-{arch}", arch)
            agent.start("--fault", "frame:5")
            agent.wait_ready()
            vm = self.vm(agent, (0, 64), (1024, 64))
            self.operate(vm, "launch", resident=128)
            failed = self.ended(vm, "unplug", slot=1)
            self.assertEqual((failed["state"], self.slots(vm), self.pages(vm)),
                             ("failed", [(0, 0, 64), (1, 1024, 64)], (128, 0, 0, 0)), failed)
            self.assertNotIn("leaving", self.admin.get("/v1/vms/" + vm)["slots"][1])
            self.operate(vm, "page_out", gfn=1024, count=1)
            self.operate(vm, "page_in", gfn=1024, count=1)
            self.operate(vm, "unplug", slot=1)
            self.assertEqual(self.pages(vm), (64, 0, 0, 0))
            self.operate(vm, "terminate")
            self.assertEqual(agent.stop(), 0)
            found = agent.compare()
            self.assertEqual((found["differences"], found["violations"]), (0, 0), found["text"])

    def test_wherever_the_agent_dies_the_next_one_ends_it(self):
        """kill -9 before and after hardware was asked."""
        for arch in ARCHES:
            for kind, fault in (("plug", "map_slot:1:crash"), ("plug", "map_slot:3:crash-after"),
                                ("unplug", "unmap_slot:1:crash"), ("unplug", "unmap_slot:1:crash-after")):
                with self.subTest(arch=arch, fault=fault):
                    agent = Agent(self, f"dies-{arch}-{fault.replace(':', '-')}", arch)
                    agent.start("--fault", fault)
                    agent.wait_ready()
                    vm = self.vm(agent, (0, 64), (1024, 64))
                    self.operate(vm, "launch", resident=128)
                    op = self.assert_ok(self.ask(vm, kind, **(self.MORE if kind == "plug" else {"slot": 1})), 202)["id"]
                    agent.process.wait(WAIT_S)
                    agent.start()
                    done = self.assert_ok(self.admin.get(f"/v1/operations/{op}?wait=30"))
                    self.assertEqual(done["state"], "succeeded", done)
                    wanted = [(0, 0, 64), (1, 1024, 64), (5, 4096, 32)] if kind == "plug" else [(0, 0, 64)]
                    self.assertEqual((self.slots(vm), self.free(agent, vm)), (wanted, 0))
                    self.operate(vm, "terminate")
                    self.assertEqual(agent.stop(), 0)
                    found = agent.compare()
                    self.assertEqual((found["differences"], found["violations"]), (0, 0), found["text"])


if __name__ == "__main__":
    unittest.main()
