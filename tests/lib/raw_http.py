"""Both ends of a proxy as bytes: code that says exactly what it got and sends exactly what it should,
and a client that reads and writes bytes, over TCP or TLS. Neither uses a library for HTTP, since those
tidy up what a test wants to see."""
import os
import socket
import ssl
import subprocess
import tempfile

from cluster import NODE_UID

# A thread for each connection. Of each request it keeps the head as it came; a path says what to do.
CODE = r'''
import hashlib, os, re, socket, struct, threading, time, base64, json
lock = threading.Lock()
state = {"connections": 0, "requests": 0, "sent": 0, "heads": [], "signals": {}}
gates = {}
def gate(name):
    with lock:
        return gates.setdefault(name, (threading.Semaphore(0), threading.Semaphore(0)))
# Who waits is through before open_gate returns: else the next to wait might be.
def wait_gate(name, timeout):
    gate(name)[0].acquire(timeout=timeout)
    gate(name)[1].release()
def open_gate(name):
    gate(name)[0].release()
    gate(name)[1].acquire(timeout=20)

class Connection:
    def __init__(self, s):
        self.s = s
        self.data = b""
    def fill(self):
        piece = self.s.recv(65536)
        if not piece:
            raise EOFError
        self.data += piece
    def until(self, mark):
        while mark not in self.data:
            self.fill()
        head, _, self.data = self.data.partition(mark)
        return head + mark
    def exactly(self, n):
        while len(self.data) < n:
            self.fill()
        out, self.data = self.data[:n], self.data[n:]
        return out
    def send(self, text):
        self.s.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))
    def say(self, body, status="200 OK", more=""):
        body = body if isinstance(body, bytes) else body.encode("latin-1")
        self.send("HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, more, len(body)))
        self.send(body)
    def body(self, head):
        """(content, raw trailer lines, sizes of chunks)"""
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        if length:
            return self.exactly(int(length.group(1))), b"", []
        if not re.search(rb"\r\ntransfer-encoding: *chunked", head, re.I):
            return b"", b"", []
        out, sizes = b"", []
        while True:
            size = int(self.until(b"\r\n").split(b";")[0], 16)
            if size == 0:
                break
            sizes.append(size)
            out += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        trailers = b""
        while True:
            line = self.until(b"\r\n")
            if line == b"\r\n":
                return out, trailers, sizes
            trailers += line
    def digest(self, head):
        """Of a body with a length, in little memory."""
        left = int(re.search(rb"\r\ncontent-length: *(\d+)", head, re.I).group(1))
        total, h = left, hashlib.sha256()
        while left > 0:
            if not self.data:
                self.fill()
            piece, self.data = self.data[:left], self.data[left:]
            h.update(piece)
            left -= len(piece)
        return "%d %s" % (total, h.hexdigest())

def serve(c):
    while True:
        head = c.until(b"\r\n\r\n")
        with lock:
            state["requests"] += 1
            state["heads"].append(head.split(b"\r\n")[0].decode("latin-1"))
        method, target = head.split(b" ")[:2]
        path = target.split(b"?")[0].decode("latin-1")
        if not answer(c, method, path, head):
            return

def answer(c, method, path, head):
    if path == "/raw":
        c.body(head)
        c.say(head)
    elif path == "/echo":
        if re.search(rb"\r\nexpect: *100-continue", head, re.I):
            c.send("HTTP/1.1 100 Continue\r\n\r\n")
        content, trailers, sizes = c.body(head)
        c.say(content, more="X-Chunks: %d\r\nX-Trailers: %s\r\n" % (len(sizes), trailers.hex()))
    elif path == "/digest":
        c.say(c.digest(head))
    elif path.startswith("/bytes/"):
        left = int(path[7:])
        c.send("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
        piece = bytes(range(256)) * 256
        while left > 0:
            c.send(piece[:left]); left -= min(left, len(piece))
    elif path == "/head":
        c.send("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-Method: %s\r\n\r\n" % method.decode())
        if method != b"HEAD":
            c.send(b"x" * 1234)
    elif path == "/not-modified":
        c.send('HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 77\r\n\r\n')
    elif path == "/no-content":
        c.send("HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n")
    elif path == "/early":
        c.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        wait_gate("early", 20)
        c.say("after")
    elif path == "/processing":
        c.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n")
        c.say("after")
    elif path == "/continue":
        c.send("HTTP/1.1 100 Continue\r\n\r\n")
        c.say(c.body(head)[0])
    elif path == "/no-continue":
        c.say("no", "417 Expectation Failed", "Connection: close\r\n")
        return False
    elif path == "/unasked-continue":
        c.send("HTTP/1.1 100 Continue\r\n\r\n")
        c.say("ok")
    elif path == "/trailers":
        c.send("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
               "5;ext=1\r\nhello\r\n0\r\nX-Sum: 42\r\nSkerry-Error: forged\r\n\r\n")
    elif path == "/close":
        c.say("closing", more="Connection: close\r\n")
        return False
    elif path == "/until-close":
        c.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end")
        return False
    elif path == "/old":
        c.send("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")
        return False
    elif path == "/cut":
        c.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        return False
    elif path == "/cut-chunked":
        c.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n")
        return False
    elif path == "/redirect":
        c.say("", "302 Found", "Location: http://127.0.0.1:1/elsewhere?a=%2F\r\n")
    elif path == "/hop":
        c.say("ok", more="Connection: X-Named, keep-alive\r\nX-Named: secret\r\nKeep-Alive: timeout=7\r\n"
              "Proxy-Connection: keep-alive\r\nX-Kept: yes\r\nSkerry-Error: forged\r\n")
    elif path == "/repeated":
        c.say("ok", more="Set-Cookie: a=1\r\nX-Order: 1\r\nSet-Cookie: b=2\r\nX-Order: 2\r\n"
              "set-cookie: c=3; Path=/\r\nX-Bytes: caf\xe9 \xff\r\nX-Empty:\r\n")
    elif path == "/stream":
        c.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for k in range(5):
            wait_gate("stream", 20)
            event = b"data: %d\n\n" % k
            c.send(b"%x\r\n%s\r\n" % (len(event), event))
        c.send("0\r\n\r\n")
    elif path == "/events":
        c.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for k in range(20):
            event = b"data: %.6f\n\n" % time.time()
            c.send(b"%x\r\n%s\r\n" % (len(event), event)); time.sleep(0.2)
        c.send("0\r\n\r\n")
    elif path == "/pieces":
        # Says what it has of the body so far, each time it is asked to.
        length = int(re.search(rb"\r\ncontent-length: *(\d+)", head, re.I).group(1))
        got = 0
        while got < length:
            if not c.data:
                c.fill()
            got += len(c.data); c.data = b""
            with lock:
                state["signals"]["pieces"] = got
        c.say("all %d" % got)
    elif path == "/answer-early":
        c.say("no", "403 Forbidden", "Connection: close\r\n")
        c.s.shutdown(socket.SHUT_WR)
        wait_gate("answer-early", 20)
        return False
    elif path == "/never-read":
        wait_gate("never-read", 60)
        return False
    elif path == "/flood":
        c.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        piece = b"f" * 65536
        c.s.settimeout(60)
        for k in range(15000):
            c.send(piece)
            with lock:
                state["sent"] += len(piece)
    elif path == "/socket":
        key = re.search(rb"\r\nsec-websocket-key: *(\S+)", head, re.I).group(1)
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        more = b""
        for name in (b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions"):
            asked = re.search(b"\r\n" + name + rb": *([^\r]*)", head, re.I)
            if asked:
                more += name + b": " + asked.group(1).split(b",")[0].strip() + b"\r\n"
        c.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
               b"Sec-WebSocket-Accept: " + accept + b"\r\n" + more + b"\r\n")
        websocket(c)
        return False
    elif path == "/upgrade":
        c.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\n")
        try:
            while True:
                if not c.data:
                    c.fill()
                c.send(c.data); c.data = b""
        except EOFError:
            c.send("|end of yours|")
        return False
    elif path.startswith("/go/"):
        open_gate(path[4:])
        c.say("went")
    elif path == "/state":
        with lock:
            c.say(json.dumps(state))
    elif path == "/reset-state":
        with lock:
            state.update(connections=0, requests=0, sent=0, heads=[], signals={})
        c.say("ok")
    else:
        c.body(head)
        c.say("%s %s" % (method.decode(), path))
    return b"connection: close" not in head.lower()

def frame(opcode, payload, fin=True):
    n = len(payload)
    size = bytes([n]) if n < 126 else b"\x7e" + struct.pack(">H", n) if n < 65536 else b"\x7f" + struct.pack(">Q", n)
    return bytes([opcode | (0x80 if fin else 0)]) + size + payload

def websocket(c):
    parts = b""
    while True:
        first, second = c.exactly(2)
        n = second & 127
        if n == 126: n = struct.unpack(">H", c.exactly(2))[0]
        elif n == 127: n = struct.unpack(">Q", c.exactly(8))[0]
        assert second & 128, "a client masks"
        mask = c.exactly(4)
        payload = c.exactly(n)
        payload = bytes(a ^ b for a, b in zip(payload, (mask * (n // 4 + 1))[:n])) if n < 4096 else \
            (int.from_bytes(payload, "big") ^ int.from_bytes((mask * (n // 4 + 1))[:n], "big")).to_bytes(n, "big")
        opcode = first & 15
        if opcode == 8:
            c.send(frame(8, payload)); return
        if opcode == 9:
            c.send(frame(10, payload)); continue
        parts += payload
        if first & 128:
            # Reserved bits as they came: permessage-deflate is between the two ends.
            out = frame(opcode or 2, parts)
            c.send(bytes([out[0] | first & 0x70]) + out[1:]); parts = b""

def run(s):
    with lock:
        state["connections"] += 1
    try:
        serve(Connection(s))
    except (EOFError, OSError):
        pass
    finally:
        s.close()

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", int(os.environ["PORT"])))
listener.listen(256)
while True:
    s, _ = listener.accept()
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=run, args=(s,), daemon=True).start()
'''


