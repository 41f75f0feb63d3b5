"""A fleet at work that must not grow: memory, open files, write-ahead logs and disk are sampled from the first moment to the
last, and what the last quarter has is held against the second. Nobody is killed here (model.py does that): what grows, leaks.

Its server keeps little (`--retain-bytes`), so that what is kept fills up in the first quarter; its agents have load; and a crowd
does what leaks if anything does: refusals, polls that nobody waits for, connections cut short, VMs and tokens that come and go.
"""
import os
import socket
import statistics
import subprocess
import threading
import time

from harness import BUILD, WAIT_S, Host, Server, Vm, new_id

AGENT = os.path.join(BUILD, "pagewarden-agent")
SAMPLES = 400
MIB = 1 << 20
# What is sampled, and how much more than by a tenth it may have become: noise of an allocator, a file that is written ahead.
FIGURES = {"server MiB": 4, "server files": 8, "WAL MiB": 4, "disk MiB": 6, "agents MiB": 4, "agents files": 8}
SHARE = 0.1


def grown(series):
    """Which figures grew: {name: (second quarter, last quarter)}. `series`: {name: [value, ...]}, evenly in time."""
    found = {}
    for name, values in series.items():
        quarter = len(values) // 4
        before, after = statistics.median(values[quarter:2 * quarter]), statistics.median(values[-quarter:])
        if after > before * (1 + SHARE) + FIGURES[name]:
            found[name] = (before, after)
    return found


