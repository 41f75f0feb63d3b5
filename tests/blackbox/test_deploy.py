"""What we ship around the programs: the example configuration, TLS material, flags, files and signals."""
import http.client
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
import tempfile
import time
import unittest

from harness import PAGEWARDEND, Client, Server

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DEPLOY = os.path.join(ROOT, "deploy")


def run(*command, env=None, timeout=60):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})}, check=False)


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="pagewarden-deploy-")
        self.addCleanup(shutil.rmtree, self.folder, True)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path


class Configuration(Folder):
    def printed(self, *flags, env=None):
        got = run(PAGEWARDEND, *flags, "--print-config", env=env)
        self.assertEqual(got.returncode, 0, got.stderr)
        return got.stdout

    def test_the_example_is_understood_and_says_the_defaults(self):
        example = self.printed("--config", os.path.join(DEPLOY, "pagewardend.ini"))
        self.assertEqual(example, self.printed("--data", "/var/lib/pagewarden"))

    def test_what_is_printed_reads_back_the_same(self):
        text = self.printed("--threads", "7", "--retain-bytes", "123", "--listen", "[::1]:0")
        self.assertEqual(self.printed("--config", self.write("a.ini", text)), text)

    def test_flags_beat_the_file_and_the_file_the_environment(self):
        path = self.write("b.ini", "[pagewardend]\nthreads = 3\n")
        env = {"PAGEWARDEN_THREADS": "2", "PAGEWARDEN_LEASE_SECONDS": "44"}
        self.assertIn("threads = 3", self.printed("--config", path, env=env))
        self.assertIn("lease-seconds = 44", self.printed("--config", path, env=env))
        self.assertIn("threads = 4", self.printed("--config", path, "--threads", "4", env=env))

    def test_mistakes_are_named(self):
        for text, words in (("[pagewardend]\nthraeds = 3\n", ("thraeds", ":2")), ("[pagewardend]\nthreads = many\n", ("threads", ":2")),
                            ("[other]\nthreads = 3\n", (":2",)), ("[pagewardend\n", (":1",))):
            with self.subTest(text=text):
                got = run(PAGEWARDEND, "--config", self.write("c.ini", text), "--print-config")
                self.assertNotEqual(got.returncode, 0)
                for word in words:
                    self.assertIn(word, got.stderr)
        for flags in (("--no-such-flag",), ("--threads", "0"), ("--threads",), ("--config", "/no/such/file"), ("stray",)):
            with self.subTest(flags=flags):
                self.assertEqual(run(PAGEWARDEND, *flags, "--print-config").returncode, 2)

    def test_beyond_loopback_it_wants_tls(self):
        got = run(PAGEWARDEND, "--data", self.folder, "--listen", "0.0.0.0:0")
        self.assertNotEqual(got.returncode, 0)
        self.assertIn("TLS", got.stderr)


class Process(unittest.TestCase):
    def test_a_clean_stop_a_second_server_and_a_taken_port(self):
        server = Server()
        self.addCleanup(server.close)
        with open(os.path.join(server.data, "address"), encoding="ascii") as f:
            self.assertEqual(f.read().strip(), f"http://127.0.0.1:{server.port}")
        second = run(PAGEWARDEND, "--data", server.data, "--listen", "127.0.0.1:0")
        self.assertNotEqual(second.returncode, 0, "two servers on one ledger")
        self.assertTrue(second.stderr)
        with tempfile.TemporaryDirectory() as other:
            taken = run(PAGEWARDEND, "--data", other, "--listen", f"127.0.0.1:{server.port}")
            self.assertNotEqual(taken.returncode, 0)
            self.assertIn(str(server.port), taken.stderr)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(run(PAGEWARDEND, "--data", server.data, "--verify").returncode, 0)

    def test_the_data_folder_is_private(self):
        server = Server()
        self.addCleanup(server.close)
        for name in os.listdir(server.data):
            mode = stat.S_IMODE(os.stat(os.path.join(server.data, name)).st_mode)
            if name.endswith((".db", ".token")):
                self.assertEqual(mode & 0o077, 0, name)

    def test_tampering_shows(self):
        server = Server()
        self.addCleanup(server.close)
        server.client().post("/v1/tokens", {"role": "viewer", "name": "x"})
        for _ in range(20):
            server.client().post("/v1/tokens", {"role": "viewer", "name": "x"})
        self.assertEqual(server.stop(), 0)
        import sqlite3
        db = sqlite3.connect(os.path.join(server.data, "journal.db"))
        table, column = self.records_column(db)
        db.execute(f"UPDATE {table} SET {column} = CAST(substr({column}, 1, length({column}) - 1) || x'7a' AS BLOB)"
                   f" WHERE rowid = (SELECT max(rowid) / 2 FROM {table})")
        db.commit()
        db.close()
        self.assertNotEqual(run(PAGEWARDEND, "--data", server.data, "--verify").returncode, 0)

    @staticmethod
    def records_column(db):
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            if "records" in columns:
                return table, "records"
        raise AssertionError("no table with records")


