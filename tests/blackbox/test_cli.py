"""pagewarden, the command line: what it prints, and with which exit code it ends."""
import json
import os
import pty
import subprocess
import time
import unittest

from harness import BUILD, Case, Host, Vm, new_id

PAGEWARDEN = os.path.join(BUILD, "pagewarden")
REFUSED, USAGE, UNREACHABLE, NOT_FOUND = 1, 2, 3, 4


class Cli(Case):
    def setUp(self):
        super().setUp()
        self.env = dict(os.environ, PAGEWARDEN_URL=f"http://127.0.0.1:{self.server.port}",
                        PAGEWARDEN_TOKEN_FILE=os.path.join(self.server.data, "admin.token"))
        self.env.pop("PAGEWARDEN_TOKEN", None)

    def run_it(self, *args, code=0, **env):
        done = subprocess.run([PAGEWARDEN, *args], env={**self.env, **env}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, code, (args, done.stdout, done.stderr))
        return done

    def rows(self, *args):
        return [line.split("\t") for line in self.run_it(*args).stdout.splitlines()]

    def members(self, *args):
        return dict(line.split("\t", 1) for line in self.run_it(*args).stdout.splitlines())

    def test_lists_are_tab_separated_and_json_is_the_api(self):
        host = Host(self.admin, name="rack-7")
        rows = [row for row in self.rows("hosts") if row[0] == host.id]
        self.assertEqual(rows[0][1:3], ["rack-7", "up"])
        found = json.loads(self.run_it("--json", "hosts", host.id).stdout)
        self.assertEqual(found["id"], host.id)
        self.assertEqual(self.members("hosts", host.id)["frames_total"], str(1 << 20))

    def test_a_terminal_gets_an_aligned_table(self):
        Host(self.admin)
        master, slave = pty.openpty()
        done = subprocess.run([PAGEWARDEN, "hosts"], env=self.env, stdout=slave, timeout=60, check=False)
        os.close(slave)
        text = os.read(master, 65536).decode()
        os.close(master)
        self.assertEqual(done.returncode, 0)
        self.assertTrue(text.startswith("ID  "), text)
        self.assertNotIn("\t", text)

    def test_names_and_prefixes_stand_for_ids(self):
        host = Host(self.admin)
        vm = Vm(host, name="db-" + host.id[:8], vm="abcdef00" + new_id()[8:])
        self.assertEqual(self.members("vms", "db-" + host.id[:8])["id"], vm.id)
        self.assertEqual(self.members("vms", "abcdef00")["id"], vm.id)
        Vm(host, name="twin-" + host.id[:8])
        Vm(host, name="twin-" + host.id[:8])
        self.assertIn("fits 2", self.run_it("vms", "twin-" + host.id[:8], code=USAGE).stderr)
        self.run_it("vms", "nobody", code=NOT_FOUND)
        self.run_it("vms", new_id(), code=NOT_FOUND)

    def test_an_id_comes_before_its_beginning_and_that_before_a_name(self):
        """Whatever somebody calls his VM, nobody else's is taken for it."""
        host = Host(self.admin)
        vm = Vm(host, name="real-" + host.id[:8], vm="beef" + new_id()[4:])
        for name in (vm.id, vm.id.upper(), vm.id[:18], vm.id[:18].upper(), vm.id[:4]):
            Vm(host, name=name)
            with self.subTest(name=name):
                self.assertEqual(self.members("vms", name)["id"], vm.id)
        Vm(host, vm="beef" + new_id()[4:])
        self.assertIn("fits 2", self.run_it("vms", "beef", code=USAGE).stderr)
        short = Vm(host, name=vm.id[:3])
        self.assertEqual(self.members("vms", vm.id[:3])["id"], short.id)

    def destructive(self, host, vm, token):
        """Each with what it names: (the arguments, which of them is the name)."""
        return ((["fence", host.id], 1), (["delete", vm.id], 1), (["delete", vm.id, "0"], 1), (["unplug", vm.id, "0"], 1),
                (["lifecycle", vm.id, "terminate"], 1), (["lifecycle", vm.id, "init_abort"], 1),
                (["operations", vm.id, "terminate"], 1), (["operations", vm.id, "abort"], 1),
                (["operations", vm.id, "unplug", "--params", '{"slot":0}'], 1), (["operations", vm.id, "end"], 1),
                (["end", vm.id], 1), (["tokens", "delete", token], 2), (["quarantine", host.id, "release", "1"], 1))

    def shown(self, host, vm):
        return vm.get(), self.admin.items(vm.path + "/operations"), self.admin.get(host.path)["epoch"]

    def test_what_destroys_takes_no_beginning_of_an_id(self):
        host = Host(self.admin)
        vm, token = Vm(host), self.as_token("viewer").id
        before = self.shown(host, vm)
        for args, at in self.destructive(host, vm, token):
            prefix = args[at][:18]
            with self.subTest(args=args):
                args[at] = prefix
                self.assertIn("full id or an exact name", self.run_it(*args, "--yes", code=USAGE).stderr)
        self.assertEqual(self.shown(host, vm), before)
        self.assertIn(token, [t["id"] for t in self.admin.items("/v1/tokens")])

    def rename(self, host, name):
        host.name = name
        host.register()

    def test_what_destroys_refuses_a_name_that_may_be_another_s_id(self):
        host, other = Host(self.admin), Host(self.admin)
        self.rename(other, host.id[:18])
        self.assertIn("another id begins with it", self.run_it("fence", host.id[:18], "--yes", "--force", code=USAGE).stderr)
        self.rename(other, "twin-" + host.id[:4])
        self.rename(host, "twin-" + host.id[:4])
        self.assertIn("fits 2", self.run_it("fence", "twin-" + host.id[:4], "--yes", code=USAGE).stderr)
        self.assertEqual([self.admin.get(h.path)["state"] for h in (host, other)], ["up", "up"])
        self.rename(host, other.id)
        self.run_it("fence", other.id, "--yes", "--force")
        self.assertEqual([self.admin.get(h.path)["state"] for h in (host, other)], ["up", "fenced"])
        self.rename(host, "just-" + host.id[:4])
        self.run_it("fence", "just-" + host.id[:4], "--yes", "--force")
        self.assertEqual(self.admin.get(host.path)["state"], "fenced")

    def test_what_destroys_needs_a_terminal_or_yes(self):
        host = Host(self.admin)
        vm, token = Vm(host), self.as_token("viewer").id
        before = self.shown(host, vm)
        for args, _ in self.destructive(host, vm, token):
            with self.subTest(args=args):
                done = subprocess.run([PAGEWARDEN, *args], env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
                                      text=True, timeout=60, check=False)
                self.assertEqual(done.returncode, USAGE, done)
                self.assertIn("--yes", done.stderr)
        self.assertEqual(self.shown(host, vm), before)
        self.assertIn(token, [t["id"] for t in self.admin.items("/v1/tokens")])

    def asked(self, *args, answer):
        """On a terminal: exit code and what was said there."""
        master, slave = pty.openpty()
        try:
            with subprocess.Popen([PAGEWARDEN, *args], env=self.env, stdin=slave, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True) as child:
                os.write(master, answer)
                _, said = child.communicate(timeout=60)
            return child.returncode, said
        finally:
            os.close(master)
            os.close(slave)

    def test_a_terminal_is_asked(self):
        host = Host(self.admin)
        for answer in (b"no\n", b"\n", b"yesss\n", b"\x04"):
            code, said = self.asked("fence", host.id, "--force", answer=answer)
            self.assertEqual(code, REFUSED, said)
            self.assertIn(f"fence host {host.id}", said)
        self.assertEqual(self.admin.get(host.path)["state"], "up")
        code, said = self.asked("fence", host.id, "--force", answer=b"yes\n")
        self.assertEqual((code, self.admin.get(host.path)["state"]), (0, "fenced"), said)

    def test_a_token_for_a_host_is_for_no_look_alike(self):
        host = Host(self.admin)
        self.run_it("tokens", "create", "agent", "x", "--host", host.id[:18], code=USAGE)
        self.assertEqual(self.members("tokens", "create", "agent", "x", "--host", host.id)["host"], host.id)

    def test_whose_page_is_this(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", name="owner")
        self.accepted(host.send(vm.item("page_in", 5, 4, 100)))
        owner = self.members("who-owns", host.id, "102")
        self.assertEqual((owner["vm"], owner["gfn"], owner["name"]), (vm.id, "7", "owner"))
        self.assertEqual(owner["arch_state"], "KVMPPC_GFN_UVMEM_PFN")
        self.assertEqual(self.run_it("who-owns", host.id + "/local", "0x63").stdout, "free\n")
        self.run_it("quarantine", host.id, "add", "200", "--count", "3", "--reason", "RMP reset failed")
        self.assertEqual(self.rows("quarantine", host.id)[0][:4], ["local", "200", "3", "RMP reset failed"])
        self.assertEqual(self.run_it("who-owns", host.id, "202").stdout, "quarantined\n")
        self.run_it("quarantine", host.id, "release", "200", "--count", "3", "--yes")
        self.assertEqual(self.run_it("who-owns", host.id, "202").stdout, "free\n")
        self.assertEqual(self.rows("frames", host.id, "--pfn", "101"), [["101", "3", vm.id, "6", "KVMPPC_GFN_UVMEM_PFN"]])
        self.assertEqual(self.rows("gfns", vm.id, "--gfn", "5", "--count", "4"),
                         [["5", "4", "secure", "yes", "local", "100", "KVMPPC_GFN_UVMEM_PFN"]])
        self.assertIn("gfn.page_in", self.run_it("history", vm.id, "6").stdout)

    def test_ending_what_hardware_has(self):
        host = Host(self.admin)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": 0, "pages": 8}, {"slot": 1, "base_gfn": 8, "pages": 8}])
        for args in (("lifecycle", vm.id, "terminate"), ("delete", vm.id, "1")):
            self.assertIn("host-alive", self.run_it(*args, "--yes", code=REFUSED).stderr)
        holder = ("--boot-id", host.boot, "--epoch", str(host.epoch))
        self.run_it("delete", vm.id, "1", "--yes", *holder)
        self.run_it("delete", vm.id, "0", "--force", "--yes")
        self.assertIn("vm-busy", self.run_it("delete", vm.id, "--yes", code=REFUSED).stderr)
        self.assertEqual(self.members("lifecycle", vm.id, "terminate", "--yes", *holder)["state"], "normal")
        self.assertEqual(self.members("lifecycle", vm.id, "start")["on_hardware"], "yes")
        self.assertEqual(self.members("lifecycle", vm.id, "terminate", "--force", "--yes")["on_hardware"], "no")
        self.run_it("delete", vm.id, "--yes")
        self.run_it("vms", vm.id, code=NOT_FOUND)
        other = Vm(host)
        other.must("start")
        self.run_it("delete", other.id, "--force", "--yes")
        for args in (("delete", "x", "y"), ("lifecycle", "x"), ("delete", "x", "--epoch", "1"),
                     ("lifecycle", "x", "terminate", "--boot-id", "a b", "--epoch", "1"), ("delete", "x", *holder)):
            self.run_it(*args, "--yes", code=USAGE)

    def test_slots_are_plugged_and_unplugged(self):
        host = Host(self.admin)
        vm = Vm(host)
        self.assertEqual(self.members("plug", vm.id, "3", "0x2000", "16")["kind"], "plug")
        self.assertEqual(self.admin.items(vm.path + "/operations")[0]["params"], {"slot": 3, "base_gfn": 8192, "pages": 16})
        self.assertEqual(self.members("unplug", vm.id, "0", "--yes")["kind"], "unplug")
        self.assertIn("slot-overlap", self.run_it("plug", vm.id, "3", "1", "1", code=REFUSED).stderr)
        self.run_it("unplug", vm.id, "7", "--yes", code=NOT_FOUND)
        for args in (("plug", vm.id, "3"), ("plug", vm.id, "a", "1", "1"), ("unplug", vm.id, "-1")):
            self.run_it(*args, code=USAGE)
        self.assertIn("base_gfn", self.run_it("help", "operations").stdout)

    def test_refusals_are_printed_and_exit_1(self):
        Host(self.admin)
        done = self.run_it("backup", "twice")
        done = self.run_it("backup", "twice", code=REFUSED)
        self.assertIn("backup-exists", done.stderr)
        done = self.run_it("hosts", PAGEWARDEN_TOKEN="wrong", PAGEWARDEN_TOKEN_FILE="", code=REFUSED)
        self.assertIn("unauthorized", done.stderr)

    def test_wrong_command_lines_exit_2(self):
        for args in ((), ("dance",), ("gfns",), ("hosts", "--gfn", "1"), ("--odd", "hosts"), ("history", "x", "-1"),
                     ("operations", "x", "dance"), ("tokens", "create", "king", "x"), ("backup", "../x"),
                     ("completion", "fish"), ("frames",)):
            with self.subTest(args=args):
                self.assertTrue(self.run_it(*args, code=USAGE).stderr.startswith("pagewarden: "))

    def test_nobody_there_exits_3(self):
        self.run_it("hosts", code=UNREACHABLE, PAGEWARDEN_URL="http://127.0.0.1:1")

    def test_life_of_a_token(self):
        made = self.members("tokens", "create", "viewer", "by-cli")
        self.run_it("hosts", PAGEWARDEN_TOKEN=made["secret"], PAGEWARDEN_TOKEN_FILE="")
        self.assertIn([made["id"], "viewer", "by-cli"], [row[:3] for row in self.rows("tokens")])
        self.run_it("tokens", "delete", made["id"], "--yes")
        self.run_it("hosts", PAGEWARDEN_TOKEN=made["secret"], PAGEWARDEN_TOKEN_FILE="", code=REFUSED)

    def test_an_operation_is_waited_for(self):
        host = Host(self.admin)
        vm = Vm(host)
        child = subprocess.Popen([PAGEWARDEN, "operations", vm.id, "launch", "--wait"], env=self.env,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        items = []
        while not items:
            items = self.admin.get(host.path + "/operations?wait=5")["items"]
        problem = {"type": "/problems/backend", "detail": "the firmware said no"}
        self.assert_ok(self.admin.post(f"/v1/operations/{items[0]['id']}/result",
                                       dict(host.current(), state="failed", problem=problem)))
        _, err = child.communicate(timeout=60)
        self.assertEqual(child.returncode, REFUSED)
        self.assertIn("the firmware said no", err)

    def test_events_can_be_followed(self):
        child = subprocess.Popen([PAGEWARDEN, "--json", "events", "--follow"], env=self.env, stdout=subprocess.PIPE, text=True)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.addCleanup(child.stdout.close)
        host, end = Host(self.admin), time.monotonic() + 60
        for line in child.stdout:
            if json.loads(line).get("host") == host.id:
                return
            self.assertLess(time.monotonic(), end)
        self.fail("it ended")

    def test_the_journal_verifies(self):
        self.assertEqual(self.members("verify")["ok"], "yes")
        self.assertIn("hosts.up", self.members("summary"))

    def test_help_names_every_command_and_exit_code(self):
        text = self.run_it("help").stdout
        for word in ("who-owns", "lifecycle", "--force", "completion", "--token-file", "PAGEWARDEN_URL", "Exit codes"):
            self.assertIn(word, text)
        self.assertIn("--follow", self.run_it("events", "--help").stdout)

    def test_completion_is_shell(self):
        script = self.run_it("completion", "bash").stdout
        ask = script + '\nCOMP_WORDS=(pagewarden who) COMP_CWORD=1 _pagewarden; COMP_WORDS=(pagewarden who)\n' \
                       'COMP_CWORD=1\n_pagewarden\necho "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(done.stdout.strip().splitlines()[-1], "who-owns")
        self.assertIn("#compdef", self.run_it("completion", "zsh").stdout)


if __name__ == "__main__":
    unittest.main()
