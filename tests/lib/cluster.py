"""Real nodes for tests: real processes, real sockets, a folder that goes away with them.

    with Node() as node:
        node.deploy({...})
        answer = node.get("/w/hello/")

Conditions are waited for with a deadline (wait_until); nothing sleeps and hopes. When a test fails,
the logs of its nodes are printed.
"""
import contextlib
import fcntl
import glob
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

BUILD = os.path.abspath(os.environ.get("B", "build"))
SKERRY = os.path.join(BUILD, "skerry")
NODE_UID = 1879000000  # unprivileged, below the ranges of instances
PYTHON = "/usr/bin/python3"
UID_BASE = 1879048192  # as is the default of runner.yaml


# Deadlines are for a machine of one's own; one that others keep busy needs more.
PATIENCE = 4


def wait_until(condition, seconds=10.0, what="a condition"):
    """Calls condition until it is true; returns what it returned."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("%s did not hold within %.1f s" % (what, seconds))
        time.sleep(0.01)


def sanitizer_reports(path):
    """What the address, thread, leak and undefined behaviour sanitizers wrote into a log."""
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8", errors="replace") as f:
            text = f.read()
        begins = re.search(r"^.*(?:WARNING|ERROR): \w+Sanitizer|^.*: runtime error:", text, re.M)
        if begins:
            return [text[begins.start():begins.start() + 20000]]
    return []


def sanitized(by="[at]san"):
    """Whether skerry was built with SAN=address or SAN=thread; `by`: with that one (asan, tsan)."""
    needed = subprocess.run(["ldd", SKERRY], capture_output=True, text=True, check=False).stdout
    return re.search(r"lib%s\.so" % by, needed) is not None


def resident_kib(process):
    with open("/proc/%d/status" % process.pid, encoding="ascii") as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))


def takes_at_most(most, kib, what):
    """Whether so much memory is enough. A sanitizer keeps what was freed: with it nothing can be said."""
    print("        %s: %.1f KiB more%s" % (what, kib, ", with what a sanitizer keeps" if sanitized() else ""))
    return kib < most or sanitized()


def processes_of(instance):
    """Host pids of the processes that an instance's code runs."""
    mark = ("SKERRY_INSTANCE=" + instance).encode()
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with contextlib.suppress(OSError):
                with open("/proc/%s/environ" % pid, "rb") as f:
                    if mark in f.read().split(b"\0"):
                        found.append(int(pid))
    return found


_ports_given = set()


def free_port():
    """A TCP port on 127.0.0.1 that nobody has now, and that was not given before. Below those that
    the kernel gives to clients, so that none of them takes it before it is listened on."""
    while True:
        port = random.randrange(20000, 32000)
        if port in _ports_given:
            continue
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


def free_peer_port():
    """The first of four ports in a row on 127.0.0.1 that nobody has now: TCP, but the third, UDP."""
    while True:
        port = free_port()
        if _ports_given.intersection(range(port + 1, port + 4)):
            continue
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for offset in range(1, 4):
                kind = socket.SOCK_DGRAM if offset == 2 else socket.SOCK_STREAM
                stack.enter_context(socket.socket(type=kind)).bind(("127.0.0.1", port + offset))
            _ports_given.update(range(port + 1, port + 4))
            return port


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name):
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return None

    @property
    def instance(self):
        return self.header("Skerry-Instance")

    @property
    def start(self):
        return self.header("Skerry-Start")

    @property
    def error(self):
        return self.header("Skerry-Error")

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return "<%d %s %r>" % (self.status, dict(self.headers), self.body[:300])


# linux/fcntl.h: a lock of the open file, which closing another descriptor of it does not drop.
F_OFD_SETLK = 37


