"""Window, idle, max, exit, oom, start: each end with its own reason."""
import json
import threading
import time
import unittest

from cluster import Node, processes_of, server, server_spec, wait_until

PLAIN = """
def handle(h):
    if h.path == "/eat":
        hog = []
        while True: hog.append(bytearray(1 << 20))
    if h.path == "/hold":
        time.sleep(2.5)
    h.say(os.environ["SKERRY_INSTANCE"])
"""


class Life(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def ended(self, instance, seconds=15):
        def look():
            for shown in self.node.ps("-a"):
                if shown["id"] == instance and shown["state"] == "ended":
                    return shown
            return None
        return wait_until(look, seconds, "%s ends" % instance)

    def test_idle(self):
        node = self.node
        node.deploy(server_spec("idle", life={"idle": "500ms"}), server(PLAIN))
        i = node.get("/w/idle/").instance
        self.assertEqual(self.ended(i)["reason"], "idle")
        answer = node.get("/i/%s/" % i)
        self.assertEqual(answer.status, 410)
        self.assertIn("idle", answer.json()["detail"])
        wait_until(lambda: not processes_of(i), 5, "its processes are gone")

    def test_life_max(self):
        node = self.node
        node.deploy(server_spec("short", life={"max": "3s"}, timeouts={"start": "20s",
                                                                       "drain": "1s"}),
                    server(PLAIN))
        i = node.get("/w/short/").instance
        self.assertEqual(self.ended(i)["reason"], "expired")

    def test_extend(self):
        node = self.node
        node.deploy(server_spec("longer", life={"max": "4s", "idle": "none"}), server(PLAIN))
        i = node.get("/w/longer/").instance
        node.cli("extend", i, "1h")
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 4.5, 10, "the first end has passed")
        self.assertEqual(node.get("/i/%s/" % i).status, 200)

    def test_window(self):
        node = self.node
        node.deploy(server_spec("window", join={"window": "2s"}), server(PLAIN))
        first = node.get("/w/window/")
        self.assertEqual(node.get("/w/window/").instance, first.instance)
        held = []
        t = threading.Thread(target=lambda: held.append(node.get("/w/window/hold")))
        t.start()
        other = wait_until(lambda: (lambda a: a if a.instance != first.instance else None)(
            node.get("/w/window/")), 10, "the window ends and another instance starts")
        self.assertEqual(other.status, 200)
        t.join()
        # The joiner inside was served to its end; then the instance ended.
        self.assertEqual((held[0].status, held[0].instance), (200, first.instance))
        self.assertEqual(self.ended(first.instance)["reason"], "expired")

    def test_oom(self):
        node = self.node
        node.deploy(server_spec("hungry", deploy={"resources": {"limits": {"memory": "64M"}}}),
                    server(PLAIN))
        i = node.get("/w/hungry/").instance
        answer = node.get("/w/hungry/eat")
        self.assertEqual((answer.status, answer.error), (503, "instance_oom"))
        self.assertEqual(answer.json()["ran"], "yes")
        self.assertEqual(self.ended(i)["reason"], "oom")

    def test_exit_before_ready_gives_the_last_line(self):
        node = self.node
        node.deploy(server_spec("crash"), {"main.py": "import sys\nsys.exit('no database here')\n"})
        begun = time.monotonic()
        answer = node.get("/w/crash/")
        self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual((answer.status, answer.error), (502, "start_failed"))
        self.assertIn("no database here", answer.json()["detail"])

    def test_wrong_port_is_named(self):
        node = self.node
        spec = server_spec("wrong", timeouts={"start": "4s"})
        node.deploy(spec, {"main.py": server(PLAIN)["main.py"].replace(
            'int(os.environ["PORT"])', "3000")})
        answer = node.get("/w/wrong/")
        self.assertEqual((answer.status, answer.error), (504, "start_timeout"))
        self.assertIn("3000", answer.json()["detail"])

    def test_never_listens(self):
        node = self.node
        node.deploy(server_spec("deaf", timeouts={"start": "1s"}),
                    {"main.py": "import time\ntime.sleep(1000)\n"})
        answer = node.get("/w/deaf/")
        self.assertEqual((answer.status, answer.error), (504, "start_timeout"))

    def test_listens_on_ipv6_alone(self):
        node = self.node
        source = server(PLAIN)["main.py"].replace('S(("",', 'import socket\nS.address_family = '
                                                  'socket.AF_INET6\nS(("::1",')
        node.deploy(server_spec("six"), {"main.py": source})
        self.assertEqual(node.get("/w/six/").status, 200)

    def test_idle_min_keeps_one_ahead(self):
        node = self.node
        node.deploy(server_spec("ahead", scale={"idle_min": 1}), server(PLAIN))
        wait_until(lambda: any(x["workload"] == "ahead" and x["state"] == "ready"
                               for x in node.ps()), 10, "one is kept ahead")
        answer = node.get("/w/ahead/")
        self.assertEqual(answer.status, 200)
        self.assertIn(answer.start, ("pool", "join"))
        node.cli("workload", "rm", "ahead")

    def test_new_version_replaces_the_old(self):
        node = self.node
        node.deploy(server_spec("rolled"), server(PLAIN))
        first = node.get("/w/rolled/").instance
        node.deploy(server_spec("rolled", environment={"X": "1"}), server(PLAIN))
        second = wait_until(lambda: (lambda a: a if a.instance != first else None)(
            node.get("/w/rolled/")), 10, "the new version answers")
        self.assertEqual(second.status, 200)
        self.assertEqual(self.ended(first)["reason"], "drained")
        node.cli("workload", "rollback", "rolled")
        versions = json.loads(node.cli("workload", "show", "rolled", "--json").stdout)
        self.assertEqual(versions["version"], 3)

    def test_removed_workload_is_unknown(self):
        node = self.node
        node.deploy(server_spec("removed"), server(PLAIN))
        i = node.get("/w/removed/").instance
        node.cli("workload", "rm", "removed")
        wait_until(lambda: node.get("/w/removed/").error == "workload_unknown", 5, "404")
        self.assertEqual(self.ended(i)["reason"], "drained")

    def test_command_workload(self):
        node = self.node
        node.deploy({"id": "judge", "kind": "command", "access": "public",
                     "command": ["python3", "-"], "timeouts": {"request": "4s"}})
        answer = node.request("POST", "/w/judge/", body=b"print(6*7)")
        self.assertEqual((answer.status, answer.body), (200, b"42\n"))
        self.assertEqual(answer.header("Skerry-Exit-Code"), "0")
        answer = node.request("POST", "/w/judge/", body=b"import sys; sys.exit(3)")
        self.assertEqual((answer.status, answer.header("Skerry-Exit-Code")), (200, "3"))
        result = node.request("POST", "/w/judge/", headers={"Accept": "application/json"},
                              body=b"while True: pass").json()
        self.assertTrue(result["timed_out"], result)
        events = node.request("POST", "/w/judge/", headers={"Accept": "text/event-stream"},
                              body=b"import sys; print('o'); print('e', file=sys.stderr)").body
        self.assertIn(b"event: stdout", events)
        self.assertIn(b"event: stderr", events)
        self.assertEqual(events.decode().strip().split("\n\n")[-1].split("\n")[0], "event: exit")

    def test_logs(self):
        node = self.node
        node.deploy(server_spec("talks"), server(
            "print('begins', flush=True)\ndef handle(h):\n"
            "    print('asked', h.path, flush=True); h.say('x')\n"))
        i = node.get("/w/talks/one").instance
        wait_until(lambda: b"asked /one" in node.cli("logs", i).stdout, 5, "the line is there")
        self.assertIn(b"begins", node.cli("logs", i).stdout)
        node.cli("stop", i)
        self.assertIn(b"asked /one", node.cli("logs", i).stdout)
        self.assertEqual(len(node.cli("logs", "-n", "1", i).stdout.splitlines()), 1)

    def test_exec_and_files(self):
        node = self.node
        node.deploy(server_spec("inside"), server(PLAIN))
        i = node.get("/w/inside/").instance
        self.assertEqual(node.cli("exec", i, "--", "sh", "-c", "echo $SKERRY_WORKLOAD").stdout,
                         b"inside\n")
        done = node.cli("exec", i, "--", "sh", "-c", "exit 9", check=False)
        self.assertEqual(done.returncode, 9)
        path = node.path("copied.bin")
        data = bytes(range(256)) * 1000
        with open(path, "wb") as f:
            f.write(data)
        node.cli("cp", path, i + ":/tmp/there.bin")
        self.assertEqual(node.cli("exec", i, "--", "cat", "/tmp/there.bin").stdout, data)
        node.cli("cp", i + ":/tmp/there.bin", node.path("back.bin"))
        with open(node.path("back.bin"), "rb") as f:
            self.assertEqual(f.read(), data)


if __name__ == "__main__":
    unittest.main()
