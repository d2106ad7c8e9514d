"""The control plane at sizes that no machine here has; nobody stands beside it."""
import re
import subprocess

from harness import BUILD, Column, Invalid, Table
from sandboxes import available_kib

NODES = (10, 100, 1000, 10000)
INSTANCES = (10000, 100000, 1000000)
GOSSIP_GIB = {10000: 10}  # 10,000 times 10,000 members


def told(*words):
    done = subprocess.run([BUILD + "/bench/control", *map(str, words)], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise Invalid("control %s: %s" % (words, done.stderr))
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", done.stdout)}


def gossip_lines(largest):
    """For each size the figures of a simulated group, without slow members."""
    done = subprocess.run([BUILD + "/sim", "--seeds", "1", "--only", "gossip", "--steady", "--table", str(largest)],
                          capture_output=True, text=True, timeout=900)
    lines = [[float(word) for word in line.split()] for line in done.stdout.splitlines()
             if re.fullmatch(r"[\d.\s]+", line) and line.strip()]
    if done.returncode != 0 or not lines:
        raise Invalid("sim --table: " + done.stdout + done.stderr)
    return {int(line[0]): line for line in lines}


def compare():
    """Scale of the control plane, simulated: placement decisions of one node among many; the registry's state
    with many instances; gossip on one clock with 1% loss, each of whose members runs and knows of each."""
    for count in NODES:
        yield Table("placement among %d nodes" % count, [Column("decisions/s", 0, less=False)],
                    {"skerry": lambda n=count: [told("placement", n)["per_second"]]})
    names = ("encode_ms", "decode_ms", "reserve_us", "memory_bytes", "snapshot_bytes")
    for count in INSTANCES:
        def side(n=count):
            found = told("registry", n)
            return [found[name] for name in names]
        yield Table("registry with %d instances" % count, [
            Column("snapshot made, ms"), Column("read, ms"), Column("applied, us each", 2),
            Column("memory, bytes each", 0), Column("snapshot, bytes each")], {"skerry": side}, rounds=1 if count == INSTANCES[-1] else None)
    sizes = [count for count in NODES if available_kib() >= GOSSIP_GIB.get(count, 0) << 20]
    lines = gossip_lines(sizes[-1])
    columns = [Column("ms to all", 0), Column("bytes a second and member", 0), Column("packets"),
               Column("bytes in sync", 0), Column("false deaths", 0)]
    for count in NODES:
        found = [lines[count][k] for k in (5, 8, 7, 9, 11)] if count in sizes else [None] * len(columns)
        yield Table("gossip of %d members, %s" % (count, "one killed" if count in sizes else
                    "left out: it takes %d GiB of memory" % GOSSIP_GIB[count]), columns,
                    {"skerry": lambda v=found: v}, rounds=1)
