"""Who has no key in the registry gets nothing: strangers, late and forged tokens, noise."""
import concurrent.futures
import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

from cluster import NODE_UID, SKERRY, processes_of, server, server_spec, wait_until
from network import Cluster

HELD = """
def handle(h):
    if "hold" in h.path: time.sleep(20)
    h.say("x")
"""
COUNTERS = ("questions", "streams", "gossip", "joins")


def refused(node):
    text = node.api("GET", "/metrics").body.decode()
    return {name: int(re.search(r"^skerry_refused_%s_total (\d+)" % name, text, re.M).group(1))
            for name in COUNTERS}


class Stranger:
    """A machine beside the cluster, which asks to join."""

    def __init__(self, host, name):
        self.host, self.name = host, name
        self.directory = tempfile.mkdtemp(prefix="skerry-test-", dir="/tmp")
        os.chown(self.directory, NODE_UID, NODE_UID)

    def join(self, by, token):
        """Asks to join; its exit code and what it said."""
        path = os.path.join(self.directory, "token")
        with open(path, "wb") as f:
            f.write(token)
        with self.host.inside():
            done = subprocess.run(
                [SKERRY, "serve", "--config", self.configuration(), "--peers", by.address,
                 "--token-file", path], stdin=subprocess.DEVNULL, capture_output=True, timeout=30,
                user=NODE_UID, group=NODE_UID, extra_groups=[])
        return done.returncode, done.stderr.decode()

    def configuration(self):
        path = os.path.join(self.directory, "skerry.yaml")
        with open(path, "w") as f:
            f.write("name: %s\ndata: %s/data\nbind: %s:7600\nhttp: 127.0.0.1:8080\napi: none\n"
                    "api_socket: %s/api.sock\nrunner_socket: %s/runner.sock\n"
                    % (self.name, self.directory, self.host.address, self.directory,
                       self.directory))
        data = os.path.join(self.directory, "data")
        shutil.rmtree(data, ignore_errors=True)
        os.mkdir(data)
        os.chown(data, NODE_UID, NODE_UID)
        return path

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def noise(address, port, rounds):
    """Random bytes to a TCP port, and the beginnings of what is spoken there with random ones behind."""
    beginnings = (b"", b"\0SP\0\0\x30\0\0", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(rounds):
        for beginning in beginnings:
            with contextlib.suppress(OSError), socket.create_connection((address, port), 5) as s:
                s.sendall(beginning + random.randbytes(random.randrange(1, 4000)))
                s.shutdown(socket.SHUT_WR)
                s.settimeout(5)
                while s.recv(65536):
                    pass


def question(address, size):
    """A whole message as nng frames it, with nothing in it that any node has sealed."""
    with socket.create_connection((address, 7600), 5) as s:
        s.settimeout(5)
        s.sendall(b"\0SP\0\0\x30\0\0")  # we are REQ
        got = b""
        while len(got) < 8:
            got += s.recv(8 - len(got))
        body = b"\x80\0\0\1" + random.randbytes(size)
        s.sendall(len(body).to_bytes(8, "big") + body)
        try:
            s.settimeout(0.2)
            return s.recv(1000)
        except TimeoutError:
            return b""


def wrong_tls(address, port):
    """TLS as a client without the key of any node; whether anything was answered."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), 5) as raw, \
                context.wrap_socket(raw) as s:
            s.sendall(random.randbytes(500))
            return len(s.recv(1000)) > 0
    except OSError:
        return False


class Trust(unittest.TestCase):
    def test_strangers_get_nothing_and_are_counted(self):
        with Cluster(2, hosts=3) as nodes:
            node = nodes[0]
            # Its role comes some moments after it is alive.
            wait_until(lambda: node.status()["nodes"][1]["role"] == "standby", 20, "a standby")
            before = node.status()
            stranger = Stranger(nodes.network.hosts[3], "stranger")
            try:
                self.tokens(nodes, stranger)
                self.noise(nodes, stranger.host)
                self.replay(nodes)
            finally:
                stranger.close()
            after = node.status()
            self.assertEqual([(n["id"], n["state"], n["role"]) for n in after["nodes"]],
                             [(n["id"], n["state"], n["role"]) for n in before["nodes"]])
            self.assertEqual((after["term"], after["leader"]), (before["term"], before["leader"]))
            for each in nodes.nodes:
                self.assertEqual(each.api("POST", "/v1/tokens", {"role": "invoke"}).status, 201)

    def tokens(self, nodes, stranger):
        node = nodes[0]
        begun = refused(node)["joins"]
        short = node.cli("token", "create", "--node", "--ttl", "1s").stdout.strip()
        made = time.monotonic()
        good = node.cli("token", "create", "--node").stdout.strip()
        parts = good.split(b"_", 4)  # skn, id, secret, cluster, fingerprint
        other_secret = b"_".join(parts[:2] + [parts[2][::-1]] + parts[3:])
        other_cluster = b"_".join(parts[:3] + [b"0123456789abcdef"] + parts[4:])
        # A fingerprint of nobody: it must not say its secret to whoever answers.
        other_print = b"_".join(parts[:4] + [parts[4][:10][::-1] + parts[4][10:]])
        used = nodes[1].path("token")
        with open(used, "rb") as f:
            used = f.read().strip()
        wait_until(lambda: time.monotonic() > made + 1.1, 2, "the short token is over")
        for token, words in ((used, "the token is not known: it was used"),
                             (short, "the token"),
                             (other_secret, "the token"),
                             (other_cluster, "cluster"),
                             (other_print, "none of the peers is the node"),
                             (good[:-1], "no join token")):
            code, said = stranger.join(node, token)
            self.assertEqual(code, 1, said)
            self.assertIn(words, said)
            self.assertNotIn(token.decode(), said)
            print("        %s" % said.strip().splitlines()[-1][:200], flush=True)
        self.assertGreaterEqual(refused(node)["joins"] - begun, 4)
        # None of that has used it up.
        self.assertIn(parts[1].decode(), node.cli("token", "list").stdout.decode())

    def noise(self, nodes, host):
        node = nodes[0]
        begun = refused(node)
        with host.inside():
            self.assertFalse(wrong_tls(node.address, 7601))
            self.assertFalse(wrong_tls(node.address, 7603))
            for size in (0, 10, 200, 5000):
                self.assertEqual(question(node.address, size), b"")
        wait_until(lambda: all(refused(node)[name] >= begun[name] + least for name, least in
                               (("streams", 1), ("joins", 1), ("questions", 4))), 5,
                   "each is counted")
        begun = refused(node)
        with host.inside():
            for port in (7600, 7601, 7603):
                noise(node.address, port, 5)
            with socket.socket(type=socket.SOCK_DGRAM) as s:
                for _ in range(50):
                    s.sendto(random.randbytes(random.randrange(1, 1400)), (node.address, 7602))

        def counted():
            now = refused(node)
            return all(now[name] > begun[name] for name in ("streams", "gossip", "joins"))
        try:
            wait_until(counted, 5, "all of it is counted")
        finally:
            print("        refused before %s, now %s" % (begun, refused(node)), flush=True)

    def replay(self, nodes):
        begun = [refused(node)["gossip"] for node in nodes.nodes]
        nodes.network.repeat(True)
        wait_until(lambda: all(refused(node)["gossip"] > before for node, before in
                               zip(nodes.nodes, begun)), 5, "packets that come again are counted")
        nodes.network.repeat(False)


class Removed(unittest.TestCase):
    def test_what_a_removed_node_has_open_ends_at_once(self):
        # It stands still, and so does not end by itself.
        with Cluster(3) as nodes:
            leader = nodes.wait_leader()
            gone, entry = nodes.others(leader)
            leader.deploy(server_spec("held", life={"idle": "none"}, join={"max_joiners": 10}),
                          server(HELD))
            own = {node: wait_until(lambda n=node: self.start(n), 20, "an instance")
                   for node in (gone, entry)}
            with concurrent.futures.ThreadPoolExecutor() as pool:
                outwards = pool.submit(self.held, entry, own[gone])
                inwards = pool.submit(self.held, gone, own[entry])
                wait_until(lambda: self.joiners(gone, own[gone]) == 1
                           and self.joiners(entry, own[entry]) == 1, 10, "both are inside")
                leader.cli("node", "drain", gone.name)
                errand = pool.submit(gone.cli, "run", "--", "sleep", "600", check=False)
                command = wait_until(lambda: self.sleeper(leader), 10, "its command runs elsewhere")
                gone.serve_process.send_signal(signal.SIGSTOP)
                begun = time.monotonic()
                leader.cli("node", "rm", gone.name)
                wait_until(lambda: self.joiners(entry, own[entry]) == 0, 5, "its join has left")
                wait_until(lambda: not processes_of(command), 5, "its command has ended")
                self.assertIn(outwards.result(), (None, 410, 503))
                # By their silence they would have ended after seconds at the earliest.
                self.assertLess(time.monotonic() - begun, 2.5)
                gone.serve_process.send_signal(signal.SIGCONT)
                self.assertEqual(gone.serve_process.wait(20), 1)
                inwards.result()
                self.assertNotEqual(errand.result().returncode, 0)

    def test_who_was_removed_while_it_was_cut_off_hears_it_when_it_is_back(self):
        with Cluster(3) as nodes:
            leader = nodes.wait_leader()
            gone, other = nodes.others(leader)
            number = {node: i + 1 for i, node in enumerate(nodes.nodes)}
            nodes.network.cut([number[gone]], [number[leader], number[other]])
            leader.cli("node", "rm", gone.name)
            # What was under way to it is lost, and it is out of touch for longer than it waits to ask.
            time.sleep(6)
            self.assertIsNone(gone.serve_process.poll())
            nodes.network.heal()
            self.assertEqual(gone.serve_process.wait(15), 1)
            with open(gone.path("serve.log"), errors="replace") as f:
                self.assertIn("was removed from the cluster: it stops", f.read())
            self.assertEqual(leader.get("/readyz").status, 200)

    def start(self, node):
        answer = node.api("POST", "/v1/instances", {"workload": "held"})
        return answer.json()["id"] if answer.status == 201 else None

    def joiners(self, node, instance):
        return node.api("GET", "/v1/instances/" + instance).json()["joiners"]

    def sleeper(self, node):
        for instance in node.ps():
            if instance["workload"] != "held" and processes_of(instance["id"]):
                return instance["id"]
        return None

    def held(self, node, instance):
        """The status of what came; None: it broke."""
        try:
            return node.get("/i/%s/?hold" % instance, timeout=30).status
        except (OSError, http.client.HTTPException):
            return None


if __name__ == "__main__":
    unittest.main()
