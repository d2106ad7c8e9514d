/* Mounts that are there: none can be taken off, none made writable, and what lies under them stays
 * hidden. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "probe.h"

struct place {
    const char *name;
    const char *path;
};

/* The flags that the mount has, but for read-only: where it is allowed nothing else changes. */
static bool stays_read_only(const void *with, struct probe_text *what)
{
    const struct place *p = with;
    struct statvfs fs;
    if (statvfs(p->path, &fs) != 0)
        return errno == ENOENT || probe_fail(what, "%s: %s", p->path, strerror(errno));
    if ((fs.f_flag & ST_RDONLY) == 0)
        return probe_fail(what, "%s is writable", p->path);
    unsigned long keep = MS_NOSUID | MS_NODEV;
    return probe_refused(what, mount(NULL, p->path, NULL, MS_REMOUNT | MS_BIND | keep, NULL)) &&
           probe_refused(what, mount(NULL, p->path, NULL, MS_REMOUNT | keep, NULL));
}

static const struct place read_only[] = {
    {"/proc/sys cannot be made writable", "/proc/sys"},
    {"/proc/bus cannot be made writable", "/proc/bus"},
    {"/proc/fs cannot be made writable", "/proc/fs"},
    {"/proc/irq cannot be made writable", "/proc/irq"},
    {"/dev cannot be made writable", "/dev"},
    {"/app cannot be made writable", "/app"},
    {"/usr cannot be made writable", "/usr"},
    {"/etc/ssl/certs cannot be made writable", "/etc/ssl/certs"},
    {"/etc/alternatives cannot be made writable", "/etc/alternatives"},
    {"/usr/local cannot be made writable", "/usr/local"},
};

/* An image without a host's folders has none of these. */
static bool stays_read_only_if_mounted(const void *with, struct probe_text *what)
{
    const struct place *p = with;
    return probe_root_is_image() || stays_read_only(with, what) || (p->path == NULL);
}

/* A mount that is asked to go when nobody uses it does not go at the first time of asking. */
static bool cannot_be_taken_off(const void *with, struct probe_text *what)
{
    const struct place *p = with;
    return probe_refused(what, umount2(p->path, MNT_EXPIRE)) &&
           probe_refused(what, syscall(SYS_move_mount, AT_FDCWD, p->path, AT_FDCWD,
                                       "/skerry-probe-nowhere", 0));
}

static const struct place masks[] = {
    {"/proc/kcore stays covered", "/proc/kcore"},
    {"/proc/keys stays covered", "/proc/keys"},
    {"/proc/timer_list stays covered", "/proc/timer_list"},
    {"/proc/sysrq-trigger stays covered", "/proc/sysrq-trigger"},
    {"/proc/interrupts stays covered", "/proc/interrupts"},
    {"/proc/sys stays covered", "/proc/sys"},
    {"/proc stays", "/proc"},
    {"/dev stays", "/dev"},
    {"/dev/pts stays", "/dev/pts"},
    {"/dev/shm stays", "/dev/shm"},
    {"/tmp stays", "/tmp"},
    {"/app stays", "/app"},
    {"the root stays", "/"},
    {"/usr/local stays covered", "/usr/local"},
    {"/usr/src stays covered", "/usr/src"},
};

static bool tells_nothing(const void *with, struct probe_text *what)
{
    const struct place *p = with;
    char byte;
    int fd = open(p->path, O_RDONLY | O_NONBLOCK);
    return fd < 0 || read(fd, &byte, 1) <= 0 || probe_fail(what, "%s can be read", p->path);
}

static const struct place silent[] = {
    {"keys are not told", "/proc/keys"},
    {"timers are not told", "/proc/timer_list"},
    {"interrupts are not told", "/proc/interrupts"},
    {"memory is not told", "/proc/kcore"},
    {"allocations are not told", "/proc/vmallocinfo"},
    {"slabs are not told", "/proc/slabinfo"},
    {"page types are not told", "/proc/pagetypeinfo"},
};

