"""Requests to the API that come as they come: an open loop, which waits for no answer.

    with Writes(nodes, 200) as writes:      # creates tokens through all nodes in turn
        ...
    writes.acknowledged                     # [(asked, answered, id), ...]

What a closed loop hides (nothing is sent while a leader is missing) an open one shows.
"""
import asyncio
import json
import threading
import time


async def _exchange(path, method, target, body):
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                      "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                      % (method, target, len(body))).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), await reader.read()
    finally:
        writer.close()


class Writes:
    def __init__(self, nodes, per_second, timeout=15):
        self.nodes, self.per_second, self.timeout = list(nodes), per_second, timeout
        self.acknowledged = []
        self.refused = {}
        self.asked = 0
        self.stopping = False
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.stop()

    def stop(self):
        """No more are sent; those under way are waited for."""
        self.stopping = True
        if self.thread.is_alive():
            self.thread.join()

    async def _one(self, number):
        node = self.nodes[number % len(self.nodes)]
        body = json.dumps({"role": "invoke", "name": "w%d" % number}).encode()
        asked = time.monotonic()
        try:
            status, text = await asyncio.wait_for(
                _exchange(node.api_socket, "POST", "/v1/tokens", body), self.timeout)
            if status == 201:
                self.acknowledged.append((asked, time.monotonic(), json.loads(text)["id"]))
                return
            why = "%d %s" % (status, json.loads(text)["code"])
        except (OSError, EOFError, asyncio.TimeoutError, ValueError, IndexError) as error:
            why = type(error).__name__
        self.refused[why] = self.refused.get(why, 0) + 1

    async def _run(self):
        under_way = set()
        begun = time.monotonic()
        while not self.stopping:
            task = asyncio.create_task(self._one(self.asked))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            self.asked += 1
            await asyncio.sleep(max(0, begun + self.asked / self.per_second - time.monotonic()))
        if under_way:
            await asyncio.wait(under_way)

    def gap(self):
        """The longest time between two acknowledgements, in seconds."""
        times = sorted(answered for _, answered, _ in self.acknowledged)
        return max(b - a for a, b in zip(times, times[1:]))

    def missing(self, node):
        """Acknowledged writes that `node` does not have after a strong read."""
        answer = node.api("GET", "/v1/workloads?consistent=1")
        if answer.status != 200:
            raise AssertionError(answer)
        kept = {token["id"] for token in node.api("GET", "/v1/tokens").json()}
        return [one for one in self.acknowledged if one[2] not in kept]

    def __repr__(self):
        return "%d asked, %d acknowledged, gap %.2f s, else %s" % (
            self.asked, len(self.acknowledged), self.gap() if len(self.acknowledged) > 1 else -1,
            self.refused)