class UserIds:
    """User ids for INSTANCES instances that no other runner or test of this machine has, until it is closed.

    The last of them is locked here: whoever looks for free ones passes over them all, also while no
    runner of ours lives."""

    INSTANCES = 100

    def __init__(self):
        # Those that a runner takes unasked; `skerry up` takes others, beyond them.
        ranges = list(range(0, 1000, self.INSTANCES))
        random.shuffle(ranges)
        self.file = open("/run/skerry-uids.lock", "ab+")
        for first in ranges:
            self.base = UID_BASE + first * 65536
            end = self.base + self.INSTANCES * 65536
            last = end - 65536
            with contextlib.suppress(BlockingIOError):
                for kind, start in ((fcntl.F_WRLCK, self.base), (fcntl.F_UNLCK, self.base),
                                    (fcntl.F_WRLCK, last)):
                    fcntl.fcntl(self.file, F_OFD_SETLK,
                                struct.pack("hhqqi", kind, os.SEEK_SET, start, end - start, 0))
                return
        self.file.close()
        raise AssertionError("all user ids are taken by other runners on this machine")

    def share(self, k, of):
        """The part of runner `k` of so many: its first id, and for how many instances."""
        count = (self.INSTANCES - 1) // of  # the last is held here
        return self.base + k * count * 65536, count

    def close(self):
        self.file.close()


_numbers = itertools.count(1)


