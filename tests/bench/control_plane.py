"""The control plane at sizes that no machine here has; nobody stands beside it."""
import re
import subprocess

from harness import BUILD, Column, Invalid, Table

NODES = (10, 100, 1000, 10000)
INSTANCES = (10000, 100000, 1000000)


def told(*words):
    done = subprocess.run([BUILD + "/bench/control", *map(str, words)], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise Invalid("control %s: %s" % (words, done.stderr))
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", done.stdout)}


def gossip_lines():
    """For each size the figures of a simulated group, without slow members."""
    done = subprocess.run([BUILD + "/sim", "--seeds", "1", "--only", "gossip", "--table", "1000"], capture_output=True, text=True,
                          timeout=500)
    lines = [[float(word) for word in line.split()] for line in done.stdout.splitlines()
             if re.fullmatch(r"[\d.\s]+", line) and line.strip()]
    if done.returncode != 0 or not lines:
        raise Invalid("sim --table: " + done.stdout + done.stderr)
    return {int(line[0]): line for line in lines if line[1] == 0}


def compare():
    """Scale of the control plane, simulated: placement decisions of one node among many; the registry's state
    with many instances; gossip on one clock with 1% loss. Gossip stops at 1,000 members: each knows of each."""
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
    lines = gossip_lines()
    for count, line in sorted(lines.items()):
        if count in NODES:
            yield Table("gossip of %d members, one killed" % count, [
                Column("ms to all", 0), Column("bytes a second and member", 0), Column("packets"),
                Column("bytes in sync", 0), Column("false deaths", 0)],
                        {"skerry": lambda v=line: [v[5], v[8], v[7], v[9], v[11]]}, rounds=1)
