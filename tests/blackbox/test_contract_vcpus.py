"""vCPUs of protected VMs: what the host may see is shown, what it may not see gets nowhere (law L10)."""
import json
import os
import subprocess
import unittest

from harness import BUILD, OTHER_BOOT, Case, Host, Server, Vm, new_id, until
from test_crash_agent import Agent
from test_slow_disk import SmallFiles

SECRET = 0x5EC2E75EC2E7
WORD = (1 << 64) - 1
MODE, ENDIAN, PAGE = 0x1F, 3 << 24, WORD & ~0xFFF
DATA_REGISTER, SYSTEM_REGISTER, VALID = 0x1F << 16, 0x1F << 5, 1 << 24
# What the field's documents say that each exit shows: x registers, then other items and their bits.
EXITS = {
    "interrupt": (0, {"ESR_EL2": WORD}),
    "SError": (0, {"ESR_EL2": WORD}),
    "illegal state": (0, {"ESR_EL2": WORD}),
    "WFI, WFE": (0, {"ESR_EL2": WORD & ~SYSTEM_REGISTER, "pstate": MODE | 0x100}),
    "HVC CPU_ON": (2, {"ESR_EL2": WORD}),
    "HVC CPU_OFF": (1, {"ESR_EL2": WORD}),
    "HVC CPU_SUSPEND": (1, {"ESR_EL2": WORD}),
    "HVC SYSTEM_OFF": (1, {"ESR_EL2": WORD}),
    "HVC SYSTEM_RESET": (1, {"ESR_EL2": WORD}),
    "HVC SYSTEM_RESET2": (3, {"ESR_EL2": WORD}),
    "HVC AFFINITY_INFO": (3, {"ESR_EL2": WORD}),
    "HVC MEM_RELINQUISH": (4, {"ESR_EL2": WORD}),
    "HVC device power": (3, {"ESR_EL2": WORD}),
    "system register, read": (0, {"ESR_EL2": WORD & ~SYSTEM_REGISTER, "pstate": MODE}),
    "system register, write": (1, {"ESR_EL2": WORD & ~SYSTEM_REGISTER, "pstate": MODE}),
    "instruction abort": (0, {"ESR_EL2": WORD, "fault IPA": PAGE}),
    "data abort, load": (0, {"ESR_EL2": WORD & ~DATA_REGISTER, "pstate": MODE, "SCTLR": ENDIAN, "fault IPA": PAGE,
                             "fault VA": 0xFFF}),
    "data abort, store": (1, {"ESR_EL2": WORD & ~DATA_REGISTER, "pstate": MODE, "SCTLR": ENDIAN, "fault IPA": PAGE,
                              "fault VA": 0xFFF}),
    "data abort, not decodable": (0, {"ESR_EL2": WORD & ~VALID, "pstate": MODE, "SCTLR": ENDIAN, "fault IPA": PAGE,
                                      "fault VA": 0xFFF}),
    "data abort, MEM_SHARE": (0, {"ESR_EL2": 0x90000047, "fault IPA": PAGE}),
}


def shown(name):
    """Item -> the bits that the host may see of it."""
    registers, others = EXITS[name]
    return {**{f"x{i}": WORD for i in range(registers)}, **others}


