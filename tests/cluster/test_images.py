"""Images: what code sees of them, kept as erofs or as folders; collected when nobody uses them."""
import glob
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import unittest

from cluster import SKERRY, Node, Nodes, processes_of, wait_until

PROGRAMS = ("/bin/dash", "/usr/bin/find", "/bin/cat", "/bin/sleep", "/usr/bin/sha256sum", "/bin/touch")
NO_TOOL = "/usr/share/doc"

# Sizes and counts of folders are the file system's own matter.
LOOK = ("find / -xdev -path /proc -prune -o -path /dev -prune -o -path /tmp -prune -o -path /etc -prune "
        "-o "
        "-type d -printf '%p %M %U:%G\\n' -o -printf '%p %M %U:%G %s %n %l\\n'; "
        "find /data -type f -exec sha256sum {} +; ")


def member(name, mode, uid=0, gid=None, kind=tarfile.REGTYPE, link="", size=0):
    m = tarfile.TarInfo(name)
    m.mode, m.uid, m.gid, m.type, m.linkname, m.size = mode, uid, uid if gid is None else gid, kind, link, size
    return m


def libraries(program):
    out = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return {word for line in out.splitlines() for word in line.split() if word.startswith("/")}


def archive(path, mark):
    """A root of a few programs, and all that is odd; `mark` makes it another image."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        def file(name, data, mode, uid=0, gid=None):
            tar.addfile(member(name, mode, uid, gid, size=len(data)), io.BytesIO(data))
        for program in PROGRAMS:
            with open(program, "rb") as f:
                file("bin/" + os.path.basename(program), f.read(), 0o755)
        for library in sorted(set().union(*map(libraries, PROGRAMS))):
            with open(library, "rb") as f:
                file(library[1:], f.read(), 0o755)
        tar.addfile(member("bin/sh", 0o777, kind=tarfile.SYMTYPE, link="dash"))
        file("data/mark", mark.encode(), 0o644)
        file("data/su", b"setuid", 0o6755, 0, 42)
        tar.addfile(member("data/second", 0o6755, kind=tarfile.LNKTYPE, link="data/su"))
        file("data/private", b"of 1000", 0o600, 1000, 1001)
        file("data/last", b"of 65534", 0o644, 65534)
        file("data/large", bytes(range(256)) * 4000, 0o644, 33)
        file("data/.wh.whiteout", b"", 0o644)
        file("data/.wh..wh..opq", b"", 0o644)
        file("data/" + "n" * 254, b"long", 0o644)
        tar.addfile(member("data/closed", 0o700, 1000, kind=tarfile.DIRTYPE))
        file("data/closed/file", b"inside", 0o400, 1000)
        tar.addfile(member("data/sticky", 0o1777, kind=tarfile.DIRTYPE))
        tar.addfile(member("data/link", 0o777, 7, kind=tarfile.SYMTYPE, link="../data/large"))
    return path


def erofs_files(node):
    return glob.glob(node.path("runner", "images", "sha256-*", "erofs"))


def namespaces_that_mount(directory):
    """Processes in whose view of mounts a file system of that folder is."""
    found = []
    for path in glob.glob("/proc/[0-9]*/mountinfo"):
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                if any(" erofs " in line and directory in line for line in f):
                    found.append(path)
        except OSError:
            pass
    return found


def loops_of(directory):
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(path, encoding="utf-8") as f:
                if directory in f.read():
                    found.append(path)
        except OSError:
            pass
    return found


def run(node, image, script):
    return node.cli("run", "--image", image, "--", "sh", "-c", script).stdout.decode(errors="replace")


def look(node, image, script=LOOK):
    return sorted(run(node, image, script).splitlines())


class Images(unittest.TestCase):
    def test_code_sees_the_same_either_way(self):
        seen, exported = {}, {}
        for form in ("true", "false"):
            with Node(runner_config="images: {erofs: %s}\n" % form) as node:
                image = json.loads(node.cli("image", "import", "--json", "odd",
                                            archive(node.path("odd.tar"), "odd")).stdout)
                self.assertEqual(len(erofs_files(node)), 1 if form == "true" else 0)
                seen[form] = look(node, "odd")
                exported[form] = image["digest"]
                # A write goes to the instance alone.
                self.assertEqual(run(node, "odd", "echo mine >/data/sticky/mine; cat /data/sticky/*"), "mine\n")
                self.assertEqual(run(node, "odd", "find /data/sticky"), "/data/sticky\n")
        self.assertEqual(seen["true"], seen["false"])
        self.assertEqual(exported["true"], exported["false"])
        for line in ("/data/su -rwxr-xr-x 0:42 6 2 ", "/data/private -rw------- 1000:1001 7 1 ",
                     "/data/last -rw-r--r-- 65534:65534 8 1 ", "/data/link lrwxrwxrwx 7:7 13 1 ../data/large",
                     "/data/closed/file -r-------- 1000:1000 6 1 ", "/data/.wh.whiteout -rw-r--r-- 0:0 0 1 "):
            self.assertIn(line, seen["true"])

    def test_what_is_used_is_not_collected(self):
        with Node() as node:
            directory = node.path("runner")
            node.cli("image", "import", "first", archive(node.path("first.tar"), "first"))
            # The same content by another name is the same layer.
            node.cli("image", "import", "again", node.path("first.tar"))
            node.cli("image", "import", "other", archive(node.path("other.tar"), "other"))
            self.assertEqual(len(erofs_files(node)), 2)
            sleeper = subprocess.Popen([SKERRY, "run", "--image", "first", "--", "sleep", "1000"],
                                       env=node.environment())
            i = wait_until(lambda: next((x["id"] for x in node.ps() if processes_of(x["id"])), None), 10,
                           "an instance runs")
            for name in ("first", "again", "other"):
                node.cli("image", "rm", name)
            self.assertGreater(json.loads(node.cli("image", "gc", "--json").stdout)["bytes"], 0)
            wait_until(lambda: len(erofs_files(node)) == 1, 10, "what nobody uses goes")
            # Read for the first time, after the collection and with another runner.
            node.kill_runner()
            node.start_runner()
            wait_until(lambda: node.status()["healthy"], 15, "the runner is back")
            self.assertEqual(json.loads(node.cli("image", "gc", "--json").stdout)["bytes"], 0)
            self.assertEqual(node.cli("exec", i, "--", "cat", "/data/mark").stdout, b"first")
            self.assertEqual(len(erofs_files(node)), 1)
            node.cli("stop", i)
            sleeper.wait(40)
            wait_until(lambda: node.cli("image", "gc").returncode == 0 and not erofs_files(node), 10,
                       "it is collected")
            self.assertEqual(namespaces_that_mount(directory), [])
        self.assertEqual(loops_of(directory), [])

    def test_killed_runner_leaves_no_mount(self):
        with Node(runner_config="grace: 1s\n") as node:
            directory = node.path("runner")
            node.cli("image", "import", "odd", archive(node.path("odd.tar"), "odd"))
            self.assertEqual(run(node, "odd", "cat /data/mark"), "odd")
            self.assertNotEqual(namespaces_that_mount(directory), [])
            node.kill_runner()
            wait_until(lambda: not namespaces_that_mount(directory), 20, "its mounts go with it")
            node.start_runner()
            wait_until(lambda: node.status()["healthy"], 15, "the runner is back")
            self.assertEqual(run(node, "odd", "cat /data/mark"), "odd")
        self.assertEqual(namespaces_that_mount(directory), [])
        self.assertEqual(loops_of(directory), [])

    def test_without_the_tool_images_are_folders_and_it_is_said_once(self):
        path = os.environ["PATH"]
        with Node() as node:
            node.kill_runner()
            os.environ["PATH"] = NO_TOOL
            try:
                node.start_runner()
            finally:
                os.environ["PATH"] = path
            wait_until(lambda: node.status()["healthy"], 15, "the runner is back")
            for name in ("one", "two"):
                node.cli("image", "import", name, archive(node.path(name + ".tar"), name))
                self.assertEqual(run(node, name, "cat /data/mark"), name)
            self.assertEqual(erofs_files(node), [])
            with open(node.path("runner.log"), encoding="utf-8") as f:
                said = [line for line in f if "images are kept as folders" in line]
            self.assertEqual(len(said), 1)
            self.assertIn("erofs-utils", said[0])

    def test_what_was_just_sent_is_not_collected(self):
        def sent():
            body = io.BytesIO()
            with tarfile.open(fileobj=body, mode="w") as tar:
                tar.addfile(member("main.sh", 0o755, size=8), io.BytesIO(b"echo hi\n"))
            return node.api("POST", "/v1/sources", body.getvalue()).json()["digest"]

        def collected():
            return json.loads(node.cli("image", "gc", "--json").stdout)["bytes"]

        with Node() as node:
            digest = sent()
            self.assertEqual(collected(), 0)
            answer = node.api("POST", "/v1/workloads", {"id": "hello", "kind": "command", "access": "public",
                                                        "source": digest, "command": ["sh", "main.sh"]})
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(node.cli("invoke", "hello").stdout, b"hi\n")
            # It had its name: from now on names decide.
            node.cli("workload", "rm", "hello")
            wait_until(lambda: collected() == 8, 10, "it is collected")
            self.assertEqual(sent(), digest)

    def test_down_leaves_nothing(self):
        directory = tempfile.mkdtemp(prefix="skerry-up-", dir="/tmp")
        os.chmod(directory, 0o755)
        environment = dict(os.environ, SKERRY_ADDR="unix:" + os.path.join(directory, "node1/run/api.sock"))

        def skerry(*arguments):
            return subprocess.run([SKERRY, *arguments], check=True, capture_output=True, timeout=60,
                                  stdin=subprocess.DEVNULL, env=environment).stdout
        sleeper = None
        try:
            skerry("up", "--detach", "--dir", directory)
            skerry("image", "import", "odd", archive(os.path.join(directory, "odd.tar"), "odd"))
            sleeper = subprocess.Popen([SKERRY, "run", "--image", "odd", "--", "sleep", "1000"],
                                       env=environment, stderr=subprocess.DEVNULL)
            wait_until(lambda: any(processes_of(i["id"]) for i in json.loads(skerry("ps", "--json"))), 10,
                       "an instance runs")
            self.assertNotEqual(namespaces_that_mount(directory), [])
        finally:
            skerry("down", "--dir", directory)
            if sleeper is not None:
                sleeper.wait(40)
        wait_until(lambda: not namespaces_that_mount(directory), 10, "no mount is left")
        wait_until(lambda: not loops_of(directory), 10, "no loop device is left")
        shutil.rmtree(directory)

    def test_another_node_makes_its_own(self):
        with Nodes(2) as nodes:
            first, second = nodes[0], nodes[1]
            image = json.loads(first.cli("image", "import", "--json", "odd",
                                         archive(first.path("odd.tar"), "odd")).stdout)
            wait_until(lambda: erofs_files(second), 20, "the other node has it")
            self.assertEqual([os.path.basename(os.path.dirname(p)) for p in erofs_files(second)],
                             [image["digest"].replace(":", "-")])
            # Names of one file are files of their own in an archive of ours.
            script = LOOK.replace(" %n", "")
            self.assertEqual(look(second, "odd", script), look(first, "odd", script))


if __name__ == "__main__":
    unittest.main()
