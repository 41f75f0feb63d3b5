"""A disk that refuses: changes get 503 `storage`, reads go on, nothing acknowledged is lost, and it recovers by itself.

Two ways to make it refuse: a small tmpfs that is filled (needs root: the mount lives in a namespace of this process), and
a limit of the file size (RLIMIT_FSIZE), which any user may set.
"""
import ctypes
import os
import random
import resource
import subprocess
import time
import unittest

from harness import Server, Vm, until
from test_crash_server import World

CLONE_NEWNS = 0x20000
DISK_BYTES = 64 << 20


def private_mounts():
    """Why this process can have no mounts of its own; or None."""
    if os.geteuid() != 0:
        return "not root: no tmpfs can be mounted"
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        return f"unshare of the mount namespace: {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    return done.stderr.strip() or None if done.returncode else None


class SmallDisk(Server):
    """A server whose data is on a tmpfs of DISK_BYTES."""

    mounted = False

    def start(self, *more):
        if not self.mounted:
            os.makedirs(self.data)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", self.data], check=True)
            self.mounted = True
        super().start(*more)

    def refuse(self):
        with open(os.path.join(self.data, "filler"), "ab", buffering=0) as f:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        f.write(bytes(size))
                except OSError:
                    pass

    def accept(self):
        os.unlink(os.path.join(self.data, "filler"))

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()
        if self.mounted:
            subprocess.run(["umount", self.data], check=False)
        super().close()


class SmallFiles(Server):
    """A server that may write to no file."""

    def limit(self, size):
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def refuse(self):
        self.limit(0)

    def accept(self):
        if self.process.poll() is None:
            self.limit(resource.RLIM_INFINITY)


class Refusing:
    """What holds for either way."""

    def begin(self, kind):
        seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
        print(f"{self.id()}: SEED={seed}", flush=True)
        self.server = kind("--checkpoint-seconds", "1")
        self.world = World(self, seed, self.server)
        return self.world

    def ready(self):
        client = self.server.client()
        try:
            return client.get("/readyz").status == 200
        finally:
            client.close()

    def counts(self):
        return (sum(w.refusals for w in self.world.workers), sum(w.acknowledged for w in self.world.workers))

    def until_refused(self, load=100):
        """Under load: the disk refuses until so many changes were refused, and it is said so."""
        before = self.counts()[0]
        self.server.refuse()
        self.assertTrue(until(lambda: self.counts()[0] >= before + load), "no change was refused")
        self.assertTrue(until(lambda: not self.ready(), 5), "/readyz says 200")
        self.reads_go_on()

    def reads_go_on(self):
        client = self.server.client()
        for path in ("/v1/hosts", "/v1/vms", "/v1/events?limit=5", "/v1/violations", "/v1/summary", "/metrics", "/healthz",
                     self.world.common.path + "/frames?pfn=0&count=1000", self.world.victim.path + "/gfns"):
            self.assertEqual(client.get(path).status, 200, path)
        answer = client.put(self.world.victim.path + "/slots/9", {"base_gfn": 900000, "pages": 1})
        if answer.status != 201:
            self.assertEqual((answer.status, answer.slug, answer["retryable"]), (503, "storage", True), answer)
            self.assertEqual([s["slot"] for s in client.get(self.world.victim.path)["slots"]], [0])
        else:
            self.assertEqual(self.world.victim.drop_slot(9).status, 204)
        client.close()

    def recovers(self):
        self.server.accept()
        self.assertTrue(until(self.ready, 15), "/readyz stays red though the disk accepts again")
        done = self.counts()[1]
        self.assertTrue(until(lambda: self.counts()[1] > done + 50), "changes do not work again")

    def everything(self, kind):
        world = self.begin(kind)

        def refuse_and_recover():
            self.until_refused()
            self.recovers()

        def refuse_and_stay():
            self.until_refused()

        world.round(lambda: time.sleep(0.3))
        world.check(crashed=False)
        for _ in range(2):
            world.round(refuse_and_recover)
            world.check(crashed=False)
        world.round(refuse_and_stay)
        world.check(crashed=False)
        self.server.kill()
        self.server.accept()
        world.verify()
        self.server.start()
        world.check()
        world.round(refuse_and_recover)
        self.assertEqual(self.server.stop(), 0, self.server.log())
        self.server.start()
        world.check()
        refusals, done = self.counts()
        print(f"{self.id()}: {done} changes acknowledged, {refusals} refused by the disk; {world.checked_reads} reads")


class FullDisk(unittest.TestCase, Refusing):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        why = private_mounts()
        if why:
            raise unittest.SkipTest(why)

    def test_a_full_disk_refuses_changes_and_loses_none(self):
        self.everything(SmallDisk)

    def test_a_start_on_a_full_disk_serves_reads(self):
        world = self.begin(SmallDisk)
        world.round(self.until_refused)
        self.server.kill()
        self.server.start()
        world.check(repeat=False)
        self.reads_go_on()
        self.server.accept()
        self.assertTrue(until(self.ready, 15))
        world.check()

    def test_a_stop_on_a_full_disk_loses_nothing(self):
        world = self.begin(SmallDisk)
        world.round(self.until_refused)
        self.assertIn(self.server.stop(), (0, 1))
        self.server.accept()
        self.server.start()
        world.check()


class FileLimit(unittest.TestCase, Refusing):
    maxDiff = None

    def test_a_file_that_may_not_grow_refuses_changes_and_loses_none(self):
        self.everything(SmallFiles)

    def test_a_deletion_that_the_disk_refused_reaches_no_picture(self):
        """The VM is in the picture, and its next change is a refused deletion."""
        world = self.begin(SmallFiles)
        vm = Vm(world.common)
        self.server.restart()
        client = self.server.client()
        self.server.refuse()
        answer = client.delete(vm.path)
        self.assertEqual((answer.status, answer.slug), (503, "storage"), answer)
        self.server.accept()
        self.assertTrue(until(self.ready, 15))
        for _ in range(2):
            self.assertEqual(client.put(world.victim.path + "/slots/9", {"base_gfn": 900000, "pages": 1}).status // 100, 2)
            self.server.restart()
            self.assertEqual(client.get(vm.path).status, 200)
        client.close()


if __name__ == "__main__":
    unittest.main()
