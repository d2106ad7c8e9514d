"""Three nodes of `skerry up`: any accepts, the owner runs, and losing nodes loses nothing promised."""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from cluster import SKERRY, UnixConnection, wait_until

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")

HELLO = os.path.join(ROOT, "deploy", "examples", "hello.yaml")
FIRST = 41  # nodes at 127.0.0.41 and so on: a cluster of the user's own may be at 127.0.0.1


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Nodes:
    """A cluster of its own folder; nodes count from 1."""

    def __init__(self, count):
        self.directory = tempfile.mkdtemp(prefix="skerry-nodes-", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.count = count

    def up(self):
        return self.cli(1, "up", "--nodes", str(self.count), "--detach", "--dir", self.directory,
                        "--address", self.address(1), timeout=120)

    def down_only(self):
        subprocess.run([SKERRY, "down", "--dir", self.directory, "--timeout", "1s"],
                       capture_output=True, timeout=120)

    def down(self):
        self.down_only()
        shutil.rmtree(self.directory, ignore_errors=True)

    def address(self, node):
        return "127.0.0.%d" % (FIRST + node - 1)

    def path(self, node, *parts):
        return os.path.join(self.directory, "node%d" % node, *parts)

    def cli(self, node, *arguments, check=True, timeout=60, stdin=b""):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SKERRY_")}
        environment["SKERRY_ADDR"] = "unix:" + self.path(node, "run", "api.sock")
        environment["NO_COLOR"] = "1"
        done = subprocess.run([SKERRY, *arguments], capture_output=True, timeout=timeout,
                              input=stdin, env=environment)
        if check and done.returncode != 0:
            raise AssertionError((arguments, done.returncode, done.stdout, done.stderr))
        return done

    def api(self, node, method, path, body=None, timeout=20):
        connection = UnixConnection(self.path(node, "run", "api.sock"), timeout)
        return self.ask(connection, method, path, body)

    def join(self, node, path, timeout=20):
        connection = http.client.HTTPConnection(self.address(node), 8080, timeout=timeout)
        return self.ask(connection, "GET", path)

    def ask(self, connection, method, path, body=None):
        try:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def status(self, node):
        return self.api(node, "GET", "/v1/status").json()

    def state(self, node, of):
        return next(n["state"] for n in self.status(node)["nodes"] if n["name"] == "node%d" % of)

    def number(self, name):
        return int(name[len("node"):])

    def leader(self, node):
        return self.number(self.status(node)["leader"])

    def pid(self, node, daemon):
        with open(self.path(node, daemon + ".pid")) as f:
            return int(f.read())

    def kill(self, node, *daemons):
        for daemon in daemons or ("serve", "runner"):
            os.kill(self.pid(node, daemon), signal.SIGKILL)

    def others(self, *nodes):
        return [n for n in range(1, self.count + 1) if n not in nodes]

    def dump(self):
        for node in range(1, self.count + 1):
            for daemon in ("serve", "runner"):
                try:
                    with open(self.path(node, daemon + ".log"), "rb") as f:
                        print("--- node%d %s\n%s" % (node, daemon, f.read()[-4000:].decode(
                            errors="replace")), flush=True)
                except OSError:
                    pass


class ThreeNodes(unittest.TestCase):
    def setUp(self):
        self.n = Nodes(3)
        self.addCleanup(self.n.down)
        self.n.up()

    def hello(self):
        """Deploys hello and starts it through node 1; its instance and its owner's number."""
        self.n.cli(1, "deploy", HELLO)
        answer = self.n.join(1, "/w/hello/")
        self.assertEqual(answer.status, 200, answer.body)
        return answer.headers["Skerry-Instance"], self.n.number(answer.headers["Skerry-Node"])

    def wait(self, condition, seconds, what):
        try:
            return wait_until(condition, seconds, what)
        except AssertionError:
            self.n.dump()
            raise

    def test_any_node_reaches_the_instance(self):
        instance, owner = self.hello()
        # A follower learns of a commit up to a heartbeat late.
        self.wait(lambda: self.n.api(2, "GET", "/v1/instances").json(), 5, "node2 knows of it")
        for node, path in ((2, "/w/hello/"), (3, "/i/%s/" % instance)):
            answer = self.n.join(node, path)
            self.assertEqual(answer.status, 200, answer.body)
            self.assertEqual(answer.headers["Skerry-Instance"], instance)
            self.assertEqual(answer.headers["Skerry-Node"], "node%d" % owner)
        status = json.loads(self.n.cli(2, "status", "--json").stdout)
        self.assertTrue(status["healthy"], status)
        self.assertEqual([n["state"] for n in status["nodes"]], ["alive"] * 3)
        self.assertEqual([n["role"] for n in status["nodes"]], ["voter"] * 3)
        self.assertEqual(sum(n["leader"] for n in status["nodes"]), 1)
        self.assertEqual(status["can_lose"], 1)
        self.assertIn(b"HEALTHY  3 of 3 voters (can lose 1)", self.n.cli(3, "status").stdout)

    def test_the_api_of_any_node_reaches_the_instance(self):
        instance, owner = self.hello()
        other = self.n.others(owner)[0]
        listed = self.n.api(other, "GET", "/v1/instances").json()
        self.assertEqual([(i["id"], i["joiners"]) for i in listed], [(instance, None)])
        self.assertEqual(self.n.api(other, "GET", "/v1/instances/" + instance).json()["joiners"], 0)
        done = self.n.cli(other, "exec", "-i", instance, "--", "sh", "-c", "cat; exit 7",
                          stdin=b"through and back\n", check=False)
        self.assertEqual((done.returncode, done.stdout), (7, b"through and back\n"))
        source = os.path.join(self.n.directory, "file")
        data = os.urandom(3 * 1024 * 1024)
        with open(source, "wb") as f:
            f.write(data)
        self.n.cli(other, "cp", source, instance + ":/tmp/file")
        self.n.cli(other, "cp", instance + ":/tmp/file", source + ".back")
        with open(source + ".back", "rb") as f:
            self.assertEqual(f.read(), data)
        self.assertIn(b"asked", self.n.cli(other, "explain", instance).stdout)
        self.n.cli(other, "logs", instance)
        self.n.cli(other, "extend", instance, "5m")
        self.n.cli(other, "stop", instance)
        self.assertEqual(self.n.join(owner, "/i/%s/" % instance).status, 410)

    def test_one_connection_carries_requests_about_all_nodes(self):
        """Requests that stay and requests that travel, on one connection through each node."""
        instance, _ = self.hello()
        for node in (1, 2, 3):
            self.wait(lambda: self.n.api(node, "GET", "/v1/instances").json(), 5, "it is known")
            c = UnixConnection(self.n.path(node, "run", "api.sock"), 20)
            c.connect()
            socket_used = c.sock
            for turn in range(100):
                if turn % 4 == 3:
                    # The body is chunked: its length is not known before.
                    c.request("POST", "/v1/instances/%s/exec?command=cat" % instance,
                              iter([b"a body ", b"%d" % turn]), encode_chunked=True)
                    want = b"a body %d" % turn
                elif turn % 4 == 1:
                    c.request("GET", "/v1/workloads")
                    want = b"hello"
                else:
                    c.request("GET", "/v1/instances/%s" % instance)
                    want = instance.encode()
                answer = c.getresponse()
                body = answer.read()
                self.assertEqual(answer.status, 200, body)
                self.assertIn(want, body)
                self.assertIs(c.sock, socket_used, "request %d closed the connection" % turn)
            c.close()

    def test_a_killed_owner_is_replaced_and_comes_back(self):
        instance, owner = self.hello()
        others = self.n.others(owner)
        killed = time.monotonic()
        self.n.kill(owner)
        first = {}

        def works(node):
            answer = self.n.join(node, "/w/hello/")
            first.setdefault(node, time.monotonic() - killed)
            return answer.status == 200 and answer.headers["Skerry-Instance"] != instance
        for node in others:
            self.wait(lambda node=node: works(node), 20, "hello answers through node%d" % node)
        print("        works again after %.1f s" % (time.monotonic() - killed), flush=True)
        self.wait(lambda: self.n.state(others[0], owner) == "dead", 20, "the node is seen dead")
        text = self.n.cli(others[0], "status").stdout.decode()
        self.assertIn("! node%d  dead since" % owner, text)
        self.assertIn("NOT HEALTHY  2 of 3 voters (can lose 0)", text)
        self.wait(lambda: self.n.join(others[1], "/i/%s/" % instance).status == 410, 40,
                  "the old instance is gone")
        problem = self.n.join(others[1], "/i/%s/" % instance).json()
        self.assertEqual((problem["code"], problem["reason"]), ("instance_gone", "node_lost"))
        print("        node_lost after %.1f s" % (time.monotonic() - killed), flush=True)
        events = self.n.cli(others[0], "events").stdout.decode()
        self.assertIn("node%d is dead" % owner, events)
        self.assertIn("up again", self.n.up().stdout.decode())
        self.wait(lambda: self.n.status(others[0])["healthy"], 30, "healthy again")
        self.assertEqual(self.n.state(others[0], owner), "alive")

    def test_a_killed_leader_loses_no_acknowledged_write(self):
        leader = self.n.leader(1)
        others = self.n.others(leader)
        acknowledged, lock = [], threading.Lock()
        stop = threading.Event()

        def write(node):
            while not stop.is_set():
                body = json.dumps({"role": "invoke", "name": "w"})
                try:
                    answer = self.n.api(node, "POST", "/v1/tokens", body)
                except OSError:
                    continue
                if answer.status == 201:
                    with lock:
                        acknowledged.append((time.monotonic(), answer.json()["id"]))
        threads = [threading.Thread(target=write, args=(n,)) for n in others for _ in range(4)]
        for t in threads:
            t.start()
        time.sleep(1)
        self.n.kill(leader, "serve")
        time.sleep(3)
        stop.set()
        for t in threads:
            t.join()
        times = sorted(t for t, _ in acknowledged)
        gap = max(b - a for a, b in zip(times, times[1:]))
        print("        %d writes, the longest gap %.2f s" % (len(times), gap), flush=True)

        def missing():
            kept = {t["id"] for t in self.n.api(others[0], "GET", "/v1/tokens").json()}
            return [i for _, i in acknowledged if i not in kept]
        self.wait(lambda: not missing(), 5, "all that was acknowledged is there")
        self.assertLess(gap, 3)  # 1 s on a quiet machine
        self.assertGreater(len([t for t in times if t > times[0] + 2]), 0)

    def test_without_a_quorum_joins_go_on_and_starts_are_refused(self):
        instance, owner = self.hello()
        lost = self.n.others(owner)
        for node in lost:
            self.n.kill(node)
        self.wait(lambda: self.n.status(owner)["leader"] is None, 20, "no leader is known")
        answer = self.n.join(owner, "/w/hello/")
        self.assertEqual((answer.status, answer.headers["Skerry-Instance"]), (200, instance))
        codes = []

        def refused():
            begun = time.monotonic()
            answer = self.n.api(owner, "POST", "/v1/tokens", json.dumps({"role": "invoke"}), 30)
            codes.append((answer.status, answer.json()["code"]))
            self.assertLess(time.monotonic() - begun, 15)
            return codes[-1] == (503, "no_quorum")
        self.wait(refused, 10, "a write is refused for want of a quorum")
        # The first may have been on its way to a leader when that died.
        self.assertLessEqual(set(codes), {(503, "no_quorum"), (504, "outcome_unknown")})
        print("        writes without a quorum: %s" % codes, flush=True)
        answer = self.n.api(owner, "GET", "/readyz")
        self.assertEqual(answer.status, 503, answer.body)
        self.assertIn(b"quorum", answer.body)
        text = self.n.cli(owner, "status").stdout.decode()
        self.assertIn("no_quorum: 1 of 3 voters reachable", text)
        self.assertIn("node%d since" % lost[0], text)
        self.n.cli(owner, "up", "--dir", self.n.directory, "--detach", timeout=120)
        self.wait(lambda: self.n.status(owner)["healthy"], 30, "healthy again")
        self.assertEqual(self.n.join(owner, "/w/hello/").status, 200)
        answer = self.n.api(owner, "POST", "/v1/tokens", json.dumps({"role": "invoke"}))
        self.assertEqual(answer.status, 201, answer.body)

    def test_a_drained_node_runs_empty_and_takes_none(self):
        instance, owner = self.hello()
        other = self.n.others(owner)[0]
        said = self.n.cli(other, "node", "drain", "node%d" % owner, "--wait", "--timeout",
                          "40s").stdout.decode()
        self.assertIn("node%d  0 instances left" % owner, said)
        answer = self.n.join(owner, "/w/hello/")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertNotEqual(answer.headers["Skerry-Node"], "node%d" % owner)
        self.assertIn("node%d  drains" % owner, self.n.cli(other, "status").stdout.decode())
        self.n.cli(other, "node", "undrain", "node%d" % owner)
        self.assertEqual(self.n.status(other)["warnings"], [])


    def test_one_survivor_becomes_a_cluster_again(self):
        self.n.cli(1, "deploy", HELLO)
        saved = os.path.join(self.n.directory, "saved")
        self.n.cli(2, "operator", "raft", "snapshot", saved)
        self.assertEqual(os.stat(saved).st_mode & 0o777, 0o600)
        data = self.n.path(1, "data")
        recover = ("operator", "raft", "recover", "--data", data)
        refused = self.n.cli(1, *recover, "--yes", check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn(b"stop it first", refused.stderr)
        for node in (1, 2, 3):
            self.n.kill(node)
        for node in (2, 3):
            shutil.rmtree(self.n.path(node))
        refused = self.n.cli(1, *recover, check=False)
        self.assertEqual(refused.returncode, 2)
        self.assertIn(b"--yes", refused.stderr)
        self.assertIn(b"lost, maybe", self.n.cli(1, *recover, "--yes").stdout)
        self.n.count = 1
        self.n.up()
        self.assertEqual(self.n.join(1, "/w/hello/").status, 200)
        self.n.count = 3
        said = self.n.up().stdout.decode()
        self.assertIn("node3   is up, and joined through node1", said)
        self.assertTrue(self.n.status(3)["healthy"])
        # And out of the file: what was deployed after it is not there.
        self.n.down_only()
        for node in (2, 3):
            shutil.rmtree(self.n.path(node))
        restore = ("operator", "raft", "restore", saved, "--data", data, "--yes")
        refused = self.n.cli(1, *restore, check=False)
        self.assertIn(b"not empty", refused.stderr)
        shutil.rmtree(os.path.join(data, "raft"))
        self.n.cli(1, *restore)
        self.n.count = 1
        self.n.up()
        self.assertEqual(self.n.join(1, "/w/hello/").status, 200)

    def test_leadership_is_handed_over(self):
        leader = self.n.leader(1)
        other = self.n.others(leader)[0]
        refused = self.n.cli(other, "operator", "raft", "transfer", check=False)
        self.assertIn(b"does not lead", refused.stderr)
        self.n.cli(leader, "operator", "raft", "transfer", "node%d" % other)
        self.wait(lambda: self.n.status(1)["leader"] == "node%d" % other, 10, "the other leads")
        said = self.n.cli(1, "operator", "raft", "list-peers").stdout.decode()
        self.assertEqual(said.count("voter"), 3)


class Foreground(unittest.TestCase):
    def test_a_dead_node_is_told_and_the_others_go_on(self):
        n = Nodes(3)
        self.addCleanup(n.down)
        path = os.path.join(n.directory, "said")
        with open(path, "wb") as out:
            process = subprocess.Popen([SKERRY, "up", "--nodes", "3", "--dir", n.directory,
                                        "--address", n.address(1)], stdout=out, stderr=out)

        def said():
            with open(path) as f:
                return f.read()
        try:
            wait_until(lambda: "Ctrl-C" in said(), 60, "it is up")
            n.kill(3, "serve")
            wait_until(lambda: "node3: serve has ended" in said(), 10, "its end is told")
            self.assertIn("--- the end of %s" % n.path(3, "serve.log"), said())
            n.up()
            wait_until(lambda: "node3   serve runs again" in said(), 10, "its return is told")
            self.assertIsNone(process.poll())
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(60), 0, said())
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


class Growing(unittest.TestCase):
    def test_one_node_becomes_three(self):
        n = Nodes(1)
        self.addCleanup(n.down)
        n.up()
        n.cli(1, "deploy", HELLO)
        instance = n.join(1, "/w/hello/").headers["Skerry-Instance"]
        n.count = 3
        said = n.up().stdout.decode()
        self.assertIn("node1   was up already", said)
        self.assertIn("node3   is up, and joined through node1", said)
        answer = n.join(3, "/w/hello/")
        self.assertEqual((answer.status, answer.headers["Skerry-Instance"]), (200, instance))
        # A token is carried in a file that is gone afterwards, and was never an argument.
        self.assertFalse(os.path.exists(n.path(2, "run", "join.token")))
        with open(n.path(2, "serve.log")) as f:
            self.assertNotIn("skn_", f.read())
        with open("/proc/%d/cmdline" % n.pid(2, "serve")) as f:
            self.assertNotIn("skn_", f.read())


if __name__ == "__main__":
    unittest.main()
