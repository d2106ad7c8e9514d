"""Hostile clients and hostile code: a named error for them, nothing for their neighbours."""
import glob
import os
import socket
import subprocess
import threading
import time
import unittest

from cluster import BUILD, Node, server, server_spec, wait_until

PLAIN = "def handle(h):\n    h.say('fine')\n"

MALFORMED = {
    "bare LF": b"GET /w/hello/ HTTP/1.1\nHost: x\n\n",
    "obs-fold": b"GET /w/hello/ HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "NUL": b"GET /w/hello/ HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "two lengths": b"POST /w/hello/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
                   b"Content-Length: 2\r\n\r\nab",
    "length and chunked": b"POST /w/hello/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
                          b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before a colon": b"GET /w/hello/ HTTP/1.1\r\nHost : x\r\n\r\n",
    "bad chunk": b"POST /w/hello/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                 b"zz\r\n\r\n",
    "no host": b"GET /w/hello/ HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /w/hello/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
}

ATTACKS = {
    "fork": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 20))\n",
    "disk": "f = open('/tmp/f', 'wb')\nwhile True:\n    try: f.write(b'x' * (1 << 20)); f.flush()\n"
            "    except OSError: pass\n",
    "inodes": "k = 0\nwhile True:\n    try: open('/tmp/%d' % k, 'w').close(); k += 1\n"
              "    except OSError: pass\n",
    "descriptors": "import os\nx = []\nwhile True:\n    try: x.append(os.open('/', 0))\n"
                   "    except OSError: pass\n",
    "log": "while True: print('x' * 4000)\n",
    "tcp": "import socket\nl = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(4096)\nx = []\n"
           "while True:\n    try:\n        c = socket.create_connection(l.getsockname()); "
           "c.setblocking(False); x.append(c); x.append(l.accept()[0])\n"
           "        while True: c.send(b'x' * 65536)\n    except OSError: pass\n",
}


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node(config="gateway: {header_timeout: 1s, body_max: 1M}\n").__enter__()
        cls.node.deploy(server_spec("hello"), server(PLAIN))
        cls.node.get("/w/hello/")

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def test_malformed_requests(self):
        for name, request in MALFORMED.items():
            with self.subTest(name):
                raw = self.node.raw(request)
                self.assertTrue(raw.startswith(b"HTTP/1.1 400 "), (name, raw[:200]))
                self.assertIn(b"Skerry-Error: bad_request", raw)
                self.assertIn(b"application/problem+json", raw)
                self.assertIn(b'"ran"', raw)
        self.assertEqual(self.node.get("/w/hello/").status, 200)

    def test_bounds(self):
        node = self.node
        big = node.raw(b"GET /w/hello/ HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 80000 + b"\r\n\r\n")
        self.assertTrue(big.startswith(b"HTTP/1.1 431 "), big[:100])
        answer = node.raw(b"POST /w/hello/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:100])
        target = node.raw(b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(target[:13], (b"HTTP/1.1 414 ", b"HTTP/1.1 431 "))

    def test_slow_headers_are_cut_by_a_deadline(self):
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.node.http_port), 10) as s:
            s.sendall(b"GET /w/hello/ HTTP/1.1\r\nHost: x\r\n")
            s.settimeout(0.1)
            out = b""
            while time.monotonic() - begun < 8:
                try:
                    s.sendall(b"A: b\r\n")  # never silent, never done
                    piece = s.recv(4096)
                    if not piece:
                        break
                    out += piece
                except socket.timeout:
                    continue
                except OSError:
                    break
        self.assertLess(time.monotonic() - begun, 5)
        self.assertTrue(out.startswith(b"HTTP/1.1 408 "), out[:100])

    def test_thousand_connections_of_nothing(self):
        fd_count = lambda: len(os.listdir("/proc/%d/fd" % self.node.serve_process.pid))
        before = fd_count()
        idle = [socket.create_connection(("127.0.0.1", self.node.http_port)) for _ in range(1000)]
        self.assertEqual(self.node.get("/w/hello/").status, 200)
        for s in idle:
            s.close()
        wait_until(lambda: fd_count() <= before + 4, 10, "descriptors are back")

    def test_attacks_spare_neighbours(self):
        node = self.node
        for name, code in ATTACKS.items():
            with self.subTest(name):
                done = []
                t = threading.Thread(target=lambda: done.append(
                    node.cli("run", "--timeout", "4s", "--memory", "64M", "--", "python3", "-c",
                             code, check=False)))
                t.start()
                worst = 0.0
                while t.is_alive():
                    begun = time.monotonic()
                    self.assertEqual(node.get("/w/hello/", timeout=20).status, 200)
                    worst = max(worst, time.monotonic() - begun)
                t.join()
                self.assertNotEqual(done[0].returncode, 0)
                # Who had to wait for the attack to end waited for nearly 4 s.
                self.assertLess(worst, 3.0, name)
        self.assertTrue(node.status()["healthy"])

    def test_nothing_is_left_behind(self):
        node = self.node
        self_pid = node.runner_process.pid
        groups = "/sys/fs/cgroup/pids" if os.path.isdir("/sys/fs/cgroup/pids") else "/sys/fs/cgroup"

        def state():
            return (len(open("/proc/self/mounts").read().splitlines()),
                    len(open("/proc/%d/mounts" % self_pid).read().splitlines()),
                    len(os.listdir("/proc/%d/fd" % self_pid)),
                    len(os.listdir("/proc/%d/fd" % node.serve_process.pid)),
                    len(glob.glob("%s/%s-*/**/" % (groups, node.group), recursive=True)),
                    len(os.listdir(node.path("runner", "instances"))),
                    len(subprocess.run(["pgrep", "-P", str(self_pid)],
                                       capture_output=True).stdout.split()))
        node.cli("run", "--", "true")

        def quiet():
            now = state()
            time.sleep(1)  # a blank that was taken is made anew
            return now if now == state() else None
        before = wait_until(quiet, 10, "quiet")
        for _ in range(30):
            node.cli("run", "--", "true")
        wait_until(lambda: all(a <= b for a, b in zip(state(), before)), 15,
                   "as before: %s" % (before,))

    def test_probe_inside(self):
        node = self.node
        probe = os.path.join(BUILD, "probe", "probe")
        done = node.cli("run", "--source", os.path.dirname(probe), "--timeout", "60s", "--",
                        "/app/probe", check=False)
        print(done.stdout.decode(errors="replace").splitlines()[-1], flush=True)
        self.assertEqual(done.returncode, 0, done.stdout.decode(errors="replace")[-3000:])


if __name__ == "__main__":
    unittest.main()
