"""What holds for every request: tokens and roles, errors, bodies, idempotency keys, ETags, lists."""
import json
import os
import stat
import unittest

from harness import LIMIT, MEMBERS_OF_EVERY_PROBLEM, Case, Client, Host, Vm, new_id, pef_run, raw_exchange


class Tokens(Case):
    def test_what_needs_none(self):
        nobody = Client(self.server.port)
        for path in ("/healthz", "/readyz"):
            self.assert_ok(nobody.get(path))

    def test_none_or_a_bad_one_is_401(self):
        nobody = Client(self.server.port)
        for header in (None, "Bearer", "Bearer ", "Bearer nonsense", "Basic YTpi", "Bearer " + "x" * 4000,
                       self.server.token, "Bearer " + self.server.token[:-1], "Bearer " + self.server.token + "x"):
            with self.subTest(header=header):
                answer = nobody.get("/v1/hosts", headers={"Authorization": header})
                self.assert_problem(answer, 401, "unauthorized")
                self.assertIn("www-authenticate", answer.headers)
        self.assert_problem(nobody.post("/v1/vms", {}), 401, "unauthorized")

    def test_the_first_one_is_in_a_private_file(self):
        mode = os.stat(os.path.join(self.server.data, "admin.token")).st_mode
        self.assertEqual(stat.S_IMODE(mode), 0o600)
        self.assert_ok(self.admin.get("/v1/tokens"))

    def test_life_of_a_token(self):
        made = self.assert_ok(self.admin.post("/v1/tokens", {"role": "viewer", "name": "grafana"}), 201)
        secret, token = made["secret"], made["id"]
        reader = self.server.client(secret)
        self.assert_ok(reader.get("/v1/hosts"))
        listed = [t for t in self.admin.items("/v1/tokens") if t["id"] == token]
        self.assertEqual([(t["role"], t["name"]) for t in listed], [("viewer", "grafana")])
        self.assertNotIn(secret, self.admin.get("/v1/tokens?limit=1000").raw.decode())
        self.server.crash()
        self.assert_ok(reader.get("/v1/hosts"))
        self.assert_ok(self.admin.delete("/v1/tokens/" + token), 204)
        self.assert_problem(reader.get("/v1/hosts"), 401, "unauthorized")
        self.assert_problem(self.admin.delete("/v1/tokens/" + token), 404, "token-not-found")

    def test_secrets_are_nowhere_on_disk(self):
        made = self.assert_ok(self.admin.post("/v1/tokens", {"role": "operator", "name": "nova"},
                                              headers={"Idempotency-Key": "once"}), 201)
        self.server.restart()
        for folder, _, files in os.walk(self.server.folder):
            for name in files:
                with open(os.path.join(folder, name), "rb") as f:
                    self.assertNotIn(made["secret"].encode(), f.read(), name)

    def test_wrong_tokens_are_refused(self):
        for pointer, body in (("/role", {"role": "king", "name": "x"}), ("/name", {"role": "viewer", "name": 1}),
                              ("/host", {"role": "agent", "name": "x", "host": "y"}),
                              (None, {"role": "agent", "name": "x"}), (None, {"role": "viewer"}),
                              (None, {"role": "viewer", "name": "x", "host": new_id()}),
                              ("/extra", {"role": "viewer", "name": "x", "extra": 1})):
            with self.subTest(body=body):
                self.assert_problem(self.admin.post("/v1/tokens", body), 400, "invalid-request",
                                    **({"pointer": pointer} if pointer else {}))

    def test_roles(self):
        host = Host(self.admin)
        vm = Vm(host)
        other = Host(self.admin)
        viewer, operator = self.as_token("viewer"), self.as_token("operator")
        agent, stranger = self.as_token("agent", host.id), self.as_token("agent", other.id)
        vm_body = {"host": host.id, "arch": "pef", "slots": []}
        may, may_not = True, False
        for who, client, table in (
                ("viewer", viewer, (may, may_not, may_not, may_not, may_not, may_not)),
                ("operator", operator, (may, may, may, may_not, may_not, may_not)),
                ("agent", agent, (may, may_not, may_not, may_not, may, may_not)),
                ("stranger", stranger, (may, may_not, may_not, may_not, may_not, may_not))):
            calls = (("GET", vm.path, None), ("POST", "/v1/vms", vm_body), ("POST", vm.path + "/operations", {"kind": "launch"}),
                     ("POST", "/v1/tokens", {"role": "viewer", "name": "x"}),
                     ("POST", host.path + "/heartbeat", host.current()),
                     ("PUT", "/v1/pools/roles", {"base_pfn": 0, "frames": 1, "hosts": []}))
            for (method, path, body), allowed in zip(calls, table):
                with self.subTest(who=who, method=method, path=path):
                    answer = client.request(method, path, body)
                    if allowed:
                        self.assertLess(answer.status, 300, answer)
                    else:
                        self.assert_problem(answer, 403, "forbidden")

    def test_an_agent_registers_its_own_host_alone(self):
        mine, theirs = new_id(), new_id()
        agent = self.as_token("agent", mine)
        body = Host(self.admin).body()
        self.assert_ok(agent.put("/v1/hosts/" + mine, body), 201)
        self.assert_problem(agent.put("/v1/hosts/" + theirs, body), 403, "forbidden")