class Vcpus(Case):
    def setUp(self):
        super().setUp()
        self.host = Host(self.admin, arches=("pkvm", "pef"))
        self.agent = self.as_token("agent", self.host.id)
        self.vm = Vm(self.host, arch="pkvm", state="secure")

    def path(self, n=0, vm=None):
        return f"{(vm or self.vm).path}/vcpus/{n}"

    def report(self, exit, items=None, n=0, vm=None, client=None, **more):
        body = {**self.host.current(), "exit": exit, "items": items or {}, **more}
        return (client or self.agent).put(self.path(n, vm), body)

    def vcpu(self, n=0, vm=None):
        answer = self.assert_ok(self.admin.get(self.path(n, vm)))
        self.assertEqual(answer.headers["etag"], f'"{answer["revision"]}"')
        return answer.json

    def items(self, n=0, vm=None):
        return {i["name"]: i for i in self.vcpu(n, vm)["items"]}

    def test_a_vcpu_without_a_report_shows_the_table_and_no_value(self):
        got = self.vcpu(7)
        self.assertEqual((got["vm"], got["vcpu"], got["protected"]), (self.vm.id, 7, True))
        self.assertNotIn("exit", got)
        self.assertNotIn("time", got)
        names = [i["name"] for i in got["items"]]
        self.assertEqual(len(names), len(set(names)))
        for name in ("x0", "x30", "sp", "pc", "pstate", "TTBR0", "APGAKEYHI", "ESR_EL2", "fault IPA", "v0-v31"):
            self.assertIn(name, names)
        for item in got["items"]:
            self.assertEqual(set(item), {"name", "visible", "why"}, item)
            self.assertFalse(item["visible"])
            self.assertTrue(item["why"])

    def test_each_exit_shows_its_items_and_no_other_is_ever_taken(self):
        names = [i["name"] for i in self.vcpu()["items"]]
        for exit in EXITS:
            may = shown(exit)
            revision = self.assert_ok(self.report(exit, {"ESR_EL2": f'0x{may["ESR_EL2"]:x}'}))["revision"]
            before = self.admin.get(f"/v1/events?after={revision}&limit=1000").json
            for name in names:
                if name in may:
                    continue
                with self.subTest(exit=exit, item=name):
                    answer = self.report(exit, {name: f"0x{SECRET:x}"})
                    self.assert_problem(answer, 400, "invalid-request", pointer="/items/" + name)
                    self.assertNotIn(f"{SECRET:x}", answer.raw.decode())
            self.assertEqual(self.admin.get(f"/v1/events?after={revision}&limit=1000").json, before)
            full = {name: f"0x{bits:x}" for name, bits in may.items()}
            self.assert_ok(self.report(exit, full))
            items = self.items()
            self.assertEqual({n for n, i in items.items() if i["visible"]}, set(may), exit)
            self.assertEqual({n: i["value"] for n, i in items.items() if "value" in i}, full, exit)
            self.assertTrue(all(i["why"] for i in items.values()))
            for name, bits in may.items():
                self.assertEqual(int(items[name].get("bits", f"0x{WORD:x}"), 16), bits, (exit, name))
        for text in (self.admin.get("/v1/events?limit=1000").raw, self.admin.get(self.path()).raw,
                     self.admin.get("/v1/violations").raw, self.server.log().encode()):
            self.assertNotIn(f"{SECRET:x}".encode(), text)
            self.assertNotIn(str(SECRET).encode(), text)

    def test_hidden_bits_of_a_visible_item_are_refused(self):
        for exit in EXITS:
            for name, bits in shown(exit).items():
                for bit in (b for b in range(64) if not bits >> b & 1):
                    answer = self.report(exit, {name: f"0x{1 << bit:x}"})
                    self.assert_problem(answer, 400, "invalid-request", pointer="/items/" + name)
        self.assertNotIn("exit", self.vcpu())

    def test_a_store_shows_as_much_as_it_stores(self):
        for size, width in enumerate((8, 16, 32, 64)):
            esr, most = f"0x{0x93000047 | size << 22:x}", (1 << width) - 1
            self.assert_ok(self.report("data abort, store", {"ESR_EL2": esr, "x0": f"0x{most:x}"}))
            self.assertEqual(self.items()["x0"]["value"], f"0x{most:x}")
            if width < 64:
                answer = self.report("data abort, store", {"x0": f"0x{most + 1:x}", "ESR_EL2": esr})
                self.assert_problem(answer, 400, "invalid-request", pointer="/items/x0")
        self.assert_ok(self.report("data abort, store", {"ESR_EL2": "0x93000047"}))
        self.assertEqual(self.items()["x0"].get("bits"), "0xff")

    def test_what_cannot_be_decoded_is_not_shown_whatever_it_is_called(self):
        """Decodability is the syndrome's valid bit, not the name that the agent gives the exit."""
        for secret in (1, 0xFF, SECRET):
            for esr in ({}, {"ESR_EL2": 0}, {"ESR_EL2": "0x92000047"}, {"ESR_EL2": "0x92c00047"},
                        {"ESR_EL2": "0x93c00007"}):  # a load, by its syndrome
                for items in ({**esr, "x0": f"0x{secret:x}"}, {"x0": f"0x{secret:x}", **esr}):
                    with self.subTest(items=items):
                        answer = self.report("data abort, store", items)
                        self.assert_problem(answer, 400, "invalid-request", pointer="/items/x0")
                        self.assertIn("ISV", answer["detail"])
        self.assertNotIn("exit", self.vcpu())
        self.assert_ok(self.report("data abort, store", {"ESR_EL2": "0x92c00047", "pstate": 5}))
        x0 = self.items()["x0"]
        self.assertEqual((x0["visible"], set(x0)), (False, {"name", "visible", "why"}))
        for wrong in (0, 0x80000047, 0x7):
            answer = self.report("data abort, MEM_SHARE", {"ESR_EL2": wrong})
            self.assert_problem(answer, 400, "invalid-request", pointer="/items/ESR_EL2")
            self.assertIn("always 0x90000047", answer["detail"])

    def test_the_next_exit_replaces_the_last_and_the_same_one_changes_nothing(self):
        first = self.assert_ok(self.report("HVC CPU_ON", {"x0": "0xc4000003", "x1": 1}))
        self.assertEqual(first.headers["etag"], f'"{first["revision"]}"')
        self.assertEqual(self.report("HVC CPU_ON", {"x1": 1, "x0": "0xc4000003"}).json, first.json)
        self.assertEqual(self.vcpu(), first.json)
        second = self.assert_ok(self.report("interrupt"))
        self.assertGreater(second["revision"], first["revision"])
        self.assertTrue(all("value" not in i for i in self.vcpu()["items"]))
        self.assertEqual([(e["vcpu"], e["exit"], e["items"]) for e in self.exits()],
                         [(0, "HVC CPU_ON", {"x0": "0xc4000003", "x1": "0x1"}), (0, "interrupt", {})])

    def exits(self):
        after, found = 0, []
        while True:
            page = self.admin.get(f"/v1/events?after={after}&limit=1000")
            if not page["items"]:
                return found
            found += [e for e in page["items"] if e["type"] == "vcpu.exit" and e["vm"] == self.vm.id]
            after = page["next"]

    def test_vcpus_are_apart(self):
        self.assert_ok(self.report("HVC CPU_OFF", {"x0": 1}, n=511))
        self.assert_ok(self.report("HVC CPU_OFF", {"x0": 2}, n=0))
        self.assert_ok(self.report("HVC CPU_OFF", {"x0": 3}, n=100))
        self.assertEqual([self.items(n)["x0"].get("value") for n in (0, 1, 100, 511)], ["0x2", None, "0x3", "0x1"])

    def test_what_is_not_there_is_404(self):
        other = Vm(self.host, arch="pef", state="secure")
        for path, slug, word in ((self.path(512), "not-found", "512"), (self.path("x"), "not-found", "x"),
                                 (self.path("18446744073709551616"), "not-found", "512"),
                                 (self.path(0, other), "not-found", "pef"),
                                 (f"/v1/vms/{new_id()}/vcpus/0", "vm-not-found", "no VM")):
            with self.subTest(path=path):
                for answer in (self.admin.get(path),
                               self.agent.put(path, {**self.host.current(), "exit": "interrupt", "items": {}})):
                    self.assert_problem(answer, 404, slug)
                    self.assertIn(word, answer["detail"])

    def test_only_the_agent_of_its_host_reports_and_only_the_current_one(self):
        other = Host(self.admin, name="another", arches=("pkvm",))
        for client in (self.admin, self.as_token("operator"), self.as_token("viewer"), self.as_token("agent", other.id)):
            self.assert_problem(self.report("interrupt", client=client), 403, "forbidden")
            if client is not self.admin:
                self.assert_ok(client.get(self.path()))
        self.assert_problem(self.report("interrupt", boot_id=OTHER_BOOT), 409, "host-fenced")
        self.assert_problem(self.report("interrupt", epoch=self.host.epoch + 1), 409, "host-fenced")
        self.assertNotIn("exit", self.vcpu())

    def test_malformed_reports_are_refused(self):
        current = self.host.current()
        good = {**current, "exit": "HVC CPU_ON", "items": {"x0": 1}}
        for body, pointer in (({**good, "exit": "any other HVC"}, "/exit"), ({**good, "exit": "nothing"}, "/exit"),
                              ({**good, "exit": 1}, "/exit"), ({**good, "items": []}, "/items"),
                              ({**good, "items": {"x0": "12"}}, "/items/x0"), ({**good, "items": {"x0": "0x"}}, "/items/x0"),
                              ({**good, "items": {"x0": "0x1G"}}, "/items/x0"), ({**good, "items": {"x0": -1}}, "/items/x0"),
                              ({**good, "items": {"x0": "0x12345678123456789"}}, "/items/x0"),
                              ({**good, "items": {"x0": None}}, "/items/x0"), ({**good, "items": {"what": 1}}, "/items/what"),
                              ({**good, "more": 1}, "/more"), ({**current, "items": {}}, "/exit")):
            with self.subTest(body=body):
                self.assert_problem(self.agent.put(self.path(), body), 400, "invalid-request", pointer=pointer)
        self.assert_problem(self.admin.get(self.path() + "?x=1"), 400, "invalid-request")
        self.assertNotIn("exit", self.vcpu())

    def test_if_match_is_kept(self):
        first = self.assert_ok(self.report("interrupt"))
        body = {**self.host.current(), "exit": "SError", "items": {}}
        self.assert_problem(self.agent.put(self.path(), body, headers={"If-Match": '"1"'}), 412, "stale")
        self.assert_ok(self.agent.put(self.path(), body, headers={"If-Match": first.headers["etag"]}))

    def test_reports_end_when_the_vm_falls_back_to_normal(self):
        def reboot():
            self.host.boot = OTHER_BOOT
            self.host.register()

        def fence():
            self.assert_ok(self.admin.post(self.host.path + "/fence", {"force": True}))
            self.host.register()

        for fall in (lambda: self.vm.must("terminate"), reboot, fence):
            self.assert_ok(self.report("HVC CPU_OFF", {"x0": 5}, n=3))
            fall()
            self.assertTrue(all(not i["visible"] and "value" not in i for i in self.vcpu(3)["items"]))
            self.assertIs(self.vcpu(3)["protected"], False)
            self.assert_problem(self.report("interrupt"), 409, "vm-transition", state="normal")
            self.vm.must("init_start")
            self.vm.must("init_done")
            self.assertNotIn("exit", self.vcpu(3))
        self.assert_ok(self.report("interrupt", n=1))
        self.assertNotIn("exit", self.vcpu(3))

    def test_a_vm_that_is_not_protected_is_not_called_so(self):
        plain = Vm(self.host, arch="pkvm")
        self.assertIs(self.vcpu(0, plain)["protected"], False)
        self.assertEqual({i["why"] for i in self.vcpu(0, plain)["items"]},
                         {"the VM is not protected: nothing of its vCPUs is kept"})
        plain.must("init_start")
        self.assertIs(self.vcpu(0, plain)["protected"], True)
        plain.must("init_abort")
        self.assertIs(self.vcpu(0, plain)["protected"], False)

    def test_the_command_line_shows_it_too(self):
        self.assert_ok(self.report("HVC CPU_OFF", {"x0": 5}, n=2))

        def run(*args):
            return subprocess.run([os.path.join(BUILD, "pagewarden"), *args], capture_output=True, text=True, timeout=60,
                                  env={**os.environ, "PAGEWARDEN_URL": f"http://127.0.0.1:{self.server.port}",
                                       "PAGEWARDEN_TOKEN": self.server.token})
        done = run("vcpu", self.vm.id, "2")
        self.assertEqual(done.returncode, 0, done)
        rows = {row[0]: row[1:] for row in (line.split("\t") for line in done.stdout.splitlines())}
        self.assertEqual(rows["x0"][:2], ["yes", "0x5"])
        self.assertEqual(rows["pc"][:2], ["no", "-"])
        self.assertEqual(json.loads(run("--json", "vcpu", self.vm.id, "2").stdout), self.vcpu(2))
        self.assertEqual(run("vcpu", self.vm.id, "512").returncode, 4)
        self.assertEqual(run("vcpu", self.vm.id, "x").returncode, 2)

    def test_a_vm_that_comes_again_under_the_same_id_has_no_reports(self):
        self.assert_ok(self.report("HVC CPU_OFF", {"x0": 5}))
        self.vm.must("terminate")
        self.assertEqual(self.admin.delete(self.vm.path).status, 204)
        again = Vm(self.host, arch="pkvm", state="secure", vm=self.vm.id)
        self.assertNotIn("exit", self.vcpu(0, again))


