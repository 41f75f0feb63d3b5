"""Connections have owners and ends: nobody who says nothing, drips, or does not listen keeps others out."""
import socket
import time
import unittest

from harness import WAIT_S, Case, Client, Host, Server


class Connections(Case):
    @classmethod
    def setUpClass(cls):
        """Each test starts its own server."""

    def setUp(self):
        """See begin."""

    def begin(self, *flags):
        self.server = Server("--lease-seconds", "3600", *flags)
        self.addCleanup(self.server.close)
        self.admin = self.server.client()
        self.addCleanup(self.admin.close)

    def dial(self, data=b""):
        s = socket.create_connection(("127.0.0.1", self.server.port), timeout=WAIT_S)
        self.addCleanup(s.close)
        try:
            s.sendall(data)
        except OSError:
            pass  # it was told to leave at once
        return s

    def poll(self, token, path="/v1/events?after=999999&wait=300"):
        return self.dial(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())

    def assert_ends(self, s, drip=b""):
        """The server ends it, whatever is sent meanwhile. Returns what came."""
        got, end = b"", time.monotonic() + WAIT_S
        s.settimeout(0.1)
        while time.monotonic() < end:
            try:
                if drip:
                    s.sendall(drip)
                more = s.recv(65536)
            except socket.timeout:
                continue
            except OSError:
                return got
            if not more:
                return got
            got += more
        raise AssertionError(f"it is still there after {WAIT_S} s; {got[:200]!r}")

    def assert_anybody_gets_in(self, host, agent):
        """On fresh connections, as a fleet that comes back would."""
        now = host.current()
        for token, method, path, body in ((None, "GET", "/healthz", None), (agent, "POST", host.path + "/heartbeat", now),
                                          (agent, "PUT", host.path, host.body()), (self.server.token, "GET", "/v1/hosts", None)):
            client = Client(self.server.port, token)
            started = time.monotonic()
            self.assert_ok(client.request(method, path, body))
            self.assertLess(time.monotonic() - started, 20, path)
            client.close()

    def test_a_head_has_a_deadline_that_drops_do_not_move(self):
        self.begin("--head-seconds", "1")
        for start in (b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: "):
            with self.subTest(start=start):
                self.assertEqual(self.assert_ends(self.dial(start), drip=b"a" if start else b""), b"")

    def test_a_body_has_one_too(self):
        self.begin("--body-seconds", "1")
        head = (f"POST /v1/vms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.server.token}\r\n"
                "Content-Type: application/json\r\n").encode()
        for framing in (b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nffff\r\n"):
            with self.subTest(framing=framing):
                self.assertEqual(self.assert_ends(self.dial(head + framing), drip=b" "), b"")

    def test_what_is_idle_between_requests_ends(self):
        self.begin("--idle-seconds", "1")
        s = self.dial(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(self.assert_ends(s).startswith(b"HTTP/1.1 200 "))
        s = self.dial(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        self.assertEqual(self.assert_ends(s, drip=b"l").count(b"HTTP/1.1 "), 1)

    def test_an_answer_that_nobody_takes_ends(self):
        self.begin("--answer-seconds", "1")
        s = socket.socket()
        self.addCleanup(s.close)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(WAIT_S)
        s.connect(("127.0.0.1", self.server.port))
        ask = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.server.token}\r\n\r\n".encode()
        asked = 0
        s.setblocking(False)
        try:
            while asked < 2000:  # until the server reads no more of them
                s.send(ask)
                asked += 1
        except OSError:
            pass
        time.sleep(4)
        got = self.assert_ends(s)
        self.assertLess(got.count(b"HTTP/1.1 200 "), asked)

    def test_crowds_that_say_nothing_keep_nobody_out(self):
        self.begin("--connections", "24", "--reserve-connections", "8")
        host = Host(self.admin)
        agent = self.as_token("agent", host.id).token
        viewer = self.as_token("viewer").token
        for start in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            with self.subTest(start=start):
                crowd = [self.dial(start) for _ in range(150)]
                self.assert_anybody_gets_in(host, agent)
                self.admitted_again(viewer)  # as soon as the newest of the crowd had time to ask
                for s in crowd:
                    s.close()

    def test_crowds_that_wait_keep_out_their_like_alone(self):
        self.begin("--connections", "24", "--reserve-connections", "8")
        host = Host(self.admin)
        agent = self.as_token("agent", host.id).token
        viewer = self.as_token("viewer").token
        crowd = [self.poll(viewer) for _ in range(60)]
        refused = [got for got in (self.assert_ends(s) for s in crowd[30:]) if got]
        self.assertTrue(refused)
        for got in refused:  # at once, not when the wait is over
            self.assertTrue(got.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in got and b"/problems/busy" in got, got)
        self.assert_anybody_gets_in(host, agent)
        self.assertFalse(self.admitted(viewer))
        for s in crowd:
            s.close()
        self.admitted_again(viewer)

    def admitted(self, token):
        """Who is turned away may be cut off before he has read why."""
        try:
            return Client(self.server.port, token).get("/v1/hosts").status == 200
        except OSError:
            return False

    def admitted_again(self, token):
        end = time.monotonic() + WAIT_S
        while not self.admitted(token):
            self.assertLess(time.monotonic(), end, "those who have gone still take the places")
            time.sleep(0.1)

    def test_who_goes_while_he_waits_frees_his_place(self):
        self.begin("--connections", "24", "--reserve-connections", "8")
        host = Host(self.admin)
        viewer = self.as_token("viewer").token
        for path in ("/v1/events?after=999999&wait=300", f"/v1/events?host={host.id}&after=999999&wait=300"):
            for _ in range(4):
                for s in [self.poll(viewer, path) for _ in range(18)]:
                    s.close()
                self.admitted_again(viewer)
        agent = self.as_token("agent", host.id).token
        for s in [self.poll(agent, host.path + "/operations?wait=300") for _ in range(18)]:
            s.close()
        self.admitted_again(viewer)
        self.assertEqual(self.server.stop(), 0)

    def test_one_agent_does_not_take_the_reserve(self):
        self.begin("--connections", "8", "--reserve-connections", "8")
        first, second = Host(self.admin), Host(self.admin)
        greedy = self.as_token("agent", first.id).token
        honest = self.as_token("agent", second.id).token
        for _ in range(40):
            self.poll(greedy, first.path + "/operations?wait=300")
        time.sleep(0.5)
        self.assert_anybody_gets_in(second, honest)

    def test_an_address_has_its_share(self):
        self.begin("--connections", "64", "--address-connections", "4")
        viewer = self.as_token("viewer").token
        crowd = [self.poll(viewer) for _ in range(12)]
        self.assertTrue(any(self.assert_ends(s).startswith(b"HTTP/1.1 503 ") for s in crowd[5:]))
        other = socket.create_connection(("127.0.0.1", self.server.port), WAIT_S, source_address=("127.0.0.2", 0))
        self.addCleanup(other.close)
        other.sendall(f"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {viewer}\r\n\r\n".encode())
        self.assertTrue(other.recv(4096).startswith(b"HTTP/1.1 200 "))


if __name__ == "__main__":
    unittest.main()
