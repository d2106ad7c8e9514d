"""limits.io: what a workload reads from a disk is limited, where root allows it."""
import glob
import json
import os
import time
import unittest

from cluster import Node

SPEC = {"id": "reads", "kind": "command", "access": "public",
        "command": ["sh", "-c", "cat /app/big | wc -c"]}
SIZE = 3 << 20


def limited(io):
    return dict(SPEC, deploy={"resources": {"limits": {"io": io}}})


class Io(unittest.TestCase):
    def seconds(self, node):
        """How long one run takes that finds nothing of the file in memory."""
        path, = glob.glob(node.path("runner", "images", "*", "tree", "big"))
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        begin = time.monotonic()
        answer = node.request("POST", "/w/reads/")
        self.assertEqual((answer.status, answer.body), (200, b"%d\n" % SIZE), answer)
        return time.monotonic() - begin

    def test_a_workload_reads_as_fast_as_it_says(self):
        with Node(runner_config="allow: {io: true}\n", most=", io: 32M") as node:
            source = {"big": os.urandom(SIZE // 2).hex()}
            lacks = [w for w in node.status()["warnings"] if "not enforced: io" in w]
            node.deploy(limited("1M"), source)
            if lacks:
                self.assertIn("limit io cannot be enforced here", node.request("POST", "/w/reads/").json()["detail"])
                print("skipped: " + lacks[0])
                self.skipTest(lacks[0])
            shown = json.loads(node.cli("workload", "show", "--json", "reads").stdout)
            self.assertEqual(shown["spec"]["deploy"]["resources"]["limits"]["io"], "1M")
            slow = self.seconds(node)
            node.deploy(SPEC, source)
            fast = self.seconds(node)
            print("        3 MiB: %.2f s at 1M a second, %.2f s at what max.io says" % (slow, fast))
            self.assertGreater(slow, 2)
            self.assertLess(fast, slow / 2)
            node.deploy(limited("64M"), source)
            self.assertIn("io: 64M is above 32M, the most that runner.yaml allows",
                          node.request("POST", "/w/reads/").json()["detail"])

    def test_root_has_to_allow_it(self):
        with Node() as node:
            self.assertEqual([w for w in node.status()["warnings"] if "io" in w.split()], [])
            done = node.cli("run", "--io", "1M", "--", "true", check=False)
            self.assertEqual(done.returncode, 125, done)
            self.assertIn(b"set allow.io in runner.yaml", done.stderr)


if __name__ == "__main__":
    unittest.main()
