"""An operator can see every change of an emulated SEV-SNP host's RMP: in the agent's log, and as counts."""
import os
import re
import time
import unittest

from harness import Case
from test_crash_agent import Agent

LINE = re.compile(r'msg="RMP transition" detail="op=(\S+) frame=(\d+) count=(\d+) from=(\S+) to=(\S+) '
                  r'from_asid=(\d+) to_asid=(\d+) from_gfn=(\d+) to_gfn=(\d+)"')
SAMPLE = re.compile(r'pagewarden_rmp_transitions_total\{host="([^"]+)",from="([^"]+)",to="([^"]+)"\} (\d+)')


class Tracing(Case):
    def operate(self, vm, kind, **params):
        operation = self.admin.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": params})["id"]
        done = self.admin.get(f"/v1/operations/{operation}?wait=30")
        self.assertEqual(done["state"], "succeeded", f"{kind}: {done}\n{self.agent.log()[-2000:]}")

    def start(self, name, *flags, arch="snp"):
        self.agent = Agent(self, name, arch)
        self.metrics = os.path.join(self.agent.folder, "rmp.prom")
        self.agent.start(*flags)
        self.agent.wait_ready()
        slots = [{"slot": 0, "base_gfn": 0, "pages": 1024}]
        return self.admin.post("/v1/vms", {"host": self.agent.host, "arch": arch, "slots": slots})["id"]

    def samples(self):
        if not os.path.exists(self.metrics):
            return {}
        with open(self.metrics, encoding="ascii") as f:
            lines = f.read().splitlines()
        found = {}
        for line in lines:
            if not line.startswith("#"):
                host, old, new, count = SAMPLE.fullmatch(line).groups()
                self.assertEqual(host, self.agent.host)
                found[old, new] = int(count)
        self.assertEqual(len(found) + 2, len(lines))
        return found

    def test_the_log_has_each_step_and_the_counts_are_its_totals(self):
        vm = self.start("traced", "--log-level", "debug", "--metrics", os.path.join(self.server.folder, "traced", "rmp.prom"))
        self.operate(vm, "launch", resident=600)
        self.operate(vm, "page_out", gfn=0, count=40)
        self.operate(vm, "page_in", gfn=0, count=40)
        self.operate(vm, "share", gfn=100, count=4)
        self.operate(vm, "terminate")
        self.assertEqual(self.agent.stop(), 0)
        frames, totals, ops, moves = {}, {}, set(), set()
        for line in LINE.findall(self.agent.log()):
            op, old, new = line[0], line[3], line[4]
            first, count, old_asid, new_asid, old_gfn, new_gfn = (int(line[i]) for i in (1, 2, 5, 6, 7, 8))
            ops.add(op)
            moves.add((old, new))
            totals[old, new] = totals.get((old, new), 0) + count
            for i in range(count):
                state, asid, gfn = frames.get(first + i, ("Hypervisor", 0, 0))
                self.assertEqual((state, asid), (old, old_asid), line)
                if asid:
                    self.assertEqual(gfn, old_gfn + i, line)
                frames[first + i] = (new, new_asid, new_gfn + i)
        self.assertLessEqual({"SNP_INIT", "SNP_GCTX_CREATE", "SNP_LAUNCH_UPDATE", "SNP_SWAP_OUT", "SNP_SWAP_IN", "SNP_MD_INIT",
                              "SNP_DECOMMISSION", "RMPUPDATE", "PSMASH"}, ops)
        self.assertLessEqual({("Firmware", "Context"), ("Context", "Firmware"), ("Firmware", "Metadata"),
                              ("Pre-Guest", "Guest-Valid"), ("Reclaim", "Hypervisor")}, moves)
        self.assertEqual({state for state, asid, _ in frames.values() if state != "Hypervisor"}, {"Firmware"})
        self.assertEqual(self.samples(), totals)

    def test_counts_go_to_the_file_while_the_agent_runs_and_without_a_log(self):
        vm = self.start("counted", "--metrics", os.path.join(self.server.folder, "counted", "rmp.prom"))
        self.operate(vm, "launch", resident=64)
        end = time.monotonic() + 30
        while self.samples().get(("Pre-Guest", "Guest-Valid")) != 65:  # and the VMSA page
            self.assertLess(time.monotonic(), end, self.samples())
            time.sleep(0.1)
        self.assertNotIn("RMP transition", self.agent.log())
        self.agent.kill()
        self.agent.start("--metrics", self.metrics)  # what the machine's file says is not done anew
        self.agent.wait_ready()
        self.assertEqual(self.agent.stop(), 0)
        self.assertEqual(os.path.getsize(self.metrics), 0)

    def test_a_file_that_cannot_be_written_is_said_once_and_disturbs_nothing(self):
        vm = self.start("unwritable", "--metrics", "/nonexistent/rmp.prom")
        self.operate(vm, "launch", resident=8)
        self.assertEqual(self.agent.stop(), 0)
        self.assertRegex(self.agent.log(), r'level=warning msg="metrics are not written" detail="/nonexistent/rmp.prom: No such')


if __name__ == "__main__":
    unittest.main()
