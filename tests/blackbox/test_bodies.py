"""Whose bodies are read and kept, and how much of them: by nobody's request, by each role's, by all together."""
import json
import socket
import time
import unittest

from harness import WAIT_S, Case, Client, Host, Server, new_id

MIB = 1 << 20


def resident(server):
    """Bytes of memory that the server's process has."""
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


class Bodies(Case):
    @classmethod
    def setUpClass(cls):
        """Each test starts its own server."""

    def setUp(self):
        """See begin."""

    def begin(self, *flags):
        self.server = Server(*flags)
        self.addCleanup(self.server.close)
        self.admin = self.server.client()
        self.addCleanup(self.admin.close)

    def wait_for(self, happens, otherwise):
        end = time.monotonic() + WAIT_S
        while not happens():
            self.assertLess(time.monotonic(), end, otherwise)
            time.sleep(0.05)

    def start(self, method, path, length, token=None, sent=0, expect=False):
        """A request whose body does not come to its end."""
        s = socket.create_connection(("127.0.0.1", self.server.port), timeout=60)
        self.addCleanup(s.close)
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}"]
        if expect:
            lines.append("Expect: 100-continue")
        if token:
            lines.append("Authorization: Bearer " + token)
        try:
            s.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            s.sendall(b" " * sent)
        except OSError:
            pass  # it was refused before it was sent
        return s

    def test_what_no_route_reads_is_not_kept(self):
        self.begin()
        before = resident(self.server)
        for token in (None, self.server.token):
            for method, path in (("GET", "/healthz"), ("GET", "/v1/summary"), ("DELETE", "/v1/vms/" + new_id())):
                for _ in range(8):
                    self.start(method, path, MIB, token, MIB - 1)
        for _ in range(8):
            self.start("POST", "/v1/vms", MIB, None, MIB - 1)
        self.assert_ok(self.admin.get("/v1/summary"))
        self.assertLess(resident(self.server) - before, 24 * MIB, "of some 56 MiB that were sent")

    def test_too_large_is_said_before_it_is_sent(self):
        self.begin()
        host = Host(self.admin)
        agent = self.as_token("agent", host.id).token
        for token, path, most, flag in ((self.server.token, "/v1/vms", MIB, "body-bytes"), (None, "/healthz", MIB, "body-bytes"),
                                        (agent, host.path + "/transitions", 16 * MIB, "agent-body-bytes")):
            with self.subTest(path=path):
                s = self.start("GET" if path == "/healthz" else "POST", path, most + 1, token, expect=token is not None)
                got = s.recv(4096)
                self.assertTrue(got.startswith(b"HTTP/1.1 413 "), got)
                problem = json.loads(got.partition(b"\r\n\r\n")[2])
                self.assertEqual((problem["flag"], problem["limit"], problem["asked"]), (flag, most, most + 1))
        self.assert_problem(self.admin.post("/v1/vms", raw=b" " * (MIB + 1)), 413, "body-too-large")
        self.assert_problem(self.admin.post("/v1/vms", raw=b" " * MIB), 400, "invalid-request")

    def test_all_together_have_a_bound_and_what_ends_makes_room(self):
        self.begin("--bodies-bytes", "9M")
        host = Host(self.admin)
        agent = self.as_token("agent", host.id)
        path = host.path + "/transitions"
        before = resident(self.server)
        held = self.start("POST", path, 6 * MIB, agent.token, 5 * MIB)  # for which there are 8 MiB
        body = json.dumps(host.current()).encode()
        large = body + b" " * (MIB - len(body))
        self.wait_for(lambda: resident(self.server) - before > 4 * MIB, "the body does not arrive")
        refused = agent.post(host.path + "/heartbeat", raw=large)
        self.assert_problem(refused, 503, "busy")
        self.assertEqual((refused["flag"], refused["limit"]), ("bodies-bytes", 9 * MIB))
        self.assertIn("retry-after", refused.headers)
        self.assert_ok(agent.post(host.path + "/heartbeat", raw=body))
        self.assert_ok(Client(self.server.port).get("/healthz"))
        held.close()
        self.wait_for(lambda: agent.post(host.path + "/heartbeat", raw=large).status == 200, "there is no room again")

    def test_members_past_all_bounds_are_refused_before_any_is_looked_at(self):
        self.begin()
        host = Host(self.admin)
        agent = self.as_token("agent", host.id)
        for raw, pointer in ((b"{" + b",".join(b'"k%d":1' % i for i in range(200000)) + b"}", ""),
                             (b'{"items":[{"vm":1},{' + b",".join(b'"k%d":1' % i for i in range(2000)) + b"}]}", "/items/1")):
            refused = agent.post(host.path + "/transitions", raw=raw)
            self.assert_problem(refused, 400, "invalid-request", pointer=pointer)
            self.assertIn("members", refused["detail"])

    def test_the_values_of_a_body_have_a_bound(self):
        self.begin("--decoded-bytes", "1M")
        host = Host(self.admin)
        agent = self.as_token("agent", host.id)
        for value in (b"[]", b"1", b'""', b"{}"):
            refused = agent.post(host.path + "/transitions", raw=b'{"items":[' + b",".join([value] * 100000) + b"]}")
            self.assert_problem(refused, 413, "too-much-work")
            self.assertEqual((refused["flag"], refused["limit"]), ("decoded-bytes", MIB))
        self.assert_ok(agent.post(host.path + "/heartbeat", host.current()))

    def test_a_large_body_is_decoded_beside_the_threads_that_answer(self):
        self.begin("--threads", "1")
        host = Host(self.admin)
        agent = self.as_token("agent", host.id)
        raw = b'{"items":[' + b",".join([b"[1]"] * 1000000) + b"]}"
        large = self.start("POST", host.path + "/transitions", len(raw), agent.token)
        beside = Client(self.server.port)
        self.assert_ok(beside.get("/healthz"))
        large.sendall(raw)
        answered = 0
        large.setblocking(False)
        while True:
            try:
                got = large.recv(4096)
                break
            except BlockingIOError:
                self.assert_ok(beside.get("/healthz"))
                answered += 1
        self.assertTrue(got.startswith(b"HTTP/1.1 4"), got)
        self.assertGreater(answered, 3, "nobody else was answered meanwhile")


if __name__ == "__main__":
    unittest.main()
