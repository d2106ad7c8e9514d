"""WebSockets through Skerry, nginx and haproxy."""
import base64
import contextlib
import os
import resource
import socket
import time

from cluster import PYTHON, Node, free_port
from harness import (LOAD_CORES, SERVER_CORES, Column, Invalid, Processes, Table, descendants, folder, percentile, pin,
                     pinned, pss_kib, seconds_each, wait_until)
from proxies import haproxy, nginx_proxy

IDLE = 1000
# Echoes frames of up to 125 bytes; what it sends is not masked.
ECHO = """import base64, hashlib, os, selectors, socket
selector = selectors.DefaultSelector()
listener = socket.create_server(("", int(os.environ["PORT"])), backlog=1024)
selector.register(listener, selectors.EVENT_READ)
texts = {}
def upgrade(client, text):
    key = next(l.split(b":", 1)[1].strip() for l in text.split(b"\\r\\n")
               if l.lower().startswith(b"sec-websocket-key:"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    client.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                   b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            client = listener.accept()[0]
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(client, selectors.EVENT_READ)
            texts[client] = b""
            continue
        client = key.fileobj
        try:
            data = client.recv(4096)
        except OSError:
            data = b""
        if not data:
            selector.unregister(client)
            texts.pop(client, None)
            client.close()
        elif client in texts:
            texts[client] += data
            if b"\\r\\n\\r\\n" in texts[client]:
                upgrade(client, texts.pop(client))
        else:
            size = data[1] & 127
            mask, body = data[2:6], data[6:6 + size]
            client.sendall(bytes((data[0], size)) + bytes(b ^ mask[i % 4] for i, b in enumerate(body)))
"""


def connect(port, path):
    s = socket.create_connection(("127.0.0.1", port), timeout=20)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    s.sendall(("GET %s HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
               "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % (path, key)).encode())
    text = b""
    while b"\r\n\r\n" not in text:
        data = s.recv(4096)
        if not data:
            break
        text += data
    if not text.startswith(b"HTTP/1.1 101"):
        s.close()
        raise Invalid("an upgrade at port %d was answered by %r" % (port, text[:200]))
    return s


def echo(s, body):
    mask = os.urandom(4)
    s.sendall(bytes((0x82, 0x80 | len(body))) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(body)))
    got = b""
    while len(got) < len(body) + 2:
        data = s.recv(4096)
        if not data:
            break
        got += data
    if got != bytes((0x82, len(body))) + body:
        raise Invalid("an echo brought %r" % got[:200])


def latency(port, path, seconds):
    taken = []
    with contextlib.closing(connect(port, path)) as s:
        for _ in range(20):
            echo(s, b"0123456789abcdef")
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            echo(s, b"0123456789abcdef")
            taken.append((time.perf_counter() - begun) * 1e6)
    return percentile(taken, 50), percentile(taken, 99), len(taken) / seconds


def opens(port, path):
    try:
        connect(port, path).close()
        return True
    except (OSError, Invalid):
        return False


def idle(pids, port, path):
    """KiB that these processes have more for each connection that stays open."""
    with contextlib.ExitStack() as stack:
        before, begun = pss_kib(*pids()), time.perf_counter()
        open_ones = [stack.enter_context(contextlib.closing(connect(port, path))) for _ in range(IDLE)]
        taken = (time.perf_counter() - begun) * 1e6 / IDLE
        for s in open_ones[::100]:
            echo(s, b"still there")
        return (pss_kib(*pids()) - before) / IDLE, taken


UPGRADE = ("proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; "
           "proxy_read_timeout 600s;")


@contextlib.contextmanager
def ours(app):
    """A node with the echo: what tells its processes, without the program, which others have too; its
    port and path."""
    with Node(config="gateway: {threads: 1}\n", runner_config="blanks: 0\n") as node:
        node.deploy({"id": "echo", "command": [PYTHON, "/app/echo.py"], "port": 8080, "access": "public",
                     "source": app, "join": {"max_joiners": 0}, "life": {"idle": "1h"},
                     "timeouts": {"stream_idle": "10m", "request": "none"},
                     "deploy": {"resources": {"limits": {"cpus": "2"}}}})

        def pids():
            return [pid for pid in [node.serve_process.pid, *descendants(node.runner_process.pid)]
                    if "python" not in os.path.basename(os.readlink("/proc/%d/exe" % pid))]
        wait_until(lambda: opens(node.http_port, "/w/echo/"), 10, "skerry")
        pin(node.serve_process.pid, SERVER_CORES)
        yield pids, node.http_port, "/w/echo/"


@contextlib.contextmanager
def theirs(name, port_of_backend):
    with folder() as run, Processes() as processes:
        pid, port = (nginx_proxy(processes, run, name, port_of_backend, UPGRADE) if name == "nginx" else
                     haproxy(processes, run, port_of_backend))
        wait_until(lambda: opens(port, "/"), 10, name)
        pin(pid, SERVER_CORES)
        yield lambda: [pid], port, "/"


def fresh_idle(make):
    # What once had so many connections keeps their memory.
    with make() as (pids, port, path):
        return idle(pids, port, path)


def compare():
    """A WebSocket's echo of 16 bytes on one connection, and memory of those that are open and idle, through
    Skerry, nginx and haproxy. The same echo in Python behind each, Skerry's in an instance."""
    seconds = seconds_each(3)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with folder() as run, Processes() as processes:
        app = os.path.join(run, "app")
        os.mkdir(app)
        with open(os.path.join(app, "echo.py"), "w") as f:
            f.write(ECHO)
        port = free_port()
        processes.start(pinned([PYTHON, os.path.join(app, "echo.py")], LOAD_CORES), env={"PORT": str(port)})
        wait_until(lambda: opens(port, "/"), 10, "the echo")
        make = {"skerry": lambda: ours(app), "nginx": lambda: theirs("nginx", port),
                "haproxy": lambda: theirs("haproxy", port)}
        with contextlib.ExitStack() as stack:
            sides = {"direct": (None, port, "/"),
                     **{name: stack.enter_context(m()) for name, m in make.items()}}
            yield Table("echo of 16 bytes, 1 connection", [
                Column("p50 us"), Column("p99 us"), Column("echoes/s", 0, less=False)], {
                    name: lambda a=at, p=path: latency(a, p, seconds) for name, (_, at, path) in sides.items()},
                        "skerry", ("nginx", "haproxy"))
        yield Table("%d idle connections" % IDLE, [Column("KiB each", 2), Column("us to open one", 0)], {
            name: lambda m=m: fresh_idle(m) for name, m in make.items()}, "skerry", ("nginx", "haproxy"), 3)
