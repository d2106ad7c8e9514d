"""Ports of an instance through `ssh -L`, `-W` and `-D`, with OpenSSH's own client."""
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import unittest

from cluster import free_port, wait_until
from ssh_nodes import ONE, SshNodes

CODE = """import hashlib, http.server, os, socket, struct, threading, time

def until_end(s):
    digest = hashlib.sha256()
    while True:
        data = s.recv(65536)
        if not data:
            return digest
        digest.update(data)

def digest(s):  # says nothing before the other side has ended
    s.sendall(until_end(s).hexdigest().encode())

def six(s):
    s.sendall(b"six")

def first(s):  # ends before the other side does
    s.sendall(b"hello")
    s.shutdown(socket.SHUT_WR)
    with open("/tmp/first", "w") as f:
        f.write(until_end(s).hexdigest())

def endless(s):
    block = bytes(range(256)) * 256
    sent = 0
    try:
        while True:
            sent += s.send(block)
            with open("/tmp/endless", "w") as f:
                f.write(str(sent))
    except OSError:
        with open("/tmp/endless-ended", "w") as f:
            f.write(str(sent))

def deaf(s):
    time.sleep(1000)

def echo(s):
    while True:
        data = s.recv(65536)
        if not data:
            with open("/tmp/echo-ended", "a") as f:
                f.write("x")
            return
        s.sendall(data)

def reset(s):
    s.recv(1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

def serve(port, handle, family=socket.AF_INET):
    l = socket.socket(family)
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        l.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    l.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
    l.listen(64)
    def run(s):
        try:
            handle(s)
        finally:
            s.close()
    while True:
        s, _ = l.accept()
        threading.Thread(target=run, args=(s,), daemon=True).start()

for port, handle in ((7001, digest), (7003, first), (7004, endless), (7005, deaf), (7006, echo),
                     (7007, reset)):
    threading.Thread(target=serve, args=(port, handle), daemon=True).start()
threading.Thread(target=serve, args=(7002, six, socket.AF_INET6), daemon=True).start()

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["SKERRY_INSTANCE"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Page).serve_forever()
"""


