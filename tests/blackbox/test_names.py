"""Names, reasons and other free texts: characters that steer a terminal, hide or turn the direction of text (Unicode
Cc, Cf, Zl, Zp) never get in, and what a server says is shown without them."""
import http.server
import json
import os
import pty
import subprocess
import threading
import unicodedata
import unittest

from harness import BOOT, BUILD, Case, Host, Vm, new_id

PAGEWARDEN = os.path.join(BUILD, "pagewarden")
REFUSED = {"Cc", "Cf", "Zl", "Zp"}
SAMPLES = "\x01\x1b\x7f\x80\x9b\xad\u061c\u200b\u200d\u2028\u2029\u202e\u2066\ufeff\ufff9\U000110bd\U000e0001\U000e0041"


def code_points(wanted):
    """Those whose category, as Python knows it, is among the refused ones (or is not). A surrogate is no character."""
    return [c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) not in ("Cs", "Cn")
            and (unicodedata.category(c) in REFUSED) == wanted]


class Names(Case):
    def refused_at(self, answer, pointer):
        self.assert_problem(answer, 400, "invalid-request", pointer=pointer)
        self.assertTrue(answer["detail"].isprintable())

    def release(self, host, reasons):
        items = [{"pool": "local", "pfn": 1, "count": 1, "reason": text} for text in reasons]
        return self.admin.post(host.path + "/quarantine/release", {"items": items})

    def test_all_code_points(self):
        """A reason that is only read, and stored nowhere, takes them all in a few requests."""
        host, plain = Host(self.admin), code_points(False)
        texts = ["".join(plain[i:i + 127]) for i in range(0, len(plain), 127)]
        self.assertGreater(len(plain), 280000)
        for i in range(0, len(texts), 500):
            self.assert_ok(self.release(host, texts[i:i + 500]))
        for c in code_points(True):
            with self.subTest(c=f"U+{ord(c):04X}"):
                self.refused_at(self.release(host, ["plain", f"a{c}b"]), "/items/1/reason")

    def test_every_free_text(self):
        host = Host(self.admin)
        vm, token = Vm(host), self.as_token("agent", host.id)
        self.assert_ok(self.admin.post(vm.path + "/operations", {"kind": "launch"}), 202)
        operation = token.get(host.path + "/operations")["items"][0]["id"]
        result = f"/v1/operations/{operation}/result"
        failed = dict(host.current(), state="failed")
        register = {"name": "n", "boot_id": BOOT, "backends": [], "pools": []}
        backend = {"arch": "pef", "kind": "emulated"}
        unknown = {"vm": vm.id, "reason": "absent", "detail": "d", "arch": "pef", "state": "secure", "pages": 1,
                   "disputed_pages": 0, "disputed": []}

        def with_unknown(**more):
            return token.put(host.path + "/unknown-vms", dict(host.current(), items=[dict(unknown, **more)]))

        fields = {
            "/name": [lambda t: self.admin.put(f"/v1/hosts/{new_id()}", dict(register, name=t)),
                      lambda t: self.admin.post("/v1/vms", {"name": t, "host": host.id, "arch": "pef", "slots": []}),
                      lambda t: self.admin.post("/v1/tokens", {"role": "viewer", "name": t})],
            "/agent_version": [lambda t: self.admin.put(f"/v1/hosts/{new_id()}", dict(register, agent_version=t))],
            "/boot_id": [lambda t: self.admin.put(f"/v1/hosts/{new_id()}", dict(register, boot_id=t))],
            "/backends/0/firmware": [lambda t: self.admin.put(
                f"/v1/hosts/{new_id()}", dict(register, backends=[dict(backend, firmware=t)]))],
            "/backends/0/list/1/x": [lambda t: self.admin.put(
                f"/v1/hosts/{new_id()}", dict(register, backends=[dict(backend, list=[1, {"x": t}])]))],
            "/items/0/reason": [lambda t: self.admin.post(
                host.path + "/quarantine", {"items": [{"pool": "local", "pfn": 1, "count": 1, "reason": t}]})],
            "/problem/detail": [lambda t: token.post(result, dict(failed, problem={"detail": t}))],
            "/problem/a/0": [lambda t: token.post(result, dict(failed, problem={"a": [t]}))],
            "/items/0/detail": [lambda t: with_unknown(detail=t)],
            "/items/0/arch": [lambda t: with_unknown(arch=t)],
            "/items/0/state": [lambda t: with_unknown(state=t)],
        }
        for pointer, calls in fields.items():
            for n, call in enumerate(calls):
                for c in SAMPLES:
                    with self.subTest(pointer=pointer, n=n, c=f"U+{ord(c):04X}"):
                        self.refused_at(call(f"x{c}y"), pointer)
        for c in SAMPLES:
            with self.subTest(c=f"U+{ord(c):04X}"):
                answer = self.admin.post(vm.path + "/operations", {"kind": "launch", "params": {"share_backing": c}})
                self.assertEqual((answer.status, answer["pointer"]), (400, "/params/share_backing"))
                self.refused_at(token.post(result, dict(failed, problem={f"k{c}": 1})), f"/problem/k{c}")
                self.refused_at(self.admin.put(f"/v1/hosts/{new_id()}", dict(
                    register, backends=[dict(backend, **{f"k{c}": 1})])), f"/backends/0/k{c}")
        self.assertEqual(token.get(f"/v1/operations/{operation}")["state"], "running")

    def test_other_texts_stay_as_they_are(self):
        host, name = Host(self.admin), "Möbel \u6f22\u5b57 \u05d0\u05d1 \U0001f600"
        self.assertEqual(Vm(host, name=name).get()["name"], name)


