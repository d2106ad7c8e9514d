"""What docs/ promise to users in small things: answers, texts, records."""
import base64
import json
import unittest

from cluster import Node, server, server_spec, wait_until

PLAIN = """
def handle(h):
    if h.path == "/hang":
        time.sleep(5)
    h.say(os.environ["SKERRY_INSTANCE"])
"""


class Contract(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def test_code_without_a_port_cannot_be_joined(self):
        node = self.node
        node.deploy({"id": "portless", "command": ["sleep", "1000"], "ready": "none",
                     "access": "public", "scale": {"idle_min": 1}})
        found = wait_until(lambda: node.ps("portless"), 10, "an instance ahead")
        for path in ("/w/portless/", "/i/%s/" % found[0]["id"]):
            answer = node.get(path)
            self.assertEqual((answer.status, answer.error), (409, "conflict"))
            self.assertIn("portless has no port", answer.json()["detail"])
        self.assertEqual(node.cli("exec", found[0]["id"], "--", "echo", "in").stdout, b"in\n")


if __name__ == "__main__":
    unittest.main()
