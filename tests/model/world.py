"""What all speakers share: the server that is killed and started again, connections to it, and the count of steps.

A call that a kill cut off raises Cut: whether the server did what was asked is then for the speaker to find out.
"""
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time

from harness import BUILD, PAGEWARDEND, Server

WAIT_S = 60


class Cut(Exception):
    """No whole answer came: the request may have been done or not."""


class Wrong(AssertionError):
    """The product answered, or did, what the model does not allow."""


class Over(Exception):
    """The run has ended."""


def uuid_of(rng):
    """A UUID that the seed decides."""
    x = f"{rng.getrandbits(128):032x}"
    return f"{x[:8]}-{x[8:12]}-4{x[13:16]}-a{x[17:20]}-{x[20:]}"


class Reply:
    def __init__(self, status, raw, kind):
        self.status, self.raw = status, raw
        self.json = json.loads(raw) if raw and b"json" in kind else None

    @property
    def slug(self):
        kind = self.json.get("type", "") if isinstance(self.json, dict) else ""
        return kind[len("/problems/"):] if kind.startswith("/problems/") else None

    def __repr__(self):
        return f"{self.status} {self.raw[:1500].decode('utf-8', 'replace')}"


class Wire:
    """One kept-alive connection with one token. Plain sockets: a step has to cost less than the server's part of it."""

    def __init__(self, world, token):
        self.world, self.token, self.socket, self.rest, self.generation = world, token, None, b"", -1
        self.head = f"Host: model\r\nAuthorization: Bearer {token}\r\n" if token else "Host: model\r\n"

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket, self.rest = None, b""

    def call(self, method, path, body=None, key=None, headers=(), raw=None, kind="application/json"):
        """The answer; Cut if there is none."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1\r\n", self.head]
        if key is not None:
            lines.append(f"Idempotency-Key: {key}\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        if raw is not None or body is not None:
            lines.append(f"Content-Type: {kind}\r\n")
        lines.append(f"Content-Length: {len(data)}\r\n\r\n")
        self.world.step()
        try:
            if self.generation != self.world.generation:
                self.close()
            if self.socket is None:
                self.generation = self.world.generation
                self.socket = socket.create_connection(("127.0.0.1", self.world.server.port), timeout=WAIT_S)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall("".join(lines).encode() + data)
            got = self.answer(method)
            if got.status == 503 and got.slug in ("not-ready", "outcome-unknown"):
                self.world.unknown += got.slug == "outcome-unknown"
                time.sleep(0.02)
                raise OSError(got.slug)
            return got
        except OSError as error:
            self.close()
            raise Cut(f"{method} {path}: {error}") from error

    def more(self):
        got = self.socket.recv(1 << 16)
        if not got:
            raise OSError("the connection ended")
        self.rest += got

    def answer(self, method):
        while b"\r\n\r\n" not in self.rest:
            self.more()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        status, size, kind, end = int(lines[0].split()[1]), 0, b"", False
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name == b"content-length":
                size = int(value)
            elif name == b"content-type":
                kind = value
            elif name == b"connection" and b"close" in value:
                end = True
        if method == "HEAD" or status in (204, 304):
            size = 0
        while len(self.rest) < size:
            self.more()
        body, self.rest = self.rest[:size], self.rest[size:]
        if end:
            self.close()
        return Reply(status, body, kind)


class World:
    """The server under test, the end of the run, and the first thing that went wrong."""

    flags = ("--lease-seconds", "5", "--checkpoint-seconds", "2")
    lease_s = 5

    def __init__(self, seed, steps, seconds):
        self.seed, self.steps_wanted, self.until = seed, steps, time.monotonic() + seconds
        self.steps, self.generation, self.failures, self.unknown = 0, 0, [], 0
        self.up, self.lock = threading.Event(), threading.Lock()
        self.tools = tempfile.mkdtemp(prefix="pagewarden-model-")
        self.server = Server(*self.flags, env=self.bad_sync())
        self.up.set()
        self.kills = {}

    def bad_sync(self):
        """The server's environment, with a disk whose syncs fail while a file is there (badsync.c)."""
        self.sync_fails = os.path.join(self.tools, "sync-fails")
        library = os.path.join(self.tools, "badsync.so")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "badsync.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        return {"LD_PRELOAD": library, "PW_BAD_SYNC": self.sync_fails}

    def refuse_syncs(self, nth, seconds):
        """For a while each nth sync fails."""
        self.kills["bad disk"] = self.kills.get("bad disk", 0) + 1
        with open(self.sync_fails, "wb") as f:
            f.write(bytes(nth))
        time.sleep(seconds)

    def random(self, name):
        return random.Random(f"{self.seed}/{name}")

    def step(self, n=1):
        self.steps += n  # a lost count under a race is a step more

    def over(self):
        return bool(self.failures) or self.steps >= self.steps_wanted or time.monotonic() >= self.until

    def fail(self, who, error):
        with self.lock:
            self.failures.append((who, error, self.steps))

    def admin(self):
        return Wire(self, self.server.token)

    def token(self, role, host=None, name=None):
        """A fresh token's secret."""
        body = {"role": role, "name": name or role}
        if host:
            body["host"] = host
        got = self.admin().call("POST", "/v1/tokens", body)
        if got.status != 201:
            raise Wrong(f"POST /v1/tokens {body}: {got}")
        return got.json["secret"]

    def wait_up(self):
        generation = self.generation
        if not self.up.wait(WAIT_S) or self.failures:
            raise Over()
        if self.server.process.poll() is not None and self.up.is_set() and generation == self.generation:
            raise Wrong(f"pagewardend ended by itself, with {self.server.process.returncode}; its log:\n{self.server.log()[-3000:]}")

    def wait_ready(self):
        """The server is up, and knows what became of all that it was asked."""
        wire = Wire(self, None)
        while True:
            self.wait_up()
            try:
                if wire.call("GET", "/readyz").status == 200:
                    return
            except Cut:
                pass
            finally:
                wire.close()
            time.sleep(0.02)

    def kill_server(self, meanwhile=lambda: None):
        """As if the power went, and back on the same data."""
        self.kills["server"] = self.kills.get("server", 0) + 1
        self.up.clear()
        self.server.kill()
        meanwhile()
        try:
            self.server.start()
        finally:
            self.generation += 1
            self.up.set()

    def stop_cleanly(self):
        status = self.server.stop()
        if status != 0:
            raise Wrong(f"pagewardend ended with {status} on SIGTERM; its log:\n{self.server.log()[-3000:]}")

    def stop_server(self):
        """A clean stop under load, and back."""
        self.kills["stop"] = self.kills.get("stop", 0) + 1
        self.up.clear()
        try:
            self.stop_cleanly()
            self.server.start()
        finally:
            self.generation += 1
            self.up.set()

    def verify(self):
        """pagewardend --verify on the stopped server's data: what is wrong, or ''."""
        done = subprocess.run([PAGEWARDEND, "--data", self.server.data, "--verify"], capture_output=True, text=True,
                              check=False, timeout=600)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def close(self):
        self.up.set()  # whoever still waits finds the run over
        self.server.close()
        shutil.rmtree(self.tools, ignore_errors=True)


AGENT = os.path.join(BUILD, "pagewarden-agent")
