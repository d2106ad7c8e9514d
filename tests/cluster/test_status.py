"""skerry status: the same truth at every node."""
import os
import subprocess
import unittest

from cluster import NODE_UID, SKERRY, Nodes, sanitized, wait_until

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def warns(node, *texts):
    """A warning of `node` that holds all these texts."""
    return next((w for w in node.status()["warnings"] if all(t in w for t in texts)), None)


class Status(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.nodes = Nodes(3)
        cls.nodes.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)

    def test_what_one_node_says_of_itself_all_tell(self):
        one, two, three = self.nodes
        wait_until(lambda: all(n.status()["healthy"] for n in self.nodes), 20, "all are well")
        two.kill_runner()
        for node in self.nodes:
            wait_until(lambda: warns(node, "node2  the runner is not reachable"), 20,
                       "%s tells of it" % node.name)
            self.assertFalse(node.status()["healthy"])
        two.start_runner()
        for node in self.nodes:
            wait_until(lambda: node.status()["healthy"], 20, "%s is well again" % node.name)

    @unittest.skipUnless(os.path.exists(FAKETIME), "faketime is not installed (make deps)")
    @unittest.skipIf(sanitized(), "beside the runtime of a sanitizer faketime stands still")
    def test_a_clock_that_is_off_is_named_everywhere(self):
        one, two, three = self.nodes
        two.stop_serve()
        with open(two.path("serve.log"), "ab") as log:
            two.serve_process = subprocess.Popen(
                [SKERRY, "serve", "--config", two.path("skerry.yaml")], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, user=NODE_UID, group=NODE_UID,
                extra_groups=[], env=dict(os.environ, LD_PRELOAD=FAKETIME, FAKETIME="+7s",
                                          FAKETIME_DONT_FAKE_MONOTONIC="1"))
        two.wait_ready()
        for node in self.nodes:
            wait_until(lambda: warns(node, "node2  its clock is", "ahead of that of the others"), 20,
                       "%s names the clock" % node.name)
            self.assertEqual([w for w in node.status()["warnings"] if "its clock" in w
                              and not w.startswith("node2")], [])
        seen = next(n for n in one.status()["nodes"] if n["name"] == "node2")
        self.assertAlmostEqual(seen["clock_ahead_seconds"], 7, delta=2)
        two.stop_serve()
        two.start_serve()
        for node in self.nodes:
            wait_until(lambda: not warns(node, "its clock is"), 20, "the clock is right again")


if __name__ == "__main__":
    unittest.main()