class Reporting(Case):
    """What an agent of an emulated pKVM host tells by itself."""

    def start(self, name, *flags, arch="pkvm"):
        self.agent = Agent(self, name, arch)
        self.agent.start(*flags)
        self.agent.wait_ready()
        slots = [{"slot": 0, "base_gfn": 16, "pages": 64}]
        self.vm = self.admin.post("/v1/vms", {"host": self.agent.host, "arch": arch, "slots": slots})["id"]
        self.operate("launch", resident=32)

    def operate(self, kind, **params):
        operation = self.admin.post(f"/v1/vms/{self.vm}/operations", {"kind": kind, "params": params})["id"]
        done = self.admin.get(f"/v1/operations/{operation}?wait=30")
        self.assertEqual(done["state"], "succeeded", f"{kind}: {done}\n{self.agent.log()[-2000:]}")

    def expect(self, exit, values, n=0):
        """That exit, these values, and of nothing else more than a reason."""
        got = self.admin.get(f"/v1/vms/{self.vm}/vcpus/{n}").json
        self.assertEqual(got["exit"], exit)
        self.assertEqual({i["name"]: int(i["value"], 16) for i in got["items"] if "value" in i}, values)
        self.assertEqual({i["name"] for i in got["items"] if i["visible"]}, set(values))
        self.assertEqual(set(values), set(shown(exit)))
        self.assertGreater(len(got["items"]), 80)
        self.assertTrue(all(i["why"] for i in got["items"]))

    def exits(self):
        return [e for e in self.admin.get("/v1/events?limit=1000")["items"]
                if e["type"] == "vcpu.exit" and e["vm"] == self.vm]

    def test_an_agent_tells_what_its_host_sees(self):
        self.start("telling")
        self.expect("WFI, WFE", {"ESR_EL2": 0x6000000, "pstate": 0x105})
        share = {"ESR_EL2": 0x90000047, "fault IPA": 27 << 12}
        touched = {"ESR_EL2": 0x92000007, "pstate": 5, "SCTLR": 0, "fault VA": 0, "fault IPA": 17 << 12}
        gave_up = {"ESR_EL2": 0x5A000000, "x0": 0xC6000009, "x1": 17 << 12, "x2": 0, "x3": 0}
        for kind, params, exit, values in (
                ("share", {"gfn": 20, "count": 8}, "data abort, MEM_SHARE", share),
                ("page_out", {"gfn": 16, "count": 2}, "HVC MEM_RELINQUISH", gave_up),
                ("page_in", {"gfn": 16, "count": 2}, "data abort, not decodable", touched),
                ("unshare", {"gfn": 20, "count": 4}, "HVC MEM_RELINQUISH", {**gave_up, "x1": 23 << 12})):
            with self.subTest(kind=kind):
                for _ in range(2):  # said again it is no exit, and no report
                    self.operate(kind, **params)
                    self.expect(exit, values)
        self.assertEqual(len(self.exits()), 5)
        self.assertNotIn("exit", self.admin.get(f"/v1/vms/{self.vm}/vcpus/1").json)

    def test_a_plain_vm_is_not_protected(self):
        self.start("plain")
        self.operate("terminate")
        self.operate("launch", plain=True)
        got = self.admin.get(f"/v1/vms/{self.vm}/vcpus/0").json
        self.assertIs(got["protected"], False)
        self.assertNotIn("exit", got)

    def test_a_vm_that_is_launched_again_is_told_of_again(self):
        self.start("again")
        for _ in range(2):
            self.operate("terminate")
            self.assertNotIn("exit", self.admin.get(f"/v1/vms/{self.vm}/vcpus/0").json)
            self.operate("launch", resident=32)
            self.expect("WFI, WFE", {"ESR_EL2": 0x6000000, "pstate": 0x105})

    def test_a_next_agent_goes_on(self):
        self.start("next")
        self.agent.kill()
        self.agent.start()
        self.agent.wait_ready()
        self.operate("page_out", gfn=16, count=1)
        self.expect("HVC MEM_RELINQUISH", {"ESR_EL2": 0x5A000000, "x0": 0xC6000009, "x1": 16 << 12, "x2": 0, "x3": 0})

    def test_a_report_that_fails_fails_nothing_else(self):
        self.start("failing", "--fault", "last_exit:1")
        self.assertNotIn("exit", self.admin.get(f"/v1/vms/{self.vm}/vcpus/0").json)
        self.operate("page_in", gfn=60, count=4)
        self.expect("data abort, not decodable",
                    {"ESR_EL2": 0x92000007, "pstate": 5, "SCTLR": 0, "fault VA": 0, "fault IPA": 63 << 12})

    def test_other_architectures_tell_nothing(self):
        self.start("other", arch="cca")
        self.operate("share", gfn=20, count=8)
        self.assertEqual(self.exits(), [])
        self.assertNotIn("vCPU", self.agent.log())


