"""SIGTERM in the middle of everything: clean answers, exit status 0, and in bounded time."""
import json
import os
import re
import signal
import socket
import threading
import time
import unittest

from harness import Client, Host, Server, new_id

STOP_S = 2
MORE_S = STOP_S / 2 + 1  # for what is being decided, and to send what is said of it
SLACK_S = 20             # for a machine that does much else


def quarantine_body(host, count):
    """In reverse order: each range goes before all others."""
    items = [{"pool": "local", "pfn": 2 * (count - 1 - i), "count": 1, "reason": "slow"} for i in range(count)]
    return json.dumps(dict(host.current(), items=items)).encode()


class Stop(unittest.TestCase):
    def begin(self, *flags):
        self.server = Server("--stop-seconds", str(STOP_S), *flags)
        self.addCleanup(self.server.close)
        self.admin = self.server.client()
        self.addCleanup(self.admin.close)
        self.host = Host(self.admin)
        self.threads, self.answers = [], {}

    def later(self, name, method, path, body=None, raw=None):
        """Asks in a thread of its own; the answer is in self.answers when that has ended."""
        def ask():
            client = self.server.client()
            try:
                self.answers[name] = client.request(method, path, body, raw=raw)
            except OSError as e:
                self.answers[name] = e
            finally:
                client.close()

        self.threads.append(threading.Thread(target=ask))
        self.threads[-1].start()

    def stopped(self):
        """Exit status and seconds from SIGTERM on."""
        began = time.monotonic()
        self.server.process.send_signal(signal.SIGTERM)
        status = self.server.process.wait(120)
        took = time.monotonic() - began
        for thread in self.threads:
            thread.join()
        return status, took

    def assert_stopped(self, at_most=STOP_S + MORE_S):
        status, took = self.stopped()
        self.assertEqual(status, 0, self.server.log()[-2000:])
        self.assertLess(took, at_most + SLACK_S)
        self.assertFalse(os.path.exists(os.path.join(self.server.data, "address")))
        return took

    def is_deciding(self):
        """Until a read is held up: then the writer has the state. False: all is decided."""
        while "slow" not in self.answers:
            client = Client(self.server.port, self.server.token, timeout=0.3)
            try:
                client.get("/v1/hosts")
            except OSError:
                return True
            finally:
                client.close()
        return False

    def dial(self):
        s = socket.create_connection(("127.0.0.1", self.server.port), timeout=60)
        self.addCleanup(s.close)
        return s

    def head(self, path, length, token=None):
        return (f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token or self.server.token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n").encode()

    def test_with_nothing_under_way_it_is_quick(self):
        self.begin()
        self.assertLess(self.assert_stopped(0), SLACK_S)

    def test_in_a_change_that_outlasts_it(self):
        self.begin()
        self.later("poll", "GET", "/v1/events?after=1000000&wait=300")
        self.later("operations", "GET", self.host.path + "/operations?wait=300")
        time.sleep(0.3)
        self.later("slow", "POST", self.host.path + "/quarantine", raw=quarantine_body(self.host, 60000))
        if not self.is_deciding():
            self.skipTest("this machine decides it too fast")
        self.later("queued", "POST", "/v1/vms", {"host": self.host.id, "arch": "pef", "slots": []})
        self.later("read", "GET", "/v1/hosts")
        time.sleep(0.3)
        self.assert_stopped()
        if self.answers["slow"].status == 200:
            self.skipTest("this machine decides it too fast")
        for name, answer in self.answers.items():
            with self.subTest(name):
                self.assertEqual((answer.status, answer.slug, answer["retryable"]), (503, "not-ready", True), answer)
        self.server.start()
        admin = self.server.client()
        self.addCleanup(admin.close)
        self.assertEqual(admin.get(self.host.path + "/quarantine")["items"], [], "it was said that nothing was changed")
        self.assertEqual(admin.get("/v1/vms")["items"], [])

    def test_with_long_polls(self):
        self.begin()
        for i in range(20):
            self.later(i, "GET", "/v1/events?after=1000000&wait=300")
        time.sleep(0.5)
        self.assert_stopped(0)
        self.assertEqual([a.status for a in self.answers.values()], [200] * 20)

    def test_with_half_sent_bodies(self):
        self.begin()
        body = json.dumps({"host": self.host.id, "arch": "pef", "slots": []}).encode()
        late, never, headless = self.dial(), self.dial(), self.dial()
        for s in (late, never):
            s.sendall(self.head("/v1/vms", len(body)) + body[:9])
        headless.sendall(self.head("/v1/vms", len(body))[:40])
        time.sleep(0.3)

        def go_on():
            time.sleep(0.5)
            late.sendall(body[9:])
            got = b""
            while more := late.recv(65536):
                got += more
            self.answers["late"] = got

        self.threads.append(threading.Thread(target=go_on))
        self.threads[-1].start()
        self.assert_stopped()
        self.assertTrue(self.answers["late"].startswith(b"HTTP/1.1 503 ") and b"not-ready" in self.answers["late"],
                        self.answers["late"])
        for s in (never, headless):
            self.assertEqual(self.rest(s), b"", "an answer to what was never asked")

    def rest(self, s):
        try:
            return s.recv(65536)
        except OSError:
            return b""

    def test_with_readers_that_do_not_read(self):
        self.begin()
        vm = new_id()
        item = {"vm": vm, "op": "share", "gfn": 1, "count": 1}
        body = json.dumps(dict(self.host.current(), items=[item] * 65536)).encode()  # refused at length: 20 MB
        agent = self.admin.post("/v1/tokens", {"role": "agent", "name": "reader", "host": self.host.id})["secret"]
        readers = [self.dial() for _ in range(3)]
        for s in readers:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.sendall(self.head(self.host.path + "/transitions", len(body), agent) + body)
        for s in readers:
            self.assertTrue(s.recv(1000).startswith(b"HTTP/1.1 200 "))
        self.assert_stopped()

    def test_a_second_interrupt_kills(self):
        self.begin()
        never = self.dial()
        never.sendall(self.head("/v1/vms", 1000))
        time.sleep(0.3)
        self.server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        self.server.process.send_signal(signal.SIGINT)
        self.assertEqual(self.server.process.wait(60), -signal.SIGINT)

    def test_the_unit_waits_longer_than_a_stop_takes(self):
        deploy = os.path.join(os.path.dirname(__file__), "..", "..", "deploy")
        with open(os.path.join(deploy, "pagewardend.ini"), encoding="utf-8") as f:
            seconds = int(re.search(r"^stop-seconds = (\d+)$", f.read(), re.M).group(1))
        with open(os.path.join(deploy, "pagewardend.service"), encoding="utf-8") as f:
            unit = int(re.search(r"^TimeoutStopSec=(\d+)$", f.read(), re.M).group(1))
        self.assertGreater(unit, seconds + seconds // 2 + 35)


if __name__ == "__main__":
    unittest.main()
