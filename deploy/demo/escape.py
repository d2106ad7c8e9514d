"""Tries what untrusted code should not be able to do, and tells what came of it."""
import ctypes
import glob
import os
import socket

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read(path):
    with open(path) as f:
        return f.read()


def write(path):
    with open(path, "w") as f:
        f.write("x")


def connect(address, port):
    with socket.socket() as s:
        s.settimeout(1)
        s.connect((address, port))


def raw_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def others():
    return "%d to be seen: itself" % len(glob.glob("/proc/[0-9]*"))


def interfaces():
    return ", ".join(name for _, name in socket.if_nameindex()) or "none"


TRIES = [
    ("read the passwords of the host", lambda: read("/etc/shadow")),
    ("read the home of root", lambda: os.listdir("/root") or "an empty folder"),
    ("see other processes", others),
    ("signal process 1", lambda: os.kill(1, 9)),
    ("change the programs it runs", lambda: write("/usr/bin/python3")),
    ("mount a file system", lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None)),
    ("make namespaces of its own", lambda: call("unshare", 0x10000000)),
    ("become root", lambda: os.setuid(0)),
    ("trace a process", lambda: call("ptrace", 16, 1, None, None)),
    ("load a kernel module", lambda: call("syscall", 175, None, 0, b"")),
    ("turn off the machine", lambda: call("reboot", 0x4321FEDC)),
    ("read the kernel's log", lambda: call("klogctl", 3, ctypes.create_string_buffer(64), 64)),
    ("list the network interfaces", interfaces),
    ("reach the internet", lambda: connect("192.0.2.1", 443)),
    ("reach the node's API", lambda: connect("127.0.0.1", 8081)),
    ("listen to the wire", raw_socket),
]

for what, attempt in TRIES:
    try:
        result = attempt()
        result = "DONE" if result is None else str(result)
    except OSError as e:
        result = "refused: " + (e.strerror or str(e))
    print("%-32s %s" % (what, result))
