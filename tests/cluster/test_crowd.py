"""Many joiners of all kinds at once, with clients that vanish; many WebSockets; a goodbye to those that are
open when an instance ends. The code inside counts who is there."""
import asyncio
import collections
import contextlib
import os
import random
import resource
import socket
import struct
import subprocess
import threading
import time
import unittest

from cluster import Nodes, resident_kib, server_spec, takes_at_most, wait_until
from ssh_nodes import SshNodes

# One thread, which sees everything in the order in which it happened: a joiner is inside from its head to
# the last byte of its answer, or until its connection is closed by the other side. Commands of SSH make a
# folder with their process id, and count as long as that lives.
CODE = r"""
import glob, json, os, re, select, signal, socket, struct, time
poll = select.epoll()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", int(os.environ["PORT"]))); listener.listen(4096); listener.setblocking(False)
poll.register(listener, select.EPOLLIN)
all_of, peak, served, started = {}, 0, 0, time.monotonic()
class C:
    def __init__(self, s):
        self.s, self.data, self.inside, self.kind = s, b"", False, None
        self.due, self.left = None, 0
def hung_up(c):
    p = select.poll(); p.register(c.s, select.POLLRDHUP)
    return any(e & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, e in p.poll(0))
def inside():
    shells = [path for path in glob.glob("/tmp/in.*") if os.path.exists("/proc/" + path[8:])]
    return sum(c.inside and not hung_up(c) for c in all_of.values()) + len(shells)
def drop(c):
    poll.unregister(c.s); del all_of[c.s.fileno()]; c.s.close()
def send(c, data):
    try:
        c.s.setblocking(True); c.s.sendall(data); c.s.setblocking(False)
        return True
    except OSError:
        drop(c)
        return False
def say(c, body):
    # Before the last byte: whoever reads it may let the next one in.
    c.inside = False; c.kind = None
    send(c, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
def begin(c):
    global peak, served
    head, _, c.data = c.data.partition(b"\r\n\r\n")
    path = head.split(b" ")[1].decode(); c.kind = path.strip("/").split("?")[0]
    c.inside = True; served += 1
    now = inside(); peak = max(peak, now)
    wait = re.search(r"wait=([0-9.]+)", path)
    c.due = time.monotonic() + float(wait.group(1) if wait else 0)
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.I)
    c.left = int(length.group(1)) if length else 0
    if c.kind == "report":
        say(c, json.dumps({"instance": os.environ["SKERRY_INSTANCE"], "peak": peak, "now": now,
                           "served": served, "open": len(all_of)}).encode())
    elif c.kind == "tunnel":
        send(c, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\n\r\n")
    elif c.kind == "stream":
        send(c, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n")
def readable(c):
    try:
        piece = c.s.recv(65536)
    except BlockingIOError:
        return
    except OSError:
        piece = b""
    if not piece:
        drop(c)
        return
    if c.kind == "tunnel":
        send(c, piece)
        return
    c.data += piece
    if not c.inside and b"\r\n\r\n" in c.data:
        begin(c)
    if c.kind == "upload":
        c.left -= len(c.data); c.data = b""
        if c.left <= 0 and c.inside and c.due <= time.monotonic():
            say(c, b"took it")
def tick():
    now = time.monotonic()
    for c in list(all_of.values()):
        if not c.inside or c.kind == "tunnel":
            continue
        if c.kind == "stream":
            if c.due <= now:
                c.inside = False; c.kind = None
                send(c, b"0\r\n\r\n")
            else:
                send(c, b"1\r\n.\r\n")
        elif c.due <= now and c.left <= 0:
            say(c, b"done")
def goodbye(*a):
    # RFC 6455: a close frame, going away.
    for c in list(all_of.values()):
        if c.kind == "tunnel":
            send(c, b"\x88\x0e" + struct.pack(">H", 1001) + b"see you soon")
            time.sleep(0.001)
    os._exit(0)
signal.signal(signal.SIGTERM, goodbye)
while True:
    for fd, event in poll.poll(0.02):
        if fd == listener.fileno():
            while True:
                try:
                    s, _ = listener.accept()
                except BlockingIOError:
                    break
                s.setblocking(False)
                all_of[s.fileno()] = C(s); poll.register(s, select.EPOLLIN)
        elif fd in all_of:
            readable(all_of[fd])
    tick()
"""
SOURCE = {"main.py": CODE}


def files_of(node):
    return len(os.listdir("/proc/%d/fd" % node.serve_process.pid))


def reset(writer):
    """The client vanishes: its end is a reset."""
    with contextlib.suppress(OSError): # it may be closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                                   struct.pack("ii", 1, 0))
    writer.transport.abort()


