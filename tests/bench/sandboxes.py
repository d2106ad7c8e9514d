"""Starts: a command in a fresh sandbox, the first request to a server, and many that are parked."""
import contextlib
import http.client
import json
import os
import random
import shutil
import subprocess
import tempfile
import time

from cluster import PYTHON, SKERRY, UID_BASE, Node, UnixConnection, free_port
from harness import (BUILD, Column, Invalid, Processes, Table, cpu_seconds, descendants, folder, percentile,
                     pss_kib, wait_until)
from podman import Podman

BWRAP = ["/usr/bin/bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr",
         "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin",
         "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--cap-drop", "ALL"]


PARTS = ("reserved", "sandbox", "ready", "ended")
PART_COLUMNS = [Column("reserved by, ms", 2), Column("sandbox by, ms", 2), Column("then code ready, ms", 2),
                Column("then ended, ms", 2)]


class Api:
    """One connection that lives on."""

    def __init__(self, node):
        self.connection = UnixConnection(node.api_socket, 60)

    def ask(self, method, path, body=b""):
        self.connection.request(method, path, body=body, headers={"Accept": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise Invalid("%s %s: %d %s" % (method, path, answer.status, text))
        return json.loads(text) if text else None, answer

    def parts(self, instance, names=PARTS):
        """Milliseconds from the request to the reservation and to the sandbox, which are made at the same
        time; from when both are there until the code is ready; and until it ended."""
        events = self.ask("GET", "/v1/explain/" + instance)[0]["events"]
        at = {event["what"]: event["at_us"] / 1e3 for event in reversed(events)}
        if any(name not in at for name in names):
            raise Invalid("explain %s tells %s" % (instance, events))
        times = [at[name] for name in names]
        times[2:] = [b - max(before) for b, before in ((times[k], times[:k]) for k in range(2, len(times)))]
        return times


def oci_bundle(run, app, argv):
    """What bwrap is told above, for crun and runc: and the limits that Skerry always has."""
    for name in ("proc", "dev", "tmp", "usr", "app"):  # who is root in there may not make them
        os.makedirs(os.path.join(run, "root", name))
    for name in ("bin", "lib", "lib64"):
        os.symlink("usr/" + name, os.path.join(run, "root", name))
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"},
              {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
              {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
              {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
              {"destination": "/app", "type": "bind", "source": app, "options": ["rbind", "ro"]}]
    mapping = [{"containerID": 0, "hostID": 700000, "size": 65536}]
    config = {
        "ociVersion": "1.0.2", "hostname": "bench", "mounts": mounts,
        "root": {"path": "root", "readonly": True},
        "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": argv, "cwd": "/",
                    "env": ["PATH=/usr/bin"], "noNewPrivileges": True,
                    "capabilities": {k: [] for k in ("bounding", "effective", "permitted", "inheritable")}},
        "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup",
                                                       "user")],
                  "uidMappings": mapping, "gidMappings": mapping,
                  "resources": {"memory": {"limit": 256 << 20}, "pids": {"limit": 128},
                                "cpu": {"quota": 100000, "period": 100000}}}}
    with open(os.path.join(run, "config.json"), "w") as f:
        json.dump(config, f)


def launcher(argv, count, gap):
    """crun takes no machine that has both generations of control groups: here the second one is not there."""
    script = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec \"$@\""
    return ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", BUILD + "/bench/launch",
            str(count), "%d" % (gap * 1000), *argv]


def launch(argv, environment, count, gap):
    """What Commands.measure tells, of a program that is started and waited for."""
    done = subprocess.run(launcher(argv, count, gap), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    runs = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    if done.returncode != 0 or len(runs) != count:
        raise Invalid("%s: %s" % (" ".join(argv), done.stderr))
    taken, cpu, peak = zip(*runs)
    return (percentile(taken, 50) / 1e3, percentile(taken, 99) / 1e3, min(taken) / 1e3, sum(cpu) / count, max(peak))


AT_ONCE, EACH = 4, 50


def starts_a_second(lanes, environment=None):
    """Of so many programs that start something EACH times."""
    begun = time.perf_counter()
    processes = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  env={**os.environ, **(environment or {})}) for words in lanes]
    said = [p.communicate(timeout=120)[1] for p in processes]
    if any(p.returncode != 0 for p in processes):
        raise Invalid("%s: %s" % (lanes[0], said))
    return [len(lanes) * EACH / (time.perf_counter() - begun)]


