"""Who may hold what, in a cluster whose nodes stop, die and come back."""
import contextlib
import http.client
import json
import os
import random
import signal
import threading
import time
import unittest

from cluster import Nodes, processes_of, server, server_spec, wait_until

LEASE = 6.0
SAY = """
def handle(h):
    h.say(os.environ["SKERRY_INSTANCE"])
"""


def spec(name, **more):
    return dict(server_spec(name), life={"idle": "none"}, **more)


def deploy(nodes, *specs):
    for one in specs:
        nodes[0].deploy(one, server(SAY))
    for node in nodes.nodes:
        names = {one["id"] for one in specs}
        wait_until(lambda n=node: names <= {w["id"] for w in json.loads(
            n.cli("workload", "list", "--json").stdout)}, 10, "deployed everywhere")


# A name that no other test has on this machine, whose processes are counted.
ROOM_ID = "room-%d" % os.getpid()
ROOM = spec(ROOM_ID, join={"key": "header:X-Room", "max_joiners": 100})
HELLO = spec("hello")


def serves(node, key):
    """False also while it starts and nothing listens yet."""
    try:
        return room(node, key, timeout=30).status == 200
    except (OSError, http.client.HTTPException):
        return False


def room(node, key, timeout=60):
    return node.get("/w/%s/" % ROOM_ID, headers={"X-Room": key}, timeout=timeout)


def timed(node, path, headers=None, timeout=30):
    """The answer, and how long it took."""
    begin = time.monotonic()
    answer = node.get(path, headers=headers, timeout=timeout)
    return answer, time.monotonic() - begin


def gone(instance):
    return not processes_of(instance)


def stop(node):
    os.kill(node.serve_process.pid, signal.SIGSTOP)


def go_on(node):
    os.kill(node.serve_process.pid, signal.SIGCONT)


def follower(nodes):
    leader = wait_until(nodes.leader, 10, "a leader")
    return next(n for n in nodes.nodes if n is not leader)


def others(nodes, *but):
    return [n for n in nodes.nodes if n not in but]


def lease_of(node, name):
    listed = next(n for n in node.status()["nodes"] if n["name"] == name)
    return listed.get("lease_seconds") or 0


class Holders:
    """Watches the processes of the machine: which instances run code with a key, at any time."""

    def __init__(self, key):
        self.marks = {("SKERRY_WORKLOAD=" + ROOM_ID).encode(), ("SKERRY_KEY=" + key).encode()}
        self.most, self.seen = 0, set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def now(self):
        found = set()
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                with contextlib.suppress(OSError):
                    with open("/proc/%s/environ" % pid, "rb") as f:
                        words = f.read().split(b"\0")
                    if self.marks <= set(words):
                        found |= {w for w in words if w.startswith(b"SKERRY_INSTANCE=")}
        return found

    def loop(self):
        while not self.ended.wait(0.1):
            found = self.now()
            self.seen |= found
            self.most = max(self.most, len(found))

    def end(self):
        self.ended.set()
        self.thread.join()


class Asking:
    """Asks a node for a room again and again."""

    def __init__(self, node, key):
        self.node, self.key, self.good = node, key, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def loop(self):
        while not self.ended.wait(0.2):
            with contextlib.suppress(Exception):  # what a stopped or killed node does to clients
                self.good += room(self.node, self.key, timeout=3).status == 200

    def end(self):
        self.ended.set()
        self.thread.join()


