"""Nodes beyond voters and standbys are spares: they read the registry through a neighbour, and do all that a
node does."""
import json
import os
import re
import signal
import time
import unittest

from cluster import server_spec, wait_until
from network import Cluster

CONFIG = "raft: {voters: 3, standbys: 0}\n"
# Nothing that would have to reach other nodes first.
HELLO = server_spec("hello", command=["python3", "-m", "http.server", "8080"], life={"idle": "none"})


def roles(node):
    return {n["name"]: n["role"] for n in node.status()["nodes"]}


def spares(cluster, asked=None):
    names = [name for name, role in roles(asked or cluster[0]).items() if role == "spare"]
    return [n for n in cluster.nodes if n.name in names]


def fed_by(node):
    """The number of the node that feeds this one; 0: none."""
    text = node.api("GET", "/metrics").body.decode()
    return int(re.search(r"^skerry_registry_fed_by (\d+)", text, re.M).group(1))


def the_spare(cluster):
    def found():
        those = spares(cluster)
        return those[0] if len(those) == 1 and fed_by(those[0]) != 0 else None
    return wait_until(found, 20, "one of four is a fed spare")


def deploys(node, name):
    spec = json.dumps(server_spec(name))
    return node.api("PUT", "/v1/workloads/" + name, spec, timeout=10)


def deployed(node, name):
    return any(w["id"] == name for w in json.loads(node.cli("workload", "list", "--json").stdout))


class Spares(unittest.TestCase):
    def test_a_spare_does_all_that_a_node_does(self):
        with Cluster(4, [CONFIG] * 4) as cluster:
            spare = the_spare(cluster)
            others = cluster.others(spare)
            for node in cluster.nodes:
                wait_until(lambda: sorted(roles(node).values()) == ["spare"] + ["voter"] * 3, 10,
                           "%s says who votes" % node.name)
            status = spare.status()
            self.assertEqual(status["leader"], cluster.wait_leader().name)
            self.assertEqual((status["voters"], status["can_lose"], status["healthy"]), (3, 1, True))
            peers = json.loads(spare.cli("operator", "raft", "list-peers", "--json").stdout)
            self.assertIn("spare", json.dumps(peers))
            # It writes, and finds what it wrote; others find it, too.
            spare.deploy(HELLO)
            self.assertTrue(deployed(spare, "hello"))
            wait_until(lambda: all(deployed(n, "hello") for n in others), 5, "all have it")
            # What others write is here within a moment.
            others[0].deploy(server_spec("other"))
            wait_until(lambda: deployed(spare, "other"), 5, "the spare has it")
            # An instance of its own, joined through all.
            first = spare.get("/w/hello/")
            self.assertEqual(first.status, 200, first)
            self.assertEqual(first.header("Skerry-Node"), spare.name)
            for node in others:
                joined = node.get("/", {"Skerry-Instance": first.instance, "Host": "hello.localhost"})
                self.assertEqual((joined.status, joined.instance), (200, first.instance), joined)
            # And one of another node's through it.
            wait_until(lambda: spare.get("/i/%s/" % first.instance).status == 200, 5, "joined here")
            self.assertEqual(spare.cli("run", "--", "echo", "from a spare").stdout, b"from a spare\n")
            # A cluster cannot be begun with it.
            spare.kill_serve()
            refused = spare.cli("operator", "raft", "recover", "--data", spare.data, "--yes", check=False)
            self.assertEqual(refused.returncode, 1)
            self.assertIn(b"this node was a spare", refused.stderr)
            spare.start_serve()
            wait_until(lambda: fed_by(spare) != 0, 10, "it is fed after its restart")
            self.assertEqual(spare.get("/i/%s/" % first.instance).status, 200)

    def test_a_write_through_it_when_any_other_is_killed_or_stands_still(self):
        with Cluster(4, [CONFIG] * 4) as cluster:
            for turn in ("neighbour", "leader", "stopped-neighbour"):
                spare = the_spare(cluster)
                victim = (cluster.wait_leader() if turn == "leader"
                          else cluster.nodes[fed_by(spare) - 1])
                if turn == "stopped-neighbour":
                    os.kill(victim.serve_process.pid, signal.SIGSTOP)
                else:
                    victim.kill_serve()
                begun = time.monotonic()
                wait_until(lambda: deploys(spare, turn).status in (200, 201), 5, "a write")
                print("        the next write through the spare, its %s lost: %.2f s"
                      % (turn, time.monotonic() - begun), flush=True)
                self.assertTrue(deployed(spare, turn))
                if turn == "stopped-neighbour":
                    os.kill(victim.serve_process.pid, signal.SIGCONT)
                else:
                    victim.start_serve()
                cluster.wait_settled()

    def test_a_spare_takes_the_place_of_a_voter_and_that_one_comes_back_as_a_spare(self):
        with Cluster(4, [CONFIG] * 4) as cluster:
            spare = the_spare(cluster)
            leader = cluster.wait_leader()
            victim = cluster.others(spare, leader)[0]
            victim.kill_serve()
            wait_until(lambda: roles(leader)[spare.name] == "voter", 30, "the spare votes")
            wait_until(lambda: roles(leader)[victim.name] == "spare", 10, "the dead one does not")
            self.assertEqual(fed_by(spare), 0)
            spare.deploy(HELLO)
            victim.start_serve()
            wait_until(lambda: fed_by(victim) != 0, 20, "the one that came back is fed")
            wait_until(lambda: deployed(victim, "hello"), 5, "it has what it missed")
            self.assertEqual(deploys(victim, "again").status // 100, 2)
            cluster.wait_settled()
            self.assertEqual(roles(spare), roles(victim))


if __name__ == "__main__":
    unittest.main()