class Restart(unittest.TestCase):
    """Acknowledged reports survive a crash (from the journal) and a clean stop (from the picture); ended ones stay away."""

    def test_reports_survive_both_ways(self):
        server = Server()
        self.addCleanup(server.close)
        admin = server.client()
        host = Host(admin, arches=("pkvm",))
        secret = admin.post("/v1/tokens", {"role": "agent", "host": host.id, "name": "a"})["secret"]
        vms = [Vm(host, arch="pkvm", state="secure") for _ in range(3)]
        gone = Vm(host, arch="pkvm", state="secure")
        agent = server.client(secret)
        paths = [f"{vm.path}/vcpus/{n}" for vm in [*vms, gone] for n in (0, 4)]
        for i, path in enumerate(paths):
            body = {**host.current(), "exit": "HVC CPU_ON", "items": {"x0": f"0x{WORD:x}", "x1": i}}
            self.assertEqual(agent.put(path, body).status, 200)
        vms[1].must("terminate")
        before = [admin.get(path).json for path in paths[:-2]]
        self.assertEqual([("exit" in b) for b in before], [True, True, False, False, True, True])
        for again in (server.crash, server.restart, server.crash):
            gone.client.close()
            agent.close()
            if again == server.restart:
                gone.client = server.client()
                gone.must("terminate")
                self.assertEqual(gone.client.delete(gone.path).status, 204)
            again()
            admin.close()
            admin = server.client()
            self.assertEqual([admin.get(path).json for path in paths[:-2]], before)
        agent = server.client(secret)
        body = {**host.current(), "exit": "interrupt", "items": {}}
        self.assertEqual(agent.put(paths[0], body).status, 200)
        server.restart()
        after = server.client()
        self.assertEqual(after.get(paths[0])["exit"], "interrupt")
        self.assertEqual([after.get(path).json for path in paths[1:-2]], before[1:])
        self.assertEqual(after.get(paths[-1]).slug, "vm-not-found")
        after.close()

    def test_nothing_hidden_is_on_disk_or_in_the_log(self):
        needle, visible = "5ec2e75ec2e7f00d", "abadcafeabad"
        server = Server("--log-level", "debug")
        self.addCleanup(server.close)
        admin = server.client()
        host = Host(admin, arches=("pkvm",))
        agent = server.client(admin.post("/v1/tokens", {"role": "agent", "host": host.id, "name": "a"})["secret"])
        path = Vm(host, arch="pkvm", state="secure").path + "/vcpus/0"
        names = [i["name"] for i in admin.get(path)["items"]]
        for exit in EXITS:
            esr = "0x92c00047" if exit == "data abort, store" else "0x90000047"
            for name in names:
                if name == "ESR_EL2" or (shown(exit).get(name) == WORD and exit != "data abort, store"):
                    continue
                body = {**host.current(), "exit": exit, "items": {"ESR_EL2": esr, name: "0x" + needle}}
                self.assertEqual(agent.put(path, body).status, 400, (exit, name))
        body = {**host.current(), "exit": "HVC CPU_OFF", "items": {"x0": "0x" + visible}}
        self.assertEqual(agent.put(path, body).status, 200)

        def kept(text):
            found = []
            for at, _, files in os.walk(server.folder):
                for name in files:
                    with open(os.path.join(at, name), "rb") as f:
                        found += [name] if text.encode() in f.read() else []
            return found
        for again in (server.crash, server.restart, lambda: None):
            self.assertEqual(kept(needle) + kept(str(int(needle, 16))), [])
            self.assertNotEqual(kept(visible), [], "the search finds what is there")
            again()
        admin.close()
        agent.close()


