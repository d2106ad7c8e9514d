"""The three timeouts, each told apart from the others: by this node and by another than the instance's.

The code is told what to do by the path. What is cut after its first byte has no status any more: then the
log and the counters name the code, and the client sees that the transfer is not whole."""
import json
import re
import socket
import time
import unittest

from cluster import PATIENCE, server, server_spec, wait_until
from ssh_nodes import SshNodes

CODE = r"""
def chunk(h, data):
    h.wfile.write(b"%x\r\n%s\r\n" % (len(data), data)); h.wfile.flush()
def handle(h):
    what = h.path.strip("/").split("?")[0]
    if what == "silent":
        time.sleep(30)
    if what == "tunnel":
        h.send_response(101)
        h.send_header("Upgrade", "websocket"); h.send_header("Connection", "Upgrade")
        h.end_headers()
        try:
            while h.rfile.read(1):
                h.wfile.write(b"pong"); h.wfile.flush()
        except OSError:
            pass
        h.close_connection = True
        return
    if what in ("drip", "stall"):
        h.send_response(200); h.send_header("Transfer-Encoding", "chunked"); h.end_headers()
        try:
            chunk(h, b"first")
            while what == "drip":
                time.sleep(0.2)
                chunk(h, b".")
            time.sleep(30)
        except OSError:
            pass
        h.close_connection = True
        return
    h.say("ok")
"""

FIRST_BYTE, STREAM_IDLE, REQUEST = 1, 2, 4
ONE = {"max": 1}


class Timeouts(SshNodes):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.nodes[0].deploy(server_spec("clocks", scale=ONE, timeouts={
            "start": "20s", "first_byte": "%ds" % FIRST_BYTE, "stream_idle": "%ds" % STREAM_IDLE,
            "request": "%ds" % REQUEST}), server(CODE))
        cls.nodes[0].deploy(server_spec("patient", scale=ONE, timeouts={
            "start": "20s", "first_byte": "none", "request": "1s"}), server(CODE))
        for name in ("clocks", "patient"):
            owner = cls.nodes[0].get("/w/%s/" % name)
            assert owner.status == 200, owner
            for node in cls.nodes.nodes:
                # Until each finds the one that runs.
                wait_until(lambda n=node, w=name, i=owner.instance:
                           n.get("/w/%s/" % w).instance == i, what="it is known everywhere")

    def ways(self):
        """The node of the instance, and another."""
        return self.nodes.nodes[:2]

    def counted(self, node, code):
        out = node.api("GET", "/metrics").body.decode()
        found = re.search(r'^skerry_problems_total\{code="%s"\} (\d+)$' % code, out, re.M)
        return int(found.group(1)) if found else 0

    def cut(self, node, path, code):
        """(what came, seconds): of an answer that begins and is cut."""
        before = self.counted(node, code)
        begun = time.monotonic()
        out = node.raw(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode(), timeout=30)
        took = time.monotonic() - begun
        self.assertIn(b"200 OK", out)
        self.assertIn(b"5\r\nfirst\r\n", out)
        self.assertFalse(out.endswith(b"0\r\n\r\n"), out)
        wait_until(lambda: self.counted(node, code) == before + 1, what="the count of " + code)
        request = re.search(rb"Skerry-Request-Id: (\S+)", out).group(1).decode()
        with open(node.path("serve.log"), encoding="utf-8") as log:
            lines = [line for line in log if request in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(code, lines[0])
        return took

    def assert_near(self, took, seconds):
        self.assertGreater(took, seconds - 0.1)
        self.assertLess(took, seconds + 0.5 * PATIENCE)

    def test_first_byte(self):
        for node in self.ways():
            begun = time.monotonic()
            answer = node.get("/w/clocks/silent")
            self.assert_near(time.monotonic() - begun, FIRST_BYTE)
            self.assertEqual((answer.status, answer.error, answer.json()["ran"]),
                             (504, "first_byte_timeout", "maybe"))
            self.assertIn("timeouts.first_byte of 1s", answer.json()["detail"])

    def test_request_before_the_first_byte(self):
        for node in self.ways():
            begun = time.monotonic()
            answer = node.get("/w/patient/silent")
            self.assert_near(time.monotonic() - begun, 1)
            self.assertEqual((answer.status, answer.error), (504, "request_timeout"))
            self.assertIn("timeouts.request of 1s", answer.json()["detail"])

    def test_request_while_bytes_still_come(self):
        for node in self.ways():
            self.assert_near(self.cut(node, "/w/clocks/drip", "request_timeout"), REQUEST)

    def test_stream_idle(self):
        for node in self.ways():
            self.assert_near(self.cut(node, "/w/clocks/stall", "stream_idle_timeout"), STREAM_IDLE)

    def test_what_is_upgraded_has_stream_idle_alone(self):
        for node in self.ways():
            before = self.counted(node, "stream_idle_timeout")
            with socket.create_connection(("127.0.0.1", node.http_port), 30) as s:
                s.sendall(b"GET /w/clocks/tunnel HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n"
                          b"Upgrade: websocket\r\n\r\n")
                self.assertIn(b" 101 ", s.recv(4096))
                begun = time.monotonic()
                # Beyond every other timeout.
                while time.monotonic() < begun + REQUEST + 1.5:
                    s.sendall(b"x")
                    self.assertEqual(s.recv(4096), b"pong")
                    time.sleep(0.5)
                begun = time.monotonic()
                # Nothing says that it is whole.
                self.assertRaises(ConnectionResetError, s.recv, 4096)
                self.assert_near(time.monotonic() - begun, STREAM_IDLE - 0.5)
            wait_until(lambda n=node, b=before: self.counted(n, "stream_idle_timeout") == b + 1,
                       what="it is counted")

    def test_ssh_has_stream_idle_alone(self):
        for k, node in enumerate(self.ways()):
            begun = time.monotonic()
            done = self.ssh("clocks", "for i in 1 2 3 4 5 6; do echo $i; sleep 1; done; exit 7",
                            node=k)
            self.assertEqual((done.returncode, done.stdout.split()[-1]), (7, b"6"), done)
            self.assertGreater(time.monotonic() - begun, REQUEST + 1)
            begun = time.monotonic()
            done = self.ssh("clocks", "sleep 30", node=k)
            self.assertEqual(done.returncode, 255, done)
            self.assertLess(time.monotonic() - begun, STREAM_IDLE + 2 * PATIENCE)
            with open(node.path("serve.log"), encoding="utf-8") as log:
                self.assertIn("stream_idle_timeout", log.read())

    def test_show_has_effective_values(self):
        shown = json.loads(self.nodes[1].cli("workload", "show", "clocks", "--json").stdout)["spec"]
        self.assertEqual(shown["timeouts"], {"start": "20s", "first_byte": "1s", "request": "4s",
                                             "stream_idle": "2s", "drain": "30s"})
        self.assertEqual(shown["life"], {"idle": "5m", "max": "none"})
        self.assertEqual(shown["scale"], {"idle_min": 0, "max": 1, "target": "1", "queue": 100,
                                          "queue_timeout": "10s"})
        # first_byte is never longer than request where it was not written.
        self.nodes[0].deploy(server_spec("short", timeouts={"request": "5s"}), server(CODE))
        text = self.nodes[0].cli("workload", "show", "short").stdout.decode()
        self.assertRegex(text, r'first_byte: "?5s')
        self.assertRegex(text, r'stream_idle: "?5m')


if __name__ == "__main__":
    unittest.main()
