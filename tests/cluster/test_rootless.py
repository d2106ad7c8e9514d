"""Skerry for an ordinary user, who has no privilege at all.

Once with the user's one id, and once with subordinate ids, which newuidmap gives. The user exists
in the processes of this test alone: nothing is written into the machine's tables.
"""
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import unittest
import urllib.error
import urllib.request

from cluster import BUILD, SKERRY, sanitized, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = os.path.join(HERE, "..", "..", "deploy", "examples")
UID = 1878000000 + os.getpid() % 100000  # nobody's
GROUP = 1878300000 + os.getpid() % 100000  # a further one of the user
SUBORDINATE = 1700000000 + os.getpid() % 1000 * 65536  # and 65,536 of these
NAME = "skerry-rootless"
GATEWAY = "http://127.0.0.1:8080"


class User:
    """An ordinary user with a home, a copy of skerry in it, and with subordinate ids or without."""

    def __init__(self, subordinate):
        self.subordinate = subordinate
        self.home = tempfile.mkdtemp(prefix="skr-", dir="/tmp")
        self.skerry = os.path.join(self.home, "skerry")
        shutil.copy(SKERRY, self.skerry)
        os.chmod(self.skerry, 0o755)
        shutil.copytree(os.path.join(EXAMPLES, "hello"), os.path.join(self.home, "hello"))
        shutil.copy(os.path.join(EXAMPLES, "hello.yaml"), self.home)
        self.write("secret", "of the user")
        for path, _, files in os.walk(self.home):
            for name in [path, *(os.path.join(path, f) for f in files)]:
                os.chown(name, UID, UID)
        os.chmod(self.home, 0o700)
        self.environment = {"HOME": self.home, "PATH": "/usr/bin:/bin", "USER": NAME}
        self.tables = tempfile.mkdtemp(prefix="skr-tables-", dir="/tmp")
        os.chmod(self.tables, 0o755)
        shutil.copy("/etc/passwd", self.tables)
        with open(os.path.join(self.tables, "passwd"), "a", encoding="utf-8") as f:
            f.write("%s:x:%d:%d::%s:/bin/sh\n" % (NAME, UID, UID, self.home))
        for table in ("subuid", "subgid"):
            with open(os.path.join(self.tables, table), "w", encoding="utf-8") as f:
                f.write("%s:%d:65536\n" % (NAME, SUBORDINATE) if subordinate else "")

    def write(self, name, text, mode=0o600):
        path = os.path.join(self.home, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(path, mode)
        os.chown(path, UID, UID)
        return path

    def words(self, *arguments):
        """As this user, in a mount namespace where the machine's tables know it."""
        binds = [(os.path.join(self.tables, name), "/etc/" + name)
                 for name in ("passwd", "subuid", "subgid") if os.path.exists("/etc/" + name)]
        script = "; ".join("mount --bind %s %s" % pair for pair in binds)
        script += '; cd %s; exec "$@"' % shlex.quote(self.home)
        return ["unshare", "-m", "sh", "-ec", script, "sh", "setpriv", "--reuid", str(UID),
                "--regid", str(UID), "--groups", str(GROUP), "--inh-caps=-all", "--", *arguments]

    def run(self, *arguments, stdin=b"", check=False, timeout=120, environment=None):
        done = subprocess.run(self.words(*arguments), input=stdin, capture_output=True,
                              timeout=timeout, env=dict(self.environment, **(environment or {})),
                              check=False)
        if check and done.returncode != 0:
            raise AssertionError((arguments, done.returncode, done.stdout, done.stderr))
        return done

    def cli(self, *arguments, check=True, **more):
        return self.run(self.skerry, *arguments, check=check, **more)

    def start(self, *arguments):
        return subprocess.Popen(self.words(self.skerry, *arguments), env=self.environment,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def processes(self):
        """All that run under an id of this user, with their command lines."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                with open("/proc/%s/status" % pid, encoding="utf-8") as f:
                    status = dict(line.split(":", 1) for line in f if ":" in line)
                uid = int(status["Uid"].split()[0])
                if uid == UID or 0 <= uid - SUBORDINATE < 65536:
                    with open("/proc/%s/cmdline" % pid, encoding="utf-8") as f:
                        found[int(pid)] = f.read().replace("\0", " ") or status["Name"].strip()
        return found

    def file(self, *names):
        return os.path.join(self.home, ".local", "state", "skerry", *names)

    def pid(self, daemon):
        with open(self.file("node1", daemon + ".pid"), encoding="utf-8") as f:
            return int(f.read())

    def close(self):
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self.cli("down", "--timeout", "1s", check=False, timeout=60)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.tables, ignore_errors=True)


def get(path, headers=None):
    request = urllib.request.Request(GATEWAY + path, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def may_make_namespaces():
    done = subprocess.run(["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups",
                           "unshare", "-Ur", "true"], capture_output=True, check=False)
    return done.returncode == 0


class Whole:
    """What holds with one id and with many."""
    subordinate = False
    said = "share the user id"

    @classmethod
    def setUpClass(cls):
        if sanitized("tsan"):
            raise unittest.SkipTest("the thread sanitizer has a thread of its own, and a process with two enters "
                                    "no user namespace")
        if not may_make_namespaces():
            raise unittest.SkipTest("this machine forbids user namespaces to ordinary users")
        if cls.subordinate and not shutil.which("newuidmap"):
            raise unittest.SkipTest("newuidmap is not installed (package uidmap)")

    def setUp(self):
        self.user = User(self.subordinate)
        self.addCleanup(self.user.close)

    def run_(self, *arguments, **more):
        return self.user.cli("run", *arguments, check=False, **more)

    def up(self, *arguments):
        return self.user.cli("up", "--detach", *arguments).stdout.decode()

    def logs(self):
        text = ""
        for daemon in ("runner", "serve"):
            with contextlib.suppress(OSError):
                with open(self.user.file("node1", daemon + ".log"), encoding="utf-8") as f:
                    text += f.read()
        return text

    def test_the_whole_way(self):
        said = self.up()
        self.assertEqual(said.count("runs without root"), 1, said)
        self.assertIn(self.said, said)
        self.assertIn("limits not enforced: cpu, memory, pids", said)
        self.user.cli("deploy", "hello.yaml")
        status, headers, _ = get("/w/hello/")
        self.assertEqual((status, headers["Skerry-Start"]), (200, "cold"))
        i = headers["Skerry-Instance"]
        status, headers, _ = get("/w/hello/")
        self.assertEqual((status, headers["Skerry-Start"], headers["Skerry-Instance"]),
                         (200, "join", i))
        status, headers, _ = get("/w/hello/", {"Skerry-Instance": i})
        self.assertEqual((status, headers["Skerry-Instance"]), (200, i))
        done = self.run_("--", "cat", stdin=b"through\n")
        self.assertEqual((done.returncode, done.stdout), (0, b"through\n"), done.stderr)
        self.assertEqual(self.run_("--", "sh", "-c", "exit 7").returncode, 7)
        self.assertEqual(self.run_("--timeout", "1s", "--", "sleep", "9").returncode, 124)
        done = self.user.cli("exec", i, "--", "sh", "-c", "id -u; cat main.py | head -1; echo $0")
        self.assertIn(b"Says hello", done.stdout)
        status = json.loads(self.user.cli("status", "--json").stdout)
        self.assertTrue(status["healthy"])
        self.assertEqual(sum("runs without root" in w for w in status["warnings"]), 1)
        self.user.cli("stop", i)
        status, _, body = get("/i/%s/" % i)
        self.assertEqual((status, json.loads(body)["code"]), (410, "instance_gone"))
        self.assertEqual(get("/w/hello/")[0], 200)
        self.user.cli("down")
        wait_until(lambda: not self.user.processes(), 5, "nothing runs: %s" % self.user.processes())
        self.assertFalse(os.path.lexists(self.user.file("api.sock")))
        self.assertEqual(os.listdir(self.user.file("node1", "run")), [])
        self.assertEqual(os.listdir(self.user.file("node1", "runner", "instances")), [])
        self.assertNotIn(self.user.home, open("/proc/self/mounts", encoding="utf-8").read())
        self.user.cli("down", "--delete")
        self.assertEqual(os.listdir(self.user.file()), [])

    def test_the_socket_is_found_in_the_runtime_folder_too(self):
        run = os.path.join(self.user.home, "run")
        os.mkdir(run, 0o700)
        os.chown(run, UID, UID)
        self.user.environment["XDG_RUNTIME_DIR"] = run
        self.up()
        self.assertTrue(os.path.islink(os.path.join(run, "skerry", "api.sock")))
        self.assertIn(b"HEALTHY", self.user.cli("status").stdout)
        self.user.cli("down")
        self.assertEqual(os.listdir(run), [])

    def test_instances_outlive_both_daemons(self):
        self.up()
        self.user.cli("deploy", "hello.yaml")
        i = get("/w/hello/")[1]["Skerry-Instance"]
        for daemon in ("serve", "runner"):
            pid = self.user.pid(daemon)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not os.path.exists("/proc/%d" % pid), 5, daemon + " is gone")
        self.up()
        status, headers, _ = get("/w/hello/")
        self.assertEqual((status, headers["Skerry-Start"], headers["Skerry-Instance"]),
                         (200, "join", i), self.logs())
        self.assertIn(b"Says hello", self.user.cli("exec", i, "--", "cat", "main.py").stdout)
        os.kill(self.user.pid("runner"), signal.SIGKILL)
        self.user.cli("down")
        wait_until(lambda: not self.user.processes(), 5, "nothing runs: %s" % self.user.processes())

    def test_three_nodes(self):
        said = self.up("--nodes", "3")
        self.assertIn("3 nodes, 3 vote", said)
        self.user.cli("deploy", "hello.yaml")
        i = get("/w/hello/")[1]["Skerry-Instance"]
        request = urllib.request.Request("http://127.0.0.2:8080/w/hello/",
                                         headers={"Skerry-Instance": i})
        with urllib.request.urlopen(request, timeout=60) as answer:
            self.assertEqual((answer.headers["Skerry-Instance"], answer.headers["Skerry-Start"]),
                             (i, "join"))
        self.user.cli("down", "--delete")
        self.assertEqual(os.listdir(self.user.file()), [])

    # --- what code inside cannot do

    def probe(self, *arguments):
        folder = os.path.join(self.user.home, "probe")
        shutil.copytree(os.path.join(BUILD, "probe"), folder, dirs_exist_ok=True)
        words = [] if self.subordinate else ["--one-id"]
        return self.run_("--source", folder, "--timeout", "5m", *arguments, "--", "/app/probe",
                         *words)

    def passes(self, done):
        failures = [line for line in done.stdout.decode().splitlines() if line.startswith("FAIL")]
        self.assertEqual(failures, [], done.stderr)
        self.assertEqual(done.returncode, 0, (done.stdout[-500:], done.stderr))
        passed = int(done.stdout.decode().splitlines()[-1].split()[0])
        self.assertGreater(passed, 400)

    def test_the_probe_passes_beside_a_neighbour(self):
        self.up()
        neighbour = os.path.join(self.user.home, "neighbour")
        shutil.copytree(os.path.join(BUILD, "probe"), neighbour)
        other = self.user.start("run", "--source", neighbour, "--", "/app/probe", "--neighbour",
                                "--greedy")
        self.addCleanup(other.stdout.close)
        self.addCleanup(other.stderr.close)
        try:
            self.assertEqual(other.stdout.readline(), b"ready\n")
            self.passes(self.probe())
            self.passes(self.probe("--user", "0"))
        finally:
            other.stdin.close()
            other.wait(60)
        self.assertEqual(other.returncode, 0)

    def test_nobody_of_the_user_is_seen_or_signalled(self):
        self.up()
        other = self.user.start("run", "--", "sh", "-c", "echo ready; cat")
        self.addCleanup(other.stdout.close)
        self.addCleanup(other.stderr.close)
        self.assertEqual(other.stdout.readline(), b"ready\n")
        pids = sorted(self.user.processes())
        self.assertGreaterEqual(len(pids), 4)  # serve, the runner, an agent, cat
        done = self.run_("--", "python3", "-c",
                         "import os, signal\n"
                         "mine = {os.getpid(), 1}\n"
                         "seen = {int(p) for p in os.listdir('/proc') if p.isdigit()}\n"
                         "print('seen', sorted(seen - mine))\n"
                         "reached = []\n"
                         "for pid in %r + [1]:\n"
                         "    try:\n"
                         "        os.kill(pid, 9)\n"
                         "        reached.append(pid)\n"
                         "    except OSError: pass\n"
                         "print('reached', [p for p in reached if p not in mine or p == 1])\n"
                         "try: os.kill(-1, 9)\n"
                         "except OSError: pass\n"
                         "print('done')\n" % [p for p in pids if p > 64])
        self.assertEqual(done.stdout, b"seen []\nreached []\ndone\n", done.stderr)
        out, _ = other.communicate(b"alive\n", timeout=60)
        self.assertEqual((other.returncode, out), (0, b"alive\n"))
        self.assertEqual(self.run_("--", "true").returncode, 0)

    def test_files_and_sockets_of_the_user_are_out_of_reach(self):
        self.up()
        paths = [self.user.home, os.path.join(self.user.home, "secret"), self.user.file(),
                 self.user.file("api.sock"), self.user.file("node1", "run", "api.sock"),
                 self.user.file("node1", "run", "runner.sock"), self.user.file("node1", "runner"),
                 "/proc/1/root" + self.user.home, "/proc/self/cwd/../.." + self.user.home,
                 "/proc/1/fd", "/run/user", "/tmp/.X11-unix", "/home/*", "/mnt/*", "/media/*"]
        done = self.run_("--", "python3", "-c",
                         "import glob, os, socket\n"
                         "for path in %r:\n"
                         "    for found in glob.glob(path):\n"
                         "        print('found', found)\n"
                         "for port in (8080, 8081, 2222, 7600, 7601):\n"
                         "    s = socket.socket()\n"
                         "    s.settimeout(5)\n"
                         "    if s.connect_ex(('127.0.0.1', port)) == 0: print('reached', port)\n"
                         "with open('/proc/net/unix') as f: sockets = f.readlines()[1:]\n"
                         "print('sockets', len(sockets))\n"
                         "print('done')\n" % paths)
        self.assertEqual(done.stdout, b"sockets 0\ndone\n", done.stderr)
        # What the code has of its own goes with it.
        self.run_("--", "sh", "-c", "echo x >/tmp/skerry-left; echo x >/var/tmp/skerry-left")
        self.assertFalse(os.path.exists("/tmp/skerry-left"))

    def test_egress_is_refused_with_its_reason(self):
        self.up()
        done = self.run_("--network", "egress", "--", "true")
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"without root", done.stderr)
        self.user.write("calls.yaml", "id: calls\nimage: host\ncommand: [sleep, '9']\nport: 1\n"
                        "access: public\nnetwork: {mode: egress}\n")
        self.user.cli("deploy", "calls.yaml")
        status, _, body = get("/w/calls/")
        self.assertIn("without root", json.loads(body)["detail"])
        self.assertGreaterEqual(status, 400)

    def test_files_and_processes_are_bounded_without_control_groups(self):
        self.up()
        self.user.write("tight.yaml", """
id: tight
kind: command
image: host
access: public
command:
  - python3
  - -c
  - |
    import os, time
    written = 0
    try:
        with open("/tmp/x", "wb", 0) as f:
            while written < 64: written += f.write(b"x" * (1 << 20)) >> 20
    except OSError: pass
    forked = 0
    try:
        while forked < 200:
            if os.fork() == 0: time.sleep(60)
            forked += 1
    except OSError: pass
    print(written, forked)
deploy: {resources: {limits: {pids: 20, disk: 4M}}}
""")
        self.user.cli("deploy", "tight.yaml")
        # The second is not short of what the first took.
        bodies = [get("/w/tight/")[2] for _ in range(2)]
        for body in bodies:
            written, forked = map(int, body.split())
            self.assertLessEqual(written, 4)
            self.assertGreater(forked, 10)
            self.assertLess(forked, 20)

    def test_where_it_is_forbidden_the_setting_is_named(self):
        forbid = ["unshare", "-U", "--map-user=4242", "--keep-caps", "sh", "-ec",
                  "echo 0 >/proc/sys/user/max_user_namespaces; \"$@\"", "sh", self.user.skerry]
        done = self.user.run(*forbid, "up", "--detach")
        self.assertEqual(done.returncode, 5, (done.stdout, done.stderr))
        self.assertIn(b"sysctl -w user.max_user_namespaces=", done.stderr)
        self.assertFalse(os.path.exists(self.user.file()))
        self.assertIn(b"sysctl -w user.max_user_namespaces=",
                      self.user.run(*forbid, "doctor").stdout)
        done = self.user.run(*forbid, "runner", "--directory", os.path.join(self.user.home, "r"))
        self.assertIn(b"sysctl -w user.max_user_namespaces=", done.stderr)

    def test_where_a_chroot_forbids_it_that_is_said(self):
        root = os.path.join(self.user.home, "root")
        os.mkdir(root)
        script = 'mount --rbind / "$0"; exec /usr/sbin/chroot "$0" "$@"'
        done = subprocess.run(["unshare", "-m", "sh", "-ec", script, root, "setpriv", "--reuid",
                               str(UID), "--regid", str(UID), "--clear-groups", self.user.skerry,
                               "up", "--detach"], capture_output=True, timeout=60,
                              env=self.user.environment, check=False)
        self.assertEqual(done.returncode, 5, (done.stdout, done.stderr))
        self.assertIn(b"chroot", done.stderr)

    # --- images

    def image(self, owner):
        """An image of a static program and a file of `owner`."""
        path = os.path.join(self.user.home, "image.tar")
        with tarfile.open(path, "w") as tar:
            for name in ("bin", "tmp"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                tar.addfile(entry)
            with open(os.path.join(BUILD, "probe", "probe"), "rb") as program:
                entry = tarfile.TarInfo("bin/probe")
                entry.size, entry.mode = os.fstat(program.fileno()).st_size, 0o755
                tar.addfile(entry, program)
            entry = tarfile.TarInfo("owned")
            entry.uid = entry.gid = owner
            tar.addfile(entry)
        os.chown(path, UID, UID)
        return self.user.cli("image", "import", "small", path, check=False)


class OneId(Whole, unittest.TestCase):
    def test_the_user_is_the_one_that_was_asked_for(self):
        self.up()
        done = self.run_("--user", "4242:42", "--", "sh", "-c", "id -u; id -g; touch /tmp/x")
        self.assertEqual(done.stdout.split()[:2], [b"4242", b"42"], done.stderr)
        self.user.cli("deploy", "hello.yaml")
        i = get("/w/hello/")[1]["Skerry-Instance"]
        done = self.user.cli("exec", "--user", "4242", i, "--", "true", check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"runs without root", done.stderr)

    def test_images_of_root_alone_are_taken(self):
        self.up()
        done = self.image(0)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.passes(self.run_("--image", "small", "--", "/bin/probe", "--one-id"))
        done = self.image(42)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"apt-get install uidmap", done.stderr)


class Range(Whole, unittest.TestCase):
    subordinate = True
    said = "share one range of user ids"

    def test_code_is_not_the_user(self):
        self.up()
        other = self.user.start("run", "--user", "1000", "--", "sh", "-c", "echo ready; cat")
        self.addCleanup(other.stdout.close)
        self.addCleanup(other.stderr.close)
        self.assertEqual(other.stdout.readline(), b"ready\n")
        cats = wait_until(lambda: [pid for pid, words in self.user.processes().items()
                                   if words.strip() == "cat"], 5, "cat runs")
        self.assertEqual([os.stat("/proc/%d" % pid).st_uid for pid in cats], [SUBORDINATE + 1000])
        other.communicate(b"", timeout=60)

    def test_images_keep_their_owners(self):
        self.up()
        done = self.image(42)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.passes(self.run_("--image", "small", "--", "/bin/probe"))
        self.user.cli("down", "--delete")
        self.assertEqual(os.listdir(self.user.file()), [])


if __name__ == "__main__":
    unittest.main()