class Bodies(Case):
    def post(self, raw, **more):
        return self.admin.request("POST", "/v1/vms", raw=raw, **more)

    def good(self, **more):
        return {"host": Host(self.admin).id, "arch": "pef", "slots": [], **more}

    def test_what_is_no_json_is_refused(self):
        text = json.dumps(self.good())
        for raw in (b"", b"{", b"[]", b"5", b"null", b'"x"', b"{'a':1}", text[:-1].encode(), (text + "x").encode(),
                    (text + text).encode(), b"\xff\xfe{}", b"\x00", text.encode() + b"\x00", b"\xef\xbb\xbf" + text.encode()):
            with self.subTest(raw=raw[:20]):
                self.assert_problem(self.post(raw), 400, "invalid-request")

    def test_bad_utf8_duplicate_keys_and_deep_nesting_are_refused(self):
        text = json.dumps(self.good(name="NAME"))
        for what, raw in (("bad UTF-8", text.encode().replace(b"NAME", b"\xc3\x28")),
                          ("overlong", text.encode().replace(b"NAME", b"\xc0\xaf")),
                          ("surrogate", text.encode().replace(b"NAME", b"\xed\xa0\x80")),
                          ("duplicate", text.replace('"arch"', '"arch": "tdx", "arch"').encode()),
                          ("nesting", text.replace('"slots": []', '"slots": ' + "[" * 17 + "]" * 17).encode()),
                          ("much nesting", b"[" * 100000),
                          ("huge number", text.replace('"slots": []', '"slots": [{"slot":0,"base_gfn":1e400,"pages":1}]').encode()),
                          ("long number", text.replace('"slots": []', '"slots": [{"slot":0,"base_gfn":%d,"pages":1}]'
                                                       % (1 << 64)).encode())):
            with self.subTest(what=what):
                self.assert_problem(self.post(raw), 400, "invalid-request")

    def test_nesting_of_sixteen_is_fine(self):
        host, deep = Host(self.admin), {"x": 1}
        for _ in range(12):  # in a member of the body, which is an array of objects
            deep = {"x": deep}
        host.backends[0]["x"] = deep
        self.assert_ok(self.admin.put(host.path, host.body()))
        host.backends[0]["x"] = {"x": deep}
        self.assert_problem(self.admin.put(host.path, host.body()), 400, "invalid-request")

    def test_over_sixteen_mib_is_413(self):
        raw = json.dumps(self.good()).encode() + b" " * (16 << 20)
        self.assert_problem(self.post(raw), 413, "body-too-large")
        self.assert_ok(self.admin.get("/v1/hosts"))

    def test_another_media_type_is_415(self):
        raw = json.dumps(self.good()).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
            with self.subTest(kind=kind):
                self.assert_problem(self.post(raw, headers={"Content-Type": kind}), 415, "unsupported-media-type")
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
            with self.subTest(kind=kind):
                self.assert_ok(self.post(raw, headers={"Content-Type": kind}), 201)

    def test_pointers_are_escaped(self):
        answer = self.admin.post("/v1/vms", self.good(**{"a/b~c": 1}))
        self.assert_problem(answer, 400, "invalid-request", pointer="/a~1b~0c")


