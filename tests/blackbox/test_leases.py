"""Leases: whose silence is it? The server's own pauses (SIGSTOP, a stalled commit, a restart) end no lease."""
import os
import signal
import sqlite3
import threading
import time
import unittest

from harness import Host, Server

LEASE_S = 2
PAUSE_S = 3.5
SLACK_S = 20  # for a machine that does much else


class Beats(threading.Thread):
    """Beats for one host, as its agent does, until it is stopped."""

    def __init__(self, server, host, keyed):
        super().__init__()
        self.client, self.host, self.keyed = server.client(), host, keyed
        self.client.timeout = 2
        self.over, self.beats = threading.Event(), 0
        self.start()

    def run(self):
        while not self.over.wait(LEASE_S / 3):
            self.beats += 1
            headers = {"Idempotency-Key": f"{self.host.id}-{self.beats}"} if self.keyed else None
            try:
                self.client.post(self.host.path + "/heartbeat", self.host.current(), headers=headers)
            except OSError:
                self.client.close()

    def stop(self):
        self.over.set()
        self.join()
        self.client.close()


class Leases(unittest.TestCase):
    def setUp(self):
        self.server = Server("--lease-seconds", str(LEASE_S))
        self.addCleanup(self.server.close)
        self.hosts = [Host(self.server.client(), name=name) for name in ("keyless", "keyed", "silent")]
        self.beats = [Beats(self.server, host, host.name == "keyed") for host in self.hosts[:2]]
        for beats in self.beats:
            self.addCleanup(beats.stop)

    def feed(self, host):
        admin = self.server.client()
        try:
            events = admin.get("/v1/events?limit=1000")["items"]
            return [e["type"] for e in events if e.get("host") == host.id and e["type"] in ("host.unreachable", "host.back")]
        finally:
            admin.close()

    def until_silent(self, times=1):
        """The silent host is declared, within two terms (and whatever this machine needs besides)."""
        end = time.monotonic() + 2 * LEASE_S + SLACK_S
        while self.feed(self.hosts[2]).count("host.unreachable") < times:
            self.assertLess(time.monotonic(), end, "the silent host is not declared")
            time.sleep(0.1)

    def beaten(self, n=2):
        """Each host that beats has done so n times more."""
        wanted = [b.beats + n for b in self.beats]
        while any(b.beats < want for b, want in zip(self.beats, wanted)):
            time.sleep(0.02)

    def nobody_else_was_declared(self):
        for host in self.hosts[:2]:
            self.assertEqual(self.feed(host), [], host.name)

    def test_a_server_that_was_stopped(self):
        self.beaten(1)
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        self.server.process.send_signal(signal.SIGCONT)
        admin = self.server.client()
        self.addCleanup(admin.close)
        self.assertEqual([admin.get(h.path)["state"] for h in self.hosts], ["up"] * 3, "straight after the pause")
        self.until_silent()
        self.beaten()
        self.nobody_else_was_declared()
        self.assertEqual(self.feed(self.hosts[2]), ["host.unreachable"])
        self.assertIn("stood still", self.server.log())

    def test_who_was_silent_before_does_not_come_back(self):
        self.until_silent()
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        self.server.process.send_signal(signal.SIGCONT)
        self.beaten()
        self.nobody_else_was_declared()
        self.assertEqual(self.feed(self.hosts[2]), ["host.unreachable"])
        self.hosts[2].client.post(self.hosts[2].path + "/heartbeat", self.hosts[2].current())
        self.until_silent(2)
        self.assertEqual(self.feed(self.hosts[2]), ["host.unreachable", "host.back", "host.unreachable"])

    def test_a_commit_that_stalls(self):
        """Somebody with sqlite3 holds the journal: the writer waits, and no heartbeat that it takes is answered."""
        for _ in range(2):
            self.beaten()
            db = sqlite3.connect(os.path.join(self.server.data, "journal.db"), isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
            time.sleep(1.8)
            db.execute("ROLLBACK")
            db.close()
        self.beaten()
        self.nobody_else_was_declared()
        self.until_silent()

    def test_a_restart(self):
        self.until_silent()
        for crash in (False, True):
            self.beaten()
            self.server.kill() if crash else self.assertEqual(self.server.stop(), 0)
            time.sleep(LEASE_S)
            self.server.start()
            admin = self.server.client()
            self.assertEqual([admin.get(h.path)["state"] for h in self.hosts], ["up", "up", "unreachable"])
            admin.close()
            self.beaten()
            self.nobody_else_was_declared()
            self.assertEqual(self.feed(self.hosts[2]), ["host.unreachable"])


if __name__ == "__main__":
    unittest.main()
