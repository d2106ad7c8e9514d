/* Files, /proc, /sys and devices: what must not open, and what may be found at all. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "probe.h"

struct closed {
    const char *group;
    const char *name;
    const char *path;
    int flags;
};

static const struct closed closed[] = {
    {"files", "the machine's password hashes cannot be read", "/etc/shadow", O_RDONLY},
    {"files", "the machine's group passwords cannot be read", "/etc/gshadow", O_RDONLY},
    {"files", "the machine's packages are not visible", "/var/lib/dpkg/status", O_RDONLY},
    {"files", "the machine's logs are not visible", "/var/log/dpkg.log", O_RDONLY},
    {"files", "the machine's mounts are not visible", "/etc/fstab", O_RDONLY},
    {"files", "the machine's ssh keys are not visible", "/etc/ssh", O_RDONLY},
    {"files", "the machine's identity is not visible", "/etc/machine-id", O_RDONLY},
    {"files", "the machine's tables of jobs are not visible", "/etc/cron.d", O_RDONLY},
    {"files", "local programs are not visible", "/usr/local/bin", O_RDONLY},
    {"files", "Skerry's data is not visible", "/var/lib/skerry", O_RDONLY},
    {"files", "Skerry's configuration is not visible", "/etc/skerry", O_RDONLY},
    {"files", "Skerry's sockets are not visible", "/run/skerry", O_RDONLY},
    {"files", "programs cannot be changed", "/usr/bin/env", O_WRONLY},
    {"files", "the loader's cache cannot be changed", "/etc/ld.so.cache", O_WRONLY},
    {"files", "no program can be added", "/usr/bin/skerry-probe", O_WRONLY | O_CREAT | O_EXCL},
    {"files", "the source cannot be changed", "/app/skerry-probe", O_WRONLY | O_CREAT | O_EXCL},
    {"proc", "kernel memory is closed", "/proc/kcore", O_RDONLY},
    {"proc", "sysrq is closed", "/proc/sysrq-trigger", O_WRONLY},
    {"proc", "the core pattern is closed", "/proc/sys/kernel/core_pattern", O_WRONLY},
    {"proc", "the module loader is closed", "/proc/sys/kernel/modprobe", O_WRONLY},
    {"proc", "the host name is closed", "/proc/sys/kernel/hostname", O_WRONLY},
    {"proc", "panic is closed", "/proc/sys/kernel/panic", O_WRONLY},
    {"proc", "address randomization is closed", "/proc/sys/kernel/randomize_va_space", O_WRONLY},
    {"proc", "caches are closed", "/proc/sys/vm/drop_caches", O_WRONLY},
    {"proc", "overcommit is closed", "/proc/sys/vm/overcommit_memory", O_WRONLY},
    {"proc", "forwarding is closed", "/proc/sys/net/ipv4/ip_forward", O_WRONLY},
    {"proc", "file handles are closed", "/proc/sys/fs/file-max", O_WRONLY},
    {"proc", "binary formats are closed", "/proc/sys/fs/binfmt_misc/register", O_WRONLY},
    {"proc", "the kernel's log is closed", "/proc/kmsg", O_RDONLY},
    {"proc", "physical memory's map is closed", "/proc/kpageflags", O_RDONLY},
    {"proc", "the page owners are closed", "/proc/kpagecount", O_RDONLY},
    {"proc", "slabs are closed", "/proc/slabinfo", O_RDONLY},
    {"proc", "interrupts cannot be steered", "/proc/irq/default_smp_affinity", O_WRONLY},
    {"sys", "huge pages are closed", "/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY},
    {"sys", "the debug file system is not visible", "/sys/kernel/debug", O_RDONLY},
    {"sys", "the firmware is not visible", "/sys/firmware", O_RDONLY},
    {"sys", "the uevent helper is closed", "/sys/kernel/uevent_helper", O_WRONLY},
    {"sys", "hardware is not visible", "/sys/class/dmi", O_RDONLY},
    {"sys", "block devices are not visible", "/sys/block", O_RDONLY},
    {"sys", "control groups cannot be made", "/sys/fs/cgroup/cgroup.procs", O_WRONLY},
    {"devices", "memory is closed", "/dev/mem", O_RDONLY},
    {"devices", "ports are closed", "/dev/port", O_RDONLY},
    {"devices", "the kernel's log is closed", "/dev/kmsg", O_RDWR},
    {"devices", "virtual machines are closed", "/dev/kvm", O_RDWR},
    {"devices", "tunnels are closed", "/dev/net/tun", O_RDWR},
    {"devices", "FUSE is closed", "/dev/fuse", O_RDWR},
    {"devices", "loop devices are closed", "/dev/loop-control", O_RDWR},
    {"devices", "the device mapper is closed", "/dev/mapper/control", O_RDWR},
    {"devices", "user input is closed", "/dev/uinput", O_RDWR},
    {"devices", "vhost is closed", "/dev/vhost-vsock", O_RDWR},
    {"devices", "the console is closed", "/dev/tty0", O_RDWR},
    {"devices", "serial lines are closed", "/dev/ttyS0", O_RDWR | O_NOCTTY | O_NONBLOCK},
};

/* What a file of the kernel may be covered by. */
static bool is_null(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

static bool stays_closed(const void *with, struct probe_text *what)
{
    const struct closed *c = with;
    int fd = open(c->path, c->flags, 0600);
    if (fd >= 0 && (c->flags & O_CREAT) != 0)
        unlink(c->path);
    return fd < 0 || is_null(fd) || probe_fail(what, "%s opens", c->path);
}

/* Root inside owns the instance's own table, and so does the only user there is. */
static bool user_table_is_closed(const void *with, struct probe_text *what)
{
    (void)with;
    return getuid() == 0 || probe_one_id() || probe_failed(what, open("/etc/passwd", O_WRONLY));
}

static size_t count_names(const char *path, bool (*counts)(const char *name), char *seen,
                          size_t size)
{
    DIR *stream = opendir(path);
    size_t count = 0;
    const struct dirent *entry;
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (!counts(entry->d_name))
            continue;
        if (count++ == 0)
            snprintf(seen, size, "%s", entry->d_name);
    }
    if (stream != NULL)
        closedir(stream);
    return count;
}