class Commands:
    """Commands of a node by its API: p50, p99, least, CPU of both its processes and all that they started,
    and the most memory that a sandbox had, all its processes and the kernel's part."""

    def __init__(self, node, app):
        self.node = node
        tar = subprocess.run(["tar", "-C", app, "-c", "true"], capture_output=True, check=True).stdout
        self.run_path = "/v1/run?command=/app/true&source=" + Api(node).ask("POST", "/v1/sources", tar)[0]["digest"]

    def asker(self, path, count, gap):
        return [BUILD + "/bench/ask", str(count), "%d" % (gap * 1000), self.node.api_socket, "POST", path]

    def measure(self, path, count, gap):
        pids = (self.node.serve_process.pid, self.node.runner_process.pid)
        before = cpu_seconds(*pids, children=True)
        done = subprocess.run(self.asker(path, count, gap), capture_output=True, text=True, timeout=120)
        answers = [line.split(" ", 1) for line in done.stdout.splitlines()]
        results = [json.loads(body) for _, body in answers]
        if done.returncode != 0 or len(answers) != count or any(r["exit_code"] != 0 for r in results):
            raise Invalid("%s: %s%s" % (path, done.stderr, done.stdout))
        time.sleep(0.05)  # what the last one left is waited for
        cpu = (cpu_seconds(*pids, children=True) - before) / count * 1e6
        taken = [float(us) / 1e3 for us, _ in answers]
        peak = max(r["memory_peak_bytes"] for r in results)
        return percentile(taken, 50), percentile(taken, 99), min(taken), cpu, peak / 1024

    def parts(self):
        time.sleep(0.1)  # a blank is made anew
        api = Api(self.node)  # the first one's connection has been idle for too long
        _, answer = api.ask("POST", self.run_path)
        return api.parts(answer.getheader("Skerry-Instance"))


def ids_of(count, node=0):
    """Beyond those that tests and `skerry up` take; the runner refuses what another one has."""
    return UID_BASE + (2000 + 500 * node + random.randrange(200)) * 65536, count


def in_memory(stack):
    """What lives as long as the machine lies on a tmpfs, as /run is where systemd is."""
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="skerry-bench-", dir="/dev/shm"))


def with_podman(stack, run, app, argv):
    """Its name in the tables, and what is started for it; None if it does not run here, which the name tells."""
    podman = stack.enter_context(contextlib.closing(Podman(os.path.join(run, "podman"), in_memory(stack), app, argv)))
    try:
        launch(podman.argv, podman.environment, 1, 0)
    except Invalid as error:
        said = " ".join(str(error).split())
        return "podman with runc does not run here: " + (said.partition(" Error: ")[2] or said)[:200], None
    return "podman with runc", (podman.argv, podman.environment)


