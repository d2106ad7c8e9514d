"""Nodes that die: what was acknowledged stays, what can go on goes on, nobody has to help."""
import concurrent.futures
import http.client
import time
import unittest

from cluster import processes_of, server, server_spec, wait_until
from load import Writes
from network import Cluster

SAY = """
def handle(h):
    h.say(os.environ["SKERRY_INSTANCE"])
"""
HELLO = server_spec("hello", life={"idle": "none"})
OTHER = server_spec("other", life={"idle": "none"})
ROOM = server_spec("room", life={"idle": "none"}, join={"key": "header:X-Room"})


def timed(call):
    begun = time.monotonic()
    answer = call()
    return answer, time.monotonic() - begun


def answers(node, path, status=200):
    def asked():
        try:
            answer = node.get(path, timeout=10)
        except (OSError, http.client.HTTPException):
            return None
        return answer if answer.status == status else None
    return asked


class Death(unittest.TestCase):
    def setUp(self):
        self.pool = concurrent.futures.ThreadPoolExecutor()
        self.addCleanup(self.pool.shutdown)

    def test_a_killed_leader_takes_no_acknowledged_write_with_it(self):
        with Cluster(3) as nodes:
            leader = nodes.wait_leader()
            with Writes(nodes, 500) as writes:
                wait_until(lambda: len(writes.acknowledged) > 500, 10, "writes")
                leader.kill_serve()
                killed = time.monotonic()
                wait_until(lambda: sum(a[0] > killed + 0.5 for a in writes.acknowledged) > 100,
                           10, "writes after the leader's death")
            print("        %r" % writes, flush=True)
            for node in nodes.others(leader):
                self.assertEqual(writes.missing(node), [])
            self.assertLess(writes.gap(), 3)  # below 1 s on a quiet machine
            leader.start_serve()
            nodes.wait_settled()
            self.assertEqual(writes.missing(leader), [])

    def test_one_of_three_serves_what_runs_and_refuses_the_rest_in_time(self):
        with Cluster(3) as nodes:
            last = nodes.others(nodes.wait_leader())[0]
            for spec in (HELLO, OTHER):
                last.deploy(spec, server(SAY))
            first = last.get("/w/hello/")
            self.assertEqual((first.status, first.header("Skerry-Node")), (200, last.name), first)
            others = nodes.others(last)
            for node in others:
                node.kill()
            # Asked while an election might be under way still; meanwhile.
            reading = self.pool.submit(timed, lambda: last.api(
                "GET", "/v1/workloads/hello?consistent=1"))
            wait_until(answers(last, "/readyz", 503), 10, "/readyz says that it is not")
            ready = last.get("/readyz")
            self.assertEqual(ready.error, "no_quorum")
            for _ in range(20):
                warm, seconds = timed(lambda: last.get("/w/hello/"))
                self.assertEqual((warm.status, warm.instance), (200, first.instance), warm)
                self.assertLess(seconds, 2)
            start, seconds = timed(lambda: last.get("/w/other/"))
            self.assertEqual((start.status, start.error), (503, "no_quorum"), start)
            self.assertIsNotNone(start.header("Retry-After"))
            self.assertLess(seconds, 21)  # timeouts.start
            wait_until(lambda: b"1 of 3 voters reachable" in last.get("/w/other/").body, 10,
                       "the others are known to be dead")
            for method, path, body in (("PUT", "/v1/workloads/more", server_spec("more")),
                                       ("POST", "/v1/tokens", {"role": "invoke"})):
                write, seconds = timed(lambda m=method, p=path, b=body: last.api(m, p, b))
                self.assertEqual((write.status, write.json()["code"]), (503, "no_quorum"), write)
                self.assertLess(seconds, 15)
            # Known to be without a leader for two seconds, and not before; then at once.
            for read, seconds in (reading.result(), timed(lambda: last.api(
                    "GET", "/v1/workloads/hello?consistent=1"))):
                self.assertEqual((read.status, read.json()["code"]), (503, "no_quorum"), read)
                self.assertIn("of 3 voters reachable", read.json()["detail"])
                self.assertLess(seconds, 6)  # less than three on a quiet machine
            # With one back everything works, and nobody had to do anything.
            others[0].start()
            for node in (last, others[0]):
                wait_until(answers(node, "/readyz"), 20, "%s is ready" % node.name)
                wait_until(answers(node, "/w/other/"), 20, "a start by %s" % node.name)
                self.assertEqual(node.api("POST", "/v1/tokens", {"role": "invoke"}).status, 201)
                self.assertEqual(node.get("/i/%s/" % first.instance).body.decode(), first.instance)
            others[1].start()
            nodes.wait_settled()

    def kill_all(self, nodes, runners):
        for node in nodes.nodes:
            if runners:
                node.runner_process.kill()
            node.serve_process.kill()
        for node in nodes.nodes:
            node.serve_process.wait()
            if runners:
                node.runner_process.wait()

    def start_all(self, nodes, runners):
        for node in nodes.nodes:
            if runners:
                node.start_runner()
            node.start_serve(ready=False)
        for node in nodes.nodes:
            node.wait_ready()
        nodes.wait_settled()

    def test_all_killed_at_once_come_back_with_everything(self):
        with Cluster(3) as nodes:
            for spec in (HELLO, ROOM):
                nodes[0].deploy(spec, server(SAY))
            shared = nodes[1].get("/w/hello/")
            rooms = [node.get("/w/room/", headers={"X-Room": node.name}) for node in nodes.nodes]
            self.assertEqual({a.status for a in [shared] + rooms}, {200}, rooms)
            with Writes(nodes, 200) as writes:
                wait_until(lambda: len(writes.acknowledged) > 200, 10, "writes")
                self.kill_all(nodes, runners=False)
            # Back within the lease: all instances are taken up again.
            self.start_all(nodes, runners=False)
            print("        %r" % writes, flush=True)
            for node in nodes.nodes:
                self.assertEqual(writes.missing(node), [])
            self.assertEqual(nodes[0].get("/w/hello/").instance, shared.instance)
            for node, room in zip(nodes.nodes, rooms):
                again = node.get("/w/room/", headers={"X-Room": node.name})
                self.assertEqual((again.status, again.instance), (200, room.instance), again)
            # Runners too, and back after the lease: those with a key have ended, and all are lost.
            self.kill_all(nodes, runners=True)
            held = [room.instance for room in rooms]
            wait_until(lambda: not any(processes_of(i) for i in held), 8, "fenced by the agents")
            self.start_all(nodes, runners=True)
            for node, room in zip(nodes.nodes, rooms):
                self.assertEqual(node.get("/i/%s/" % room.instance).status, 410)
                again = node.get("/w/room/", headers={"X-Room": node.name})
                self.assertEqual(again.status, 200, again)
                self.assertNotEqual(again.instance, room.instance)
            self.assertEqual(writes.missing(nodes[2]), [])
            wait_until(answers(nodes[0], "/w/hello/"), 10, "hello")


if __name__ == "__main__":
    unittest.main()
