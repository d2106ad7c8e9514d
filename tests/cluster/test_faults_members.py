"""Nodes that lose their folder, or wake up at another address."""
import os
import shutil
import unittest

from cluster import NODE_UID, server, server_spec, wait_until
from network import Cluster

SAY = """
def handle(h):
    h.say(os.environ["SKERRY_INSTANCE"])
"""
ROOM = server_spec("room", life={"idle": "none"}, join={"key": "header:X-Room", "max_joiners": 100})


def room(node, key):
    return node.get("/w/room/", headers={"X-Room": key})


class Lost(unittest.TestCase):
    def setUp(self):
        self.nodes = Cluster(3)
        self.nodes.__enter__()
        self.failed = True
        self.addCleanup(lambda: self.nodes.__exit__(True if self.failed else None, None, None))
        self.nodes[0].deploy(ROOM, server(SAY))
        wait_until(lambda: all(room(n, n.name).status == 200 for n in self.nodes.nodes), 10, "rooms")

    def entry(self, name, by):
        return [n for n in by.status()["nodes"] if n["name"] == name]

    def works(self, node):
        wait_until(lambda: node.api("POST", "/v1/tokens", {"role": "invoke"}).status == 201, 10,
                   "a write through %s" % node.name)
        for key in ("node1", "node2", "node3"):
            wait_until(lambda k=key: room(node, k).status == 200, 15, "a join of %s" % key)

    def test_a_node_without_its_folder_joins_anew_in_the_place_of_the_old(self):
        other, lost = self.nodes[0], self.nodes[2]
        held = room(lost, lost.name)
        self.assertEqual(held.header("Skerry-Node"), lost.name)
        old = self.entry(lost.name, other)[0]["id"]
        lost.kill()
        shutil.rmtree(lost.data)
        os.mkdir(lost.data)
        os.chown(lost.data, NODE_UID, NODE_UID)
        os.unlink(lost.path("token"))
        lost.start()  # with a new token
        self.nodes.wait_settled()
        for node in self.nodes.nodes:
            entries = self.entry(lost.name, node)
            self.assertEqual(len(entries), 1, entries)
            self.assertNotEqual(entries[0]["id"], old)
            roles = [n["role"] for n in node.status()["nodes"]]
            self.assertEqual(roles.count("voter") % 2, 1, roles)
            gone = node.get("/i/%s/" % held.instance)
            self.assertEqual((gone.status, gone.error), (410, "instance_gone"), gone)
            self.assertIn("node_lost", gone.json()["detail"])
            self.works(node)
        self.failed = False

    def test_a_node_at_another_address_comes_back_by_itself(self):
        leader = self.nodes.wait_leader()
        # A follower, then who leads.
        for moved in (self.nodes.others(leader)[0], leader):
            held = room(moved, moved.name)
            moved.kill_serve()
            moved.address = moved.host.other_address
            moved.configure()
            moved.start_serve()
            self.nodes.wait_settled()
            for node in self.nodes.nodes:
                self.assertEqual(self.entry(moved.name, node)[0]["address"], moved.address + ":7600")
                # Back within its lease: what ran there goes on, and others reach it there.
                self.assertEqual(room(node, moved.name).instance, held.instance)
                self.works(node)
        self.failed = False


if __name__ == "__main__":
    unittest.main()
