"""A real pagewardend for black-box tests: on a free port, in a folder of its own, driven over HTTP.

Nothing here knows how the server works inside; what tests expect comes from the contract and the law.
"""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import uuid

BUILD = os.environ.get("PAGEWARDEN_BUILD", "build")
PAGEWARDEND = os.path.join(BUILD, "pagewardend")
WAIT_S = 60
LIMIT = 1 << 40
BOOT = "11111111-1111-1111-1111-111111111111"
OTHER_BOOT = "22222222-2222-2222-2222-222222222222"
SANITIZER_MARKS = ("Sanitizer:", "runtime error:", "Assertion `")
# The words of a POWER guest's pages, by what the page is in the law (and whether it is resident).
PEF_STATES = {("normal", False): "no flag", ("secure", True): "KVMPPC_GFN_UVMEM_PFN",
              ("secure", False): "KVMPPC_GFN_MEM_PFN", ("shared", False): "KVMPPC_GFN_SHARED"}
MEMBERS_OF_EVERY_PROBLEM = ("type", "title", "status", "detail", "retryable", "request_id")


def new_id():
    return str(uuid.uuid4())


def until(condition, seconds=30):
    """Asks again until it holds. False: it did not in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Answer:
    """Status, headers (lower case) and body of one answer."""

    def __init__(self, status, headers, raw):
        self.status, self.raw = status, raw
        self.headers = {name.lower(): value for name, value in headers}
        kind = self.headers.get("content-type", "")
        self.json = json.loads(raw) if raw and ("json" in kind) else None

    def __getitem__(self, member):
        return self.json[member]

    @property
    def slug(self):
        return slug_of(self.json) if isinstance(self.json, dict) else None

    def __repr__(self):
        return f"{self.status} {self.raw[:600]!r}"


def pef_run(run):
    """A run of a PEF VM at rest, with the state that its architecture gives it."""
    return dict(run, arch_state=PEF_STATES[run.get("state", "secure"), run.get("resident", True)])


def slug_of(problem):
    kind = problem.get("type", "")
    return kind[len("/problems/"):] if kind.startswith("/problems/") else None


class Client:
    """A kept-alive connection with one token."""

    def __init__(self, port, token=None, timeout=WAIT_S):
        self.port, self.token, self.timeout = port, token, timeout
        self.connection = None

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None

    def request(self, method, path, body=None, headers=None, raw=None):
        """One call; body becomes JSON, raw is sent as it is. A connection that was kept too long is replaced once."""
        send = dict(headers or {})
        if self.token and "Authorization" not in send:
            send["Authorization"] = "Bearer " + self.token
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None and "Content-Type" not in send:
            send["Content-Type"] = "application/json"
        send = {name: value for name, value in send.items() if value is not None}
        fresh = self.connection is None
        try:
            return self._once(method, path, data, send)
        except (http.client.HTTPException, OSError):
            self.close()
            if fresh:
                raise
            return self._once(method, path, data, send)

    def _once(self, method, path, data, headers):
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        self.connection.request(method, path, data, headers)
        answer = self.connection.getresponse()
        got = Answer(answer.status, answer.getheaders(), answer.read())
        if answer.will_close:
            self.close()
        return got

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def put(self, path, body=None, **more):
        return self.request("PUT", path, body, **more)

    def post(self, path, body=None, **more):
        return self.request("POST", path, body, **more)

    def delete(self, path, **more):
        return self.request("DELETE", path, **more)

    def items(self, path):
        """All items of a list, following next_cursor."""
        found, cursor = [], ""
        while True:
            answer = self.get(path + cursor)
            if answer.status != 200:
                raise AssertionError(f"GET {path}{cursor}: {answer}")
            found += answer["items"]
            if "next_cursor" not in answer.json:
                return found
            cursor = ("&" if "?" in path else "?") + "cursor=" + str(answer["next_cursor"])


class Server:
    """One pagewardend and its data. Stopped and removed by `close`."""

    def __init__(self, *flags, env=None):
        self.env = dict(os.environ, **env) if env else None
        self.folder = tempfile.mkdtemp(prefix="pagewarden-bb-")
        self.data = os.path.join(self.folder, "data")
        self.flags, self.process, self.port = flags, None, 0
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self, *more):
        os.makedirs(self.data, exist_ok=True)
        address = os.path.join(self.data, "address")
        if os.path.exists(address):
            os.unlink(address)
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [PAGEWARDEND, "--data", self.data, "--listen", f"127.0.0.1:{self.port}", *self.flags, *more],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self.env)
        line = self.process.stdout.readline().decode().strip()
        self.process.stdout.close()
        if not line.startswith("listening on http://"):
            raise AssertionError(f"pagewardend said {line!r} at start; its log:\n{self.log()}")
        self.port = int(line.rsplit(":", 1)[1])
        self.wait_ready()
        with open(os.path.join(self.data, "admin.token"), encoding="ascii") as f:
            self.token = f.read().strip()

    def wait_ready(self):
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"pagewardend ended with {self.process.returncode}; its log:\n{self.log()}")
            try:
                if Client(self.port, timeout=5).get("/readyz").status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise AssertionError("pagewardend did not become ready")

    def log(self):
        try:
            with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
                return f.read()
        except OSError:
            return ""

    def client(self, token=None):
        return Client(self.port, token or self.token)

    def stop(self):
        """Clean stop; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def kill(self):
        """As if the power went."""
        self.process.kill()
        self.process.wait(WAIT_S)

    def restart(self):
        status = self.stop()
        if status != 0:
            raise AssertionError(f"pagewardend ended with {status} on SIGTERM; its log:\n{self.log()}")
        self.start()

    def crash(self):
        self.kill()
        self.start()

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()
        log = self.log()
        shutil.rmtree(self.folder, ignore_errors=True)
        if any(mark in log for mark in SANITIZER_MARKS):
            raise AssertionError("a sanitizer complained:\n" + log[-20000:])


