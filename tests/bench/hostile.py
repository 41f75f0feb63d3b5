#!/usr/bin/env python3
"""Honest agents while somebody does his worst: claims a second and their p99.9, alone and under each attack, in one run.

    hostile.py [ATTACK...]        B: the build folder (build), HOSTILE_SECONDS: length of one measurement (2)

Every attack has a server of its own, so what the one before left behind is no excuse; "alone" is measured on that same server
just before. Honest are: one agent in a closed loop, then eight, of eight hosts (wrk, claims of 512 frames); and a quiet agent, of
which the longest wait for a heartbeat is told. Attackers come from other addresses where they hold connections, and with tokens
of their own. The figures of different runs do not compare; the ratios do.
"""
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ.setdefault("PAGEWARDEN_BUILD", os.environ.get("B", "build"))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "blackbox"))
import harness  # noqa: E402

SECONDS = float(os.environ.get("HOSTILE_SECONDS") or 2)
HONEST, SPAN, CLAIMS_A_RUN = 8, 1 << 36, 1 << 20
SHATTERED, CHUNK = 200_000, 50_000
IDLE, POLLS, POLLING_HOSTS = 10_000, 10_000, 100
GIANT = 15 << 20


class Stage:
    """A server with the honest hosts on it, and what an attack needs."""

    def __init__(self, *flags):
        self.server = harness.Server("--log-level", "error", *flags)
        self.folder = self.server.folder
        self.admin = self.server.client()
        self.sockets, self.processes, self.threads, self.files, self.run = [], [], [], 0, 0
        self.over = threading.Event()
        self.quiet = harness.Host(self.admin, frames=16)
        self.quiet_token = self.token("agent", self.quiet)
        with open(os.path.join(self.folder, "honest"), "w", encoding="ascii") as f:
            for _ in range(HONEST):
                host, vm, token = self.host()
                print(host.id, vm.id, token, host.epoch, file=f)

    def token(self, role, host=None):
        body = {"role": role, "name": "bench"}
        if host:
            body["host"] = host.id
        return self.admin.post("/v1/tokens", body)["secret"]

    def host(self, pages=SPAN):
        """An agent's host with one VM that has begun: (host, vm, the agent's token)."""
        host = harness.Host(self.admin, frames=SPAN, arches=("pef",))
        vm = harness.Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": pages}], state="transient")
        return host, vm, self.token("agent", host)

    def shatter(self, host, vm, token, pages):
        """Every page of the first `pages` becomes a run of its own."""
        client = self.server.client(token)
        for first in range(0, pages, CHUNK):
            gfns = range(first, min(first + CHUNK, pages))
            answer = host.send({"vm": vm.id, "op": "page_in", "gfns": list(gfns), "pfns": [g ^ 1 for g in gfns],
                                "pool": "local"}, client=client)
            if answer.status != 200 or answer["rejected"]:
                raise AssertionError(f"shattering: {answer}")
        client.close()

    def body(self, data):
        self.files += 1
        path = os.path.join(self.folder, f"body{self.files}")
        with open(path, "wb") as f:
            f.write(data if isinstance(data, bytes) else harness.json.dumps(data, separators=(",", ":")).encode())
        return path

    def batch(self, host, *items):
        return self.body(dict(host.current(), items=list(items)))

    def replay(self, connections, *lines):
        """wrk sends these requests until the attack ends; a line: (method, path, token, body file or None)."""
        path = self.body("\n".join(" ".join((m, p, t, b or "-")) for m, p, t, b in lines).encode())
        self.processes.append(subprocess.Popen(
            ["wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "600s", "-s", os.path.join(HERE, "replay.lua"),
             f"http://127.0.0.1:{self.server.port}", "--", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))

    def hold(self, number, text):
        """So many connections, of a hundred addresses, each says text(i) and then nothing. When 16 were refused, no more."""
        refused = 0
        for i in range(number):
            if refused == 16:
                break
            s = socket.socket()
            s.settimeout(0.5)
            try:
                s.bind((f"127.0.1.{i % 100 + 1}", 0))
                s.connect(("127.0.0.1", self.server.port))
                s.sendall(text(i))
            except OSError:
                s.close()
                refused += 1
                continue
            self.sockets.append(s)

    def keep_doing(self, step):
        def loop():
            while not self.over.is_set():
                try:
                    step()
                except (OSError, harness.http.client.HTTPException):
                    self.over.wait(0.05)
        self.threads.append(threading.Thread(target=loop, daemon=True))
        self.threads[-1].start()

    def honest(self, clients):
        """(claims a second, p50, p99.9, longest, wrong answers) of so many clients."""
        self.run += 1
        wrk = subprocess.Popen(
            ["wrk", "-t1", f"-c{clients}", f"-d{SECONDS:.0f}s", "--timeout", "60s", "-s", os.path.join(HERE, "claims.lua"),
             f"http://127.0.0.1:{self.server.port}", "--", os.path.join(self.folder, "honest"),
             str(self.run * CLAIMS_A_RUN)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            out = wrk.communicate(timeout=SECONDS + 5)[0].decode()
        except subprocess.TimeoutExpired: # not even a connection
            wrk.kill()
            out = wrk.communicate()[0].decode()
        for line in out.splitlines():
            if line.startswith("claims "):
                return [float(word) for word in line.split()[1:]]
        return [0.0, 0.0, 0.0, 0.0, 1.0]

    def rss(self):
        with open(f"/proc/{self.server.process.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmRSS"))

    def end(self):
        """Ends the attack; what was answered to it."""
        self.over.set()
        told = []
        for p in self.processes:
            p.send_signal(signal.SIGINT)
        for p in self.processes:
            try:
                out = p.communicate(timeout=5)[0].decode()
            except subprocess.TimeoutExpired:
                p.kill()
                out = p.communicate()[0].decode()
            told += [line[len("answers "):].strip() or "none" for line in out.splitlines() if line.startswith("answers ")]
        for s in self.sockets:
            s.close()
        self.server.close()
        for t in self.threads:
            t.join(5)
        return told


class Heartbeats:
    """A quiet agent beside everything: how long its longest heartbeat took."""

    def __init__(self, stage):
        self.stage, self.worst, self.failed, self.over = stage, 0.0, 0, threading.Event()
        self.client = harness.Client(stage.server.port, stage.quiet_token)
        self.beat()
        self.worst = 0.0
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def beat(self):
        began = time.monotonic()
        try:
            answer = self.client.post(self.stage.quiet.path + "/heartbeat", self.stage.quiet.current())
            self.failed += answer.status != 200
        except (OSError, harness.http.client.HTTPException):
            self.failed += 1
        self.worst = max(self.worst, time.monotonic() - began)

    def loop(self):
        while not self.over.wait(0.02):
            self.beat()

    def end(self):
        """The longest one, in ms: one that is still waited for counts."""
        self.over.set()
        began = time.monotonic()
        self.thread.join(5)
        self.client.close()
        return max(self.worst, time.monotonic() - began if self.thread.is_alive() else 0) * 1e3


# The attacks. Each is prepared on the stage and gives the function that begins it; FLAGS: what its server is started with.

def refusals(stage, gfns):
    host, vm, token = stage.host(1 << 16)
    lines = [("POST", host.path + "/transitions", token,
              stage.batch(host, *(vm.item("page_in", 70000 + g, pfn=g) for g in some))) for some in gfns]
    return lambda: stage.replay(2, *lines)


def same_refusals(stage):
    return refusals(stage, [[0] * 1000])


def other_refusals(stage):
    return refusals(stage, [range(k * 1000, k * 1000 + 1000) for k in range(50)])


def scans(stage):
    host, vm, token = stage.host(1 << 22)
    thief = harness.Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 1 << 22}], arch="pef", state="transient")
    stage.shatter(host, vm, token, SHATTERED)
    items = [vm.item("unshare", 0, SHATTERED), vm.item("page_out", 0, SHATTERED + 1),
             thief.item("page_in", 0, SHATTERED, pfn=0),
             {"vm": vm.id, "op": "share", "runs": [[0, SHATTERED], [1 << 22, 1]]}]
    lines = [("POST", host.path + "/transitions", token, stage.batch(host, *([item] * 1000))) for item in items]
    return lambda: stage.replay(4, *lines)


