"""skerry up and down, as a newcomer types them."""
import glob
import json
import os
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from cluster import SKERRY, wait_until

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy",
                       "examples", "hello.yaml")


class Up(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="skerry-up-", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SKERRY_")}
        self.environment["SKERRY_ADDR"] = "unix:" + self.socket()

    def tearDown(self):
        self.skerry("down", "--dir", self.directory, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def socket(self):
        return os.path.join(self.directory, "node1", "run", "api.sock")

    def skerry(self, *arguments, check=True):
        done = subprocess.run([SKERRY, *arguments], capture_output=True, timeout=60,
                              stdin=subprocess.DEVNULL, env=self.environment)
        if check and done.returncode != 0:
            raise AssertionError((arguments, done.returncode, done.stdout, done.stderr))
        return done

    def get(self, url, host=None):
        request = urllib.request.Request(url, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def groups(self):
        """Control groups of node1's runner."""
        with open(os.path.join(self.directory, "node1", "runner.yaml")) as f:
            name = next(line.split()[1] for line in f if line.startswith("cgroup:"))
        return [folder for tree in os.listdir("/sys/fs/cgroup")
                for folder in glob.glob("/sys/fs/cgroup/%s/**/%s-*" % (tree, name), recursive=True)]

    def test_first_minutes(self):
        said = self.skerry("up", "--detach", "--dir", self.directory).stdout.decode()
        self.assertIn("SKERRY_ADDR", said)
        self.assertIn("127.0.0.1:8080", said)
        self.skerry("deploy", EXAMPLE)
        status, headers, _ = self.get("http://127.0.0.1:8080/w/hello/")
        self.assertEqual((status, headers["Skerry-Start"]), (200, "cold"))
        i = headers["Skerry-Instance"]
        status, headers, _ = self.get("http://127.0.0.1:8080/w/hello/")
        self.assertEqual((status, headers["Skerry-Start"], headers["Skerry-Instance"]),
                         (200, "join", i))
        status, headers, _ = self.get("http://127.0.0.1:8080/", "hello.localhost:8080")
        self.assertEqual((status, headers["Skerry-Instance"]), (200, i))
        self.assertEqual(self.get("http://127.0.0.1:8080/i/%s/" % i)[0], 200)
        self.skerry("stop", i)
        status, _, body = self.get("http://127.0.0.1:8080/i/%s/" % i)
        self.assertEqual(status, 410)
        self.assertIn("killed", json.loads(body)["detail"])
        self.assertIn(b"HEALTHY", self.skerry("status").stdout)

    def test_up_again_starts_what_is_missing_and_down_leaves_nothing(self):
        self.skerry("up", "--detach", "--dir", self.directory)
        self.skerry("deploy", EXAMPLE)
        i = self.get("http://127.0.0.1:8080/w/hello/")[1]["Skerry-Instance"]
        pids = subprocess.run(["pgrep", "-f", "serve --config " + self.directory],
                              capture_output=True).stdout.split()
        self.assertEqual(len(pids), 1)
        os.kill(int(pids[0]), 9)
        wait_until(lambda: not os.path.exists("/proc/%d" % int(pids[0])), 5, "serve is gone")
        self.skerry("up", "--detach", "--dir", self.directory)
        self.assertEqual(self.get("http://127.0.0.1:8080/i/%s/" % i)[0], 200)
        self.assertNotEqual(self.groups(), [])
        # A runner that was killed has left its groups and what is in them.
        with open(os.path.join(self.directory, "node1", "runner.pid")) as f:
            runner = int(f.read().split()[0])
        os.kill(runner, 9)
        wait_until(lambda: not os.path.exists("/proc/%d" % runner), 5, "the runner is gone")
        begun = time.monotonic()
        self.skerry("down", "--dir", self.directory)
        self.assertLess(time.monotonic() - begun, 30)
        left = subprocess.run(["pgrep", "-af", self.directory], capture_output=True).stdout
        self.assertEqual(left, b"")
        self.assertNotIn(self.directory, open("/proc/self/mounts").read())
        self.assertEqual(self.groups(), [])

    def test_where_run_is_in_memory_instances_are_kept_there(self):
        """In a mount namespace of its own, where /run is a tmpfs, whatever this machine has."""
        script = """set -e
mount -t tmpfs -o mode=755 tmpfs /run
"$1" up --detach --dir "$2" --address 127.0.0.9 >/dev/null
"$1" deploy "$3" >/dev/null
curl -sf http://127.0.0.9:8080/w/hello/ >/dev/null
id=$("$1" ps -q)
test -S /run/skerry-up/*/$id/agent.sock
kill -9 $(cat "$2/node1/runner.pid")
"$1" up --detach --dir "$2" --address 127.0.0.9 >/dev/null
curl -sf http://127.0.0.9:8080/i/$id/
"$1" down --dir "$2" --delete >/dev/null
ls /run/skerry-up
"""
        done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", SKERRY,
                               self.directory, EXAMPLE], capture_output=True, timeout=90, text=True,
                              env=self.environment)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        self.assertRegex(done.stdout, r"^Hello from \w+, request 2 here.\n$")

    def ids(self, directory):
        with open(os.path.join(directory, "node1", "runner.yaml")) as f:
            return int(next(line.split()[1] for line in f if line.startswith("uid_base:")))

    def test_a_dead_runner_keeps_its_ids(self):
        """Its instances live on for a while, so no other folder may get them, though they look free."""
        self.skerry("up", "--detach", "--dir", self.directory)
        for program in ("serve", "runner"):
            with open(os.path.join(self.directory, "node1", program + ".pid")) as f:
                pid = int(f.read().split()[0])
            os.kill(pid, 9)
            wait_until(lambda p=pid: not os.path.exists("/proc/%d" % p), 5, "the end of " + program)

        def first_choice(directory):
            h = 14695981039346656037
            for byte in directory.encode():
                h = (h ^ byte) * 1099511628211 % (1 << 64)
            return (h + 1) % 14
        same = next(name for name in ("%s-%d" % (self.directory, k) for k in range(1000))
                    if first_choice(name) == first_choice(self.directory))
        self.addCleanup(shutil.rmtree, same, ignore_errors=True)
        self.skerry("up", "--detach", "--dir", same, "--address", "127.0.0.9")
        try:
            self.assertNotEqual(self.ids(same), self.ids(self.directory))
            self.skerry("up", "--detach", "--dir", self.directory)  # and it gets them back
        finally:
            self.skerry("down", "--dir", same, "--delete")
        self.assertNotIn(same + "/node1", [os.readlink(p) for p in glob.glob("/run/skerry-up/*")])
        self.assertIn(self.directory + "/node1", [os.readlink(p) for p in glob.glob("/run/skerry-up/*")])


if __name__ == "__main__":
    unittest.main()
