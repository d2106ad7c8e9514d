"""Listeners of workloads: connections to a port of any node join an instance of this or another node."""
import contextlib
import glob
import hashlib
import os
import random
import re
import select
import shutil
import socket
import subprocess
import threading
import time
import unittest

import tcp_nodes
from cluster import Nodes, resident_kib, takes_at_most, wait_until
from tcp_nodes import Proxy, abort, all_of, half_way, joiners

FIRST, LAST = 30000, 30019
ONE = {"max": 1, "queue": 0}
POSTGRES = os.path.dirname(next(iter(glob.glob("/usr/lib/postgresql/*/bin/postgres")), ""))
# It makes its files for a user that has a name, and knows none of the sandbox's.
DATABASE = """
%(bin)s/initdb -D /tmp/db -U skerry --auth=trust --no-sync --no-locale -E UTF8 >&2
exec %(bin)s/postgres -D /tmp/db -k /tmp -h 127.0.0.1 -p 5432 -c fsync=off -c shared_buffers=16MB
"""


class TcpListen(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.addresses = ["127.0.0.%d" % (k + 1) for k in range(3)]
        cls.nodes = Nodes(3, ["gateway: {tcp: {ports: \"%d-%d\", address: %s}}\n"
                              % (FIRST, LAST, a) for a in cls.addresses])
        cls.nodes.__enter__()
        cls.deploy("db", 30000, scale=ONE)
        wait_until(lambda: all(cls.listens(k, 30000) for k in range(3)), 10, "all nodes listen")
        cls.db = cls.ask(0, 30000, b"identity\n").decode()  # on node 1

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)

    @classmethod
    def deploy(cls, name, port, node=0, **more):
        tcp_nodes.deploy(cls.nodes[node], name, access="public", listen={"tcp": port}, **more)

    @classmethod
    def listens(cls, k, port):
        # Looked up, not tried: a trial would be a join.
        mark = " %s:%04X 00000000:0000 0A" % (
            socket.inet_aton(cls.addresses[k])[::-1].hex().upper(), port)
        with open("/proc/net/tcp") as f:
            return any(mark in line for line in f)

    def open_everywhere(self, name, port, **more):
        self.deploy(name, port, **more)
        wait_until(lambda: all(self.listens(k, port) for k in range(3)), 10, "all nodes listen")

    @classmethod
    def connect(cls, k, port, first=b"", timeout=60):
        s = socket.create_connection((cls.addresses[k], port), timeout)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if first:
            s.sendall(first)
        return s

    @classmethod
    def ask(cls, k, port, line, timeout=60):
        with cls.connect(k, port, line, timeout) as s:
            s.shutdown(socket.SHUT_WR)
            return all_of(s)

    def refused(self, k, port):
        """A reset, before a byte came."""
        with self.assertRaises((ConnectionResetError, BrokenPipeError)), \
                self.connect(k, port) as s:
            s.sendall(b"echo\nx")
            s.recv(1)
            raise AssertionError("it ended as if it were whole")

    def joiners_are(self, workload, number):
        wait_until(lambda: sum(joiners(self.nodes.nodes, workload).values()) == number, 10,
                   "%s has %d joiners" % (workload, number))

    def file_of(self, name, id=None):
        return self.nodes[0].cli("exec", id or self.db, "--", "cat", "/tmp/" + name,
                                 check=False).stdout

    def metric(self, k, name):
        token = self.nodes[k].cli("token", "create", "--role", "deploy").stdout.decode().split()[-1]
        text = self.nodes[k].request("GET", "/metrics", headers={"Skerry-Token": token},
                                     port=self.nodes[k].api_port).body.decode()
        return sum(int(float(line.split()[-1])) for line in text.splitlines()
                   if re.match(re.escape(name) + r"(\{| )", line))

    def test_any_node_leads_to_the_instance(self):
        for k in range(3):
            self.assertEqual(self.ask(k, 30000, b"identity\n").decode(), self.db)
            with self.connect(k, 30000) as s:  # one that speaks late
                time.sleep(0.2)
                s.sendall(b"echo\nlate")
                self.assertEqual(s.recv(4), b"late")

    def test_much_passes_untouched_both_ways(self):
        data = os.urandom(8 << 20)
        for k in range(3):
            with self.connect(k, 30000, b"echo\n") as s:
                self.assertEqual(hashlib.sha256(half_way(s, data)).digest(),
                                 hashlib.sha256(data).digest())
            self.assertEqual(self.ask(k, 30000, b"digest\n" + data),
                             b"%d %s" % (len(data), hashlib.sha256(data).hexdigest().encode()))

    def test_a_hundred_mebibytes_each_way_leave_memory_flat(self):
        block, blocks = os.urandom(1 << 20), 100
        whole = hashlib.sha256()
        for _ in range(blocks):
            whole.update(block)
        for k in (0, 2):
            self.ask(k, 30000, b"echo\nx")
            nodes = {self.nodes[0], self.nodes[k]}
            before = {n: resident_kib(n.serve_process) for n in nodes}
            most = dict(before)
            with self.connect(k, 30000, b"echo\n") as s:
                def send():
                    for _ in range(blocks):
                        s.sendall(block)
                    s.shutdown(socket.SHUT_WR)
                sender = threading.Thread(target=send)
                sender.start()
                got, size = hashlib.sha256(), 0
                while data := s.recv(1 << 20):
                    got.update(data)
                    size += len(data)
                    if size % (8 << 20) < len(data):
                        most = {n: max(most[n], resident_kib(n.serve_process)) for n in nodes}
                sender.join()
            self.assertEqual((size, got.digest()), (blocks << 20, whole.digest()))
            for node in nodes:
                grown = most[node] - before[node]
                self.assertTrue(takes_at_most(16 << 10, grown, "by node %d, %s" % (k + 1, node.name)))

    def test_either_side_may_end_first(self):
        data = os.urandom(1 << 20)
        for k in range(3):
            with self.connect(k, 30000, b"first\n") as s:
                self.assertEqual(all_of(s), b"hello")
                time.sleep(0.1)
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                wait_until(lambda: self.file_of("first").endswith(
                    hashlib.sha256(data).hexdigest().encode()), 10, "all came")
                self.nodes[0].cli("exec", self.db, "--", "rm", "/tmp/first")
            self.joiners_are("db", 0)
            for _ in range(30):  # streams between nodes are used again
                self.assertEqual(self.ask(k, 30000, b"first\nmore"), b"hello")
                self.assertEqual(self.ask(k, 30000, b"echo\nabc"), b"abc")
                with self.connect(k, 30000, b"send 65536\n") as s:  # closed by the code first
                    self.assertEqual(len(all_of(s)), 65536)

    def test_no_side_runs_ahead_of_the_other(self):
        for k in (0, 2):
            with self.connect(k, 30000, b"endless\n") as s:
                def stands():
                    before = self.file_of("endless")
                    time.sleep(0.5)
                    return before != b"" and before == self.file_of("endless")
                wait_until(stands, 20, "nothing more is taken")
                self.assertLess(int(self.file_of("endless")), 32 << 20)
                abort(s)
            wait_until(lambda: self.file_of("endless-ended") != b"", 10, "the code was told")
            self.nodes[0].cli("exec", self.db, "--", "rm", "/tmp/endless", "/tmp/endless-ended")
            with self.connect(k, 30000, b"deaf\n", timeout=2) as s:
                sent = 0
                with self.assertRaises(TimeoutError):
                    while sent < 64 << 20:
                        sent += s.send(bytes(65536))
                self.assertEqual(self.ask(k, 30000, b"echo\nothers go on"), b"others go on")
                abort(s)
            self.joiners_are("db", 0)

    def test_resets_are_resets_on_the_other_side(self):
        for k in (0, 2):
            broken = self.metric(k, "skerry_gateway_tcp_broken_total")
            with self.connect(k, 30000, b"reset\n") as s, self.assertRaises(ConnectionResetError):
                all_of(s)
                raise AssertionError("it ended as if it were whole")
            for end, expected in ((abort, b"reset"), (lambda s: s.close(), b"end")):
                s = self.connect(k, 30000, b"ended\n")
                self.assertEqual(s.recv(1), b"x")
                end(s)
                wait_until(lambda: self.file_of("ended") == expected, 10, expected)
            self.assertEqual(self.metric(k, "skerry_gateway_tcp_broken_total"), broken + 2)
            # Who goes on sending to code that has closed hears of it at once.
            with self.connect(k, 30000, b"send 65536\n") as s:
                self.assertEqual(len(all_of(s)), 65536)
                with self.assertRaises(ConnectionError):
                    for _ in range(50):
                        s.sendall(b"x")
                        time.sleep(0.02)
            self.joiners_are("db", 0)

    def test_a_cold_workload_starts_with_its_first_connection(self):
        self.open_everywhere("cold", 30001, join={"max_joiners": 2}, scale={"max": 3})
        got = []

        def join(k):  # it speaks, and ends, before anything runs
            got.append(self.ask(k, 30001, b"echo\n%d" % k))
        clients = [threading.Thread(target=join, args=(k,)) for k in range(3)]
        for c in clients:
            c.start()
        for c in clients:
            c.join()
        self.assertEqual(sorted(got), [b"0", b"1", b"2"])
        held = [self.connect(k % 3, 30001, b"echo\nx") for k in range(6)]
        self.assertEqual([s.recv(1) for s in held], [b"x"] * 6)
        self.assertEqual(sorted(joiners(self.nodes.nodes, "cold").values()), [2, 2, 2])
        for s in held:
            s.close()
        self.joiners_are("cold", 0)

    def test_full_is_refused_or_waited_for(self):
        self.open_everywhere("few", 30002, join={"max_joiners": 2}, scale=ONE)
        for k in (0, 2):
            before = self.metric(k, "skerry_gateway_tcp_refused_total")
            with self.connect(0, 30002, b"echo\na") as a, self.connect(2, 30002, b"echo\nb") as b:
                self.assertEqual((a.recv(1), b.recv(1)), (b"a", b"b"))
                self.joiners_are("few", 2)
                self.refused(k, 30002)
            self.assertEqual(self.metric(k, "skerry_gateway_tcp_refused_total"), before + 1)
            with open(self.nodes[k].path("serve.log")) as f:
                self.assertRegex(f.read(), r"TCP few from 127\.0\.0\.1.*(instance_full|queue_full)")
            self.joiners_are("few", 0)
        self.open_everywhere("queue", 30003, join={"max_joiners": 1},
                             scale={"max": 1, "queue": 1, "queue_timeout": "20s"})
        for k in (0, 2):
            with self.connect(0, 30003, b"echo\na") as a:
                self.assertEqual(a.recv(1), b"a")
                with self.connect(k, 30003, b"echo\nb") as b:
                    b.shutdown(socket.SHUT_WR)  # a half-closed one keeps its place in the queue
                    self.assertEqual(select.select([b], [], [], 1.5)[0], [])
                    a.close()
                    self.assertEqual(all_of(b), b"b")
            self.joiners_are("queue", 0)

    def test_stream_idle_ends_it(self):
        self.open_everywhere("idle", 30004, scale=ONE,
                             timeouts={"start": "20s", "stream_idle": "1s"})
        for k in (0, 2):
            with self.connect(k, 30004, b"echo\n") as s:
                for _ in range(4):
                    s.sendall(b"x")
                    self.assertEqual(s.recv(1), b"x")
                    time.sleep(0.5)
                with self.assertRaises(ConnectionResetError):
                    s.recv(1)
            self.joiners_are("idle", 0)

    def test_the_end_of_the_instance_ends_it(self):
        self.open_everywhere("short", 30005, scale=ONE)
        for k in (0, 2):
            with self.connect(0, 30005, b"echo\nx") as here, \
                    self.connect(k, 30005, b"echo\nx") as s:
                self.assertEqual((here.recv(1), s.recv(1)), (b"x", b"x"))
                id, = joiners(self.nodes.nodes, "short")
                self.nodes[0].cli("stop", id)
                with contextlib.suppress(ConnectionError):
                    self.assertEqual(all_of(s), b"")
            self.assertNotEqual(self.ask(k, 30005, b"identity\n").decode(), id)

    def test_only_what_is_public_and_allowed_is_opened(self):
        for more, text in (
                ({"listen": {"tcp": 30006}}, "access: public"),
                ({"listen": {"tcp": 5432}, "access": "public"}, "30000 to 30019"),
                ({"listen": {"tcp": 30000}, "access": "public"}, "taken by workload db"),
                ({"listen": {"tcp": 30006}, "access": "public", "protocol": "http"},
                 "protocol: tcp"),
                ({"listen": {"tcp": 30006}, "access": "public",
                  "join": {"key": "header:X-Room"}}, "proxy --key")):
            with self.assertRaisesRegex(AssertionError, re.escape(text)):
                tcp_nodes.deploy(self.nodes[1], "bad", **more)
        self.assertFalse(self.listens(0, 5432))

    def test_a_port_follows_its_workload(self):
        self.open_everywhere("moves", 30007, scale=ONE)
        id = self.ask(1, 30007, b"identity\n")
        with self.connect(1, 30007, b"echo\nx") as s:
            self.assertEqual(s.recv(1), b"x")
            self.open_everywhere("moves", 30008, scale=ONE)
            wait_until(lambda: not any(self.listens(k, 30007) for k in range(3)), 10,
                       "the old port is closed")
            s.sendall(b"y")  # what is joined goes on
            self.assertEqual(s.recv(1), b"y")
        self.open_everywhere("other", 30007, scale=ONE)  # and another may have it
        self.assertNotIn(self.ask(2, 30007, b"identity\n"), (id, b""))
        self.nodes[1].cli("workload", "rm", "moves")
        wait_until(lambda: not any(self.listens(k, 30008) for k in range(3)), 10,
                   "no workload, no port")

    def test_a_port_of_somebody_else_is_told_and_tried_again(self):
        with socket.create_server((self.addresses[1], 30009)):
            self.deploy("late", 30009, scale=ONE)
            wait_until(lambda: self.listens(0, 30009), 10, "node 1 listens")
            wait_until(lambda: any("late" in w and "30009" in w
                                   for w in self.nodes[1].status()["warnings"]), 10, "it is told")
        self.open_everywhere("late", 30009, scale=ONE)
        self.assertEqual(self.ask(1, 30009, b"echo\nx"), b"x")
        wait_until(lambda: not any("late" in w for w in self.nodes[1].status()["warnings"]), 10,
                   "and no more")

    def test_joiners_never_exceed_and_come_back_to_none(self):
        self.open_everywhere("crowd", 30010, join={"max_joiners": 8},
                             scale={"max": 1, "queue": 1000, "queue_timeout": "60s"})
        self.ask(0, 30010, b"echo\nx")

        def files():
            return [len(os.listdir("/proc/%d/fd" % n.serve_process.pid))
                    for n in self.nodes.nodes]
        before = files()

        def client(seed):
            own = random.Random(seed)
            for _ in range(10):
                with contextlib.suppress(OSError):
                    s = self.connect(own.randrange(3), 30010, own.choice(
                        [b"", b"echo\n", b"digest\n", b"endless\n", b"first\n", b"reset\n"]), 30)
                    if own.random() < 0.5:
                        s.sendall(bytes(own.randrange(200000)))
                    time.sleep(own.random() / 10)
                    (abort if own.random() < 0.5 else socket.socket.close)(s)
        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(50)]
        for c in clients:
            c.start()
        for c in clients:
            c.join()
        self.joiners_are("crowd", 0)

        def counts():
            return [int(x) for x in self.ask(1, 30010, b"count\n").split()]
        wait_until(lambda: counts()[0] == 1, 20, "the code sees nobody else")
        _, most, joins = counts()
        print("        %d joins, %d at a time at most" % (joins, most))
        self.assertLessEqual(most, 8)
        self.assertGreater(joins, 100)
        wait_until(lambda: all(now - then < 40 for now, then in zip(files(), before)), 40,
                   "no descriptor is left")

    @unittest.skipUnless(POSTGRES and shutil.which("psql"),
                         "no PostgreSQL on this machine (apt: postgresql)")
    def test_a_database_and_its_own_client(self):
        self.nodes[0].deploy({
            "id": "postgres", "port": 5432, "protocol": "tcp", "access": "public",
            "listen": {"tcp": 30012}, "scale": ONE, "timeouts": {"start": "60s"},
            "command": ["sh", "-ec", DATABASE % {"bin": POSTGRES}],
            # It listens before it takes anybody.
            "ready": "healthcheck", "healthcheck": {
                "test": ["CMD", POSTGRES + "/pg_isready", "-q", "-h", "127.0.0.1"],
                "interval": "200ms"},
            "deploy": {"resources": {"limits": {"disk": "512M", "memory": "512M"}}}})
        wait_until(lambda: all(self.listens(k, 30012) for k in range(3)), 10, "all nodes listen")

        def psql(host, port, statement):
            done = subprocess.run(["psql", "-qAtX", "-h", host, "-p", str(port), "-U", "skerry",
                                   "-c", statement, "postgres"], capture_output=True, timeout=240)
            self.assertEqual(done.returncode, 0, done)
            return done.stdout.decode().strip()
        psql(self.addresses[1], 30012, "create table t as select n, md5(n::text) as sum "
                                       "from generate_series(1, 200000) n")
        for k in range(3):
            self.assertEqual(psql(self.addresses[k], 30012, "select count(*) from t"), "200000")
            rows = psql(self.addresses[k], 30012, "select sum from t order by n").split()
            self.assertEqual(rows[41], hashlib.md5(b"42").hexdigest())
            self.assertEqual(len(rows), 200000)
        with Proxy(self.nodes[2], "postgres", "0:5432") as proxy:
            self.assertEqual(psql("127.0.0.1", proxy.port, "select max(n) from t"), "200000")

    def test_connections_outlive_nothing_of_a_node_that_dies(self):
        self.deploy("there", 30011, node=2, scale=ONE)
        wait_until(lambda: all(self.listens(k, 30011) for k in range(3)), 10, "all nodes listen")
        self.ask(2, 30011, b"identity\n")  # on node 3
        with self.connect(1, 30011, b"echo\nx") as s:
            self.assertEqual(s.recv(1), b"x")
            self.nodes[2].kill_serve()
            with self.assertRaises(ConnectionResetError):
                s.recv(1)
                raise AssertionError("it ended as if it were whole")
        self.nodes[2].start_serve()
        self.nodes.wait_settled()
        wait_until(lambda: self.listens(2, 30011), 20, "it listens again")
        self.assertEqual(self.ask(1, 30011, b"echo\nx"), b"x")


if __name__ == "__main__":
    unittest.main()
