"""Whether a history of reads and writes of one register can have happened one after the other.

An operation is known by when it was asked and when it was answered. The history is linearizable if every
operation can be given one moment between the two, so that each read returns what the write before it
wrote (Herlihy and Wing, "Linearizability", 1990). The search is that of Wing and Gong (1993) with the memory
of Lowe ("Testing for linearizability", 2017): a set of operations that were placed, and the value behind
them, is never looked at twice.

A write whose outcome is not known may have happened at any time after it was asked, or never.
Registers are independent of each other: check each by itself.
"""
import math


class Operation:
    def __init__(self, kind, value, asked, answered=math.inf, who=None):
        assert kind in ("read", "write")
        # A read that was not answered says nothing: leave it out.
        assert kind == "write" or answered != math.inf
        self.kind, self.value = kind, value
        self.asked, self.answered, self.who = asked, answered, who

    def __repr__(self):
        return "%s %r asked %.3f answered %.3f%s" % (
            self.kind, self.value, self.asked, self.answered, " by %s" % self.who if self.who else "")


def check(operations, initial=None, steps_max=2_000_000):
    """None, or a text that says what cannot be. Raises when it cannot be decided in so many steps."""
    # A write that may never have happened and that nobody read need not have.
    read = {o.value for o in operations if o.kind == "read"}
    operations = sorted((o for o in operations if o.answered != math.inf or o.value in read),
                        key=lambda o: o.asked)
    count = len(operations)
    certain = 0
    for i, o in enumerate(operations):
        if o.answered != math.inf:
            certain |= 1 << i
    seen = set()
    best = (0, 0)
    # (placed, value behind them)
    stack = [(0, initial)]
    steps = 0
    while stack:
        placed, value = stack.pop()
        if (placed & certain) == certain:
            return None
        if (placed, value) in seen:
            continue
        seen.add((placed, value))
        steps += 1
        if steps > steps_max:
            raise RuntimeError("not decided in %d steps" % steps_max)
        if bin(placed & certain).count("1") >= best[0]:
            best = (bin(placed & certain).count("1"), placed)
        # Nothing that was asked after another one was answered can come before that one.
        until = min(o.answered for i, o in enumerate(operations)
                    if not placed >> i & 1 and certain >> i & 1)
        following = []
        for i in range(count):
            o = operations[i]
            if o.asked > until:
                break
            if placed >> i & 1:
                continue
            if o.kind == "write":
                following.append((placed | 1 << i, o.value))
            elif o.value == value:
                following.append((placed | 1 << i, value))
        # Writes that may never have happened are tried last.
        following.sort(key=lambda f: (f[0] ^ placed) & certain != 0)
        stack.extend(following)
    left = [o for i, o in enumerate(operations) if not best[1] >> i & 1 and certain >> i & 1]
    return "no order explains it; the furthest one stops before one of:\n  " + "\n  ".join(
        repr(o) for o in left[:8])
