"""A disk that fails within a commit (L7): kill -9 straight after the answer, and what was refused is not there, what was
acknowledged is, and what was unknown is learnt by its Idempotency-Key.

The disk is a library that stands before the server's writes and flushes of its log (faulty_disk.c).
"""
import errno
import mmap
import os
import struct
import subprocess
import tempfile
import time
import unittest

from harness import Host, Server, Vm, new_id, until

SYNC, WRITE = 1, 2
HERE = os.path.dirname(os.path.abspath(__file__))


class FaultyServer(Server):
    """A server on a disk that can be told to fail."""

    def __init__(self, folder, *flags):
        self.library = os.path.join(folder, "faulty_disk.so")
        self.path = os.path.join(folder, "control")
        with open(self.path, "wb") as f:
            f.write(bytes(4096))
        with open(self.path, "r+b") as f:
            self.control = mmap.mmap(f.fileno(), 4096)
        super().__init__(*flags)

    def start(self, *more):
        self.heal()
        os.environ.update(LD_PRELOAD=self.library, FAULTY_DISK=self.path)
        try:
            super().start(*more)
        finally:
            del os.environ["LD_PRELOAD"], os.environ["FAULTY_DISK"]

    def fail(self, ops, nth, lasting=False, error=errno.EIO):
        self.heal()
        self.control[4:24] = struct.pack("=5I", nth, lasting, error, 0, 0)
        self.control[0:4] = struct.pack("=I", ops)

    def heal(self):
        """Returns how many calls failed."""
        self.control[0:4] = bytes(4)
        return struct.unpack("=I", self.control[20:24])[0]


class CrashDisk(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="pagewarden-disk-")
        cls.addClassCleanup(folder.cleanup)
        subprocess.run([os.environ.get("CC", "cc"), "-D_GNU_SOURCE", "-shared", "-fPIC", "-o",
                        os.path.join(folder.name, "faulty_disk.so"), os.path.join(HERE, "faulty_disk.c"), "-ldl"], check=True)
        cls.folder = folder.name

    def setUp(self):
        self.server = FaultyServer(self.folder, "--checkpoint-seconds", "1000")
        self.addCleanup(self.server.close)
        self.admin = self.server.client()
        self.host = Host(self.admin)
        self.vm = Vm(self.host, state="secure")
        self.pfn = 100

    def restart(self, how):
        self.admin.close()
        how()
        self.admin = self.host.client = self.vm.client = self.server.client()

    def change(self):
        """A change under a key, that claims a frame and records an answer: (send, is it there?)."""
        self.pfn += 1
        pfn, key = self.pfn, {"Idempotency-Key": new_id()}
        body = dict(self.host.current(), items=[self.vm.item("page_in", pfn, 1, pfn)])

        def send():
            return self.admin.post(self.host.path + "/transitions", body, headers=key)

        return send, lambda: self.vm.page(pfn)[2] == pfn

    def after_crash(self, send, is_there, answer):
        """What an answer promised, held against what a new start shows."""
        self.restart(self.server.crash)
        if answer.status == 200:
            self.assertTrue(is_there(), "acknowledged, and lost")
        elif answer.slug == "storage":
            self.assertFalse(is_there(), f"refused, and there: {answer}")
        else:
            self.assertEqual((answer.status, answer.slug, answer["retryable"]), (503, "outcome-unknown", True), answer)
        first, second = send(), send()
        self.assertEqual((first.status, first["accepted"]), (200, 1), first)
        self.assertEqual(second.raw, first.raw)
        self.assertTrue(is_there())

    def sweep(self, ops, lasting, error, most):
        slugs, fired, nth = set(), True, 0
        while fired:
            nth += 1
            self.assertLessEqual(nth, most)
            send, is_there = self.change()
            self.server.fail(ops, nth, lasting, error)
            answer = send()
            fired = self.server.heal() > 0
            self.assertTrue(answer.status == 503 or not lasting or not fired, answer)
            self.after_crash(send, is_there, answer)
            slugs.add(answer.slug or "done")
        self.assertEqual(self.server.stop(), 0)
        return slugs

    def test_each_flush_that_fails_once_is_taken_back(self):
        self.assertEqual(self.sweep(SYNC, False, errno.EIO, 20), {"storage", "done"})

    def test_each_flush_and_all_that_follow_fail(self):
        self.assertEqual(self.sweep(SYNC, True, errno.EIO, 20), {"outcome-unknown", "done"})

    def test_each_write_that_fails_once_is_taken_back(self):
        self.assertEqual(self.sweep(WRITE, False, errno.EIO, 60), {"storage", "done"})

    def test_each_write_and_all_that_follow_find_the_disk_full(self):
        self.assertIn("storage", self.sweep(WRITE, True, errno.ENOSPC, 60))

    def test_in_doubt_nothing_is_decided_until_the_disk_is_well(self):
        send, is_there = self.change()
        self.server.fail(SYNC, 1, True)
        self.assertEqual(send().slug, "outcome-unknown")
        other, other_is_there = self.change()
        for answer in (send(), other(), self.admin.put(self.vm.path + "/slots/9", {"base_gfn": 900000, "pages": 1})):
            self.assertEqual((answer.status, answer.slug, answer["retryable"]), (503, "outcome-unknown", True), answer)
        ready = self.admin.get("/readyz")
        self.assertEqual((ready.status, ready.slug), (503, "storage"), ready)
        self.assertFalse(is_there() or other_is_there())
        self.assertEqual(self.admin.get("/v1/events").status, 200)
        time.sleep(1.5)
        self.assertEqual(other().slug, "outcome-unknown", "a probe that fails ends no doubt")
        self.server.heal()
        self.assertTrue(until(lambda: self.admin.get("/readyz").status == 200), "it stays in doubt")
        self.assertFalse(is_there(), "what was in doubt did not happen")
        self.restart(self.server.crash)
        self.assertFalse(is_there() or other_is_there())
        for again in (send, other):
            self.assertEqual(again()["accepted"], 1)
        self.restart(self.server.crash)
        self.assertTrue(is_there() and other_is_there())

    def test_a_stop_in_doubt_ends_well(self):
        send, is_there = self.change()
        self.server.fail(SYNC, 1, True)
        self.assertEqual(send().slug, "outcome-unknown")
        self.assertEqual(self.server.stop(), 0, self.server.log())
        self.restart(self.server.start)
        self.assertEqual(send()["accepted"], 1)
        self.assertTrue(is_there())


if __name__ == "__main__":
    unittest.main()
