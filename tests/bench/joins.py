"""Requests to what already runs: beside nginx and haproxy."""
import contextlib
import os
import re
import signal
import subprocess
import tempfile

from cluster import Node, free_port, processes_of
from harness import (BUILD, LOAD_CORES, SERVER_CORES, Column, Invalid, Processes, Table, answers, cpu_seconds,
                     folder, pin, seconds_each, wait_until)
from proxies import (BODIES, NGINX, PASS, UPSTREAM, backend, backend_http, body_of, checked_wrk, haproxy, nginx,
                     nginx_proxy, path_of, wrk)

RATES = [Column("req/s", 0, less=False), Column("p50 ms", 2), Column("p99 ms", 2),
         Column("CPU us a request")]
COUNTS = [Column("system calls", 2), Column("allocations", 2), Column("context switches", 2)]
CONNECTIONS = 64
LARGE_LOAD = 1 << 28  # so many bytes on their way at once: what is unfinished at the end must not weigh


@contextlib.contextmanager
def proxied(direct=False):
    """Each of Skerry (a whole node), nginx and haproxy before a backend: name to (pids, URL without the
    path of a body). Skerry's backend is the same program with the same file, in a sandbox."""
    with folder() as run, Processes() as processes:
        app = os.path.join(run, "app")
        os.mkdir(app)
        with open(os.path.join(app, "nginx.conf"), "w") as f:
            f.write(NGINX % {"run": "/tmp", "name": "backend", "http": backend_http("8080", app, "/app")})
        pid, port = backend(processes, run)
        pin(pid, LOAD_CORES)
        theirs = {"nginx": nginx_proxy(processes, run, "proxy", port),
                  "haproxy": haproxy(processes, run, port)}
        sides = {name: ([pid], "http://127.0.0.1:%d/" % at) for name, (pid, at) in theirs.items()}
        with Node(config="gateway: {threads: 1}\n") as node:
            node.deploy({"id": "backend", "port": 8080, "access": "public", "source": app,
                         "command": ["/usr/sbin/nginx", "-c", "/app/nginx.conf", "-p", "/tmp"],
                         "join": {"max_joiners": 0}, "life": {"idle": "1h"},
                         "deploy": {"resources": {"limits": {"cpus": "2", "memory": "512M"}}}})
            sides = {"skerry": ([node.serve_process.pid],
                                "http://127.0.0.1:%d/w/backend/" % node.http_port), **sides}
            small = BODIES["1 KiB"]
            for name, (pids, url) in sides.items():
                wait_until(lambda u=url: answers(u + path_of(small), body_of(small)), 10, name)
                pin(pids[0], SERVER_CORES)
            for instance in node.ps():
                for pid in processes_of(instance["id"]):
                    pin(pid, LOAD_CORES)
            if direct:
                sides = {"direct": ([], "http://127.0.0.1:%d/" % port), **sides}
            yield sides


def loaded(pids, url, size, connections, seconds):
    before = cpu_seconds(*pids)
    rate, p50, p99, count = checked_wrk(url + path_of(size), size, connections, seconds)
    return rate, p50, p99, (cpu_seconds(*pids) - before) / count * 1e6 if pids else None


def warm_join():
    """Requests to an instance that runs, through the gateway, beside nginx and haproxy in front of the same
    backend: keep-alive, one thread each."""
    seconds = seconds_each(2)
    with proxied() as sides:
        for body, size in BODIES.items():
            for connections in (1, 64, 512):
                yield Table("%s, %d connection%s" % (body, connections, "s"[connections == 1:]), RATES, {
                    name: lambda p=pids, u=url, s=size, c=connections: loaded(
                        p, u, s, c, seconds * 2 if s * c > LARGE_LOAD else seconds)
                    for name, (pids, url) in sides.items()}, "skerry", ("nginx", "haproxy"))


def added_latency():
    """What a proxy adds to a request on one connection: beside asking the backend itself."""
    seconds = seconds_each(3)
    columns = [Column("p50 us"), Column("p99 us"), Column("req/s", 0, less=False), Column("added p50 us")]
    with proxied(direct=True) as sides:
        last = {}

        def side(name, pids, url):
            rate, p50, p99, _ = loaded(pids, url, BODIES["1 KiB"], 1, seconds)
            last[name] = p50
            return p50 * 1e3, p99 * 1e3, rate, (p50 - last["direct"]) * 1e3 if pids else None
        yield Table("1 KiB, 1 connection", columns, {
            name: lambda n=name, p=pids, u=url: side(n, p, u) for name, (pids, url) in sides.items()},
                    "skerry", ("nginx", "haproxy"))


