"""Bounds under load, counted by the workload itself."""
import collections
import threading
import unittest

from cluster import Node, server, server_spec

COUNTING = """
now = 0
peak = 0
lock = threading.Lock()
def handle(h):
    global now, peak
    with lock:
        now += 1
        peak = max(peak, now)
        mine = peak
    time.sleep(0.2)
    with lock:
        now -= 1
    h.say(json.dumps({"instance": os.environ["SKERRY_INSTANCE"], "peak": mine}))
"""


class Queue(unittest.TestCase):
    def parallel(self, node, path, count):
        answers = [None] * count

        def one(k):
            answers[k] = node.get(path)
        threads = [threading.Thread(target=one, args=(k,)) for k in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return answers

    def test_joiners_and_instances_stay_within_their_bounds(self):
        with Node() as node:
            node.deploy(server_spec("counted", join={"max_joiners": 4},
                                    scale={"max": 3, "queue": 300, "queue_timeout": "20s"}),
                        server(COUNTING))
            answers = self.parallel(node, "/w/counted/", 200)
            self.assertEqual(collections.Counter(a.status for a in answers), {200: 200})
            instances = {a.json()["instance"] for a in answers}
            self.assertLessEqual(len(instances), 3)
            self.assertLessEqual(max(a.json()["peak"] for a in answers), 4)
            # All slots are free again.
            for shown in node.ps():
                self.assertEqual(shown["joiners"], 0)

    def test_full_queue_and_late_queue_say_so(self):
        with Node() as node:
            node.deploy(server_spec("narrow", join={"max_joiners": 1},
                                    scale={"max": 1, "queue": 3, "queue_timeout": "300ms"}),
                        server(COUNTING))
            node.get("/w/narrow/")
            answers = self.parallel(node, "/w/narrow/", 12)
            statuses = collections.Counter((a.status, a.error) for a in answers)
            self.assertGreaterEqual(statuses[(200, None)], 1, statuses)
            self.assertGreaterEqual(statuses[(503, "queue_full")], 1, statuses)
            for a in answers:
                if a.status == 503:
                    self.assertGreaterEqual(int(a.header("Retry-After")), 1)
                    self.assertEqual(a.json()["ran"], "no")

    def test_forced_join_of_a_full_instance(self):
        with Node() as node:
            node.deploy(server_spec("one", join={"max_joiners": 1}), server(COUNTING))
            i = node.get("/w/one/").instance
            answers = self.parallel(node, "/i/%s/" % i, 4)
            statuses = collections.Counter((a.status, a.error) for a in answers)
            self.assertGreaterEqual(statuses[(503, "instance_full")], 1, statuses)
            self.assertGreaterEqual(statuses[(200, None)], 1, statuses)


if __name__ == "__main__":
    unittest.main()
