"""What every comparison shares: turns, figures, tables, pictures.

A comparison is a function that yields tables. A table has sides, ours and theirs, which take turns (A B C
A B C ...), ROUNDS times; each turn gives one figure for each column. Of them the median is shown, with the
least and the most. Nothing is asserted about time. A run that is invalid (an error, a wrong body, a
refusal) raises Invalid and fails the bench.
"""
import contextlib
import glob
import html
import http.client
import os
import shutil
import statistics
import subprocess
import tempfile
import time

from cluster import BUILD, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))

ROUNDS = int(os.environ.get("ROUNDS") or 5)
TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))


class Invalid(Exception):
    """What was measured is worth nothing: a request failed, or the answer was wrong."""


def seconds_each(default):
    return float(os.environ.get("SECONDS_EACH") or default)


# --- tables ---------------------------------------------------------------------------------------------


class Column:
    def __init__(self, name, digits=1, less=True):
        """`less`: less of it is better."""
        self.name, self.digits, self.less = name, digits, less


class Table:
    """`sides` maps a name to a function that measures once and returns a figure for each column; None in
    it stands for what this side does not tell. `ours` is compared with each other side round by round, if
    there is one to compare."""

    def __init__(self, title, columns, sides, ours=None, against=(), rounds=None):
        self.title, self.columns, self.sides = title, columns, sides
        self.ours, self.against = ours, against
        self.count = rounds or ROUNDS
        self.figures = {name: [] for name in sides}

    def measure(self):
        for _ in range(self.count):
            for name, side in self.sides.items():
                self.figures[name].append([None if f is None else float(f) for f in side()])
        return self

    def to_json(self):
        ratios = {}
        for other in self.against:
            pairs = list(zip(self.figures[self.ours], self.figures[other]))
            ratios["%s / %s" % (self.ours, other)] = [
                [a[k] / b[k] if a[k] is not None and b[k] else None for a, b in pairs]
                for k in range(len(self.columns))]
        return {"title": self.title,
                "columns": [{"name": c.name, "digits": c.digits, "less_is_better": c.less}
                            for c in self.columns],
                "rows": [{"name": name, "figures": [list(f) for f in zip(*rounds)]}
                         for name, rounds in self.figures.items()],
                "ratios": [{"name": name, "figures": f} for name, f in ratios.items()]}


def shown(values, digits):
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    return "%.*f (%.*f-%.*f)" % (digits, statistics.median(values), digits, min(values), digits,
                                 max(values))


def cells(table):
    """Rows of text: the head, then a row for each side and each ratio."""
    yield [table["title"]] + [c["name"] for c in table["columns"]]
    for row in table["rows"]:
        yield [row["name"]] + [shown(f, c["digits"]) for f, c in zip(row["figures"], table["columns"])]
    for row in table["ratios"]:
        yield [row["name"]] + [shown(f, 2) for f in row["figures"]]


def text_of(table):
    lines = list(cells(table))
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join("  " + line[0].ljust(widths[0]) + "".join(
        "   " + cell.rjust(width) for cell, width in zip(line[1:], widths[1:])) for line in lines)


def markdown_of(table):
    lines = list(cells(table))
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


# --- pictures -------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, BAR, GAP = 760, 210, 190, 16, 5


def svg_of(title, tables):
    """One group of bars for each table, of its first column: median, and a line from least to most. Each
    group has a scale of its own."""
    parts, y = [], 30
    for table in tables:
        column = table["columns"][0]
        rows = [(r["name"], [v for v in r["figures"][0] if v is not None]) for r in table["rows"]
                if r["figures"]]
        rows = [(name, values) for name, values in rows if values]
        most = max((max(values) for _, values in rows), default=0) or 1
        scale = (WIDTH - LEFT - RIGHT) / most
        y += 24
        parts.append('<text x="8" y="%d" class="h">%s: %s, %s is better</text>' % (
            y, html.escape(table["title"]), html.escape(column["name"]),
            "less" if column["less_is_better"] else "more"))
        y += 8
        for name, values in rows:
            middle = statistics.median(values)
            at = y + BAR / 2
            parts.append(
                '<text x="%d" y="%.1f" text-anchor="end">%s</text>'
                '<rect x="%d" y="%d" width="%.1f" height="%d" class="%s"/>'
                '<path d="M%.1f %.1fH%.1f" class="w"/><text x="%.1f" y="%.1f">%s</text>' % (
                    LEFT - 8, at + 4, html.escape(name), LEFT, y, middle * scale, BAR,
                    "o" if name.startswith("skerry") else "t", LEFT + min(values) * scale, at,
                    LEFT + max(values) * scale, LEFT + max(values) * scale + 8, at + 4,
                    shown(values, column["digits"])))
            y += BAR + GAP
    style = ("text{font:12px sans-serif;fill:#222}.h{font-weight:bold}.o{fill:#2b7a78}.t{fill:#b8c4c8}"
             ".w{stroke:#222;stroke-width:1.5}")
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">'
            '<style>%s</style><rect width="100%%" height="100%%" fill="#fff"/>'
            '<text x="8" y="22" class="h" style="font-size:15px">%s</text>%s</svg>\n' % (
                WIDTH, y + 12, WIDTH, y + 12, style, html.escape(title), "\n".join(parts)))