def batches(stage):
    host, vm, token = stage.host(1 << 17)
    lines = [("POST", host.path + "/transitions", token, stage.batch(host, *(vm.item(op, g * 2) for g in range(65536))))
             for op in ("share", "unshare")]
    return lambda: stage.replay(4, *lines)


def history(stage):
    host, vm, _ = stage.host(1 << 20)
    lines = [("GET", f"{vm.path}/history?gfn=60000", stage.token("viewer"), None) for _ in range(2)]
    return lambda: stage.replay(8, *lines)


def maps(stage):
    host, vm, token = stage.host(1 << 22)
    stage.shatter(host, vm, token, SHATTERED)
    viewer = stage.token("viewer")
    lines = [("GET", path, viewer, None) for path in (f"{vm.path}/map?bins=4096", f"{vm.path}/gfns?limit=1000",
                                                      f"{host.path}/frames?pfn=0&count=1000000", "/v1/summary")]
    return lambda: stage.replay(8, *lines)


def idle(stage):
    half = (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
    return lambda: stage.hold(IDLE, lambda i: half[i % 2])


def long_polls(stage):
    polls = []
    for _ in range(POLLING_HOSTS):
        host = harness.Host(stage.admin, frames=16)
        token = stage.token("agent", host)
        after = stage.admin.get("/v1/summary")["revision"]
        for path in (f"{host.path}/operations?wait=60", f"/v1/events?after={after + 1000}&wait=60&host={host.id}"):
            polls.append(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return lambda: stage.hold(POLLS, lambda i: polls[i % len(polls)])


def giant_bodies(stage):
    host, vm, token = stage.host(1 << 22)
    keys = stage.body(b"{" + b",".join(b'"k%d":1' % i for i in range(1_300_000)) + b"}")
    pages = stage.batch(host, {"vm": vm.id, "op": "share", "gfns": list(range(0, 3_600_000, 2))})
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (GIANT + 1)

    def begin():
        stage.replay(4, *[("POST", host.path + "/transitions", token, body) for body in (keys, pages)])
        stage.keep_doing(lambda: stage.hold(20, lambda _: head + b"x" * GIANT))
    return begin


def painting(stage):
    host, vm, token = stage.host(1 << 22)
    stage.shatter(host, vm, token, 2_000_000)

    def begin():
        """After a crash, with pictures due each second: the first has everything."""
        stage.server.kill()
        stage.server.start("--checkpoint-seconds", "1")
    return begin


ATTACKS = {
    "same-refusals": (same_refusals, "one agent repeats a refusal, 1000 items a request", ()),
    "other-refusals": (other_refusals, "one agent is refused 50,000 different items", ()),
    "scans": (scans, "1000 items a request, each over 200,000 runs", ("--checkpoint-seconds", "3600")),
    "batches": (batches, "one agent, four connections of 65,536 good items a request", ()),
    "history": (history, "two viewers read histories on 8 connections", ()),
    "maps": (maps, "a viewer asks for maps of 200,000 runs on 8 connections", ()),
    "idle": (idle, "10,000 connections, half of them say half a head", ()),
    "long-polls": (long_polls, "10,000 long polls of other hosts", ("--connections", "12000")),
    "giant-bodies": (giant_bodies, "15 MB of unknown members, of pages, of bodies for /healthz", ()),
    "painting": (painting, "a VM of 2,000,000 runs is painted", ("--checkpoint-seconds", "3600")),
}


def measure(name):
    prepare, _, flags = ATTACKS[name]
    stage = Stage(*flags)
    try:
        begin = prepare(stage)
        one, eight = stage.honest(1), stage.honest(HONEST)
        calm = stage.rss()
        beats = Heartbeats(stage)
        begin()
        if name == "painting": # a restart is no attack
            beats.worst, beats.failed = 0.0, 0
        time.sleep(0.5)
        one_under, eight_under = stage.honest(1), stage.honest(HONEST)
        worst, rss = beats.end(), stage.rss()
    finally:
        told = stage.end()
    held = f"{len(stage.sockets)} connections held " if stage.sockets else ""

    def share(under, alone):
        return under / alone if alone else 0.0
    print(f"{name:15}{one[0]:8.0f}{one_under[0]:8.0f}{share(one_under[0], one[0]):6.2f}   "
          f"{eight[0]:8.0f}{eight_under[0]:8.0f}{share(eight_under[0], eight[0]):6.2f}   "
          f"{eight[2]:8.1f}{eight_under[2]:9.1f}   {worst:9.0f}{beats.failed:7}   {calm:5}{rss:7}   "
          f"{one_under[4] + eight_under[4]:6.0f}   {held}{'; '.join(told)}", flush=True)


def main():
    names = sys.argv[1:] or list(ATTACKS)
    if not shutil.which("wrk"):
        print("hostile: no wrk here (deploy/deps.sh build test)")
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tempfile.tempdir = os.environ.get("TMPDIR")
    for name in names:
        print(f"{name}: {ATTACKS[name][1]}")
    print(f"{'':15}{'one client: claims/s':>22}   {'eight: claims/s':>22}   {'p99.9, ms':>17}   {'heartbeat':>16}   "
          f"{'server, MiB':>12}")
    print(f"{'attack':15}{'alone':>8}{'under':>8}{'ratio':>6}   {'alone':>8}{'under':>8}{'ratio':>6}   {'alone':>8}{'under':>9}   "
          f"{'worst, ms':>9}{'failed':>7}   {'calm':>5}{'under':>7}   {'wrong':>6}   answers to the attack (status x number)")
    for name in names:
        measure(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