def switches(pid):
    """Of all threads, so far."""
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        with contextlib.suppress(OSError), open("/proc/%d/task/%s/status" % (pid, task)) as f:
            total += sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", f.read()))
    return total


def allocations(folder_, pid):
    with open(os.path.join(folder_, str(pid)), "rb") as f:
        return int.from_bytes(f.read(8), "little")


def system_calls(pid, load):
    """For each request of `load`, which tells how many there were."""
    with tempfile.NamedTemporaryFile() as out:
        strace = subprocess.Popen(["strace", "-f", "-c", "-o", out.name, "-p", str(pid)], stderr=subprocess.PIPE)
        strace.stderr.readline()  # it has attached
        count = load()
        strace.send_signal(signal.SIGINT)
        strace.communicate()
        total = [line.split() for line in out.read().splitlines() if line.endswith(b" total")]
    if len(total) != 1:
        raise Invalid("strace of %d tells no total" % pid)
    return int(total[0][3]) / count  # % time, seconds, usecs/call, calls


def per_join():
    """What a request costs where no clock is asked: system calls, allocations and context switches of the whole
    process, divided by the requests."""
    seconds = seconds_each(2)
    with folder() as counts, preloaded(counts), proxied() as sides:
        for body in ("1 KiB", "64 KiB"):
            for connections in (1, 64):
                def side(pid, url, size=BODIES[body], connections=connections):
                    def load():
                        return checked_wrk(url + path_of(size), size, connections, seconds)[3]
                    load()  # it has what it needs
                    before = allocations(counts, pid), switches(pid)
                    count = load()
                    after = allocations(counts, pid), switches(pid)
                    return [system_calls(pid, load), *((b - a) / count for a, b in zip(before, after))]
                yield Table("%s, %d connection%s" % (body, connections, "s"[connections == 1:]), COUNTS, {
                    name: lambda p=pids[0], u=url: side(p, u) for name, (pids, url) in sides.items()},
                            "skerry", ("nginx", "haproxy"), rounds=1)


@contextlib.contextmanager
def preloaded(counts):
    """What is started meanwhile counts its allocations there."""
    os.chmod(counts, 0o777)
    os.environ.update(LD_PRELOAD=BUILD + "/bench/allocations.so", ALLOCATIONS=counts)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"], os.environ["ALLOCATIONS"]


# --- a gateway alone, before a backend that is given ------------------------------------------------------


