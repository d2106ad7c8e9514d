"""The main job: the first request starts an instance, later ones join it."""
import json
import threading
import unittest

from cluster import Node, server, server_spec, wait_until

HELLO = """
def handle(h):
    if h.path.startswith("/headers"):
        h.say(json.dumps({"path": h.path, "headers": h.headers.items(),
                          "key": os.environ.get("SKERRY_KEY"),
                          "instance": os.environ.get("SKERRY_INSTANCE")}))
    elif h.path.startswith("/echo"):
        h.say(h.body())
    elif h.path.startswith("/exit"):
        os._exit(3)
    elif h.path.startswith("/cut"):
        h.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000\\r\\n\\r\\npart")
        h.wfile.flush(); os._exit(4)
    elif h.path.startswith("/bad"):
        h.wfile.write(b"this is no HTTP\\r\\n\\r\\n"); h.close_connection = True
    elif h.path.startswith("/slow"):
        time.sleep(5); h.say("late")
    elif h.path.startswith("/stream"):
        h.send_response(200); h.send_header("Transfer-Encoding", "chunked"); h.end_headers()
        for k in range(3):
            h.wfile.write(b"5\\r\\nev%03d\\r\\n" % k); h.wfile.flush(); time.sleep(0.2)
        h.wfile.write(b"0\\r\\nX-Sum: 3\\r\\n\\r\\n")
    else:
        h.say("hello from %d\\n" % os.getpid())
"""


BUSY = """
held = b"x" * (64 << 20)
until = time.process_time() + 0.2
while time.process_time() < until: pass
def handle(h): h.say("x")
"""


