"""An architecture's own operations as items, and its own states beside the law's, on SNP."""
import contextlib
import os
import sqlite3
import unittest

from harness import OTHER_BOOT, Case, Host, Vm


class Arch(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin, frames=1000, arches=("snp", "tdx", "kvm"))
        self.agent = self.as_token("agent", self.host.id)
        self.vm = Vm(self.host, arch="snp", state="secure")

    def send(self, *items, **more):
        """As the host's agent."""
        return self.host.send(*items, client=self.agent, **more)

    def arch_state(self, gfn, vm=None):
        return (vm or self.vm).runs(gfn, 1)[0]["arch_state"]


class Chain(Arch):
    def test_a_page_is_assigned_then_accepted_then_given_back(self):
        vm = self.vm
        self.assertEqual(self.arch_state(5), "Paged-Out")
        self.accepted(self.send(vm.item("snp.rmpupdate", 5, 3, 100)))
        self.assertEqual(vm.runs(5, 3), [{"gfn": 5, "count": 3, "state": "secure", "resident": True,
                                          "arch_state": "Guest-Invalid", "frame": {"pool": "local", "pfn": 100}}])
        self.accepted(self.send(vm.item("snp.pvalidate", 6)))
        self.assertEqual([(r["gfn"], r["count"], r["arch_state"]) for r in vm.runs(5, 3)],
                         [(5, 1, "Guest-Invalid"), (6, 1, "Guest-Valid"), (7, 1, "Guest-Invalid")])
        self.assertEqual([(f["pfn"], f["count"], f["gfn"], f["arch_state"]) for f in self.host.frames(100, 3)],
                         [(100, 1, 5, "Guest-Invalid"), (101, 1, 6, "Guest-Valid"), (102, 1, 7, "Guest-Invalid")])
        self.accepted(self.send(vm.item("snp.rmpupdate", 5, 3)))
        self.assertEqual(vm.page(6), ("shared", False, None))
        self.assertEqual(self.arch_state(6), "Hypervisor")
        self.assertEqual(self.host.frames(), [])

    def test_all_forms_of_an_item_carry_them(self):
        vm = {"vm": self.vm.id}
        self.accepted(self.send(
            {**vm, "op": "snp.rmpupdate", "runs": [[0, 2, 10], [8, 1, 20]], "pool": "local"},
            {**vm, "op": "snp.rmpupdate", "gfns": [30, 32], "pfns": [40, 39], "pool": "local"},
            {**vm, "op": "snp.pvalidate", "runs": [[0, 1], [8, 1]]},
            {**vm, "op": "snp.pvalidate", "gfns": [32]}))
        self.assertEqual([self.arch_state(g) for g in (0, 1, 8, 30, 32)],
                         ["Guest-Valid", "Guest-Invalid", "Guest-Valid", "Guest-Invalid", "Guest-Valid"])

    def test_operations_of_the_law_leave_pages_at_rest(self):
        self.accepted(self.send(self.vm.item("snp.rmpupdate", 0, 2, 10), self.vm.item("page_out", 0),
                                self.vm.item("page_in", 0, 1, 10)))
        self.assertEqual((self.arch_state(0), self.arch_state(1)), ("Guest-Valid", "Guest-Invalid"))

    def test_history_and_states_outlive_crash_and_restart(self):
        server = self.server
        for pfn, end in ((10, server.crash), (20, server.restart), (30, server.crash)):
            with self.subTest(pfn=pfn, end=end.__name__):
                vm = Vm(self.host, arch="snp", state="secure")
                self.accepted(self.send(vm.item("snp.rmpupdate", 5, 3, pfn), vm.item("snp.pvalidate", 6)))
                before, frames = vm.runs(), self.host.frames()
                end()
                self.assertEqual((vm.runs(), self.host.frames()), (before, frames))
                self.assertEqual(self.arch_state(5, vm), "Guest-Invalid")
                touched = [e for e in self.admin.items(vm.path + "/history?gfn=6") if "op" in e]
                self.assertEqual([e["op"] for e in touched], ["snp.pvalidate", "snp.rmpupdate"])
                self.assertEqual([e["type"] for e in touched], ["gfn.snp.pvalidate", "gfn.snp.rmpupdate"])

    def test_the_database_spells_states_out(self):
        self.accepted(self.send(self.vm.item("snp.rmpupdate", 5, 3, 50), self.vm.item("snp.pvalidate", 7)))
        self.server.restart()
        with contextlib.closing(sqlite3.connect(os.path.join(self.server.data, "ledger.db"))) as db:
            rows = db.execute("SELECT gfn, count, pfn, arch, arch_state FROM gfn_map WHERE vm = ? AND resident"
                              " ORDER BY gfn", (self.vm.id,)).fetchall()
        self.assertEqual(rows, [(5, 2, 50, "snp", "Guest-Invalid"), (7, 1, 52, "snp", None)])

    def test_what_changes_nothing_is_ok_and_not_told(self):
        self.accepted(self.send(self.vm.item("snp.rmpupdate", 0, 1, 10), self.vm.item("snp.pvalidate", 0)))
        revision = self.vm.get()["revision"]
        self.accepted(self.send(self.vm.item("snp.pvalidate", 0)))
        self.assertEqual(self.vm.get()["revision"], revision)

    def test_a_reboot_takes_every_state_back(self):
        self.accepted(self.send(self.vm.item("snp.rmpupdate", 0, 4, 10)))
        self.host.boot = OTHER_BOOT
        self.host.register()
        self.assertEqual(self.arch_state(0), "Hypervisor")
        self.assertEqual(self.host.frames(), [])

    def test_digests_tell_states_apart(self):
        def digest():
            return self.admin.items(self.vm.path + "/digests")[0]["digest"]
        self.accepted(self.send(self.vm.item("page_in", 0, 1, 10)))
        rest = digest()
        self.accepted(self.send(self.vm.item("snp.pvalidate_rescind", 0)))
        self.assertNotEqual(digest(), rest)
        self.accepted(self.send(self.vm.item("snp.pvalidate", 0)))
        self.assertEqual(digest(), rest)

    def test_vms_without_states_of_their_own_show_none(self):
        vm = Vm(self.host, arch="kvm", state="secure")
        self.accepted(self.send(vm.item("page_in", 0, 1, 10)))
        self.assertTrue(all("arch_state" not in run for run in vm.runs() + self.host.frames()))


