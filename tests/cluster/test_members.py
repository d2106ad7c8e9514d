"""Machines become nodes, come back by themselves, and are removed."""
import json
import os
import unittest

from cluster import NODE_UID, Node, Nodes, server_spec, wait_until

# Nothing that would have to reach the other nodes first.
HELLO = server_spec("hello", command=["python3", "-m", "http.server", "8080"])


def listed(node):
    return {n["name"]: n for n in json.loads(node.cli("node", "list", "--json").stdout)}


def keyring(node):
    return json.loads(node.cli("operator", "keyring", "list", "--json").stdout)


def keyring_used(node):
    return next(k["id"] for k in keyring(node) if k["used"])


def serve_log(node):
    with open(node.path("serve.log"), errors="replace") as f:
        return f.read()


def give_token(node, text):
    with open(os.open(node.path("token"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        f.write(text)
    os.chown(node.path("token"), NODE_UID, NODE_UID)


def serve_ends(node):
    """Starts serve, which has to give up by itself; returns its exit code and what it said last."""
    before = len(serve_log(node)) if os.path.exists(node.path("serve.log")) else 0
    node.start_serve(ready=False)
    code = node.serve_process.wait(30)
    return code, serve_log(node)[before:]


class Members(unittest.TestCase):
    def test_three_nodes_live_through_kill_of_any(self):
        with Nodes(3) as nodes:
            nodes[0].deploy(HELLO)
            for k in range(3):
                victim, other = nodes[k], nodes[(k + 1) % 3]
                victim.kill_serve()
                wait_until(lambda: listed(other)[victim.name]["state"] == "dead", 20,
                           "the others see that %s is dead" % victim.name)
                wait_until(lambda: other.get("/w/hello/").status == 200, 20, "joins go on")
                victim.start_serve()
                nodes.wait_settled()
            for node in nodes:
                self.assertEqual(node.get("/w/hello/").status, 200)
            # Nothing of the handshake was needed again.
            self.assertEqual(serve_log(nodes[1]).count("asks to join"), 1)

    def test_all_killed_at_once_come_back(self):
        with Nodes(3) as nodes:
            nodes[0].deploy(HELLO)
            for node in nodes:
                node.kill_serve()
            for node in nodes:
                node.start_serve(ready=False)
            for node in nodes:
                node.wait_ready(30)
            nodes.wait_settled()
            self.assertEqual(nodes[2].get("/w/hello/").status, 200)

    def test_a_removed_node_is_out_and_joins_anew(self):
        with Nodes(3) as nodes:
            keys = keyring(nodes[0])
            nodes[0].cli("node", "rm", "node3")
            wait_until(lambda: "node3" not in listed(nodes[1]), 10, "node3 is none any more")
            # What it knew is not used any more, and when all have the new key it opens nothing.
            self.assertNotIn(keyring_used(nodes[1]), [k["id"] for k in keys])
            wait_until(lambda: len(keyring(nodes[1])) == 1, 20, "one key, which node3 never had")
            self.assertEqual(nodes[2].serve_process.wait(20), 1)
            self.assertIn("was removed from the cluster", serve_log(nodes[2]))
            # Started again it is refused: what the others have of it is worth nothing, but that they say so.
            begun = os.path.getsize(nodes[2].path("serve.log"))
            nodes[2].start_serve(ready=False)
            wait_until(lambda: "its key is not that" in serve_log(nodes[0]) + serve_log(nodes[1]),
                       10, "its key is refused")
            self.assertEqual(nodes[2].serve_process.wait(20), 1)
            self.assertIn("was removed from the cluster", serve_log(nodes[2])[begun:])
            self.assertNotIn("node3", listed(nodes[0]))
            # Another folder and a new token.
            os.rename(nodes[2].data, nodes[2].path("removed"))
            os.mkdir(nodes[2].data)
            os.chown(nodes[2].data, NODE_UID, NODE_UID)
            give_token(nodes[2], nodes[0].cli("token", "create", "--node").stdout)
            nodes[2].start_serve()
            wait_until(lambda: listed(nodes[0]).get("node3", {}).get("state") == "alive", 10,
                       "node3 is back")
            self.assertEqual(listed(nodes[0])["node3"]["id"], "4")

    def test_a_token_is_good_once(self):
        with Nodes(2) as nodes:
            late = Node(name="node9", join=nodes[0])
            try:
                with open(nodes[1].path("token"), "rb") as used:
                    give_token(late, used.read())
                code, said = serve_ends(late)
                self.assertEqual(code, 1)
                self.assertIn("the token is not known: it was used", said)
                self.assertNotIn("skn_", said)
                self.assertIn("refused (token)", serve_log(nodes[0]))
            finally:
                late.close()

    def test_a_folder_of_no_cluster_is_refused_with_the_remedy(self):
        node = Node()
        try:
            with open(node.path("skerry.yaml")) as f:
                text = f.read()
            with open(node.path("skerry.yaml"), "w") as f:
                f.write(text.replace("bootstrap: true\n", ""))
            code, said = serve_ends(node)
            self.assertEqual(code, 1)
            self.assertIn("--bootstrap", said)
            self.assertIn("--token-file", said)
        finally:
            node.close()

    def test_a_lone_nodes_folder_becomes_node_1_in_place(self):
        with Node() as node:
            node.deploy(HELLO)
            self.assertEqual(node.get("/w/hello/").status, 200)
            node.stop_serve()
            # As a version left it that knew lone nodes only.
            for name in ("node.json", "peers.json", "identity.key", "boot"):
                if os.path.exists(os.path.join(node.data, name)):
                    os.unlink(os.path.join(node.data, name))
            node.start_serve()
            self.assertEqual(node.get("/w/hello/").status, 200)
            self.assertEqual(listed(node)["node1"]["id"], "1")
            with open(os.path.join(node.data, "node.json")) as f:
                cluster = json.load(f)["cluster"]
            self.assertRegex(cluster, "^[0-9a-f]{16}$")
            self.assertEqual(os.stat(os.path.join(node.data, "node.json")).st_mode & 0o777, 0o600)

    def test_a_lost_registry_is_refused(self):
        with Node() as node:
            node.stop_serve()
            os.rename(os.path.join(node.data, "raft"), node.path("raft-elsewhere"))
            code, said = serve_ends(node)
            self.assertEqual(code, 1)
            self.assertIn("is gone", said)
            os.rename(node.path("raft-elsewhere"), os.path.join(node.data, "raft"))
            node.start_serve()


if __name__ == "__main__":
    unittest.main()