class Paths(Case):
    def test_another_method_is_405_and_says_which(self):
        host = Host(self.admin)
        for method, path, allowed in (("PATCH", "/v1/hosts", {"GET"}), ("DELETE", host.path, {"GET", "PUT"}),
                                      ("GET", host.path + "/heartbeat", {"POST"}), ("PUT", "/v1/vms", {"GET", "POST"})):
            with self.subTest(method=method, path=path):
                answer = self.admin.request(method, path)
                self.assert_problem(answer, 405, "method-not-allowed")
                said = {m.strip() for m in answer.headers["allow"].split(",")}
                self.assertEqual(said - {"HEAD", "OPTIONS"}, allowed)

    def test_what_is_not_there_is_404(self):
        for path in ("/v1", "/v1/", "/v1/nothing", "/v2/hosts", "/v1/hosts/", "/v1/hosts/a/b/c/d", "/v1//hosts",
                     "/v1/hosts/../vms", "/v1/hosts%00"):
            with self.subTest(path=path):
                answer = self.admin.get(path)
                self.assertEqual(answer.status, 404, answer)
                for member in MEMBERS_OF_EVERY_PROBLEM:
                    self.assertIn(member, answer.json)

    def test_request_ids(self):
        self.assertEqual(self.admin.get("/v1/hosts", headers={"X-Request-Id": "req-42.a_b"}).headers["x-request-id"],
                         "req-42.a_b")
        for insane in ("x" * 500, "a b", "a\"b", "<script>"):
            with self.subTest(insane=insane):
                made = self.admin.get("/v1/hosts", headers={"X-Request-Id": insane}).headers["x-request-id"]
                self.assertTrue(made)
                self.assertNotEqual(made, insane)
        ids = {self.admin.get("/v1/hosts").headers["x-request-id"] for _ in range(5)}
        self.assertEqual(len(ids), 5)

    def test_head_is_get_without_a_body(self):
        answer = self.assert_ok(self.admin.request("HEAD", "/v1/hosts"))
        self.assertEqual(answer.raw, b"")

    def test_garbage_on_the_wire_hurts_nobody(self):
        for data in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100000,
                     b"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
                     b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
            with self.subTest(data=data[:40]):
                raw_exchange(self.server.port, data, timeout=3)
                self.assert_ok(Client(self.server.port).get("/healthz"))


class Idempotency(Case):
    def make(self, key, body, client=None):
        return (client or self.admin).post("/v1/vms", body, headers={"Idempotency-Key": key})

    def test_the_same_again_gets_the_first_answer_again(self):
        host = Host(self.admin)
        body = {"host": host.id, "arch": "pef", "slots": []}
        first = self.assert_ok(self.make("k-1", body), 201)
        again = self.make("k-1", body)
        self.assertEqual((again.status, again.json, again.headers.get("location")),
                         (201, first.json, first.headers["location"]))
        self.server.crash()
        after = self.make("k-1", body)
        self.assertEqual((after.status, after.json), (201, first.json))
        self.assertEqual(self.admin.get(host.path)["vms"], 1)

    def test_another_body_is_a_mismatch(self):
        host = Host(self.admin)
        body = {"host": host.id, "arch": "pef", "slots": []}
        self.assert_ok(self.make("k-2", body), 201)
        self.assert_problem(self.make("k-2", dict(body, arch="tdx")), 422, "idempotency-mismatch")
        self.assertEqual(self.admin.get(host.path)["vms"], 1)

    def test_without_a_key_it_is_done_twice(self):
        host = Host(self.admin)
        body = {"host": host.id, "arch": "pef", "slots": []}
        for _ in range(2):
            self.assert_ok(self.admin.post("/v1/vms", body), 201)
        self.assertEqual(self.admin.get(host.path)["vms"], 2)

    def test_keys_work_on_every_post(self):
        host = Host(self.admin)
        vm = Vm(host)
        for path, body, status in ((vm.path + "/operations", {"kind": "launch"}, 202), (vm.path + "/lifecycle", {"event": "init_start"}, 200),
                                   (host.path + "/transitions", dict(host.current(), items=[vm.item("share")]), 200)):
            with self.subTest(path=path):
                key = {"Idempotency-Key": new_id()}
                first = self.assert_ok(self.admin.post(path, body, headers=key), status)
                again = self.admin.post(path, body, headers=key)
                self.assertEqual((again.status, again.json), (first.status, first.json))

    def test_wrong_keys_are_refused(self):
        body = {"host": Host(self.admin).id, "arch": "pef", "slots": []}
        for key in ("", "x" * 129, "caf\u00e9"):
            with self.subTest(key=key):
                self.assert_problem(self.make(key, body), 400, "invalid-request")
        self.assert_ok(self.make("x" * 128, body), 201)


