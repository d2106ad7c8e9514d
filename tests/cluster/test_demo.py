"""The demo, and `skerry up` in the foreground."""
import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

from cluster import BUILD, SKERRY, free_port, wait_until

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class Demo(unittest.TestCase):
    def test_it_shows_what_it_promises_and_leaves_nothing(self):
        before = set(glob.glob(os.path.join(tempfile.gettempdir(), "skerry-demo.*")))
        environment = dict(os.environ, B=BUILD)
        done = subprocess.run([os.path.join(ROOT, "deploy", "demo", "run")], env=environment,
                              capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr)
        said = done.stdout
        for text in ("Skerry-Start: cold", "Skerry-Start: join", "the registry wrote it down",
                     "60 of 60 answered", "instance_gone", "node_lost", "service again",
                     "HEALTHY  3 of 3 voters (can lose 1)", "No space left on device",
                     "used up its memory"):
            self.assertIn(text, said)
        self.assertNotRegex(said, r"  DONE\b")  # nothing that it tried from inside
        for most in re.findall(r"never more than (\d+) at once", said):
            self.assertLessEqual(int(most), 4)
        instance = re.search(r"Skerry-Instance: (\w+)", said).group(1)
        self.assertIn("Hello from %s, request 6 here." % instance, said)  # after kill -9
        after = set(glob.glob(os.path.join(tempfile.gettempdir(), "skerry-demo.*")))
        self.assertEqual(after - before, set())


class Foreground(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="skerry-up-")  # 0700: it is opened for serve
        self.process = None

    def tearDown(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        subprocess.run([SKERRY, "down", "--dir", self.folder, "--delete"], capture_output=True)
        shutil.rmtree(self.folder)

    def start(self):
        self.said = os.path.join(self.folder, "said")
        with open(self.said, "wb") as out:
            self.process = subprocess.Popen(
                [SKERRY, "up", "--dir", self.folder, "--http", "127.0.0.1:%d" % free_port(),
                 "--api", "127.0.0.1:%d" % free_port()], stdout=out, stderr=out)
        wait_until(lambda: "Ctrl-C" in self.text() or self.process.poll() is not None, 20,
                   "it is up")
        self.assertIsNone(self.process.poll(), self.text())

    def text(self):
        with open(self.said) as f:
            return f.read()

    def pid(self, name):
        with open(os.path.join(self.folder, "node1", name + ".pid")) as f:
            return int(f.read())

    def gone(self, pid):
        return lambda: not os.path.exists("/proc/%d/exe" % pid)

    def test_interrupt_brings_it_down(self):
        self.start()
        pids = [self.pid("serve"), self.pid("runner")]
        self.process.send_signal(signal.SIGINT)
        self.assertEqual(self.process.wait(40), 0, self.text())
        for pid in pids:
            wait_until(self.gone(pid), 5, "process %d is gone" % pid)

    def test_a_daemon_that_dies_takes_the_rest_along(self):
        self.start()
        serve = self.pid("serve")
        os.kill(self.pid("runner"), signal.SIGKILL)
        self.assertEqual(self.process.wait(40), 1, self.text())
        self.assertIn("runner has ended", self.text())
        wait_until(self.gone(serve), 5, "serve is gone")

    def test_a_taken_port_is_told(self):
        self.start()
        http = re.search(r"http://(127\.0\.0\.1:\d+)/w/", self.text()).group(1)
        other = tempfile.mkdtemp(prefix="skerry-up-")
        try:
            done = subprocess.run([SKERRY, "up", "--detach", "--dir", other, "--address",
                                   "127.0.0.31", "--http", http], capture_output=True, text=True,
                                  timeout=60)
            self.assertEqual(done.returncode, 1)
            self.assertIn(http, done.stderr)
            self.assertFalse(os.path.exists(os.path.join(other, "node1", "serve.pid")))
        finally:
            subprocess.run([SKERRY, "down", "--dir", other, "--delete"], capture_output=True)
            os.rmdir(other)


if __name__ == "__main__":
    unittest.main()
