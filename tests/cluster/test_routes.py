"""Where a request goes: hosts, aliases, domains and ports; and how browsers come to what is private, by
tickets and cookies. At the owner of the instance and at another node, over TCP and over TLS."""
import functools
import json
import re
import shutil
import subprocess
import time
import unittest

from cluster import Nodes, free_port, server_spec, wait_until
from raw_http import Certificates, Client, raw_server, request

# Beside the port that the workload names: one for everybody, one for itself, one on ::1 alone.
PORTS = r'''
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket as sockets
class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        body = ("%d %s\r\n%s" % (self.server.server_address[1], self.path, self.headers)).encode()
        self.send_response(200)
        for cookie in ("a=1", "skerry_join=forged; Path=/", "__Host-skerry_join=f; Secure", "b=2"):
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Six(ThreadingHTTPServer):
    address_family = sockets.AF_INET6
for made in (ThreadingHTTPServer(("", 9000), Echo), ThreadingHTTPServer(("127.0.0.1", 9001), Echo),
             Six(("::1", 9002), Echo)):
    threading.Thread(target=made.serve_forever, daemon=True).start()
'''


def source():
    return {"main.py": PORTS + raw_server()["main.py"]}


class Way:
    def __init__(self, name, node, port, context):
        self.name, self.node, self.port, self.context = name, node, port, context
        self.secure = context is not None

    def open(self, host=b"localhost"):
        return Client(self.port, self.context, host.decode() if self.secure else "localhost")

    def ask(self, host, path=b"/", fields=b"", method=b"GET", body=b""):
        """(head, body)"""
        with Client(self.port, self.context) as c:
            c.send(request(path, fields, method, body, host))
            head = c.head()
            return head, c.body(head)[0] if method != b"HEAD" else b""


def each_way(test):
    @functools.wraps(test)
    def whole(self):
        for way in self.ways:
            with self.subTest(way=way.name):
                test(self, way)
    return whole


def problem(answer):
    head, body = answer
    return head.status, json.loads(body)["code"]


def cookies_of(head):
    return [v.decode() for v in head.all(b"Set-Cookie")]


