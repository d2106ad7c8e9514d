"""A disk that fails or is full ends its node, loudly, and nothing else."""
import contextlib
import os
import subprocess
import time
import unittest

from cluster import wait_until
from load import Writes
from network import Cluster

# What a change goes to the disk by, whatever the file system can do.
STORES = "io_submit,pwrite64,pwritev,pwritev2,fsync,fdatasync"


@contextlib.contextmanager
def failing(process, error):
    """From now on nothing that this process stores is stored."""
    with subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + STORES, "-e",
                           "inject=%s:error=%s" % (STORES, error), "-p", str(process.pid)],
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as strace:
        try:
            yield
        finally:
            if strace.poll() is None:
                strace.terminate()


class Disk(unittest.TestCase):
    def ended(self, node):
        """It ended by itself and said why."""
        wait_until(lambda: not node.alive(), 15, "%s ends" % node.name)
        self.assertEqual(node.serve_process.returncode, 1)
        with open(node.path("serve.log"), errors="replace") as f:
            said = f.read().strip().splitlines()[-1]
        print("        %s" % said, flush=True)
        self.assertIn("the disk failed", said)
        self.assertIn("start it again", said)

    def test_a_failing_disk_ends_who_leads_and_loses_nothing(self):
        with Cluster(3) as nodes:
            leader = nodes.wait_leader()
            others = nodes.others(leader)
            with Writes(nodes, 100) as writes:
                wait_until(lambda: len(writes.acknowledged) > 50, 10, "writes")
                with failing(leader.serve_process, "EIO"):
                    self.ended(leader)
                failed = time.monotonic()
                wait_until(lambda: sum(a[0] > failed + 0.5 for a in writes.acknowledged) > 50, 10,
                           "writes go on")
            print("        %r" % writes, flush=True)
            for node in others:
                self.assertEqual(writes.missing(node), [])
            # The disk works again.
            leader.start_serve()
            nodes.wait_settled()
            self.assertEqual(writes.missing(leader), [])

    @contextlib.contextmanager
    def small_disk(self, node, megabytes):
        """The folder of a node on a file system of its own."""
        aside = node.path("aside")
        node.kill_serve()
        os.rename(node.data, aside)
        os.mkdir(node.data)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % megabytes, "tmpfs", node.data],
                       check=True)
        try:
            subprocess.run(["cp", "-a", aside + "/.", node.data], check=True)
            os.chown(node.data, os.stat(aside).st_uid, os.stat(aside).st_gid)
            node.start_serve()
            yield
        finally:
            node.kill()
            subprocess.run(["umount", node.data], check=True)

    def test_a_full_disk_ends_a_follower_which_comes_back_with_room(self):
        with Cluster(3) as nodes:
            node = nodes.others(nodes.wait_leader())[0]
            others = nodes.others(node)
            with self.small_disk(node, 80):
                nodes.wait_settled()
                filler = os.path.join(node.data, "filler")
                with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as f:
                    while True:
                        f.write(bytes(65536))
                count = 0
                while node.alive() and count < 1500:
                    answer = others[count % 2].api("PUT", "/v1/workloads/large", {
                        "id": "large", "kind": "command", "command": ["true"],
                        "environment": {"VALUE": "%d" % count + "x" * 30000}})
                    self.assertIn(answer.status, (200, 201), answer)
                    count += 1
                print("        full after %d writes of 30 KB" % count, flush=True)
                self.ended(node)
                os.unlink(filler)
                node.start_serve()
                nodes.wait_settled()
                read = node.api("GET", "/v1/workloads/large?consistent=1").json()
                self.assertTrue(read["spec"]["environment"]["VALUE"].startswith("%dx" % (count - 1)))


if __name__ == "__main__":
    unittest.main()