static bool any_name(const char *name)
{
    (void)name;
    return true;
}

static bool no_usual_device(const char *name)
{
    static const char *const usual[] = {"null",  "zero",   "full",   "random", "urandom",
                                        "tty",   "ptmx",   "pts",    "shm",    "fd",
                                        "stdin", "stdout", "stderr", "mqueue", "console"};
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++)
        if (strcmp(name, usual[i]) == 0)
            return false;
    return true;
}

static bool is_process(const char *name)
{
    return name[0] >= '0' && name[0] <= '9';
}

static bool no_foreign_home(const void *with, struct probe_text *what)
{
    (void)with;
    char seen[256] = "";
    size_t count = count_names("/root", any_name, seen, sizeof seen);
    count += count_names("/home", any_name, seen, sizeof seen);
    return count == 0 || probe_fail(what, "%zu files, %s among them", count, seen);
}

static bool only_usual_devices(const void *with, struct probe_text *what)
{
    (void)with;
    char seen[256] = "";
    size_t count = count_names("/dev", no_usual_device, seen, sizeof seen);
    return count == 0 || probe_fail(what, "%zu devices more, %s among them", count, seen);
}

/* The agent, the main command, what exec started, this program and its child. */
static bool few_processes(const void *with, struct probe_text *what)
{
    (void)with;
    char seen[256] = "";
    size_t count = count_names("/proc", is_process, seen, sizeof seen);
    return (count > 0 && count <= 8) || probe_fail(what, "%zu processes are visible", count);
}

static bool first_line_is(const char *path, char *line, size_t size)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool got = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return got;
}

static bool no_kernel_addresses(const void *with, struct probe_text *what)
{
    (void)with;
    char line[256];
    if (!first_line_is("/proc/kallsyms", line, sizeof line))
        return true;
    return strtoull(line, NULL, 16) == 0 || probe_fail(what, "/proc/kallsyms tells: %s", line);
}

static bool mounts_tell_no_paths(const void *with, struct probe_text *what)
{
    (void)with;
    char line[2048];
    FILE *file = fopen("/proc/self/mountinfo", "re");
    bool good = true;
    while (file != NULL && good && fgets(line, sizeof line, file) != NULL)
        /* /app is a bind of the source's layer; the digest of one's own source is no secret. */
        if (strstr(line, " /app ") == NULL &&
            (strstr(line, "skerry") != NULL || strstr(line, "sha256") != NULL ||
             strstr(line, "/images/") != NULL || strstr(line, "/instances/") != NULL))
            good = probe_fail(what, "mountinfo tells: %.200s", line);
    if (file != NULL)
        fclose(file);
    return good;
}

struct flagged {
    const char *path;
    unsigned long flags;
};

static bool mounted_with(const void *with, struct probe_text *what)
{
    const struct flagged *f = with;
    struct statvfs fs;
    if (statvfs(f->path, &fs) != 0)
        return errno == ENOENT || probe_fail(what, "%s: %s", f->path, strerror(errno));
    unsigned long missing = f->flags & ~fs.f_flag;
    return missing == 0 ||
           probe_fail(what, "%s is not%s%s%s", f->path, missing & ST_RDONLY ? " read-only" : "",
                      missing & ST_NOSUID ? " nosuid" : "", missing & ST_NODEV ? " nodev" : "");
}