class VmStates(Arch):
    """The VM's own state, as its architecture has it."""

    def test_events_and_steps_move_it(self):
        host = Host(self.admin, arches=("cca", "snp", "tdx", "pef", "pkvm", "kvm"))
        for arch, first, step, then, last in (
                ("cca", "NEW", "cca.realm_activate", "ACTIVE", "ACTIVE"),
                ("snp", "LAUNCH", "snp.launch_finish", "RUNNING", "RUNNING"),
                ("tdx", "INITIALIZED", "tdx.mr.finalize", "RUNNABLE", "RUNNABLE"),
                ("pkvm", "CREATED", None, "CREATED", "CREATED"),
                ("pef", "KVMPPC_SECURE_INIT_START", None, "KVMPPC_SECURE_INIT_START", "KVMPPC_SECURE_INIT_DONE"),
                ("kvm", None, None, None, None)):
            with self.subTest(arch=arch):
                vm = Vm(host, arch=arch)
                self.assertNotIn("arch_state", vm.get())
                self.assertEqual(vm.must("init_start").json.get("arch_state"), first)
                if step:
                    before = vm.get()["revision"]
                    agent = self.as_token("agent", host.id)
                    self.accepted(host.send({"vm": vm.id, "op": step}, client=agent))
                    now = vm.get()
                    self.assertEqual((now["state"], now["arch_state"]), ("transient", then))
                    self.assertGreater(now["revision"], before)
                    told = [e for e in self.admin.items("/v1/events?limit=1000&after=0") if e["type"] == "vm.arch_state"]
                    self.assertEqual([(e["op"], e["vm"], e["host"], e["state"], e["arch_state"]) for e in told[-1:]],
                                     [(step, vm.id, host.id, "transient", then)])
                    self.refused(host.send({"vm": vm.id, "op": step}, client=agent), "vm-transition",
                                 state="transient", arch_state=then, op=step)
                self.assertEqual(vm.must("init_done").json.get("arch_state"), last)
                self.assertNotIn("arch_state", vm.must("terminate").json)

    def test_the_wrong_state_is_refused_before_any_page_is_looked_at(self):
        host = Host(self.admin, arches=("cca", "snp", "tdx", "pkvm"))
        agent = self.as_token("agent", host.id)
        for arch, state, shown, op, framed in (
                ("cca", "secure", "ACTIVE", "cca.rtt_init_ripas", False),
                ("cca", "secure", "ACTIVE", "cca.data_create", True),
                ("cca", "secure", "ACTIVE", "cca.populate", True),
                ("cca", "transient", "NEW", "cca.rtt_set_ripas_empty", False),
                ("cca", "transient", "NEW", "cca.rtt_set_ripas_ram_cd", False),
                ("snp", "secure", "RUNNING", "snp.launch_update", True),
                ("snp", "secure", "RUNNING", "snp.launch_update", False),
                ("snp", "transient", "LAUNCH", "snp.pvalidate", False),
                ("tdx", "secure", "RUNNABLE", "tdx.mem.page.add", True),
                ("tdx", "transient", "INITIALIZED", "tdx.mem.page.aug", True),
                ("pkvm", "secure", "CREATED", "pkvm.host_reclaim_page", False)):
            with self.subTest(op=op, state=state):
                vm = Vm(host, arch=arch, state=state)
                item = vm.item(op, 1 << 30, 1, 5 if framed else None)  # in no slot, too: the VM comes first
                problem = self.refused(host.send(item, client=agent), "vm-transition", op=op, state=state,
                                       arch_state=shown)
                self.assertRegex(problem["detail"], rf"^{op} of a VM that is {shown} \({state}\): .+")
                recorded = self.admin.get(f"/v1/violations?vm={vm.id}")["items"][0]
                self.assertEqual((recorded["op"], recorded["problem"]["arch_state"]), (op, shown))

    def test_a_dying_vm_gives_pages_back_and_takes_none(self):
        host = Host(self.admin, arches=("pkvm",))
        agent = self.as_token("agent", host.id)
        vm = Vm(host, arch="pkvm", state="transient")
        self.accepted(host.send(vm.item("pkvm.host_donate_guest", 0, 4, 10), client=agent))
        self.accepted(host.send({"vm": vm.id, "op": "pkvm.start_teardown_vm"}, client=agent))
        self.assertEqual(vm.get()["arch_state"], "DYING")
        self.refused(host.send(vm.item("pkvm.host_donate_guest", 8, 1, 20), client=agent), "vm-transition")
        self.accepted(host.send(vm.item("pkvm.host_reclaim_page", 0, 2), client=agent))
        self.assertEqual([(r["pfn"], r["count"]) for r in host.frames()], [(12, 2)])
        self.assert_problem(vm.event("init_done"), 409, "vm-transition", state="transient", event="init_done")
        vm.must("init_abort")
        self.assertEqual(host.frames(), [])

    def test_it_outlives_crash_and_restart(self):
        host = Host(self.admin, arches=("cca",))
        agent = self.as_token("agent", host.id)
        for end in (self.server.crash, self.server.restart, self.server.crash):
            with self.subTest(end=end.__name__):
                new, active = Vm(host, arch="cca", state="transient"), Vm(host, arch="cca", state="transient")
                off = Vm(host, arch="cca", state="secure")
                self.accepted(host.send({"vm": active.id, "op": "cca.realm_activate"},
                                        {"vm": off.id, "op": "cca.psci_system_off"}, client=agent))
                before = [vm.get() for vm in (new, active, off)]
                self.assertEqual([vm["arch_state"] for vm in before], ["NEW", "ACTIVE", "SYSTEM_OFF"])
                end()
                self.assertEqual([vm.get() for vm in (new, active, off)], before)
        with contextlib.closing(sqlite3.connect(os.path.join(self.server.data, "ledger.db"))) as db:
            self.assertTrue(db.execute("SELECT 1 FROM vm WHERE arch_state = 'SYSTEM_OFF'").fetchall())

    def test_a_step_is_the_agents_and_names_no_pages(self):
        step = {"vm": Vm(self.host, arch="tdx", state="transient").id, "op": "tdx.mr.finalize"}
        self.assert_problem(self.host.send(step), 403, "forbidden")
        self.refused(self.send({**step, "vm": self.vm.id}), "arch-unsupported")
        self.refused(self.send({**step, "vm": Vm(self.host, arch="tdx").id}), "vm-transition", state="normal")
        for more, pointer in (({"gfn": 0, "count": 1}, "/items/0/gfn"), ({"runs": [[0, 1]]}, "/items/0/runs"),
                              ({"gfns": [1]}, "/items/0/gfns"), ({"pool": "local"}, "/items/0/pool")):
            self.assert_problem(self.send({**step, **more}), 400, "invalid-request", pointer=pointer)
        answer = self.send(self.vm.item("snp.rmpupdate", 0, 1, 10), step, {**step}, atomic=True)
        self.assert_problem(answer, 409, "batch-rejected")
        self.assertEqual(self.host.frames(), [], "the step and the page were both undone")
        self.accepted(self.send(step))


