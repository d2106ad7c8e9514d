"""Instances with a way out, on a machine that is a network namespace of the test's own: behind wan0 lies
"the internet" (a documentation network), behind lan0 a private one; servers stand wherever nobody may get."""
import contextlib
import json
import os
import subprocess
import unittest

from cluster import PYTHON, Node, processes_of, wait_until
from network import CLONE_NEWNET, _check, _libc

INTERNET = "203.0.113.2"
METADATA = "169.254.169.254"
HOST_PUBLIC = "203.0.113.1"
LAN = "10.0.0.1"
EGRESS = "allow: {egress: true%s}\nsandbox: {uplinks: [%s], resolvers: [" + INTERNET + "]}\n"
NAMED = "198.51.100.7"  # what tests/lib/dns_server.py says that good.example.org is

# Connects to each argument; a line with 0 or the name of the error.
CONNECT = """
import errno, socket, sys
for to in sys.argv[1:]:
    host, port = to.rsplit(":", 1)
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.settimeout(1.5)
    try:
        s.connect((host, int(port)))
        print(0)
    except socket.timeout:
        print("silence")
    except OSError as e:
        print(errno.errorcode.get(e.errno, e))
"""

SERVER = """
import http.server, os, subprocess, urllib.parse
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        to = urllib.parse.unquote(self.path.split("?", 1)[1]).split(",")
        out = subprocess.run(["python3", "/app/connect.py", *to], capture_output=True).stdout
        self.send_response(200)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


def sh(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Machine:
    """What this process and its children see as the machine, until it is closed."""

    def __init__(self):
        self.before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.processes = []
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "addr", "add", METADATA + "/32", "dev", "lo")
        self.internet = self.neighbour("wan0", HOST_PUBLIC, INTERNET)
        self.lan = self.neighbour("lan0", "10.0.0.254", LAN)
        sh("ip", "route", "add", "default", "via", INTERNET)
        self.listen("80")

    def neighbour(self, link, here, there):
        holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        self.processes.append(holder)
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink("/proc/%d/ns/net" % holder.pid) != own, what="a namespace")
        inside = ["nsenter", "-t", str(holder.pid), "-n"]
        sh("ip", "link", "add", link, "type", "veth", "peer", "name", "out0", "netns",
           str(holder.pid))
        sh("ip", "addr", "add", here + "/24", "dev", link)
        sh("ip", "link", "set", link, "up")
        for words in (["ip", "link", "set", "lo", "up"],
                      ["ip", "addr", "add", there + "/24", "dev", "out0"],
                      ["ip", "link", "set", "out0", "up"]):
            sh(*inside, *words)
        self.listen("80", inside)
        return holder

    def listen(self, port, inside=()):
        self.processes.append(subprocess.Popen(
            [*inside, PYTHON, "-c",
             "import socket; s = socket.create_server(('0.0.0.0', %s), backlog=100)\n"
             "while True: s.accept()[0].close()" % port]))

    def resolver(self):
        inside = ["nsenter", "-t", str(self.internet.pid), "-n"]
        sh(*inside, "ip", "addr", "add", NAMED + "/32", "dev", "lo")
        server = os.path.join(os.path.dirname(__file__), "..", "lib", "dns_server.py")
        self.processes.append(subprocess.Popen([*inside, PYTHON, server, INTERNET],
                                               stdout=subprocess.DEVNULL))

    def traces(self):
        return sh("nft", "list", "ruleset"), sh("ip", "-o", "link"), sh("ip", "-4", "-o", "addr")

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        _check(_libc.setns(self.before, CLONE_NEWNET), "setns")
        os.close(self.before)


def forwarding(name):
    with open("/proc/sys/net/ipv4/conf/%s/forwarding" % name) as f:
        return f.read().strip()


class Network(unittest.TestCase):
    def setUp(self):
        machine = Machine()
        self.addCleanup(machine.close)
        self.machine = machine

    def run_node(self, permitted="", uplinks="wan0", **more):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        return stack, stack.enter_context(Node(runner_config=EGRESS % (permitted, uplinks), **more))

    def connect(self, node, *to, network="egress"):
        out = node.cli("run", "--network", network, "--", "python3", "-c", CONNECT, *to)
        return out.stdout.decode().split()

    def test_only_the_internet_is_reached(self):
        _, node = self.run_node()
        reached = self.connect(node, INTERNET + ":80", "::ffff:%s:80" % INTERNET)
        self.assertEqual(reached, ["0", "0"])
        denied = self.connect(node, METADATA + ":80", HOST_PUBLIC + ":80", "10.0.0.254:80",
                              LAN + ":80", "::ffff:%s:80" % METADATA, "fe80::1%eth0:80",
                              "10.166.0.0:80", INTERNET + ":81")
        self.assertNotIn("0", denied)
        self.assertEqual(denied[0], "EHOSTUNREACH")
        self.assertEqual(denied[-1], "ECONNREFUSED")  # a port where nobody listens: it was reached
        self.assertNotIn("ECONNREFUSED", denied[:-1])
        self.assertEqual(self.connect(node, INTERNET + ":80", network="none"), ["ENETUNREACH"])

    def test_the_check_passes_and_can_fail(self):
        _, node = self.run_node()
        done = json.loads(node.cli("operator", "network", "check", "--json", "--reach",
                                   INTERNET + ":80").stdout)
        self.assertTrue(done["pass"], done)
        self.assertGreaterEqual(len(done["probes"]), 15)
        nobody = node.cli("operator", "network", "check", "--reach", "203.0.113.77:80",
                          check=False)
        self.assertEqual(nobody.returncode, 1, nobody.stdout)
        node.close()
        # Root permits a private network: the check tells of it, exactly.
        _, node = self.run_node(', destinations: ["10.0.0.0/8"]', "wan0, lan0")
        done = node.cli("operator", "network", "check", "--json", check=False)
        self.assertEqual(done.returncode, 1)
        failed = [p["class"] for p in json.loads(done.stdout)["probes"] if not p["pass"]]
        self.assertEqual(failed, ["private 10/8"])

    def test_a_workload_says_where_it_may_call(self):
        _, node = self.run_node()
        spec = {"id": "calls", "port": 8080, "access": "public", "command": ["python3", "/app/server.py"]}
        source = {"server.py": SERVER, "connect.py": CONNECT}
        for network, expected in (
                ({"allow": [INTERNET + ":80"]}, ["0", "EHOSTUNREACH"]),
                ({"allow": ["203.0.113.0/24"], "deny": [INTERNET + ":80"]},
                 ["EHOSTUNREACH", "ECONNREFUSED"])):
            node.deploy(dict(spec, network=dict(network, mode="egress")), source)
            # The version before serves until this one is ready.
            wait_until(lambda want=expected: node.get("/w/calls/?%s:80,%s:81" % (INTERNET, INTERNET))
                       .body.decode().split() == want, 20, str(expected))
        refused = node.cli("deploy", "-", check=False, stdin=(
            "id: calls\nport: 1\ncommand: [x]\nnetwork:\n  mode: egress\n  allow: [10.0.0.1/8]\n"))
        self.assertIn(b":6: network.allow: 10.0.0.1/8 has bits behind its prefix", refused.stderr)

    def test_bandwidth_is_bounded_at_both_ends(self):
        _, node = self.run_node(most=", bandwidth: 1M")
        spec = {"id": "calls", "port": 8080, "access": "public", "command": ["python3", "/app/server.py"]}
        source = {"server.py": SERVER, "connect.py": CONNECT}
        for bandwidth, rate in (("64K", 64 << 10), ("none", 1 << 20)):
            node.deploy(dict(spec, network={"mode": "egress", "bandwidth": bandwidth}), source)
            answer = node.get("/w/calls/?%s:80" % INTERNET)
            self.assertEqual(answer.body.decode().split(), ["0"])
            inside = ["nsenter", "-t", str(processes_of(answer.instance)[0]), "-n"]

            def rates():
                return [q["options"]["rate"] for where in (inside, [])
                        for q in json.loads(sh(*where, "tc", "-j", "qdisc", "show"))
                        if q["kind"] == "tbf"]
            # The link of the one before goes with its namespace, a moment later.
            wait_until(lambda want=rate: rates() == [want, want], 10, "both ends have it")
            node.cli("stop", answer.instance)
        node.deploy(dict(spec, network={"mode": "egress", "bandwidth": "2M"}), source)
        answer = node.get("/w/calls/?x")
        self.assertIn("network.bandwidth: 2M is above 1M, the most that runner.yaml allows",
                      answer.json()["detail"])

    def test_a_name_is_answered_and_opens_what_it_answers(self):
        self.machine.resolver()
        _, node = self.run_node()
        node.deploy({"id": "calls", "port": 8080, "access": "public",
                     "command": ["python3", "/app/server.py"],
                     "network": {"mode": "egress", "allow": ["good.example.org:80"]}},
                    {"server.py": SERVER, "connect.py": CONNECT})

        def ask(*to):
            return node.get("/w/calls/?" + ",".join(to)).body.decode().splitlines()
        closed, opened, then, port, other = ask(
            NAMED + ":80", "good.example.org:80", NAMED + ":80", NAMED + ":81",
            "also.good.example.org:80")
        self.assertEqual((closed, opened, then, port), ("EHOSTUNREACH", "0", "0", "EHOSTUNREACH"))
        self.assertIn("Name or service not known", other)
        out = node.cli("run", "--network", "egress", "--", "python3", "-c",
                       "import socket; print(socket.getaddrinfo('alias.example.org', 80)[0][4][0])")
        self.assertEqual(out.stdout.decode().strip(), NAMED)
        node.kill_runner()
        node.start_runner()
        wait_until(lambda: ask("good.example.org:80") == ["0"], 20, "names again")

    def test_without_permission_it_is_refused_by_name(self):
        with Node() as node:
            done = node.cli("run", "--network", "egress", "--", "true", check=False)
            self.assertIn(b"allow.egress in runner.yaml", done.stderr)

    def test_a_dead_runner_fails_closed_and_the_next_takes_over(self):
        stack, node = self.run_node()
        node.deploy({"id": "calls", "port": 8080, "access": "public",
                     "command": ["python3", "/app/server.py"], "network": {"mode": "egress"}},
                    {"server.py": SERVER, "connect.py": CONNECT})
        path = "/w/calls/?" + ",".join(to + ":80" for to in (
            INTERNET, METADATA, HOST_PUBLIC, LAN, "10.166.0.0"))

        def policy_holds():
            answer = node.get(path)
            self.assertEqual(answer.status, 200, answer)
            said = answer.body.decode().split()
            self.assertEqual(said[0], "0", said)
            self.assertFalse({"0", "ECONNREFUSED"} & set(said[1:]), said)
        policy_holds()
        usage = json.loads(sh("curl", "-sS", "--unix-socket", node.api_socket,
                              "http://node/v1/instances/" + node.ps()[0]["id"]))["usage"]
        self.assertGreater(usage["network_in_bytes"], 0)
        self.assertGreater(usage["network_out_bytes"], 0)
        sh("nft", "flush", "ruleset")
        policy_but_internet = node.get(path.replace(INTERNET, METADATA)).body.decode().split()
        self.assertFalse({"0", "ECONNREFUSED"} & set(policy_but_internet[:2]), policy_but_internet)
        wait_until(lambda: "table inet skerry" in sh("nft", "list", "tables"), 5, "the table again")
        policy_holds()
        node.kill_runner()
        self.assertIn("table inet skerry", sh("nft", "list", "tables"))
        policy_holds()
        node.start_runner()
        wait_until(lambda: not any("runner" in w for w in node.status()["warnings"]), 20,
                   "a runner again")
        policy_holds()
        stack.close()
        self.assertEqual(sh("nft", "list", "ruleset"), "")
        self.assertEqual(forwarding("wan0"), "0")

    def test_many_starts_leave_nothing(self):
        stack, node = self.run_node()
        self.assertEqual(forwarding("wan0"), "1")
        before = self.machine.traces()
        for _ in range(50):
            node.cli("run", "--network", "egress", "--", "true")
        wait_until(lambda: self.machine.traces() == before, 20, "links and rules as before")
        stack.close()
        self.assertEqual(sh("nft", "list", "ruleset"), "")
        self.assertEqual(forwarding("wan0"), "0")

    def test_a_foreign_policy_is_told_with_its_remedy(self):
        subprocess.run(["nft", "-f", "-"], check=True, input=(
            b"table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; "
            b"}; }"))
        _, node = self.run_node()
        warnings = "\n".join(node.status()["warnings"])
        self.assertRegex(warnings, r"iptables -I FORWARD -i skv\d+-\+ -j ACCEPT")
        self.assertIn("iptables -I FORWARD", node.cli("doctor", check=False).stdout.decode())


if __name__ == "__main__":
    unittest.main()
