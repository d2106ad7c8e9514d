"""HTTP as a good proxy does it: a case for each clause, as bytes, at the owner of the instance and at
another node, over TCP and over TLS."""
import functools
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import unittest

from cluster import Nodes, free_port, resident_kib, server_spec, takes_at_most, wait_until
from raw_http import Certificates, Client, raw_server, request

BINARY = bytes(range(256)) * 40


class Way:
    """One way into the instance."""

    def __init__(self, name, node, port, context):
        self.name = name
        self.node = node
        self.port = port
        self.context = context

    def open(self):
        return Client(self.port, self.context)

    def ask(self, data):
        with self.open() as c:
            return c.ask(data)


def each_way(test):
    """Runs a test once for each way, and says on which it failed."""
    @functools.wraps(test)
    def whole(self):
        for way in self.ways:
            with self.subTest(way=way.name):
                test(self, way)
    return whole


class Proxy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates().make("node")
        tls = [free_port(), free_port()]
        config = "gateway: {tls: {listen: \"127.0.0.1:%d\", %s}}\n"
        cls.nodes = Nodes(2, [config % (port, cls.certificates.configuration("node"))
                              for port in tls])
        try:
            cls.nodes.__enter__()
            cls.nodes[0].deploy(server_spec("raw", join={"max_joiners": 500}, scale={"max": 1},
                                            timeouts={"start": "20s", "request": "none",
                                                      "first_byte": "60s"}), raw_server())
            first = cls.nodes[0].get("/w/raw/")
            cls.owner, cls.instance = first.header("Skerry-Node"), first.instance
            context = cls.certificates.context("node")
            cls.ways = []
            for node, port in zip(cls.nodes.nodes, tls):
                place = "owner" if node.name == cls.owner else "forwarded"
                cls.ways += [Way(place, node, node.http_port, None),
                             Way(place + ", TLS", node, port, context)]
            wait_until(lambda: cls.nodes[1].get("/w/raw/").instance == cls.instance,
                       what="joins of the other node")
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.nodes.__exit__(None, None, None)
        shutil.rmtree(cls.certificates.directory, ignore_errors=True)

    def go(self, gate):
        self.ways[0].ask(request(b"/w/raw/go/" + gate))

    def state(self):
        return self.ways[0].node.get("/w/raw/state").json()

    # --- where it goes ---------------------------------------------------------------------------

    @each_way
    def test_the_ways_are_what_they_say(self, way):
        head, body, _ = way.ask(request(b"/w/raw/x"))
        self.assertEqual((head.status, body), (200, b"GET /x"))
        self.assertEqual(head.get(b"Skerry-Node").decode(), self.owner)
        self.assertEqual(way.node.name == self.owner, way.name.startswith("owner"))
        self.assertEqual(head.get(b"Skerry-Instance").decode(), self.instance)
        self.assertEqual(sorted(w.name for w in self.ways),
                         ["forwarded", "forwarded, TLS", "owner", "owner, TLS"])

    # --- what the code sees ----------------------------------------------------------------------

    @each_way
    def test_target_and_fields_come_as_they_are(self, way):
        target = b"/a%2Fb%2f/..%2e//%00%ff/;p=1?x=%2F&y=a+b&&z?"
        fields = (b"X-One: 1\r\nx-TWO:2\r\nX-One: 3\r\nX-Bytes: caf\xe9 \xff\r\nX-Empty:\r\n"
                  b"X-Inside:  a  b \t c  \r\nCookie: a=1\r\nCookie: b=\"2\"\r\nX-One: \"q,r\"\r\n"
                  b"Range: bytes=0-1\r\nIf-None-Match: \"x\"\r\nAuthorization: Basic abcd\r\n")
        with way.open() as c:
            c.send(request(b"/w/raw" + target, fields))
            head = c.head()
            self.assertEqual(head.status, 200)
            self.assertEqual(c.body(head)[0], b"GET " + target.split(b"?")[0])
            head, seen, _ = c.ask(request(b"/w/raw/raw?" + target, fields))
            lines = seen.split(b"\r\n")
            self.assertEqual(lines[0], b"GET /raw?" + target + b" HTTP/1.1")
            wanted = [b"X-One: 1", b"x-TWO: 2", b"X-One: 3", b"X-Bytes: caf\xe9 \xff",
                      b"X-Empty: ", b"X-Inside: a  b \t c", b"Cookie: a=1", b"Cookie: b=\"2\"",
                      b"X-One: \"q,r\"", b"Range: bytes=0-1", b"If-None-Match: \"x\"",
                      b"Authorization: Basic abcd"]
            self.assertEqual([line for line in lines if line in wanted], wanted)
            self.assertEqual(lines.count(b"Host: localhost"), 1)
            self.assertIn(b"X-Forwarded-For: 127.0.0.1", lines)
            self.assertIn(b"X-Forwarded-Host: localhost", lines)
            self.assertIn(b"X-Forwarded-Prefix: /w/raw", lines)
            proto = b"https" if way.context else b"http"
            self.assertEqual([x for x in lines if x.startswith(b"X-Forwarded-Proto")],
                             [b"X-Forwarded-Proto: " + proto])

    @each_way
    def test_hop_by_hop_fields_of_requests_stay(self, way):
        fields = (b"Connection: X-Named, keep-alive, x-other\r\nX-Named: 1\r\nX-OTHER: 2\r\n"
                  b"Keep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\n"
                  b"Proxy-Authorization: Basic abcd\r\nTE: gzip\r\nUpgrade: h2c\r\n"
                  b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Stays: yes\r\n"
                  b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\n"
                  b"Skerry-Token: skt_secret\r\n")
        _, seen, _ = way.ask(request(b"/w/raw/raw", fields))
        names = [line.split(b":")[0].lower() for line in seen.split(b"\r\n")[1:]]
        for name in (b"x-named", b"x-other", b"keep-alive", b"proxy-connection",
                     b"proxy-authorization", b"te", b"upgrade", b"http2-settings",
                     b"skerry-token", b"transfer-encoding"):
            self.assertNotIn(name, names)
        self.assertIn(b"x-stays", names)
        self.assertNotIn(b"6.6.6.6", seen)
        self.assertNotIn(b"gopher", seen)

    @each_way
    def test_methods_pass(self, way):
        with way.open() as c:
            for method in (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND",
                           b"M-SEARCH", b"REPORT"):
                head, body, _ = c.ask(request(b"/w/raw/m", method=method))
                self.assertEqual((head.status, body), (200, method + b" /m"))

    # --- bodies ----------------------------------------------------------------------------------

    @each_way
    def test_binary_bodies_of_both_framings_come_back_untouched(self, way):
        chunked = b"".join(b"%x;a=\"b\"\r\n%s\r\n" % (len(p), p) for p in
                           (BINARY[:1], BINARY[1:700], BINARY[700:])) + b"0\r\nX-T: 1\r\nX-U: v w\r\n\r\n"
        with way.open() as c:
            head, body, _ = c.ask(request(b"/w/raw/echo", b"Content-Length: %d\r\n" % len(BINARY),
                                          b"POST", BINARY))
            self.assertEqual(body, BINARY)
            head, body, _ = c.ask(request(b"/w/raw/echo", b"Transfer-Encoding: chunked\r\n"
                                          b"Trailer: X-T\r\n", b"POST", chunked))
            self.assertEqual(body, BINARY)
            self.assertEqual(bytes.fromhex(head.get(b"X-Trailers").decode()),
                             b"X-T: 1\r\nX-U: v w\r\n")
            # Empty ones, of which one says so.
            _, seen, _ = c.ask(request(b"/w/raw/raw", b"Content-Length: 0\r\n", b"POST"))
            self.assertIn(b"\r\nContent-Length: 0\r\n", seen)
            _, seen, _ = c.ask(request(b"/w/raw/raw", b"", b"POST"))
            self.assertNotIn(b"Content-Length", seen)
            self.assertNotIn(b"Transfer-Encoding", seen)

    @each_way
    def test_a_request_body_is_passed_on_as_it_comes(self, way):
        self.ways[0].ask(request(b"/w/raw/reset-state"))
        with way.open() as c:
            c.send(request(b"/w/raw/pieces", b"Content-Length: 9\r\n", b"POST", b"abc"))
            wait_until(lambda: self.state()["signals"].get("pieces") == 3,
                       what="the first piece at the code")
            c.send(b"def")
            wait_until(lambda: self.state()["signals"].get("pieces") == 6,
                       what="the second piece at the code")
            c.send(b"ghi")
            self.assertEqual(c.body(c.head())[0], b"all 9")

    @each_way
    def test_an_answer_is_passed_on_as_it_comes(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/stream"))
            self.assertEqual(c.head().get(b"Content-Type"), b"text/event-stream")
            for k in range(5):
                self.go(b"stream") # the next one is sent only now
                self.assertEqual(c.chunk(), b"data: %d\n\n" % k)
            self.assertEqual(c.chunk(), b"")

    @each_way
    def test_an_answer_may_come_before_the_body_is_whole(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/answer-early", b"Content-Length: 1000000\r\n", b"POST", b"x" * 999))
            head = c.head()
            self.assertEqual((head.status, head.get(b"Connection")), (403, b"close"))
            self.assertEqual(c.body(head)[0], b"no")
        self.go(b"answer-early")

    @each_way
    def test_code_that_does_not_read_stops_the_client(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/never-read", b"Content-Length: 1000000000\r\n", b"POST"))
            c.socket.settimeout(2)
            sent = 0
            with self.assertRaises((TimeoutError, socket.timeout)):
                while sent < 200000000:
                    c.send(b"z" * 65536)
                    sent += 65536
        self.go(b"never-read")

    @each_way
    def test_a_client_that_does_not_read_stops_the_code(self, way):
        self.ways[0].ask(request(b"/w/raw/reset-state"))
        with way.open() as c:
            c.send(request(b"/w/raw/flood"))
            c.head()
            seen = []
            def settled():
                seen.append(self.state()["sent"])
                return len(seen) > 40 and seen[-1] == seen[-40]
            wait_until(settled, 20, "the code to be stopped")
            self.assertLess(seen[-1], 200000000)

    @each_way
    def test_a_large_body_takes_no_memory(self, way):
        size = 256 << 20
        processes = [node.serve_process for node in self.nodes.nodes]
        before = [resident_kib(p) for p in processes]
        more = [0, 0]
        with way.open() as c:
            c.send(request(b"/w/raw/digest", b"Content-Length: %d\r\n" % size, b"POST"))
            piece, left, digest = os.urandom(1 << 20), size, hashlib.sha256()
            while left > 0:
                c.send(piece)
                digest.update(piece)
                left -= len(piece)
                more = [max(m, resident_kib(p) - b) for m, p, b in zip(more, processes, before)]
            self.assertEqual(c.body(c.head())[0].decode(), "%d %s" % (size, digest.hexdigest()))
            c.send(request(b"/w/raw/bytes/%d" % size))
            head = c.head()
            left, wanted = int(head.get(b"Content-Length")), bytes(range(256)) * 4096
            while left > 0:
                self.assertEqual(c.exactly(min(left, 1 << 20)), wanted[:left])
                left -= min(left, 1 << 20)
                more = [max(m, resident_kib(p) - b) for m, p, b in zip(more, processes, before)]
        self.assertTrue(takes_at_most(16 << 10, max(more), way.name))

    # --- answers -----------------------------------------------------------------------------------

    @each_way
    def test_head_has_no_body_and_keeps_its_length(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/head", method=b"HEAD"))
            head = c.head()
            self.assertEqual((head.status, head.get(b"Content-Length"), head.get(b"X-Method")),
                             (200, b"1234", b"HEAD"))
            self.assertEqual(c.ask(request(b"/w/raw/next"))[1], b"GET /next")
            c.send(request(b"/w/raw/not-modified"))
            head = c.head()
            self.assertEqual((head.status, head.get(b"ETag")), (304, b'"a"'))
            c.send(request(b"/w/raw/no-content"))
            head = c.head()
            self.assertEqual((head.status, head.get(b"Content-Length"),
                              head.get(b"Transfer-Encoding")), (204, None, None))
            self.assertEqual(c.ask(request(b"/w/raw/next"))[1], b"GET /next")

    @each_way
    def test_informational_answers_pass_at_once(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/early"))
            hints = c.head()
            self.assertEqual(hints.line, b"HTTP/1.1 103 Early Hints")
            self.assertEqual(hints.get(b"Link"), b"</a.css>; rel=preload")
            self.go(b"early") # the final one is sent only now
            head = c.head()
            self.assertEqual((head.status, c.body(head)[0]), (200, b"after"))
            c.send(request(b"/w/raw/processing"))
            self.assertEqual([c.head().status for _ in range(2)], [102, 103])
            self.assertEqual(c.body(c.head())[0], b"after")
        # HTTP/1.0 knows none of them.
        with way.open() as c:
            c.send(b"GET /w/raw/processing HTTP/1.0\r\n\r\n")
            head = c.head()
            self.assertEqual((head.status, c.rest()), (200, b"after"))

    @each_way
    def test_expect_is_between_client_and_code(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/continue", b"Expect: 100-continue\r\nContent-Length: 4\r\n",
                           b"POST"))
            self.assertEqual(c.head().status, 100)
            c.send(b"body")
            head = c.head()
            self.assertEqual((head.status, c.body(head)[0]), (200, b"body"))
            # Nobody asked: nobody is told.
            head, body, _ = c.ask(request(b"/w/raw/unasked-continue"))
            self.assertEqual((head.status, body), (200, b"ok"))
        with way.open() as c:
            c.send(request(b"/w/raw/no-continue", b"Expect: 100-continue\r\nContent-Length: 4\r\n",
                           b"POST"))
            head = c.head()
            self.assertEqual((head.status, head.get(b"Connection")), (417, b"close"))
        with way.open() as c:
            c.send(request(b"/w/raw/", b"Expect: 200-maybe\r\n"))
            self.assertEqual(c.head().status, 417)

    @each_way
    def test_trailers_of_answers_pass(self, way):
        head, body, trailers = way.ask(request(b"/w/raw/trailers", b"TE: trailers\r\n"))
        self.assertEqual((head.get(b"Trailer"), body), (b"X-Sum", b"hello"))
        self.assertEqual(trailers, [b"X-Sum: 42"])

    @each_way
    def test_fields_of_answers_come_as_they_are(self, way):
        head, _, _ = way.ask(request(b"/w/raw/repeated"))
        self.assertEqual(head.all(b"Set-Cookie"), [b"a=1", b"b=2", b"c=3; Path=/"])
        self.assertEqual(head.all(b"X-Order"), [b"1", b"2"])
        self.assertEqual(head.get(b"X-Bytes"), b"caf\xe9 \xff")
        self.assertEqual(head.get(b"X-Empty"), b"")
        head, _, _ = way.ask(request(b"/w/raw/hop"))
        names = [name.lower() for name, _ in head.fields]
        for name in (b"x-named", b"keep-alive", b"proxy-connection", b"connection",
                     b"skerry-error"):
            self.assertNotIn(name, names)
        self.assertEqual(head.get(b"X-Kept"), b"yes")

    @each_way
    def test_redirects_are_passed_and_not_followed(self, way):
        head, _, _ = way.ask(request(b"/w/raw/redirect"))
        self.assertEqual((head.status, head.get(b"Location")),
                         (302, b"http://127.0.0.1:1/elsewhere?a=%2F"))

    # --- connections ---------------------------------------------------------------------------------

    @each_way
    def test_connections_live_and_end_as_both_sides_say(self, way):
        with way.open() as c:
            for _ in range(3):
                head, _, _ = c.ask(request(b"/w/raw/x"))
                self.assertIsNone(head.get(b"Connection"))
            # The code closes its own; the client's lives on.
            head, body, _ = c.ask(request(b"/w/raw/close"))
            self.assertEqual((head.get(b"Connection"), body), (None, b"closing"))
            head, body, _ = c.ask(request(b"/w/raw/until-close"))
            self.assertEqual((head.get(b"Transfer-Encoding"), body), (b"chunked", b"to the end"))
            self.assertEqual(c.ask(request(b"/w/raw/old"))[1], b"old")
            head, body, _ = c.ask(request(b"/w/raw/x", b"Connection: close\r\n"))
            self.assertEqual((head.get(b"Connection"), body), (b"close", b"GET /x"))
            self.assertTrue(c.closed())
        with way.open() as c:
            head, body, _ = c.ask(b"GET /w/raw/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            self.assertEqual((head.get(b"Connection"), body), (b"keep-alive", b"GET /x"))
            head, body, _ = c.ask(b"GET /w/raw/until-close HTTP/1.0\r\n\r\n")
            self.assertEqual((head.get(b"Transfer-Encoding"), body), (None, b"to the end"))

    @each_way
    def test_pipelined_requests_are_answered_in_order(self, way):
        with way.open() as c:
            c.send(b"".join(request(b"/w/raw/n%d" % k) for k in range(20)) +
                   request(b"/w/raw/echo", b"Content-Length: 3\r\n", b"POST", b"abc") +
                   request(b"/w/raw/last"))
            for k in range(20):
                self.assertEqual(c.body(c.head())[0], b"GET /n%d" % k)
            self.assertEqual(c.body(c.head())[0], b"abc")
            self.assertEqual(c.body(c.head())[0], b"GET /last")

    @each_way
    def test_a_cut_answer_never_ends_cleanly(self, way):
        for path in (b"/w/raw/cut", b"/w/raw/cut-chunked"):
            with way.open() as c:
                c.send(request(path))
                head = c.head()
                with self.assertRaises((EOFError, OSError)):
                    c.body(head)
        with way.open() as c: # where no length says it, TCP or TLS must
            c.send(b"GET /w/raw/cut-chunked HTTP/1.0\r\n\r\n")
            c.head()
            with self.assertRaises(OSError):
                c.rest()

    @each_way
    def test_tunnels_carry_bytes_and_half_closes(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/upgrade", b"Connection: Upgrade\r\nUpgrade: bytes\r\n") + b"early")
            head = c.head()
            self.assertEqual((head.status, head.get(b"Upgrade")), (101, b"bytes"))
            self.assertEqual(c.exactly(5), b"early")
            c.send(BINARY * 20)
            self.assertEqual(c.exactly(len(BINARY) * 20), BINARY * 20)
            if way.context is None: # ssl of Python cannot end one direction alone
                c.socket.shutdown(socket.SHUT_WR)
                self.assertEqual(c.rest(), b"|end of yours|")

    @each_way
    def test_web_sockets_are_between_client_and_code(self, way):
        with way.open() as c:
            c.send(request(b"/w/raw/socket",
                           b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
                           b"Sec-WebSocket-Version: 13\r\n"
                           b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                           b"Sec-WebSocket-Protocol: chat.v2, chat\r\n"
                           b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"))
            head = c.head()
            self.assertEqual(head.status, 101)
            self.assertEqual(head.get(b"Sec-WebSocket-Accept"), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
            self.assertEqual(head.get(b"Sec-WebSocket-Protocol"), b"chat.v2")
            self.assertEqual(head.get(b"Sec-WebSocket-Extensions"),
                             b"permessage-deflate; client_max_window_bits")

            def send(first, payload):
                n = len(payload)
                size = (bytes([0x80 | n]) if n < 126 else b"\xfe" + struct.pack(">H", n)
                        if n < 65536 else b"\xff" + struct.pack(">Q", n))
                c.send(bytes([first]) + size + b"\0\0\0\0" + payload)

            def receive():
                first, n = c.exactly(2)
                if n == 126:
                    n = struct.unpack(">H", c.exactly(2))[0]
                elif n == 127:
                    n = struct.unpack(">Q", c.exactly(8))[0]
                return first, c.exactly(n)
            send(0x81, b"hello")
            self.assertEqual(receive(), (0x81, b"hello"))
            send(0x89, b"are you there")
            self.assertEqual(receive(), (0x8a, b"are you there"))
            send(0xc1, b"\xca\x48\xcd\xc9\xc9\x07\x00") # compressed, as RFC 7692 has it
            self.assertEqual(receive(), (0xc1, b"\xca\x48\xcd\xc9\xc9\x07\x00"))
            big = os.urandom(1 << 20)
            send(0x02, big[:300000])
            send(0x80, big[300000:])
            self.assertEqual(receive()[1], big)
            send(0x88, struct.pack(">H", 4001) + b"bye")
            self.assertEqual(receive(), (0x88, struct.pack(">H", 4001) + b"bye"))

    # --- smuggling -----------------------------------------------------------------------------------

    SMUGGLED = b"GET /w/raw/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    REFUSED = {
        "both lengths": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n"
                        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n"
                       b"Content-Length: 5\r\n\r\nabcde",
        "a list of lengths": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4, 5\r\n\r\nabcde",
        "a signed length": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nContent-Length: +4\r\n\r\nabcd",
        "a hexadecimal length": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nContent-Length: 0x4\r\n\r\nabcd",
        "a huge length": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\n"
                         b"Content-Length: 18446744073709551617\r\n\r\na",
        "another coding": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "chunked twice": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunked, not last": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\n"
                             b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "chunked misspelt": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "chunked in HTTP/1.0": b"POST /w/raw/ HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                               b"0\r\n\r\n",
        "bare LF in the line": b"GET /w/raw/ HTTP/1.1\nHost: h\r\n\r\n",
        "bare LF in fields": b"GET /w/raw/ HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        "bare LF at the end": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\n\n",
        "bare CR": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
        "NUL in a value": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
        "obs-fold": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
        "a folded first field": b"GET /w/raw/ HTTP/1.1\r\n Host: h\r\n\r\n",
        "a space before the colon": b"POST /w/raw/ HTTP/1.1\r\nHost: h\r\nContent-Length : 4\r\n\r\nabcd",
        "a tab before the colon": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\nX\t: 4\r\n\r\n",
        "no colon": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\nX\r\n\r\n",
        "no name": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n",
        "two hosts": b"GET /w/raw/ HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        "no host": b"GET /w/raw/ HTTP/1.1\r\n\r\n",
        "two spaces": b"GET  /w/raw/ HTTP/1.1\r\nHost: h\r\n\r\n",
        "a space in the target": b"GET /w/raw/a b HTTP/1.1\r\nHost: h\r\n\r\n",
    }
    UNKNOWN = ("another coding", "chunked misspelt")
    # Within a body: the head has gone on, so all that is left is to break off.
    BROKEN = {
        "a chunk's size with LF": b"5\nhello\r\n0\r\n\r\n",
        "a chunk's size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
        "a chunk's size with a space": b" 5\r\nhello\r\n0\r\n\r\n",
        "a chunk's size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "a huge chunk": b"ffffffffffffffff1\r\n",
        "a chunk that goes on": b"5\r\nhelloX\r\n0\r\n\r\n",
        "a chunk that ends with LF": b"5\r\nhello\n0\r\n\r\n",
        "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    }

    @each_way
    def test_smuggling_is_refused(self, way):
        self.ways[0].ask(request(b"/w/raw/reset-state"))
        for name, data in self.REFUSED.items():
            with self.subTest(case=name), way.open() as c:
                c.send(data + self.SMUGGLED)
                head = c.head()
                self.assertEqual(head.status, 501 if name in self.UNKNOWN else 400)
                self.assertEqual(head.get(b"Connection"), b"close")
                c.body(head)
                self.assertTrue(c.closed())
        for name, data in self.BROKEN.items():
            with self.subTest(case=name), way.open() as c:
                c.send(request(b"/w/raw/echo", b"Transfer-Encoding: chunked\r\n", b"POST", data) +
                       self.SMUGGLED)
                head = c.head()
                self.assertEqual((head.status, head.get(b"Connection")), (400, b"close"))
                c.body(head)
                self.assertTrue(c.closed())
        self.assertEqual([line for line in self.state()["heads"] if "smuggled" in line], [])

    # --- clients of others -----------------------------------------------------------------------------

    @each_way
    def test_curl_uploads_and_downloads(self, way):
        with tempfile.NamedTemporaryFile() as f:
            f.write(os.urandom(9 << 20))
            f.flush()
            base = "http%s://localhost:%d/w/raw" % ("s" if way.context else "", way.port)
            trust = ["--cacert", self.certificates.path("node.pem")]
            wanted = open(f.name, "rb").read()
            for more in (["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
                out = subprocess.run(["curl", "-sS", "--fail", "-m", "60", *trust, *more,
                                      "--data-binary", "@" + f.name, base + "/echo"],
                                     capture_output=True, timeout=70)
                self.assertEqual((out.returncode, out.stdout == wanted), (0, True), out.stderr)

    def test_many_at_once_leave_nothing(self):
        errors = []

        def work(way):
            try:
                for _ in range(10):
                    self.assertEqual(way.ask(request(b"/w/raw/x"))[1], b"GET /x")
            except Exception as e: # pylint: disable=broad-except
                errors.append((way.name, repr(e)))
        threads = [threading.Thread(target=work, args=(way,)) for way in self.ways * 5]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(errors, [])

        def joiners():
            found = [i for i in self.ways[0].node.ps() if i["id"] == self.instance]
            return found[0]["joiners"]
        wait_until(lambda: joiners() == 0, what="no joiner")
