"""Durable writes on three nodes, beside etcd; and the end of their leader."""
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import struct
import subprocess
import time

import network
from cluster import SKERRY, free_port
from harness import Column, Invalid, Processes, Table, cpu_seconds, folder, percentile, pinned, seconds_each, wait_until

KILLS = int(os.environ.get("KILLS") or 10)
DELAY_MS = int(os.environ.get("DELAY_MS") or 2)
IN_FLIGHT = (1, 32, 256)
FIRST = 61  # our nodes are 127.0.0.61 to .63
COLUMNS = [Column("writes/s", 0, less=False), Column("p50 ms", 2), Column("p99 ms", 2),
           Column("CPU us a write", 0)]


def path_of(write, leader):
    return "/v1/workloads" if write == "deploy" else "/v1/nodes/node%d/undrain" % leader


class Skerry:
    def __init__(self, run):
        self.dir = os.path.join(run, "skerry")
        self.up()
        self.spec = os.path.join(run, "workload.json")
        with open(self.spec, "w") as f:
            json.dump({"id": "bench", "kind": "command", "command": ["true"]}, f)
        self.token = self.cli(1, "token", "create", "--role", "admin").strip()

    def up(self):
        subprocess.run([SKERRY, "up", "--nodes", "3", "--dir", self.dir, "--address",
                        "127.0.0.%d" % FIRST, "--detach"], check=True, stdout=subprocess.DEVNULL)

    def cli(self, node, *words):
        return subprocess.run([SKERRY, *words, "--addr", "unix:%s/node%d/run/api.sock" % (self.dir, node)],
                              check=True, capture_output=True, text=True).stdout

    def pid(self, node):
        with open("%s/node%d/serve.pid" % (self.dir, node)) as f:
            return int(f.read())

    def pids(self):
        return [self.pid(node) for node in (1, 2, 3)]

    def leader(self):
        for node in (1, 2, 3):
            with contextlib.suppress(subprocess.CalledProcessError):
                found = json.loads(self.cli(node, "status", "--json"))["leader"]
                if found:
                    return int(found[4:])
        return None

    def load(self, write, clients):
        leader = wait_until(self.leader, 10, "our leader")
        return h2load(["--h1", "-d", self.spec, "-H", "Skerry-Token: " + self.token,
                       "-H", "Content-Type: application/json", "http://127.0.0.%d:8081%s"
                       % (FIRST - 1 + leader, path_of(write, leader))], clients, self.pids())[1:]

    def write(self, node):
        """True when it was acknowledged."""
        try:
            c = http.client.HTTPConnection("127.0.0.%d" % (FIRST - 1 + node), 8081, timeout=2)
            with open(self.spec, "rb") as f:
                c.request("POST", "/v1/workloads", f.read(),
                          {"Skerry-Token": self.token, "Content-Type": "application/json"})
            return c.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill_leader(self):
        leader = wait_until(self.leader, 10, "our leader")
        other = next(n for n in (1, 2, 3) if n != leader)
        taken = killed(self.pid(leader), lambda: self.write(other))
        self.up()
        return [taken]

    def close(self):
        subprocess.run([SKERRY, "down", "--dir", self.dir, "--delete"], check=False,
                       stdout=subprocess.DEVNULL)


def killed(pid, write):
    """Milliseconds from the end of a leader to the next write that another node acknowledged."""
    wait_until(write, 10, "a write through a follower")
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    while not write():
        if time.monotonic() > begun + 20:
            raise Invalid("no write within 20 s of the leader's end")
    return (time.monotonic() - begun) * 1e3


class Etcd:
    def __init__(self, run, processes, hosts=None):
        """On loopback, or each on a host of tests/lib/network.py."""
        self.processes, self.hosts, self.run = processes, hosts, run
        # Namespaces have all ports free, and another address each.
        addresses = [h.address for h in hosts] if hosts else ["127.0.0.1"] * 3
        clients, peers = ([2379] * 3, [2380] * 3) if hosts else (
            [free_port() for _ in range(3)], [free_port() for _ in range(3)])
        self.clients = ["http://%s:%d" % pair for pair in zip(addresses, clients)]
        self.peers = ["http://%s:%d" % pair for pair in zip(addresses, peers)]
        self.members = [None] * 3
        for i in range(3):
            self.start(i)
        self.endpoints = [c[len("http://"):] for c in self.clients]
        wait_until(self.leader, 20, "etcd has a leader")
        # KV.Put, one frame: {1: "bench", 2: 60 bytes}
        message = b"\x0a\x05bench\x12\x3c" + b"v" * 60
        self.frame = os.path.join(run, "put.bin")
        with open(self.frame, "wb") as f:
            f.write(struct.pack(">BI", 0, len(message)) + message)

    def start(self, i):
        everybody = ",".join("e%d=%s" % pair for pair in enumerate(self.peers))
        with self.inside(i):
            self.members[i] = self.processes.start(
                ["etcd", "--name", "e%d" % i, "--data-dir", os.path.join(self.run, "etcd%d" % i),
                 "--listen-client-urls", self.clients[i], "--advertise-client-urls", self.clients[i],
                 "--listen-peer-urls", self.peers[i], "--initial-advertise-peer-urls", self.peers[i],
                 "--initial-cluster", everybody, "--logger", "zap", "--log-level", "error"])

    def inside(self, i):
        return self.hosts[i].inside() if self.hosts else contextlib.nullcontext()

    def status(self):
        with self.inside(0):
            out = subprocess.run(["etcdctl", "--endpoints", ",".join(self.endpoints), "endpoint",
                                  "status", "-w", "json"], env=dict(os.environ, ETCDCTL_API="3"),
                                 capture_output=True, text=True).stdout
        return json.loads(out) if out.strip() else []

    def leader(self):
        for one in self.status():
            s = one["Status"]
            if s.get("leader") and s["leader"] == s["header"]["member_id"]:
                return one["Endpoint"]
        return None

    def revision(self):
        return max(one["Status"]["header"]["revision"] for one in self.status())

    def load(self, _write, clients):
        before = self.revision()
        leader = self.endpoints.index(wait_until(self.leader, 10, "etcd's leader"))
        with self.inside(leader):
            count, *figures = h2load(["-d", self.frame, "-H", "content-type: application/grpc",
                                      "-H", "te: trailers", "http://%s/etcdserverpb.KV/Put"
                                      % self.endpoints[leader]], clients, [m.pid for m in self.members])
        # A refusal of gRPC hides behind status 200: the revision tells what was written.
        if self.revision() - before < count:
            raise Invalid("etcd wrote %d of %d" % (self.revision() - before, count))
        return figures

    def write(self, i):
        body = json.dumps({"key": base64.b64encode(b"bench").decode(),
                           "value": base64.b64encode(b"v" * 60).decode()})
        try:
            c = http.client.HTTPConnection(self.endpoints[i], timeout=2)
            c.request("POST", "/v3/kv/put", body)
            return c.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill_leader(self):
        leader = self.endpoints.index(wait_until(self.leader, 10, "etcd's leader"))
        other = next(n for n in range(3) if n != leader)
        taken = killed(self.members[leader].pid, lambda: self.write(other))
        self.members[leader].wait()
        self.start(leader)
        wait_until(lambda: self.write(leader), 20, "etcd's member that is back")
        return [taken]


