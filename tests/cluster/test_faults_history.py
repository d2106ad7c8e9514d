"""A history of writes and strong reads through all nodes while they fail, and whether one register could
have had it."""
import contextlib
import http.client
import os
import signal
import threading
import time
import unittest

from cluster import wait_until
from linearizable import Operation, check
from network import Cluster

PATH = "/v1/workloads/register"


def spec(value):
    return {"id": "register", "kind": "command", "command": ["true"],
            "environment": {"VALUE": value}}


class Client:
    """Writes and reads in turn through one node until stopped."""

    def __init__(self, node, name, history):
        self.node, self.name, self.history = node, name, history
        self.count = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopping.is_set():
            self.count += 1
            if self.count % 2:
                self.write("%s.%d" % (self.name, self.count))
            else:
                self.read()
            # About as many operations as the check can take.
            self.stopping.wait(0.02)

    def ask(self, method, path, body=None):
        """None when it is not known what happened; False when nothing did."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            try:
                return self.node.api(method, path, body, timeout=15)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
        return None

    def write(self, value):
        asked = time.monotonic()
        answer = self.ask("PUT", PATH, spec(value))
        answered = time.monotonic()
        if answer and answer.status in (200, 201):
            self.history.append(Operation("write", value, asked, answered, self.name))
        elif answer is None or (answer and answer.json()["code"] != "no_quorum"):
            self.history.append(Operation("write", value, asked, who=self.name))
        # Else it was not made, and nobody may ever read it.

    def read(self):
        asked = time.monotonic()
        answer = self.ask("GET", PATH + "?consistent=1")
        if answer and answer.status == 200:
            value = answer.json()["spec"]["environment"]["VALUE"]
            self.history.append(Operation("read", value, asked, time.monotonic(), self.name))


class History(unittest.TestCase):
    def test_the_registry_is_one_register_whatever_dies_or_stops(self):
        with Cluster(3) as nodes:
            first = nodes[0].api("PUT", PATH, spec("first"))
            self.assertIn(first.status, (200, 201), first)
            history = []
            clients = [Client(node, "%s%s" % (node.name, letter), history)
                       for node in nodes.nodes for letter in "ab"]
            try:
                self.disturb(nodes, history)
            finally:
                for client in clients:
                    client.stopping.set()
                for node in nodes.nodes:
                    if node.alive():
                        node.serve_process.send_signal(signal.SIGCONT)
                for client in clients:
                    client.thread.join()
            known = sum(o.answered < float("inf") for o in history)
            print("        %d operations, %d of unknown outcome" % (len(history),
                                                                  len(history) - known), flush=True)
            self.assertGreater(known, 200)
            self.assertIsNone(check(history, "first"))

    def progress(self, history, count=15):
        """So many operations that were asked from now on were answered."""
        begun = time.monotonic()
        wait_until(lambda: sum(o.asked > begun and o.answered < float("inf")
                               for o in list(history)) >= count, 10, "operations go on")

    def disturb(self, nodes, history):
        self.progress(history)
        for _ in range(2):
            follower = nodes.others(nodes.wait_leader())[0]
            self.stop_for(follower, 0.5, history)
            leader = nodes.wait_leader()
            leader.kill_serve()
            self.progress(history)
            leader.start_serve()
            self.progress(history)
        # A leader that stops, and goes on as if it still led.
        self.stop_for(nodes.wait_leader(), 1.0, history)
        self.progress(history)

    def stop_for(self, node, seconds, history):
        os.kill(node.serve_process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            self.progress(history)
            wait_until(lambda: time.monotonic() > stopped + seconds, seconds + 1, "a while")
        finally:
            os.kill(node.serve_process.pid, signal.SIGCONT)


if __name__ == "__main__":
    unittest.main()