class Etags(Case):
    def test_if_match(self):
        vm = Vm(Host(self.admin))
        shown = self.admin.get(vm.path)
        old = shown.headers["etag"]
        self.assertEqual(old, f'"{shown["revision"]}"')
        self.assert_ok(self.admin.post(vm.path + "/lifecycle", {"event": "init_start"}, headers={"If-Match": old}))
        new = self.admin.get(vm.path).headers["etag"]
        self.assertNotEqual(new, old)
        for method, path, body in (("PUT", vm.path + "/slots/1", {"base_gfn": 9000, "pages": 1}), ("DELETE", vm.path, None),
                                   ("POST", vm.path + "/lifecycle", {"event": "init_done"})):
            with self.subTest(method=method):
                self.assert_problem(self.admin.request(method, path, body, headers={"If-Match": old}), 412, "stale")
        self.assertEqual(vm.get()["state"], "transient")
        abort = dict(vm.host.current(), event="init_abort")
        self.assert_ok(self.admin.post(vm.path + "/lifecycle", abort, headers={"If-Match": new}))
        self.assert_ok(self.admin.delete(vm.path, headers={"If-Match": "*"}), 204)

    def test_every_route_that_changes_something_minds_it(self):
        vm = Vm(Host(self.admin))
        host, now = vm.host, vm.host.current()
        order = {"kind": "share", "params": {"gfn": 1, "count": 1}}
        made = self.assert_ok(self.admin.post(vm.path + "/operations", order), 202)
        spare = self.assert_ok(self.admin.post("/v1/tokens", {"role": "viewer", "name": "spare"}), 201)["id"]
        frames = {"items": [{"pool": "local", "pfn": 7, "count": 1, "reason": "test"}]}
        bodies = {
            "PUT /v1/hosts/{host}": host.body(), "POST /v1/hosts/{host}/fence": {"force": True},
            "POST /v1/hosts/{host}/heartbeat": now, "POST /v1/hosts/{host}/transitions": dict(now, items=[
                {"vm": vm.id, "op": "page_in", "gfn": 0, "count": 1, "frame": {"pool": "local", "pfn": 0}}]),
            "POST /v1/hosts/{host}/quarantine": dict(frames, **now), "POST /v1/hosts/{host}/quarantine/release": frames,
            "PUT /v1/hosts/{host}/unknown-vms": dict(now, items=[]), "PUT /v1/pools/{pool}": {"base_pfn": 0, "frames": 64, "hosts": [host.id]},
            "POST /v1/vms": {"host": host.id, "arch": "pef", "slots": []}, "PUT /v1/vms/{vm}/slots/{slot}":
            {"base_gfn": 1 << 21, "pages": 1}, "POST /v1/vms/{vm}/lifecycle": {"event": "init_start"},
            "POST /v1/vms/{vm}/operations": order, "POST /v1/operations/{op}/result": dict(now, state="succeeded"),
            "POST /v1/tokens": {"role": "viewer", "name": "n"},
            "POST /v1/backups": {"name": "older"}, "POST /v1/verify": {},
        }
        paths = {"{host}": host.id, "{vm}": vm.id, "{slot}": "0", "{op}": made["id"], "{token}": spare, "{pool}": "none-yet"}
        served = self.admin.get("/openapi.json")["paths"]
        del served["/v1/vms/{vm}/vcpus/{n}"]  # a test of its own: test_contract_vcpus
        for pattern, methods in served.items():
            for method in sorted(set(methods) & {"put", "post", "delete"}):
                path = pattern
                for name, value in paths.items():
                    path = path.replace(name, value)
                body = bodies.get(f"{method.upper()} {pattern}")
                for tags in ('"999999999"', 'W/"1", "999999998"'):
                    with self.subTest(method=method, path=pattern, tags=tags):
                        got = self.admin.request(method.upper(), path, body, headers={"If-Match": tags})
                        self.assert_problem(got, 412, "stale")
        self.assertNotIn("none-yet", str(self.admin.get("/v1/pools").raw))
        self.assert_ok(self.admin.get(vm.path))

    def test_hosts_and_pools_have_them(self):
        host = Host(self.admin)
        shown = self.admin.get(host.path)
        self.assertEqual(shown.headers["etag"], f'"{shown["revision"]}"')
        host.name = "renamed"
        self.assert_problem(self.admin.put(host.path, host.body(), headers={"If-Match": '"999999999"'}), 412, "stale")
        self.assert_ok(self.admin.put(host.path, host.body(), headers={"If-Match": shown.headers["etag"]}))


