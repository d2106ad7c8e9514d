"""Joins travel: every node serves what runs on any of three."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from cluster import SKERRY, wait_until

SERVER = """
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(os.environ["SKERRY_NODE"].encode())
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
Server(("0.0.0.0", 8080), Handler).serve_forever()
"""
SPEC = """
id: %s
source: ./app
command: ["python3", "/app/server.py"]
port: 8080
access: public
join: {max_joiners: %d%s}
life: {idle: 5m}
"""


class Forward(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="skerry-forward-", dir="/tmp")
        os.chmod(cls.directory, 0o755)
        cls.cluster = os.path.join(cls.directory, "cluster")
        cls.environment = {k: v for k, v in os.environ.items() if not k.startswith("SKERRY_")}
        cls.environment["SKERRY_ADDR"] = "unix:" + os.path.join(cls.cluster, "node1", "run",
                                                                "api.sock")
        os.mkdir(os.path.join(cls.directory, "app"))
        with open(os.path.join(cls.directory, "app", "server.py"), "w") as f:
            f.write(SERVER)
        try:
            cls.skerry("up", "--nodes", "3", "--detach", "--dir", cls.cluster, "--address",
                       "127.0.0.51")
            for name, joiners, more in (("shared", 50, ""), ("narrow", 1, ""),
                                        ("rooms", 50, ', key: "header:X-Room"')):
                path = os.path.join(cls.directory, name + ".yaml")
                with open(path, "w") as f:
                    f.write(SPEC % (name, joiners, more))
                cls.skerry("deploy", path)
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        subprocess.run([SKERRY, "down", "--dir", cls.cluster], capture_output=True, timeout=60,
                       env=cls.environment)
        shutil.rmtree(cls.directory, ignore_errors=True)

    @classmethod
    def skerry(cls, *arguments):
        done = subprocess.run([SKERRY, *arguments], capture_output=True, timeout=60,
                              stdin=subprocess.DEVNULL, env=cls.environment)
        if done.returncode != 0:
            raise AssertionError((arguments, done.returncode, done.stdout, done.stderr))
        return done.stdout.decode()

    def ask(self, node, path, *more):
        """(status, header fields, body) of a request at node 1, 2 or 3."""
        out = subprocess.run(["curl", "-s", "-m", "30", "-i", *more,
                              "http://127.0.0.5%d:8080%s" % (node, path)],
                             capture_output=True, timeout=40).stdout
        head, _, body = out.partition(b"\r\n\r\n")
        fields = dict(re.findall(r"^([\w-]+): (.*)\r?$", head.decode().replace("\r", ""), re.M))
        return int(head.split()[1]), fields, body

    def test_every_node_joins_the_same_instance(self):
        status, fields, body = self.ask(1, "/w/shared/")
        self.assertEqual((status, fields["Skerry-Start"]), (200, "cold"))
        owner, instance = fields["Skerry-Node"], fields["Skerry-Instance"]
        self.assertEqual(body.decode(), owner)

        def seen(node):
            status, fields, body = self.ask(node, "/w/shared/")
            return (status, fields["Skerry-Instance"], fields["Skerry-Node"],
                    body.decode()) == (200, instance, owner, owner)
        for node in (1, 2, 3):
            wait_until(lambda: seen(node), 5, "node %d joins it" % node)
            status, fields, _ = self.ask(node, "/i/%s/" % instance)
            self.assertEqual((status, fields["Skerry-Node"]), (200, owner))
        big = os.path.join(self.directory, "big")
        with open(big, "wb") as f:
            f.write(os.urandom(1 << 20) * 4)
        with open(big, "rb") as f:
            sent = f.read()
        for node in (1, 2, 3):
            self.assertEqual(self.ask(node, "/i/%s/" % instance, "-H", "Expect:",
                                      "--data-binary", "@" + big)[2], sent)

    def test_one_instance_holds_a_key(self):
        found = set()
        for node in (2, 3, 1, 2):
            status, fields, _ = self.ask(node, "/w/rooms/", "-H", "X-Room: kitchen")
            self.assertEqual(status, 200)
            found.add((fields["Skerry-Instance"], fields["Skerry-Node"]))
        self.assertEqual(len(found), 1)

    def test_an_instance_that_ended_is_gone_everywhere(self):
        status, fields, _ = self.ask(2, "/w/narrow/")
        self.assertEqual(status, 200)
        instance = fields["Skerry-Instance"]
        self.skerry("stop", instance)
        for node in (1, 2, 3):
            wait_until(lambda: self.ask(node, "/i/%s/" % instance)[0] == 410, 5,
                       "node %d says that it is gone" % node)


if __name__ == "__main__":
    unittest.main()
