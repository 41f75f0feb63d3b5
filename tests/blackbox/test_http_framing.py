"""Requests whose end or meaning is in doubt: refused with a problem, and nothing behind them is read as a request."""
import json
import socket
import unittest

from harness import Case

BODY = b'{"name":"n","role":"viewer"}'
HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Framing(Case):
    def exchange(self, data, end=True):
        """What comes back until the server closes the connection; with end=False, until one answer is whole."""
        got = b""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as s:
            s.sendall(data)
            while True:
                try:
                    more = s.recv(65536)
                except ConnectionResetError:
                    more = b""
                if not more:
                    return got
                got += more
                head, there, body = got.partition(b"\r\n\r\n")
                if not end and there and (b"Content-Length: %d\r\n" % len(body)) in head + b"\r\n":
                    return got

    def head(self, *lines, method="POST", path="/v1/tokens", version="HTTP/1.1", host=b"Host: x"):
        first = [f"{method} {path} {version}".encode()] + ([host] if host else [])
        token = b"Authorization: Bearer " + self.server.token.encode()
        return b"\r\n".join(first + [token, *lines]) + b"\r\n\r\n"

    def post(self, *lines, **more):
        return self.head(b"Content-Type: application/json", *lines, **more)

    def assert_refused(self, data, statuses=(400,)):
        got = self.exchange(data + HIDDEN)
        self.assertEqual(got.count(b"HTTP/1.1 "), 1, got)
        head, _, body = got.partition(b"\r\n\r\n")
        self.assertIn(int(head[9:12]), statuses, got)
        self.assertIn(b"\r\nContent-Type: application/problem+json\r\n", head)
        self.assertEqual(json.loads(body)["status"], int(head[9:12]))
        self.assertNotIn(b"ok\n", got)

    def assert_served(self, data, status):
        got = self.exchange(data, end=False)
        self.assertEqual(got[:12], b"HTTP/1.1 %d" % status, got)

    def test_whose_end_is_in_doubt(self):
        length = b"Content-Length: %d" % len(BODY)
        longer = b"Content-Length: %d" % (len(BODY) + len(HIDDEN))
        chunked = b"Transfer-Encoding: chunked"
        for name, lines in {
                "two lengths": (length, longer), "the other first": (longer, length), "the same length twice": (length, length),
                "length and coding": (b"Content-Length: 5", chunked), "coding and length": (chunked, length),
                "two codings": (chunked, chunked), "gzip": (b"Transfer-Encoding: gzip",),
                "gzip, chunked": (b"Transfer-Encoding: gzip, chunked",), "identity": (b"Transfer-Encoding: identity",),
                "xchunked": (b"Transfer-Encoding: xchunked",), "a blank behind it": (b"Transfer-Encoding: chunked ",),
                "a blank before the colon": (b"Transfer-Encoding : chunked", length),
                "a tab before the colon": (b"Content-Length\t: 5", length)}.items():
            with self.subTest(name):
                self.assert_refused(self.post(*lines) + BODY)
        with self.subTest("HTTP/1.0 with a coding"):
            self.assert_refused(self.post(chunked, version="HTTP/1.0") + b"0\r\n\r\n")

    def test_whose_host_is_in_doubt(self):
        for name, host in {"none": None, "two": b"Host: x\r\nHost: y", "the same twice": b"Host: x\r\nhost: x",
                           "empty": b"Host:", "two in one": b"Host: x, y", "a path": b"Host: x/y", "a user": b"Host: a@x",
                           "blank inside": b"Host: x y"}.items():
            with self.subTest(name):
                self.assert_refused(self.head(method="GET", path="/healthz", host=host))
        self.assert_served(self.head(method="GET", path="/healthz", host=None, version="HTTP/1.0"), 200)
        for host in (b"Host: x:80", b"Host: [::1]:8470", b"Host: 127.0.0.1", b"Host: x "):
            self.assert_served(self.head(method="GET", path="/healthz", host=host), 200)

    def test_heads_with_what_a_proxy_may_read_otherwise(self):
        for name, line in {
                "NUL in a value": b"X-A: a\0b", "NUL first": b"X-A: \0b", "two NULs": b"X-A: a\0\0b", "NUL last": b"X-A: a\0",
                "NULs and a line": b"X-A: a\0\0Content-Length: 5", "bare CR": b"X-A: a\rContent-Length: 5",
                "CR at the end": b"X-A: a\r", "bare LF": b"X-A: a\nX-B: b", "a folded line": b"X-A: a\r\n b",
                "a line folded by a tab": b"X-A: a\r\n\tContent-Length: 5", "escape": b"X-A: \x1b[0m", "DEL": b"X-A: \x7f",
                "a name with brackets": b"X[A]: a", "a name of 8 bits": b"X-\xe4: a", "a name with a control": b"X\x01A: a"}.items():
            for place, lines in (("first", (line, b"X-Z: z")), ("last", (b"X-Z: z", line))):
                with self.subTest(name, place=place):
                    self.assert_refused(self.head(*lines, method="GET", path="/v1/summary"))
        for line in (b"X-A:", b"X-A: \xe4\xf6", b"X-A: a \t", b"X-A:\tb", b"x~!#$%&'*+.^_`|: a"):
            with self.subTest(line=line):
                self.assert_served(self.head(line, method="GET", path="/v1/summary"), 200)

    def test_request_lines_in_doubt(self):
        rest = b"\r\nHost: x\r\n\r\n"
        for line in (b"GET  /healthz HTTP/1.1", b"GET /healthz  HTTP/1.1", b"GET /healthz HTTP/1.1\n", b"GET /health\0z HTTP/1.1",
                     b"GET\0 /healthz HTTP/1.1", b"GET /v1/v ms HTTP/1.1", b"GET /v1/\xff HTTP/1.1", b"GET /\rx HTTP/1.1",
                     b"G(T /healthz HTTP/1.1"):
            with self.subTest(line=line):
                self.assert_refused(line + rest)

    def test_what_must_stand_once(self):
        token = b"Authorization: Bearer " + self.server.token.encode()
        for line in (token, b"Authorization: Bearer other", b"authorization: Basic YTpi"):
            with self.subTest(line=line):
                self.assert_refused(self.head(line, method="GET", path="/v1/summary"))
        for lines in ((b"Idempotency-Key: a", b"Idempotency-Key: b"), (b'If-Match: "1"', b'If-Match: "2"'),
                      (b"Content-Type: application/json", b"Content-Length: 0"), (b"Expect: 100-continue",) * 2):
            with self.subTest(lines=lines):
                self.assert_refused(self.post(*lines))

    def test_bodies_that_nobody_can_read(self):
        length = b"Content-Length: %d" % len(BODY)
        for lines in ((b"Content-Encoding: gzip", length), (b"Content-Encoding: identity, gzip", length)):
            with self.subTest(lines=lines):
                self.assert_refused(self.post(*lines) + BODY, (415,))
        for expect in (b"200-ok", b"100-continue, x", b""):
            with self.subTest(expect=expect):
                self.assert_refused(self.post(b"Expect: " + expect, length) + BODY, (400, 417))
        for kind in (b"application/json; charset=latin1", b'application/json; charset="utf-16"', b"application/json; charset=utf-8x",
                     b"application/json; a=b", b"application/jsonx", b"text/json", b"application/json;charset=utf-8;charset=latin1"):
            with self.subTest(kind=kind):
                self.assert_served(self.head(b"Content-Type: " + kind, length) + BODY, 415)
        for kind in (b"application/json", b"application/json; charset=utf-8", b'APPLICATION/JSON ;CharSet="UTF-8"',
                     b"application/json;"):
            with self.subTest(kind=kind):
                self.assert_served(self.head(b"Content-Type: " + kind, length) + BODY, 201)
        self.assert_served(self.post(b"Content-Encoding: identity", length) + BODY, 201)
        self.assert_served(self.post(b"Transfer-Encoding: Chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 201)

    def test_sound_requests_behind_one_another_are_all_served(self):
        last = self.head(b"Connection: close", method="GET", path="/healthz")
        many = self.head(b"Content-Length: 5", method="GET", path="/healthz") + b"hello"
        got = self.exchange(many * 3 + self.post(b"Content-Length: %d" % len(BODY)) + BODY + last)
        self.assertEqual((got.count(b"HTTP/1.1 200 "), got.count(b"HTTP/1.1 201 ")), (4, 1), got)

    def assert_refused_whole(self, data, status, slug):
        """One problem, readable although the client sends all it has first, and then the end, no reset."""
        for _ in range(2):
            got = b""
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as s:
                s.sendall(data)
                while more := s.recv(65536):
                    got += more
            self.assertEqual(got.count(b"HTTP/1.1 %d " % status), 1, got)
            head, _, body = got.partition(b"\r\n\r\n")
            self.assertEqual(head[:12], b"HTTP/1.1 %d" % status)
            for line in (b"Connection: close", b"Content-Type: application/problem+json", b"Content-Length: %d" % len(body)):
                self.assertIn(line, head.split(b"\r\n"))
            problem = json.loads(body)
            self.assertEqual((problem["status"], problem["type"]), (status, "/problems/" + slug))
            self.assertIn(b"X-Request-Id: " + problem["request_id"].encode(), head.split(b"\r\n"))
            self.assertEqual("flag" in problem, status in (413, 414, 431))

    def test_what_the_library_cannot_read_is_one_problem(self):
        chunked = b"Transfer-Encoding: chunked"
        for name, (data, status, slug) in {
                "a target of 100 kB": (self.head(method="GET", path="/v1/" + "a" * 100000), 414, "uri-too-long"),
                "a target of 2 MB": (self.head(method="GET", path="/v1/" + "a" * 2000000), 414, "uri-too-long"),
                "no line's end": (b"A" * 100000, 414, "uri-too-long"),
                "a header of 1 MB": (self.head(b"X-A: " + b"b" * 1000000, method="GET"), 431, "head-too-large"),
                "3000 headers": (self.head(*(b"X-%d: 1" % i for i in range(3000)), method="GET"), 431, "head-too-large"),
                "a cookie that is copied": (self.head(b"Cookie: " + b"a=b; " * 6000, method="GET"), 431, "head-too-large"),
                "a length below 0": (self.post(b"Content-Length: -1") + BODY, 400, "invalid-request"),
                "a length with a sign": (self.post(b"Content-Length: +28") + BODY, 400, "invalid-request"),
                "a length with a tail": (self.post(b"Content-Length: 28x") + BODY, 400, "invalid-request"),
                "no length": (self.post(b"Content-Length:") + BODY, 400, "invalid-request"),
                "a length past 64 bits": (self.post(b"Content-Length: %d" % (2**64 + 28)) + BODY, 413, "body-too-large"),
                "a chunk of -1": (self.post(chunked) + b"-1\r\n" + BODY, 400, "invalid-request"),
                "a chunk past 64 bits": (self.post(chunked) + b"1" + b"f" * 16 + b"\r\n" + BODY, 413, "body-too-large"),
                "a chunk with no end": (self.post(chunked) + b"1\r\nabc\r\n", 400, "invalid-request"),
                "a line without a colon": (self.head(b"what", b"X-A: b", method="GET"), 400, "invalid-request"),
                "no version": (b"GET /healthz\r\n\r\n", 400, "invalid-request"),
                "HTTP/2.0": (self.head(method="GET", path="/healthz", version="HTTP/2.0"), 505, "http-version-unsupported"),
                "HTTP/0.9": (self.head(method="GET", path="/healthz", version="HTTP/0.9"), 505, "http-version-unsupported")}.items():
            with self.subTest(name):
                self.assert_refused_whole(data, status, slug)
        self.assert_served(self.head(method="GET", path="/v1/summary"), 200)


if __name__ == "__main__":
    unittest.main()
