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
    def entry(self, name, by):
        return [n for n in by.status()["nodes"] if n["name"] == name]

    def keys(self, node):
        return [key["id"] for key in node.api("GET", "/v1/operator/keyring").json()]

    def works(self, node):
        wait_until(lambda: node.api("POST", "/v1/tokens", {"role": "invoke"}).status == 201, 10,
                   "a write through %s" % node.name)
        for key in ("node1", "node2", "node3"):
            wait_until(lambda k=key: room(node, k).status == 200, 15, "a join of %s" % key)

    def test_nodes_move_and_lose_their_folder(self):
        with Cluster(3) as nodes:
            nodes[0].deploy(ROOM, server(SAY))
            for node in nodes.nodes:
                wait_until(lambda n=node: room(n, n.name).status == 200, 10, "rooms")
            leader = nodes.wait_leader()
            # A follower, then who leads.
            self.move(nodes, nodes.others(leader)[0])
            self.move(nodes, leader)
            self.wipe(nodes, nodes[2])

    def move(self, nodes, moved):
        """It wakes up at another address and comes back by itself."""
        held = room(moved, moved.name)
        self.assertEqual(held.header("Skerry-Node"), moved.name)
        moved.kill_serve()
        moved.address = moved.host.other_address
        moved.configure()
        moved.start_serve()
        nodes.wait_settled()
        for node in nodes.nodes:
            self.assertEqual(self.entry(moved.name, node)[0]["address"], moved.address + ":7600")
            # Back within its lease: what ran there goes on, and others reach it there.
            self.assertEqual(room(node, moved.name).instance, held.instance)
            self.works(node)

    def wipe(self, nodes, lost):
        """It joins anew, in the place of what it was."""
        held = room(lost, lost.name)
        self.assertEqual(held.header("Skerry-Node"), lost.name)
        old = self.entry(lost.name, nodes[0])[0]["id"]
        keys = self.keys(nodes[0])
        lost.kill()
        shutil.rmtree(lost.data)
        os.mkdir(lost.data)
        os.chown(lost.data, NODE_UID, NODE_UID)
        os.unlink(lost.path("token"))
        lost.peers = [nodes[0].address]
        lost.configure()
        lost.start()  # with a new token
        nodes.wait_settled()
        # Whoever has the lost folder has gossip's key.
        wait_until(lambda: len(self.keys(nodes[1])) == 1 and self.keys(nodes[1]) != keys, 20,
                   "gossip has another key, and that alone")
        for node in nodes.nodes:
            entries = self.entry(lost.name, node)
            self.assertEqual(len(entries), 1, entries)
            self.assertNotEqual(entries[0]["id"], old)
            roles = [n["role"] for n in node.status()["nodes"]]
            self.assertEqual(roles.count("voter") % 2, 1, roles)
            gone = node.get("/i/%s/" % held.instance)
            self.assertEqual((gone.status, gone.error), (410, "instance_gone"), gone)
            self.assertIn("node_lost", gone.json()["detail"])
            self.works(node)


if __name__ == "__main__":
    unittest.main()
