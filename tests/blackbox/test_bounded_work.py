"""What one request costs follows its own size: not what lies where it points, nor how much there is already."""
import time
import unittest

from harness import Case, Host, Server, Vm

EXTENTS = 1 << 17


def seconds(call):
    start = time.monotonic()
    answer = call()
    return time.monotonic() - start, answer


class Scans(Case):
    """Items of a few bytes over many extents."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        big = Server("--body-bytes=64M")
        cls.addClassCleanup(big.close)
        cls.owner = Host(big.client(), frames=1 << 20)
        slots = [{"slot": 0, "base_gfn": 0, "pages": 1 << 20}]
        cls.vm = Vm(cls.owner, slots=slots, state="secure")
        cls.thief = Vm(cls.owner, slots=slots, state="secure")
        gfns = list(range(EXTENTS))
        cls.filling, cls.filled = seconds(lambda: cls.owner.send(
            {"vm": cls.vm.id, "op": "page_in", "gfns": gfns, "pfns": [g ^ 1 for g in gfns], "pool": "local"}))

    def many(self, *items):
        """100 of them take less than it took to make the extents once."""
        taken, answer = seconds(lambda: self.owner.send(*items * 100))
        self.assert_ok(answer)
        self.assertLess(taken, max(2 * self.filling, 5))
        return answer["results"]

    def test_what_changes_nothing(self):
        self.assert_ok(self.filled)
        self.assertEqual(self.filled["rejected"], 0)
        for result in self.many(self.vm.item("unshare", 0, EXTENTS)):
            self.assertTrue(result["ok"])

    def test_what_the_last_page_refuses(self):
        for result in self.many(self.vm.item("page_out", 0, EXTENTS + 1)):
            self.assertEqual(result["problem"]["gfn"], EXTENTS)

    def test_what_another_vm_has(self):
        for result in self.many(self.thief.item("page_in", 0, EXTENTS, 0)):
            self.assertTrue(result["problem"]["type"].endswith("frame-conflict"))
            self.assertLessEqual(len(result["problem"]["conflicts"]), 16)

    def test_too_much_work_is_refused_and_says_so(self):
        server = Server("--item-work=65536", "--body-bytes=64M")
        self.addCleanup(server.close)
        host = Host(server.client(), frames=1 << 20)
        vm = Vm(host, slots=[{"slot": 0, "base_gfn": 0, "pages": 1 << 20}], state="secure")
        gfns = list(range(1 << 15))
        filled = host.send({"vm": vm.id, "op": "page_in", "gfns": gfns, "pfns": [g ^ 1 for g in gfns], "pool": "local"})
        self.assertEqual(filled["rejected"], 0, "an item may have as many runs as it names")
        problem = host.send(vm.item("share", 0, len(gfns)))["results"][0]["problem"]
        self.assertTrue(problem["type"].endswith("too-much-work"), problem)
        self.assertEqual(problem["flag"], "item-work")
        self.assertGreater(problem["asked"], problem["limit"])
        self.assertTrue(host.send(vm.item("share", 0, 4096))["results"][0]["ok"], "a part of it is done")


class Notes(unittest.TestCase):
    """Ranges in quarantine: many, one by one from the end, and a limit for each pool."""

    RANGES = 1 << 14

    def test_the_last_ranges_cost_what_the_first_did(self):
        server = Server(f"--quarantine-ranges={self.RANGES + 1}")
        self.addCleanup(server.close)
        admin = server.client()
        full, other = (Host(admin, frames=1 << 20, name=name) for name in ("full", "other"))

        def put(host, first, count):
            items = [{"pool": "local", "pfn": 2 * (first - i), "count": 1, "reason": "r" * 100} for i in range(count)]
            return admin.post(host.path + "/quarantine", host.current() | {"items": items})

        part = self.RANGES // 8
        times = []
        for n in range(8):
            taken, answer = seconds(lambda n=n: put(full, self.RANGES - 1 - n * part, part))
            self.assertEqual(answer.status, 200, answer)
            times.append(taken)
        self.assertLess(times[-1], 10 * times[0] + 1, times)
        refused = put(full, 1 << 18, 2)
        self.assertEqual((refused.status, refused["flag"]), (409, "quarantine-ranges"), refused)
        self.assertEqual(put(full, 0, 1).status, 200, "the same frames again are no more")
        self.assertEqual(put(other, 5, 1).status, 200, "a host's limit is its own")
        before = admin.items(full.path + "/quarantine?limit=1000")
        self.assertEqual([q["pfn"] for q in before], [2 * i for i in range(self.RANGES)])
        server.crash()
        self.assertEqual(server.client().items(full.path + "/quarantine?limit=1000"), before, "by the journal")
        server.restart()
        self.assertEqual(server.client().items(full.path + "/quarantine?limit=1000"), before, "by the picture")


class Slots(unittest.TestCase):
    """A VM with as many slots as there can be."""

    SLOTS = 32764

    def test_they_are_loaded_about_as_fast_as_they_are_made(self):
        server = Server("--body-bytes=64M")
        self.addCleanup(server.close)
        host = Host(server.client())
        slots = [{"slot": self.SLOTS - i, "base_gfn": 2 * i, "pages": 1} for i in range(self.SLOTS)]
        made, vm = seconds(lambda: Vm(host, slots=slots))
        before = server.client().get(vm.path)["slots"]
        server.restart()
        empty = Server()
        self.addCleanup(empty.close)
        plain, _ = seconds(empty.restart)
        loaded, _ = seconds(server.restart)
        self.assertLess(loaded, plain + 10 * made + 2)
        self.assertEqual(server.client().get(vm.path)["slots"], before)


if __name__ == "__main__":
    unittest.main()
