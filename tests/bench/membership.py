"""A member is killed: how long until every other one says so, beside serf."""
import base64
import contextlib
import os
import random
import re
import selectors
import signal
import subprocess
import time

from harness import BUILD, CORES, Column, Invalid, Processes, Table, seconds_each

FIRST = 101  # serf's agents are 127.0.0.101 and so on
WAIT_SECONDS = 60


class Serf:
    """Agents that know each other; what they say is taken with the time when it came."""

    def __init__(self, processes, count):
        self.selector, self.agents, self.texts = selectors.DefaultSelector(), [], [b""] * count
        self.joined, self.failed = [set() for _ in range(count)], [{} for _ in range(count)]
        key = base64.b64encode(b"k" * 32).decode()
        for k in range(count):
            at = "127.0.0.%d" % (FIRST + k)
            words = ["serf", "agent", "-node=n%d." % k, "-bind=" + at, "-rpc-addr=%s:7373" % at,
                     "-encrypt=" + key]
            if k > 0:
                words.append("-retry-join=127.0.0.%d" % FIRST)
                words.append("-retry-interval=1s")
            p = processes.start(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            os.set_blocking(p.stdout.fileno(), False)
            self.selector.register(p.stdout, selectors.EVENT_READ, k)
            self.agents.append(p)
        self.listen(WAIT_SECONDS, lambda: all(len(names) == count for names in self.joined))

    def listen(self, seconds, until=lambda: False):
        """True once `until` holds."""
        deadline = time.monotonic() + seconds
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self.selector.select(left):
                data = os.read(key.fd, 65536)
                if not data:
                    self.selector.unregister(key.fileobj)
                self.heard(key.data, data, time.monotonic())
        return True

    def heard(self, k, data, now):
        *lines, self.texts[k] = (self.texts[k] + data).split(b"\n")
        for line in lines:
            found = re.search(rb"EventMember(Join|Failed): (n\d+\.)", line)
            if found and found.group(1) == b"Join":
                self.joined[k].add(found.group(2))
            elif found:
                self.failed[k].setdefault(found.group(2), now)

    def false_deaths(self, but=None):
        return sum(name != but for k in range(len(self.agents)) for name in self.failed[k])


def killed_serf(count):
    with Processes() as processes:
        serf = Serf(processes, count)
        if any(len(names) != count for names in serf.joined):
            raise Invalid("serf's agents do not know each other within %d s" % WAIT_SECONDS)
        serf.listen(2 + random.random())  # not in step with the probes
        victim = random.randrange(count)
        name, others = b"n%d." % victim, [k for k in range(count) if k != victim]
        begun = time.monotonic()
        serf.agents[victim].send_signal(signal.SIGKILL)
        if not serf.listen(WAIT_SECONDS, lambda: all(name in serf.failed[k] for k in others)):
            raise Invalid("not every agent of serf said failed within %d s" % WAIT_SECONDS)
        return ((max(serf.failed[k][name] for k in others) - begun) * 1e3, serf.false_deaths(name))


def gossip(rounds, count, seconds=0):
    return [BUILD + "/bench/gossip", str(rounds), str(count), "0", str(round(seconds))]


def told(out):
    found = re.search(r"(?:after (\d+) ms \(median\).*)?; (\d+) false deaths, (\d+) missed", out)
    if not found or found.group(3) != "0":
        raise Invalid("build/bench/gossip: " + out)
    return float(found.group(1) or 0), int(found.group(2))


def killed_ours(count):
    done = subprocess.run(gossip(1, count), capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise Invalid("build/bench/gossip: " + done.stderr)
    return told(done.stdout)


@contextlib.contextmanager
def hogs(count):
    with Processes() as processes:
        for _ in range(count):
            processes.start(["/bin/sh", "-c", "while :; do :; done"])
        yield


def compare():
    """A member is killed (SIGKILL): until all others say dead. Processes on loopback that seal what they
    send; Skerry's are gossip alone, as a node has it. Quiet, and with two busy processes for each core."""
    columns = [Column("ms to all", 0), Column("false deaths", 0)]
    for count in (5, 20):
        for busy in (0, 2 * len(CORES)):
            with hogs(busy):
                yield Table("%d members, %s" % (count, "%d processes that burn CPU" % busy if busy else "quiet"),
                            columns, {"skerry": lambda n=count: killed_ours(n),
                                      "serf": lambda n=count: killed_serf(n)}, "skerry", ("serf",))


def false_deaths():
    """Nobody is killed, and every core is busy with two other processes: how often is a living member called
    dead? All watch at the same time, ten minutes (SECONDS_EACH)."""
    seconds = seconds_each(600)
    with Processes() as processes, hogs(2 * len(CORES)):
        serf = Serf(processes, 5)
        ours = processes.start(gossip(0, 5, seconds), stdout=subprocess.PIPE, text=True)
        serf.listen(seconds)
        out, _ = ours.communicate(timeout=60)
        yield Table("5 members, %.0f s" % seconds, [Column("false deaths", 0)],
                    {"skerry": lambda: [told(out)[1]], "serf": lambda: [serf.false_deaths()]}, rounds=1)
