"""Nodes that cannot reach each other, or only late: who may go on does, who may not stops, and once all
is well they agree again."""
import concurrent.futures
import contextlib
import http.client
import os
import threading
import time
import unittest

from cluster import server, server_spec, wait_until
from load import Writes
from network import Cluster

SAY = """
def handle(h):
    h.say(os.environ["SKERRY_INSTANCE"])
"""
# A name that no other test has on this machine, whose processes Watch looks at.
ROOM_ID = "room-%d" % os.getpid()
ROOM = server_spec(ROOM_ID, life={"idle": "none"}, join={"key": "header:X-Room", "max_joiners": 100})


def room(node, key, timeout=15):
    """The answer, or None when there was none in time."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return node.get("/w/%s/" % ROOM_ID, headers={"X-Room": key}, timeout=timeout)
    return None


class Watch:
    """Looks at the processes of this machine all the time: whether a key has two instances whose code
    runs at the same moment, on whichever nodes."""

    def __init__(self):
        self.seen = {}  # key -> instances, all that were ever seen
        self.twice = []
        self.looks = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    @staticmethod
    def look():
        """key -> instances that run."""
        found = {}
        for pid in os.listdir("/proc"):
            if not pid.isdigit():
                continue
            with contextlib.suppress(OSError):
                with open("/proc/%s/environ" % pid, "rb") as f:
                    pairs = dict(p.split(b"=", 1) for p in f.read().split(b"\0") if b"=" in p)
                if pairs.get(b"SKERRY_WORKLOAD") == ROOM_ID.encode() and b"SKERRY_KEY" in pairs:
                    found.setdefault(pairs[b"SKERRY_KEY"].decode(), set()).add(
                        pairs[b"SKERRY_INSTANCE"].decode())
        return found

    def run(self):
        before = {}
        while not self.stopping.wait(0.02):
            now = self.look()
            self.looks += 1
            for key, instances in now.items():
                self.seen.setdefault(key, set()).update(instances)
                # One look takes time: one may have ended and the other begun in it. Two that are in this
                # look and in the one before ran at the same time in between.
                both = instances & before.get(key, set())
                if len(both) > 1:
                    self.twice.append((key, both))
            before = now

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.stopping.set()
        self.thread.join()


class Partition(unittest.TestCase):
    def write(self, node, seconds=5):
        """A write through this node is acknowledged, soon."""
        def made():
            with contextlib.suppress(OSError):
                return node.api("POST", "/v1/tokens", {"role": "invoke"}).status == 201
        wait_until(made, seconds, "a write through %s" % node.name)

    def agree(self, nodes, key, but=None):
        """All join the same instance of the key, which is another than `but`."""
        def same():
            answers = [room(node, key) for node in nodes.nodes]
            if any(a is None or a.status != 200 for a in answers):
                return None
            ids = {a.instance for a in answers}
            return answers[0] if len(ids) == 1 and ids != {but} else None
        return wait_until(same, 15, "all join one instance of %s" % key).instance

    def cut_off(self, nodes, node, key):
        """Nothing goes to or from `node`, which holds the key."""
        held = room(node, key)
        self.assertEqual((held.status, held.header("Skerry-Node")), (200, node.name), held)
        others = nodes.others(node)
        led = nodes.wait_leader() is node
        cut = time.monotonic()
        nodes.network.cut([nodes.nodes.index(node) + 1], [nodes.nodes.index(o) + 1 for o in others])
        leader = nodes.wait_leader(others, but=node)
        for other in others:
            self.write(other)
        print("        %s cut off: %s leads, writes again after %.2f s"
              % (node.name, leader.name, time.monotonic() - cut), flush=True)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            # Of one that led until now: it must not acknowledge what it cannot know.
            asked = pool.submit(node.api, "POST", "/v1/tokens", {"role": "invoke"}) if led else None
            wait_until(lambda: getattr(room(others[0], key), "status", 0) == 200, 15,
                       "another holder")
            print("        another holder after %.2f s" % (time.monotonic() - cut), flush=True)
            stale = room(node, key)
            self.assertEqual(stale.status, 503, stale)
            # Once all is well it may be made, if its time is not over by then.
            self.assertFalse(led and asked.done() and asked.result().status == 201)
            nodes.network.heal()
        nodes.wait_settled()
        for each in nodes.nodes:
            each.wait_ready()
        self.agree(nodes, key, but=held.instance)
        for each in nodes.nodes:
            self.write(each)

    def test_whoever_is_cut_off_stops_before_another_begins(self):
        with Cluster(3) as nodes, Watch() as watch:
            nodes[0].deploy(ROOM, server(SAY))
            wait_until(lambda: all(room(n, "all").status == 200 for n in nodes.nodes), 10, "deployed")
            leader = nodes.wait_leader()
            self.cut_off(nodes, leader, "led")
            leader = nodes.wait_leader()
            follower = nodes.others(leader)[0]
            term = leader.status()["term"]
            self.cut_off(nodes, follower, "followed")
            # Who comes back does not disturb the others.
            self.assertEqual((nodes.wait_leader(), leader.status()["term"]), (leader, term))
            self.assertEqual(watch.twice[:3], [])
            self.assertEqual({k: len(v) for k, v in watch.seen.items()},
                             {"all": 1, "led": 2, "followed": 2})
            self.assertGreater(watch.looks, 100)

    def test_cuts_that_go_one_way(self):
        with Cluster(3) as nodes, Watch() as watch:
            nodes[0].deploy(ROOM, server(SAY))
            first = self.agree(nodes, "a")
            number = {node: k for k, node in enumerate(nodes.nodes, 1)}
            leader = nodes.wait_leader()
            others = nodes.others(leader)
            with Writes(others, 50) as writes:
                wait_until(lambda: len(writes.acknowledged) > 20, 10, "writes")
                # The leader is heard and hears nobody: it must not go on as if it led.
                nodes.network.cut([number[o] for o in others], [number[leader]], both=False)
                cut = time.monotonic()
                wait_until(lambda: sum(a[0] > cut + 1 for a in writes.acknowledged) > 20, 10,
                           "writes while the old leader is deaf")
                nodes.network.heal()
                nodes.wait_settled()
                # One follower hears nobody; the others do not care, though it speaks.
                leader = nodes.wait_leader()
                deaf = nodes.others(leader)[0]
                term = leader.status()["term"]
                nodes.network.cut([number[n] for n in nodes.others(deaf)], [number[deaf]],
                                  both=False)
                begun = time.monotonic()
                wait_until(lambda: any(n["name"] == deaf.name and n["state"] != "alive"
                                       for n in leader.status()["nodes"]), 10, "it is missed")
                self.write(leader)
                wait_until(lambda: time.monotonic() > begun + 2, 3, "two seconds")
                nodes.network.heal()
                nodes.wait_settled()
                self.assertEqual((nodes.wait_leader(), leader.status()["term"]), (leader, term))
            print("        %r" % writes, flush=True)
            for node in nodes.nodes:
                self.assertEqual(writes.missing(node), [])
            self.agree(nodes, "a")
            self.assertEqual(watch.twice[:3], [])
            self.assertIn(first, watch.seen["a"])


class Delay(unittest.TestCase):
    def test_writes_that_come_as_they_come_over_slow_lines(self):
        with Cluster(3) as nodes:
            for milliseconds, per_second in ((2, 200), (50, 100)):
                nodes.network.delay(milliseconds)
                leader, term = nodes.wait_leader(), nodes.wait_leader().status()["term"]
                with Writes(nodes, per_second) as writes:
                    wait_until(lambda: writes.asked >= 2 * per_second, 10, "two seconds of writes")
                took = sorted(answered - asked for asked, answered, _ in writes.acknowledged)
                print("        %d ms: %r, p50 %.0f ms, p99 %.0f ms" % (
                    milliseconds, writes, 1000 * took[len(took) // 2],
                    1000 * took[len(took) * 99 // 100]), flush=True)
                self.assertEqual(writes.refused, {})
                self.assertEqual((nodes.wait_leader(), leader.status()["term"]), (leader, term))
                for node in nodes.nodes:
                    self.assertEqual(writes.missing(node), [])


if __name__ == "__main__":
    unittest.main()
