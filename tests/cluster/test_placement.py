"""Commands and starts go where they may be: every node takes them, another does what this one may not."""
import json
import os
import signal
import subprocess
import threading
import unittest

from cluster import SKERRY, Nodes, processes_of, server, server_spec, wait_until

ECHO = {"id": "echo", "kind": "command", "access": "public",
        "command": ["sh", "-c", "cat; echo problem >&2; exit 3"],
        "placement": {"zone": "b"}, "timeouts": {"request": "60s"}}


class Placement(unittest.TestCase):
    """node1 in zone a, node2 in zone b, node3 in zone c with a label."""

    @classmethod
    def setUpClass(cls):
        cls.nodes = Nodes(3, ["zone: a\n", "zone: b\n", "zone: c\nlabels: [\"disk=fast\"]\n"])
        cls.nodes.__enter__()
        cls.one, cls.two, cls.three = cls.nodes
        try:
            cls.one.deploy(ECHO)
            cls.one.deploy(server_spec("web", placement={"zone": "c", "labels": ["disk=fast"]}),
                           server("def handle(h): h.say('hi')\n"))
            cls.one.deploy(dict(ECHO, id="sleeper", command=["sleep", "600"]))
            cls.token = json.loads(cls.one.cli("token", "create", "--role", "deploy",
                                               "--json").stdout)["token"]
            for node in cls.nodes:
                wait_until(lambda: b"sleeper" in node.cli("workload", "list").stdout, 10, "deployed")
        except BaseException:
            cls.nodes.__exit__(True, None, None)
            raise

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)

    def drained(self, node):
        """For `with`: nothing starts on that node."""
        test = self

        class Drained:
            def __enter__(self):
                test.three.cli("node", "drain", node.name)
                wait_until(lambda: all(x["draining"] for n in test.nodes
                                       for x in n.status()["nodes"] if x["name"] == node.name),
                           10, "all know that it drains")

            def __exit__(self, *ignored):
                test.three.cli("node", "undrain", node.name)
                wait_until(lambda: not any(x["draining"] for n in test.nodes
                                           for x in n.status()["nodes"]), 10, "none drains")
        return Drained()

    def post(self, node, path, **more):
        headers = dict({"Skerry-Token": self.token}, **more.pop("headers", {}))
        return node.request("POST", path, headers=headers, port=node.api_port, **more)

    # --- commands of a workload ---------------------------------------------------------------------

    def test_a_command_runs_where_its_placement_allows(self):
        data = os.urandom(1 << 20) * 3
        for node in self.nodes:
            for _ in range(5):
                answer = node.request("POST", "/w/echo/", body=data)
                self.assertEqual((answer.status, answer.header("Skerry-Node")), (200, "node2"),
                                 answer)
                self.assertEqual(len(answer.body), len(data))
                self.assertEqual(answer.body, data)
            answer = node.request("POST", "/w/echo/", body=b"small")
            self.assertEqual((answer.body, answer.header("Skerry-Exit-Code"),
                              answer.header("Skerry-Node"), answer.start),
                             (b"small", "3", "node2", "cold"))

    def test_a_command_elsewhere_gives_results_and_events(self):
        answer = self.one.request("POST", "/w/echo/", body=b"in",
                                  headers={"Accept": "application/json"})
        result = answer.json()
        self.assertEqual((result["exit_code"], result["stdout"], result["stderr"]),
                         (3, "in", "problem\n"))
        self.assertGreater(result["memory_peak_bytes"], 0)
        answer = self.three.request("POST", "/w/echo/", body=b"in",
                                    headers={"Accept": "text/event-stream"})
        self.assertIn(b"event: exit", answer.body)
        self.assertIn(b"problem", answer.body)

    def test_what_no_node_may_run_is_refused_with_the_reason(self):
        with self.drained(self.two):
            answer = self.one.request("POST", "/w/echo/", body=b"")
            self.assertEqual((answer.status, answer.error), (503, "node_full"), answer)
            self.assertIn("1 is being drained", answer.json()["detail"])
            self.assertEqual(answer.json()["ran"], "no")

    def test_a_client_that_leaves_takes_its_command_elsewhere_along(self):
        client = subprocess.Popen(["curl", "-s", "-X", "POST", "http://127.0.0.1:%d/w/sleeper/"
                                   % self.one.http_port], stdout=subprocess.DEVNULL)

        def live():
            return [i for i in self.two.ps() if i["workload"] == "sleeper"]
        instance = wait_until(live, 10, "it runs")[0]
        self.assertEqual(instance["node"], "node2")
        wait_until(lambda: processes_of(instance["id"]), 10, "its process")
        client.kill()
        client.wait()
        wait_until(lambda: not live() and not processes_of(instance["id"]), 10, "it is gone")

    # --- commands of nobody's ---------------------------------------------------------------------------

    def run_(self, *arguments, **more):
        return self.one.cli("run", *arguments, check=False, **more)

    def test_run_goes_elsewhere_from_a_node_that_drains(self):
        data = os.urandom(1 << 20) * 8
        with self.drained(self.one):
            done = self.run_("--", "sh", "-c", "echo $SKERRY_NODE")
            self.assertIn(done.stdout.strip(), (b"node2", b"node3"), done.stderr)
            self.assertEqual(self.run_("--", "cat", stdin=data).stdout, data)
            done = self.run_("--", "sh", "-c", "echo out; echo err >&2; exit 7")
            self.assertEqual((done.returncode, done.stdout, done.stderr), (7, b"out\n", b"err\n"))
            done = self.run_("--", "sh", "-c", "kill -SEGV $$")
            self.assertEqual(done.returncode, 128 + signal.SIGSEGV)
            self.assertEqual(self.run_("--timeout", "1s", "--", "sleep", "60").returncode, 124)
            self.assertEqual(self.run_("--", "no-such-command").returncode, 127)
            answer = self.post(self.one, "/v1/run?command=sh&command=-c&command=cat%3B+exit+3",
                               body=b"input", headers={"Accept": "application/json"})
            self.assertEqual((answer.json()["exit_code"], answer.json()["stdout"]), (3, "input"))

    def test_a_command_that_reads_nothing_takes_signals_elsewhere(self):
        """Its input fills the pipe and waits behind it, and the signal still gets through."""
        with self.drained(self.one):
            process = subprocess.Popen(
                [SKERRY, "run", "-i", "--", "sh", "-c",
                 "trap 'echo caught; exit 5' TERM; echo begun; while :; do sleep 0.05; done"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.one.environment())
            self.assertEqual(process.stdout.readline(), b"begun\n")

            process.stdin.write(b"x" * (190 << 10))
            process.stdin.flush()
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.stdout.readline(), b"caught\n")
            self.assertEqual(process.wait(20), 5)

    def test_many_commands_run_elsewhere_at_once(self):
        results = []

        def one(k):
            done = self.run_("--", "sh", "-c", "cat; echo %d" % k, stdin=b"%d " % k)
            results.append((done.returncode, done.stdout) == (0, b"%d %d\n" % (k, k)))
        with self.drained(self.one):
            threads = [threading.Thread(target=one, args=(k,)) for k in range(20)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        self.assertEqual(results, [True] * 20)

    # --- wishes -------------------------------------------------------------------------------------------

    def test_a_preferred_instance_is_tried_first_wherever_it_is(self):
        self.one.deploy(server_spec("liked"), server("def handle(h): h.say(h.command)\n"))
        for node in self.nodes:
            wait_until(lambda: b"liked" in node.cli("workload", "list").stdout, 10, "deployed")
        started = [self.post(node, "/v1/instances", body=json.dumps({"workload": "liked"}))
                   for node in self.nodes]
        self.assertEqual([(a.status, a.json().get("node")) for a in started],
                         [(201, node.name) for node in self.nodes])
        ids = [a.json()["id"] for a in started]

        def got(node, instance, method="GET"):
            answer = node.request(method, "/w/liked/", headers={"Skerry-Prefer": instance})
            self.assertEqual((answer.status, answer.body), (200, method.encode()), answer)
            return answer.instance
        for node in self.nodes:
            for instance in ids:
                wait_until(lambda: got(node, instance) == instance, 5, "it is known")
                self.assertEqual([got(node, instance, m) for m in ("GET", "POST", "GET", "POST")],
                                 [instance] * 4)
        self.one.cli("stop", ids[0])
        for node in self.nodes:
            self.assertIn(got(node, ids[0], "POST"), ids[1:])
        self.two.kill_serve()
        self.assertIn(got(self.one, ids[1]), ids)
        self.two.start_serve()
        self.nodes.wait_settled()
        self.one.cli("workload", "rm", "liked")

    # --- many first requests at once -------------------------------------------------------------------

    def test_first_requests_at_all_nodes_never_run_more_than_scale_max(self):
        self.one.deploy(server_spec("slow", join={"max_joiners": 50}, scale={"max": 2}),
                        server("import time; time.sleep(1)\ndef handle(h): h.say('hi')\n"))
        for node in self.nodes:
            wait_until(lambda: b"slow" in node.cli("workload", "list").stdout, 10, "deployed")
        answers, most, over = [], [0], threading.Event()

        def watch():
            while not over.is_set():
                most.append(sum(i["workload"] == "slow" for i in self.two.ps()))
        watcher = threading.Thread(target=watch)
        watcher.start()
        threads = [threading.Thread(target=lambda node=self.nodes[k % 3]: answers.append(
            node.get("/w/slow/"))) for k in range(30)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        over.set()
        watcher.join()
        self.assertEqual({a.status for a in answers}, {200}, answers)
        self.assertEqual(len(answers), 30)
        self.assertLessEqual(len({a.instance for a in answers}), 2)
        self.assertLessEqual(max(most), 2)
        self.one.cli("workload", "rm", "slow")

    # --- instances started by hand ----------------------------------------------------------------------

    def test_an_instance_is_started_where_its_placement_allows(self):
        answer = self.post(self.one, "/v1/instances", body=json.dumps({"workload": "web"}))
        self.assertEqual((answer.status, answer.json().get("node")), (201, "node3"), answer)
        self.assertEqual(answer.json()["state"], "ready")
        instance = answer.json()["id"]
        self.assertEqual(self.two.get("/i/%s/" % instance).body, b"hi")
        with self.drained(self.three):
            answer = self.post(self.one, "/v1/instances", body=json.dumps({"workload": "web"}))
            self.assertEqual((answer.status, answer.error), (503, "node_full"), answer)


class Death(unittest.TestCase):
    def test_a_command_whose_node_dies_is_told_as_lost(self):
        with Nodes(2, ["zone: a\n", "zone: b\n"]) as (one, two):
            one.deploy(dict(ECHO, id="sleeper", command=["sleep", "600"]))
            answers = []

            def ask():
                answers.append(one.request("POST", "/w/sleeper/", body=b""))
            asker = threading.Thread(target=ask)
            asker.start()
            wait_until(lambda: [i for i in one.ps() if i["state"] == "ready"], 10, "it runs")
            two.kill_serve()
            asker.join(30)
            self.assertEqual([(a.status, a.error, a.json()["ran"]) for a in answers],
                             [(502, "instance_exited", "yes")])
            two.start_serve()  # which ends what it finds, so that nothing is left of it
            wait_until(lambda: not one.ps(), 20, "the command is gone")


if __name__ == "__main__":
    unittest.main()