static const struct flagged root_flags = {"/", ST_NOSUID | ST_NODEV};
static const struct flagged tmp_flags = {"/tmp", ST_NOSUID | ST_NODEV};
static const struct flagged usr_flags = {"/usr", ST_RDONLY | ST_NOSUID | ST_NODEV};
static const struct flagged app_flags = {"/app", ST_RDONLY | ST_NOSUID | ST_NODEV};
static const struct flagged proc_flags = {"/proc", ST_NOSUID | ST_NODEV};
static const struct flagged shm_flags = {"/dev/shm", ST_NOSUID | ST_NODEV};

/* A device node by number: the block devices that /proc tells of, and memory. */
static bool no_device_nodes(const void *with, struct probe_text *what)
{
    (void)with;
    char path[] = "/tmp/probe-node-XXXXXX";
    int fd = mkstemp(path);
    if (fd >= 0) {
        close(fd);
        unlink(path);
    }
    int rc = mknod(path, S_IFCHR | 0600, makedev(1, 1));
    if (rc == 0)
        unlink(path);
    return probe_refused(what, rc);
}

static bool block_devices_are_closed(const void *with, struct probe_text *what)
{
    (void)with;
    char line[256];
    FILE *file = fopen("/proc/partitions", "re");
    bool good = true;
    while (file != NULL && good && fgets(line, sizeof line, file) != NULL) {
        char name[64];
        char path[80];
        if (sscanf(line, "%*d %*d %*d %63s", name) != 1)
            continue;
        snprintf(path, sizeof path, "/dev/%s", name);
        if (open(path, O_RDONLY) >= 0)
            good = probe_fail(what, "%s opens", path);
    }
    if (file != NULL)
        fclose(file);
    return good;
}

static bool usual_devices_work(const void *with, struct probe_text *what)
{
    (void)with;
    char bytes[8] = {1};
    int null = open("/dev/null", O_RDWR);
    int zero = open("/dev/zero", O_RDONLY);
    int random = open("/dev/urandom", O_RDONLY);
    if (null < 0 || zero < 0 || random < 0)
        return probe_fail(what, "null %d, zero %d, urandom %d", null, zero, random);
    return (write(null, bytes, 8) == 8 && read(null, bytes, 8) == 0 && read(zero, bytes, 8) == 8 &&
            bytes[0] == 0 && read(random, bytes, 8) == 8) ||
           probe_fail(what, "they do not read and write");
}

static bool tmp_takes_files(const void *with, struct probe_text *what)
{
    (void)with;
    char path[] = "/tmp/probe-file-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        return probe_fail(what, "%s", strerror(errno));
    unlink(path);
    return write(fd, "x", 1) == 1 || probe_fail(what, "%s", strerror(errno));
}

void probe_add_paths(struct probe_list *list)
{
    for (size_t i = 0; i < sizeof closed / sizeof closed[0]; i++)
        probe_add(list, closed[i].group, closed[i].name, stays_closed, &closed[i], false);
    probe_add(list, "files", "no user can change the user table", user_table_is_closed, NULL,
              false);
    probe_add(list, "files", "nobody's home is visible", no_foreign_home, NULL, false);
    probe_add(list, "files", "no device node can be made", no_device_nodes, NULL, false);
    probe_add(list, "files", "the root is nosuid and nodev", mounted_with, &root_flags, false);
    probe_add(list, "files", "/tmp is nosuid and nodev", mounted_with, &tmp_flags, false);
    probe_add(list, "files", "/usr is read-only", mounted_with, &usr_flags, false);
    probe_add(list, "files", "/app is read-only", mounted_with, &app_flags, false);
    probe_add(list, "files", "/proc is nosuid and nodev", mounted_with, &proc_flags, false);
    probe_add(list, "files", "/dev/shm is nosuid and nodev", mounted_with, &shm_flags, false);
    probe_add(list, "files", "/tmp takes files", tmp_takes_files, NULL, false);
    probe_add(list, "proc", "few processes are visible", few_processes, NULL, false);
    probe_add(list, "proc", "no address of the kernel is told", no_kernel_addresses, NULL, false);
    probe_add(list, "proc", "mounts tell no path outside", mounts_tell_no_paths, NULL, false);
    probe_add(list, "devices", "there are only the usual ones", only_usual_devices, NULL, false);
    probe_add(list, "devices", "block devices are closed", block_devices_are_closed, NULL, false);
    probe_add(list, "devices", "the usual ones work", usual_devices_work, NULL, false);
}
