"""Instances and joiners in numbers: cold starts that many share, keys, starts ahead, the queue's order, new
versions, the three timeouts. What is counted is counted by the code inside."""
import asyncio
import collections
import datetime
import json
import socket
import threading
import time
import unittest

from cluster import Node, Nodes, server, server_spec, wait_until

HELD_SECONDS = 5

# Says who it is and how many it holds at the same time.
HOLDS = """
now = 0
peak = 0
lock = threading.Lock()
def handle(h):
    global now, peak
    with lock:
        now += 1
        peak = max(peak, now)
    time.sleep(float(h.path.partition("hold=")[2] or 0))
    with lock:
        now -= 1
    h.say(json.dumps({"instance": os.environ["SKERRY_INSTANCE"], "peak": peak,
                      "version": os.environ.get("VERSION"),
                      "key": os.environ.get("SKERRY_KEY")}))
"""

# Breaks as it is told: before it is ready, or after it.
VERSIONED = "if os.environ.get('BROKEN'): sys.exit('this version is broken')\n" + HOLDS


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.headers.get("skerry-error")

    def __repr__(self):
        return "<%s %s %r>" % (self.status, self.headers, self.body[:300])


async def _get(port, path, headers, timeout):
    async def exchange():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            more = "".join("%s: %s\r\n" % pair for pair in headers.items())
            writer.write(("GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n"
                          % (path, more)).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            lines = [line.partition(": ") for line in head[1:] if line]
            fields = {name.lower(): value for name, _, value in lines}
            return Reply(int(head[0].split()[1]), fields, await reader.read())
        finally:
            writer.close()
    try:
        return await asyncio.wait_for(exchange(), timeout)
    except (OSError, EOFError, asyncio.TimeoutError) as error:
        return Reply(None, {}, repr(error).encode())


def all_at_once(wanted, timeout=120):
    """Replies to [(port, path, headers)], which are asked for at the same time."""
    async def run():
        return await asyncio.gather(*(_get(port, path, headers, timeout)
                                      for port, path, headers in wanted))
    return asyncio.run(run())


class Cold(unittest.TestCase):
    """Three nodes, each with as many user ids as a node of its own has."""
    @classmethod
    def setUpClass(cls):
        cls.nodes = Nodes(3, own_ids=True)
        cls.nodes.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)

    def live(self, workload):
        return [i for i in self.nodes[0].ps() if i["workload"] == workload]

    def known(self, workload):
        for node in self.nodes.nodes:
            wait_until(lambda n=node: n.cli("workload", "show", workload, check=False).returncode
                       == 0, what="%s knows %s" % (node.name, workload))

    def cold(self, name, ports):
        """1,000 first requests, each held by the code."""
        self.nodes[0].deploy(server_spec(name, join={"max_joiners": 50},
                                         timeouts={"start": "60s"},
                                         scale={"max": 40, "queue": 1000, "queue_timeout": "60s"}),
                             server(HOLDS))
        self.known(name)
        begun = time.monotonic()
        replies = all_at_once([(ports[k % len(ports)], "/w/%s/?hold=%d" % (name, HELD_SECONDS), {})
                               for k in range(1000)])
        took = time.monotonic() - begun
        statuses = collections.Counter((r.status, r.error) for r in replies)
        self.assertEqual(statuses, {(200, None): 1000}, next(
            (r for r in replies if r.status != 200), None))
        by_instance = collections.Counter(r.json()["instance"] for r in replies)
        print("        %d instances for 1,000 requests held %d s, in %.1f s; %s"
              % (len(by_instance), HELD_SECONDS, took, sorted(by_instance.values())), flush=True)
        # A place is another's when it was held: fewer instances can do only if it took that long.
        turns = max(1, int(took / HELD_SECONDS))
        self.assertTrue(20 / turns <= len(by_instance) <= 22, by_instance)
        self.assertLessEqual(max(r.json()["peak"] for r in replies), 50)
        for node in self.nodes.nodes: # each knows of its own
            self.assertEqual({i["joiners"] for i in node.ps(name) if i["node"] == node.name} - {0},
                             set())
        self.nodes[0].cli("workload", "rm", name)

    def test_a_thousand_first_requests_at_one_node(self):
        self.cold("cold-one", [self.nodes[0].http_port])

    def test_a_thousand_first_requests_at_all_nodes(self):
        self.cold("cold-all", [n.http_port for n in self.nodes.nodes])

    def test_who_lost_the_last_place_of_scale_max_waits_where_the_instances_are(self):
        """Each node starts one at once, and scale.max is less: whoever asked the losers is served soon."""
        ports = [n.http_port for n in self.nodes.nodes]
        for k in range(6):
            name = "lost-%d" % k
            self.nodes[0].deploy(server_spec(name, join={"max_joiners": 2}, timeouts={"start": "60s"},
                                             scale={"max": 1 + k % 2, "queue": 200,
                                                    "queue_timeout": "50s"}), server(HOLDS))
            self.known(name)
            begun = time.monotonic()
            replies = all_at_once([(ports[k % 3], "/w/%s/?hold=0.01" % name, {})
                                   for k in range(90)])
            took = time.monotonic() - begun
            self.assertEqual(collections.Counter((r.status, r.error) for r in replies),
                             {(200, None): 90}, [r for r in replies if r.status != 200][:1])
            self.assertLessEqual(len({r.json()["instance"] for r in replies}), 1 + k % 2)
            self.assertLess(took, 25)
            self.nodes[0].cli("workload", "rm", name)

    def test_a_key_has_one_instance_in_the_cluster(self):
        self.nodes[0].deploy(server_spec("rooms", join={"key": "header:X-Room", "max_joiners": 200},
                                         timeouts={"start": "60s"}, scale={"max": 60, "queue": 200, "queue_timeout": "60s"}),
                             server(HOLDS))
        self.known("rooms")
        ports = [n.http_port for n in self.nodes.nodes]
        replies = all_at_once([(ports[k % 3], "/w/rooms/", {"Skerry-Key": "one"})
                               for k in range(100)])
        self.assertEqual(collections.Counter(r.status for r in replies), {200: 100}, replies)
        self.assertEqual({(r.json()["instance"], r.json()["key"]) for r in replies},
                         {(replies[0].json()["instance"], "one")})
        # Fifty keys, each asked for at every node.
        replies = all_at_once([(port, "/w/rooms/", {"Skerry-Key": "k%d" % key})
                               for key in range(50) for port in ports])
        self.assertEqual(collections.Counter(r.status for r in replies), {200: 150}, replies)
        found = {(r.json()["key"], r.json()["instance"]) for r in replies}
        self.assertEqual(len(found), 50)
        self.assertEqual(len({instance for _, instance in found}), 50)
        self.assertEqual(len(self.live("rooms")), 51)
        self.nodes[0].cli("workload", "rm", "rooms")

    def test_a_new_version_takes_over_once_it_is_ready(self):
        """Through all nodes, under load: nobody fails, nobody waits for the start."""
        nodes = self.nodes
        spec = server_spec("rolling", environment={"VERSION": "1"}, scale={"max": 3},
                           join={"max_joiners": 50}, timeouts={"start": "30s", "drain": "60s"})
        nodes[0].deploy(spec, server(VERSIONED))
        self.assertEqual(nodes[0].get("/w/rolling/").json()["version"], "1")
        stop = threading.Event()
        seen, failed, slowest = [], [], [0.0]

        def load(node):
            while not stop.is_set():
                begun = time.monotonic()
                answer = node.get("/w/rolling/")
                if answer.status != 200:
                    failed.append(answer)
                else:
                    seen.append((begun, answer.json()["version"]))
                    slowest[0] = max(slowest[0], time.monotonic() - begun)
                time.sleep(0.01)
        threads = [threading.Thread(target=load, args=(n,)) for n in nodes.nodes]
        for t in threads:
            t.start()
        try:
            wait_until(lambda: len(seen) > 50, what="joins")
            # One that never becomes ready: the old one goes on, and explain says why.
            nodes[0].deploy(dict(spec, environment={"VERSION": "2", "BROKEN": "1"}),
                            server(VERSIONED))
            owner = next(n for n in nodes.nodes if n.name == self.live("rolling")[0]["node"])

            def explained():
                told = json.loads(owner.cli("explain", "rolling", "--json").stdout)
                return told if (told.get("here") or {}).get("failed_starts", 0) >= 3 else None
            told = wait_until(explained, 20, "explain tells of failed starts")
            self.assertIn("starts failed in a row; the next is tried in", told["starts"])
            self.assertIn("this version is broken", told["starts"])
            self.assertIn("older instances go on", told["summary"])
            self.assertIn("this version is broken", owner.cli("explain", "rolling").stdout.decode())
            before = len(seen)
            wait_until(lambda: len(seen) > before + 50, what="joins while it fails")
            self.assertEqual({v for _, v in seen}, {"1"})
            # A joiner from before finishes with the old one.
            held = []
            holder = threading.Thread(
                target=lambda: held.append(nodes[1].get("/w/rolling/?hold=4")))
            holder.start()
            wait_until(lambda: sum(i["joiners"] for i in owner.ps()
                                   if i["workload"] == "rolling" and i["version"] == 1) > 0,
                       what="the joiner is inside")
            deployed = time.monotonic()
            nodes[0].cli("workload", "rollback", "rolling", "1")  # the same spec as a new version
            nodes[0].deploy(dict(spec, environment={"VERSION": "4"}), server(VERSIONED))
            wait_until(lambda: seen and seen[-1][1] == "4", 20, "the new version answers")
            holder.join()
            self.assertEqual((held[0].status, held[0].json()["version"]), (200, "1"))
        finally:
            stop.set()
            for t in threads:
                t.join()
        self.assertEqual(failed, [])
        first_new = min(at for at, v in seen if v == "4")
        print("        %d joins, none failed, %.2f s at most; the new version %.2f s after its deploy"
              % (len(seen), slowest[0], first_new - deployed), flush=True)
        wait_until(lambda: {i["version"] for i in self.live("rolling")} == {4}, 20,
                   "the old ones are gone")
        nodes[0].cli("workload", "rm", "rolling")

    def test_forced_deploys_stop_what_is_old(self):
        node = self.nodes[0]
        spec = server_spec("forced", timeouts={"start": "30s", "drain": "60s"})
        node.deploy(spec, server(HOLDS))
        old = node.get("/w/forced/").instance
        done = []
        holder = threading.Thread(target=lambda: done.append(node.get("/w/forced/?hold=30")))
        holder.start()
        wait_until(lambda: any(i["joiners"] for i in node.ps("forced")), what="a joiner")
        begun = time.monotonic()
        node.deploy(dict(spec, environment={"VERSION": "2"}), server(HOLDS), "--force")
        holder.join()
        self.assertLess(time.monotonic() - begun, 25)
        self.assertNotEqual(done[0].status, 200, done)
        gone = node.get("/i/%s/" % old)
        self.assertEqual((gone.status, gone.error), (410, "instance_gone"))
        self.assertEqual(node.get("/w/forced/").json()["version"], "2")
        out = node.cli("workload", "rollback", "forced", "--force").stdout
        self.assertIn(b"v3", out)
        self.assertEqual({i["version"] for i in node.ps("forced")} - {3}, set())
        node.cli("workload", "rm", "forced")