class Hostile(http.server.BaseHTTPRequestHandler):
    """A server of before, whose journal has names and problems that are not plain."""
    text = "x" + SAMPLES + "y"

    def answer(self):
        t, one = self.text, {"id": new_id(), "name": self.text, "state": self.text, "k" + self.text: {"l" + self.text: [self.text]},
                             "problem": {"type": "/problems/" + self.text, "detail": self.text}, "kind": self.text,
                             "exit": self.text, "time": self.text, "items": [],
                             "count": 17, "last": "the last"}
        if self.headers["Authorization"] == "Bearer refuse":
            status, body = 409, {"type": "/problems/" + t, "detail": t, "request_id": t, "oldest": 1,
                                 "conflicts": [{"pool": t, "vm": t, "pfn": 1, "count": 1, "gfn": 1}]}
        elif self.headers["Authorization"] == "Bearer limit":
            status, body = 413, {"type": "/problems/too-much-work", "detail": "much", "flag": "some-limit", "limit": 1, "asked": 2}
        elif self.path.split("?")[0].count("/") == 2:
            status, body = 200, {"items": [one]} if "after=1" not in self.path else {"items": []}
            body["next"] = 1
        else:
            status, body = 200, one
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

    def log_message(self, *args):
        pass


class Shown(unittest.TestCase):
    def setUp(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.env = dict(os.environ, PAGEWARDEN_URL=f"http://127.0.0.1:{server.server_port}", PAGEWARDEN_TOKEN="some")
        self.env.pop("PAGEWARDEN_TOKEN_FILE", None)

    def plain(self, data):
        text = data.decode()
        self.assertEqual([c for c in text if c not in "\n\t" and unicodedata.category(c) in REFUSED], [], text)
        return text

    def run_it(self, *args, **env):
        done = subprocess.run([PAGEWARDEN, *args], env={**self.env, **env}, capture_output=True, timeout=60, check=False)
        return done, self.plain(done.stdout), self.plain(done.stderr)

    def test_everything_that_is_printed_is_plain(self):
        some = new_id()
        for args in (("hosts",), ("hosts", some), ("vms",), ("vms", some), ("operations", some),
                     ("events",), ("violations",), ("tokens",), ("unknown",), ("summary",), ("vcpu", some, "0")):
            for more in ((), ("--json",)):
                with self.subTest(args=args, more=more):
                    done, out, _ = self.run_it(*args, *more)
                    self.assertEqual(done.returncode, 0, done)
                    if more:
                        self.assertIn(repr(Hostile.text)[1:-1], repr(json.loads(out.splitlines()[0])))
                    elif args[0] != "vcpu":
                        self.assertIn("\\u0080\\u009b", out)

    def test_a_limit_is_named_and_repeats_are_counted(self):
        done, _, err = self.run_it("hosts", new_id(), PAGEWARDEN_TOKEN="limit")
        self.assertEqual(done.returncode, 1)
        self.assertIn("--some-limit (pagewardend --print-limits", err)
        row = self.run_it("violations")[1].splitlines()[0].split("\t")
        self.assertEqual(row[5:7], ["17", "the last"], row)

    def test_refusals_are_printed_plainly(self):
        done, _, err = self.run_it("hosts", new_id(), PAGEWARDEN_TOKEN="refuse")
        self.assertEqual(done.returncode, 1)
        self.assertIn("\\u202e", err)

    def test_a_terminal_gets_plain_text_too(self):
        for more in ((), ("--json",)):
            master, slave = pty.openpty()
            subprocess.run([PAGEWARDEN, "hosts", *more], env=self.env, stdout=slave, timeout=60, check=True)
            os.close(slave)
            self.plain(os.read(master, 1 << 16).replace(b"\r\n", b"\n"))
            os.close(master)


if __name__ == "__main__":
    unittest.main()
