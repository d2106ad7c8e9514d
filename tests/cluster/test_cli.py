"""The command line: listings, exit codes, terminals, files."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import tarfile
import tempfile
import termios
import time
import unittest

from cluster import SKERRY, Node, free_port, sanitized, server, server_spec, wait_until

HELLO = 'def handle(h): print("asked", h.path, flush=True); h.say("hello\\n")'


class Commands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()
        cls.node.deploy(server_spec("hello"), server(HELLO))
        cls.folder = tempfile.mkdtemp(dir=cls.node.directory)

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def cli(self, *arguments, code=0, **more):
        done = self.node.cli(*arguments, check=False, **more)
        self.assertEqual(done.returncode, code, (arguments, done.stdout, done.stderr))
        return done

    def instance(self):
        answer = self.node.get("/w/hello/")
        self.assertEqual(answer.status, 200, answer.body)
        return answer.instance

    # --- help and exit codes

    def test_every_command_has_help(self):
        listing = self.cli("--help").stdout.decode()
        names = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  ", listing, re.M)
        self.assertGreater(len(names), 25)
        for name in names:
            if name == "runner":
                continue  # a program of its own
            text = self.cli(*name.split(), "--help").stdout.decode()
            self.assertTrue(text.startswith("skerry " + name), text)
            self.assertIn("--help", text)
        for noun in ("workload", "image", "token"):
            self.assertIn("list", self.cli(noun, "--help").stdout.decode())

    def test_usage_is_2(self):
        for words in (["nonsense"], ["status", "--nonsense"], ["deploy"], ["ps", "one", "two"],
                      ["stop"], ["extend", "1"], ["workload", "nonsense"], ["workload"], [],
                      ["token", "create", "--role", "king"], ["invoke", "Not_a_name"],
                      ["cp", "here", "there"], ["logs", "not-an-id"]):
            self.cli(*words, code=2)

    def test_not_found_is_3(self):
        self.cli("workload", "show", "nobody", code=3)
        self.cli("invoke", "nobody", code=3)
        self.cli("logs", "0zzzz", code=3)
        self.cli("image", "rm", "nobody", code=3)
        self.cli("deploy", "/nowhere.yaml", code=3)
        i = self.instance()
        self.cli("stop", i)
        self.cli("invoke", "hello", "--instance", i, code=3)

    def test_no_node_is_4(self):
        nowhere = "127.0.0.1:%d" % free_port()
        done = self.cli("status", "--addr", nowhere, code=4)
        self.assertIn(nowhere.encode(), done.stderr)
        self.cli("run", "--addr", nowhere, "--", "true", code=125)
        for path in ("/nowhere/api.sock", "/nowhere/" + 30 * "long"):
            done = self.cli("run", "--addr", "unix:" + path, "--", "true", code=125)
            self.assertIn(path.encode(), done.stderr)

    @unittest.skipIf(sanitized() or os.uname().machine != "x86_64", "loads all with the program")
    def test_most_libraries_are_loaded_when_they_are_needed(self):
        def loaded(*arguments):
            done = self.cli(*arguments, environment={"LD_DEBUG": "files"})
            return set(re.findall(rb"file=(lib(?:curl|ssl|ssh|archive|microhttpd))\.so", done.stderr))
        self.assertEqual(loaded("version"), set())
        self.assertEqual(loaded("run", "--", "true"), set())
        self.assertIn(b"libcurl", loaded("status"))

    def test_unauthorized_is_5(self):
        api = "127.0.0.1:%d" % self.node.api_port
        self.cli("status", "--addr", api, code=5)
        token = self.cli("token", "create", "--role", "invoke").stdout.decode().strip()
        path = os.path.join(self.folder, "token")
        with open(path, "w") as f:
            f.write(token + "\n")
        self.cli("ps", "--addr", api, "--token-file", path, code=5)
        admin = self.cli("token", "create", "--role", "admin").stdout.decode().strip()
        with open(path, "w") as f:
            f.write(admin)
        self.cli("ps", "--addr", api, "--token-file", path)
        environment = dict(self.node.environment(), SKERRY_TOKEN=admin,
                           SKERRY_ADDR="http://" + api)
        done = subprocess.run([SKERRY, "status", "--json"], env=environment, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_refused_for_now_is_6(self):
        self.node.deploy(server_spec("narrow", join={"max_joiners": 1}, scale={"max": 1, "queue": 0}),
                         server('def handle(h): time.sleep(2); h.say("done")'))
        first = subprocess.Popen([SKERRY, "invoke", "narrow"], env=self.node.environment(),
                                 stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: any(i["workload"] == "narrow" and i["joiners"] == 1
                                   for i in self.node.ps()), 20, "the first is inside")
            done = self.cli("invoke", "narrow", code=6)
            self.assertIn(b"queue_full", done.stdout)
        finally:
            first.wait(30)

    # --- listings

    def test_ps(self):
        i = self.instance()
        listed = self.node.ps()
        mine = [x for x in listed if x["id"] == i]
        self.assertEqual(len(mine), 1)
        self.assertEqual(mine[0]["state"], "ready")
        self.assertEqual(mine[0]["workload"], "hello")
        for key in ("version", "node", "joiners", "max_joiners", "epoch", "key", "tenant",
                    "started_at", "ended_at", "reason", "exit_code"):
            self.assertIn(key, mine[0])
        self.assertIn(i, self.cli("ps", "-q").stdout.decode().split())
        self.assertEqual(self.cli("ps", "-q", "nobody").stdout, b"")
        table = self.cli("ps", "hello").stdout.decode().splitlines()
        self.assertTrue(table[0].startswith("ID "))
        column = table[0].index("WORKLOAD")
        for row in table[1:]:
            self.assertEqual(row[column:column + 5], "hello")
            self.assertTrue(i.startswith(row.split()[0]) or len(table) > 2)
        self.cli("stop", i)
        self.assertNotIn(i, self.cli("ps", "-q").stdout.decode())
        ended = [x for x in self.node.ps("-a") if x["id"] == i][0]
        self.assertEqual((ended["state"], ended["reason"]), ("ended", "killed"))

    def test_no_escape_sequence_where_no_terminal_is(self):
        for words in (["status"], ["ps", "-a"], ["doctor"], ["workload", "list"]):
            done = self.node.cli(*words, check=False)
            self.assertNotIn(b"\033", done.stdout)

    def test_status(self):
        status = self.node.status()
        self.assertTrue(status["healthy"])
        self.assertEqual(status["leader"], status["nodes"][0]["name"])
        for key in ("cluster", "term", "commit_index", "warnings"):
            self.assertIn(key, status)
        node = status["nodes"][0]
        self.assertTrue(0 < node["memory_used_bytes"] < node["memory_bytes"], node)
        self.assertTrue(0 <= node["cpus_used"] <= node["cpus"], node)
        metrics = self.node.request("GET", "/metrics", port=self.node.api_port, headers={
            "Skerry-Token": self.cli("token", "create", "--role", "admin").stdout.decode().strip()})
        self.assertRegex(metrics.body, rb"\nskerry_node_memory_used_bytes [1-9]")
        text = self.cli("status").stdout.decode()
        self.assertRegex(text.splitlines()[0], r"HEALTHY  1 of 1 voters .*leader .*term \d+")
        self.assertRegex(text.splitlines()[2], r"^NODE +STATE +ROLE +PEER")

    def test_listings_are_json_on_request(self):
        for words in (["workload", "list"], ["image", "list"], ["token", "list"], ["ps"]):
            self.assertIsInstance(json.loads(self.cli(*words, "--json").stdout), list, words)
        self.assertIn("version", json.loads(self.cli("version", "--json").stdout))
        checks = json.loads(self.node.cli("doctor", "--json", check=False).stdout)
        self.assertIn("kernel", [c["check"] for c in checks])
        self.assertIn("summary", json.loads(self.cli("explain", "hello", "--json").stdout))

    def test_events(self):
        i = self.instance()
        self.cli("stop", i)
        lines = [json.loads(x) for x in self.cli("events", "--json").stdout.splitlines()]
        kinds = [x["kind"] for x in lines if x["instance"] == i]
        self.assertIn("instance_ended", kinds)
        self.assertIn(i.encode(), self.cli("events").stdout)

    # --- workloads

    def test_what_is_shown_can_be_deployed_again(self):
        text = self.cli("workload", "show", "hello").stdout
        self.assertIn(b"max_joiners", text)
        done = self.cli("deploy", "-", stdin=text)
        self.assertIn(b"unchanged", done.stdout)

    def test_dry_run_registers_nothing(self):
        spec = b"id: dry\ncommand: [python3]\nport: 80\n"
        self.assertIn(b"would be deployed", self.cli("deploy", "-", "--dry-run", stdin=spec).stdout)
        self.cli("workload", "show", "dry", code=3)

    def test_of_a_folder_with_a_mistake_nothing_is_deployed(self):
        folder = tempfile.mkdtemp(dir=self.node.directory)
        with open(os.path.join(folder, "a.yaml"), "w") as f:
            f.write("id: first\ncommand: [python3]\nport: 80\n")
        with open(os.path.join(folder, "b.yaml"), "w") as f:
            f.write("id: second\ncommand: [python3]\nport: 80\nnetwork_mode: host\n")
        done = self.cli("deploy", folder, code=1)
        self.assertRegex(done.stderr.decode(), r"b\.yaml:4: network_mode: unknown key.*Compose")
        self.cli("workload", "show", "first", code=3)

    def test_versions_roll_back(self):
        spec = {"id": "rolling", "command": ["python3"], "port": 80}
        self.cli("deploy", "-", stdin=json.dumps(spec))
        self.cli("deploy", "-", stdin=json.dumps(dict(spec, port=81)))
        self.assertIn(b"v3", self.cli("workload", "rollback", "rolling").stdout)
        shown = json.loads(self.cli("workload", "show", "rolling", "--json").stdout)
        self.assertEqual(shown["spec"]["port"], 80)
        self.cli("workload", "rm", "rolling")
        self.cli("workload", "show", "rolling", code=3)

    def test_deploy_waits_for_what_is_kept_ahead(self):
        folder = tempfile.mkdtemp(dir=self.node.directory)
        with open(os.path.join(folder, "main.py"), "w") as f:
            f.write(server(HELLO)["main.py"])
        spec = server_spec("ahead", scale={"idle_min": 1, "max": 2}, source="main.py")
        with open(os.path.join(folder, "ahead.json"), "w") as f:
            json.dump(spec, f)
        self.cli("deploy", "--wait", os.path.join(folder, "ahead.json"))
        self.assertIn("ready", [i["state"] for i in self.node.ps("ahead")])
        self.cli("workload", "rm", "ahead")

    # --- joins, logs, files

    def test_invoke(self):
        done = self.cli("invoke", "hello", "/x?y=1", "-i")
        self.assertIn(b"HTTP/1.1 200 OK", done.stdout)
        self.assertIn(b"Skerry-Instance: ", done.stdout)
        self.assertTrue(done.stdout.endswith(b"hello\n"))
        i = self.instance()
        self.cli("invoke", "hello", "--instance", i[:8])
        self.node.deploy(server_spec("mirror"), server(
            'def handle(h): h.say(h.command + " " + h.headers.get("X-A", "") + " ", 200)\n'
            'H.do_POST = lambda h: h.say(b"got " + h.body())'))
        self.assertEqual(self.cli("invoke", "mirror", "-H", "X-A: b").stdout, b"GET b ")
        self.assertEqual(self.cli("invoke", "mirror", "-d", "@-", stdin=b"body").stdout, b"got body")
        self.assertEqual(self.cli("invoke", "mirror", "-d", "text").stdout, b"got text")

    def test_logs(self):
        i = self.instance()
        self.cli("invoke", "hello", "/one", "--instance", i)
        self.cli("invoke", "hello", "/two", "--instance", i)
        wait_until(lambda: b"/two" in self.cli("logs", i[:10]).stdout, 10, "the log")
        self.assertEqual(self.cli("logs", "-n", "1", i).stdout, b"asked /two\n")
        record = json.loads(self.cli("logs", "--json", "-n", "1", i).stdout)
        self.assertEqual((record["stream"], record["text"]), ("stdout", "asked /two"))
        follower = subprocess.Popen([SKERRY, "logs", "-f", "-n", "0", i], stdout=subprocess.PIPE,
                                    env=self.node.environment())
        try:
            deadline = time.monotonic() + 20
            seen = b""
            while b"/three" not in seen and time.monotonic() < deadline:
                self.cli("invoke", "hello", "/three", "--instance", i)
                if select.select([follower.stdout], [], [], 0.2)[0]:
                    seen += os.read(follower.stdout.fileno(), 4096)
            self.assertIn(b"asked /three", seen)
            self.cli("stop", i)
            self.assertEqual(follower.wait(20), 0)  # it goes on until the instance ends
        finally:
            follower.kill()
            follower.stdout.close()
        self.assertIn(b"asked /two", self.cli("logs", i).stdout)

    def test_exec(self):
        i = self.instance()
        done = self.cli("exec", "-e", "A=b", i, "--", "sh", "-c", "cat; echo $A >&2; exit 3",
                        code=3, stdin=b"in")
        self.assertEqual((done.stdout, done.stderr), (b"in", b"b\n"))
        self.cli("exec", "0zzzz", "--", "true", code=125)

    def test_cp(self):
        i = self.instance()
        tree = os.path.join(self.folder, "tree")
        os.makedirs(os.path.join(tree, "deep", "empty"))
        data = os.urandom(300000)
        with open(os.path.join(tree, "deep", "data"), "wb") as f:
            f.write(data)
        os.chmod(os.path.join(tree, "deep", "data"), 0o751)
        os.symlink("deep/data", os.path.join(tree, "link"))
        self.cli("cp", tree, i + ":/tmp/")           # into a folder, under its name
        self.cli("cp", tree, i + ":/tmp/other")      # under another name
        self.cli("cp", tree, i + ":/tmp/other")      # now it is there: into it
        names = self.cli("exec", i, "--", "find", "/tmp/tree", "/tmp/other/tree").stdout.decode()
        for name in ("/tmp/tree/deep/empty", "/tmp/tree/link", "/tmp/other/tree/deep/data"):
            self.assertIn(name + "\n", names)
        back = os.path.join(self.folder, "back")
        self.cli("cp", i[:9] + ":/tmp/tree", back)
        with open(os.path.join(back, "link"), "rb") as f:
            self.assertEqual(f.read(), data)
        self.assertEqual(os.stat(os.path.join(back, "deep", "data")).st_mode & 0o777, 0o751)
        self.cli("cp", i + ":/tmp/tree/deep/data", self.folder)
        with open(os.path.join(self.folder, "data"), "rb") as f:
            self.assertEqual(f.read(), data)
        self.cli("cp", os.path.join(self.folder, "data"), i + ":/tmp/renamed")
        self.assertEqual(self.cli("exec", i, "--", "cat", "/tmp/renamed").stdout, data)
        archive = os.path.join(self.folder, "archive.tar")
        with open(archive, "wb") as f:
            f.write(self.cli("cp", i + ":/tmp/tree", "-").stdout)
        with tarfile.open(archive) as t:
            self.assertIn("tree/deep/data", t.getnames())
        for words in ([i + ":/nowhere", self.folder], [self.folder + "/nowhere", i + ":/tmp/"],
                      [archive, i + ":/usr/"]):
            done = self.node.cli("cp", *words, check=False)
            self.assertNotEqual(done.returncode, 0, words)

    def test_a_prefix_must_be_unique(self):
        first = self.node.get("/w/hello/").instance
        ids = [x["id"] for x in self.node.ps("-a")]
        for letter in "01234567":
            same = [x for x in ids if x.startswith(letter)]
            if len(same) > 1:
                done = self.cli("logs", letter, code=2)
                self.assertIn(b"more than one", done.stderr)
                break
        length = next(n for n in range(1, 20) if sum(x.startswith(first[:n]) for x in ids) == 1)
        self.assertIn(first.encode(), self.cli("explain", first[:length]).stdout)

    # --- images

    def test_images(self):
        root = os.path.join(self.folder, "root")
        os.makedirs(os.path.join(root, "bin"))
        with open(os.path.join(root, "etc"), "w") as f:
            f.write("a file")
        self.cli("image", "import", "tiny", root)
        listed = json.loads(self.cli("image", "list", "--json").stdout)
        self.assertEqual([x["name"] for x in listed], ["tiny"])
        self.assertIn(b"tiny", self.cli("image", "list").stdout)
        evil = os.path.join(self.folder, "evil.tar")
        with tarfile.open(evil, "w") as t:
            t.addfile(tarfile.TarInfo("../out"))
        done = self.cli("image", "import", "evil", evil, code=1)
        self.assertIn(b"image_invalid", done.stderr)
        self.cli("image", "rm", "tiny")
        self.assertRegex(self.cli("image", "gc").stdout, rb"\d.* freed")

    # --- tokens

    def test_tokens(self):
        token = self.cli("token", "create", "--name", "mine", "--role", "invoke", "--workload",
                         "hello", "--ttl", "1h").stdout.decode().strip()
        self.assertTrue(token.startswith("skt_"))
        listed = json.loads(self.cli("token", "list", "--json").stdout)
        mine = [x for x in listed if x["name"] == "mine"][0]
        self.assertEqual((mine["role"], mine["workload"]), ("invoke", "hello"))
        self.assertNotIn(token.split("_")[2], self.cli("token", "list").stdout.decode())
        self.cli("token", "revoke", mine["id"])
        self.cli("token", "revoke", mine["id"], code=3)


class Terminal(unittest.TestCase):
    """A command at a terminal: raw meanwhile, as it was afterwards."""

    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def start(self, *arguments):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen([SKERRY, *arguments], stdin=self.slave, stdout=self.slave,
                                        stderr=self.slave, env=self.node.environment(),
                                        start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))

    def tearDown(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def wait_for(self, text, seconds=20):
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            self.assertLess(time.monotonic(), deadline, self.seen)
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)
        return self.seen

    def type(self, text):
        os.write(self.master, text)

    def end(self, code):
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            self.assertLess(time.monotonic(), deadline, self.seen)
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 4096)
        self.assertEqual(self.process.returncode, code, self.seen)
        self.assertEqual(termios.tcgetattr(self.slave), self.before)

    def test_shell(self):
        self.start("run", "-it", "--", "sh", "-c", "stty size; echo ready; read line; echo got $line; "
                   "exit 9")
        self.wait_for(b"33 101")
        self.wait_for(b"ready")
        self.assertEqual(termios.tcgetattr(self.slave)[3] & termios.ICANON, 0)
        self.type(b"typed\r")
        self.wait_for(b"got typed")
        self.end(9)

    def test_size_follows(self):
        self.start("run", "-it", "--", "sh", "-c",
                   "trap 'stty size' WINCH; echo ready; while :; do read x && exit 0; done")
        self.wait_for(b"ready")
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 122, 0, 0))
        self.process.send_signal(signal.SIGWINCH)
        self.wait_for(b"44 122")
        self.type(b"\r")
        self.end(0)

    def test_interrupt_is_the_commands(self):
        self.start("run", "-it", "--", "sh", "-c", "trap 'echo caught; exit 4' INT; echo ready; "
                   "while :; do read x; done")
        self.wait_for(b"ready")
        self.type(b"\x03")
        self.wait_for(b"caught")
        self.end(4)

    def test_interrupt_without_terminal_mode_is_forwarded(self):
        self.start("run", "--", "sh", "-c", "trap 'echo caught; exit 4' INT; echo ready; sleep 30 & "
                   "wait")
        self.wait_for(b"ready")
        self.type(b"\x03")
        self.wait_for(b"caught")
        self.end(4)

    def test_a_killed_client_ends_the_sandbox(self):
        self.start("run", "-it", "--", "sh", "-c", "echo ready; sleep 100")
        self.wait_for(b"ready")
        self.assertEqual(len(self.node.ps()), 1)
        self.process.kill()
        wait_until(lambda: not self.node.ps(), 10, "the sandbox is gone")

    def test_hangup_restores_and_ends(self):
        self.start("run", "-it", "--", "sh", "-c", "echo ready; sleep 100")
        self.wait_for(b"ready")
        self.process.send_signal(signal.SIGHUP)
        self.end(129)
        wait_until(lambda: not self.node.ps(), 10, "the sandbox is gone")

    def test_terminal_mode_needs_a_terminal(self):
        self.start("version")
        self.process.wait()
        done = self.node.cli("run", "-t", "--", "true", check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"terminal", done.stderr)


if __name__ == "__main__":
    unittest.main()