class Lists(Case):
    def test_cursors_walk_everything_once(self):
        wanted = {Host(self.admin).id for _ in range(7)}
        seen, path = [], "/v1/hosts?limit=2"
        while path:
            answer = self.assert_ok(self.admin.get(path))
            self.assertLessEqual(len(answer["items"]), 2)
            seen += [h["id"] for h in answer["items"]]
            path = f"/v1/hosts?limit=2&cursor={answer['next_cursor']}" if "next_cursor" in answer.json else None
        self.assertEqual(len(seen), len(set(seen)))
        self.assertLessEqual(wanted, set(seen))

    def test_limits_outside_the_contract_are_400(self):
        vm = Vm(Host(self.admin))
        for path in ("/v1/hosts", "/v1/vms", "/v1/pools", "/v1/tokens", "/v1/events", "/v1/violations", vm.path + "/gfns"):
            for limit in ("0", "1001", "-1", "x", "", "1.5", "99999999999999999999"):
                with self.subTest(path=path, limit=limit):
                    self.assert_problem(self.admin.get(f"{path}?limit={limit}"), 400, "invalid-request")
            self.assert_ok(self.admin.get(path + "?limit=1000"))

    def test_unknown_parameters_and_bad_cursors_are_400(self):
        for query in ("surprise=1", "cursor=%00%ff", "cursor=nonsense%20here"):
            with self.subTest(query=query):
                self.assert_problem(self.admin.get("/v1/hosts?" + query), 400, "invalid-request")


class Numbers(Case):
    def test_limits_of_gfns_and_pfns(self):
        host = Host(self.admin, frames=16, base=LIMIT - 16)
        vm = Vm(host, state="secure", slots=[{"slot": 0, "base_gfn": LIMIT - 16, "pages": 16}])
        self.accepted(host.send(vm.item("page_in", LIMIT - 1, 1, LIMIT - 1), vm.item("page_in", LIMIT - 16, 15, LIMIT - 16)))
        self.assertEqual(host.frames(LIMIT - 1, 1), [pef_run({"pfn": LIMIT - 1, "count": 1, "vm": vm.id, "gfn": LIMIT - 1})])
        self.assertEqual(vm.page(LIMIT - 1), ("secure", True, LIMIT - 1))


if __name__ == "__main__":
    unittest.main()
