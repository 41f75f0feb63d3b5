"""Lists are cut by bytes as well as by items: their pages together are the whole, and none is much longer than told."""
import unittest

from harness import Case, Host, Vm

BYTES = 4096


class Lists(Case):
    flags = ("--answer-bytes", str(BYTES))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        admin = cls.server.client()
        cls.hosts = sorted((Host(admin, name="n" * 100 + str(k)) for k in range(40)), key=lambda h: h.id)
        cls.host = cls.hosts[0]
        cls.large = Vm(cls.host, slots=[{"slot": k, "base_gfn": 4 * k, "pages": 2} for k in range(500)])
        cls.vms = [cls.large] + [Vm(cls.host, state="secure", name="m" * 100 + str(k)) for k in range(40)]
        cls.vm = cls.vms[1]
        for gfn in range(0, 400, 2):
            cls.host.send(cls.vm.item("page_in", gfn, 1, 2 * gfn))
        for gfn in range(40):  # refused: violations
            cls.host.send(cls.vm.item("page_in", 1, 1, 4 * gfn))
        admin.post(cls.host.path + "/quarantine", dict(cls.host.current(), items=[
            {"pool": "local", "pfn": 5000 + 2 * k, "count": 1, "reason": "r" * 100} for k in range(100)]))
        for k in range(60):
            admin.post("/v1/tokens", {"role": "viewer", "name": "t" * 100 + str(k)})
            admin.put(f"/v1/pools/pool-{k}", {"base_pfn": 0, "frames": 16, "hosts": [h.id for h in cls.hosts[:10]]})
        for _ in range(20):
            made = admin.post(f"/v1/vms/{cls.vm.id}/operations", {"kind": "share", "params": {"gfn": 0, "count": 1}})
            if made.status == 202:
                admin.delete("/v1/operations/" + made["id"])
        admin.close()

    def pages(self, path):
        """All items, page by page; each page but of one item has passed the limit by one item at most."""
        found, cursor, pages = [], "", 0
        while True:
            answer = self.assert_ok(self.admin.get(path + ("&" if "?" in path else "?") + "limit=1000" + cursor))
            found += answer["items"]
            pages += 1
            if len(answer["items"]) > 1:
                last = len(answer.raw) // len(answer["items"])
                self.assertLess(len(answer.raw) - BYTES, max(4 * last, len(str(answer["items"][-1])) + 256), path)
            if "next_cursor" not in answer.json:
                return found, pages
            self.assertTrue(answer["items"], "a page with a cursor and nothing in it")
            cursor = "&cursor=" + str(answer["next_cursor"])

    def check(self, path, key, many):
        """The same in pages by bytes as item by item, in order, each once."""
        found, pages = self.pages(path)
        singly = self.admin.items(path + ("&" if "?" in path else "?") + "limit=1")
        self.assertEqual([key(item) for item in found], [key(item) for item in singly], path)
        self.assertEqual(len({str(key(item)) for item in found}), len(found), path)
        self.assertGreaterEqual(len(found), many, path)
        self.assertGreater(pages, 1, path)

    def test_every_list(self):
        by_id = lambda item: item["id"]
        for path, key, many in (
                ("/v1/hosts", by_id, 40), ("/v1/vms", by_id, 41), ("/v1/vms?host=" + self.host.id, by_id, 41),
                ("/v1/tokens", by_id, 60), ("/v1/pools", lambda p: p["pool"], 60),
                (f"{self.vm.path}/gfns?gfn=0&count=4096", lambda g: g["gfn"], 200),
                (f"{self.host.path}/frames?pfn=0&count=4096", lambda f: f["pfn"], 200),
                (self.host.path + "/quarantine", lambda q: q["pfn"], 100),
                ("/v1/violations", lambda v: v["revision"], 10),
                (f"{self.vm.path}/operations", by_id, 15),
                (f"{self.vm.path}/history?gfn=0&count=4096", lambda e: e["revision"], 200)):
            with self.subTest(path=path):
                self.check(path, key, many)

    def test_one_item_that_is_longer_goes_alone(self):
        found, _ = self.pages("/v1/vms")
        self.assertEqual(len([vm for vm in found if vm["id"] == self.large.id][0]["slots"]), 500)

    def test_the_feed_goes_on_as_well(self):
        found, after, pages = [], 0, 0
        while True:
            page = self.assert_ok(self.admin.get(f"/v1/events?after={after}&limit=1000"))
            if not page["items"]:
                break
            found += [event["revision"] for event in page["items"]]
            after, pages = page["next"], pages + 1
        self.assertEqual(found, list(range(1, after + 1)))
        self.assertGreater(pages, 5)


if __name__ == "__main__":
    unittest.main()