class Refused(Arch):
    def test_hardware_that_says_yes_to_a_double_assignment_is_refused_and_recorded(self):
        other = Vm(self.host, arch="snp", state="secure")
        self.accepted(self.send(other.item("snp.rmpupdate", 20, 4, 100), other.item("snp.pvalidate", 22)))
        before = other.runs()
        problem = self.refused(self.send(self.vm.item("snp.rmpupdate", 0, 10, 98)), "frame-conflict",
                               conflict_frames=4)
        self.assertEqual(problem["conflicts"],
                         [{"pool": "local", "pfn": 100, "count": 4, "vm": other.id, "gfn": 20}])
        self.assertEqual((other.runs(), self.vm.page(2)), (before, ("secure", False, None)))
        recorded = self.admin.get(f"/v1/violations?vm={self.vm.id}")["items"][0]
        self.assertEqual((recorded["op"], recorded["host"]), ("snp.rmpupdate", self.host.id))
        self.check_problem(recorded["problem"], "frame-conflict", conflict_frames=4)
        event = [e for e in self.admin.items("/v1/events?limit=1000&after=0") if e["type"] == "violation"][-1]
        self.assertEqual(event["op"], "snp.rmpupdate")

    def test_an_error_cell_names_both_states_and_the_rule(self):
        self.accepted(self.send(self.vm.item("snp.rmpupdate_immutable", 7, 1, 10)))
        problem = self.refused(self.send(self.vm.item("snp.pvalidate", 7)), "gfn-transition", gfn=7, state="secure",
                               resident=True, op="snp.pvalidate", arch_state="Pre-Guest")
        self.assertRegex(problem["detail"], r"^snp.pvalidate of GFN 7, which is Pre-Guest \(secure and resident\): .+")
        recorded = self.admin.get(f"/v1/violations?vm={self.vm.id}")["items"][0]
        self.assertEqual((recorded["op"], recorded["problem"]["arch_state"]), ("snp.pvalidate", "Pre-Guest"))
        problem = self.refused(self.send(self.vm.item("page_in", 7, 1, 11)), "gfn-transition", op="page_in")
        self.assertNotIn("arch_state", problem)

    def test_a_refused_item_leaves_an_atomic_batch_undone(self):
        answer = self.send(self.vm.item("snp.rmpupdate", 0, 4, 10), self.vm.item("snp.pvalidate", 0, 2),
                           self.vm.item("snp.pvalidate", 9), atomic=True)
        self.assert_problem(answer, 409, "batch-rejected")
        self.assertEqual((self.vm.page(0), self.host.frames()), (("secure", False, None), []))
        self.assertEqual(self.arch_state(0), "Paged-Out")

    def test_an_operation_of_another_architecture(self):
        tdx = Vm(self.host, arch="tdx", state="secure")
        problem = self.refused(self.send(tdx.item("snp.rmpupdate", 0, 1, 10)), "arch-unsupported")
        self.assertIn("snp.rmpupdate", problem["detail"])
        self.refused(self.send(Vm(self.host, arch="tdx").item("snp.pvalidate")), "arch-unsupported")
        self.refused(self.send(Vm(self.host, arch="kvm", state="secure").item("snp.pvalidate")), "arch-unsupported")
        self.refused(self.send(Vm(self.host, arch="snp").item("snp.pvalidate")), "vm-transition",
                     op="snp.pvalidate", state="normal")

    def test_only_the_agent_may_say_so(self):
        good, arch = self.vm.item("share", 0), self.vm.item("snp.rmpupdate", 1, 1, 10)
        answer = self.host.send(good, arch)
        self.assert_problem(answer, 403, "forbidden")
        self.assertIn("items/1", answer["detail"])
        self.assertIn("snp.rmpupdate", answer["detail"])
        self.assertEqual(self.vm.page(0), ("secure", False, None), "nothing of the request was done")
        elsewhere = self.as_token("agent", Host(self.admin, arches=("snp",)).id)
        self.assert_problem(self.host.send(arch, client=elsewhere), 403, "forbidden")
        self.accepted(self.host.send(good))

    def test_unknown_operations_and_frames_that_do_not_fit(self):
        for item, pointer in ((self.vm.item("snp.rmpsteal"), "/items/0/op"),
                              (self.vm.item("sgx.eadd"), "/items/0/op"),
                              (self.vm.item("snp."), "/items/0/op"),
                              (self.vm.item("SNP.RMPUPDATE"), "/items/0/op"),
                              (self.vm.item("snp.pvalidate", 0, 1, 10), "/items/0/frame"),
                              (self.vm.item("snp.swap_in", 0), "/items/0/frame")):
            with self.subTest(item=item):
                answer = self.send(item)
                self.assert_problem(answer, 400, "invalid-request", pointer=pointer)


if __name__ == "__main__":
    unittest.main()
