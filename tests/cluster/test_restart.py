"""kill -9 of serve and of the runner: nothing that was promised is lost."""
import threading
import time
import unittest

from cluster import Node, processes_of, server, server_spec, wait_until

PLAIN = """
def handle(h):
    h.say("%d" % os.getpid())
"""


class Load:
    """Requests in a loop from a few threads until stopped; counts what came."""

    def __init__(self, node, path):
        self.node, self.path = node, path
        self.stop = threading.Event()
        self.good = 0
        self.broken = []
        self.threads = [threading.Thread(target=self.loop) for _ in range(4)]
        for t in self.threads:
            t.start()

    def loop(self):
        while not self.stop.is_set():
            try:
                answer = self.node.get(self.path, timeout=5)
                if answer.status == 200:
                    self.good += 1
                    continue
                self.broken.append((answer.status, answer.body))
            except Exception as e:  # a killed server breaks connections in every way there is
                self.broken.append(repr(e))
            time.sleep(0.01)

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join()


class Restart(unittest.TestCase):
    def test_serve_killed_under_load(self):
        with Node() as node:
            node.deploy(server_spec("hello"), server(PLAIN))
            node.deploy(server_spec("other"), server(PLAIN))
            before = {name: node.get("/w/%s/" % name) for name in ("hello", "other")}
            load = Load(node, "/w/hello/")
            try:
                wait_until(lambda: load.good > 20, 10, "load runs")
                for _ in range(3):
                    node.kill_serve()
                    node.start_serve()
                    good = load.good
                    wait_until(lambda: load.good > good + 20, 10, "load runs again")
            finally:
                load.end()
            for name, first in before.items():
                again = node.get("/w/%s/" % name)
                self.assertEqual((again.status, again.instance, again.body),
                                 (200, first.instance, first.body))
                self.assertEqual(node.get("/i/%s/" % first.instance).status, 200)
            self.assertEqual(len(node.ps()), 2)
            self.assertEqual([x["joiners"] for x in node.ps()], [0, 0])

    def test_graceful_restart_lets_joins_finish(self):
        slow = "def handle(h):\n    time.sleep(1.0)\n    h.say('%d' % os.getpid())\n"
        with Node() as node:
            node.deploy(server_spec("slow"), server(slow))
            first = node.get("/w/slow/")
            answers = []
            t = threading.Thread(target=lambda: answers.append(node.get("/w/slow/")))
            t.start()
            wait_until(lambda: any(x["joiners"] == 1 for x in node.ps()), 5, "a joiner is inside")
            self.assertEqual(node.stop_serve(), 0)
            t.join()
            self.assertEqual((answers[0].status, answers[0].instance), (200, first.instance))
            node.start_serve()
            again = node.get("/w/slow/")
            self.assertEqual((again.instance, again.body), (first.instance, first.body))

    def test_runner_killed_under_load(self):
        with Node() as node:
            node.deploy(server_spec("hello"), server(PLAIN))
            node.deploy(server_spec("other"), server(PLAIN))
            before = {name: node.get("/w/%s/" % name) for name in ("hello", "other")}
            first = before["hello"]
            load = Load(node, "/w/hello/")
            try:
                wait_until(lambda: load.good > 20, 10, "load runs")
                for _ in range(2):
                    node.kill_runner()
                    good = load.good
                    wait_until(lambda: load.good > good + 20, 10, "joins go on without a runner")
                    node.start_runner()
                    wait_until(lambda: node.status()["healthy"], 15, "the runner is back")
            finally:
                load.end()
            self.assertEqual(load.broken, [])
            for name, known in before.items():
                again = node.get("/i/%s/" % known.instance)
                self.assertEqual((again.status, again.body), (200, known.body))
            self.assertEqual(len(node.ps()), 2)
            self.assertEqual(node.cli("exec", first.instance, "--", "echo", "in").stdout, b"in\n")
            node.cli("stop", first.instance)
            self.assertEqual(node.get("/i/%s/" % first.instance).status, 410)

    def test_both_killed(self):
        with Node() as node:
            node.deploy(server_spec("hello"), server(PLAIN))
            first = node.get("/w/hello/")
            node.kill_serve()
            node.kill_runner()
            node.start_runner()
            node.start_serve()
            again = node.get("/i/%s/" % first.instance)
            self.assertEqual((again.status, again.body), (200, first.body))

    def test_end_during_absence_is_known_after(self):
        with Node() as node:
            node.deploy(server_spec("hello"), server(
                "def handle(h):\n    h.say('x')\n"
                "    threading.Timer(0.5, lambda: os._exit(9)).start()\n"))
            i = node.get("/w/hello/").instance
            node.kill_serve()
            wait_until(lambda: not processes_of(i), 10, "the code ends while nobody hears it")
            node.start_serve()
            answer = wait_until(lambda: (lambda a: a if a.status == 410 else None)(
                node.get("/i/%s/" % i)), 5, "the end is known")
            self.assertIn("exited", answer.json()["detail"])

    def test_stays_away_past_the_grace_and_ends_itself(self):
        with Node(runner_config="grace: 2s\n") as node:
            node.deploy(server_spec("hello"), server(PLAIN))
            first = node.get("/w/hello/")
            node.kill_runner()
            # Nobody but the agent can end it now, and until then it can be joined.
            self.assertEqual(node.get("/i/%s/" % first.instance).status, 200)
            wait_until(lambda: not processes_of(first.instance), 15,
                       "the instance ends without its runner")
            node.start_runner()
            wait_until(lambda: node.status()["healthy"], 15, "the runner is back")
            wait_until(lambda: node.get("/i/%s/" % first.instance).status == 410, 10,
                       "its end is known")


if __name__ == "__main__":
    unittest.main()
