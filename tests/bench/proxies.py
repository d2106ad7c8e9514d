"""Servers and proxies of HTTP, and wrk before them."""
import os
import re
import subprocess

from cluster import free_port
from harness import Invalid, pinned, require_body

# Bodies and the path of each. Small ones are in the backend's configuration, large ones are files that it
# keeps open.
BODIES = {"1 B": 1, "1 KiB": 1024, "64 KiB": 65536, "1 MiB": 1048576}
LARGE = 4096

NGINX = """
daemon off; master_process off; worker_processes 1; pid %(run)s/%(name)s.pid;
error_log %(run)s/%(name)s.log; worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    access_log off; keepalive_requests 100000000; keepalive_timeout 600s; sendfile on; tcp_nopush on;
    tcp_nodelay on; open_file_cache max=16 inactive=600s; open_file_cache_valid 600s; default_type text/plain;
    client_body_temp_path %(run)s; proxy_temp_path %(run)s; fastcgi_temp_path %(run)s;
    uwsgi_temp_path %(run)s; scgi_temp_path %(run)s; proxy_max_temp_file_size 0;
    %(http)s
}
"""
UPSTREAM = "upstream up { server 127.0.0.1:%d; keepalive 512; keepalive_requests 100000000; }"
PASS = "proxy_pass %s://up; proxy_http_version 1.1; proxy_set_header Connection \"\";"
HAPROXY = """
global
    maxconn 8192
    nbthread 1
defaults
    mode http
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    timeout tunnel 600s
    http-reuse always
frontend in
    bind 127.0.0.1:%(port)d
    default_backend up
backend up
    server one 127.0.0.1:%(backend)d
"""


def body_of(size):
    return b"x" * size


def path_of(size):
    return "%d" % size


def backend_http(listen, root, seen=None):
    """The server that all stand before; writes the large bodies below `root`, which it sees as `seen`."""
    places = ""
    for size in BODIES.values():
        if size < LARGE:
            places += "location = /%s { return 200 \"%s\"; }" % (path_of(size), body_of(size).decode())
        else:
            with open(os.path.join(root, path_of(size)), "wb") as f:
                f.write(body_of(size))
    return "server { listen %s; root %s; %s }" % (listen, seen or root, places)


def nginx_file(run, name, http):
    path = os.path.join(run, name + ".conf")
    with open(path, "w") as f:
        f.write(NGINX % {"run": run, "name": name, "http": http})
    return path


def nginx(processes, run, name, http):
    return processes.start(["/usr/sbin/nginx", "-c", nginx_file(run, name, http), "-p", run]).pid


def backend(processes, run):
    """The backend on this machine: its pid and its port."""
    port = free_port()
    return nginx(processes, run, "backend", backend_http("127.0.0.1:%d" % port, run)), port


def nginx_proxy(processes, run, name, port_of_backend, more=""):
    port = free_port()
    pid = nginx(processes, run, name, UPSTREAM % port_of_backend + "server { listen 127.0.0.1:%d; location "
                "/ { %s %s } }" % (port, PASS % "http", more))
    return pid, port


def haproxy(processes, run, port_of_backend):
    port = free_port()
    path = os.path.join(run, "haproxy.cfg")
    with open(path, "w") as f:
        f.write(HAPROXY % {"port": port, "backend": port_of_backend})
    return processes.start(["/usr/sbin/haproxy", "-db", "-q", "-f", path]).pid, port


UNIT_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
UNIT_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def wrk(url, connections, seconds, *more, size=0):
    """Requests a second, p50 and p99 in milliseconds, and how many there were. `size` is that of the body:
    fewer bytes than that for each answer are no valid run."""
    out = subprocess.run(pinned(["wrk", "-t1", "-c%d" % connections, "-d%ds" % max(1, round(seconds)),
                                 "--timeout", "20s", "--latency", *more, url]), capture_output=True,
                         text=True, timeout=seconds + 60).stdout
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    found = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMG]?B) read", out)
    if not found or "Non-2xx" in out or (errors and any(int(n) for n in errors.groups())):
        raise Invalid("wrk at %s:\n%s" % (url, out))
    count, read, unit = int(found.group(1)), float(found.group(2)), found.group(3)
    # Two digits behind the point are shown.
    if count == 0 or (read + 0.01) * UNIT_BYTES[unit] < count * size:
        raise Invalid("wrk at %s read %s%s in %d answers" % (url, read, unit, count))

    def at(p):
        value, u = re.search(r"\s%s%%\s+([\d.]+)(us|ms|s|m)\b" % p, out).groups()
        return float(value) * UNIT_MS[u]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)), at(50), at(99), count


def checked_wrk(url, size, connections, seconds):
    require_body(url, body_of(size))
    figures = wrk(url, connections, seconds, size=size)
    require_body(url, body_of(size))
    return figures