class Delayed:
    """Three nodes on hosts of a network, asked by the unix socket of their leader's API."""

    def __init__(self, run, nodes):
        self.nodes = nodes
        self.spec = os.path.join(run, "workload.json")

    def load(self, write, clients):
        leader = self.nodes.nodes[0].status()["leader"]
        node = next(n for n in self.nodes.nodes if n.name == leader)
        return h2load(["--h1", "-d", self.spec, "-H", "Content-Type: application/json", "-B",
                       "unix:" + node.api_socket, "http://localhost" + path_of(write, int(leader[len("node"):]))],
                      clients, [n.serve_process.pid for n in self.nodes.nodes])[1:]


def h2load(words, clients, pids):
    """How many were written; writes a second, p50 and p99 in ms, CPU of these processes for each."""
    log = "/dev/shm/skerry-bench-%d.log" % os.getpid()
    seconds = seconds_each(3)
    before = cpu_seconds(*pids)
    try:
        out = subprocess.run(pinned(["h2load", "-t1", "-c%d" % clients, "-D%dms" % int(seconds * 1000),
                                     "--log-file=" + log, *words]), capture_output=True, text=True,
                             timeout=seconds + 60).stdout
        cpu = cpu_seconds(*pids) - before
        with open(log) as f:
            taken = sorted(int(line.split("\t")[2]) / 1e3 for line in f)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)
    found = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", out)
    counts = [re.search(r"(\d+) " + w, out) for w in ("succeeded", "failed", "errored", "timeout")]
    if not found or None in counts or not taken:
        raise Invalid("h2load %s:\n%s" % (" ".join(words), out))
    done, failed, errored, timed_out = (int(c.group(1)) for c in counts)
    if failed or errored or timed_out or not done or not re.search(
            r"status codes: \d+ 2xx, 0 3xx, 0 4xx, 0 5xx", out):
        raise Invalid("h2load %s:\n%s" % (" ".join(words), out))
    return done, float(found.group(1)), percentile(taken, 50), percentile(taken, 99), cpu / done * 1e6


def writes(title, skerry, etcd, in_flight):
    for clients in in_flight:
        yield Table("%d in flight%s" % (clients, title), COLUMNS, {
            "skerry, flag": lambda c=clients: skerry.load("flag", c),
            "skerry, deploy": lambda c=clients: skerry.load("deploy", c),
            "etcd": lambda c=clients: etcd.load("", c)}, "skerry, flag", ("etcd",))


def compare():
    """Durable writes at the leader of three nodes, on the disks of a majority and applied before they are
    answered: POST /v1/nodes/NAME/undrain (flag) and POST /v1/workloads (deploy) beside etcd's KV.Put by
    gRPC (a key of 5 bytes, a value of 60). Then the leader is killed, and with delay between the nodes."""
    with folder() as run, Processes() as processes:
        skerry = None
        try:
            skerry, etcd = Skerry(run), Etcd(run, processes)
            yield from writes("", skerry, etcd, IN_FLIGHT)
            yield Table("leader killed, next write through another node", [Column("ms", 0)],
                        {"skerry": skerry.kill_leader, "etcd": etcd.kill_leader}, "skerry", ("etcd",),
                        KILLS)
        finally:
            if skerry is not None:
                skerry.close()
    with folder() as run, Processes() as processes, network.Cluster(3) as nodes:
        with open(os.path.join(run, "workload.json"), "w") as f:
            json.dump({"id": "bench", "kind": "command", "command": ["true"]}, f)
        etcd = Etcd(run, processes, list(nodes.network.hosts.values()))
        nodes.network.delay(DELAY_MS)
        yield from writes(", %d ms each way between the nodes" % DELAY_MS, Delayed(run, nodes), etcd,
                          IN_FLIGHT[:2])
