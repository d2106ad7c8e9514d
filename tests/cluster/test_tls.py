"""HTTPS at the gateway with clients that others wrote: curl, openssl s_client, Python's ssl."""
import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
import unittest

from cluster import NODE_UID, SKERRY, Node, free_port, server_spec, wait_until
from raw_http import Certificates, Client, raw_server, request


def run(*arguments, data=b"", seconds=60):
    return subprocess.run(arguments, input=data, capture_output=True, timeout=seconds)


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = Certificates().make("first", "localhost", "raw.localhost")
        cls.files.make("second", "shop.test", "*.shop.test", kind="rsa")
        cls.port, cls.redirect_port = free_port(), free_port()
        cls.webroot = cls.files.path("www")
        cls.node = Node("gateway:\n  acme_webroot: %s\n  tls:\n    listen: 127.0.0.1:%d\n"
                        "    redirect: 127.0.0.1:%d\n    handshake_timeout: 1s\n    %s\n"
                        % (cls.webroot, cls.port, cls.redirect_port,
                           cls.files.configuration("first", "second").replace(", key", "\n    key")))
        try:
            cls.node.__enter__()
            cls.node.deploy(server_spec("raw", join={"max_joiners": 500}), raw_server())
            assert cls.node.get("/w/raw/").status == 200
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)
        shutil.rmtree(cls.files.directory, ignore_errors=True)

    def curl(self, url, *more, data=b""):
        done = run("curl", "-sS", "-m", "60", "--cacert", self.files.path("first.pem"), *more, url,
                   data=data)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def url(self, path):
        return "https://localhost:%d%s" % (self.port, path)

    def reload(self, mark):
        """SIGHUP; waits until the log has one more line with `mark`."""
        before = self.log().count(mark)
        self.node.serve_process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log().count(mark) > before, what="%r in the log" % mark)

    def log(self):
        with open(self.node.path("serve.log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    # --- clients ---------------------------------------------------------------------------------

    def test_curl_gets_and_posts(self):
        seen = self.curl(self.url("/w/raw/raw"))
        self.assertIn(b"\r\nX-Forwarded-Proto: https\r\n", seen)
        # By host name, as a browser would come.
        seen = self.curl("https://raw.localhost:%d/raw?x=%%2F" % self.port, "--resolve",
                         "raw.localhost:%d:127.0.0.1" % self.port)
        self.assertIn(b"GET /raw?x=%2F HTTP/1.1\r\n", seen)
        body = os.urandom(5 << 20)
        for more in ([], ["-H", "Transfer-Encoding: chunked"], ["--tls-max", "1.2"]):
            out = self.curl(self.url("/w/raw/echo"), "--data-binary", "@-", *more, data=body)
            self.assertTrue(out == body, more)
        out = self.curl(self.url("/w/raw/trailers"), "-i", "--raw")
        self.assertTrue(out.endswith(b"5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"), out)

    def test_curl_gets_events_as_they_are_sent(self):
        with subprocess.Popen(["curl", "-sSN", "-m", "60", "--cacert", self.files.path("first.pem"),
                               self.url("/w/raw/stream")], stdout=subprocess.PIPE) as curl:
            for k in range(5):
                self.node.get("/w/raw/go/stream") # the code sends the next one only now
                self.assertEqual(curl.stdout.readline() + curl.stdout.readline(),
                                 b"data: %d\n\n" % k)
            self.assertEqual(curl.wait(30), 0)

    def s_client(self, *more, data=b""):
        return run("openssl", "s_client", "-connect", "127.0.0.1:%d" % self.port, "-CAfile",
                   self.files.path("first.pem"), "-verify_return_error", *more, data=data)

    def test_openssl_agrees_on_versions_and_protocols(self):
        ask = request(b"/w/raw/x", b"Connection: close\r\n")
        for version in ("-tls1_2", "-tls1_3"):
            done = self.s_client(version, "-quiet", "-servername", "localhost", "-alpn",
                                 "h2,http/1.1", data=ask)
            self.assertTrue(done.stdout.endswith(b"GET /x"), done)
        done = self.s_client("-brief", "-servername", "localhost", "-alpn", "h2,http/1.1")
        self.assertIn(b"Protocol version: TLSv1.3", done.stderr)
        done = self.s_client("-servername", "localhost", "-alpn", "http/1.1")
        self.assertIn(b"ALPN protocol: http/1.1", done.stdout)
        self.assertIn(b"Verify return code: 0", done.stdout)
        for refused in (["-tls1_1", "-cipher", "ALL@SECLEVEL=0"], ["-alpn", "h2"],
                        ["-tls1_2", "-cipher", "AES128-SHA"]):
            done = self.s_client(*refused)
            self.assertIn(b"alert", done.stderr, refused)

    def test_openssl_resumes_with_a_ticket(self):
        session = self.files.path("session")
        self.s_client("-quiet", "-sess_out", session,
                      data=request(b"/w/raw/x", b"Connection: close\r\n"))
        done = self.s_client("-sess_in", session)
        self.assertIn(b"Reused, TLSv1.3", done.stdout)

    def test_the_name_chooses_the_certificate(self):
        for name, wanted in (("localhost", b"CN = localhost"), ("shop.test", b"CN = shop.test"),
                             ("a.shop.test", b"CN = shop.test"), ("other.test", b"CN = localhost")):
            done = run("openssl", "s_client", "-connect", "127.0.0.1:%d" % self.port, "-servername",
                       name)
            self.assertIn(b"subject=" + wanted, done.stdout.replace(b"subject=CN=", b"subject=CN = "))

    # --- who is no client of HTTPS ------------------------------------------------------------------

    def test_plain_http_is_told_so(self):
        done = run("curl", "-sS", "-i", "http://127.0.0.1:%d/w/raw/" % self.port)
        self.assertTrue(done.stdout.startswith(b"HTTP/1.1 400 Bad Request\r\n"), done)
        self.assertIn(b"ask https://", done.stdout)

    def test_silence_is_cut_by_a_deadline(self):
        begun = time.monotonic()
        clients = [Client(self.port) for _ in range(20)]
        for k, client in enumerate(clients):
            client.send(b"\x16\x03\x01"[:k % 4])
        for client in clients:
            self.assertTrue(client.closed())
            client.socket.close()
        self.assertGreater(time.monotonic() - begun, 0.9)
        self.assertEqual(self.curl(self.url("/w/raw/x")), b"GET /x")

    # --- redirect and ACME --------------------------------------------------------------------------

    def test_plain_http_is_led_here(self):
        done = run("curl", "-sS", "-i", "-X", "PUT", "-d", "body",
                   "http://localhost:%d/w/raw/a%%2Fb?c" % self.redirect_port)
        self.assertTrue(done.stdout.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n"), done)
        self.assertIn(b"\r\nLocation: https://localhost:%d/w/raw/a%%2Fb?c\r\n" % self.port, done.stdout)
        out = self.curl("http://localhost:%d/w/raw/echo" % self.redirect_port, "-L", "-d", "kept")
        self.assertEqual(out, b"kept")
        # Beside it plain joins go on where `http` says.
        self.assertEqual(self.node.get("/w/raw/x").body, b"GET /x")

    def test_challenges_of_acme_and_nothing_else(self):
        folder = os.path.join(self.webroot, ".well-known", "acme-challenge")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "tok-EN_1"), "w", encoding="ascii") as f:
            f.write("tok-EN_1.thumb")
        with open(os.path.join(self.webroot, "secret"), "w", encoding="ascii") as f:
            f.write("secret")
        with contextlib.suppress(FileExistsError):
            os.symlink("/etc/hostname", os.path.join(folder, "link"))
            os.symlink("/etc", os.path.join(folder, "folder"))
        base = "http://localhost:%d/.well-known/acme-challenge/" % self.redirect_port
        self.assertEqual(self.curl(base + "tok-EN_1"), b"tok-EN_1.thumb")
        self.assertEqual(self.curl(self.url("/.well-known/acme-challenge/tok-EN_1")),
                         b"tok-EN_1.thumb")
        head = self.curl(base + "tok-EN_1", "-I")
        self.assertIn(b"Content-Length: 14", head)
        for trick in ("", "none", "link", "folder/hostname", "../../secret", "..%2f..%2fsecret",
                      "%2e%2e/%2e%2e/secret", "/etc/hostname", "//etc/hostname", "tok-EN_1%00",
                      "tok-EN_1/..", ".", "..", "x" * 300, "....//secret", "\\..\\secret"):
            out = self.curl(base + trick, "--path-as-is", "-w", "%{http_code}")
            self.assertTrue(out.endswith(b"404"), (trick, out))
            self.assertNotIn(b"secret\n", out)
        out = self.curl(base + "tok-EN_1", "-X", "DELETE", "-w", "%{http_code}")
        self.assertTrue(out.endswith(b"405"), out)

    # --- new certificates ----------------------------------------------------------------------------

    def serial(self):
        der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", self.port)))
        return hash(der)

    def test_a_reload_under_load_drops_nothing(self):
        errors, served, stop = [], [0], threading.Event()

        def context():
            c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
            return c

        def work(fresh):
            try:
                client = None
                while not stop.is_set():
                    client = client or Client(self.port, context())
                    head, body, _ = client.ask(request(b"/w/raw/x"))
                    if (head.status, body) != (200, b"GET /x"):
                        raise AssertionError((head.raw, body))
                    served[0] += 1
                    if fresh:
                        client.socket.close()
                        client = None
            except Exception as e: # pylint: disable=broad-except
                errors.append(repr(e))
        with Client(self.port, context()) as long, Client(self.port, context()) as socket:
            long.send(request(b"/w/raw/stream"))
            long.head()
            socket.send(request(b"/w/raw/upgrade", b"Connection: Upgrade\r\nUpgrade: bytes\r\n"))
            self.assertEqual(socket.head().status, 101)
            threads = [threading.Thread(target=work, args=(k % 2 == 0,)) for k in range(6)]
            for t in threads:
                t.start()
            seen = {self.serial()}
            for _ in range(12):
                self.files.make("first", "localhost", "raw.localhost")
                self.reload("certificates were read again")
                # Each of the gateway's threads has it a moment later.
                wait_until(lambda: self.serial() not in seen, what="the new certificate")
                seen.add(self.serial())
            self.bad_files_leave_all_as_it_was()
            stop.set()
            for t in threads:
                t.join()
            self.assertEqual(errors, [])
            self.assertGreater(served[0], 100)
            for k in range(5):
                self.node.get("/w/raw/go/stream")
                self.assertEqual(long.chunk(), b"data: %d\n\n" % k)
            socket.send(b"still here")
            self.assertEqual(socket.exactly(10), b"still here")
        wait_until(lambda: len({self.serial() for _ in range(8)}) == 1, what="one certificate")
        self.assertEqual(self.curl(self.url("/w/raw/x")), b"GET /x")
        # Nothing of a key stands in a log.
        with open(self.files.path("first.key"), encoding="ascii") as f:
            secret = f.read().split("\n")[1]
        self.assertNotIn(secret[:24], self.log())
        self.assertNotIn("PRIVATE KEY-----\n", self.log())

    def test_status_warns_before_the_end(self):
        def warned():
            return [w for w in self.node.status()["warnings"] if "certificate of HTTPS ends in" in w]
        self.assertEqual(warned(), [])
        self.files.make("second", "shop.test", "*.shop.test", days=3)
        self.reload("certificates were read again")
        self.assertRegex(warned()[0], r"^node1  a certificate of HTTPS ends in 7[12] h; renew")
        self.files.make("second", "shop.test", "*.shop.test", kind="rsa")
        self.reload("certificates were read again")
        self.assertEqual(warned(), [])

    def bad_files_leave_all_as_it_was(self):
        path = self.files.path("first.key")
        with open(path, "rb") as f:
            good = f.read()
        shown = self.serial()
        for bad in (b"", b"nonsense", good[:100]):
            with open(path, "wb") as f:
                f.write(bad)
            self.reload("the certificates stay as they were: %s" % path)
            self.assertEqual(self.serial(), shown)
        with open(path, "wb") as f:
            f.write(good)
        os.chmod(path, 0o604)
        self.reload("the certificates stay as they were: %s has mode 0604" % path)
        os.chmod(path, 0o600)
        self.reload("certificates were read again")

    # --- the start -----------------------------------------------------------------------------------

    def test_what_cannot_be_used_ends_the_start(self):
        files = self.files
        files.make("late", days=-1).make("good").make("other").make("open").make("gone")
        os.chmod(files.path("open.key"), 0o644)
        os.rename(files.path("other.key"), files.path("swapped.key"))
        os.rename(files.path("good.key"), files.path("other.key"))
        os.rename(files.path("swapped.key"), files.path("good.key"))
        os.unlink(files.path("gone.pem"))
        cases = {"late": "late.pem expired at ", "good": "good.key is not the key of ",
                 "open": "open.key has mode 0644: others ", "gone": "gone.pem (serve runs as uid "}
        for name, text in cases.items():
            with self.subTest(case=name):
                data, config = files.path("data-" + name), files.path(name + ".yaml")
                os.mkdir(data)
                os.chown(data, NODE_UID, NODE_UID)
                with open(config, "w", encoding="ascii") as f:
                    f.write("data: %s\nbootstrap: true\ngateway: {tls: {listen: \"127.0.0.1:%d\", %s}}\n"
                            % (data, free_port(), files.configuration(name)))
                done = subprocess.run([SKERRY, "serve", "--config", config], capture_output=True,
                                      stdin=subprocess.DEVNULL, timeout=30, user=NODE_UID,
                                      group=NODE_UID, extra_groups=[])
                self.assertEqual(done.returncode, 1)
                self.assertIn(text, done.stderr.decode())
                self.assertIn(files.directory, done.stderr.decode())
                self.assertEqual(os.listdir(data), [])

    def test_metrics_tell_of_it(self):
        self.curl(self.url("/w/raw/x"))
        token = self.node.cli("token", "create", "--role", "admin").stdout.decode().strip()
        text = self.node.request("GET", "/metrics", port=self.node.api_port,
                                 headers={"Skerry-Token": token}).body.decode()
        self.assertGreater(int(re.search(r"^skerry_gateway_tls_handshakes_total (\d+)$", text,
                                         re.M).group(1)), 0)
        ends = int(re.search(r"^skerry_gateway_certificate_expires_timestamp_seconds (\d+)$", text,
                             re.M).group(1))
        self.assertTrue(29 * 86400 < ends - time.time() < 31 * 86400)