def gateway(processes, backend_port, *more):
    """build/bench/gateway: its pids, and where it answers."""
    port = free_port()
    p = processes.start([BUILD + "/bench/gateway", str(port), str(backend_port), "1", *more],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    words = p.stdout.readline().split()
    pids = [int(w) for w in words[1:3] if w != "0"]
    return pids, words[4] if len(words) > 4 else str(port)


TLS = """ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
         ssl_certificate %(run)s/cert.pem; ssl_certificate_key %(run)s/key.pem;
         ssl_client_certificate %(run)s/cert.pem; ssl_verify_client on;"""
TLS_UP = """proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate %(run)s/cert.pem;
            proxy_ssl_certificate_key %(run)s/key.pem; proxy_ssl_verify on;
            proxy_ssl_trusted_certificate %(run)s/cert.pem; proxy_ssl_name bench;
            proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;"""


def certificate(run, name, *fresh):
    subprocess.run(["openssl", "req", "-x509", *fresh, "-nodes", "-keyout", "%s/%s.key" % (run, name),
                    "-out", "%s/%s.pem" % (run, name), "-subj", "/CN=bench", "-addext",
                    "subjectAltName=DNS:bench", "-days", "2"], check=True, capture_output=True)


def forwarded_join():
    """Joins that travel: two gateways with TLS 1.3 between them, both sides certified, beside nginx -> nginx
    with the same; and one hop of each. Gateways without a node around them, before one backend."""
    seconds = seconds_each(3)
    size = BODIES["1 KiB"]
    with folder("/dev/shm") as run, Processes() as processes:
        certificate(run, "cert", "-newkey", "ed25519")
        os.rename(run + "/cert.key", run + "/key.pem")
        backend_pid, port = backend(processes, run)
        pin(backend_pid, LOAD_CORES)
        names, far, near = {"run": run}, free_port(), free_port()
        entry = nginx(processes, run, "entry", UPSTREAM % far + "server { listen 127.0.0.1:%d; location / { %s "
                      "%s } }" % (near, PASS % "https", TLS_UP % names))
        owner = nginx(processes, run, "owner", UPSTREAM % port + "server { listen 127.0.0.1:%d ssl; %s "
                      "location / { %s } }" % (far, TLS % names, PASS % "http"))
        lone, lone_port = nginx_proxy(processes, run, "lone", port)
        ours, our_port = gateway(processes, port, "forward")
        our_lone, our_lone_port = gateway(processes, port)
        hops = {"two hops, TLS between": {
                    "skerry": (ours, "http://127.0.0.1:%s/w/web/" % our_port),
                    "nginx": ([entry, owner], "http://127.0.0.1:%d/" % near)},
                "one hop": {
                    "skerry": (our_lone, "http://127.0.0.1:%s/w/web/" % our_lone_port),
                    "nginx": ([lone], "http://127.0.0.1:%d/" % lone_port)}}
        for hop, sides in hops.items():
            for name, (pids, url) in sides.items():
                wait_until(lambda u=url: answers(u + path_of(size), body_of(size)), 10, name)
                for pid in pids:
                    pin(pid, SERVER_CORES)
            for connections in (1, CONNECTIONS):
                yield Table("%s, 1 KiB, %d connection%s" % (hop, connections, "s"[connections == 1:]), RATES, {
                    name: lambda p=pids, u=url, c=connections: loaded(p, u, size, c, seconds)
                    for name, (pids, url) in sides.items()}, "skerry", ("nginx",))


KEYS = {"P-256": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        "RSA-2048": ["-newkey", "rsa:2048"]}
HTTPS = """
upstream up { server 127.0.0.1:%(backend)d; keepalive 512; keepalive_requests 100000000; }
server {
    listen 127.0.0.1:%(port)d ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_prefer_server_ciphers on;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256;
    ssl_ecdh_curve X25519:P-256;
    ssl_certificate %(run)s/%(key)s.pem; ssl_certificate_key %(run)s/%(key)s.key;
    location / {
        proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
        proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
    }
}
"""


def s_time(url, seconds):
    host, path = re.match(r"https://([^/]+)(/.*)", url).groups()
    out = subprocess.run(["openssl", "s_time", "-connect", host, "-new", "-time", str(round(seconds)), "-www",
                          path], capture_output=True, text=True, timeout=seconds + 30)
    found = re.search(r"(\d+) connections in ([\d.]+) real seconds", out.stdout)
    if out.returncode != 0 or not found or found.group(1) == "0":
        raise Invalid("openssl s_time at %s:\n%s%s" % (url, out.stdout, out.stderr))
    return int(found.group(1)) / round(seconds), None, None, int(found.group(1))


def tls():
    """HTTPS at the gateway beside nginx with the same certificate, suites and backend. Warm: connections live
    on; resumed: each request has its own connection and wrk resumes what it can; full: openssl s_time, one
    after the other, nothing is resumed."""
    seconds = seconds_each(3)
    size = BODIES["1 KiB"]
    with folder("/dev/shm") as run, Processes() as processes:
        backend_pid, backend_port = backend(processes, run)
        pin(backend_pid, LOAD_CORES)
        for key, fresh in KEYS.items():
            certificate(run, key, *fresh)
            port = free_port()
            theirs = nginx(processes, run, key, HTTPS % {"backend": backend_port, "port": port, "run": run,
                                                         "key": key})
            pids, our_port = gateway(processes, backend_port, *("%s/%s.%s" % (run, key, end)
                                                                for end in ("pem", "key")))
            sides = {"skerry": (pids[0], "https://127.0.0.1:%s/w/web/%s" % (our_port, path_of(size))),
                     "nginx": (theirs, "https://127.0.0.1:%d/%s" % (port, path_of(size)))}
            for pid, url in sides.values():
                wait_until(lambda u=url: subprocess.run(["curl", "-skf", "-o", "/dev/null", u],
                                                        check=False).returncode == 0, 10, url)
                pin(pid, SERVER_CORES)

            def side(pid, url, more):
                before = cpu_seconds(pid)
                if more is None:
                    rate, p50, p99, count = s_time(url, seconds)
                else:
                    rate, p50, p99, count = wrk(url, CONNECTIONS, seconds, *more, size=size)
                return rate, p50, p99, (cpu_seconds(pid) - before) / count * 1e6
            kinds = {"full": None, "resumed": ["-H", "Connection: close"]}
            if key == "P-256":
                kinds["warm"] = []
            for kind, more in kinds.items():
                yield Table("%s, %s, 1 KiB" % (kind, key), RATES, {
                    name: lambda p=pid, u=url, m=more: side(p, u, m) for name, (pid, url) in sides.items()},
                            "skerry", ("nginx",))
