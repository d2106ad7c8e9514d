"""skerry run: one command in a fresh sandbox, as docker run would be."""
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
import unittest

from cluster import SKERRY, Node, wait_until


class Run(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def run_(self, *arguments, **more):
        return self.node.cli("run", *arguments, check=False, **more)

    def test_stdin_and_stdout_pass_through(self):
        done = self.run_("--", "cat", stdin=b"hi\n")
        self.assertEqual((done.returncode, done.stdout), (0, b"hi\n"), done.stderr)

    def test_binary_and_large_pass_through(self):
        data = os.urandom(1 << 20) * 8
        done = self.run_("--", "cat", stdin=data)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, data)

    def test_exit_code_is_the_commands(self):
        self.assertEqual(self.run_("--", "sh", "-c", "exit 7").returncode, 7)

    def test_signal_is_128_and_it(self):
        self.assertEqual(self.run_("--", "sh", "-c", "kill -SEGV $$").returncode,
                         128 + signal.SIGSEGV)

    def test_stderr_is_kept_apart(self):
        done = self.run_("--", "sh", "-c", "echo out; echo err >&2")
        self.assertEqual((done.stdout, done.stderr), (b"out\n", b"err\n"))

    def registry_index(self):
        text = self.node.api("GET", "/metrics").body.decode()
        return int(float(re.search(r"^skerry_registry_applied_index (\S+)$", text, re.M).group(1)))

    def test_a_short_command_costs_the_registry_two_writes(self):
        costs = []
        while not costs or (min(costs) > 25 and len(costs) < 5):  # a busy machine may be slow
            before = self.registry_index()
            for _ in range(10):
                self.assertEqual(self.run_("--", "true").returncode, 0)
            wait_until(lambda: self.node.ps() == [], 10, "all have ended")
            costs.append(self.registry_index() - before)
        self.assertIn(min(costs), range(19, 26), costs)

    def test_without_a_runner_nothing_is_reserved(self):
        self.node.kill_runner()
        try:
            wait_until(lambda: b"not reachable" in self.run_("--", "true").stderr, 10, "it is missed")
            costs = []
            while not costs or (min(costs) > 0 and len(costs) < 5):  # the node's own writes are few
                before = self.registry_index()
                for _ in range(5):
                    self.assertNotEqual(self.run_("--", "true").returncode, 0)
                costs.append(self.registry_index() - before)
            self.assertEqual(min(costs), 0, costs)
        finally:
            self.node.start_runner()
        wait_until(lambda: self.run_("--", "true").returncode == 0, 10, "it is back")

    def test_a_longer_command_is_ready_to_all(self):
        running = subprocess.Popen([SKERRY, "run", "--", "sleep", "60"], stdin=subprocess.DEVNULL,
                                   env=self.node.environment())
        try:
            wait_until(lambda: [i["state"] for i in self.node.ps()] == ["ready"], 10, "it is ready")
        finally:
            running.terminate()
            running.wait()

    def test_unknown_command_is_127(self):
        done = self.run_("--", "no-such-command")
        self.assertEqual(done.returncode, 127)
        self.assertIn(b"no-such-command", done.stderr)

    def test_not_executable_is_126(self):
        self.assertEqual(self.run_("--", "/etc/passwd").returncode, 126)

    def test_timeout_is_124(self):
        took = []
        while not took or (min(took) >= 2.0 and len(took) < 3):  # a busy machine may be late once
            begun = time.monotonic()
            done = self.run_("--timeout", "1s", "--", "sleep", "9")
            took.append(time.monotonic() - begun)
            self.assertEqual(done.returncode, 124, done.stderr)
        self.assertLess(min(took), 2.0, took)

    def test_python_reads_its_program_from_stdin(self):
        done = self.run_("--", "python3", "-", stdin=b"print(6*7)\n")
        self.assertEqual((done.returncode, done.stdout), (0, b"42\n"), done.stderr)

    def test_environment_and_limits(self):
        done = self.run_("-e", "GREETING=hello there", "--", "sh", "-c", "echo $GREETING")
        self.assertEqual(done.stdout, b"hello there\n")
        done = self.run_("--memory", "64M", "--", "python3", "-c", "x = b'x' * (400 << 20)")
        self.assertEqual(done.returncode, 128 + signal.SIGKILL)
        self.assertIn(b"memory", done.stderr.lower())

    def test_source_is_at_app_and_read_only(self):
        folder = os.path.join(self.node.directory, "src")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "x.txt"), "w") as f:
            f.write("from the source\n")
        done = self.run_("--source", folder, "--", "sh", "-c",
                         "cat x.txt; pwd; echo no > x.txt || echo read-only")
        self.assertEqual(done.stdout, b"from the source\n/app\nread-only\n", done.stderr)

    def test_a_client_that_leaves_takes_its_sandbox_along(self):
        node = self.node
        process = subprocess.Popen([SKERRY, "run", "--", "sleep", "4242"],
                                   stdin=subprocess.DEVNULL, env=node.environment())

        def alive():
            out = subprocess.run(["pgrep", "-fx", "sleep 4242"], capture_output=True).stdout
            return out.split()
        wait_until(alive, 10, "the sleeper runs")
        process.kill()
        process.wait()
        wait_until(lambda: not alive(), 10, "the sleeper is gone")

    def test_http_run_gives_a_json_result(self):
        token = json.loads(self.node.cli("token", "create", "--role", "deploy",
                                         "--json").stdout)["token"]
        answer = self.node.request(
            "POST", "/v1/run?command=sh&command=-c&command=cat%3B+echo+e+%3E%262%3B+exit+3",
            body=b"input", port=self.node.api_port,
            headers={"Accept": "application/json", "Skerry-Token": token})
        self.assertEqual(answer.status, 200, answer)
        result = answer.json()
        self.assertEqual((result["exit_code"], result["stdout"], result["stderr"]),
                         (3, "input", "e\n"))
        self.assertFalse(result["timed_out"] or result["oom"] or result["truncated"])
        self.assertGreater(result["memory_peak_bytes"], 0)

    def test_run_in_parallel(self):
        results = []

        def one(k):
            results.append(self.run_("--", "sh", "-c", "echo %d" % k).stdout == b"%d\n" % k)
        threads = [threading.Thread(target=one, args=(k,)) for k in range(20)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(results, [True] * 20)

    def test_terminal(self):
        """Through a real terminal: size, controlling terminal, exit code."""
        pid, master = pty.fork()
        if pid == 0:
            os.execve(SKERRY, [SKERRY, "run", "-it", "--", "sh", "-c",
                               "tty; stty size; read x; echo got $x; exit 5"],
                      self.node.environment())
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        out = b""
        sent = False
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            if not piece:
                break
            out += piece
            if not sent and b"99" in out:
                os.write(master, b"typed\n")
                sent = True
        _, status = os.waitpid(pid, 0)
        os.close(master)
        self.assertIn(b"/dev/pts/", out)
        self.assertIn(b"33 99", out)
        self.assertIn(b"got typed", out)
        self.assertEqual(os.waitstatus_to_exitcode(status), 5)


if __name__ == "__main__":
    unittest.main()