def _empty(group):
    """Ends what is in a control group and removes it; true when it is gone."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            with open(os.path.join(folder, "cgroup.procs")) as f:
                for pid in f.read().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not os.path.exists(group)


class UnixConnection(http.client.HTTPConnection):
    """To the API at a path."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Node:
    """One `skerry runner` and one `skerry serve`."""

    def __init__(self, config="", runner_config="", name="node1", join=None, ids=None, most=""):
        """`join` is a node of a cluster that this one shall be in; without it makes its own.
        `ids`: what UserIds.share gives; without it the node has a range for itself."""
        self.name = name
        self.join = join
        self.own_ids = UserIds() if ids is None else None
        uid_base, instances = ids or self.own_ids.share(0, 1)
        # A name that no other runner of this machine has: each sweeps what is under its own.
        self.group = "skerry-test-%d-%d" % (os.getpid(), next(_numbers))
        self.directory = tempfile.mkdtemp(prefix="skerry-test-", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.http_port = free_port()
        self.api_port = free_port()
        self.peer_port = free_peer_port()
        self.runner_process = None
        self.serve_process = None
        self.data = os.path.join(self.directory, "data")
        os.mkdir(self.data)
        os.chown(self.data, NODE_UID, NODE_UID)
        self.api_socket = os.path.join(self.directory, "run", "api.sock")
        run = os.path.join(self.directory, "run")
        os.mkdir(run)
        os.chown(run, NODE_UID, NODE_UID)
        with open(self.path("skerry.yaml"), "w") as f:
            f.write(
                "name: %s\ndata: %s\nbind: 127.0.0.1:%d\nhttp: 127.0.0.1:%d\napi: 127.0.0.1:%d\n"
                "api_socket: %s\nrunner_socket: %s\n%s%s"
                % (name, self.data, self.peer_port, self.http_port, self.api_port,
                   self.api_socket, self.path("runner.sock"),
                   "bootstrap: true\n" if join is None else
                   "peers: [\"127.0.0.1:%d\"]\ntoken_file: %s\n" % (join.peer_port,
                                                                    self.path("token")), config))
        with open(self.path("runner.yaml"), "w") as f:
            f.write("directory: %s\nsocket: %s\nuid_base: %d\ncgroup: %s\nmax: {instances: %d%s}\n%s"
                    % (self.path("runner"), self.path("runner.sock"), uid_base, self.group, instances,
                       most, runner_config))
        os.chmod(self.path("runner.yaml"), 0o644)

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    # --- processes ---------------------------------------------------------------------------

    def start_runner(self):
        log = open(self.path("runner.log"), "ab")
        self.runner_process = subprocess.Popen(
            [SKERRY, "runner", "--config", self.path("runner.yaml"), "--node-uid", str(NODE_UID),
             "--node-gid", str(NODE_UID)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        log.close()

    def start_serve(self, ready=True):
        log = open(self.path("serve.log"), "ab")
        self.serve_process = subprocess.Popen(
            [SKERRY, "serve", "--config", self.path("skerry.yaml")], stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, user=NODE_UID, group=NODE_UID,
            extra_groups=[])
        log.close()
        if ready:
            self.wait_ready()

    def wait_ready(self, seconds=20):
        def ready():
            for process in (self.serve_process, self.runner_process):
                if process is not None and process.poll() is not None:
                    with open(self.path(process.args[1] + ".log"), errors="replace") as f:
                        last = f.readlines()[-3:]
                    raise AssertionError("%s ended with %s: %s" % (process.args[1], process.returncode,
                                                                   "".join(last)))
            try:
                return self.get("/readyz").status == 200
            except OSError:
                return False
        wait_until(ready, seconds, "/readyz of %s" % self.name)

    def start(self):
        if self.join is not None and not os.path.exists(self.path("token")):
            token = self.join.cli("token", "create", "--node").stdout
            with open(os.open(self.path("token"), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
                f.write(token)
            os.chown(self.path("token"), NODE_UID, NODE_UID)
        self.start_runner()
        self.start_serve()
        return self

    def kill_serve(self):
        os.kill(self.serve_process.pid, signal.SIGKILL)
        self.serve_process.wait()

    def kill_runner(self):
        os.kill(self.runner_process.pid, signal.SIGKILL)
        self.runner_process.wait()

    def stop_serve(self, seconds=40):
        self.serve_process.send_signal(signal.SIGTERM)
        return self.serve_process.wait(seconds)

    def close(self):
        with contextlib.suppress(Exception):
            for instance in self.ps():
                self.cli("stop", instance["id"], check=False)
        for process in (self.serve_process, self.runner_process):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10 * PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.forget()

    def forget(self):
        """What is left of it goes. What a sanitizer reported meanwhile (a leak: at its end) fails the test."""
        # Instances outlive their runner, and the agents' grace is longer than a test has time. In a tree of
        # groups theirs may be below ours.
        for group in glob.glob("/sys/fs/cgroup/**/%s-*" % self.group, recursive=True):
            wait_until(lambda g=group: _empty(g), 10, "%s is empty" % group)
        found = [report for name in ("runner.log", "serve.log")
                 for report in sanitizer_reports(self.path(name))]
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.own_ids is not None:
            self.own_ids.close()
        if found:
            raise AssertionError("%s: %s" % (self.name, "\n".join(found)))

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.dump()
            self.close()
            raise

    def __exit__(self, kind, value, trace):
        if kind is not None:
            self.dump()
        self.close()

    def dump(self):
        for name in ("runner.log", "serve.log"):
            with contextlib.suppress(OSError):
                with open(self.path(name), "rb") as f:
                    text = f.read()[-6000:].decode(errors="replace")
                print("--- %s of %s\n%s" % (name, self.name, text), flush=True)

    # --- the command line --------------------------------------------------------------------------

    def environment(self):
        e = {k: v for k, v in os.environ.items() if not k.startswith("SKERRY_")}
        e["SKERRY_ADDR"] = "unix:" + self.api_socket
        e["NO_COLOR"] = "1"
        return e

    def cli(self, *arguments, stdin=b"", check=True, timeout=60, environment=None):
        """Runs skerry; a CompletedProcess with bytes. `environment` is added to ours."""
        if isinstance(stdin, str):
            stdin = stdin.encode()
        done = subprocess.run([SKERRY, *arguments], input=stdin, capture_output=True,
                              timeout=timeout,
                              env=dict(self.environment(), **(environment or {})))
        if check and done.returncode != 0:
            raise AssertionError("skerry %s: exit code %d\n%s\n%s" % (
                " ".join(arguments), done.returncode, done.stdout.decode(errors="replace"),
                done.stderr.decode(errors="replace")))
        return done

    def deploy(self, spec, source=None, *flags):
        """Deploys a workload given as a dict; `source` is a dict of file name to text."""
        spec = dict(spec)
        folder = tempfile.mkdtemp(dir=self.directory)
        if source is not None:
            os.mkdir(os.path.join(folder, "app"))
            for name, text in source.items():
                with open(os.path.join(folder, "app", name), "w") as f:
                    f.write(text)
            spec["source"] = "./app"
        path = os.path.join(folder, "workload.json")
        with open(path, "w") as f:
            json.dump(spec, f)
        return self.cli("deploy", *flags, path)

    def ps(self, *flags):
        return json.loads(self.cli("ps", "--json", *flags).stdout)

    def status(self):
        return json.loads(self.cli("status", "--json").stdout)

    # --- joins ---------------------------------------------------------------------------------------

    def request(self, method, path, body=None, headers=None, timeout=60, port=None):
        return self._ask(http.client.HTTPConnection("127.0.0.1", port or self.http_port,
                                                    timeout=timeout), method, path, body, headers)

    def get(self, path, headers=None, timeout=60):
        return self.request("GET", path, headers=headers, timeout=timeout)

    def api(self, method, path, body=None, timeout=30):
        """A request to the API by its unix socket; a dict goes as JSON."""
        if isinstance(body, dict):
            body = json.dumps(body)
        return self._ask(UnixConnection(self.api_socket, timeout), method, path, body,
                         {"Content-Type": "application/json"} if body else {})

    def _ask(self, connection, method, path, body, headers):
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def raw(self, data, timeout=10, port=None):
        """Sends bytes as they are, returns all that comes until the other side closes."""
        with socket.create_connection(("127.0.0.1", port or self.http_port), timeout) as s:
            s.sendall(data)
            out = b""
            while True:
                try:
                    piece = s.recv(65536)
                except ConnectionResetError:
                    return out
                if not piece:
                    return out
                out += piece


class Nodes:
    """Several nodes in one cluster. `configs` has a text for each, added to its skerry.yaml."""

    NODES_MAX = 5  # they share a range of user ids

    def __init__(self, count=3, configs=None, own_ids=False):
        """`own_ids`: for many instances, each node has a range for itself."""
        self.nodes = []
        self.count = count
        self.configs = configs or [""] * count
        self.ids = None if own_ids else UserIds()

    def __enter__(self):
        try:
            for k in range(self.count):
                node = Node(self.configs[k], name="node%d" % (k + 1),
                            join=self.nodes[0] if k > 0 else None,
                            ids=self.ids and self.ids.share(k, self.NODES_MAX))
                self.nodes.append(node)
                node.start()
            self.wait_settled()
        except BaseException:
            self.__exit__(True, None, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        for node in self.nodes:
            if kind is not None:
                node.dump()
        for node in reversed(self.nodes):
            for process in (node.serve_process, node.runner_process):
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGCONT)
        for node in reversed(self.nodes):
            node.close()
        if self.ids is not None:
            self.ids.close()

    def __getitem__(self, k):
        return self.nodes[k]

    def __len__(self):
        return len(self.nodes)

    def wait_settled(self, seconds=20):
        """Until all vote that may, and all are alive to each other."""
        voters = min(3, self.count - 1 + self.count % 2)
        wait_until(lambda: self.settled(voters), seconds, "%d voters among %d nodes"
                   % (voters, self.count))

    def settled(self, voters):
        for node in self.nodes:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                listed = node.status()["nodes"]
                if (sum(n["role"] == "voter" for n in listed) == voters
                        and sum(n["state"] == "alive" for n in listed) == self.count):
                    continue
            return False
        return True

    def leader(self):
        """The node that leads, as the others say."""
        for node in self.nodes:
            if node.serve_process.poll() is None:
                with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                    name = node.status()["leader"]
                    return next((n for n in self.nodes if n.name == name), None)
        return None


# A server in the standard library alone, one thread a request, HTTP/1.1. `handle(self)` is added.
SERVER = """
import http.server, os, sys, threading, time, json
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def say(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for k, v in headers: self.send_header(k, v)
        self.send_header("Content-Length", str(len(body)))
        # Head and body in one piece: who is killed between two has sent half an answer on.
        self._headers_buffer += [b"\\r\\n", b"" if self.command == "HEAD" else body]
        self.flush_headers()
    def do_GET(self): handle(self)
    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET
    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
%s
class S(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
S(("", int(os.environ["PORT"])), H).serve_forever()
"""


def server(handle):
    """Source of a workload whose `handle(h)` is given as text."""
    return {"main.py": SERVER % handle}


def server_spec(name, **more):
    spec = {
        "id": name,
        "command": ["python3", "main.py"],
        "port": 8080,
        "access": "public",
        "timeouts": {"start": "20s"},
    }
    spec.update(more)
    return spec
