"""Workload files: what is wrong is refused with file, line, key and the remedy."""
import io
import os
import tarfile
import unittest

from cluster import Node

BAD = {
    "unknown key": ("id: aa\ncommand: [x]\nport: 1\nnetwork_mode: none\n", 4,
                    ("network_mode", "network: {mode")),
    "wrong type": ("id: aa\ncommand: [x]\nport: many\n", 3, ("port",)),
    "bad duration": ("id: aa\ncommand: [x]\nport: 80\nlife: {idle: 5 parsecs}\n", 4,
                     ("life.idle",)),
    "zero duration": ("id: aa\ncommand: [x]\nport: 80\nlife: {idle: 0s}\n", 4, ("none",)),
    "impossible limit": ("id: aa\ncommand: [x]\nport: 80\n"
                         "deploy: {resources: {limits: {memory: 1K}}}\n", 4, ("memory",)),
    "bad name": ("id: Not_A_Name\ncommand: [x]\nport: 80\n", 1, ("id",)),
    "duplicate key": ("id: aa\nid: bb\ncommand: [x]\nport: 80\n", 2, ("id",)),
}


class Deploy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.node.__exit__(None, None, None)

    def test_bad_files_are_refused(self):
        node = self.node
        for name, (text, line, words) in BAD.items():
            for flags in ((), ("--dry-run",)):
                with self.subTest(name, flags=flags):
                    path = node.path("bad.yaml")
                    with open(path, "w") as f:
                        f.write(text)
                    done = node.cli("deploy", *flags, path, check=False)
                    self.assertNotEqual(done.returncode, 0)
                    said = done.stderr.decode()
                    self.assertIn("bad.yaml:%d" % line, said)
                    for word in words:
                        self.assertIn(word, said)
        self.assertEqual(node.cli("workload", "list", "--json").stdout.strip(), b"[]")

    def test_dry_run_registers_nothing(self):
        path = self.node.path("good.yaml")
        with open(path, "w") as f:
            f.write("id: dry\ncommand: [x]\nport: 80\n")
        self.node.cli("deploy", "--dry-run", path)
        self.assertEqual(self.node.cli("workload", "show", "dry", check=False).returncode, 3)

    def archive(self, members):
        path = self.node.path("image.tar")
        with tarfile.open(path, "w") as tar:
            for name, kind, value in members:
                info = tarfile.TarInfo(name)
                data = b""
                if kind == "file":
                    data = value
                    info.size = len(data)
                    info.mode = 0o755
                elif kind == "dir":
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                elif kind == "link":
                    info.type, info.linkname = tarfile.SYMTYPE, value
                elif kind == "hardlink":
                    info.type, info.linkname = tarfile.LNKTYPE, value
                elif kind == "device":
                    info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
                tar.addfile(info, io.BytesIO(data))
        return path

    def test_image_import_and_run(self):
        node = self.node
        probe = os.path.join(os.environ.get("B", "build"), "probe", "true")
        with open(probe, "rb") as f:
            path = self.archive([("bin", "dir", None), ("bin/true", "file", f.read()),
                                 ("etc", "dir", None), ("etc/hello", "file", b"hi\n")])
        node.cli("image", "import", "tiny", path)
        self.assertIn(b"tiny", node.cli("image", "list").stdout)
        self.assertEqual(node.cli("run", "--image", "tiny", "--", "/bin/true").returncode, 0)
        node.cli("image", "rm", "tiny")
        self.assertNotEqual(node.cli("run", "--image", "tiny", "--", "/bin/true",
                                     check=False).returncode, 0)

    def test_hostile_archives_are_refused(self):
        cases = {
            "absolute": [("/etc/passwd", "file", b"x")],
            "dotdot": [("a/../../x", "file", b"x")],
            "device": [("null", "device", None)],
            "hardlink out": [("x", "hardlink", "/etc/shadow")],
            "through a link": [("d", "link", "/tmp"), ("d/evil", "file", b"x")],
        }
        for name, members in cases.items():
            with self.subTest(name):
                done = self.node.cli("image", "import", "evil", self.archive(members),
                                     check=False)
                self.assertNotEqual(done.returncode, 0)
                self.assertTrue(done.stderr.strip())
        self.assertNotIn(b"evil", self.node.cli("image", "list").stdout)

    def test_docker_save_is_recognised(self):
        path = self.archive([("manifest.json", "file", b'[{"Config":"c","Layers":["a/layer.tar"]}]'),
                             ("a/layer.tar", "file", b"")])
        done = self.node.cli("image", "import", "saved", path, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(b"docker save", done.stderr)


if __name__ == "__main__":
    unittest.main()
