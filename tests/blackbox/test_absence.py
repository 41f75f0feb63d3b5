"""L11: absence in the ledger proves nothing. Guests on hardware survive a ledger that does not show them: one restored
from an older backup, another host's, one that lost sight of them. They end on the ledger's own later record, or on an
operator's word.

Hardware is read with `--dump`, beside its agent.
"""
import os
import random
import shutil
import subprocess
import time
import unittest

from harness import BUILD, WAIT_S, Case, Host, Server, Vm, new_id
from test_crash_agent import ARCHES, Agent

PAGES = 256


def restore(server, backup):
    """The server is started again on an older copy of its files, as an operator would."""
    server.kill()
    for name in ("journal.db", "ledger.db"):
        for tail in ("", "-wal", "-shm"):
            if os.path.exists(os.path.join(server.data, name + tail)):
                os.unlink(os.path.join(server.data, name + tail))
        shutil.copy(os.path.join(backup, name), server.data)
    server.start()


class Fleet(Case):
    """Agents with real (emulated) machines, and what their hardware says."""

    flags = ("--checkpoint-seconds", "1")

    def agent(self, name, arch, *flags):
        agent = Agent(self, name, arch)
        agent.start(*flags)
        agent.wait_ready()
        return agent

    def guest(self, agent, pages=PAGES, **params):
        slots = [{"slot": 0, "base_gfn": 0, "pages": pages}]
        made = self.admin.post("/v1/vms", {"host": agent.host, "arch": agent.arch, "slots": slots})
        self.assertEqual(made.status, 201, made)
        self.operate(made["id"], "launch", resident=pages // 2, **params)
        return made["id"]

    def operate(self, vm, kind, state="succeeded", **params):
        asked = self.admin.post(f"/v1/vms/{vm}/operations", {"kind": kind, "params": params})
        self.assertEqual(asked.status, 202, asked)
        done = self.admin.get(f"/v1/operations/{asked['id']}?wait=30")
        self.assertEqual(done["state"], state, f"{kind}: {done}")
        return done

    def hardware(self, agent):
        """{vm: (state, {gfn: pfn})} of what the machine has."""
        done = subprocess.run(agent.command("--dump"), capture_output=True, text=True, check=True, timeout=WAIT_S)
        vms = {}
        for kind, *rest in (line.split("\t") for line in done.stdout.splitlines()):
            if kind == "vm":
                vms[rest[0]] = (rest[1], {})
            if kind == "run" and rest[3] == "resident":
                vms[rest[0]][1].update({int(rest[1]) + i: int(rest[4]) + i for i in range(int(rest[2]))})
        return vms

    def ledger(self, vm):
        """The same of one VM in the ledger; None: it has none."""
        answer = self.admin.get("/v1/vms/" + vm)
        if answer.status == 404:
            return None
        runs = [r for r in self.admin.items(f"/v1/vms/{vm}/gfns?limit=1000") if r["resident"]]
        return answer["state"], {r["gfn"] + i: r["frame"]["pfn"] + i for r in runs for i in range(r["count"])}

    def equal(self, agent, *vms):
        for vm in vms:
            self.eventually(lambda v=vm: self.assertEqual(self.ledger(v), self.hardware(agent).get(v), agent.log()[-3000:]))

    def eventually(self, check, seconds=20):
        end = time.monotonic() + seconds
        while True:
            try:
                return check()
            except AssertionError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def events(self, kind):
        return [e for e in self.all_events() if e["type"] == kind]

    def all_events(self):
        found, after = [], 0
        while True:
            answer = self.assert_ok(self.admin.get(f"/v1/events?after={after}&limit=1000"))
            found += answer["items"]
            if answer["next"] == after:
                return found
            after = answer["next"]

    def put_away(self, agent, pfn, count=1):
        """Quarantine of frames, in the name of the host's holder."""
        host = self.admin.get(f"/v1/hosts/{agent.host}")
        self.assert_ok(self.admin.post(f"/v1/hosts/{agent.host}/quarantine", {
            "boot_id": host["boot_id"], "epoch": host["epoch"],
            "items": [{"pool": "local", "pfn": pfn, "count": count, "reason": "a test's"}]}))

    def unknown(self, agent):
        return self.admin.items(f"/v1/unknown-vms?host={agent.host}")

    def violations(self, vm):
        return [v["problem"] for v in self.admin.items(f"/v1/violations?vm={vm}") if v["problem"]["type"] == "/problems/unknown-vm"]

    def restored(self, backup):
        restore(self.server, backup)
        self.admin.close()
        self.admin = self.server.client()


class Restored(Fleet):
    @classmethod
    def setUpClass(cls):
        pass

    def setUp(self):
        self.server = Server(*self.flags)
        self.addCleanup(self.server.close)
        super().setUp()

    def backup(self):
        return self.job("/v1/backups", {"name": "older"})["path"]

    def test_a_ledger_from_a_backup_learns_of_the_guests_that_run(self):
        """On five architectures at once: those of before, those of after, and frames that changed hands meanwhile."""
        agents = [self.agent("backup-" + arch, arch) for arch in ARCHES]
        before = {a: (self.guest(a), self.guest(a)) for a in agents}
        backup = self.backup()
        after = {}
        for agent, (kept, gone) in before.items():
            self.operate(gone, "terminate")
            self.assert_ok(self.admin.delete("/v1/vms/" + gone), 204)
            self.operate(kept, "share", gfn=8, count=16)
            self.operate(kept, "page_out", gfn=64, count=8)
            after[agent] = self.guest(agent, shared=[[0, 16]])  # on frames of the one that is gone
            self.operate(kept, "page_in", gfn=200, count=16)
        running = {a: self.hardware(a) for a in agents}
        self.restored(backup)
        for agent in agents:
            kept, gone = before[agent]
            self.equal(agent, kept, after[agent])
            self.assertEqual(self.hardware(agent), running[agent], "a guest was touched")
            self.eventually(lambda: self.assertEqual(self.ledger(gone)[0], "normal"))
            self.assertEqual(self.unknown(agent), [])
            reasons = {v["reason"] for v in self.violations(after[agent])}  # a dispute may be seen, and settled a moment later
            self.assertTrue({"absent"} <= reasons <= {"absent", "disputed"}, reasons)
        said = self.events("ledger.restored")
        self.assertEqual(len(said), 1, said)
        self.assertGreater(said[0]["revision_seen"], said[0]["ledger_revision"])
        adopted = [e["vm"] for e in self.events("vm.created") if e.get("adopted")]
        self.assertEqual(sorted(adopted), sorted(after.values()))
        for agent in agents:  # life goes on
            self.operate(after[agent], "page_out", gfn=100, count=4)
            self.operate(after[agent], "terminate")
            self.assertNotIn(after[agent], self.hardware(agent))
            self.assertEqual(agent.stop(), 0)
            found = agent.compare()
            self.assertEqual((found["differences"], found["violations"]), (0, 0), found["text"])

    def test_a_guest_that_began_after_the_backup_while_its_vm_was_known(self):
        """The older ledger has it in state normal: it was created before the backup and launched after it."""
        for arch in ("snp", "pef"):
            with self.subTest(arch=arch):
                agent = self.agent("normal-" + arch, arch)
                slots = [{"slot": 0, "base_gfn": 0, "pages": PAGES}]
                vm = self.admin.post("/v1/vms", {"host": agent.host, "arch": arch, "slots": slots})["id"]
                backup = self.job("/v1/backups", {"name": "known-" + arch})["path"]
                self.operate(vm, "launch", resident=100)
                running = self.hardware(agent)
                agent.kill()  # it remembers across its own death
                self.restored(backup)
                agent.start()
                agent.wait_ready()
                self.equal(agent, vm)
                self.assertEqual(self.hardware(agent), running)
                self.assertEqual([v["reason"] for v in self.violations(vm)], ["normal"])
                self.assertTrue([e for e in self.events("vm.lifecycle") if e["vm"] == vm and e.get("adopted")])
                agent.kill()

    def test_older_ledgers_again_and_again_under_load(self):
        """Restored while five machines are busy and an agent may die: when all is quiet, ledger and hardware are equal."""
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        rng = random.Random(seed)
        print(f"{self.id()}: SEED={seed}", flush=True)
        load = lambda: ("--load", f"vms=2,pages=1024,rate=100,seed={rng.randrange(1000)}")
        agents = [self.agent("load-" + arch, arch, *load()) for arch in ARCHES]
        for turn in range(4):
            time.sleep(rng.uniform(0.5, 1.5))
            path = self.job("/v1/backups", {"name": f"turn-{turn}"})["path"]
            time.sleep(rng.uniform(0.5, 1.5))
            victim = rng.choice([None, *agents])
            if victim:
                victim.kill()
            self.restored(path)
            if victim:
                victim.start(*load())
        for agent in agents:
            agent.wait_ready()
            self.assertEqual(agent.stop(), 0, agent.log()[-2000:])
            agent.start()
            agent.wait_ready()
        self.eventually(lambda: self.assertEqual(
            {k: v for k, v in self.admin.get("/v1/summary")["operations"].items() if k in ("pending", "running")},
            {"pending": 0, "running": 0}))
        self.assertEqual(self.admin.items("/v1/unknown-vms"), [])
        for agent in agents:
            self.equal(agent, *(vm for vm, (state, _) in self.hardware(agent).items() if state != "normal"))
            self.assertEqual(agent.stop(), 0, agent.log()[-2000:])
            found = agent.compare()
            self.assertEqual((found["differences"], found["violations"], found["disputed"]), (0, 0, 0), found["text"])

    def test_a_vm_made_anew_in_an_older_ledger_is_no_end(self):
        """Its creation is later, by number, than the ledger's last word on the guest; but that was another history."""
        agent, other = self.agent("anew", "tdx"), Host(self.admin)
        backup = self.backup()
        vm = self.guest(agent)
        word = self.admin.get("/v1/vms/" + vm)["revision"]
        for _ in range(200):
            Vm(other, slots=[])
        self.operate(vm, "share", gfn=3, count=1)
        running = self.hardware(agent)
        self.assertEqual(agent.stop(), 0)
        self.restored(backup)
        other.client = self.admin
        while self.admin.get("/v1/summary")["revision"] <= word:
            Vm(other, slots=[])
        made = self.admin.post("/v1/vms", {"id": vm, "host": agent.host, "arch": "tdx",
                                           "slots": [{"slot": 0, "base_gfn": 0, "pages": PAGES}]})
        self.assertGreater(made["ended"], word)
        agent.start()
        agent.wait_ready()
        self.assertEqual(self.hardware(agent), running)
        self.equal(agent, vm)
        self.assertEqual([v["reason"] for v in self.violations(vm)], ["normal"])
        self.assertEqual(len(self.events("ledger.restored")), 1)

    def test_frames_in_quarantine_meanwhile_are_disputed_and_stay(self):
        agent = self.agent("disputed", "snp")
        backup = self.backup()
        vm = self.guest(agent)
        running = self.hardware(agent)
        taken = sorted(running[vm][1].values())[10:14]
        agent.kill()
        self.restored(backup)
        self.put_away(agent, taken[0], len(taken))
        agent.start()
        agent.wait_ready()
        self.assertEqual(self.hardware(agent), running)
        state, pages = self.ledger(vm)
        self.assertEqual((state, len(pages)), ("secure", len(running[vm][1]) - len(taken)))
        report, = self.unknown(agent)
        self.assertEqual((report["vm"], report["reason"], report["disputed_pages"]), (vm, "disputed", len(taken)), report)
        self.assertEqual(self.admin.get("/v1/summary")["unknown_vms"], 1)
        self.assertIn(b"pagewarden_unknown_vms 1\n", self.admin.get("/metrics").raw)
        self.assertEqual([(r["pfn"], r["count"]) for r in report["disputed"]], [(taken[0], len(taken))])
        self.assertEqual({v["reason"] for v in self.violations(vm)}, {"absent", "disputed"})
        for again in (self.server.crash, self.server.restart):  # the report is kept like anything that was answered
            shown = self.admin.get("/v1/unknown-vms").raw
            agent.kill()
            again()
            self.admin.close()
            self.admin = self.server.client()
            self.assertEqual(self.admin.get("/v1/unknown-vms").raw, shown)
        self.assert_ok(self.admin.post(f"/v1/hosts/{agent.host}/quarantine/release", {"items": [
            {"pool": "local", "pfn": taken[0], "count": len(taken)}]}))
        agent.start()
        agent.wait_ready()
        self.equal(agent, vm)
        self.assertEqual(self.unknown(agent), [])


class Decisions(Fleet):
    """What an operator says of a VM that a host reports as unknown."""

    def lost(self, arch, name):
        """A guest whose VM the ledger has on another host."""
        agent = self.agent(name, arch)
        vm = self.guest(agent)
        agent.kill()
        host = self.admin.get("/v1/hosts/" + agent.host)
        self.assert_ok(self.admin.post(f"/v1/vms/{vm}/lifecycle",
                                       {"event": "terminate", "boot_id": host["boot_id"], "epoch": host["epoch"]}))
        self.assert_ok(self.admin.delete("/v1/vms/" + vm), 204)
        other = Host(self.admin, arches=(arch,))
        Vm(other, vm=vm, arch=arch)
        agent.start()
        agent.wait_ready()
        self.assertEqual([u["reason"] for u in self.unknown(agent)], ["elsewhere"])
        return agent, vm

    def command(self, *words):
        return subprocess.run([os.path.join(BUILD, "pagewarden"), "--url", f"http://127.0.0.1:{self.server.port}",
                               "--token", self.server.token, *words], capture_output=True, text=True, check=False,
                              timeout=WAIT_S)

    def test_end_ends_it_on_hardware_alone(self):
        for arch in ("snp", "cca"):
            with self.subTest(arch=arch):
                agent, vm = self.lost(arch, "end-" + arch)
                before = self.admin.get("/v1/vms/" + vm).raw
                shown = self.command("unknown", "--host", agent.host)
                self.assertIn(vm, shown.stdout)
                self.assertIn("elsewhere", shown.stdout)
                refused = self.command("end", vm)
                self.assertEqual(refused.returncode, 2, refused.stderr)
                self.assertIn("--yes", refused.stderr)
                self.assertIn(vm, self.hardware(agent))
                done = self.command("end", vm, "--yes", "--wait")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual((self.hardware(agent), self.unknown(agent)), ({}, []))
                self.assertEqual(self.admin.get("/v1/vms/" + vm).raw, before, "another host's VM")
                self.assert_problem(self.admin.post(f"/v1/vms/{vm}/operations", {"kind": "end"}), 409, "operation-state")

    def test_adopt_tries_again(self):
        agent, vm = self.lost("snp", "adopt")
        running = self.hardware(agent)
        failed = self.operate(vm, "adopt", state="failed")
        self.assertEqual(failed["problem"]["type"], "/problems/unknown-vm")
        self.assertIn("on host", failed["problem"]["detail"])
        self.assert_ok(self.admin.delete("/v1/vms/" + vm), 204)  # the other one goes: its end is later than our word ...
        agent.kill()
        with open(os.path.join(agent.folder, "machine", "vms-heard"), "w", encoding="ascii"):
            pass  # ... which is lost: what was never heard of is no evidence
        agent.start()
        agent.wait_ready()
        self.equal(agent, vm)
        self.assertEqual(self.hardware(agent), running)
        self.assertEqual(self.unknown(agent), [])

    def test_a_quarantine_that_is_over_lets_a_guest_be_adopted_in_whole(self):
        agent = self.agent("whole", "tdx")
        vm = self.guest(agent)
        running = self.hardware(agent)
        taken = sorted(running[vm][1].values())[3]
        agent.kill()
        self.put_away(agent, taken)
        agent.start()
        agent.wait_ready()
        self.assertEqual([u["disputed_pages"] for u in self.unknown(agent)], [1])
        failed = self.operate(vm, "adopt", state="failed")
        self.assertIn("1 pages", failed["problem"]["detail"])
        self.assertEqual((failed["problem"]["reason"], failed["problem"]["disputed_frames"]), ("disputed", 1), failed)
        self.assertEqual(failed["problem"]["pages"], PAGES // 2)
        self.assert_ok(self.admin.post(f"/v1/hosts/{agent.host}/quarantine/release", {"items": [
            {"pool": "local", "pfn": taken, "count": 1}]}))
        self.operate(vm, "adopt")
        self.assertEqual(self.unknown(agent), [])
        self.equal(agent, vm)
        self.assertEqual(self.hardware(agent), running)

    def test_end_of_a_disputed_guest_ends_both_halves(self):
        agent = self.agent("both", "pef")
        vm = self.guest(agent)
        agent.kill()
        pfn = sorted(self.hardware(agent)[vm][1].values())[0]
        self.put_away(agent, pfn)
        agent.start()
        agent.wait_ready()
        self.operate(vm, "end")
        self.assertEqual((self.hardware(agent), self.unknown(agent)), ({}, []))
        self.assertEqual(self.ledger(vm), ("normal", {}))

    def test_who_is_meant_when_several_hosts_report_one_vm(self):
        vm, hosts = new_id(), [Host(self.admin), Host(self.admin)]
        item = {"vm": vm, "reason": "refused", "detail": "a test's", "arch": "pef", "state": "secure", "pages": 3,
                "disputed_pages": 0, "disputed": []}
        path = f"/v1/vms/{vm}/operations"
        self.assert_problem(self.admin.post(path, {"kind": "end"}), 404, "vm-not-found", vm=vm)
        for host in hosts:
            self.assert_ok(self.admin.put(host.path + "/unknown-vms", dict(host.current(), items=[item])), 204)
        refused = self.admin.post(path, {"kind": "end"})
        self.assert_problem(refused, 422, "invalid-params")
        self.assertEqual(refused["pointer"], "/params/host")
        self.assert_problem(self.admin.post(path, {"kind": "end", "params": {"host": new_id()}}), 404, "vm-not-found")
        made = self.assert_ok(self.admin.post(path, {"kind": "adopt", "params": {"host": hosts[1].id}}), 202)
        self.assertEqual((made["vm"], made["host"]), (vm, hosts[1].id))
        given, = self.admin.get(hosts[1].path + "/operations")["items"]
        self.assertEqual((given["id"], given["kind"]), (made["id"], "adopt"))
        self.assertEqual(self.admin.get(hosts[0].path + "/operations")["items"], [])
        listed = [i["host"] for i in self.admin.items("/v1/unknown-vms?limit=1") if i["vm"] == vm]
        self.assertEqual(sorted(listed), sorted(h.id for h in hosts))
        self.server.crash()
        self.admin.close()
        self.admin = self.server.client()
        self.assertEqual(self.admin.get("/v1/operations/" + made["id"])["host"], hosts[1].id)


class Evidence(Fleet):
    def test_a_state_folder_serves_one_host(self):
        agent = self.agent("whose", "snp")
        vm = self.guest(agent)
        self.assertEqual(agent.stop(), 0)
        mine, other = agent.host, new_id()
        agent.host = other
        refused = subprocess.run(agent.command(), capture_output=True, text=True, check=False, timeout=WAIT_S)
        self.assertEqual(refused.returncode, 1, refused.stderr)
        for word in (mine, other, "--host", "--state"):
            self.assertIn(word, refused.stderr)
        agent.host = mine
        with open(os.path.join(agent.folder, "machine", "host-id"), "w", encoding="ascii") as f:
            f.write("rubbish\n")
        refused = subprocess.run(agent.command(), capture_output=True, text=True, check=False, timeout=WAIT_S)
        self.assertEqual(refused.returncode, 1, refused.stderr)
        self.assertIn("host-id holds no UUID", refused.stderr)
        with open(os.path.join(agent.folder, "machine", "host-id"), "w", encoding="ascii") as f:
            f.write(mine + "\n")
        agent.start()
        agent.wait_ready()
        self.equal(agent, vm)
        agent.kill()
        os.unlink(os.path.join(agent.folder, "machine", "host-id"))  # as of an agent that did not keep it
        agent.start()
        agent.wait_ready()
        with open(os.path.join(agent.folder, "machine", "host-id"), encoding="ascii") as f:
            self.assertEqual(f.read().strip(), mine)

    def test_what_the_ledger_ended_while_the_agent_was_away_ends(self):
        for arch in ("pef", "tdx", "cca"):
            for gone in (False, True):
                with self.subTest(arch=arch, gone=gone):
                    agent = self.agent(f"ended-{arch}-{gone}", arch)
                    vm = self.guest(agent)
                    agent.kill()
                    self.ended(vm)
                    if gone:
                        self.assert_ok(self.admin.delete("/v1/vms/" + vm), 204)
                        answer = self.admin.get("/v1/vms/" + vm)
                        self.assert_problem(answer, 404, "vm-not-found", vm=vm)
                        self.assertGreater(answer["ended"], 0)
                    agent.start()
                    agent.wait_ready()
                    self.assertEqual(self.hardware(agent), {})
                    self.assertEqual(self.unknown(agent), [])
                    agent.kill()

    def ended(self, vm):
        """By an operator's force, and noted as the VM's end."""
        host = self.admin.get("/v1/hosts/" + self.admin.get("/v1/vms/" + vm)["host"])
        before = self.admin.get("/v1/vms/" + vm)
        answer = self.admin.post(f"/v1/vms/{vm}/lifecycle",
                                 {"event": "terminate", "boot_id": host["boot_id"], "epoch": host["epoch"]})
        self.assertEqual(answer["ended"], answer["revision"])
        self.assertGreater(answer["ended"], before["ended"])
        return answer

    def test_a_guest_whose_vm_another_host_has_is_kept_and_reported(self):
        agent = self.agent("elsewhere", "snp")
        vm = self.guest(agent)
        agent.kill()
        self.ended(vm)
        self.assert_ok(self.admin.delete("/v1/vms/" + vm), 204)
        other = Host(self.admin, arches=("snp",))
        Vm(other, vm=vm, arch="snp")
        running = self.hardware(agent)
        agent.start()
        agent.wait_ready()
        self.assertEqual(self.hardware(agent), running)
        report, = self.unknown(agent)
        self.assertEqual((report["vm"], report["reason"], report["pages"]), (vm, "elsewhere", PAGES // 2), report)
        self.assertIn(other.id, report["detail"])
        self.assertEqual([v["reason"] for v in self.violations(vm)], ["elsewhere"])
        agent.kill()
        agent.start()
        agent.wait_ready()
        self.assertEqual(len(self.violations(vm)), 1, "what is reported already is no news")

    def test_who_may_adopt(self):
        host = Host(self.admin)
        agent, other, operator = self.as_token("agent", host.id), self.as_token("agent", new_id()), self.as_token("operator")
        body = {"id": new_id(), "host": host.id, "arch": "pef", "slots": [], "adopted": True, **host.current()}
        self.assert_problem(other.post("/v1/vms", body), 403, "forbidden")
        self.assert_problem(operator.post("/v1/vms", body), 403, "forbidden")
        self.assert_problem(agent.post("/v1/vms", dict(body, adopted=False)), 403, "forbidden")
        self.assert_problem(agent.post("/v1/vms", dict(body, epoch=9)), 409, "host-fenced")
        for missing in ("id", "boot_id", "epoch"):
            part = {k: v for k, v in body.items() if k != missing}
            self.assert_problem(agent.post("/v1/vms", part), 400, "invalid-request")
        self.assert_ok(agent.post("/v1/vms", body), 201)
        made, = [e for e in self.events("vm.created") if e["vm"] == body["id"]]
        self.assertIs(made["adopted"], True)

    def test_who_may_report_unknown_vms_and_what(self):
        host = Host(self.admin)
        agent, other, operator = self.as_token("agent", host.id), self.as_token("agent", new_id()), self.as_token("operator")
        item = {"vm": new_id(), "reason": "refused", "detail": "a test's", "arch": "pef", "state": "secure", "pages": 3,
                "disputed_pages": 2, "disputed": [{"gfn": 1, "count": 2, "pfn": 7, "owner": new_id(), "owner_gfn": 5}]}
        path = host.path + "/unknown-vms"
        body = dict(host.current(), items=[item])
        self.assert_problem(other.put(path, body), 403, "forbidden")
        self.assert_problem(operator.put(path, body), 403, "forbidden")
        self.assert_problem(agent.put(path, dict(body, epoch=9)), 409, "host-fenced")
        for member, value in (("reason", "because"), ("pages", -1), ("disputed", [{"gfn": 1}]), ("more", 1)):
            self.assert_problem(agent.put(path, dict(body, items=[dict(item, **{member: value})])), 400, "invalid-request")
        self.assert_ok(agent.put(path, body), 204)
        self.assert_ok(agent.put(path, body), 204)
        shown, = operator.items("/v1/unknown-vms?host=" + host.id)
        self.assertEqual({k: shown[k] for k in item}, item)
        self.assertEqual(shown["host"], host.id)
        problem, = self.violations(item["vm"])
        self.check_problem(problem, "unknown-vm", vm=item["vm"], pages=3, reason="refused", disputed_frames=2)
        self.assertEqual(problem["disputed"][0]["vm"], item["disputed"][0]["owner"])
        self.assertEqual(len([e for e in self.events("vm.unknown") if e["host"] == host.id]), 1)
        self.assert_ok(agent.put(path, dict(host.current(), items=[])), 204)
        self.assertEqual(operator.items("/v1/unknown-vms?host=" + host.id), [])
        self.assertEqual(len([e for e in self.events("vm.known") if e["host"] == host.id]), 1)

    def test_a_host_without_its_memory_has_no_unknown_vms(self):
        for end in ("reboot", "fence"):
            host = Host(self.admin)
            item = {"vm": new_id(), "reason": "refused", "detail": "a test's", "arch": "pef", "state": "secure",
                    "pages": 3, "disputed_pages": 0, "disputed": []}
            self.assert_ok(self.admin.put(host.path + "/unknown-vms", dict(host.current(), items=[item])), 204)
            if end == "reboot":
                host.boot = new_id()
                host.register()
            else:
                self.assert_ok(self.admin.post(host.path + "/fence", {"force": True}))
            self.assertEqual(self.admin.items("/v1/unknown-vms?host=" + host.id), [], end)


if __name__ == "__main__":
    unittest.main()
