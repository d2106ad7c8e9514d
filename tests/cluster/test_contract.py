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

    def test_a_refused_token_leaves_one_line(self):
        node = self.node
        node.deploy(server_spec("closed", access="private"), server(PLAIN))
        self.assertEqual(node.get("/w/closed/").status, 401)
        secret = "skt_0123456789abcdef_" + "z" * 52
        self.assertEqual(node.get("/w/closed/", {"Skerry-Token": secret}).status, 401)

        def log():
            with open(node.path("serve.log")) as f:
                return f.read()
        lines = wait_until(lambda: [line for line in log().splitlines() if "/w/closed/" in line][1:]
                           and [line for line in log().splitlines() if "/w/closed/" in line],
                           5, "two lines")
        self.assertEqual(len(lines), 2, lines)
        self.assertIn("gateway: unauthorized: GET /w/closed/ from 127.0.0.1", lines[0])
        self.assertIn("token none", lines[0])
        self.assertIn("token 0123456789abcdef", lines[1])
        self.assertNotIn("zzz", log())

    def test_results_have_stdout_and_stderr_always(self):
        node = self.node
        node.deploy({"id": "bytes", "kind": "command", "access": "public",
                     "command": ["sh", "-c", "printf 'a\\377'"]})
        result = node.get("/w/bytes/", {"Accept": "application/json"}).json()
        self.assertEqual((result["stdout"], result["stderr"]), ("a\ufffd", ""))
        self.assertEqual(base64.b64decode(result["stdout_base64"]), b"a\xff")

    def test_exit_codes_are_those_of_code_that_ended_by_itself(self):
        node = self.node
        node.cli("run", "--", "sh", "-c", "kill -9 $$", check=False)
        node.cli("run", "--timeout", "300ms", "--", "sleep", "9", check=False)
        node.deploy(server_spec("deaf", timeouts={"start": "500ms"},
                                command=["sleep", "1000"]), server(PLAIN))
        self.assertEqual(node.get("/w/deaf/").error, "start_timeout")
        ended = wait_until(lambda: (lambda all: all if len(all) >= 3 else None)(
            [i for i in node.ps("-a") if i["state"] == "ended" and i["reason"] in
             ("exited", "timed_out", "start_timeout") and i["exit_code"] != 0]), 10, "three ends")
        codes = {i["reason"]: i["exit_code"] for i in ended}
        self.assertEqual(codes, {"exited": 137, "timed_out": None, "start_timeout": None})

    def test_an_invoke_token_is_enough_for_invoke(self):
        node = self.node
        node.deploy(server_spec("scoped", access="private"), server(PLAIN))
        token = node.cli("token", "create", "--workload", "scoped").stdout.decode().strip()
        environment = {"SKERRY_TOKEN": token, "SKERRY_ADDR": "127.0.0.1:%d" % node.api_port}
        done = node.cli("invoke", "scoped", environment=environment)
        self.assertTrue(done.stdout)
        refused = node.cli("ps", environment=environment, check=False)
        self.assertEqual(refused.returncode, 5)

    def test_problems_name_the_value_and_the_remedy(self):
        node = self.node
        node.deploy(server_spec("hangs", timeouts={"request": "300ms"}), server(PLAIN))
        node.get("/w/hangs/")
        self.assertIn("hangs took longer than its timeouts.request of 300ms",
                      node.get("/w/hangs/hang").json()["detail"])
        node.deploy(server_spec("rooms", join={"key": "header:X-Room"}), server(PLAIN))
        self.assertIn("join.key of rooms is header:X-Room",
                      node.get("/w/rooms/").json()["detail"])

    def test_bounds_are_named_as_they_are_written(self):
        node = self.node
        path = "/w/bounds/"
        node.deploy(server_spec("bounds"), server(PLAIN))
        head = ("POST %s HTTP/1.1\r\nHost: x\r\n" % path).encode()
        for request, text in (
                (head + b"A: " + b"a" * 70000 + b"\r\n\r\n", b"64K (gateway.header_max)"),
                (head + b"Content-Length: 2000000000\r\n\r\n", b"1G (gateway.body_max)")):
            self.assertIn(text, node.raw(request))
        nobody = "0zzzzzzzzzzzzzzzz1"
        self.assertIn("no instance has the id " + nobody,
                      node.get("/i/%s/" % nobody).json()["detail"])
        for words, text in (
                (("run", "--memory", "64G", "--", "true"),
                 b"memory: 64G is above 16G, the most that runner.yaml allows"),
                (("run", "--io", "1K", "--", "true"), b"limits.io: 1K is not possible"),
                (("run", "--timeout", "300ms", "--", "sleep", "9"), b"its --timeout of 300ms"),
                (("image", "import", "host", "/etc"), b"host is built in"),
                (("image", "import", "aa", "/nowhere"),
                 b"skerry: open /nowhere: No such file or directory")):
            done = node.cli(*words, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(text, done.stderr)
        i = node.get(path).instance
        self.assertRegex(node.cli("explain", i).stdout.decode(), r"reserved   epoch 1\.\d+ by node1")
        self.assertTrue(node.cli("status", "--help").stdout.startswith(b"skerry status\n"))

    def test_the_api_says_what_it_allows(self):
        answer = self.node.request("GET", "/v1/run", port=self.node.api_port,
                                   headers={"Host": "127.0.0.1"})
        self.assertEqual((answer.status, answer.header("Allow")), (405, "POST"))

        form = {"Content-Type": "application/x-www-form-urlencoded"}
        token = self.node.cli("token", "create", "--role", "deploy").stdout.decode().strip()
        answer = self.node.request("POST", "/v1/run", port=self.node.api_port,
                                   body=b'{"command":["true"]}',
                                   headers=dict(form, **{"Skerry-Token": token}))
        self.assertEqual(answer.status, 400)
        self.assertIn("Content-Type: application/json", answer.json()["detail"])

    def test_what_is_not_there_is_named(self):
        node = self.node
        path = node.path("lost.json")
        for key, value, text in (("source", "./lost", b"lost.json: source: ./lost: No such file"),
                                 ("image", "lost", b"skerry image import lost DIR|FILE")):
            with open(path, "w") as f:
                json.dump({"id": "lost", "command": ["a"], "port": 80, key: value}, f)
            done = node.cli("deploy", path, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(text, done.stderr)


if __name__ == "__main__":
    unittest.main()
