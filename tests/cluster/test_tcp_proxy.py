"""`skerry proxy`: ports of instances of this and other nodes, at ports of this machine."""
import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
import unittest

import tcp_nodes
from cluster import Nodes, free_port, wait_until
from tcp_nodes import Proxy, abort, all_of, ask, connect, half_way, joiners, refused

ONE = {"max": 1, "queue": 0}


class TcpProxy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.nodes = Nodes(3)
        cls.nodes.__enter__()
        first = cls.nodes[0]
        tcp_nodes.deploy(first, "db", scale=ONE)
        tcp_nodes.deploy(first, "few", scale=ONE, join={"max_joiners": 2})
        tcp_nodes.deploy(first, "idle", scale=ONE,
                         timeouts={"start": "20s", "stream_idle": "1s"})
        tcp_nodes.deploy(first, "rooms", join={"key": "header:X-Room"})
        cls.db = cls.start("db")

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)

    @classmethod
    def start(cls, workload):
        """An instance of it, on node 1."""
        with Proxy(cls.nodes[0], workload) as proxy:
            return ask(proxy.port, b"identity\n").decode()

    def joiners_are(self, workload, number):
        wait_until(lambda: sum(joiners(self.nodes.nodes, workload).values()) == number, 10,
                   "%s has %d joiners" % (workload, number))

    def file_of(self, id, name):
        done = self.nodes[0].cli("exec", id, "--", "cat", "/tmp/" + name, check=False)
        return done.stdout

    def test_an_instance_is_reached_through_every_node(self):
        for node in self.nodes.nodes:
            for subject in (self.db, self.db[:8], "db"):
                with Proxy(node, subject) as proxy:
                    for _ in range(3):
                        self.assertEqual(ask(proxy.port, b"identity\n").decode(), self.db)

    def test_the_example_is_right(self):
        self.nodes[0].cli("deploy", os.path.join(os.path.dirname(__file__), "..", "..", "deploy",
                                                 "examples", "store.yaml"))
        with Proxy(self.nodes[2], "store") as proxy:
            self.assertEqual(ask(proxy.port, b"set sky dark blue\nkeys\nget nothing\n"),
                             b"ok\nsky\n\n")
        with Proxy(self.nodes[1], "store") as proxy:
            self.assertEqual(ask(proxy.port, b"get sky\nx\n"),
                             b"dark blue\nwhat? set KEY VALUE, get KEY, keys\n")

    def test_several_ports_declared_or_not(self):
        with Proxy(self.nodes[1], self.db, "0:7000", "127.0.0.1:0:7001", ":7001") as proxy:
            for port in proxy.ports:
                self.assertEqual(ask(port, b"echo\nabc"), b"abc")
        local = free_port()
        with Proxy(self.nodes[2], self.db, "localhost:%d:7000" % local) as proxy:
            self.assertEqual(proxy.ports, [local])
            self.assertEqual(ask(local, b"echo\nabc"), b"abc")

    def test_it_says_what_it_does_and_ends_by_a_signal(self):
        local = free_port()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            proxy = Proxy(self.nodes[1], self.db, "%d:7000" % local)
            proxy.argv.remove("--json")
            with subprocess.Popen(proxy.argv, stdout=subprocess.PIPE, env=proxy.environment) as p:
                self.assertEqual(p.stdout.readline(),
                                 b"Forwarding from 127.0.0.1:%d -> 7000\n" % local)
                with connect(local, b"echo\nx") as s:
                    self.assertEqual(s.recv(1), b"x")
                    self.joiners_are("db", 1)
                    p.send_signal(number)
                    self.assertEqual(p.wait(20), 0)
                    with contextlib.suppress(ConnectionResetError):
                        self.assertEqual(s.recv(1), b"")
                self.joiners_are("db", 0)

    def test_what_cannot_be_is_refused_at_once(self):
        node = self.nodes[1]
        taken = socket.create_server(("127.0.0.1", 0))
        busy = "%d:7000" % taken.getsockname()[1]
        for arguments, code, text in (
                ((self.db,), 2, "ID|WORKLOAD LOCAL:REMOTE"),
                ((self.db, "x:7000"), 2, "write LOCAL:REMOTE"),
                ((self.db, "7000:0"), 2, "write LOCAL:REMOTE"),
                ((self.db, "70000:1"), 2, "write LOCAL:REMOTE"),
                ((self.db, "example.org:1:7000"), 2, "write LOCAL:REMOTE"),
                ((self.db, busy), 1, "0 as LOCAL picks a free port"),
                ((self.db, "--key", "x", "0:1"), 2, "--key goes with a workload"),
                (("nothing", "0:7000"), 3, "no workload is called"),
                (("7zzzzzzzzzzzzzzzzz", "0:7000"), 3, "instance_unknown")):
            done = node.cli("proxy", *arguments, check=False, timeout=20)
            self.assertEqual(done.returncode, code, (arguments, done))
            self.assertIn(text, done.stderr.decode(), arguments)
        taken.close()
        done = node.cli("proxy", "--addr", "127.0.0.1:1", self.db, "0:7000", check=False)
        self.assertEqual(done.returncode, 4, done)

    def test_nothing_listens(self):
        with Proxy(self.nodes[1], self.db, "0:7009") as proxy:
            self.assertTrue(refused(proxy.port))
            self.joiners_are("db", 0)
            code, said = proxy.end()
        self.assertEqual(code, 0)
        self.assertIn("nothing listens on this port", said)

    def test_much_passes_untouched_both_ways(self):
        data = os.urandom(16 << 20)
        for node in self.nodes.nodes:
            with Proxy(node, self.db) as proxy:
                with connect(proxy.port, b"echo\n") as s:
                    self.assertEqual(hashlib.sha256(half_way(s, data)).digest(),
                                     hashlib.sha256(data).digest())
                self.assertEqual(ask(proxy.port, b"digest\n" + data),
                                 b"%d %s" % (len(data), hashlib.sha256(data).hexdigest().encode()))

    def test_either_side_may_end_first(self):
        data = os.urandom(1 << 20)
        for node in self.nodes.nodes:
            with Proxy(node, self.db) as proxy, connect(proxy.port, b"first\n") as s:
                self.assertEqual(all_of(s), b"hello")
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                wait_until(lambda: self.file_of(self.db, "first").endswith(
                    hashlib.sha256(data).hexdigest().encode()), 10, "all came")
                self.nodes[0].cli("exec", self.db, "--", "rm", "/tmp/first")
                self.joiners_are("db", 0)

    def test_no_side_runs_ahead_of_the_other(self):
        for node in (self.nodes[0], self.nodes[2]):
            with Proxy(node, self.db) as proxy:
                with connect(proxy.port, b"endless\n") as s:
                    def stands():
                        before = self.file_of(self.db, "endless")
                        time.sleep(0.5)
                        return before != b"" and before == self.file_of(self.db, "endless")
                    wait_until(stands, 20, "nothing more is taken")
                    self.assertLess(int(self.file_of(self.db, "endless")), 32 << 20)
                    abort(s)
                wait_until(lambda: self.file_of(self.db, "endless-ended") != b"", 10,
                           "the code was told")
                self.nodes[0].cli("exec", self.db, "--", "rm", "/tmp/endless",
                                  "/tmp/endless-ended")
                with connect(proxy.port, b"deaf\n", timeout=2) as s:
                    sent = 0
                    with self.assertRaises(TimeoutError):
                        while sent < 64 << 20:
                            sent += s.send(bytes(65536))
                    self.assertEqual(ask(proxy.port, b"echo\nothers go on"), b"others go on")
                    abort(s)
                self.joiners_are("db", 0)

    def test_resets_are_resets_on_the_other_side(self):
        for node in (self.nodes[0], self.nodes[2]):
            with Proxy(node, self.db) as proxy:
                with connect(proxy.port, b"reset\n") as s, \
                        self.assertRaises(ConnectionResetError):
                    all_of(s)
                for end, expected in ((abort, b"reset"), (lambda s: s.close(), b"end")):
                    s = connect(proxy.port, b"ended\n")
                    self.assertEqual(s.recv(1), b"x")
                    end(s)
                    wait_until(lambda: self.file_of(self.db, "ended") == expected, 10, expected)
                # What is broken off between the two does not look like an end either.
                s = connect(proxy.port, b"ended\n")
                self.assertEqual(s.recv(1), b"x")
                proxy.process.kill()
                wait_until(lambda: self.file_of(self.db, "ended") == b"reset", 10, "reset")
                s.close()
            self.joiners_are("db", 0)

    def test_a_connection_is_a_joiner(self):
        few = self.start("few")
        for node in (self.nodes[0], self.nodes[2]):
            with Proxy(node, few) as proxy:
                with connect(proxy.port, b"echo\na") as a, connect(proxy.port, b"echo\nb") as b:
                    self.assertEqual((a.recv(1), b.recv(1)), (b"a", b"b"))
                    self.joiners_are("few", 2)
                    self.assertTrue(refused(proxy.port))
                    a.sendall(b"c")
                    self.assertEqual(a.recv(1), b"c")
                self.joiners_are("few", 0)
                self.assertEqual(ask(proxy.port, b"echo\nagain"), b"again")
                code, said = proxy.end()
            self.assertEqual(code, 0)
            self.assertIn("503 ", said)
            self.assertIn("full", said)

    def test_stream_idle_ends_it(self):
        id = self.start("idle")
        for node in (self.nodes[0], self.nodes[2]):
            with Proxy(node, id) as proxy:
                with connect(proxy.port, b"echo\n") as s:
                    for _ in range(4):  # what moves goes on
                        s.sendall(b"x")
                        self.assertEqual(s.recv(1), b"x")
                        time.sleep(0.5)
                    with self.assertRaises(ConnectionResetError):
                        s.recv(1)
                _, said = proxy.end()
            self.assertIn("timeouts.stream_idle", said)
            self.joiners_are("idle", 0)

    def test_the_end_of_the_instance_ends_it(self):
        for node in (self.nodes[0], self.nodes[2]):
            tcp_nodes.deploy(self.nodes[0], "short", scale=ONE)
            id = self.start("short")
            with Proxy(node, id) as proxy:
                with connect(proxy.port, b"echo\nx") as s:
                    self.assertEqual(s.recv(1), b"x")
                    self.nodes[0].cli("stop", id)
                    with contextlib.suppress(ConnectionError):
                        self.assertEqual(all_of(s), b"")
                # The next finds out that there is nothing any more, and so it ends.
                self.assertTrue(refused(proxy.port))
                code, said = proxy.wait()
            self.assertEqual(code, 3, said)
            self.assertIn("instance_gone", said)
            done = node.cli("proxy", id, "0:7000", check=False)
            self.assertEqual(done.returncode, 3, done)

    def test_a_workload_starts_what_is_needed(self):
        tcp_nodes.deploy(self.nodes[0], "cold", join={"max_joiners": 1}, scale={"max": 3})
        with Proxy(self.nodes[1], "cold") as proxy:
            held = [connect(proxy.port, b"echo\nx") for _ in range(3)]
            self.assertEqual([s.recv(1) for s in held], [b"x"] * 3)
            self.assertEqual(sorted(joiners(self.nodes.nodes, "cold").values()), [1, 1, 1])
            for s in held:
                s.close()
            self.joiners_are("cold", 0)

    def test_keys_are_rooms(self):
        ids = set()
        for key in ("a", "b", "a"):
            with Proxy(self.nodes[2], "rooms", flags=("--key", key)) as proxy:
                ids.add(ask(proxy.port, b"identity\n"))
        self.assertEqual(len(ids), 2)

    def test_roles(self):
        node = self.nodes[1]

        def proxy_with(role, port, *scope):
            token = node.cli("token", "create", "--role", role, *scope).stdout.decode().split()[-1]
            return Proxy(node, self.db, "0:%d" % port, environment={
                "SKERRY_ADDR": "127.0.0.1:%d" % node.api_port, "SKERRY_TOKEN": token})
        for role, port in (("invoke", 7000), ("deploy", 7000), ("deploy", 7001)):
            with proxy_with(role, port) as proxy:
                self.assertEqual(ask(proxy.port, b"echo\nin"), b"in")
                for _ in range(20):  # over TCP, too, nothing is left of a connection
                    self.assertEqual(ask(proxy.port, b"echo\nin"), b"in")
                self.joiners_are("db", 0)
        with proxy_with("invoke", 7001) as proxy:
            self.assertTrue(refused(proxy.port))
            code, said = proxy.wait()
        self.assertEqual(code, 5, said)
        self.assertIn("any other port needs role deploy", said)

    def test_http_is_not_its_way(self):
        answer = self.nodes[1].get("/w/db/", {"Skerry-Token": self.nodes[1].cli(
            "token", "create", "--role", "invoke").stdout.decode().split()[-1]})
        self.assertEqual((answer.status, answer.error), (409, "conflict"))
        self.assertIn("skerry proxy", answer.json()["detail"])

    def test_many_that_leave_anyhow_leave_nothing(self):
        def files(process):
            return len(os.listdir("/proc/%d/fd" % process.pid))
        for node in (self.nodes[0], self.nodes[2]):
            with Proxy(node, self.db) as proxy:
                ask(proxy.port, b"echo\nx")
                before = files(node.serve_process), files(proxy.process)
                chance = random.Random(5)

                def client(seed):
                    own = random.Random(seed)
                    for _ in range(12):
                        with contextlib.suppress(OSError):
                            s = connect(proxy.port, own.choice(
                                [b"", b"echo\n", b"digest\n", b"endless\n", b"first\n"]), 20)
                            if own.random() < 0.5:
                                s.sendall(bytes(own.randrange(200000)))
                            time.sleep(own.random() / 20)
                            (abort if own.random() < 0.5 else socket.socket.close)(s)
                clients = [threading.Thread(target=client, args=(chance.random(),))
                           for _ in range(25)]
                for c in clients:
                    c.start()
                for c in clients:
                    c.join()
                self.joiners_are("db", 0)
                wait_until(lambda: abs(files(node.serve_process) - before[0]) < 8, 40,
                           "no descriptor is left")
                wait_until(lambda: files(proxy.process) <= before[1], 10, "nor of the proxy's")
                self.assertEqual(ask(proxy.port, b"echo\nx"), b"x")


if __name__ == "__main__":
    unittest.main()
