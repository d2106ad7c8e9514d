"""Joins over SSH with OpenSSH's own client, through any node of three."""
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import time
import unittest

from cluster import SKERRY, free_port, server, server_spec, wait_until
from ssh_nodes import ONE, SshNodes

PAGE = """def handle(h):
    if h.headers.get("Upgrade") == "websocket":
        import base64, hashlib
        key = h.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        h.send_response(101)
        h.send_header("Upgrade", "websocket"); h.send_header("Connection", "Upgrade")
        h.send_header("Sec-WebSocket-Accept",
                      base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        h.end_headers()
        text = str(os.getpid()).encode()
        h.wfile.write(bytes([0x81, len(text)]) + text); h.wfile.flush()
        h.rfile.read(1)
        h.close_connection = True
    elif h.path == "/slow":
        h.send_response(200); h.end_headers()
        h.wfile.write(str(os.getpid()).encode()); h.wfile.flush()
        h.close_connection = True
        time.sleep(60)
    else:
        h.say(str(os.getpid()))
"""

class Ssh(SshNodes):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        node = cls.nodes[0]
        node.deploy(server_spec("chat", join={"max_joiners": 5}, life={"idle": "30s"},
                                scale=ONE),
                    server(PAGE))
        node.deploy(server_spec("single", join={"max_joiners": 1},
                                scale={"max": 1, "queue": 10, "queue_timeout": "1s"}), server(PAGE))
        node.deploy(server_spec("idle", timeouts={"start": "20s", "stream_idle": "1s"}),
                    server(PAGE))
        node.deploy({"id": "bare", "command": ["sleep", "1000"], "ready": "none"})
        node.cli("ssh-key", "add", "--workload", "chat", cls.file("chat.pub"))

    def instance(self, workload="chat"):
        done = self.ssh(workload, "echo $SKERRY_INSTANCE")
        self.assertEqual(done.returncode, 0, done)
        return done.stdout.decode().strip()

    def test_commands_give_their_output_and_exit_code(self):
        for node in range(3):
            done = self.ssh("chat", "echo out; echo err >&2; exit 7", node=node)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (7, b"out\n", b"err\n"))

    def test_every_node_joins_the_same_instance(self):
        seen = {self.ssh("chat", "echo $SKERRY_INSTANCE", node=n).stdout for n in (0, 1, 2, 0)}
        self.assertEqual(len(seen), 1, seen)

    def test_a_signal_is_told(self):
        done = self.ssh("chat", "kill -TERM $$")
        self.assertEqual(done.returncode, 255, done)  # OpenSSH's for a signal
        self.assertEqual(self.ssh("chat", "nothing-like-this").returncode, 127)

    def test_ten_mebibytes_pass_untouched_both_ways(self):
        data = os.urandom(10 << 20)
        for node in (0, 1):
            up = self.ssh("chat", "sha256sum", node=node, stdin=data)
            self.assertEqual(up.returncode, 0, up)
            self.assertEqual(up.stdout.split()[0].decode(), hashlib.sha256(data).hexdigest())
            both = self.ssh("chat", "cat", node=node, stdin=data)
            self.assertEqual(hashlib.sha256(both.stdout).hexdigest(),
                             hashlib.sha256(data).hexdigest())

    @contextlib.contextmanager
    def terminal(self, *argv, env=None):
        """A program at a terminal of 33 rows and 101 columns."""
        whole = {**(env or os.environ), "TERM": "vt220"}
        pid, fd = pty.fork()
        if pid == 0:
            try:
                os.execvpe(argv[0], argv, whole)
            finally:
                os._exit(127)
        def size(rows, columns):
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.kill(pid, signal.SIGWINCH)
        def expect(pattern):
            got = b""
            def look():
                nonlocal got
                got += os.read(fd, 4096)
                return re.search(pattern, got)
            return wait_until(look, 15, "%r on the terminal" % pattern)
        def code():
            with contextlib.suppress(OSError):  # EIO: it has closed its end
                while os.read(fd, 4096):
                    pass
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        yield lambda text: os.write(fd, text), expect, size, code
        os.close(fd)

    def check_terminal(self, *argv, env=None):
        with self.terminal(*argv, env=env) as (say, expect, size, code):
            say(b"echo ready-$((1+1)); stty size; echo is-$TERM\n")
            expect(rb"ready-2\s+33 101\s+is-vt220")
            size(44, 120)
            say(b"sleep 0.3; stty size; exit 3\n")
            expect(rb"44 120")
            self.assertEqual(code(), 3)

    def test_a_terminal_has_its_size_and_follows_it(self):
        self.check_terminal(*self.argv("chat", node=2, flags=["-tt"]))

    def test_skerry_ssh_is_a_shell_without_a_key(self):
        id = self.instance()
        for node in self.nodes.nodes:
            self.check_terminal(SKERRY, "ssh", id[:-3] if node is self.nodes[0] else id,
                                env=node.environment())
            done = node.cli("ssh", id, stdin="echo $SKERRY_INSTANCE; echo err >&2; exit 7",
                            check=False)
            self.assertEqual((done.returncode, done.stdout.decode().strip(), done.stderr),
                             (7, id, b"err\n"))
            done = node.cli("ssh", "-e", "A=b c", id, stdin="echo $A; kill -TERM $$", check=False)
            self.assertEqual((done.returncode, done.stdout), (128 + 15, b"b c\n"), done)
        node = self.nodes[0]
        with self.terminal(SKERRY, "ssh", id, env=node.environment()) as (say, expect, _, code):
            # What prints is in front of the terminal already, unlike a shell that is about to fork.
            say(b"sh -c 'echo on-$((1+1)); exec sleep 100'\n")
            expect(rb"on-2")
            say(b"\x03")  # is for what runs inside, not for skerry
            say(b"echo still-$((1+1))\n")
            expect(rb"still-2")
            say(b"\x04")
            self.assertEqual(code(), 0)

    def test_skerry_ssh_says_what_is_wrong(self):
        node = self.nodes[0]
        self.assertIn(b"skerry ssh [FLAGS] ID", node.cli("ssh", "--help").stdout)
        for arguments, why in ((["0" * 18], b"instance_unknown"), (["chat"], b"id"), ([], b"ID"),
                               (["a", "b"], b"too many")):
            done = node.cli("ssh", *arguments, check=False)
            self.assertEqual(done.returncode, 125, done)
            self.assertIn(why, done.stderr)
        done = node.cli("ssh", self.instance(), check=False, environment={
            "SKERRY_ADDR": "127.0.0.1:%d" % node.api_port, "SKERRY_TOKEN": ""})
        self.assertEqual(done.returncode, 125, done)
        self.assertIn(b"unauthorized", done.stderr)

    def test_files_go_both_ways_by_sftp_and_scp(self):
        data = os.urandom(1 << 20)
        with open(self.file("up"), "wb") as f:
            f.write(data)
        done = subprocess.run(["sftp", *self.options("all"), "-P", str(self.ports[1]), "-b", "-",
                               "chat@127.0.0.1"], capture_output=True, timeout=60,
                              input=("put %s /tmp/got\nget /tmp/got %s\n"
                                     % (self.file("up"), self.file("down"))).encode())
        self.assertEqual(done.returncode, 0, done)
        with open(self.file("down"), "rb") as f:
            self.assertEqual(f.read(), data)
        done = subprocess.run(["scp", *self.options("all"), "-P", str(self.ports[2]),
                               self.file("up"), "chat@127.0.0.1:/tmp/copied"],
                              capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 0, done)

    def test_wrong_keys_and_passwords_are_refused(self):
        self.assertEqual(self.ssh("chat", "true", key="other").returncode, 255)
        self.assertEqual(self.ssh("chat", "true", key="chat").returncode, 0)
        self.assertEqual(self.ssh("single", "true", key="chat").returncode, 255)
        done = self.ssh("chat", "true", key="other",
                        flags=["-o", "PreferredAuthentications=password"])
        self.assertEqual(done.returncode, 255)
        self.assertIn(b"publickey", done.stderr)

    def test_an_instance_is_forced_by_its_id_through_another_node(self):
        id = self.instance()
        for node in range(3):
            done = self.ssh(id, "echo $SKERRY_INSTANCE", node=node, key="chat")
            self.assertEqual(done.stdout.decode().strip(), id, done)
        done = self.ssh("0" * 18, "true")
        self.assertNotEqual(done.returncode, 0)

    def test_a_key_of_the_workload_names_one_instance(self):
        self.nodes[0].deploy(server_spec("rooms", join={"key": "header:X-Room"}), server(PAGE))
        seen = {self.ssh("rooms+blue", "echo $SKERRY_KEY $SKERRY_INSTANCE", node=n).stdout
                for n in range(3)}
        self.assertEqual(len(seen), 1, seen)
        self.assertTrue(seen.pop().startswith(b"blue "))
        done = self.ssh("rooms", "true")
        self.assertEqual(done.returncode, 125, done)
        self.assertIn(b"key_missing", done.stderr)

    def test_a_session_is_a_joiner(self):
        with subprocess.Popen(self.argv("single", "echo in; cat", node=1), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as held:
            self.assertEqual(held.stdout.readline(), b"in\n")
            self.assertEqual([i["joiners"] for i in self.listed("single").values()], [1])
            done = self.ssh("single", "true", node=2)
            self.assertEqual(done.returncode, 125, done)
            held.stdin.close()
            self.assertEqual(held.wait(20), 0)
        wait_until(lambda: [i["joiners"] for i in self.listed("single").values()] == [0], 10,
                   "its place is free again")
        self.assertEqual(self.ssh("single", "true", node=2).returncode, 0)

    def test_a_workload_without_a_port_is_joined_and_stop_ends_the_session(self):
        with subprocess.Popen(self.argv("bare", "echo $SKERRY_INSTANCE; sleep 100", node=2),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as held:
            id = held.stdout.readline().decode().strip()
            self.assertEqual(self.listed("bare")[id]["joiners"], 1)
            self.nodes[0].cli("stop", id)
            self.assertNotEqual(held.wait(20), 0)

    def test_a_session_that_is_idle_is_ended(self):
        began = time.monotonic()
        done = self.ssh("idle", flags=["-N"], timeout=60)
        self.assertEqual(done.returncode, 255)
        self.assertGreater(time.monotonic() - began, 0.9)

    def test_remote_forwarding_is_refused(self):
        port = free_port()
        for where in ("%d:127.0.0.1:1" % port, str(port)):  # the second: a proxy at the far end
            done = self.ssh("chat", "true", flags=["-o", "ExitOnForwardFailure=yes", "-R", where])
            self.assertEqual(done.returncode, 255)
            self.assertIn(b"forwarding failed", done.stderr)
        done = self.ssh("chat", "echo on", flags=["-R", "%d:127.0.0.1:1" % port])
        self.assertEqual((done.returncode, done.stdout), (0, b"on\n"), done)

    def test_tunnels_are_refused(self):
        done = self.ssh("chat", flags=["-N", "-o", "LogLevel=INFO", "-o", "Tunnel=yes", "-o",
                                       "ExitOnForwardFailure=yes"], timeout=20)
        self.assertEqual(done.returncode, 255, done)

    def test_forwarding_of_the_agent_is_refused(self):
        agent = subprocess.run(["ssh-agent", "-s", "-a", self.file("agent")], check=True,
                               capture_output=True).stdout.decode()
        pid = int(re.search(r"SSH_AGENT_PID=(\d+)", agent).group(1))
        try:
            env = dict(os.environ, SSH_AUTH_SOCK=self.file("agent"))
            subprocess.run(["ssh-add", "-q", self.file("other")], check=True, env=env)
            argv = self.argv("chat", "env", flags=["-A", "-v"])
            argv[argv.index("IdentityAgent=none")] = "IdentityAgent=" + self.file("agent")
            done = subprocess.run(argv, capture_output=True, env=env, timeout=60, input=b"")
            self.assertEqual(done.returncode, 0, done)
            self.assertIn(b"Requesting authentication agent forwarding", done.stderr)
            self.assertIn(b"SKERRY_INSTANCE=", done.stdout)
            self.assertNotIn(b"SSH_AUTH_SOCK", done.stdout)
        finally:
            os.kill(pid, signal.SIGTERM)

    def test_forwarding_of_x11_is_refused(self):
        for flag in ("-X", "-Y"):
            done = subprocess.run(self.argv("chat", "env", flags=[flag, "-v"]), timeout=60,
                                  capture_output=True, input=b"", env=dict(
                                      os.environ, DISPLAY="127.0.0.1:77",
                                      XAUTHORITY=self.file("xauthority")))
            self.assertEqual(done.returncode, 0, done)
            self.assertIn(b"Requesting X11 forwarding", done.stderr)
            self.assertIn(b"X11 forwarding request failed", done.stderr)
            self.assertNotIn(b"DISPLAY", done.stdout)

    def test_only_the_locale_passes_of_the_clients_variables_and_not_much_of_it(self):
        def variables(**given):
            done = self.ssh("chat", "env -0", flags=["-o", "SetEnv=" + " ".join(
                "%s=%s" % pair for pair in given.items())])
            self.assertEqual(done.returncode, 0, done)
            return dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
        got = variables(LANG="C.UTF-8", LC_ALL="C", LD_PRELOAD="/tmp/x", BASH_ENV="/tmp/x",
                        PATH="/tmp", SKERRY_INSTANCE="x", LC_x="1", LC_LONG="v" * 300)
        self.assertEqual((got["LANG"], got["LC_ALL"]), ("C.UTF-8", "C"))
        for name in ("LD_PRELOAD", "BASH_ENV", "LC_x", "LC_LONG"):
            self.assertNotIn(name, got)
        self.assertNotEqual(got["PATH"], "/tmp")
        self.assertNotEqual(got["SKERRY_INSTANCE"], "x")
        got = variables(**{"LC_V%d" % i: "1" for i in range(40)})
        self.assertEqual(len([name for name in got if name.startswith("LC_V")]), 16)

    def test_what_cannot_run_says_why(self):
        def refused(user, command, why, **how):
            done = self.ssh(user, command, **how)
            self.assertEqual(done.returncode, 125, done)
            self.assertIn(b"skerry: ", done.stderr)
            self.assertIn(why, done.stderr)
        refused("nothing-like-this", "true", b"404 workload_unknown")
        refused("chat", "echo " + "x" * 32768, b"32768 bytes")
        refused("chat", b"echo \xff", b"no UTF-8 text")
        self.nodes[0].deploy({"id": "once", "kind": "command", "command": ["true"]})
        wait_until(lambda: b"conflict" in self.ssh("once", "true").stderr, 5, "it is known")
        refused("once", "true", b"kind command", node=2)
        # About as much as is taken.
        done = self.ssh("chat", ": " + "x" * 32000 + "; exit 9")
        self.assertEqual(done.returncode, 9, done)
        done = self.ssh("chat", "x", flags=["-s"])  # a subsystem that there is not
        self.assertEqual(done.returncode, 255)
        self.assertIn(b"subsystem request failed", done.stderr)

    def test_the_end_of_an_instance_says_why(self):
        with subprocess.Popen(self.argv("bare", "echo $SKERRY_INSTANCE; sleep 100"),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as held:
            id = held.stdout.readline().decode().strip()
            self.nodes[0].cli("stop", id)
            self.assertEqual(held.wait(20), 255)
            self.assertIn(b"the instance ended: killed", held.stderr.read())
        refused = self.ssh(id, "true")
        self.assertEqual(refused.returncode, 125, refused)
        self.assertIn(b"410 instance_gone", refused.stderr)

    def test_removed_key_ends_its_session(self):
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", self.file("gone")],
                       check=True)
        added = self.nodes[0].cli("ssh-key", "add", "--json", "--workload", "chat",
                                  self.file("gone.pub")).stdout
        id = json.loads(added)["id"]
        with subprocess.Popen(self.argv("chat", "echo in; cat", key="gone", node=1),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as held:
            self.assertEqual(held.stdout.readline(), b"in\n")
            self.assertIn(id.encode(), self.nodes[1].cli("ssh-key", "list").stdout)
            self.nodes[2].cli("ssh-key", "rm", id)
            self.assertEqual(held.wait(20), 255)

    def test_strangers_are_bounded_cut_and_counted(self):
        node = self.nodes[2]
        sockets = [socket.create_connection(("127.0.0.1", self.ports[2])) for _ in range(40)]
        try:
            def closed():
                count = 0
                for s in sockets:
                    s.settimeout(0.01)
                    try:
                        count += s.recv(1, socket.MSG_PEEK) == b""
                    except ConnectionError:
                        count += 1
                    except OSError:
                        pass
                return count
            wait_until(lambda: closed() >= 32, 5, "all but eight were refused")
            wait_until(lambda: self.metric(node, "skerry_ssh_sessions") == 0, 30,
                       "those that never sign in are cut")
            self.assertGreaterEqual(self.metric(node, "skerry_ssh_late_total"), 8)
            self.assertGreaterEqual(self.metric(node, "skerry_ssh_refused_total"), 32)
        finally:
            for s in sockets:
                s.close()
        self.assertEqual(self.ssh("chat", "true", node=2).returncode, 0)

    def metric(self, node, name):
        text = node.api("GET", "/metrics").body.decode()
        return float(re.search(r"^%s (\S+)$" % name, text, re.M).group(1))

    def test_curl_a_websocket_and_ssh_are_in_one_instance(self):
        self.nodes[0].deploy(server_spec("mixed", join={"max_joiners": 3}, scale=ONE), server(PAGE))
        slow = subprocess.Popen(["curl", "-sN", "http://127.0.0.1:%d/w/mixed/slow"
                                 % self.nodes[0].http_port], stdout=subprocess.PIPE)
        pid = b""
        while not pid or len(pid) < 1:
            pid = os.read(slow.stdout.fileno(), 20)
        web = socket.create_connection(("127.0.0.1", self.nodes[1].http_port))
        web.sendall(b"GET /w/mixed/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n")
        got = b""
        while b"\r\n\r\n" not in got or len(got.split(b"\r\n\r\n", 1)[1]) < 3:
            got += web.recv(4096)
        frame = got.split(b"\r\n\r\n", 1)[1]
        self.assertEqual(frame[2:], pid)
        held = subprocess.Popen(self.argv("mixed", "pgrep -f main.py | head -1; cat", node=2),
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.assertEqual(held.stdout.readline().strip(), pid)
            self.assertEqual([i["joiners"] for i in self.listed("mixed").values()], [3])
        finally:
            slow.kill()
            slow.wait()
            web.close()
            held.stdin.close()
            held.stdout.close()
            held.wait(20)


if __name__ == "__main__":
    unittest.main()