class Host:
    """A registered host, as its agent would drive it."""

    def __init__(self, client, host=None, frames=1 << 20, base=0, shift=None, name="test-host", boot=BOOT,
                 arches=("pef", "tdx")):
        self.client, self.id, self.name, self.boot = client, host or new_id(), name, boot
        self.pool = {"pool": "local", "base_pfn": base, "frames": frames}
        if shift is not None:
            self.pool["page_shift"] = shift
        self.backends = [{"arch": arch, "kind": "emulated"} for arch in arches]
        self.register()

    @property
    def path(self):
        return "/v1/hosts/" + self.id

    def body(self):
        return {"name": self.name, "boot_id": self.boot, "backends": self.backends, "pools": [self.pool]}

    def register(self):
        answer = self.client.put(self.path, self.body())
        if answer.status not in (200, 201):
            raise AssertionError(f"PUT {self.path}: {answer}")
        self.epoch = answer["epoch"]
        return answer

    def current(self):
        return {"boot_id": self.boot, "epoch": self.epoch}

    def send(self, *items, client=None, **more):
        """A batch of transitions; the answer."""
        body = dict(self.current(), items=list(items), **more)
        return (client or self.client).post(self.path + "/transitions", body)

    def frames(self, pfn=0, count=LIMIT - 1, pool="local"):
        answer = self.client.get(f"{self.path}/frames?pool={pool}&pfn={pfn}&count={count}")
        if answer.status != 200:
            raise AssertionError(f"frames: {answer}")
        return answer["items"]