class Routes(unittest.TestCase):
    def setUp(self):
        for domain in self.domains(): # of a test that failed
            self.remove(domain["domain"])

    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates().make("node", "localhost")
        cls.certificates.make("shop", "shop.example.org")
        tls = [free_port(), free_port()]
        config = "gateway: {tls: {listen: \"127.0.0.1:%d\", %s}}\n"
        cls.nodes = Nodes(2, [config % (port, cls.certificates.configuration("node", "shop"))
                              for port in tls])
        try:
            cls.nodes.__enter__()
            more = {"join": {"max_joiners": 500}, "life": {"idle": "10m"}}
            cls.nodes[0].deploy(server_spec("open", **more), source())
            cls.nodes[0].deploy(server_spec("closed", access="private", **more), source())
            cls.nodes[0].deploy(server_spec("other", access="private", **more), source())
            cls.token = cls.nodes[0].cli("token", "create", "--role", "admin").stdout.strip()
            first = cls.nodes[0].get("/w/open/")
            cls.owner, cls.instance = first.header("Skerry-Node"), first.instance
            closed = cls.nodes[0].get("/w/closed/", {"Skerry-Token": cls.token.decode()})
            cls.closed = closed.instance
            context = cls.certificates.context("node", "shop")
            context.check_hostname = False
            cls.ways = []
            for node, port in zip(cls.nodes.nodes, tls):
                place = "owner" if node.name == cls.owner else "forwarded"
                cls.ways += [Way(place, node, node.http_port, None),
                             Way(place + ", TLS", node, port, context)]
            wait_until(lambda: cls.nodes[1].get("/w/open/").instance == cls.instance,
                       what="joins of the other node")
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)
        shutil.rmtree(cls.certificates.directory, ignore_errors=True)

    def add(self, workload, name, node=0, code=0):
        done = self.nodes[node].cli("domain", "add", workload, name, check=False)
        self.assertEqual(done.returncode, code, done)
        return (done.stdout + done.stderr).decode()

    def remove(self, name, node=0, code=0):
        done = self.nodes[node].cli("domain", "rm", name, check=False)
        self.assertEqual(done.returncode, code, done)
        return (done.stdout + done.stderr).decode()

    def domains(self, *more):
        return json.loads(self.nodes[0].cli("domain", "list", "--json", *more).stdout)

    # --- names -------------------------------------------------------------------------------------

    @each_way
    def test_hosts_lead_to_workload_and_instance(self, way):
        for host in (b"open.localhost", b"OPEN.LocalHost:8080", b"open.localhost.", b"open.localhost.:1",
                     self.instance.encode() + b".localhost",
                     self.instance.upper().encode() + b".LOCALHOST"):
            head, body = way.ask(host, b"/w/closed/x")
            self.assertEqual((head.status, body), (200, b"GET /w/closed/x"), host)
            self.assertEqual(head.get(b"Skerry-Instance").decode(), self.instance)
        for host, wanted in ((b"nobody.localhost", (404, "workload_unknown")),
                             (b"a.b.localhost", (404, "workload_unknown")),
                             (b"9.localhost", (404, "instance_unknown")),
                             (b"localhost", (404, "not_found")), (b"[::1]", (404, "not_found")),
                             (b"[::1]:80", (404, "not_found")), (b"127.0.0.1", (404, "not_found")),
                             (b"", (404, "not_found")), (b".", (404, "not_found")),
                             (b".localhost", (404, "not_found")),
                             (b"x" * 300 + b".org", (404, "not_found")),
                             (b"nobody.example.org", (404, "not_found"))):
            self.assertEqual(problem(way.ask(host)), wanted, host)
        for fields in (b"Host: other.localhost\r\n", b"Host: open.localhost\r\n"): # two of them
            self.assertEqual(problem(way.ask(b"open.localhost", fields=fields)), (400, "bad_request"))
        for host in (b"b\xc3\xbccher.example.org", b"a b", b"open.localhost/x", b"a@open.localhost"):
            self.assertEqual(problem(way.ask(host)), (400, "bad_request"), host)

    def test_domains_and_aliases_lead_to_workloads_at_every_node(self):
        self.add("open", "Shop.Example.ORG.")
        self.add("open", "room", node=1)
        self.add("open", "xn--bcher-kva.example.org")
        for way in self.ways:
            for host in (b"shop.example.org", b"SHOP.example.org:99", b"shop.example.org.",
                         b"room.localhost", b"Room.localhost:1", b"xn--bcher-kva.example.org"):
                head, body = way.ask(host, b"/w/closed/x?y")
                self.assertEqual((head.status, body), (200, b"GET /w/closed/x"), (way.name, host))
            for host in (b"room", b"ashop.example.org", b"example.org", b"a.shop.example.org"):
                self.assertEqual(problem(way.ask(host))[0], 404, host)
        # It may be added again, and not by another.
        self.add("open", "shop.example.org")
        self.assertIn("leads to workload open", self.add("other", "shop.example.org", code=1))
        self.assertIn("leads to workload open", self.add("other", "room", code=1))
        listed = {d["domain"]: (d["workload"], d["kind"]) for d in self.domains()}
        self.assertEqual(listed["room"], ("open", "alias"))
        self.assertEqual(listed["shop.example.org"], ("open", "host"))
        self.assertEqual(self.domains("--workload", "other"), [])
        for name in ("shop.example.org", "ROOM", "xn--bcher-kva.example.org."):
            self.remove(name, node=1)
        self.assertIn("not_found", self.remove("room", code=3))
        for way in self.ways:
            wait_until(lambda: problem(way.ask(b"shop.example.org")) == (404, "not_found"))
            wait_until(lambda: problem(way.ask(b"room.localhost")) == (404, "workload_unknown"))

    def test_a_domain_is_shown_its_certificate(self):
        self.add("open", "shop.example.org")
        for way in self.ways:
            if not way.secure:
                continue
            done = subprocess.run(
                ["curl", "-sS", "-m", "30", "--cacert", self.certificates.path("shop.pem"),
                 "--resolve", "shop.example.org:%d:127.0.0.1" % way.port,
                 "https://shop.example.org:%d/x" % way.port], capture_output=True)
            self.assertEqual(done.stdout, b"GET /x", done.stderr)
        self.remove("shop.example.org")

    def test_names_that_clash_are_refused_with_a_remedy(self):
        for name, code, text in (
                ("localhost", 0, None), # an alias like any other: localhost.localhost
                ("a.localhost", 1, "give an alias"), ("LOCALHOST.", 0, None),
                ("closed", 1, "is the name of a workload"), ("*.example.org", 2, "wildcard"),
                ("127.0.0.1", 2, "address"), ("[::1]", 2, "address"), ("a.b.0x7f", 2, "address"),
                ("a.example.org:80", 2, "port"), ("http://a.example.org", 2, "URL"),
                ("b\u00fccher.example.org", 2, "xn--"), ("a..example.org", 2, "no host name"),
                ("a-.example.org", 2, "no host name"), ("a_b.example.org", 2, "no host name"),
                ("x" * 64 + ".org", 2, "no host name"), (("y" * 60 + ".") * 5 + "org", 2, "too long"),
                ("9room", 2, "no alias"), ("", 2, "host name"), (".", 2, "no host name")):
            said = self.add("open", name, code=code)
            if text is not None:
                self.assertIn(text, said, name)
        self.remove("localhost")
        self.assertIn("workload_unknown", self.add("nobody", "b.example.org", code=3))
        # A workload does not take an alias away either.
        self.add("open", "later")
        done = self.nodes[0].cli("deploy", "-", check=False, stdin=json.dumps(server_spec("later")))
        self.assertEqual(done.returncode, 1, done)
        self.assertIn(b"is an alias of workload open", done.stderr)
        self.remove("later")
        # The API itself checks as the command line does.
        for body in ({"domain": "*.example.org", "workload": "open"}, {"domain": "a.example.org"},
                     {"domain": 7, "workload": "open"}, {"domain": "a.b", "workload": "Open"},
                     {"domain": "a.b\0c", "workload": "open"}, []):
            answer = self.nodes[0].request("POST", "/v1/domains", json.dumps(body),
                                           {"Skerry-Token": self.token.decode(),
                                            "Content-Type": "application/json"},
                                           port=self.nodes[0].api_port)
            self.assertEqual((answer.status, answer.json()["code"]), (400, "bad_request"), body)

    def test_a_workload_has_fifty_and_gives_them_back(self):
        spec = server_spec("many")
        self.nodes[0].deploy(spec, source())
        for k in range(50):
            self.add("many", "m%d.example.org" % k)
        self.assertIn("50 domains", self.add("many", "m50.example.org", code=6))
        self.nodes[0].cli("deploy", "-", stdin=json.dumps(dict(spec, environment={"A": "b"})))
        self.assertEqual(len(self.domains("--workload", "many")), 50) # a new version keeps them
        self.nodes[0].cli("workload", "rm", "many")
        self.assertEqual(self.domains("--workload", "many"), [])
        self.add("open", "m7.example.org")
        self.assertEqual(self.ways[0].ask(b"m7.example.org")[0].status, 200)
        self.remove("m7.example.org")

    def test_who_may(self):
        node = self.nodes[0]
        scoped = node.cli("token", "create", "--role", "deploy", "--workload", "open").stdout.strip()
        invoke = node.cli("token", "create", "--role", "invoke").stdout.strip()
        for token, verb, code in ((scoped, ("add", "open", "c.example.org"), 5),
                                  (invoke, ("add", "open", "c.example.org"), 5),
                                  (scoped, ("list", "--workload", "open"), 0), (scoped, ("list",), 5)):
            done = node.cli("domain", *verb, check=False,
                            environment={"SKERRY_TOKEN": token.decode(),
                                         "SKERRY_ADDR": "127.0.0.1:%d" % node.api_port})
            self.assertEqual(done.returncode, code, (verb, done))

    # --- ports -------------------------------------------------------------------------------------

    @each_way
    def test_other_ports_of_an_instance(self, way):
        host = b"%d--" + self.instance.encode() + b".localhost"
        token = b"Skerry-Token: " + self.token + b"\r\n"
        for _ in range(3):
            head, body = way.ask(host % 9000, b"/a?b=%2F")
            self.assertEqual(head.status, 200, body)
            self.assertTrue(body.startswith(b"9000 /a?b=%2F\r\n"), body)
            self.assertEqual(head.get(b"Skerry-Instance").decode(), self.instance)
        # What listens for itself alone is for those with a token; so is ::1.
        for port in (9001, 9002):
            head, body = way.ask(host % port)
            self.assertEqual((head.status, json.loads(body)["code"]), (502, "instance_unreachable"))
            self.assertIn("without a token", json.loads(body)["detail"])
            for _ in range(2):
                head, body = way.ask(host % port, fields=token)
                self.assertEqual(head.status, 200, body)
                self.assertTrue(body.startswith(b"%d /" % port), body)
                self.assertNotIn(self.token, body)
            head, _ = way.ask(host % port)
            self.assertEqual(head.status, 502)
        self.assertEqual(problem(way.ask(host % 9003, fields=token)), (502, "instance_unreachable"))
        for wrong in (0, 70000, 99999999999):
            self.assertEqual(problem(way.ask(host % wrong)), (400, "bad_request"))
        for label in (b"09000--" + self.instance.encode(), b"9000--", b"9000--nobody",
                      b"9000---" + self.instance.encode(), b"9000-" + self.instance.encode()):
            self.assertIn(way.ask(label + b".localhost")[0].status, (400, 404), label)
        self.assertEqual(way.ask(host % 8080, b"/x")[1], b"GET /x")
        closed = b"9000--" + self.closed.encode() + b".localhost"
        self.assertEqual(problem(way.ask(closed)), (401, "unauthorized"))
        self.assertEqual(way.ask(closed, fields=token)[0].status, 200)

    # --- browsers ----------------------------------------------------------------------------------

    def ticket(self, *arguments, node=0, **more):
        url = self.nodes[node].cli("ticket", *arguments, **more).stdout.decode().strip()
        return re.fullmatch(r"https://([^/]+):\d+/\?skerry_ticket=(skj_[\w-]+)", url).groups()

    def exchange(self, way, host, ticket, path=b"/raw?a=1&"):
        head, body = way.ask(host, path + b"skerry_ticket=" + ticket.encode())
        self.assertEqual(head.status, 303, body)
        self.assertEqual(head.get(b"Cache-Control"), b"no-store")
        name = "__Host-skerry_join" if way.secure else "skerry_join"
        cookie, = cookies_of(head)
        value = re.fullmatch(name + r"=([\w-]+); Path=/; Max-Age=(\d+); HttpOnly; SameSite=Lax"
                             + ("; Secure" if way.secure else ""), cookie)
        self.assertIsNotNone(value, cookie)
        self.assertTrue(3590 <= int(value.group(2)) <= 3600)
        return head, ("%s=%s" % (name, value.group(1))).encode()

    @each_way
    def test_a_ticket_becomes_a_cookie_that_the_code_never_sees(self, way):
        host, ticket = self.ticket("closed")
        self.assertEqual(host, "closed.localhost")
        self.assertEqual(problem(way.ask(b"closed.localhost", b"/raw")), (401, "unauthorized"))
        head, cookie = self.exchange(way, b"closed.localhost", ticket)
        self.assertEqual(head.get(b"Location"), b"/raw?a=1")
        self.assertIsNone(head.get(b"Skerry-Start")) # nothing was joined
        for before, after in ((b"Cookie: %s\r\n", None),
                              (b"Cookie: x=1; %s; y=\"2;3\"\r\n", b"Cookie: x=1; y=\"2;3\""),
                              (b"Cookie: %s;z=3\r\n", b"Cookie: z=3"),
                              (b"Cookie: x=1\r\nCookie: %s\r\n", b"Cookie: x=1"),
                              (b"Cookie: x = 1 ;%s\r\n", b"Cookie: x = 1"),
                              (b"Cookie: skerry_join=old; %s; SKERRY_JOIN=x; __host-Skerry_Join=y\r\n",
                               None)):
            head, body = way.ask(b"closed.localhost", b"/raw?a=1", before % cookie)
            self.assertEqual(head.status, 200, body)
            lines = [line for line in body.split(b"\r\n") if line.lower().startswith(b"cookie")]
            self.assertEqual([line.rstrip() for line in lines], [after] if after else [], body)
            self.assertTrue(body.startswith(b"GET /raw?a=1 HTTP/1.1\r\n"))
            self.assertNotIn(cookie.split(b"=")[1], body)
        # Once.
        again = way.ask(b"closed.localhost", b"/raw?skerry_ticket=" + ticket.encode())
        self.assertEqual(problem(again), (401, "unauthorized"))
        self.assertIn(b"skerry ticket closed", again[1])
        # But who has the cookie may follow the link once more.
        head, _ = way.ask(b"closed.localhost", b"/raw?skerry_ticket=" + ticket.encode(),
                          b"Cookie: " + cookie + b"\r\n")
        self.assertEqual((head.status, head.get(b"Location"), cookies_of(head)), (303, b"/raw", []))

    def test_one_use_is_one_in_the_whole_cluster(self):
        import threading
        for _ in range(3):
            _, ticket = self.ticket("closed", node=1)
            answers = []
            ask = b"/?skerry_ticket=" + ticket.encode()
            threads = [threading.Thread(
                target=lambda way=way: answers.append(way.ask(b"closed.localhost", ask)[0].status))
                for way in self.ways * 3]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            self.assertEqual(sorted(answers), [303] + [401] * (len(self.ways) * 3 - 1))

    def test_a_cookie_is_of_one_host_and_for_one_thing(self):
        way, far = self.ways[0], self.ways[2]
        self.add("closed", "private.example.org")
        self.add("other", "second")
        _, cookie = self.exchange(way, b"closed.localhost", self.ticket("closed")[1])
        field = b"Cookie: " + cookie + b"\r\n"
        for w in (way, far):
            self.assertEqual(w.ask(b"closed.localhost", b"/x", field)[0].status, 200)
            # Another host, the same origin for all, an instance's host, another workload.
            for host, path in ((b"private.example.org", b"/x"), (b"localhost", b"/w/closed/x"),
                               (self.closed.encode() + b".localhost", b"/x"),
                               (b"other.localhost", b"/x"), (b"second.localhost", b"/x")):
                self.assertEqual(problem(w.ask(host, path, field)), (401, "unauthorized"), host)
        _, cookie = self.exchange(far, b"private.example.org", self.ticket("closed")[1])
        self.assertEqual(way.ask(b"private.example.org", b"/x", b"Cookie: " + cookie + b"\r\n")[0].status,
                         200)
        # Of an instance; and its ports.
        host, ticket = self.ticket(self.closed[:10])
        self.assertEqual(host, self.closed + ".localhost")
        self.assertEqual(problem(way.ask(b"closed.localhost", b"/?skerry_ticket=" + ticket.encode())),
                         (403, "forbidden"))
        _, cookie = self.exchange(far, host.encode(), ticket)
        self.assertEqual(way.ask(host.encode(), b"/x", b"Cookie: " + cookie + b"\r\n")[0].status, 200)
        host, ticket = self.ticket(self.closed, "--port", "9001")
        self.assertEqual(host, "9001--" + self.closed + ".localhost")
        _, cookie = self.exchange(far, host.encode(), ticket, b"/?")
        head, body = far.ask(host.encode(), b"/x", b"Cookie: " + cookie + b"; k=v\r\n")
        self.assertEqual(head.status, 200, body)
        self.assertIn(b"\nCookie: k=v\n", body)
        # The code cannot set it.
        self.assertEqual(cookies_of(head), ["a=1", "b=2"])
        self.remove("private.example.org")
        self.remove("second")

    @each_way
    def test_web_sockets_of_own_pages_only(self, way):
        _, cookie = self.exchange(way, b"closed.localhost", self.ticket("closed")[1])
        upgrade = (b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                   b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: " + cookie + b"\r\n")
        scheme = b"https" if way.secure else b"http"
        own = b"Origin: " + scheme + b"://closed.localhost:%d\r\n" % way.port
        host = b"closed.localhost:%d" % way.port
        for fields in (own, own + b"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: websocket\r\n", b""):
            with way.open() as c:
                c.send(request(b"/socket", upgrade + fields, host=host))
                self.assertEqual(c.head().status, 101)
                c.send(b"\x81\x85\0\0\0\0hello")
                self.assertEqual(c.exactly(7), b"\x81\x05hello")
        for fields in (b"Origin: http://open.localhost:%d\r\n" % way.port, b"Origin: null\r\n",
                       b"Origin: http://closed.localhost\r\n", own + own, b"Origin:\r\n",
                       b"Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\n",
                       b"Sec-Fetch-Site: cross-site\r\n"):
            self.assertEqual(problem(way.ask(host, b"/socket", upgrade + fields)), (403, "forbidden"),
                             fields)
        # A link may be followed from anywhere; and a token of its own is another matter.
        for fields in (b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nCookie: " + cookie,
                       b"Origin: http://open.localhost\r\nSkerry-Token: " + self.token):
            self.assertEqual(way.ask(host, b"/x", fields + b"\r\n")[0].status, 200)

    @each_way
    def test_tickets_that_are_none(self, way):
        _, ticket = self.ticket("closed")
        t = ticket.encode()
        host = b"closed.localhost"
        other = b"B" if t[30:31] == b"A" else b"A"
        for bad in (b"x", b"skj_", b"skj_AAAA", t[:-1], t + b"A", t[:30] + other + t[31:], t.upper(),
                    b"A" * 4000, b"%00", b"skt_" + t[4:]):
            self.assertEqual(problem(way.ask(host, b"/?skerry_ticket=" + bad)), (401, "unauthorized"),
                             bad)
        for path in (b"/?skerry_ticket", b"/?skerry_ticket=", b"/?skerry_ticket=%s&skerry_ticket=%s"
                     % (t, t), b"/?a;skerry_ticket=%s;%%73kerry_ticket=%s" % (t, t)):
            self.assertEqual(problem(way.ask(host, path)), (400, "bad_request"), path)
        whole = b"/?skerry_ticket=" + t
        for method, fields, body in ((b"POST", b"Content-Length: 1\r\n", b"x"), (b"DELETE", b"", b""),
                                     (b"GET", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b""),
                                     (b"GET", b"Content-Length: 1\r\n", b"x")):
            self.assertEqual(problem(way.ask(host, whole, fields, method, body)), (400, "bad_request"))
        self.assertEqual(problem(way.ask(b"localhost", b"/w/closed" + whole)), (400, "bad_request"))
        self.assertEqual(problem(way.ask(b"other.localhost", whole)), (403, "forbidden"))
        # None of that has used it up, and its path leads nowhere else.
        head, _ = way.ask(host, b"//evil.example/%%2F?x;%%73kerry%%5fticket=%s&y#" % t)
        self.assertEqual(head.status, 400) # no fragment in a request
        head, _ = way.ask(host, b"//evil.example/%%2F?x;%%73kerry%%5fticket=%s&y" % t, method=b"HEAD")
        self.assertEqual((head.status, head.get(b"Location")), (303, b"/.//evil.example/%2F?x;y"))

    def test_tickets_end_with_their_time_and_their_token(self):
        way, node = self.ways[0], self.nodes[0]
        _, ticket = self.ticket("closed", "--ttl", "1s")
        time.sleep(1.1)
        self.assertEqual(problem(way.ask(b"closed.localhost", b"/?skerry_ticket=" + ticket.encode())),
                         (401, "unauthorized"))
        for option, value in (("--ttl", "11m"), ("--session", "25h"), ("--ttl", "none"),
                              ("--session", "1ms")):
            self.assertNotEqual(node.cli("ticket", "closed", option, value, check=False).returncode, 0)
        made = json.loads(node.cli("token", "create", "--role", "invoke", "--workload", "closed",
                                   "--json").stdout)
        environment = {"SKERRY_TOKEN": made["token"], "SKERRY_ADDR": "127.0.0.1:%d" % node.api_port}
        done = node.cli("ticket", "other", check=False, environment=environment)
        self.assertEqual(done.returncode, 5, done)
        _, ticket = self.ticket("closed", environment=environment)
        _, unused = self.ticket("closed", environment=environment)
        head, cookie = self.exchange(way, b"closed.localhost", ticket)
        field = b"Cookie: " + cookie + b"\r\n"
        self.assertEqual(way.ask(b"closed.localhost", b"/x", field)[0].status, 200)
        node.cli("token", "revoke", made["id"])
        for w in self.ways[::2]:
            wait_until(lambda: problem(w.ask(b"closed.localhost", b"/x", field))
                       == (401, "unauthorized"))
        self.assertEqual(problem(way.ask(b"closed.localhost", b"/?skerry_ticket=" + unused.encode())),
                         (401, "unauthorized"))
        self.assertEqual(node.cli("ticket", "nobody", check=False).returncode, 3)
        # A session ends by itself.
        ticket = self.ticket("closed", "--session", "2s")[1].encode()
        head, _ = way.ask(b"closed.localhost", b"/?skerry_ticket=" + ticket)
        cookie = cookies_of(head)[0].split(";")
        self.assertEqual(cookie[2], " Max-Age=2")
        field = b"Cookie: " + cookie[0].encode() + b"\r\n"
        self.assertEqual(way.ask(b"closed.localhost", b"/x", field)[0].status, 200)
        wait_until(lambda: way.ask(b"closed.localhost", b"/x", field)[0].status == 401, 5)

    def test_what_is_behind_a_ticket_waits_its_turn(self):
        """The next request of the connection is read when the ticket was used up."""
        way = self.ways[2]
        _, ticket = self.ticket("closed")
        with way.open() as c:
            c.send(request(b"/?skerry_ticket=" + ticket.encode(), host=b"closed.localhost")
                   + request(b"/one", host=b"open.localhost") + request(b"/two", host=b"open.localhost"))
            head = c.head()
            self.assertEqual((head.status, c.body(head)[0]), (303, b""))
            for path in (b"/one", b"/two"):
                head = c.head()
                self.assertEqual((head.status, c.body(head)[0]), (200, b"GET " + path))
        # Who leaves meanwhile does no harm.
        for _ in range(20):
            _, ticket = self.ticket("closed")
            with way.open() as c:
                c.send(request(b"/?skerry_ticket=" + ticket.encode(), host=b"closed.localhost"))
        self.assertEqual(way.ask(b"open.localhost", b"/x")[0].status, 200)

    def test_curl_comes_as_a_browser_does(self):
        way = self.ways[2] # not the owner
        jar = self.certificates.path("jar")
        _, ticket = self.ticket("closed")
        base = ["curl", "-sS", "-m", "30", "-c", jar, "-b", jar, "-L", "--resolve",
                "closed.localhost:%d:127.0.0.1" % way.port]
        done = subprocess.run(base + ["http://closed.localhost:%d/raw?skerry_ticket=%s"
                                      % (way.port, ticket)], capture_output=True)
        self.assertTrue(done.stdout.startswith(b"GET /raw HTTP/1.1\r\n"), done)
        done = subprocess.run(base + ["-b", "mine=1", "http://closed.localhost:%d/raw" % way.port],
                              capture_output=True)
        self.assertTrue(done.stdout.startswith(b"GET /raw HTTP/1.1\r\n"), done)

    def test_z_no_log_holds_a_ticket_or_cookie(self):
        _, ticket = self.ticket("closed")
        _, cookie = self.exchange(self.ways[0], b"closed.localhost", ticket)
        self.ways[1].ask(b"other.localhost", b"/?skerry_ticket=" + ticket.encode())
        self.ways[3].ask(b"other.localhost", b"/", b"Cookie: " + cookie + b"\r\n")
        for node in self.nodes.nodes:
            for name in ("serve.log", "runner.log"):
                with open(node.path(name), errors="replace") as f:
                    text = f.read()
                self.assertNotIn("skj_", text)
                self.assertNotIn("skerry_ticket", text)
