"""What was declared outlives the loss of the node that took it, from the answer on."""
import json
import os
import unittest
from concurrent.futures import ThreadPoolExecutor

from cluster import server, server_spec, wait_until
from network import Cluster

SAY = """
def handle(h):
    h.say(str(os.path.getsize("data")))
"""
SIZE = 12 << 20  # not a text that is there before anybody can look


class Copies(unittest.TestCase):
    def folder(self, node, name):
        folder = node.path(name)
        os.mkdir(folder)
        with open(os.path.join(folder, "data"), "wb") as f:
            f.write(os.urandom(SIZE))
        with open(os.path.join(folder, "main.py"), "w") as f:
            f.write(server(SAY)["main.py"])
        return folder

    def deploy(self, node, name):
        self.folder(node, name)
        path = node.path(name + ".json")
        with open(path, "w") as f:
            json.dump(server_spec(name, source="./" + name), f)
        return node.cli("deploy", "--json", path)

    def image(self, node, name):
        return node.cli("image", "import", "--json", name, self.folder(node, name))

    def test_the_answer_comes_with_the_second_copy(self):
        with Cluster(3) as nodes, ThreadPoolExecutor() as pool:
            first = nodes[0]
            others = nodes.others(first)
            # They live, and cannot take anything.
            for node in others:
                node.kill_runner()
            begun = [pool.submit(self.deploy, first, "alone"), pool.submit(self.image, first, "bare")]
            for name, one in zip(("alone", "bare"), begun):
                done = one.result()
                answer = json.loads(done.stdout)
                self.assertIn("only on node node1", answer["warning"])
                self.assertIn("%s: warning: its layers" % name, done.stderr.decode())
            for node in others:
                node.start_runner()
            for answer in (self.image(first, "root"), self.deploy(first, "kept")):
                self.assertNotIn("warning", json.loads(answer.stdout))
                self.assertEqual(answer.stderr, b"")
            first.kill()
            for node in others:
                wait_until(lambda n=node: n.get("/w/kept/").body == b"%d" % SIZE, 20,
                           "what was declared runs elsewhere")


if __name__ == "__main__":
    unittest.main()
