"""Verification and backup as jobs, beside everything else, on a journal of some 100 MiB that the test writes itself."""
import hashlib
import json
import os
import sqlite3
import struct
import threading
import time
import unittest

from harness import Case, Host, Server, new_id

ROWS, ROW_BYTES = 100, 1 << 20


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


def grow(data, rows, row_bytes=ROW_BYTES):
    """Appends rows of violations, which change nothing, as the server would write them. The server is stopped."""
    text = json.dumps({"type": "violation", "actor": "a test", "problem": {"detail": "x" * 900}},
                      separators=(",", ":")).encode()
    record = b"\1" + varint(len(text)) + text
    records = record * (row_bytes // len(record))
    many = row_bytes // len(record)
    with sqlite3.connect(os.path.join(data, "journal.db")) as db:
        last, number, ends, head, at = db.execute(
            "SELECT last, number, ends, hash, time_ms FROM journal ORDER BY first DESC LIMIT 1").fetchone()
        for _ in range(rows):
            first, last, number, ends = last + 1, last + many, number + 1, ends + len(records)
            head = hashlib.blake2b(head + struct.pack("<QQQ", first, last, at) + records, digest_size=32).digest()
            db.execute("INSERT INTO journal (first, last, time_ms, number, ends, hash, records) VALUES (?,?,?,?,?,?,?)",
                       (first, last, at, number, ends, head, records))
    db.close()
    return last


class Jobs(Case):
    flags = ("--threads", "1")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.host = Host(cls.server.client())
        cls.server.stop()
        cls.newest = grow(cls.server.data, ROWS)
        cls.server.start()

    def begin(self, path, body=None):
        """A job that another one does not keep out."""
        while True:
            answer = self.admin.post(path, body or {})
            if answer.status != 503:
                return self.assert_ok(answer, 202)
            time.sleep(0.05)

    def test_a_verification_reads_all_and_says_what_it_found(self):
        found = self.job("/v1/verify")
        self.assertTrue(found["ok"])
        self.assertGreaterEqual(found["newest"], self.newest)

    def test_progress_grows_up_to_the_end(self):
        begun = self.begin("/v1/verify")
        self.assertEqual(begun.headers["location"], "/v1/jobs/" + begun["id"])
        seen = [begun.json]
        while seen[-1]["state"] == "running":
            seen.append(self.assert_ok(self.admin.get(begun.headers["location"])).json)
        self.assertEqual(seen[-1]["state"], "succeeded")
        done = [job["done"] for job in seen]
        self.assertEqual(done, sorted(done))
        self.assertEqual(seen[-1]["done"], seen[-1]["total"])
        self.assertGreater(seen[-1]["total"], ROWS * ROW_BYTES * 9 // 10)
        self.assertNotIn("result", seen[0])

    def test_one_at_a_time(self):
        begun = self.begin("/v1/verify")
        second = self.admin.post("/v1/backups", {"name": "beside"})
        if self.admin.get(begun.headers["location"])["state"] == "running":
            self.assert_problem(second, 503, "busy")
            self.assertIn("retry-after", second.headers)
        self.assert_ok(self.admin.get(begun.headers["location"] + "?wait=60"))

    def test_a_backup_holds_it_all(self):
        made = self.job("/v1/backups", {"name": "whole"})
        with sqlite3.connect(f"file:{made['path']}/journal.db?mode=ro", uri=True) as db:
            self.assertEqual(db.execute("SELECT max(last) FROM journal").fetchone(), (made["revision"],))
        self.assert_problem(self.admin.post("/v1/backups", {"name": "whole"}), 409, "backup-exists")

    def test_heartbeats_are_answered_beside_a_job(self):
        """On the only HTTP thread: none waits for most of the job. Best of some, for the sake of a busy machine."""
        agent = self.server.client()
        self.addCleanup(agent.close)
        worst = []
        for _ in range(8):
            took, began, run = 0, time.monotonic(), self.begin("/v1/verify").headers["location"]
            while self.admin.get(run)["state"] == "running":
                at = time.monotonic()
                self.assert_ok(agent.post(self.host.path + "/heartbeat", self.host.current()))
                took = max(took, time.monotonic() - at)
            worst.append(took / (time.monotonic() - began))
            if worst[-1] < 0.5:
                return
        self.fail(f"the worst heartbeat took so much of a job's time: {worst}")

    def test_unknown_ones_and_other_roles(self):
        self.assert_problem(self.admin.get("/v1/jobs/" + new_id()), 404, "not-found")
        self.assert_problem(self.admin.get("/v1/jobs/x"), 404, "not-found")
        self.assert_problem(self.as_token("operator").post("/v1/verify", {}), 403, "forbidden")

    def test_a_client_that_waits_gets_an_answer_at_its_time(self):
        begun = self.begin("/v1/verify")
        answer = self.assert_ok(self.admin.get(begun.headers["location"] + "?wait=60"))
        self.assertEqual(answer["state"], "succeeded")


class Stop(unittest.TestCase):
    def test_a_stop_gives_up_the_job_and_answers_who_waits_for_it(self):
        server = Server()
        self.addCleanup(server.close)
        Host(server.client())
        server.stop()
        grow(server.data, ROWS)
        server.start()
        admin, got = server.client(), []
        where = admin.post("/v1/backups", {"name": "half"}).headers["location"]

        def wait():
            client = server.client()
            try:
                got.append(client.get(where + "?wait=60"))
            except OSError:  # it came too late
                pass
            client.close()
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.05)
        admin.close()
        self.assertEqual(server.stop(), 0)
        waiter.join(60)
        self.assertTrue(all(answer.status in (200, 503) for answer in got), got)
        if got and got[0].status == 200 and got[0]["state"] == "failed":
            self.assertFalse(os.path.exists(os.path.join(server.data, "backups", "half")))


if __name__ == "__main__":
    unittest.main()
