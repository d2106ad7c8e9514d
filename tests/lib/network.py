"""A network of a test's own between nodes: delay, and cuts that go both ways or one.

Each host is a network namespace with one TUN device, 10.77.0.K and 10.77.0.(100 + K). A process (this
file run by itself) holds the other ends and carries each IP packet, after a delay, or drops it: no nft,
no bridge and no kernel module are needed, and nothing of the machine's own network is touched. A cut
drops without a word, as a cable does.

    with Cluster(3) as nodes:
        nodes.network.cut([1], [2, 3])
        nodes.network.heal()
        nodes.network.delay(2)
"""
import contextlib
import ctypes
import fcntl
import heapq
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from cluster import PYTHON, SKERRY, Node, Nodes, processes_of, wait_until

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 9000
REPEAT_SECONDS = 0.3
OTHER = 100  # what the second address of a host ends with, beyond the number of the host

_libc = ctypes.CDLL(None, use_errno=True)


def _check(rc, what):
    if rc != 0:
        raise OSError(ctypes.get_errno(), "%s: %s" % (what, os.strerror(ctypes.get_errno())))


def address(k):
    return "10.77.0.%d" % k


class Host:
    """A network namespace with a TUN device that the network's process holds."""

    def __init__(self, k):
        self.address, self.other_address = address(k), address(OTHER + k)
        made = []
        thread = threading.Thread(target=self._make, args=(made,))
        thread.start()
        thread.join()
        if not made or isinstance(made[0], Exception):
            raise made[0] if made else AssertionError("no namespace was made")
        self.namespace, self.tun = made

    def _make(self, made):
        # In a thread that ends with it: the namespace stays as long as its descriptor.
        try:
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"net0", IFF_TUN | IFF_NO_PI))
            # The second address is for a node that moves there.
            for command in ("link set lo up", "addr add %s/24 dev net0" % self.address,
                            "addr add %s/24 dev net0" % self.other_address,
                            "link set net0 mtu %d up" % MTU):
                subprocess.run(["ip", *command.split()], check=True)
            # A thread of many: /proc/self would be the first one's.
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            made += [namespace, tun]
        except Exception as error:  # the thread that waits raises it
            made[:] = [error]

    @contextlib.contextmanager
    def inside(self):
        """This thread's sockets and children are in the host's namespace meanwhile."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self.namespace, CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _check(_libc.setns(home, CLONE_NEWNET), "setns home")
        finally:
            os.close(home)

    def close(self):
        os.close(self.namespace)
        os.close(self.tun)


class Network:
    """Hosts 1 to `count`, each reached by each other."""

    def __init__(self, count):
        self.hosts = {}
        for k in range(1, count + 1):
            self.hosts[k] = Host(k)
        ours, theirs = socket.socketpair()
        tuns = [host.tun for host in self.hosts.values()]
        with theirs:
            self.process = subprocess.Popen(
                [PYTHON, os.path.abspath(__file__), str(theirs.fileno()), *map(str, tuns)],
                pass_fds=[theirs.fileno(), *tuns], stdin=subprocess.DEVNULL)
        self.control = ours
        self.answers = ours.makefile("rb")
        self.rules = {}
        self.repeats = False

    def _say(self):
        rules = [[a, b, *rule] for (a, b), rule in self.rules.items()]
        self.control.sendall(json.dumps({"rules": rules, "repeats": self.repeats}).encode() + b"\n")
        if not self.answers.readline():
            raise AssertionError("the network's process ended")

    def _pairs(self):
        return [(a, b) for a in self.hosts for b in self.hosts if a != b]

    def cut(self, these, those, both=True):
        """Nothing goes from these hosts to those any more; nor back, if both."""
        for a in these:
            for b in those:
                self.rules[a, b] = (True, 0)
                if both:
                    self.rules[b, a] = (True, 0)
        self._say()

    def delay(self, milliseconds):
        """Each packet takes this long, one way."""
        for pair in self._pairs():
            self.rules[pair] = (False, milliseconds)
        self._say()

    def repeat(self, repeats):
        """Each datagram comes again, REPEAT_SECONDS later."""
        self.repeats = repeats
        self._say()

    def heal(self):
        self.rules.clear()
        self._say()

    def close(self):
        self.control.close()
        self.answers.close()
        self.process.terminate()
        self.process.wait(10)
        for host in self.hosts.values():
            host.close()


class Member(Node):
    """A node on a host of the network. Its gateway answers on the host's own loopback, which no cut
    reaches; the API by its unix socket."""

    def __init__(self, k, host, join, ids, config=""):
        self.host = host
        self.address = host.address
        super().__init__("", name="node%d" % k, join=join, ids=ids)
        self.http_port, self.peer_port = 8080, 7600
        self.peers = [] if join is None else [join.host.address]
        self.config = config
        self.configure()

    def configure(self):
        with open(self.path("skerry.yaml"), "w") as f:
            f.write("name: %s\ndata: %s\nbind: %s:7600\nhttp: 127.0.0.1:8080\napi: none\n"
                    "api_socket: %s\nrunner_socket: %s\n%s"
                    % (self.name, self.data, self.address, self.api_socket,
                       self.path("runner.sock"), self.config))
            if self.peers:
                f.write("peers: %s\ntoken_file: %s\n" % (json.dumps(self.peers), self.path("token")))
            else:
                f.write("bootstrap: true\n")

    def start_serve(self, ready=True):
        with self.host.inside():
            super().start_serve(ready=False)
        if ready:
            self.wait_ready()

    def _ask(self, connection, *request):
        with self.host.inside():
            connection.connect()
        return super()._ask(connection, *request)

    def status(self, timeout=10):
        answer = self.api("GET", "/v1/status", timeout=timeout)
        if answer.status != 200:
            raise AssertionError(answer)
        return answer.json()

    def alive(self):
        return self.serve_process is not None and self.serve_process.poll() is None

    def kill(self):
        for kill, process in ((self.kill_serve, self.serve_process),
                              (self.kill_runner, self.runner_process)):
            if process is not None and process.poll() is None:
                kill()

    def close(self):
        self.kill()
        self.forget()


class Cluster(Nodes):
    """Nodes of one cluster, each on a host of a network of their own. Indexed from 0, named from 1."""

    def __init__(self, count=3, configs=None, hosts=None):
        """`hosts` more than `count`: for who is no node."""
        super().__init__(count, configs)
        self.network = None
        self.host_count = hosts or count

    def add(self):
        k = len(self.nodes) + 1
        node = Member(k, self.network.hosts[k], self.nodes[0] if self.nodes else None,
                      self.ids.share(k - 1, self.NODES_MAX), self.configs[k - 1])
        self.nodes.append(node)
        return node

    def __enter__(self):
        try:
            self.network = Network(self.host_count)
            for _ in range(self.count):
                self.add().start()
            self.wait_settled()
        except BaseException:
            self.__exit__(True, None, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        for node in self.nodes:
            if kind is not None:
                node.dump()
        for node in self.nodes:
            for process in (node.serve_process, node.runner_process):
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGCONT)
            node.close()
        self.ids.close()
        if self.network is not None:
            self.network.close()

    def settled(self, voters):
        for node in self.nodes:
            with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
                listed = node.status()["nodes"]
                if (sum(n["role"] == "voter" for n in listed) == voters
                        and sum(n["state"] == "alive" for n in listed) == self.count):
                    continue
            return False
        return True

    def leader(self, among=None):
        """The node that leads as those that live say; None: they know of none, or do not agree."""
        names = set()
        for node in among or self.nodes:
            if node.alive():
                with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
                    names.add(node.status(2)["leader"])
        if len(names) != 1 or None in names:
            return None
        return next(n for n in self.nodes if n.name in names)

    def wait_leader(self, among=None, seconds=10, but=None):
        def found():
            leader = self.leader(among)
            return leader if leader is not but else None
        return wait_until(found, seconds, "a leader")

    def others(self, *but):
        return [n for n in self.nodes if n not in but]


# --- the process that carries packets ----------------------------------------------------------------


class Carrier:
    def __init__(self, control, tuns):
        self.control, self.tuns = control, tuns
        self.rules = {}
        self.repeats = False
        self.waiting = []  # (when, number, from, to, packet)
        self.number = 0
        self.text = b""

    def take(self, k):
        while True:
            try:
                packet = os.read(self.tuns[k], 65536)
            except BlockingIOError:
                return
            # IPv4 within 10.77.0.0/24; what a kernel says unasked (IPv6) goes nowhere.
            if len(packet) < 20 or packet[0] >> 4 != 4:
                continue
            to = packet[19] % OTHER
            if to not in self.tuns:
                continue
            dropped, delay = self.rules.get((k, to), (False, 0))
            if dropped:
                continue
            if self.repeats and packet[9] == socket.IPPROTO_UDP:
                self.later(REPEAT_SECONDS + delay / 1000, k, to, packet)
            if delay == 0:
                self.give(to, packet)
            else:
                self.later(delay / 1000, k, to, packet)

    def later(self, seconds, k, to, packet):
        self.number += 1
        heapq.heappush(self.waiting, (time.monotonic() + seconds, self.number, k, to, packet))

    def give(self, to, packet):
        with contextlib.suppress(OSError):  # its queue is full: lost
            os.write(self.tuns[to], packet)

    def listen(self):
        """False: whoever started us has gone."""
        data = os.read(self.control, 65536)
        self.text += data
        while b"\n" in self.text:
            line, self.text = self.text.split(b"\n", 1)
            said = json.loads(line)
            self.rules = {(a, b): (dropped, delay) for a, b, dropped, delay in said["rules"]}
            self.repeats = said["repeats"]
            os.write(self.control, b"\n")
        return bool(data)

    def run(self):
        poll = select.epoll()
        poll.register(self.control, select.EPOLLIN)
        for tun in self.tuns.values():
            poll.register(tun, select.EPOLLIN)
        by_fd = {tun: k for k, tun in self.tuns.items()}
        while True:
            left = max(0, self.waiting[0][0] - time.monotonic()) if self.waiting else None
            for fd, _ in poll.poll(left):
                if fd != self.control:
                    self.take(by_fd[fd])
                elif not self.listen():
                    return
            now = time.monotonic()
            while self.waiting and self.waiting[0][0] <= now:
                _, _, a, b, packet = heapq.heappop(self.waiting)
                if not self.rules.get((a, b), (False, 0))[0]:
                    self.give(b, packet)


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    Carrier(numbers[0], dict(enumerate(numbers[1:], 1))).run()