static bool is_empty(const void *with, struct probe_text *what)
{
    const struct place *p = with;
    DIR *stream = opendir(p->path);
    bool good = true;
    const struct dirent *entry;
    while (stream != NULL && good && (entry = readdir(stream)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            good = probe_fail(what, "%s has %.100s", p->path, entry->d_name);
    if (stream != NULL)
        closedir(stream);
    return good;
}

static const struct place empty[] = {
    {"local programs stay hidden", "/usr/local"},
    {"sources stay hidden", "/usr/src"},
    {"ACPI stays hidden", "/proc/acpi"},
    {"SCSI stays hidden", "/proc/scsi"},
    {"/sys is not there", "/sys"},
    {"control groups are not there", "/sys/fs/cgroup"},
    {"services of the machine are not there", "/run"},
};

/* All that /proc shows of the kernel's settings can only be read. */
static bool settings_are_read_only(const void *with, struct probe_text *what)
{
    const struct place *p = with;
    int fd = open(p->path, O_WRONLY);
    return fd < 0 || probe_fail(what, "%s opens for writing", p->path);
}

static const struct place settings[] = {
    {"user.max_user_namespaces", "/proc/sys/user/max_user_namespaces"},
    {"user.max_inotify_instances", "/proc/sys/user/max_inotify_instances"},
    {"kernel.unprivileged_bpf_disabled", "/proc/sys/kernel/unprivileged_bpf_disabled"},
    {"kernel.perf_event_paranoid", "/proc/sys/kernel/perf_event_paranoid"},
    {"kernel.yama.ptrace_scope", "/proc/sys/kernel/yama/ptrace_scope"},
    {"kernel.shmmax", "/proc/sys/kernel/shmmax"},
    {"kernel.ns_last_pid", "/proc/sys/kernel/ns_last_pid"},
    {"kernel.hotplug", "/proc/sys/kernel/hotplug"},
    {"fs.protected_symlinks", "/proc/sys/fs/protected_symlinks"},
    {"fs.suid_dumpable", "/proc/sys/fs/suid_dumpable"},
    {"fs.mqueue.queues_max", "/proc/sys/fs/mqueue/queues_max"},
    {"vm.mmap_min_addr", "/proc/sys/vm/mmap_min_addr"},
    {"net.ipv4.ping_group_range", "/proc/sys/net/ipv4/ping_group_range"},
    {"net.ipv6.conf.all.disable_ipv6", "/proc/sys/net/ipv6/conf/all/disable_ipv6"},
};

/* --- ways out of a folder --------------------------------------------------------------------- */

/* By a descriptor that somebody forgot (CVE-2024-21626) the parents of a folder lead outside. */
static bool parents_end_at_the_root(const void *with, struct probe_text *what)
{
    (void)with;
    struct stat top, root;
    static const char up[] = "../../../../../../../../../../../../../../../..";
    if (stat(up, &top) != 0 || stat("/", &root) != 0)
        return probe_fail(what, "%s", strerror(errno));
    if (top.st_dev != root.st_dev || top.st_ino != root.st_ino)
        return probe_fail(what, "the working folder is not below the root");
    char folder[512];
    if (getcwd(folder, sizeof folder) == NULL || folder[0] != '/')
        return probe_fail(what, "the working folder has no path");
    for (int fd = 0; fd < 256; fd++) {
        char path[160];
        struct stat st;
        snprintf(path, sizeof path, "/proc/self/fd/%d/%s/etc/shadow", fd, up);
        if (stat(path, &st) == 0)
            return probe_fail(what, "%s is there", path);
    }
    return access("/etc/shadow", F_OK) != 0 || probe_fail(what, "/etc/shadow is there");
}

static bool own_program_cannot_be_written(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, open("/proc/self/exe", O_WRONLY)) &&
           (probe_root_is_image() || probe_failed(what, open("/app/probe", O_WRONLY)));
}

static bool layers_cannot_be_linked(const void *with, struct probe_text *what)
{
    (void)with;
    if (probe_root_is_image())
        return true;
    long rc = link("/usr/bin/env", "/tmp/skerry-probe-link");
    if (rc == 0)
        unlink("/tmp/skerry-probe-link");
    return probe_failed(what, rc);
}

void probe_add_mounts(struct probe_list *list)
{
    for (size_t i = 0; i < sizeof read_only / sizeof read_only[0]; i++) {
        bool of_host =
            strncmp(read_only[i].path, "/proc", 5) != 0 && strcmp(read_only[i].path, "/dev") != 0;
        probe_add(list, "mounts", read_only[i].name,
                  of_host ? stays_read_only_if_mounted : stays_read_only, &read_only[i], false);
    }
    for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++)
        probe_add(list, "mounts", masks[i].name, cannot_be_taken_off, &masks[i], false);
    for (size_t i = 0; i < sizeof silent / sizeof silent[0]; i++)
        probe_add(list, "proc", silent[i].name, tells_nothing, &silent[i], false);
    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++)
        probe_add(list, "files", empty[i].name, is_empty, &empty[i], false);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        probe_add(list, "settings", settings[i].name, settings_are_read_only, &settings[i], false);
    probe_add(list, "files", "parents end at the root", parents_end_at_the_root, NULL, false);
    probe_add(list, "files", "the own program cannot be written", own_program_cannot_be_written,
              NULL, false);
    probe_add(list, "files", "no file of a layer can be linked", layers_cannot_be_linked, NULL,
              false);
}