class Vm:
    """A VM of a host; by default one slot of 4096 pages at GFN 0."""

    def __init__(self, host, slots=None, arch="pef", state="normal", vm=None, **more):
        self.host, self.client, self.id = host, host.client, vm or new_id()
        self.slots = slots or [{"slot": 0, "base_gfn": 0, "pages": 4096}]
        answer = self.client.post("/v1/vms", {"id": self.id, "host": host.id, "arch": arch, "slots": self.slots, **more})
        if answer.status != 201:
            raise AssertionError(f"POST /v1/vms: {answer}")
        self.created = answer
        for event in {"normal": [], "transient": ["init_start"], "secure": ["init_start", "init_done"]}[state]:
            self.must(event)

    @property
    def path(self):
        return "/v1/vms/" + self.id

    def event(self, event, **more):
        """As the holder says it; without boot_id and epoch if given as None."""
        body = {"event": event, **self.host.current(), **more}
        return self.client.post(self.path + "/lifecycle", {k: v for k, v in body.items() if v is not None})

    def drop_slot(self, number, **more):
        """Deletes a slot, as the holder; more goes into the query."""
        query = {**self.host.current(), **more}
        return self.client.delete(f"{self.path}/slots/{number}?" + "&".join(f"{k}={v}" for k, v in query.items() if v is not None))

    def must(self, event):
        answer = self.event(event)
        if answer.status != 200:
            raise AssertionError(f"{event}: {answer}")
        return answer

    def get(self):
        answer = self.client.get(self.path)
        if answer.status != 200:
            raise AssertionError(f"GET {self.path}: {answer}")
        return answer.json

    def runs(self, gfn=None, count=None):
        where = "" if gfn is None else f"?gfn={gfn}&count={count or 1}"
        return self.client.items(self.path + "/gfns" + where)

    def item(self, op, gfn=0, count=1, pfn=None, pool="local", **more):
        made = {"vm": self.id, "op": op, "gfn": gfn, "count": count, **more}
        if pfn is not None:
            made["frame"] = {"pool": pool, "pfn": pfn}
        return made

    def page(self, gfn):
        """(state, resident, pfn or None) of one page."""
        runs = self.runs(gfn, 1)
        if len(runs) != 1:
            raise AssertionError(f"gfn {gfn}: {runs}")
        return runs[0]["state"], runs[0]["resident"], runs[0].get("frame", {}).get("pfn")

    def place(self, gfn, state, pfn=None):
        """Brings one page of a transient or secure VM into a state: secure, out, shared (or leaves it)."""
        steps = {"secure": [self.item("unshare", gfn, pfn=pfn)], "out": [self.item("unshare", gfn)],
                 "shared": [self.item("share", gfn)], "normal": []}[state]
        for step in steps:
            answer = self.host.send(step)
            if answer.status != 200 or answer["accepted"] != 1:
                raise AssertionError(f"placing gfn {gfn} as {state}: {answer}")


class Case(unittest.TestCase):
    """A test class with one server for all of its tests; each test makes hosts and VMs of its own."""

    flags = ()
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.flags)
        cls.addClassCleanup(cls.server.close)

    def setUp(self):
        self.admin = self.server.client()
        self.addCleanup(self.admin.close)

    def as_token(self, role, host=None):
        """A client with a fresh token of that role."""
        body = {"role": role, "name": f"a test's {role}"}
        if host:
            body["host"] = host
        answer = self.admin.post("/v1/tokens", body)
        self.assertEqual(answer.status, 201, answer)
        client = self.server.client(answer["secret"])
        client.id = answer["id"]
        self.addCleanup(client.close)
        return client

    def assert_problem(self, answer, status, slug, **members):
        self.assertEqual((answer.status, answer.slug), (status, slug), answer)
        self.assertTrue(answer.headers["content-type"].startswith("application/problem+json"), answer.headers)
        self.check_problem(answer.json, slug, **members)
        self.assertEqual(answer["status"], status)
        self.assertEqual(answer["request_id"], answer.headers["x-request-id"])

    def check_problem(self, problem, slug, **members):
        self.assertEqual(slug_of(problem), slug, problem)
        for member in ("type", "title", "status", "detail", "retryable"):
            self.assertIn(member, problem, slug)
        self.assertIsInstance(problem["retryable"], bool)
        self.assertTrue(problem["detail"], "an empty detail")
        for name, value in members.items():
            self.assertEqual(problem.get(name), value, f"member {name} of {problem}")

    def assert_ok(self, answer, status=200):
        self.assertEqual(answer.status, status, answer)
        return answer

    def job(self, path, body=None, **more):
        """The result of a job (a verification, a backup) that this begins, when it has succeeded."""
        job = self.assert_ok(self.admin.post(path, body or {}, **more), 202)
        end = time.monotonic() + WAIT_S
        while job["state"] == "running" and time.monotonic() < end:
            job = self.assert_ok(self.admin.get(job.headers.get("location", "/v1/jobs/" + job["id"]) + "?wait=10"))
        self.assertEqual(job["state"], "succeeded", job)
        return job["result"]

    def accepted(self, answer):
        """Every item of the batch was accepted."""
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer["rejected"], 0, answer)
        self.assertTrue(all(r == {"ok": True} for r in answer["results"]), answer)
        return answer

    def refused(self, answer, slug, **members):
        """The only item of the batch was refused; its problem."""
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual((answer["accepted"], answer["rejected"]), (0, 1), answer)
        result = answer["results"][0]
        self.assertFalse(result["ok"], answer)
        self.check_problem(result["problem"], slug, **members)
        return result["problem"]


def raw_exchange(port, data, timeout=10):
    """Sends bytes as they are and returns all that came back (for requests that no library would send)."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as s:
        try:  # the server may answer and hang up before all was sent
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while more := s.recv(65536):
                got += more
        except OSError:
            pass
    return got
