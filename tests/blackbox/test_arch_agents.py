"""What an agent tells of its VM's own state: each emulated machine launches and ends one VM."""
import time
import unittest

from harness import WAIT_S, Case, new_id
from test_crash_agent import Agent

SEALED = {"snp": "snp.launch_finish", "tdx": "tdx.mr.finalize", "cca": "cca.realm_activate"}
ENDING = {"pkvm": "pkvm.start_teardown_vm"}


class ArchAgents(Case):
    def operation(self, vm, kind, params=None):
        made = self.assert_ok(self.admin.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": params or {}}), 202)
        end = time.monotonic() + WAIT_S
        while True:
            o = self.admin.get(f"/v1/operations/{made['id']}?wait=5")
            if o["state"] not in ("pending", "running"):
                self.assertEqual(o["state"], "succeeded", o)
                return
            self.assertLess(time.monotonic(), end, o)

    def steps(self, vm):
        return [(e["type"], e.get("op") or e.get("event"), e["state"], e.get("arch_state"))
                for e in self.admin.items("/v1/events?limit=1000&after=0")
                if e.get("vm") == vm and e["type"] in ("vm.arch_state", "vm.lifecycle")]

    def test_the_step_that_seals_a_vm_comes_before_init_done(self):
        for arch in ("snp", "tdx", "cca", "pef", "pkvm"):
            with self.subTest(arch=arch):
                agent, vm = Agent(self, arch, arch), new_id()
                agent.start()
                agent.wait_ready()
                self.assert_ok(self.admin.post("/v1/vms", {
                    "id": vm, "host": agent.host, "arch": arch,
                    "slots": [{"slot": 0, "base_gfn": 0, "pages": 256}]}), 201)
                self.operation(vm, "launch", {"resident": 100, "shared": [[200, 20]]})
                launched = self.admin.get("/v1/vms/" + vm)
                self.assertEqual((launched["state"], bool(launched["arch_state"])), ("secure", True))
                self.operation(vm, "unshare", {"gfn": 200, "count": 10, "resident": True})
                self.operation(vm, "page_out", {"gfn": 0, "count": 8})
                self.operation(vm, "page_in", {"gfn": 0, "count": 8})
                self.operation(vm, "terminate")
                steps = self.steps(vm)
                kinds = [("vm.lifecycle", "init_start"), ("vm.arch_state", SEALED.get(arch)),
                         ("vm.lifecycle", "init_done"), ("vm.arch_state", ENDING.get(arch)),
                         ("vm.lifecycle", "terminate")]
                self.assertEqual([(t, name) for t, name, _, _ in steps], [k for k in kinds if k[1]])
                self.assertEqual([s[2] for s in steps if s[0] == "vm.arch_state"],
                                 ["secure" if arch == "pkvm" else "transient"] if arch in {**SEALED, **ENDING} else [])
                self.assertEqual(self.admin.get(f"/v1/violations?vm={vm}")["items"], [])
                agent.kill()
                found = agent.compare()
                self.assertEqual((found["differences"], found["violations"]), (0, 0), found["text"])


if __name__ == "__main__":
    unittest.main()
