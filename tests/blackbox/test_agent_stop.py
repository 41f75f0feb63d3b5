"""An agent stops when it is told to, whatever its server does: at once with nothing in hand, within its grace otherwise."""
import socket
import threading
import time
import unittest

from harness import WAIT_S, Case
from test_crash_agent import Agent

SOON_S, GRACE_S = 20, 8  # it was a minute and more before; what is meant is 3 s


class Hush:
    """Between agent and server; while it is `hushed`, connections are taken and nothing is passed on."""

    def __init__(self, port):
        self.port, self.open, self.trigger, self.sockets = port, threading.Event(), None, []
        self.seen = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                return
            self.sockets += [client, server]
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self.pump, args=ends, daemon=True).start()

    def pump(self, source, sink, asks):
        try:
            while data := source.recv(65536):
                if asks and self.trigger and self.trigger in data:
                    self.open.clear()
                    self.seen.set()
                self.open.wait()
                sink.sendall(data)
        except OSError:
            pass

    def close(self):
        self.open.set()
        for s in (self.listener, *self.sockets):
            s.close()


class Stop(Case):
    def an_agent(self):
        hush, agent = Hush(self.server.port), Agent(self, self.id())
        self.addCleanup(hush.close)
        real = agent.command
        agent.command = lambda *more: [a.replace(f":{self.server.port}", f":{hush.listener.getsockname()[1]}")
                                       for a in real(*more)]
        return agent, hush

    def stopped(self, agent):
        """How long it took; it ends as it should."""
        began = time.monotonic()
        agent.process.terminate()
        self.assertEqual(agent.process.wait(WAIT_S), 0, agent.log()[-2000:])
        return time.monotonic() - began

    def test_before_it_is_registered(self):
        agent, hush = self.an_agent()
        hush.trigger = b"PUT /v1/hosts/"
        agent.start()
        self.assertTrue(hush.seen.wait(WAIT_S))
        self.assertLess(self.stopped(agent), SOON_S)

    def test_while_it_compares_once(self):
        agent, hush = self.an_agent()
        hush.trigger = b"PUT /v1/hosts/"
        agent.start("--once")
        self.assertTrue(hush.seen.wait(WAIT_S))
        agent.process.terminate()
        began = time.monotonic()
        agent.process.wait(WAIT_S)
        self.assertLess(time.monotonic() - began, SOON_S)

    def test_with_nothing_in_hand(self):
        agent, hush = self.an_agent()
        agent.start()
        agent.wait_ready()
        hush.open.clear()
        hush.trigger = b"/heartbeat"
        self.assertTrue(hush.seen.wait(WAIT_S))
        self.assertLess(self.stopped(agent), SOON_S)

    def in_hand(self):
        """An agent whose server falls silent when it is told of a launch's pages."""
        agent, hush = self.an_agent()
        agent.start()
        agent.wait_ready()
        made = self.assert_ok(self.admin.post("/v1/vms", {"host": agent.host, "arch": "pef", "slots": [
            {"slot": 0, "base_gfn": 0, "pages": 16}]}), 201)
        hush.trigger = b"/transitions"
        operation = self.assert_ok(self.admin.post(f"/v1/vms/{made['id']}/operations", {"kind": "launch"}), 202)["id"]
        self.assertTrue(hush.seen.wait(WAIT_S))
        hush.trigger = None
        return agent, hush, operation

    def test_with_an_operation_in_hand_there_is_a_grace(self):
        agent, _, operation = self.in_hand()
        took = self.stopped(agent)
        self.assertGreater(took, GRACE_S - 1)
        self.assertLess(took, GRACE_S + SOON_S)
        self.assertEqual(self.admin.get("/v1/operations/" + operation)["state"], "running")

    def test_within_its_grace_what_is_in_hand_is_done(self):
        agent, hush, operation = self.in_hand()
        threading.Timer(1, hush.open.set).start()
        self.stopped(agent)
        self.assertEqual(self.admin.get("/v1/operations/" + operation)["state"], "succeeded")


if __name__ == "__main__":
    unittest.main()