class Refused(unittest.TestCase):
    """What the disk refuses has not happened: a first report, another one, the end of the VM."""

    def test_a_report_that_the_disk_refused_is_taken_back(self):
        server = SmallFiles()
        self.addCleanup(server.close)
        admin = server.client()
        host = Host(admin, arches=("pkvm",))
        secret = admin.post("/v1/tokens", {"role": "agent", "host": host.id, "name": "a"})["secret"]
        agent = server.client(secret)
        vm = Vm(host, arch="pkvm", state="secure")
        path = vm.path + "/vcpus/"
        on, off = ({**host.current(), "exit": name, "items": {"x0": 1}} for name in ("HVC CPU_ON", "HVC CPU_OFF"))

        def refused(change):
            before = [admin.get(f"{path}{n}").json for n in range(4)]
            server.refuse()
            answer = change()
            self.assertEqual((answer.status, answer.slug), (503, "storage"), answer)
            server.accept()
            self.assertTrue(until(lambda: admin.get("/readyz").status == 200, 15))
            self.assertEqual([admin.get(f"{path}{n}").json for n in range(4)], before)

        refused(lambda: agent.put(path + "1", on))
        self.assertEqual(agent.put(path + "1", on).status, 200)
        refused(lambda: agent.put(path + "1", off))
        for n in (0, 3, 2):
            refused(lambda n=n: agent.put(f"{path}{n}", on))
            self.assertEqual(agent.put(f"{path}{n}", off).status, 200)
        refused(lambda: vm.event("terminate"))
        self.assertEqual(admin.get(path + "1")["exit"], "HVC CPU_ON")
        vm.must("terminate")
        refused(lambda: admin.delete(vm.path))
        self.assertNotIn("exit", admin.get(path + "1").json)
        admin.close()
        agent.close()


if __name__ == "__main__":
    unittest.main()
