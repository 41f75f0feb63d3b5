#!/usr/bin/env python3
"""Pictures of a large and busy ledger: taken in pieces, read with sqlite3, given up at a stop; and starts that say how far they are."""
import os
import random
import re
import socket
import sqlite3
import threading
import time
import unittest

from harness import Case, Client, Host, Server, Vm, WAIT_S, until

PAGES = 1 << 22


def metric(client, name):
    text = client.get("/metrics").raw.decode()
    return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])


def large_vm(host):
    return Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": PAGES}], state="secure")


def told(runs):
    """Runs of the API as rows (gfn, count, state, resident, pfn), joined where they go on."""
    rows = []
    for r in sorted(runs, key=lambda r: r["gfn"]):
        row = [r["gfn"], r["count"], r["state"], r.get("resident", False), r.get("frame", {}).get("pfn")]
        if rows:
            last = rows[-1]
            pfn = None if last[4] is None else last[4] + last[1]
            if (last[0] + last[1], *last[2:4], pfn) == (row[0], *row[2:]):
                last[1] += row[1]
                continue
        rows.append(row)
    return rows


class InPieces(Case):
    flags = ("--checkpoint-seconds", "1")

    def view(self):
        db = sqlite3.connect(os.path.join(self.server.data, "ledger.db"))
        try:
            rows = db.execute("SELECT gfn, count, state, resident, pfn FROM gfn_extent ORDER BY gfn").fetchall()
            return told([{"gfn": g, "count": c, "state": s, "resident": bool(r), **({} if p is None else {"frame": {"pfn": p}})}
                         for g, c, s, r, p in rows])
        finally:
            db.close()

    def test_a_busy_ledger_is_pictured_as_it_was_at_one_revision(self):
        """Every batch changes thousands of tables, more than one piece holds; kill -9 finds picture and journal in step."""
        host = Host(self.admin, frames=1 << 22)
        vm = large_vm(host)
        self.accepted(host.send(vm.item("page_in", 0, PAGES // 2, 0)))
        dice = random.Random(7)
        pages, pictures = set(), 0
        for round_ in range(3):
            seen = metric(self.admin, "pagewarden_picture_revision")
            for n in range(400):
                gfns = sorted({dice.randrange(PAGES) for _ in range(300)})
                shares = n % 3 > 0
                self.accepted(host.send({"vm": vm.id, "op": "share" if shares else "unshare", "gfns": gfns}))
                pages = pages | set(gfns) if shares else pages - set(gfns)
                if n > 30 and metric(self.admin, "pagewarden_picture_revision") > seen:
                    break
            if round_ == 2 and not pictures:  # a slow machine: it has the time that it needs
                until(lambda: metric(self.admin, "pagewarden_picture_revision") > seen, WAIT_S)
            pictures += metric(self.admin, "pagewarden_picture_revision") > seen
            before = told(vm.runs("0", PAGES))
            self.assertEqual(sum(r[1] for r in before if r[2] == "shared"), len(pages))
            self.server.crash()
            self.admin.close()
            self.admin = host.client = vm.client = self.server.client()
            self.assertEqual(told(vm.runs("0", PAGES)), before, f"round {round_}")
        self.assertGreater(pictures, 0)
        self.server.stop()
        self.assertEqual(self.view(), before)
        self.server.start()
        self.admin = self.server.client()
        report = self.admin.get("/readyz")
        self.assertEqual(report.status, 200)


class Stops(unittest.TestCase):
    def test_without_time_for_a_picture_the_journal_has_it_all(self):
        server = Server("--checkpoint-seconds", "3600", "--last-picture-seconds", "0")
        self.addCleanup(server.close)
        host = Host(server.client())
        vm = Vm(host, state="secure")
        host.send(vm.item("page_in", 0, 8, 100))
        runs = vm.runs()
        for _ in range(2):
            self.assertEqual(server.stop(), 0)
            self.assertIn("no time for a last picture", server.log())
            server.start()
            vm.client = server.client()
            self.assertEqual(metric(vm.client, "pagewarden_picture_revision"), 0)
            self.assertEqual(vm.runs(), runs)


class Stale(unittest.TestCase):
    def test_ready_turns_red_while_pictures_cannot_be_saved(self):
        server = Server("--checkpoint-seconds", "1", "--picture-stale-seconds", "1")
        self.addCleanup(server.close)
        admin = server.client()
        self.assertTrue(until(lambda: metric(admin, "pagewarden_picture_revision") > 0, 60))
        db = sqlite3.connect(os.path.join(server.data, "ledger.db"))
        db.execute("BEGIN IMMEDIATE")
        Host(admin)
        self.assertTrue(until(lambda: admin.get("/readyz").status == 503, 60))
        answer = admin.get("/readyz")
        if answer.status == 503:
            self.assertEqual(answer.slug, "storage")
            self.assertIn("ledger.db", answer["detail"])
        self.assertTrue(until(lambda: "locked" in (admin.get("/readyz").json or {}).get("detail", ""), 60))
        self.assertGreater(metric(admin, "pagewarden_picture_age_seconds"), 0)
        db.rollback()
        db.close()
        self.assertTrue(until(lambda: admin.get("/readyz").status == 200, 120))


class Starts(unittest.TestCase):
    """A journal to replay: /readyz and systemd are told how far that is."""

    BATCH, BATCHES = 65536, 16

    def setUp(self):
        self.server = Server("--checkpoint-seconds", "3600", "--last-picture-seconds", "0")
        self.addCleanup(self.server.close)
        self.host = Host(self.server.client())
        self.vm = large_vm(self.host)
        gfns = [n * 61 % PAGES for n in range(self.BATCH)]
        for n in range(self.BATCHES):
            answer = self.host.send({"vm": self.vm.id, "op": ("share", "unshare")[n % 2], "gfns": gfns})
            self.assertEqual((answer.status, answer["rejected"]), (200, 0), answer)
        path = os.path.join(self.server.folder, "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.bind(path)
        self.socket.settimeout(60)
        self.server.env = {**os.environ, "NOTIFY_SOCKET": path}

    def messages(self, last):
        """What systemd is told, up to a message that begins so."""
        got = []
        while not got or not got[-1].startswith(last):
            got.append(self.socket.recv(65536).decode())
        return got

    def test_progress_is_told_while_the_journal_is_replayed(self):
        revision = metric(self.server.client(), "pagewarden_revision")
        self.server.kill()
        start = threading.Thread(target=self.server.start)
        start.start()
        problems = []
        while start.is_alive():
            try:
                answer = Client(self.server.port, timeout=5).get("/readyz")
                if answer.status == 503:
                    problems.append(answer)
            except (OSError, ValueError):
                pass
        start.join()
        self.assertTrue(problems)
        for answer in problems:
            self.assertEqual(answer.slug, "not-ready")
            self.assertLessEqual(answer["replayed"], answer["total"])
            self.assertTrue(answer["total"] == 0 or answer["total"] >= revision, answer)
            self.assertIn("the server starts: ", answer["detail"])
        self.assertEqual(problems, sorted(problems, key=lambda a: a["replayed"]))
        said = self.messages("READY=1")
        self.assertGreater(len(said), 1)
        for message in said[:-1]:
            self.assertRegex(message, r"^EXTEND_TIMEOUT_USEC=\d{8}\nSTATUS=.+: revision \d+ of \d+$")
        self.assertEqual(self.server.stop(), 0)
        self.assertTrue(any(m.startswith("EXTEND_TIMEOUT_USEC=") for m in self.messages("EXTEND_TIMEOUT")))

    def start_in_vain(self):
        try:
            self.server.start()
        except AssertionError:
            pass  # as it should be; or it was ready before the signal came

    def test_a_start_can_be_stopped(self):
        expected = self.vm.get()
        self.server.kill()
        start = threading.Thread(target=self.start_in_vain)
        start.start()
        self.messages("EXTEND_TIMEOUT_USEC")
        began = time.monotonic()
        self.assertEqual(self.server.stop(), 0)
        self.assertLess(time.monotonic() - began, 60)
        start.join()
        self.server.start()
        self.vm.client = self.server.client()
        self.assertEqual(self.vm.get(), expected)


if __name__ == "__main__":
    unittest.main()
