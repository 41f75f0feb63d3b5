"""Files that somebody has edited: a picture is made anew from the journal, a broken journal stops the start."""
import os
import sqlite3
import subprocess
import unittest

from harness import PAGEWARDEND, Case, Host, Vm


class Tampered(Case):
    def edit(self, name, sql):
        self.assertEqual(self.server.stop(), 0)
        db = sqlite3.connect(os.path.join(self.server.data, name))
        db.execute(sql)
        db.commit()
        db.close()
        done = subprocess.run([PAGEWARDEND, "--verify", "--data", self.server.data], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout[:7]), (5, "broken "), done)
        return done.stdout

    def test_edited_files_are_not_trusted(self):
        vm = Vm(Host(self.admin), state="secure")
        self.accepted(vm.host.send(vm.item("page_in", 0, 8, 100)))
        viewer = self.as_token("viewer")
        before = vm.runs()
        for table, sql in (("token", "UPDATE token SET role = 'admin'"), ("gfn_span", "UPDATE gfn_span SET runs = replace(runs, ',100]', ',7777]')"),
                           ("vm", "UPDATE vm SET epoch = 9")):
            self.assertIn("picture=damaged", self.edit("ledger.db", sql))
            self.server.start()
            self.assertIn(f"table {table} is not what was written", self.server.log())
            self.admin.close()
            viewer.close()
            self.admin = vm.client = self.server.client()
            self.assertEqual(vm.runs(), before)
            self.assertEqual(viewer.post("/v1/tokens", {"role": "admin", "name": "x"}).status, 403)
            report = self.job("/v1/verify")
            self.assertTrue(report["ok"], report)
        self.server.restart()
        self.admin = self.server.client()
        report = self.job("/v1/verify")
        self.assertEqual((report["ok"], report["picture"]), (True, "ok"))
        self.assertIn("broken_at=2", self.edit("journal.db", "DELETE FROM journal WHERE first = 2"))
        done = subprocess.run([PAGEWARDEND, "--data", self.server.data, "--listen", "127.0.0.1:0"], capture_output=True,
                              text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 1, done)
        self.assertRegex(done.stderr, "revision 2 is missing.*--verify.*restore a backup")


if __name__ == "__main__":
    unittest.main()