def raw_server():
    return {"main.py": CODE}


class Head:
    def __init__(self, data):
        lines = data.rstrip(b"\r\n").split(b"\r\n")
        self.raw = data
        self.line = lines[0]
        self.status = int(lines[0].split()[1])
        self.fields = [tuple(part.strip() for part in line.split(b":", 1)) for line in lines[1:]]

    def all(self, name):
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name):
        values = self.all(name)
        return values[0] if values else None


class Client:
    """A connection; `context` an SSLContext or None."""

    def __init__(self, port, context=None, name="localhost", timeout=30):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=name,
                                              suppress_ragged_eofs=False)
        self.data = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def fill(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError("closed behind %r" % self.data[-300:])
        self.data += piece

    def exactly(self, n):
        parts, have = [self.data], len(self.data)
        while have < n:
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise EOFError("closed behind %d of %d bytes" % (have, n))
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self.data = data[n:]
        return data[:n]

    def until(self, mark):
        while mark not in self.data:
            self.fill()
        out, _, self.data = self.data.partition(mark)
        return out + mark

    def head(self):
        return Head(self.until(b"\r\n\r\n"))

    def chunk(self):
        """One chunk as it stands on the wire; b"" for the last."""
        size = int(self.until(b"\r\n").split(b";")[0], 16)
        if size == 0:
            return b""
        out = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return out

    def body(self, head):
        """(content, trailer lines)"""
        if head.get(b"Content-Length") is not None:
            return self.exactly(int(head.get(b"Content-Length"))), []
        if head.get(b"Transfer-Encoding") == b"chunked":
            out = b""
            while True:
                piece = self.chunk()
                if not piece:
                    break
                out += piece
            trailers = []
            while True:
                line = self.until(b"\r\n")
                if line == b"\r\n":
                    return out, trailers
                trailers.append(line[:-2])
        return self.rest(), []

    def rest(self):
        """All that comes until the other side closes; TLS must say so."""
        while True:
            piece = self.socket.recv(65536)
            if not piece:
                out, self.data = self.data, b""
                return out
            self.data += piece

    def closed(self):
        """Whether the other side closed and said nothing more."""
        try:
            return self.socket.recv(1) == b"" and self.data == b""
        except (ConnectionResetError, ssl.SSLEOFError):
            return True

    def ask(self, data):
        """A final answer: (head, content, trailers)."""
        self.send(data)
        while True:
            head = self.head()
            if head.status >= 200:
                return (head, *self.body(head))


def request(path, fields=b"", method=b"GET", body=b"", host=b"localhost"):
    return (method + b" " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + fields + b"\r\n" + body)


class Certificates:
    """Self-signed ones, in a folder whose keys only the nodes of tests read."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="skerry-test-tls-", dir="/tmp")
        os.chmod(self.directory, 0o755)

    def path(self, name):
        return os.path.join(self.directory, name)

    def make(self, name, *names, kind="ec", days=30):
        """NAME.pem and NAME.key in place of what was there."""
        names = names or ("localhost",)
        fresh = {"ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
                 "rsa": ["-newkey", "rsa:2048"]}[kind]
        done = subprocess.run(
            ["openssl", "req", "-x509", *fresh, "-nodes", "-keyout", self.path(name + ".key.new"),
             "-out", self.path(name + ".pem.new"), "-days", "30", "-subj", "/CN=" + names[0],
             "-addext", "subjectAltName=" + ",".join("DNS:" + n for n in names)],
            capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        if days != 30:  # `req` makes none that has expired
            subprocess.run(["openssl", "x509", "-in", self.path(name + ".pem.new"), "-signkey",
                            self.path(name + ".key.new"), "-days", str(days), "-out",
                            self.path(name + ".pem.changed")], check=True, capture_output=True)
            os.rename(self.path(name + ".pem.changed"), self.path(name + ".pem.new"))
        for suffix in (".key", ".pem"):
            os.chown(self.path(name + suffix + ".new"), NODE_UID, NODE_UID)
            os.chmod(self.path(name + suffix + ".new"), 0o600 if suffix == ".key" else 0o644)
            os.rename(self.path(name + suffix + ".new"), self.path(name + suffix))
        return self

    def configuration(self, *names, more=""):
        return "certificate: [%s], key: [%s]%s" % (
            ", ".join(self.path(n + ".pem") for n in names),
            ", ".join(self.path(n + ".key") for n in names), more)

    def context(self, *names):
        """A client's that believes in these alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for name in names:
            context.load_verify_locations(self.path(name + ".pem"))
        return context