def cold():
    """From the request to the exit of a static `true` in a fresh sandbox; through the API on one connection
    for Skerry, by spawn and wait for the others."""
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(folder())
        app = os.path.join(run, "app")
        os.mkdir(app)
        shutil.copy(os.path.join(BUILD, "probe", "true"), app)
        oci_bundle(run, app, ["/app/true"])
        nodes = {name: stack.enter_context(Node(runner_config="blanks: %d\ninstances: %s\n" % (
            blanks, in_memory(stack)), ids=ids_of(300, k)))
                 for k, (name, blanks) in enumerate((("skerry, no blanks", 0), ("skerry, from a blank", 64)))}
        commands = {name: Commands(node, app) for name, node in nodes.items()}
        host = nodes["skerry, from a blank"]
        host.deploy({"id": "parked", "command": ["/app/parked"], "port": 8080, "access": "public",
                     "life": {"idle": "1h"}, "source": parked_folder(run)})
        if host.get("/w/parked/").body != b"ok":
            raise Invalid("the instance for exec does not answer")
        exec_path = "/v1/instances/%s/exec?command=/usr/bin/true" % host.ps()[0]["id"]
        spawned = {"skerry run (whole CLI)": ([SKERRY, "run", "--", "true"], host.environment()),
                   "bwrap": (BWRAP + ["--ro-bind", app, "/app", "--", "/app/true"], {}),
                   "crun": (["/usr/bin/crun", "run", "--bundle", run, "crun-bench-%d" % os.getpid()], {}),
                   "runc": (["/usr/sbin/runc", "run", "--bundle", run, "runc-bench-%d" % os.getpid()], {})}
        podman_name, podman = with_podman(stack, run, app, ["/app/true"])
        others = ["bwrap", "crun", "runc"]
        if podman is not None:
            spawned[podman_name] = podman
            others.append(podman_name)
        spawned["fork + exec"] = ([app + "/true"], {})
        columns = [Column("p50 ms", 2), Column("p99 ms", 2), Column("least ms", 2), Column("CPU us a start", 0),
                   Column("peak KiB", 0)]
        for title, count, gap in (("back to back, 50 a turn", 50, 0), ("lone, 20 a turn, 100 ms apart", 20, 0.1)):
            sides = {name: lambda c=c, n=count, g=gap: c.measure(c.run_path, n, g)
                     for name, c in commands.items()}
            sides["skerry, exec in an instance"] = lambda n=count, g=gap: commands[
                "skerry, from a blank"].measure(exec_path, n, g)
            sides.update({name: lambda a=argv, e=env, n=count, g=gap: launch(a, e, n, g)
                          for name, (argv, env) in spawned.items()})
            sides.setdefault(podman_name, lambda: [None] * len(columns))
            for side in sides.values():
                side()  # what is read from disk once is in memory
            yield Table(title, columns, sides, "skerry, from a blank", others)
        def lanes(argv):
            return [launcher([w.replace(one_id, "%s-%d" % (one_id, k)) for w in argv], EACH, 0)
                    for k in range(AT_ONCE)]
        one_id = "bench-%d" % os.getpid()
        sides = {name: lambda c=c: starts_a_second([c.asker(c.run_path, EACH, 0)] * AT_ONCE)
                 for name, c in commands.items()}
        sides.update({name: lambda a=spawned[name]: starts_a_second(lanes(a[0]), a[1]) for name in others})
        yield Table("%d at once, all cores" % AT_ONCE, [Column("starts/s", 0, less=False)], sides,
                    "skerry, from a blank", others)
        yield Table("lone, where it goes by explain, one start a turn",
                    PART_COLUMNS, {name: lambda c=c: c.parts() for name, c in commands.items()},
                    rounds=20)


# --- the first request to a server ----------------------------------------------------------------------

PYTHON_SERVER = """import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), H).serve_forever()
"""
NODE_SERVER = """require("http").createServer((q, a) => a.end("ok")).listen(process.env.PORT)
"""
LANGUAGES = {"python3": ([PYTHON, "/app/main.py"], PYTHON_SERVER),
             "node": (["/usr/bin/node", "/app/main.js"], NODE_SERVER)}


def first_answer(argv, environment, port):
    """Milliseconds until the program that is started answers its first request; it is ended then."""
    with Processes() as processes:
        begun = time.perf_counter()
        processes.start(argv, env=environment)
        while True:
            if time.perf_counter() - begun > 30:
                raise Invalid("%s does not answer" % argv)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                if answer.status != 200 or answer.read() != b"ok":
                    raise Invalid("%s answers %d" % (argv, answer.status))
                taken = (time.perf_counter() - begun) * 1e3
                break
            except OSError:
                time.sleep(0.0005)
            finally:
                connection.close()
    return [taken, None, None, None, None]


def first_request():
    """The first request to a server that is not running, through HTTP to its last byte: what the language
    needs is in `fork + exec`, Skerry's parts are told by `explain`. bwrap shares this machine's network."""
    columns = [Column("ms", 1), *PART_COLUMNS[:3], Column("all else, ms", 2)]
    with folder() as run, Node() as node:
        api = Api(node)
        for language, (argv, text) in LANGUAGES.items():
            app = os.path.join(run, language)
            os.mkdir(app)
            with open(os.path.join(app, os.path.basename(argv[-1])), "w") as f:
                f.write(text)
            node.deploy({"id": language, "command": argv, "port": 8080, "access": "public", "source": app,
                         "deploy": {"resources": {"limits": {"cpus": "2"}}}})

            def ours(name=language):
                time.sleep(0.2)  # the blank that the last one took is made anew
                begun = time.perf_counter()
                answer = node.get("/w/%s/" % name)
                taken = (time.perf_counter() - begun) * 1e3
                if answer.body != b"ok" or answer.start != "cold":
                    raise Invalid("%s: %s" % (name, answer))
                known = api.parts(answer.instance, PARTS[:3])
                node.cli("stop", answer.instance)
                return [taken, *known, taken - max(known[:2]) - known[2]]

            def bwrapped(words=argv, where=app):
                port = free_port()
                return first_answer(BWRAP + ["--share-net", "--ro-bind", where, "/app", "--", *words],
                                    {"PORT": str(port), "PATH": "/usr/bin"}, port)

            def plain(words=argv, where=app):
                port = free_port()
                return first_answer([w.replace("/app", where) for w in words],
                                    {"PORT": str(port), "PATH": "/usr/bin"}, port)
            sides = {"skerry": ours, "bwrap": bwrapped, "fork + exec": plain}
            for side in sides.values():
                side()
            yield Table(language, columns, sides, "skerry", ("bwrap", "fork + exec"))