# --- processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder(base="/tmp"):
    """A folder that goes away, which an unprivileged node can enter."""
    path = tempfile.mkdtemp(prefix="skerry-bench-", dir=base)
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Processes:
    """Those that a comparison started; all end with it."""

    def __init__(self):
        self.all = []

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        for p in self.all:
            if p.poll() is None:
                p.terminate()
        for p in self.all:
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        self.all.clear()

    def start(self, words, **more):
        more.setdefault("stdin", subprocess.DEVNULL)
        more.setdefault("stdout", subprocess.DEVNULL)
        more.setdefault("stderr", subprocess.DEVNULL)
        p = subprocess.Popen(words, **more)
        self.all.append(p)
        return p


def cpu_seconds(*pids, children=False):
    """What these processes have used; `children`: and those that they have waited for."""
    total = 0
    for pid in pids:
        with open("/proc/%d/stat" % pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        total += sum(int(n) for n in fields[11:15 if children else 13])
    return total / TICK


def pss_kib(*pids):
    """Memory, with what several share divided among them."""
    total = 0
    for pid in pids:
        with open("/proc/%d/smaps_rollup" % pid) as f:
            total += sum(int(line.split()[1]) for line in f if line.startswith("Pss:"))
    return total


def descendants(pid):
    found = [pid]
    for at in found:
        for path in glob.glob("/proc/%d/task/*/children" % at):
            with contextlib.suppress(OSError):
                with open(path) as f:
                    found += [int(text) for text in f.read().split()]
    return found


# With two cores or more what is measured has the first one, the load and the backend have the others.
SERVER_CORES = set(CORES[:1]) if len(CORES) > 1 else set(CORES)
LOAD_CORES = set(CORES[1:]) if len(CORES) > 1 else set(CORES)


def pin(pid, cores):
    """All threads of a process; those that it makes later follow the one that makes them."""
    for task in os.listdir("/proc/%d/task" % pid):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cores)


def pinned(words, cores=None):
    return ["taskset", "-c", ",".join(str(c) for c in sorted(cores or LOAD_CORES)), *words]


def fetch(url, timeout=10):
    """Status and body of a GET."""
    host, path = url[len("http://"):].split("/", 1)
    c = http.client.HTTPConnection(host, timeout=timeout)
    try:
        c.request("GET", "/" + path)
        answer = c.getresponse()
        return answer.status, answer.read()
    finally:
        c.close()


def answers(url, body=None):
    """Whether it answers 200, with this body if one is given."""
    try:
        status, got = fetch(url)
    except (OSError, http.client.HTTPException):
        return False
    return status == 200 and (body is None or got == body)


def require_body(url, body):
    status, got = fetch(url)
    if status != 200 or got != body:
        raise Invalid("%s answered %d with %d bytes, not with the %d expected"
                      % (url, status, len(got), len(body)))


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, len(values) * p // 100)]


def timed_ms(call):
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


__all__ = ["BUILD", "CORES", "Column", "HERE", "Invalid", "LOAD_CORES", "Processes", "ROUNDS", "SERVER_CORES", "Table",
           "answers", "cells", "cpu_seconds", "descendants", "fetch", "folder", "markdown_of", "percentile",
           "pin", "pinned", "pss_kib", "require_body", "seconds_each", "svg_of", "text_of", "timed_ms",
           "wait_until"]