class Tls(Folder):
    @classmethod
    def setUpClass(cls):
        cls.pki = tempfile.mkdtemp(prefix="pagewarden-pki-")
        cls.addClassCleanup(shutil.rmtree, cls.pki, True)
        made = run(os.path.join(DEPLOY, "tls.sh"), cls.pki)
        assert made.returncode == 0, made.stderr

    def pem(self, name):
        return os.path.join(self.pki, name)

    def serve(self, *flags):
        log = open(os.path.join(self.folder, "log"), "w+b")
        self.addCleanup(log.close)
        process = subprocess.Popen(
            [PAGEWARDEND, "--data", os.path.join(self.folder, "data"), "--listen", "127.0.0.1:0", "--tls-cert", self.pem("server.pem"),
             "--tls-key", self.pem("server.key"), *flags], stdout=subprocess.PIPE, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        line = process.stdout.readline().decode()
        self.assertTrue(line.startswith("listening on https://127.0.0.1:"), line)
        return process, int(line.strip().rsplit(":", 1)[1])

    def ask(self, port, context):
        end = time.monotonic() + 20
        while True:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
            try:
                connection.request("GET", "/readyz")
                status = connection.getresponse().status
                if status == 200 or time.monotonic() > end:
                    return status
            finally:
                connection.close()
            time.sleep(0.05)

    def test_a_client_that_knows_the_authority_gets_through(self):
        process, port = self.serve()
        self.assertEqual(self.ask(port, ssl.create_default_context(cafile=self.pem("ca.pem"))), 200)
        with self.assertRaises(ssl.SSLError):
            self.ask(port, ssl.create_default_context())
        process.send_signal(signal.SIGHUP)
        self.assertEqual(self.ask(port, ssl.create_default_context(cafile=self.pem("ca.pem"))), 200)
        process.terminate()
        self.assertEqual(process.wait(30), 0)

    def test_mutual_tls_wants_a_certificate(self):
        _, port = self.serve("--tls-client-ca", self.pem("ca.pem"))
        context = ssl.create_default_context(cafile=self.pem("ca.pem"))
        with self.assertRaises(OSError):
            self.ask(port, context)
        context.load_cert_chain(self.pem("client.pem"), self.pem("client.key"))
        self.assertEqual(self.ask(port, context), 200)

    def test_plain_http_gets_nowhere(self):
        _, port = self.serve()
        with self.assertRaises((OSError, http.client.HTTPException)):
            Client(port, timeout=5).get("/healthz")


class Units(unittest.TestCase):
    def test_units_are_sound(self):
        if not shutil.which("systemd-analyze"):
            self.skipTest("no systemd-analyze here")
        for unit in ("pagewardend.service", "pagewarden-agent@.service"):
            got = run("systemd-analyze", "verify", os.path.join(DEPLOY, unit))
            lines = [line for line in got.stderr.splitlines() if unit.split("@")[0].split(".")[0] in line]
            self.assertEqual([line for line in lines if "is not executable" not in line], [])


class Demo(Folder):
    def test_it_shows_each_refusal(self):
        build = os.path.abspath(os.path.dirname(PAGEWARDEND))
        got = run(os.path.join(DEPLOY, "demo.sh"), timeout=240,
                  env={"B": build, "DATA": os.path.join(self.folder, "run"), "PORT": "0", "SECONDS_UP": "1"})
        self.assertEqual(got.returncode, 0, got.stdout + got.stderr)
        parts = got.stdout.split("\n4")[1:]
        self.assertEqual([part[:2] for part in parts], ["a.", "b.", "c.", "d."], got.stdout)
        for part in parts:
            if "skipped: this machine has no /dev/kvm" not in part:
                self.assertIn("refused: frame-conflict", part)


class Openapi(unittest.TestCase):
    def test_the_document_names_every_path_of_the_contract(self):
        server = Server()
        self.addCleanup(server.close)
        got = server.client().get("/openapi.json")
        self.assertEqual(got.status, 200, got)
        paths = got.json["paths"]
        for path in ("/v1/hosts", "/v1/hosts/{host}", "/v1/hosts/{host}/heartbeat", "/v1/hosts/{host}/fence",
                     "/v1/hosts/{host}/transitions", "/v1/hosts/{host}/operations", "/v1/vms", "/v1/vms/{vm}",
                     "/v1/vms/{vm}/gfns", "/v1/vms/{vm}/lifecycle", "/v1/events", "/v1/violations", "/v1/summary",
                     "/v1/tokens", "/metrics", "/healthz", "/readyz"):
            self.assertIn(path, paths)
        json.dumps(paths)


if __name__ == "__main__":
    unittest.main()