# --- parked ---------------------------------------------------------------------------------------------


def parked_folder(run):
    path = os.path.join(run, "parked")
    os.makedirs(path, exist_ok=True)
    shutil.copy(os.path.join(BUILD, "probe", "parked"), path)
    return path


def available_kib():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:"))


def split_pss(pids, program):
    """Of the programs themselves, and of all else; and how many programs there are."""
    own = other = count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            kib = pss_kib(pid)
            if os.path.basename(os.readlink("/proc/%d/exe" % pid)) == program:
                own, count = own + kib, count + 1
            else:
                other += kib
    return own, other, count


def density():
    """Memory and time of instances that wait for work: a static server of a few KiB, started one after the
    other. Memory is proportional (PSS): what several share is divided among them."""
    columns = [Column("KiB each beyond the program", 0), Column("the program, KiB each", 0),
               Column("serve + runner, KiB each", 1), Column("less available, KiB each", 0),
               Column("start p50 ms", 2), Column("start p99 ms", 2)]
    with folder() as run:
        app = parked_folder(run)
        for count, rounds in ((10, 3), (100, 3), (1000, 1)):
            yield Table("%d parked instances%s" % (count, ", one turn" if rounds == 1 else ""), columns, {
                "skerry": lambda n=count: density_ours(app, n),
                "bwrap": lambda n=count: density_bwrap(app, n)}, "skerry", ("bwrap",), rounds)


def density_ours(app, count):
    with Node(runner_config="blanks: 0\n", ids=ids_of(count + 8)) as node:
        node.deploy({"id": "parked", "command": ["/app/parked"], "port": 8080, "access": "public",
                     "source": app, "join": {"max_joiners": 1, "key": "query:k"}, "life": {"idle": "1h"},
                     "scale": {"max": count},
                     "deploy": {"resources": {"limits": {"cpus": "0.1", "memory": "16M", "disk": "1M"}}}})
        pids = (node.serve_process.pid, node.runner_process.pid)
        before, free_before, taken = pss_kib(*pids), available_kib(), []
        for k in range(count):
            begun = time.perf_counter()
            answer = node.get("/w/parked/?k=%d" % k)
            taken.append((time.perf_counter() - begun) * 1e3)
            if answer.body != b"ok" or answer.start != "cold":
                raise Invalid("instance %d of %d: %s" % (k, count, answer))
        free = available_kib()
        own, other, running = split_pss(descendants(node.runner_process.pid)[1:], "parked")
        if running != count:
            raise Invalid("%d of %d instances run" % (running, count))
        grown = pss_kib(*pids) - before
        node.cli("workload", "rm", "parked")  # all at once; one by one they take a minute
        wait_until(lambda: not node.ps(), 60, "no instance")
        return (other / count, own / count, grown / count, (free_before - free) / count, percentile(taken, 50),
                percentile(taken, 99))


def density_bwrap(app, count):
    with Processes() as processes:
        free_before, taken, pids = available_kib(), [], []
        for _ in range(count):
            begun = time.perf_counter()
            p = processes.start(BWRAP + ["--ro-bind", app, "/app", "--", "/app/parked"],
                                stdout=subprocess.PIPE)
            if p.stdout.readline() != b"ready\n":
                raise Invalid("bwrap does not start the program")
            taken.append((time.perf_counter() - begun) * 1e3)
            pids.append(p.pid)
        free = available_kib()
        own, other, running = split_pss([d for pid in pids for d in descendants(pid)], "parked")
        if running != count:
            raise Invalid("%d of %d sandboxes run" % (running, count))
        return (other / count, own / count, None, (free_before - free) / count, percentile(taken, 50),
                percentile(taken, 99))
