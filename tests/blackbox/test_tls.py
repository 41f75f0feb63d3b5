"""TLS while the server runs: SIGHUP reads certificate and log level again, and a bad one changes nothing."""
import hashlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

from harness import PAGEWARDEND, SANITIZER_MARKS, WAIT_S

TLS_SH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "tls.sh")


def make_authority(folder):
    made = subprocess.run([TLS_SH, folder], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise AssertionError(made.stderr)


@unittest.skipUnless(shutil.which("openssl"), "no openssl in PATH to make certificates with")
class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pki = tempfile.mkdtemp(prefix="pagewarden-pki-")
        cls.addClassCleanup(shutil.rmtree, cls.pki, True)
        for authority in ("ours", "theirs"):
            make_authority(os.path.join(cls.pki, authority))

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="pagewarden-tls-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.install("ours")

    def pem(self, authority, name):
        return os.path.join(self.pki, authority, name)

    def path(self, name):
        return os.path.join(self.folder, name)

    def install(self, authority):
        """Puts that authority's certificate in place, as a renewal would: beside it, and then renamed."""
        for name in ("server.key", "server.pem"):
            shutil.copy(self.pem(authority, name), self.path(name + ".new"))
            os.rename(self.path(name + ".new"), self.path(name))

    def configure(self, level):
        with open(self.path("ini"), "w", encoding="utf-8") as f:
            f.write(f"[pagewardend]\nlog-level = {level}\n")

    def serve(self, *flags, listen="127.0.0.1:0"):
        self.configure("info")
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen(
                [PAGEWARDEND, "--config", self.path("ini"), "--data", self.path("data"), "--listen", listen,
                 "--tls-cert", self.path("server.pem"), "--tls-key", self.path("server.key"), *flags],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        self.addCleanup(self.end)
        line = self.process.stdout.readline().decode().strip()
        self.assertTrue(line.startswith("listening on https://"), line + self.log())
        self.port = int(line.rsplit(":", 1)[1])

    def end(self):
        self.process.terminate()
        self.assertEqual(self.process.wait(WAIT_S), 0, self.log())
        self.process.stdout.close()
        self.assertFalse(any(mark in self.log() for mark in SANITIZER_MARKS), self.log())

    def log(self):
        with open(self.path("log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def trusting(self, authority, client=None):
        context = ssl.create_default_context(cafile=self.pem(authority, "ca.pem"))
        if client:
            context.load_cert_chain(self.pem(client, "client.pem"), self.pem(client, "client.key"))
        return context

    def connect(self, context):
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=WAIT_S, context=context)
        self.addCleanup(connection.close)
        return connection

    def ask(self, connection, path="/healthz"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def shown(self):
        """Fingerprint of the certificate that a new connection is shown."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S) as plain:
            with context.wrap_socket(plain) as tls:
                return hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest()

    def fingerprint(self, authority):
        with open(self.pem(authority, "server.pem"), encoding="ascii") as f:
            text = f.read()
        end = "-----END CERTIFICATE-----"
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[:text.index(end) + len(end)])).hexdigest()

    def hang_up(self, said):
        """SIGHUP, and the wait until the log says that it was acted on."""
        before = self.log().count(said)
        self.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + WAIT_S
        while self.log().count(said) == before:
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.01)

    def test_hang_up_shows_the_new_certificate_and_keeps_connections(self):
        self.serve()
        kept = self.connect(self.trusting("ours"))
        self.assertEqual(self.ask(kept), 200)
        self.assertEqual(self.shown(), self.fingerprint("ours"))
        self.install("theirs")
        self.assertEqual(self.shown(), self.fingerprint("ours"), "read again without being told")
        self.hang_up("reloaded log level and TLS certificate")
        self.assertEqual(self.shown(), self.fingerprint("theirs"))
        self.assertEqual(self.ask(kept), 200)
        self.assertEqual(self.ask(self.connect(self.trusting("theirs"))), 200)
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.ask(self.connect(self.trusting("ours")))

    def test_a_bad_certificate_changes_nothing(self):
        self.serve()
        good = self.fingerprint("ours")
        shutil.copy(self.pem("theirs", "server.key"), self.path("server.key"))
        self.hang_up("the old one stays")
        self.assertEqual(self.shown(), good, "a key that is not the certificate's")
        with open(self.path("server.pem"), "w", encoding="ascii") as f:
            f.write("no certificate\n")
        self.hang_up("the old one stays")
        self.assertEqual(self.shown(), good, "no certificate at all")
        os.unlink(self.path("server.pem"))
        self.hang_up("the old one stays")
        self.assertEqual(self.shown(), good, "no file")
        self.install("ours")
        self.hang_up("reloaded log level and TLS certificate")
        self.assertEqual(self.shown(), good)

    def test_many_renewals_under_connections(self):
        self.serve()
        for turn in range(20):
            authority = ("theirs", "ours")[turn % 2]
            self.install(authority)
            self.hang_up("reloaded log level and TLS certificate")
            self.assertEqual(self.ask(self.connect(self.trusting(authority))), 200)

    def test_hang_up_reads_the_log_level_again(self):
        self.serve()
        connection = self.connect(self.trusting("ours"))
        self.ask(connection, "/healthz?at=info")
        self.assertNotIn("level=debug", self.log())
        self.configure("debug")
        self.hang_up("reloaded log level and TLS certificate")
        self.ask(connection)
        self.ask(connection)
        self.assertIn("level=debug", self.log())
        self.configure("nonsense")
        self.hang_up("the old one stays")
        before = self.log().count("level=debug")
        self.ask(connection)
        self.ask(connection)
        self.assertGreater(self.log().count("level=debug"), before)

    def test_a_client_certificate_of_another_authority_is_refused(self):
        self.serve("--tls-client-ca", self.pem("ours", "ca.pem"))
        self.assertEqual(self.ask(self.connect(self.trusting("ours", client="ours"))), 200)
        for client in (None, "theirs"):
            with self.assertRaises(OSError):
                self.ask(self.connect(self.trusting("ours", client=client)))

    def test_beyond_loopback_with_tls_only(self):
        self.serve(listen="0.0.0.0:0")
        self.assertEqual(self.ask(self.connect(self.trusting("ours"))), 200)
        got = subprocess.run([PAGEWARDEND, "--data", self.path("other"), "--listen", "0.0.0.0:0"], capture_output=True,
                             text=True, timeout=WAIT_S, check=False)
        self.assertNotEqual(got.returncode, 0)
        self.assertIn("0.0.0.0:0", got.stderr)
        self.assertNotIn("listening", got.stdout)

    def test_ciphers_are_authenticated_and_keys_forgotten(self):
        self.serve()
        context = self.trusting("ours")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        for ciphers, fits in (("ECDHE+AESGCM", True), ("ECDHE+CHACHA20", True), ("AES256-GCM-SHA384", False),
                              ("ECDHE-RSA-AES256-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA256:"
                               "ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA384", False), ("AES128-SHA:AES256-SHA256", False)):
            with self.subTest(ciphers=ciphers):
                try:
                    context.set_ciphers(ciphers + ":@SECLEVEL=0")
                except ssl.SSLError:
                    continue  # this machine's OpenSSL cannot even ask
                if fits:
                    self.assertEqual(self.ask(self.connect(context)), 200)
                else:
                    with self.assertRaises((ssl.SSLError, OSError)):
                        self.ask(self.connect(context))

    def test_nobody_renegotiates(self):
        self.serve()
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-tls1_2", "-CAfile", self.pem("ours", "ca.pem")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(client.stdout.close)
        client.stdin.write(b"R\n")
        client.stdin.flush()
        client.wait(WAIT_S)  # its connection was ended
        client.stdin.close()
        said = client.stdout.read()
        self.assertIn(b"RENEGOTIATING", said)
        self.assertEqual(said.count(b"verify return:1"), said.partition(b"RENEGOTIATING")[0].count(b"verify return:1"), said)
        self.assertEqual(self.ask(self.connect(self.trusting("ours"))), 200)

    def test_old_protocols_are_refused(self):
        self.serve()
        context = self.trusting("ours")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        try:
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        except ValueError as e:
            self.skipTest(f"this Python has no TLS 1.1: {e}")
        with self.assertRaises(OSError):
            self.ask(self.connect(context))


if __name__ == "__main__":
    unittest.main()