class Joins(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()
        cls.node.deploy(server_spec("hello"), server(HELLO))
        cls.node.deploy(server_spec("private", access="private"), server(HELLO))
        cls.node.deploy(server_spec("rooms", join={"key": "header:X-Room", "max_joiners": 50}),
                        server(HELLO))
        cls.node.deploy(server_spec("brief", timeouts={"start": "20s", "first_byte": "500ms"}),
                        server(HELLO))

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def test_first_request_starts_and_second_joins(self):
        node = self.node
        node.deploy(server_spec("fresh"), server(HELLO))
        first = node.get("/w/fresh/")
        self.assertEqual((first.status, first.start), (200, "cold"))
        self.assertIn("Server-Timing", dict(first.headers))
        second = node.get("/w/fresh/")
        self.assertEqual((second.status, second.start), (200, "join"))
        self.assertEqual(first.instance, second.instance)
        self.assertEqual(first.body, second.body)
        self.assertEqual(first.header("Skerry-Node"), "node1")

    def test_host_names_path_and_header_reach_the_same_instance(self):
        node = self.node
        i = node.get("/w/hello/").instance
        by_host = node.get("/", {"Host": "hello.localhost:%d" % node.http_port})
        self.assertEqual((by_host.status, by_host.instance), (200, i))
        by_id_host = node.get("/", {"Host": i + ".localhost"})
        self.assertEqual((by_id_host.status, by_id_host.instance), (200, i))
        by_id = node.get("/i/%s/" % i)
        self.assertEqual((by_id.status, by_id.instance), (200, i))
        by_header = node.get("/w/hello/", {"Skerry-Instance": i})
        self.assertEqual((by_header.status, by_header.instance), (200, i))

    def test_prefix_is_stripped_and_told(self):
        answer = self.node.get("/w/hello/headers?x=%2F1").json()
        self.assertEqual(answer["path"], "/headers?x=%2F1")
        headers = {k.lower(): v for k, v in answer["headers"]}
        self.assertEqual(headers["x-forwarded-prefix"], "/w/hello")
        self.assertEqual(headers["x-forwarded-for"], "127.0.0.1")
        self.assertIn("traceparent", headers)

    def test_forwarded_headers_cannot_be_forged(self):
        answer = self.node.get("/w/hello/headers", {"X-Forwarded-For": "6.6.6.6"}).json()
        headers = {k.lower(): v for k, v in answer["headers"]}
        self.assertEqual(headers["x-forwarded-for"], "127.0.0.1")

    def test_unknown_workload_and_instance(self):
        for path, code in (("/w/nosuch/", "workload_unknown"),
                           ("/i/00000000000000000%s/" % "1", "instance_unknown")):
            answer = self.node.get(path)
            self.assertEqual((answer.status, answer.error), (404, code))
            problem = answer.json()
            self.assertEqual(problem["code"], code)
            self.assertEqual(problem["ran"], "no")
            self.assertTrue(problem["request_id"])

    def test_stopped_instance_is_gone_with_its_reason(self):
        node = self.node
        node.deploy(server_spec("stopped"), server(HELLO))
        i = node.get("/w/stopped/").instance
        node.cli("stop", i)
        answer = node.get("/i/%s/" % i)
        self.assertEqual((answer.status, answer.error), (410, "instance_gone"))
        self.assertIn("killed", answer.json()["detail"])
        again = node.get("/w/stopped/")
        self.assertEqual((again.status, again.start), (200, "cold"))
        self.assertNotEqual(again.instance, i)

    def test_private_workload_wants_a_token_which_the_code_never_sees(self):
        node = self.node
        answer = node.get("/w/private/headers")
        self.assertEqual((answer.status, answer.error), (401, "unauthorized"))
        made = json.loads(node.cli("token", "create", "--role", "invoke", "--json").stdout)
        token = made["token"]
        for headers in ({"Skerry-Token": token}, {"Authorization": "Bearer " + token}):
            answer = node.get("/w/private/headers", headers)
            self.assertEqual(answer.status, 200, answer)
            self.assertNotIn(token, answer.body.decode())
            self.assertNotIn("skt_", answer.body.decode())
        scoped = json.loads(node.cli("token", "create", "--role", "invoke", "--workload", "hello",
                                     "--json").stdout)["token"]
        answer = node.get("/w/private/", {"Skerry-Token": scoped})
        self.assertEqual((answer.status, answer.error), (403, "forbidden"))
        node.cli("token", "revoke", made["id"])
        wait_until(lambda: node.get("/w/private/", {"Skerry-Token": token}).status == 401, 5,
                   "the revoked token is refused")

    def test_other_authorization_passes(self):
        answer = self.node.get("/w/hello/headers", {"Authorization": "Basic dTpw"}).json()
        headers = {k.lower(): v for k, v in answer["headers"]}
        self.assertEqual(headers["authorization"], "Basic dTpw")

    def test_keyed_rooms(self):
        node = self.node
        self.assertEqual(node.get("/w/rooms/").error, "key_missing")
        rooms = {}
        lock = threading.Lock()

        def visit(room):
            answer = node.get("/w/rooms/headers", {"X-Room": room})
            with lock:
                rooms.setdefault(room, set()).add((answer.status, answer.instance,
                                                   answer.json()["key"]))
        threads = [threading.Thread(target=visit, args=("r%d" % (k % 3),)) for k in range(24)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(sorted(rooms), ["r0", "r1", "r2"])
        for room, seen in rooms.items():
            self.assertEqual(len(seen), 1, (room, seen))
            self.assertEqual(next(iter(seen))[0::2], (200, room))

    def test_bodies_go_through_untouched(self):
        body = bytes(range(256)) * 4096
        answer = self.node.request("POST", "/w/hello/echo", body=body)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.body, body)

    def test_stream_and_trailers(self):
        raw = self.node.raw(b"GET /w/hello/stream HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n"
                            b"Connection: close\r\n\r\n")
        self.assertIn(b"ev000", raw)
        self.assertTrue(raw.endswith(b"0\r\nX-Sum: 3\r\n\r\n"), raw[-200:])

    def test_code_that_exits_instead_of_answering(self):
        answer = self.node.get("/w/hello/exit")
        self.assertEqual((answer.status, answer.error), (502, "instance_exited"))
        self.assertEqual(answer.json()["ran"], "yes")

    def test_code_that_stops_in_the_middle_breaks_the_transfer(self):
        self.node.get("/w/hello/")
        raw = self.node.raw(b"GET /w/hello/cut HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"Content-Length: 1000", raw)
        self.assertLess(len(raw.split(b"\r\n\r\n", 1)[1]), 1000)

    def test_malformed_answer_is_named(self):
        answer = self.node.get("/w/hello/bad")
        self.assertEqual((answer.status, answer.error), (502, "instance_bad_answer"))

    def test_first_byte_timeout_is_named(self):
        answer = self.node.get("/w/brief/slow")
        self.assertEqual((answer.status, answer.error), (504, "first_byte_timeout"))

    def test_shown_by_ps_and_explain(self):
        node = self.node
        i = node.get("/w/hello/").instance
        shown = [x for x in node.ps() if x["id"] == i]
        self.assertEqual(len(shown), 1)
        self.assertEqual((shown[0]["workload"], shown[0]["state"]), ("hello", "ready"))
        text = node.cli("explain", i[:8]).stdout.decode()
        for word in ("asked", "reserved", "sandbox", "ready"):
            self.assertIn(word, text)

    def test_what_was_used_is_known_of_instances_and_workloads(self):
        node = self.node
        node.deploy(server_spec("used"), server(BUSY))

        def of_workload():
            return node.api("GET", "/v1/workloads/used").json()["usage"]
        self.assertEqual(of_workload()["instances"], 0)
        ids = []
        for number in (1, 2):
            i = node.get("/w/used/").instance
            ids.append(i)
            node.cli("stop", i)
            used = node.api("GET", "/v1/instances/" + i).json()["usage"]
            self.assertGreater(used["cpu_seconds"], 0.2)
            self.assertGreater(used["wall_seconds"], 0.2)
            self.assertGreater(used["memory_peak_bytes"], 60 << 20)
            # The peak times the time, in GiB and seconds.
            self.assertAlmostEqual(used["memory_gib_seconds"], used["wall_seconds"]
                                   * used["memory_peak_bytes"] / (1 << 30), delta=0.01)
            wait_until(lambda n=number: of_workload()["instances"] == n, 5, "it is counted")
        self.assertIn("s of CPU", node.cli("explain", ids[0]).stdout.decode())
        total = of_workload()
        each = [node.api("GET", "/v1/instances/" + i).json()["usage"] for i in ids]
        for name in ("cpu_seconds", "wall_seconds", "memory_gib_seconds"):
            self.assertAlmostEqual(total[name], sum(u[name] for u in each), places=5)
        self.assertEqual(total["memory_peak_bytes"], max(u["memory_peak_bytes"] for u in each))
        self.assertIn("# ended so far: 2, which ran ", node.cli("workload", "show", "used")
                      .stdout.decode())


if __name__ == "__main__":
    unittest.main()
