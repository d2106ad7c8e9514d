"""Secure streams between nodes, beside plain TCP and nginx's TLS 1.3 with the same suite."""
import os
import re
import subprocess
import time

from cluster import free_port
from harness import BUILD, Column, Invalid, Processes, Table, answers, cpu_seconds, folder, seconds_each, wait_until
from joins import certificate
from proxies import body_of, nginx

FILE_MEGABYTES = 512
SUITE = "TLS_AES_128_GCM_SHA256"
HTTPS = """
    server { listen 127.0.0.1:%(port)d ssl;
        ssl_certificate %(run)s/cert.pem; ssl_certificate_key %(run)s/cert.key;
        ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites %(suite)s; ssl_buffer_size 16k; root %(run)s;
        location = /ping { return 200 "%(body)s"; } }
    server { listen 127.0.0.1:%(plain)d; location = /ping { return 200 "up"; } }
"""


def ours(kind, *keys):
    out = subprocess.run([BUILD + "/bench/stream", kind, "%d" % max(1, round(seconds_each(2)))], check=True,
                         capture_output=True, text=True, timeout=120).stdout
    found = dict(re.findall(r"(\w+)=([\d.]+)", out))
    return [float(found[key]) if key in found else None for key in keys]


def bulk(pid, url):
    cpu, begin = cpu_seconds(pid), time.monotonic()
    subprocess.run(["curl", "-skf", "--tlsv1.3", "--tls13-ciphers", SUITE, "-o", "/dev/null", url + "/file"],
                   check=True, timeout=120)
    seconds = time.monotonic() - begin
    return (FILE_MEGABYTES * 1.048576 / seconds,
            (cpu_seconds(pid) - cpu) * 1e9 / (FILE_MEGABYTES * 1024))


def ping(pid, url):
    cpu = cpu_seconds(pid)
    out = subprocess.run(["wrk", "-t1", "-c1", "-d%ds" % max(1, round(seconds_each(2))), url + "/ping"],
                         check=True, capture_output=True, text=True, timeout=120).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise Invalid("wrk at %s/ping:\n%s" % (url, out))
    count = int(re.search(r"(\d+) requests in", out).group(1))
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)), (cpu_seconds(pid) - cpu) * 1e6 / count


def handshakes(pid, url):
    cpu, begin = cpu_seconds(pid), time.monotonic()
    out = subprocess.run(["openssl", "s_time", "-connect", url.split("//")[1], "-new", "-time",
                          "%d" % max(1, round(seconds_each(2))), "-tls1_3"], capture_output=True, text=True,
                         timeout=120).stdout
    found = re.search(r"(\d+) connections in (\d+) real seconds", out)
    if not found or found.group(1) == "0":
        raise Invalid("openssl s_time at %s:\n%s" % (url, out))
    return int(found.group(1)) / (time.monotonic() - begin), (cpu_seconds(pid) - cpu) * 1e6 / int(found.group(1))


def compare():
    """Streams between nodes (TLS 1.3 on an Ed25519 key on both sides) beside plain TCP, and beside nginx
    that sends a file of 512 MiB from memory to curl, answers 1 KiB to wrk on one connection, and greets
    openssl s_time."""
    with folder("/dev/shm") as run, Processes() as processes:
        certificate(run, "cert", "-newkey", "ed25519")
        with open(run + "/file", "wb") as f:
            f.truncate(FILE_MEGABYTES << 20)
        port, plain = free_port(), free_port()
        pid = nginx(processes, run, "nginx", HTTPS % {"run": run, "port": port, "plain": plain,
                                                      "suite": SUITE, "body": body_of(1024).decode()})
        wait_until(lambda: answers("http://127.0.0.1:%d/ping" % plain), 10, "nginx")
        url = "https://127.0.0.1:%d" % port
        kinds = (
            ("bulk", "megabytes_per_second", "sender_cpu_ns_per_kib", "MB/s", "CPU ns a KiB, sender", bulk, True),
            ("ping", "per_second", "receiver_cpu_us", "round trips/s", "CPU us each, receiver", ping, True),
            ("handshakes", "per_second", "receiver_cpu_us", "handshakes/s", "CPU us each, receiver", handshakes,
             False))
        for kind, rate, cpu, rate_name, cpu_name, theirs, has_tcp in kinds:
            sides = {"skerry": lambda k=kind, r=rate, c=cpu: ours("secure-" + k if k != "handshakes" else k, r, c),
                     "nginx": lambda t=theirs: t(pid, url)}
            if has_tcp:
                sides["plain TCP"] = lambda k=kind, r=rate, c=cpu: ours("tcp-" + k, r, c)
            yield Table(kind, [Column(rate_name, 0, less=False), Column(cpu_name, 1)], sides, "skerry",
                        ("nginx",))