class Storm(unittest.TestCase):
    def test_starts_at_the_same_time_are_bounded(self):
        slow = {"main.py": "import time\ntime.sleep(0.5)\n" + server(HOLDS)["main.py"]}
        with Node("sandbox: {starts_max: 2}\n") as node:
            node.deploy(server_spec("storm", join={"key": "header:X-Room"},
                                    scale={"max": 20, "queue_timeout": "60s"}), slow)
            replies, most = [], [0]
            asks = threading.Thread(target=lambda: replies.extend(all_at_once(
                [(node.http_port, "/w/storm/", {"X-Room": "r%d" % k}) for k in range(10)])))
            asks.start()
            while asks.is_alive():
                states = [i["state"] for i in node.ps("storm")]
                most[0] = max(most[0], states.count("starting"))
            asks.join()
            self.assertEqual({r.status for r in replies}, {200}, replies)
            self.assertEqual(len({r.json()["instance"] for r in replies}), 10)
            self.assertEqual(most[0], 2)


class Alone(unittest.TestCase):
    """What one node, or two, shows."""
    @classmethod
    def setUpClass(cls):
        cls.nodes = Nodes(2, own_ids=True)
        cls.nodes.__enter__()
        cls.node = cls.nodes[0]

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)

    def test_the_queue_is_served_in_the_order_of_arrival(self):
        """Also when newcomers come all the time, of whom each finds a place that is free just now."""
        order = "done = []\n" + HOLDS.replace(
            "    h.say(", "    done.append(h.path)\n    h.say(").replace(
            "time.sleep(float(h.path.partition(\"hold=\")[2] or 0))", "time.sleep(0.03)")
        self.node.deploy(server_spec("fair", join={"max_joiners": 1},
                                     scale={"max": 1, "queue": 500, "queue_timeout": "60s"}),
                         server(order))
        self.node.get("/w/fair/")
        ends, lock = [], threading.Lock()

        def one(k):
            answer = self.node.get("/w/fair/?n=%d" % k)
            with lock:
                ends.append((k, answer.status))
        threads = []
        for k in range(120):
            threads.append(threading.Thread(target=one, args=(k,)))
            threads[-1].start()
            time.sleep(0.01)
        for t in threads:
            t.join()
        self.assertEqual({status for _, status in ends}, {200})
        late = [abs(place - k) for place, (k, _) in enumerate(ends)]
        # Threads of the test itself may swap neighbours.
        self.assertLessEqual(max(late), 3, [k for k, _ in ends])

    def test_who_finds_it_full_on_another_node_waits_there(self):
        """Longer than that node may take for its answer that it is full."""
        self.node.deploy(server_spec("busy", join={"max_joiners": 1},
                                     scale={"max": 1, "queue": 10, "queue_timeout": "30s"}),
                         server(HOLDS))
        first = self.node.get("/w/busy/").instance
        other = self.nodes[1]
        wait_until(lambda: other.get("/w/busy/").instance == first, what="it is known")
        held = []
        holder = threading.Thread(target=lambda: held.append(self.node.get("/w/busy/?hold=4")))
        holder.start()
        wait_until(lambda: any(i["joiners"] for i in self.node.ps("busy")), what="a joiner")
        begun = time.monotonic()
        answer = other.get("/w/busy/")
        self.assertEqual((answer.status, answer.instance), (200, first), answer)
        self.assertGreater(time.monotonic() - begun, 2)
        holder.join()
        self.assertEqual(held[0].status, 200)

    def test_the_next_one_starts_ahead(self):
        self.node.deploy(server_spec("ahead", join={"max_joiners": 10}, life={"idle": "2s"},
                                     scale={"max": 4, "target": 0.5}), server(HOLDS))
        shown = self.node.cli("workload", "show", "ahead").stdout.decode()
        self.assertRegex(shown, r"target: .?0\.5")
        port = self.node.http_port
        replies = []
        # Six of ten places: more than the half.
        held = threading.Thread(target=lambda: replies.extend(all_at_once(
            [(port, "/w/ahead/?hold=6", {})] * 6)))
        held.start()
        two = wait_until(lambda: (lambda found: found if len(found) == 2 and all(
            i["state"] == "ready" for i in found) else None)(self.node.ps("ahead")), 20,
            "a second instance is ready")
        # Whichever was ready first has them all.
        self.assertEqual(sorted(i["joiners"] for i in two), [0, 6])
        told = [json.loads(self.node.cli("explain", i["id"], "--json").stdout)["events"][0]["text"]
                for i in two]
        self.assertEqual(sum("scale.target" in text for text in told), 1, told)
        held.join()
        self.assertEqual({r.status for r in replies}, {200}, replies)
        # Nobody is left: both end as idle.
        wait_until(lambda: self.node.ps("ahead") == [], 20, "no instance")

    def test_a_crash_loop_is_told(self):
        self.node.deploy(server_spec("loops", environment={"BROKEN": "1"}), server(VERSIONED))
        refusals = []

        def paused():
            refusals.append(self.node.get("/w/loops/"))
            return "in a row" in refusals[-1].json()["detail"]
        wait_until(paused, 20, "starts pause")
        for r in refusals:
            self.assertEqual((r.status, r.error, r.json()["ran"]), (502, "start_failed", "no"), r)
            self.assertIn("this version is broken", r.json()["detail"])
        told = json.loads(self.node.cli("explain", "loops", "--json").stdout)
        self.assertGreaterEqual(told["here"]["failed_starts"], 2)
        pauses = []
        deadline = time.monotonic() + 20
        while len(pauses) < 3 and time.monotonic() < deadline:
            answer = self.node.get("/w/loops/")
            told = json.loads(self.node.cli("explain", "loops", "--json").stdout)["here"]
            if not pauses or told["failed_starts"] > pauses[-1][0]:
                pauses.append((told["failed_starts"], told["next_start_ms"]))
                self.assertGreaterEqual(int(answer.header("Retry-After") or 0), 1)
            time.sleep(0.2)
        # 1 s, 2 s, 4 s; what has passed of it already is small.
        self.assertGreater(pauses[-1][1], pauses[0][1] * 1.5, pauses)
        self.node.cli("workload", "rm", "loops")

    def test_an_instance_tells_when_it_ends(self):
        self.node.deploy(server_spec("mortal", life={"max": "5m", "idle": "2m"}, scale={"max": 1}),
                         server(HOLDS))
        answers = [n.get("/w/mortal/") for n in self.nodes.nodes]
        self.assertEqual(len({a.instance for a in answers}), 1)

        def left(answer):
            at = datetime.datetime.strptime(answer.header("Skerry-Deadline"),
                                            "%Y-%m-%dT%H:%M:%S.%fZ")
            return (at - datetime.datetime.utcnow()).total_seconds()
        for a in answers:
            self.assertTrue(280 < left(a) <= 300, a)
        self.node.cli("extend", answers[0].instance, "1h")
        for n in self.nodes.nodes:
            self.assertTrue(3500 < left(n.get("/i/%s/" % answers[0].instance)) <= 3600)
        self.node.cli("workload", "rm", "mortal")

    def test_what_has_no_end_tells_none_and_code_cannot(self):
        self.node.deploy(server_spec("endless"), server(
            "def handle(h): h.say('x', headers=[('Skerry-Deadline', 'tomorrow')])"))
        for n in self.nodes.nodes:
            answer = n.get("/w/endless/")
            self.assertEqual((answer.status, answer.header("Skerry-Deadline")), (200, None))
        self.node.cli("workload", "rm", "endless")


if __name__ == "__main__":
    unittest.main()
