"""Three nodes that are joined with OpenSSH's own client."""
import os
import shutil
import subprocess
import tempfile
import unittest

from cluster import Nodes, free_port

# A node that has not heard of an instance yet would start another.
ONE = {"max": 1, "queue": 10, "queue_timeout": "10s"}


class SshNodes(unittest.TestCase):
    """Key "all" opens every workload; "chat" and "other" are keys that are not registered yet."""
    @classmethod
    def setUpClass(cls):
        cls.ports = [free_port() for _ in range(3)]
        cls.nodes = Nodes(3, ["gateway: {ssh: \"127.0.0.1:%d\"}\n" % p for p in cls.ports])
        cls.nodes.__enter__()
        cls.folder = tempfile.mkdtemp(prefix="skerry-test-ssh-", dir="/tmp")
        for name in ("all", "chat", "other"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", cls.file(name)],
                           check=True)
        cls.nodes[0].cli("ssh-key", "add", cls.file("all.pub"))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder, ignore_errors=True)
        cls.nodes.__exit__(None, None, None)

    @classmethod
    def file(cls, name):
        return os.path.join(cls.folder, name)

    def options(self, key):
        return ["-F", "none", "-i", self.file(key), "-o", "IdentitiesOnly=yes",
                "-o", "IdentityAgent=none", "-o", "StrictHostKeyChecking=accept-new",
                "-o", "UserKnownHostsFile=" + self.file("known"), "-o", "HostKeyAlias=cluster",
                "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]

    def argv(self, user, *command, node=0, key="all", flags=()):
        return ["ssh", *self.options(key), "-p", str(self.ports[node]), *flags,
                user + "@127.0.0.1", *command]

    def ssh(self, user, *command, node=0, key="all", flags=(), stdin=b"", timeout=60):
        return subprocess.run(self.argv(user, *command, node=node, key=key, flags=flags),
                              input=stdin, capture_output=True, timeout=timeout)

    def listed(self, workload):
        """What all nodes say of the instances of a workload: each owner of its own."""
        found = {}
        for node in self.nodes.nodes:
            for i in node.ps():
                if i["workload"] == workload and i["node"] == node.name:
                    found[i["id"]] = i
        return found
