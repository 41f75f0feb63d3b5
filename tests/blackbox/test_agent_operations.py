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


if __name__ == "__main__":
    unittest.main()
