"""A workload of protocol: tcp, and clients for it, on several nodes."""
import contextlib
import json
import socket
import struct
import subprocess
import threading

from cluster import SKERRY

PORT = 7000

# What a connection does is said by its first line.
CODE = """import collections, hashlib, os, signal, socket, struct, threading, time

lock, inside, most, joins = threading.Lock(), 0, 0, 0

def until_end(f):
    digest, size = hashlib.sha256(), 0
    while data := f.read1(65536):
        digest.update(data)
        size += len(data)
    return b"%d %s" % (size, digest.hexdigest().encode())

def note(name, text):
    with open("/tmp/" + name, "wb") as f:
        f.write(text)

def echo(s, f, word):
    while data := f.read1(65536):
        s.sendall(data)

def digest(s, f, word):  # says nothing before the other side has ended
    s.sendall(until_end(f))

def first(s, f, word):  # ends before the other side does
    s.sendall(b"hello")
    s.shutdown(socket.SHUT_WR)
    note("first", until_end(f))

def send(s, f, word):
    block = bytes(range(256)) * 256
    for _ in range(int(word) >> 16):
        s.sendall(block)

def endless(s, f, word):
    block, sent = bytes(range(256)) * 256, 0
    try:
        while True:
            sent += s.send(block)
            note("endless", b"%d" % sent)
    except OSError:
        note("endless-ended", b"%d" % sent)

def deaf(s, f, word):
    time.sleep(1000)

def reset(s, f, word):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

def ended(s, f, word):  # how it ends
    s.sendall(b"x")
    try:
        while f.read1(65536):
            pass
        note("ended", b"end")
    except ConnectionResetError:
        note("ended", b"reset")

def leave(s, f, word):
    os.kill(os.getpid(), signal.SIGKILL)

def identity(s, f, word):
    s.sendall(os.environ["SKERRY_INSTANCE"].encode())

def count(s, f, word):
    with lock:
        s.sendall(b"%d %d %d" % (inside, most, joins))

def run(s):
    global inside, joins
    with lock:
        inside += 1
        joins += 1
    try:
        f = s.makefile("rb")
        line = f.readline(100).split()
        if line:
            globals()[line[0].decode()](s, f, line[-1])
    except OSError:
        pass
    finally:
        with lock:
            inside -= 1
        s.close()

def serve(port):
    l = socket.create_server(("127.0.0.1", port), backlog=256)
    while True:
        s, _ = l.accept()
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=run, args=(s,), daemon=True).start()

def watch():  # a thread hears of its connection's end a moment later, perhaps after the next was accepted
    global most
    last = collections.deque(maxlen=6)
    while True:
        last.append(inside)
        if len(last) == last.maxlen:
            most = max(most, min(last))
        time.sleep(0.005)

threading.stack_size(262144)
threading.Thread(target=watch, daemon=True).start()
threading.Thread(target=serve, args=(7001,), daemon=True).start()  # not declared
serve(int(os.environ["PORT"]))
"""


def spec(name, **more):
    made = {"id": name, "command": ["python3", "main.py"], "port": PORT, "protocol": "tcp",
            "timeouts": {"start": "20s"}, "life": {"idle": "1h"},
            "deploy": {"resources": {"limits": {"pids": 400, "memory": "512M"}}}}
    made.update(more)
    return made


def deploy(node, name, **more):
    node.deploy(spec(name, **more), {"main.py": CODE})


def connect(port, first=b"", timeout=60):
    s = socket.create_connection(("127.0.0.1", port), timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if first:
        s.sendall(first)
    return s


def all_of(s):
    got = bytearray()
    while data := s.recv(262144):
        got += data
    return bytes(got)


def ask(port, line, timeout=60):
    """What a connection answers that sends this and no more."""
    with connect(port, line, timeout) as s:
        s.shutdown(socket.SHUT_WR)
        return all_of(s)


def refused(port, line=b"echo\n"):
    """Whether a connection is closed before anything came."""
    with contextlib.suppress(ConnectionError):  # as soon as it connects, or later
        with connect(port) as s:
            s.sendall(line)
            return s.recv(1) == b""
    return True


def abort(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def joiners(nodes, workload):
    """Of each of its instances, as its owner says."""
    return {i["id"]: i["joiners"] for node in nodes for i in node.ps()
            if i["workload"] == workload and i["node"] == node.name}


class Proxy:
    """`skerry proxy` through a node; `ports` are those that it listens on."""

    def __init__(self, node, subject, *forwards, flags=(), environment=None):
        self.argv = [SKERRY, "proxy", "--json", *flags, subject,
                     *(forwards or ("0:%d" % PORT,))]
        self.count = len(forwards) or 1
        self.environment = dict(node.environment(), **(environment or {}))
        self.ports = []

    def __enter__(self):
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        stdin=subprocess.DEVNULL, env=self.environment)
        for _ in range(self.count):
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.stderr.read().decode())
            self.ports.append(int(json.loads(line)["local"].rpartition(":")[2]))
        return self

    @property
    def port(self):
        return self.ports[0]

    def end(self, signal_number=15):
        """Its exit code, and what it said."""
        self.process.send_signal(signal_number)
        return self.wait()

    def wait(self):
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.kill()
        said = self.process.communicate()[1]
        if kind is not None:
            print("--- skerry proxy\n%s" % said.decode(errors="replace"), flush=True)


def half_way(s, data):
    """Sends all and ends, while what comes is read."""
    def send():
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    got = all_of(s)
    sender.join()
    return got
