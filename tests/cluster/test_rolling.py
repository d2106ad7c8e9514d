"""Nodes restarted one after the other under load, as for an upgrade: nobody notices.

Clients come at fixed times, whatever became of those before, and through all nodes, as behind a load
balancer: each node's /readyz is looked at ten times a second, and a node that does not say yes gets
nothing new. What was sent to it before that must be answered. Some of the joins are of one instance, or of
one key: they can be served by one node alone, and come through all others while that restarts.
"""
import collections
import http.client
import itertools
import signal
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

from cluster import server, server_spec, wait_until
from network import Cluster

LOOK_SECONDS = 0.1
PER_SECOND = 30
HELD_EVERY = 6  # of the joins, one is held
HELD_SECONDS = (1.0, 1.4, 1.8)

SAY = """
def handle(h):
    h.body()
    time.sleep(float(h.path.partition("=")[2] or 0))
    h.say(os.environ["SKERRY_INSTANCE"])
"""
WORK = server_spec("work", life={"idle": "none"}, join={"max_joiners": 200})
ROOMS = server_spec("rooms", life={"idle": "none"},
                    join={"max_joiners": 200, "key": "header:X-Room"})


class Balancer:
    """Looks at /readyz of each node, and sends joins to those that are ready, in turn."""

    def __init__(self, nodes, rooms=None, method="POST", work=True):
        """`rooms`: {key: instance}; two of three joins are of those then, one by key and one by id."""
        self.nodes = list(nodes)
        self.rooms = list((rooms or {}).items())
        self.method = method
        self.work = work
        self.slowest = 0.0
        self.ready = {node.name: True for node in nodes}
        self.turned = collections.Counter()  # said 503, as often as it was heard
        self.answered = 0
        self.by_node = collections.Counter()
        self.failed = []
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(PER_SECOND * 4)
        self.threads = [threading.Thread(target=self.look, args=(node,)) for node in nodes]
        self.threads.append(threading.Thread(target=self.send))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.pool.shutdown()
        print("        %d joins answered %s, %d failed; said not ready: %s; waited %.2f s at most"
              % (self.answered, dict(self.by_node), len(self.failed), dict(self.turned),
                 self.slowest), flush=True)

    def look(self, node):
        while not self.stop.wait(LOOK_SECONDS):
            try:
                status = node.get("/readyz", timeout=5).status
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 503:
                self.turned[node.name] += 1
            self.ready[node.name] = status == 200

    def send(self):
        begun = time.monotonic()
        turn = itertools.cycle(self.nodes)
        for number in itertools.count():
            if self.stop.wait(max(0, begun + number / PER_SECOND - time.monotonic())):
                return
            node = next((n for n in itertools.islice(turn, len(self.nodes))
                         if self.ready[n.name]), None)
            if node is None:
                self.failed.append("%d: no node is ready" % number)
            else:
                self.pool.submit(self.join, node, number)

    def which(self, number):
        """(path, header fields, the instance that must answer)."""
        kind = number % 3 if self.work else 1 + number % 2
        if kind == 0 or not self.rooms:
            return "/w/work/", {}, None
        room, instance = self.rooms[number // 3 % len(self.rooms)]
        if kind == 1:
            return "/w/rooms/", {"X-Room": room}, instance
        return "/i/%s/" % instance, {}, instance

    def join(self, node, number):
        # In groups of all kinds: each kind is held as often.
        held = HELD_SECONDS[number % len(HELD_SECONDS)] if number // 3 % HELD_EVERY == 0 else 0
        path, fields, instance = self.which(number)
        begun = time.monotonic()
        try:
            # A POST is not idempotent: it is sent once, by everybody.
            answer = node.request(self.method, "%s?hold=%s" % (path, held),
                                  body=b"x" * 100 if self.method == "POST" else None,
                                  headers=fields)
            if answer.status == 200 and answer.body.decode() == answer.instance and \
                    instance in (None, answer.instance):
                self.answered += 1
                self.by_node[node.name] += 1
                self.slowest = max(self.slowest, time.monotonic() - begun - held)
                return
            what = repr(answer)
        except (OSError, http.client.HTTPException) as error:
            what = repr(error)
        self.failed.append("%d %s by %s, held %s s: after %.2f s %s"
                           % (number, path, node.name, held, time.monotonic() - begun, what))


class Rolling(unittest.TestCase):
    def ready_instances(self, node):
        return {i["id"]: i["node"] for i in node.ps() if i["state"] == "ready"}

    def open_rooms(self, nodes):
        """{key: instance}, one or more on each node."""
        nodes[0].deploy(ROOMS, server(SAY))
        rooms = {}
        for node in nodes.nodes:
            for k in range(2):
                room = "%s-%d" % (node.name, k)
                answer = node.request("POST", "/w/rooms/", body=b"", headers={"X-Room": room})
                self.assertEqual(answer.status, 200, answer)
                rooms[room] = answer.instance
        held_by = self.ready_instances(nodes[0])
        self.assertEqual({held_by[i] for i in rooms.values()}, {n.name for n in nodes.nodes})
        return rooms

    def wait_joins(self, load, count):
        answered = load.answered
        wait_until(lambda: load.answered >= answered + count, 10, "%d joins" % count)

    def stop_serve(self, node, others):
        """Gracefully; who leads hands that over before it goes."""
        before = others[0].status()
        leads = before["leader"] == node.name
        node.serve_process.send_signal(signal.SIGTERM)
        if leads:
            def another():
                now = others[0].status()
                return now if now["leader"] not in (None, node.name) else None
            after = wait_until(another, 5, "another leads")
            # It still serves what is held: nobody had to find out that it is gone.
            self.assertIsNone(node.serve_process.poll())
            self.assertEqual(after["term"], before["term"] + 1)
        self.assertEqual(node.serve_process.wait(40), 0)
        return leads

    def check_well(self, nodes):
        nodes.wait_settled()
        for node in nodes.nodes:
            wait_until(lambda n=node: n.status()["healthy"], 10, "%s finds all well" % node.name)

    def test_serve_of_each_node(self):
        with Cluster(3) as nodes:
            nodes[0].deploy(WORK, server(SAY))
            with Balancer(nodes.nodes, self.open_rooms(nodes)) as load:
                handed_over = 0
                wait_until(lambda: load.answered > 30, 10, "joins")
                for node in nodes.nodes:
                    others = nodes.others(node)
                    before = self.ready_instances(others[0])
                    turned = load.turned[node.name]
                    handed_over += self.stop_serve(node, others)
                    self.assertGreater(load.turned[node.name], turned)
                    node.start_serve()
                    nodes.wait_settled()
                    after = self.ready_instances(node)
                    self.assertEqual({i: after.get(i) for i in before}, before)
                    for i in before:
                        for by in nodes.nodes:
                            answer = by.get("/i/%s/" % i)
                            self.assertEqual((answer.status, answer.body.decode()), (200, i),
                                             answer)
                    self.wait_joins(load, 30)
            self.assertEqual(load.failed, [])
            self.assertGreater(handed_over, 0)
            self.check_well(nodes)

    def test_serve_of_each_node_by_kill(self):
        """What only one node can serve waits for it in the others; GET may go twice."""
        with Cluster(3) as nodes:
            rooms = self.open_rooms(nodes)
            for node in nodes.nodes:
                others = nodes.others(node)
                with Balancer(others, rooms, "GET", work=False) as load:
                    wait_until(lambda: load.answered > 30, 10, "joins")
                    before = self.ready_instances(others[0])
                    node.kill_serve()
                    node.start_serve()
                    nodes.wait_settled()
                    self.assertEqual(self.ready_instances(node), before)
                    self.wait_joins(load, 30)
                self.assertEqual(load.failed, [])
            self.check_well(nodes)

    def test_runner_and_serve_of_each_node(self):
        with Cluster(3) as nodes:
            nodes[0].deploy(WORK, server(SAY))
            with Balancer(nodes.nodes) as load:
                wait_until(lambda: load.answered > 30, 10, "joins")
                for node in nodes.nodes:
                    others = nodes.others(node)
                    others[0].cli("node", "drain", node.name, "--wait", "--timeout", "60s")
                    self.assertNotIn(node.name, self.ready_instances(others[0]).values())
                    self.stop_serve(node, others)
                    node.runner_process.send_signal(signal.SIGTERM)
                    self.assertEqual(node.runner_process.wait(20), 0)
                    node.start_runner()
                    node.start_serve()
                    others[0].cli("node", "undrain", node.name)
                    nodes.wait_settled()
                    self.wait_joins(load, 30)
            self.assertEqual(load.failed, [])
            self.check_well(nodes)


if __name__ == "__main__":
    unittest.main()
