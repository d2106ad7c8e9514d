"""podman with runc, so that it leaves nothing on the machine."""
import glob
import os
import subprocess

from harness import Invalid


class Podman:
    """Told what runc is told by oci_bundle of sandboxes.py. It pulls nothing: its root is a folder. All that it would
    leave on the machine lies below `run`, and in `memory` what the next start of the machine may lose."""

    def __init__(self, run, memory, app, argv):
        self.run, self.group = run, "skerry-podman-%d" % os.getpid()
        root = os.path.join(run, "root")
        for name in ("etc", "run", "usr"):
            os.makedirs(os.path.join(root, name))
        for name in ("bin", "lib", "lib64"):
            os.symlink("usr/" + name, os.path.join(root, name))
        for path in (root, os.path.join(root, "etc"), os.path.join(root, "run")):
            os.chown(path, 700000, 700000)  # who is root in there makes in them what else is mounted on
        config = os.path.join(run, "containers.conf")
        with open(config, "w") as f:
            f.write("[engine]\nlock_type = \"file\"\n")  # else there is one in /dev/shm for good
        self.environment = {"CONTAINERS_CONF": config}
        mapping = "0:700000:65536"
        self.argv = ["/usr/bin/podman", "--root", os.path.join(run, "storage"), "--storage-driver", "vfs",
                     "--runroot", os.path.join(memory, "run"), "--tmpdir", os.path.join(memory, "tmp"),
                     "--volumepath", os.path.join(run, "volumes"),
                     "--network-config-dir", os.path.join(run, "networks"),
                     "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc",
                     "run", "--rm", "--cgroup-parent", "/" + self.group, "--cgroups", "no-conmon",
                     "--cgroupns", "private", "--network", "none", "--no-hosts", "--log-driver", "none",
                     "--uidmap", mapping, "--gidmap", mapping, "--cap-drop", "ALL",
                     "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp",
                     "--volume", "/usr:/usr:ro", "--volume", app + ":/app:ro",
                     "--memory", "256m", "--pids-limit", "128", "--cpus", "1",
                     # What it would set by itself is more than a user namespace may.
                     "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
                     "--rootfs", root, *argv]

    def close(self):
        """Nothing of it shall be left: neither its groups, nor a process, nor a mount."""
        for parent in glob.glob("/sys/fs/cgroup/" + self.group) + glob.glob("/sys/fs/cgroup/*/" + self.group):
            for path, _, _ in os.walk(parent, topdown=False):
                os.rmdir(path)
        left = subprocess.run(["pgrep", "-fa", self.run], capture_output=True, text=True).stdout
        with open("/proc/self/mounts") as f:
            left += "".join(line for line in f if self.run in line)
        if left:
            raise Invalid("podman left behind: " + left)