class Crowd(SshNodes):
    JOINERS_MAX = 12
    CLIENTS = 500

    def reports(self, workload):
        """What each instance says, asked by its id."""
        return [self.nodes[0].get("/i/%s/report" % i["id"]).json()
                for i in self.nodes[0].ps(workload)]

    async def joiner(self, port, kind, random_, ends):
        """One that comes, and goes as it should or when it likes."""
        vanishes = random_.random() < 0.4
        leaves_after = random_.uniform(0, 1.5)
        wait = random_.uniform(0, 0.5)

        async def exchange():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                if kind == "upload":
                    writer.write(b"POST /w/crowd/upload?wait=%.2f HTTP/1.1\r\nHost: x\r\n"
                                 b"Connection: close\r\nContent-Length: 100000\r\n\r\n" % wait)
                    for _ in range(10):
                        writer.write(b"x" * 10000)
                        await writer.drain()
                        await asyncio.sleep(random_.uniform(0, 0.05))
                elif kind == "tunnel":
                    writer.write(b"GET /w/crowd/tunnel HTTP/1.1\r\nHost: x\r\n"
                                 b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    if b" 101 " not in head:
                        return head[9:12].decode()
                    for _ in range(5):
                        writer.write(b"hello")
                        if await reader.readexactly(5) != b"hello":
                            return "wrong"
                        await asyncio.sleep(wait / 5)
                    return "101"
                else:
                    writer.write(b"GET /w/crowd/%s?wait=%.2f HTTP/1.1\r\nHost: x\r\n"
                                 b"Connection: close\r\n\r\n" % (kind.encode(), wait))
                answer = await reader.read()
                return answer[9:12].decode()
            except asyncio.CancelledError:
                reset(writer)
                raise
            finally:
                writer.close()
        task = asyncio.ensure_future(exchange())
        if vanishes:
            done, _ = await asyncio.wait([task], timeout=leaves_after)
            if not done:
                task.cancel()
                await asyncio.wait([task])
                ends["vanished"] += 1
                return
        try:
            ends[await asyncio.wait_for(task, 120)] += 1
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            ends["%s: %r" % (kind, error)] += 1

    def test_five_hundred_mixed_joiners(self):
        nodes = self.nodes.nodes
        nodes[0].deploy(server_spec("crowd", join={"max_joiners": self.JOINERS_MAX},
                                    scale={"max": 4, "queue": 1000, "queue_timeout": "60s"},
                                    timeouts={"start": "30s", "request": "120s",
                                              "first_byte": "60s"}), SOURCE)
        self.assertEqual(nodes[0].get("/w/crowd/report").status, 200)
        for node in nodes:
            wait_until(lambda n=node: n.get("/w/crowd/report").status == 200, what="it is known")
        time.sleep(0.5)
        before = [files_of(node) for node in nodes]
        ends, random_ = collections.Counter(), random.Random(5)

        def shells():
            for k in range(15):
                n = k % 3
                argv = self.argv("crowd", "d=/tmp/in.$$; mkdir $d; sleep 0.4; rmdir $d", node=n)
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.PIPE)
                if k % 5 == 4:  # one that is killed
                    time.sleep(0.3)
                    process.kill()
                    process.communicate()
                    ends["ssh killed"] += 1
                    continue
                said = process.communicate(timeout=120)[1].decode(errors="replace").strip()
                if process.returncode != 0:
                    print("        ssh ended with %d: %s" % (process.returncode, said), flush=True)
                ends["ssh %d" % process.returncode] += 1

        async def run():
            kinds = ("short", "held", "stream", "upload", "tunnel")
            joins = []
            for k in range(self.CLIENTS - 15):
                joins.append(asyncio.ensure_future(self.joiner(
                    nodes[k % 3].http_port, kinds[k % len(kinds)], random_, ends)))
                if k % 50 == 49:
                    await asyncio.sleep(0.1)
            await asyncio.gather(*joins)
        ssh = threading.Thread(target=shells)
        ssh.start()
        asyncio.run(run())
        ssh.join()
        print("        %s" % dict(ends), flush=True)
        self.assertEqual(sum(ends.values()), self.CLIENTS)
        gone = [i for i in nodes[0].ps("-a", "crowd") if i["state"] == "ended"]
        self.assertEqual(set(ends) - {"200", "101", "vanished", "ssh 0", "ssh killed"}, set(),
                         [(i["reason"], nodes[0].cli("logs", i["id"], check=False).stdout)
                          for i in gone])
        self.assertGreater(ends["vanished"], 50)

        def nobody():
            found = [i for n in nodes for i in n.ps("crowd") if i["node"] == n.name]
            return found if all(i["joiners"] == 0 for i in found) else None
        wait_until(nobody, 20, "no joiner")
        reports = self.reports("crowd")
        print("        %s" % reports, flush=True)
        self.assertEqual({r["now"] for r in reports}, {1})  # who asks
        self.assertLessEqual(max(r["peak"] for r in reports), self.JOINERS_MAX)
        self.assertGreater(max(r["peak"] for r in reports), self.JOINERS_MAX // 2)
        self.assertLessEqual(len(reports), 4)

        def closed():
            now = [files_of(node) for node in nodes]
            # Connections that idle on their way to the code and between nodes are kept for a while.
            return now if all(n <= b + 60 for n, b in zip(now, before)) else None
        wait_until(closed, 30, "descriptors are given back")

    def test_a_goodbye_on_open_web_sockets(self):
        """An instance of an old version, and one on a node that is drained: its code is told, and can close
        what is open."""
        nodes = self.nodes.nodes
        for reason in ("deploy", "drain"):
            with self.subTest(reason):
                name = "bye-" + reason
                spec = server_spec(name, timeouts={"start": "30s", "drain": "1s"},
                                   scale={"max": 1}, environment={"N": "1"})
                nodes[2].deploy(spec, SOURCE)
                owner = nodes[2]
                first = wait_until(lambda n=name: (lambda a: a if a.status == 200 else None)(
                    owner.get("/w/%s/report" % n)), what="an instance")
                self.assertEqual([i["node"] for i in owner.ps(name)], [owner.name])
                sockets = []
                for node in nodes:  # here and through others
                    wait_until(lambda n=node, w=name: n.get("/w/%s/report" % w).instance ==
                               first.instance, what="it is known")
                    s = socket.create_connection(("127.0.0.1", node.http_port), 60)
                    s.sendall(b"GET /w/%s/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                              b"Upgrade: websocket\r\n\r\n" % name.encode())
                    self.assertIn(b" 101 ", s.recv(4096))
                    sockets.append(s)
                begun = time.monotonic()
                if reason == "deploy":
                    nodes[0].deploy(dict(spec, environment={"N": "2"}), SOURCE)
                else:
                    nodes[0].cli("node", "drain", owner.name)
                for s in sockets:
                    with s:
                        self.assertEqual(s.recv(16, socket.MSG_WAITALL),
                                         b"\x88\x0e" + struct.pack(">H", 1001) + b"see you soon")
                        self.assertEqual(s.recv(1), b"")
                # They could go on until then.
                self.assertGreater(time.monotonic() - begun, 1)
                if reason == "drain":
                    nodes[0].cli("node", "undrain", owner.name)


class WebSockets(unittest.TestCase):
    COUNT = 5000
    EACH = 500

    def test_five_thousand_to_one_node(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with Nodes(2) as nodes:
            nodes[0].deploy(server_spec("many", join={"max_joiners": self.EACH},
                                        placement={"spread": "node"},
                                        timeouts={"start": "60s"},
                                        scale={"max": 2 * self.COUNT // self.EACH, "queue": 5000,
                                               "queue_timeout": "60s"}), SOURCE)
            entry = nodes[0]
            self.assertEqual(entry.get("/w/many/report").status, 200)
            time.sleep(0.5)
            files, memory = files_of(entry), resident_kib(entry.serve_process)
            open_ = []

            async def join(limit):
                async with limit:
                    reader, writer = await asyncio.wait_for(
                        asyncio.open_connection("127.0.0.1", entry.http_port), 60)
                    writer.write(b"GET /w/many/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                                 b"Upgrade: websocket\r\n\r\n")
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
                    open_.append((reader, writer, head))

            async def talk(reader, writer, k):
                writer.write(b"%08d" % k)
                return await asyncio.wait_for(reader.readexactly(8), 60) == b"%08d" % k

            async def run():
                limit = asyncio.Semaphore(100)
                begun = time.monotonic()
                await asyncio.gather(*(join(limit) for _ in range(self.COUNT)))
                took = time.monotonic() - begun
                self.assertEqual({head[9:12] for _, _, head in open_}, {b"101"})
                by_node = collections.Counter(
                    line for _, _, head in open_ for line in head.decode().split("\r\n")
                    if line.startswith("Skerry-Node"))
                self.assertEqual(len(by_node), 2, by_node)
                now = [entry.ps("many"), nodes[1].ps("many")]
                joiners = sum(i["joiners"] for node, found in zip(nodes.nodes, now)
                              for i in found if i["node"] == node.name)
                self.assertEqual(joiners, self.COUNT)
                each = (resident_kib(entry.serve_process) - memory) / self.COUNT
                print("        %d WebSockets in %.1f s: %s, %d instances, %d descriptors for each at their node"
                      % (self.COUNT, took, dict(by_node), len(now[0]),
                         round((files_of(entry) - files) / self.COUNT)), flush=True)
                self.assertTrue(takes_at_most(32, each, "each of them"))
                self.assertLess(files_of(entry), hard)
                # All of them are alive.
                self.assertTrue(all(await asyncio.gather(*(
                    talk(reader, writer, k) for k, (reader, writer, _) in enumerate(open_)))))
                for _, writer, _ in open_:
                    writer.close()
            asyncio.run(run())
            for node in nodes.nodes:
                wait_until(lambda n=node: not any(i["joiners"] for i in n.ps("many")
                                                  if i["node"] == n.name), 30, "no joiner")
            wait_until(lambda: files_of(entry) < files + 200, 30, "descriptors are given back")


if __name__ == "__main__":
    unittest.main()
