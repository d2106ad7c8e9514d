"""A resolver for tests: dns_server.py ADDRESS. What it answers to a name is said in ANSWERS; it writes a
line when it listens."""
import socket
import struct
import sys
import threading

GOOD = "198.51.100.7"
ANSWERS = {
    "good.example.org": [GOOD],
    "also.good.example.org": [GOOD],
    "meta.bad.example.org": ["169.254.169.254"],
    "lan.bad.example.org": ["10.77.0.3"],
    "big.example.org": [f"203.0.113.{n}" for n in range(40)],
    "huge.example.org": [f"203.0.113.{n}" for n in range(120)],
    "spoof.example.org": [GOOD],
}
asked = 0


def name_bytes(name):
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def question(data):
    """The name, and the question's bytes."""
    at, parts = 12, []
    while data[at]:
        parts.append(data[at + 1:at + 1 + data[at]].decode())
        at += 1 + data[at]
    return ".".join(parts).lower(), data[12:at + 5]


def record(kind, data):
    return b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 1, len(data)) + data


def answer(data, stream):
    name, asked_bytes = question(data)
    records, code = [], 0
    if name == "alias.example.org":
        target = name_bytes("good.example.org")
        records = [record(5, target),
                   target + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(GOOD)]
    elif name == "count.example.org":
        records = [record(1, bytes([203, 0, asked >> 8 & 255, asked & 255]))]
    elif name in ANSWERS:
        records = [record(1, socket.inet_aton(a)) for a in ANSWERS[name]]
    else:
        code = 3
    flags = 0x8180 | code
    if not stream and name == "huge.example.org":
        records, flags = [], flags | 0x200
    return data[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + asked_bytes + b"".join(
        records)


def spoofs(data):
    """What must be dropped: another id, another question, bytes that are cut, a pointer to itself."""
    evil = question(data)[1] + record(1, socket.inet_aton("203.0.113.66"))
    head = struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
    other = name_bytes("good.example.com") + b"\0\1\0\1" + record(1, b"\xcb\0\x71\x42")
    circle = question(data)[1] + b"\xc0" + bytes([12 + len(question(data)[1])]) + bytes(10)
    return [bytes([data[0] ^ 1, data[1]]) + head + evil, data[:2] + head + other,
            (data[:2] + head + evil)[:-3], data[:2] + head + circle, b"", data]


def serve_stream(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            size = struct.unpack(">H", connection.recv(2, socket.MSG_WAITALL))[0]
            reply = answer(connection.recv(size, socket.MSG_WAITALL), True)
            connection.sendall(struct.pack(">H", len(reply)) + reply)


def main():
    global asked
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((sys.argv[1], 53))
    listener = socket.create_server((sys.argv[1], 53))
    threading.Thread(target=serve_stream, args=(listener,), daemon=True).start()
    print("ready", flush=True)
    while True:
        data, peer = datagrams.recvfrom(2000)
        asked += 1
        assert question(data)[1].endswith(b"\0\1\0\1"), "only IPv4 addresses are asked for"
        name = question(data)[0]
        if name == "spoof.example.org":
            for spoof in spoofs(data):
                datagrams.sendto(spoof, peer)
        if not name.endswith("silent.example.org"):
            datagrams.sendto(answer(data, False), peer)


main()