def table(series, rows=12):
    """The run in a few lines: the median of each part."""
    lines = ["  ".join(f"{name:>12}" for name in series)]
    length = len(next(iter(series.values())))
    for r in range(min(rows, length)):
        part = slice(r * length // rows, max((r + 1) * length // rows, r * length // rows + 1))
        lines.append("  ".join(f"{statistics.median(values[part]):12.1f}" for values in series.values()))
    return "\n".join(lines)


def memory_and_files(pids):
    """MiB of resident memory and open files, of all of them."""
    resident = files = 0
    for pid in pids:
        with open(f"/proc/{pid}/statm", encoding="ascii") as f:
            resident += int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return resident / MIB, files


def sizes(folder):
    """MiB of write-ahead logs, and of all that the server has on disk."""
    logs = disk = 0
    for entry in os.scandir(folder):
        size = entry.stat().st_size if entry.is_file() else 0
        logs += size if entry.name.endswith("-wal") else 0
        disk += size
    return logs / MIB, disk / MIB


class Crowd(threading.Thread):
    """One who asks for everything, is refused much of it, and often does not wait for the answer."""

    def __init__(self, steady):
        super().__init__(daemon=True)
        self.steady, self.server, self.rounds, self.error = steady, steady.server, 0, None
        self.admin = self.server.client()
        self.host = Host(self.admin, frames=1 << 16)
        self.vm = Vm(self.host, state="transient")
        self.agent = self.server.client(steady.token("agent", self.host.id))
        self.viewer = self.server.client(steady.token("viewer"))

    def run(self):
        try:
            while not self.steady.over.wait(0.02):
                self.round()
                self.rounds += 1
        except Exception as error:  # told by the main thread
            self.error = error

    def expect(self, answer, *statuses):
        if answer.status not in statuses:
            raise AssertionError(f"the crowd expected {statuses}, and got {answer}")
        return answer

    def round(self):
        n = self.rounds
        step = (self.share, self.refused, self.poll_and_go, self.half_a_request, self.reads, self.come_and_go,
                self.keyed)[n % 7]
        step(n // 7)

    def share(self, n):
        self.expect(self.host.send(self.vm.item(("share", "unshare")[n % 2], n // 2 % 4096), client=self.agent), 200)

    def refused(self, n):
        items = [self.vm.item("page_in", 4096 + n % 512 + k, pfn=k) for k in range(20)]
        self.expect(self.host.send(*items, client=self.agent), 200)

    def cut(self, text):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=WAIT_S) as s:
            s.sendall(text)

    def poll_and_go(self, n):
        self.cut(f"GET {self.host.path}/operations?wait=60 HTTP/1.1\r\nHost: x\r\n"
                 f"Authorization: Bearer {self.agent.token}\r\n\r\n".encode())

    def half_a_request(self, n):
        self.cut((b"", b"GET /healthz HT", b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"x" * 1000)[n % 3])

    def reads(self, n):
        path = (f"{self.vm.path}/history?gfn={n % 4096}", "/v1/summary", f"{self.vm.path}/map?bins=64", "/v1/violations?limit=10",
                f"/v1/events?after={max(self.viewer.get('/v1/summary')['revision'] - 50, 0)}", "/metrics")[n % 6]
        self.expect(self.viewer.get(path), 200, 410, 429)

    def come_and_go(self, n):
        vm = Vm(self.host, arch="pef")
        made = self.expect(self.admin.post("/v1/tokens", {"role": "viewer", "name": "guest"}), 201)
        self.expect(self.admin.delete("/v1/tokens/" + made["id"]), 204)
        self.expect(self.admin.delete(vm.path), 204)

    def keyed(self, n):
        for _ in range(2):
            self.expect(self.agent.post(self.host.path + "/heartbeat", self.host.current(),
                                        headers={"Idempotency-Key": f"beat-{n % 100}"}), 200, 409)


class Steady(threading.Thread):
    """The fleet and its sampling, for so many seconds. Then: `series`, and what else went wrong in `error`."""

    flags = ("--checkpoint-seconds", "2", "--retain-bytes", "16M", "--log-level", "warning")

    def __init__(self, seconds, arches, rate=10):
        super().__init__(daemon=True)
        self.seconds, self.over, self.error = seconds, threading.Event(), None
        self.series = {name: [] for name in FIGURES}
        self.server = Server(*self.flags)
        self.agents = []
        try:
            self.crowd = Crowd(self)
            for arch in arches:
                self.agents.append(self.agent(arch, rate))
        except BaseException:
            self.close()
            raise

    def token(self, role, host=None):
        body = {"role": role, "name": role, **({"host": host} if host else {})}
        return self.server.client().post("/v1/tokens", body)["secret"]

    def agent(self, arch, rate):
        host, folder = new_id(), os.path.join(self.server.folder, "agent-" + arch)
        os.makedirs(folder)
        for name, secret in (("token", self.token("agent", host)), ("load", self.token("operator"))):
            with open(os.path.join(folder, name), "w", encoding="ascii") as f:
                f.write(secret)
        with open(os.path.join(folder, "log"), "ab") as log:
            return subprocess.Popen(
                [AGENT, "--server", f"http://127.0.0.1:{self.server.port}", "--token-file", os.path.join(folder, "token"),
                 "--state", os.path.join(folder, "state"), "--host", host, "--backend", "emulated", "--arch", arch,
                 "--frames", "65536", "--load", f"vms=2,pages=4096,rate={rate}", "--load-token-file", os.path.join(folder, "load"),
                 "--resync-seconds", "20", "--log-level", "warning"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def sample(self):
        for p in (self.server.process, *self.agents):
            if p.poll() is not None:
                raise AssertionError(f"{p.args[0]} ended by itself with {p.returncode}")
        values = (*memory_and_files([self.server.process.pid]), *sizes(self.server.data),
                  *memory_and_files([p.pid for p in self.agents]))
        for name, value in zip(FIGURES, values):
            self.series[name].append(value)

    def run(self):
        try:
            self.crowd.start()
            end = time.monotonic() + self.seconds
            while time.monotonic() < end and not self.crowd.error:
                self.sample()
                self.over.wait(self.seconds / SAMPLES)
            self.finish()
        except Exception as error:  # told by the main thread
            self.error = error
        finally:
            self.close()

    def finish(self):
        self.over.set()
        self.crowd.join(WAIT_S)
        if self.crowd.error:
            raise self.crowd.error
        for agent in self.agents:
            agent.terminate()
        if any(agent.wait(WAIT_S) for agent in self.agents):
            raise AssertionError(f"agents ended with {[agent.returncode for agent in self.agents]}")
        if self.server.stop() != 0:
            raise AssertionError(f"pagewardend did not stop cleanly; its log:\n{self.server.log()[-3000:]}")

    def close(self):
        self.over.set()
        for agent in self.agents:
            agent.kill()
            agent.wait(WAIT_S)
        self.server.close()