class Leases(unittest.TestCase):
    def test_a_key_has_one_instance_whichever_node_is_asked(self):
        with Nodes(3) as nodes:
            deploy(nodes, ROOM)
            first = room(nodes[0], "a")
            self.assertEqual(first.status, 200, first)
            for node in nodes.nodes:
                answer = room(node, "a")
                self.assertEqual((answer.status, answer.instance), (200, first.instance), answer)

    def test_a_stopped_node_is_fenced_and_another_holds_its_key(self):
        with Nodes(3) as nodes:
            deploy(nodes, ROOM)
            old = follower(nodes)
            held = room(old, "a")
            self.assertEqual(held.status, 200, held)
            self.assertTrue(processes_of(held.instance))
            other = others(nodes, old)[0]
            stop(old)
            stopped = time.monotonic()
            while not gone(held.instance):
                # Never two at a time.
                self.assertLess(time.monotonic() - stopped, LEASE + 1)
                time.sleep(0.02)

            def new_holder():
                answer = room(other, "a", timeout=30)
                return answer if answer.status == 200 else None
            again = wait_until(new_holder, 10, "another holder")
            self.assertNotEqual(again.instance, held.instance)
            go_on(old)
            wait_until(lambda: lease_of(old, old.name) > 0, 20, "a lease again")

            def joins_the_new_one():
                answer = room(old, "a", timeout=30)
                return answer.status == 200 and answer.instance == again.instance
            wait_until(joins_the_new_one, 10, "the old node joins the new holder")
            for node in (old, other):
                lost = node.get("/i/%s/" % held.instance)
                self.assertEqual((lost.status, lost.error), (410, "instance_gone"), lost)
            self.assertEqual(room(old, "b").status, 200)

    def test_the_others_work_on_when_an_owner_dies(self):
        with Nodes(3) as nodes:
            deploy(nodes, HELLO)
            owner = follower(nodes)
            first = owner.get("/w/hello/")
            self.assertEqual(first.status, 200, first)
            owner.kill_serve()
            owner.kill_runner()
            killed = time.monotonic()
            for node in others(nodes, owner):
                wait_until(lambda n=node: n.get("/w/hello/", timeout=5).status == 200, 2,
                           "it works by %s" % node.name)
            print("worked on after %.2f s" % (time.monotonic() - killed))
            other = others(nodes, owner)[0]

            def lost():
                answer = other.get("/i/%s/" % first.instance)
                return answer if answer.status == 410 else None
            answer = wait_until(lost, 10, "410 for the lost one")
            self.assertIn("node_lost", answer.json()["detail"])
            self.assertGreater(time.monotonic() - killed, LEASE - 3)
            # Alive again without anybody's help; what it held is ended.
            owner.start()
            wait_until(lambda: owner.get("/w/hello/").status == 200, 20, "it is back")
            wait_until(lambda: gone(first.instance), 10, "what was lost is ended")

    def test_a_restart_within_the_lease_keeps_instances(self):
        with Nodes(3) as nodes:
            deploy(nodes, ROOM, HELLO)
            owner = follower(nodes)
            keyed, shared = room(owner, "a"), owner.get("/w/hello/")
            self.assertEqual((keyed.status, shared.status), (200, 200))
            owner.kill_serve()
            owner.start_serve()
            answer = room(owner, "a")
            self.assertEqual((answer.status, answer.instance), (200, keyed.instance), answer)
            forced = owner.get("/i/%s/" % shared.instance)
            self.assertEqual((forced.status, forced.body.decode()), (200, shared.instance), forced)

    def test_a_restart_after_the_lease_finds_everything_lost(self):
        with Nodes(3) as nodes:
            deploy(nodes, ROOM, HELLO)
            owner = follower(nodes)
            keyed, shared = room(owner, "a"), owner.get("/w/hello/")
            self.assertEqual((keyed.status, shared.status), (200, 200))
            owner.kill_serve()
            other = others(nodes, owner)[0]
            wait_until(lambda: other.get("/i/%s/" % shared.instance).status == 410, 12, "lost")
            self.assertTrue(gone(keyed.instance))
            self.assertFalse(gone(shared.instance))  # nobody has told its runner yet
            owner.start_serve()
            wait_until(lambda: gone(shared.instance), 10, "it is ended")

    def test_without_a_quorum_what_runs_is_joined_and_nothing_starts(self):
        with Nodes(3) as nodes:
            deploy(nodes, ROOM, HELLO)
            node = follower(nodes)
            running, keyed = node.get("/w/hello/"), room(node, "a")
            self.assertEqual((running.status, keyed.status), (200, 200))
            for other in others(nodes, node):
                stop(other)
            cut = time.monotonic()
            answer, seconds = timed(node, "/w/%s/" % ROOM_ID, headers={"X-Room": "new"})
            self.assertEqual((answer.status, answer.error), (503, "no_quorum"), answer)
            self.assertLess(seconds, 10)
            self.assertRegex(answer.json()["detail"], r"\d of 3 voters reachable")
            warm, seconds = timed(node, "/w/hello/")
            self.assertEqual((warm.status, warm.instance), (200, running.instance), warm)
            self.assertLess(seconds, 1)
            # What never was is not called unknown: nobody can say so.
            for path in ("/i/0%s1/" % ("0" * 16), "/w/nothing/"):
                unknown, seconds = timed(node, path)
                self.assertEqual((unknown.status, unknown.error), (503, "no_quorum"), unknown)
                self.assertLess(seconds, 5)
            # The lease ends: what has a key is fenced, what is shared goes on.
            wait_until(lambda: gone(keyed.instance), LEASE + 1, "fenced")
            self.assertLess(time.monotonic() - cut, LEASE + 2)
            answer, seconds = timed(node, "/w/%s/" % ROOM_ID, headers={"X-Room": "new"})
            self.assertEqual((answer.status, answer.error), (503, "no_quorum"), answer)
            self.assertLess(seconds, 2)
            warm = node.get("/w/hello/")
            self.assertEqual((warm.status, warm.instance), (200, running.instance), warm)
            for other in others(nodes, node):
                go_on(other)
            wait_until(lambda: room(node, "new", timeout=30).status == 200, 20, "it starts again")

    def test_a_drained_node_lets_its_instances_end_and_starts_nothing(self):
        with Nodes(3) as nodes:
            deploy(nodes, HELLO)
            node = follower(nodes)
            first = node.get("/w/hello/")
            self.assertEqual(first.status, 200, first)
            others(nodes, node)[0].cli("node", "drain", node.name)
            wait_until(lambda: gone(first.instance), 10, "drained")
            # Its processes are gone a moment before its end is in the registry.
            wait_until(lambda: ": drained" in
                       node.get("/i/%s/" % first.instance).json().get("detail", ""), 10,
                       "its end is known")
            self.assertEqual(node.get("/i/%s/" % first.instance).status, 410)
            moved = node.get("/w/hello/")
            self.assertEqual(moved.status, 200, moved)
            self.assertNotEqual(moved.header("Skerry-Node"), node.name)
            where = ("run", "--", "sh", "-c", "echo $SKERRY_NODE")
            self.assertNotEqual(node.cli(*where).stdout.decode().strip(), node.name)
            node.cli("node", "undrain", node.name)
            wait_until(lambda: node.cli(*where).stdout.decode().strip() == node.name, 10,
                       "commands run here again")

    def test_scale_max_is_the_clusters(self):
        with Nodes(3) as nodes:
            deploy(nodes, spec("one", scale={"max": 1}))
            answers = [node.get("/w/one/") for node in nodes.nodes * 2]
            self.assertEqual({a.status for a in answers}, {200})
            self.assertEqual(len({a.instance for a in answers}), 1)

    def test_spread_uses_every_node(self):
        with Nodes(3) as nodes:
            deploy(nodes, spec("wide", placement={"spread": "node"}, scale={"idle_min": 0},
                               join={"max_joiners": 1, "key": "header:X-Room"}))
            answers = [nodes[0].get("/w/wide/", headers={"X-Room": str(k)}) for k in range(3)]
            self.assertEqual({a.status for a in answers}, {200}, answers)
            self.assertEqual({a.header("Skerry-Node") for a in answers},
                             {"node1", "node2", "node3"})

    def test_a_key_is_never_held_twice_whoever_stops_or_dies(self):
        seed = int(os.environ.get("SEED", str(random.randrange(1 << 30))))
        dice = random.Random(seed)
        key = "k%d" % seed
        with Nodes(3) as nodes:
            deploy(nodes, ROOM)
            self.assertEqual(room(nodes[0], key).status, 200)
            holders = Holders(key)
            asking = [Asking(node, key) for node in nodes.nodes]
            try:
                for _ in range(3):
                    node = dice.choice([wait_until(nodes.leader, 20, "a leader"),
                                        dice.choice(nodes.nodes)])
                    if dice.random() < 0.5:
                        stop(node)
                        time.sleep(dice.uniform(1, LEASE + 4))
                        go_on(node)
                    else:
                        node.kill_serve()
                        time.sleep(dice.uniform(0, LEASE + 4))
                        node.start_serve()
            finally:
                for one in asking:
                    one.end()
                holders.end()
            self.assertEqual(holders.most, 1, "SEED=%d: %s" % (seed, holders.seen))
            self.assertGreater(sum(one.good for one in asking), 2)
            for node in nodes.nodes:
                wait_until(lambda n=node: serves(n, key), 30,
                           "SEED=%d: served by %s" % (seed, node.name))
            print("%d holders, one after another" % len(holders.seen))


if __name__ == "__main__":
    unittest.main()