class Forward(SshNodes):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name in ("ports", "short"):
            cls.nodes[0].deploy({"id": name, "command": ["python3", "main.py"], "port": 8080,
                                 "timeouts": {"start": "20s"}, "scale": ONE,
                                 "life": {"idle": "60s"}}, {"main.py": CODE})

    @contextlib.contextmanager
    def forwarded(self, to, *more, node=0, user="ports", local=None):
        """A port of ours that leads to one of the instance."""
        local = local or free_port()
        with subprocess.Popen(self.argv(user, node=node, flags=[
                "-N", "-o", "ExitOnForwardFailure=yes", "-L", "127.0.0.1:%d:%s" % (local, to),
                *more]), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: self.can_connect(local) or process.poll() is not None, 20,
                           "ssh listens")
                self.assertIsNone(process.poll())
                yield local, process
            finally:
                process.send_signal(signal.SIGTERM)

    @staticmethod
    def can_connect(port):
        # Looked up, not tried: a trial would be a channel.
        with open("/proc/net/tcp") as f:
            return any(" 0100007F:%04X 00000000:0000 0A" % port in line for line in f)

    @staticmethod
    def connect(port):
        s = socket.create_connection(("127.0.0.1", port))
        s.settimeout(60)
        return s

    @staticmethod
    def all_of(s):
        got = b""
        while True:
            data = s.recv(65536)
            if not data:
                return got
            got += data

    def file_of(self, path, user="ports"):
        return self.ssh(user, "cat " + path).stdout

    def test_every_node_leads_to_the_ports_of_the_instance(self):
        id = self.ssh("ports", "echo $SKERRY_INSTANCE").stdout.strip()
        for node in range(3):
            for host in ("localhost", "127.0.0.1"):
                with self.forwarded(host + ":8080", node=node) as (port, _):
                    for _ in range(3):
                        done = subprocess.run(["curl", "-s", "http://127.0.0.1:%d/" % port],
                                              capture_output=True, timeout=30)
                        self.assertEqual(done.stdout, id)

    def test_localhost_is_either_family(self):
        for host in ("localhost", "[::1]"):
            done = self.ssh("ports", node=1, flags=["-W", host + ":7002"])
            self.assertEqual((done.returncode, done.stdout), (0, b"six"), done)
        done = self.ssh("ports", node=1, flags=["-W", "127.0.0.1:7002"])
        self.assertEqual(done.stdout, b"")

    def test_much_passes_untouched_and_the_client_may_end_first(self):
        data = os.urandom(10 << 20)
        for node in range(3):
            done = self.ssh("ports", node=node, flags=["-W", "localhost:7001"], stdin=data)
            self.assertEqual(done.stdout.decode(), hashlib.sha256(data).hexdigest(), done)
            with self.forwarded("localhost:7006", node=node) as (port, _), \
                    self.connect(port) as s:
                def send():
                    s.sendall(data)
                    s.shutdown(socket.SHUT_WR)
                sender = threading.Thread(target=send)
                sender.start()
                self.assertEqual(hashlib.sha256(self.all_of(s)).digest(),
                                 hashlib.sha256(data).digest())
                sender.join()

    def test_the_code_may_end_first(self):
        data = os.urandom(1 << 20)
        for node in range(3):
            with self.forwarded("localhost:7003", node=node) as (port, _), \
                    self.connect(port) as s:
                self.assertEqual(self.all_of(s), b"hello")
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                wait_until(lambda: self.file_of("/tmp/first").decode()
                           == hashlib.sha256(data).hexdigest(), 10, "all came")
                self.ssh("ports", "rm /tmp/first")

    def test_who_does_not_read_is_not_written_to_without_end(self):
        for node in range(3):
            with self.forwarded("localhost:7004", node=node) as (port, _):
                with self.connect(port) as s:
                    def stands():
                        before = self.file_of("/tmp/endless")
                        threading.Event().wait(0.5)
                        return before == self.file_of("/tmp/endless") and before != b""
                    wait_until(stands, 20, "nothing more is taken")
                    sent = int(self.file_of("/tmp/endless"))
                    self.assertLess(sent, 32 << 20)  # kernels', OpenSSH's 2 MiB and ours
                    block, got = bytes(range(256)) * 256, 0
                    while got < sent:
                        data = s.recv(65536)
                        at = got % len(block)
                        self.assertEqual(data, (block + block)[at:at + len(data)])
                        got += len(data)
                wait_until(lambda: self.file_of("/tmp/endless-ended") != b"", 10,
                           "the code was told that nobody reads")
                self.ssh("ports", "rm /tmp/endless /tmp/endless-ended")

    def test_code_that_does_not_read_is_not_sent_to_without_end(self):
        for node in (0, 2):
            with self.forwarded("localhost:7005", node=node) as (port, _), \
                    self.connect(port) as s:
                s.settimeout(2)
                sent = 0
                with self.assertRaises(TimeoutError):
                    while sent < 64 << 20:
                        sent += s.send(bytes(65536))
                self.assertGreater(sent, 65536)
                # Others of the session go on.
                done = self.ssh("ports", "echo on", node=node)
                self.assertEqual(done.stdout, b"on\n")

    def test_only_the_instance_itself_is_reached(self):
        for node, host in enumerate(("127.0.0.2", "10.0.0.1", "example.org", "0.0.0.0",
                                     "localhost.example.org", "", "[::ffff:127.0.0.1]",
                                     "node1")):
            done = self.ssh("ports", node=node % 3, flags=["-W", host + ":8080"], timeout=20)
            self.assertEqual((done.returncode, done.stdout), (255, b""), (host, done))
        done = self.ssh("ports", flags=["-v", "-W", "127.0.0.2:8080"])
        self.assertIn(b"administratively prohibited", done.stderr)
        self.assertIn(b"127.0.0.2", done.stderr)
        self.assertIn(b"only localhost, 127.0.0.1 and ::1 are reached", done.stderr)
        with socket.socket() as ours:
            ours.bind(("127.0.0.1", 0))
            ours.listen(5)
            port = ours.getsockname()[1]
            done = self.ssh("ports", flags=["-v", "-W", "127.0.0.1:%d" % port], timeout=20)
            self.assertEqual(done.stdout, b"")
            self.assertIn(b"nothing listens on this port", done.stderr)
            ours.settimeout(0.2)
            with self.assertRaises(TimeoutError):
                ours.accept()

    def test_sockets_of_files_are_refused(self):
        port = free_port()
        with self.forwarded("/tmp/socket", local=port) as (_, process), self.connect(port) as s:
            self.assertEqual(self.all_of(s), b"")
            self.assertIsNone(process.poll())

    def test_a_proxy_reaches_the_instance_and_nothing_else(self):
        port = free_port()
        with subprocess.Popen(self.argv("ports", node=1, flags=["-N", "-D", str(port)])) as ssh:
            try:
                wait_until(lambda: self.can_connect(port), 20, "ssh listens")
                def curl(url):
                    return subprocess.run(["curl", "-s", "--socks5-hostname",
                                           "127.0.0.1:%d" % port, url],
                                          capture_output=True, timeout=30)
                self.assertIn(curl("http://localhost:8080/").stdout.decode(),
                              self.listed("ports"))
                self.assertNotEqual(curl("http://example.org/").returncode, 0)
            finally:
                ssh.terminate()

    def test_a_reset_closes_the_connection(self):
        with self.forwarded("localhost:7007", node=2) as (port, process), \
                self.connect(port) as s:
            s.sendall(b"xy")
            with contextlib.suppress(ConnectionError):
                self.assertEqual(self.all_of(s), b"")
            self.assertIsNone(process.poll())

    def test_connections_of_a_session_are_bounded(self):
        for node in (0, 1):
            with self.forwarded("localhost:7006", node=node) as (port, process):
                def answers(s):
                    try:
                        s.sendall(b"x")
                        return s.recv(1) == b"x"
                    except ConnectionError:
                        return False
                def sixteen():
                    held = [self.connect(port) for _ in range(16)]
                    if all([answers(s) for s in held]):
                        return held
                    for s in held:
                        s.close()
                    return None
                for _ in range(2):  # what was closed makes room
                    held = wait_until(sixteen, 10, "there is room")
                    more = [self.connect(port) for _ in range(4)]
                    self.assertEqual([answers(s) for s in more], [False] * 4)
                    self.assertTrue(all(answers(s) for s in held))
                    for s in held + more:
                        s.close()
                self.assertIsNone(process.poll())

    def test_clients_that_vanish_in_the_midst_harm_no_node(self):
        for round in range(12):
            node = self.nodes[round % 2]
            with self.forwarded("localhost:7006", node=round % 2) as (port, process):
                held = [self.connect(port) for _ in range(12)]
                for s in held:
                    s.sendall(b"x" if round % 4 < 2 else bytes(65536))
                    self.assertNotEqual(s.recv(1), b"")
                for s in held:
                    s.close()
                if round % 3 == 2:
                    process.kill()
            self.assertIsNone(node.serve_process.poll())
            self.assertEqual(self.ssh("ports", "echo on", node=round % 2).stdout, b"on\n")

    def test_the_end_of_the_session_ends_its_connections(self):
        for node in (0, 2):
            self.ssh("ports", "rm -f /tmp/echo-ended")
            with self.forwarded("localhost:7006", node=node) as (port, process):
                with self.connect(port) as s:
                    s.sendall(b"x")
                    self.assertEqual(s.recv(1), b"x")
                    process.kill()
                    process.wait()
                    wait_until(lambda: self.file_of("/tmp/echo-ended") == b"x", 10,
                               "the code sees the end")

    def test_the_end_of_the_instance_ends_its_connections(self):
        id = self.ssh("short", "echo $SKERRY_INSTANCE").stdout.decode().strip()
        with self.forwarded("localhost:7006", node=1, user=id) as (port, process), \
                self.connect(port) as s:
            s.sendall(b"x")
            self.assertEqual(s.recv(1), b"x")
            self.nodes[0].cli("stop", id)
            with contextlib.suppress(ConnectionError):
                self.assertEqual(self.all_of(s), b"")
            self.assertEqual(process.wait(20), 255)

    def test_forwarding_alone_is_a_joiner(self):
        wait_until(lambda: [i["joiners"] for i in self.listed("ports").values()] in ([0], []), 20,
                   "nobody is there")
        with self.forwarded("localhost:8080", node=2):
            wait_until(lambda: [i["joiners"] for i in self.listed("ports").values()] == [1], 10,
                       "one is there")


if __name__ == "__main__":
    unittest.main()
