/* Capabilities, ids and descriptors: what the code has, and what it cannot get. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "probe.h"

extern char **environ;

struct status_line {
    const char *name;
    const char *key;
    const char *value;
};

static const struct status_line status_lines[] = {
    {"no effective capability", "CapEff:", "0000000000000000"},
    {"no permitted capability", "CapPrm:", "0000000000000000"},
    {"no inheritable capability", "CapInh:", "0000000000000000"},
    {"no ambient capability", "CapAmb:", "0000000000000000"},
    {"no capability by exec", "CapBnd:", "0000000000000000"},
    {"no new privileges", "NoNewPrivs:", "1"},
    {"system calls are filtered", "Seccomp:", "2"},
};

static bool status_value(const char *key, char *out, size_t size)
{
    char line[512];
    bool found = false;
    FILE *file = fopen("/proc/self/status", "re");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, strlen(key)) == 0) {
            snprintf(out, size, "%s", line + strlen(key) + strspn(line + strlen(key), " \t"));
            out[strcspn(out, "\n")] = '\0';
            found = true;
        }
    if (file != NULL)
        fclose(file);
    return found;
}

static bool status_is(const void *with, struct probe_text *what)
{
    const struct status_line *line = with;
    char value[256] = "not there";
    status_value(line->key, value, sizeof value);
    return strcmp(value, line->value) == 0 || probe_fail(what, "%s %s", line->key, value);
}

static bool capset_gains_nothing(const void *with, struct probe_text *what)
{
    (void)with;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = 1u << CAP_SYS_CHROOT, .permitted = 1u << CAP_SYS_CHROOT}};
    return probe_refused(what, syscall(SYS_capset, &head, data));
}

static bool privileges_stay_dropped(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)) &&
           probe_failed(what, prctl(PR_SET_SECCOMP, 0, 0, 0, 0)) &&
           probe_refused(what, prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS, 0, 0, 0));
}

static bool ambient_gains_nothing(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_refused(what, prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
}

/* --- ids -------------------------------------------------------------------------------------- */

struct id {
    const char *name;
    unsigned value;
};

static const struct id ids[] = {
    {"cannot become root", 0},
    {"cannot become the agent", 65535},
    {"cannot become another user", 4242},
};

static bool id_is_out_of_reach(const void *with, struct probe_text *what)
{
    const struct id *id = with;
    if (getuid() == id->value) {
        /* Root inside is the one to be; then nobody else may be reached. */
        return id->value == 0 || probe_fail(what, "is it already");
    }
    if (probe_one_id())
        return probe_failed(what, setresuid(id->value, id->value, id->value)) &&
               probe_failed(what, setresgid(id->value, id->value, id->value));
    return probe_refused(what, setresuid(id->value, id->value, id->value)) &&
           probe_refused(what, setresgid(id->value, id->value, id->value));
}

static bool groups_cannot_be_set(const void *with, struct probe_text *what)
{
    (void)with;
    gid_t group = 0;
    return probe_refused(what, setgroups(1, &group));
}

static bool no_foreign_groups(const void *with, struct probe_text *what)
{
    (void)with;
    gid_t groups[64];
    int count = getgroups(64, groups);
    for (int i = 0; i < count; i++)
        /* What is not mapped can be left by nobody, and owns nothing in sight. */
        if (groups[i] != getgid() && !(probe_one_id() && groups[i] == 65534))
            return probe_fail(what, "is in group %u", groups[i]);
    return count >= 0 || probe_fail(what, "in very many groups");
}

/* The kernel's own files belong to the machine's root, and a layer's may be mapped: only an id
 * that is not mapped shows as the overflow id. */
static bool root_inside_is_nobody_outside(const void *with, struct probe_text *what)
{
    (void)with;
    struct stat st;
    if (stat("/proc/sys/kernel/ostype", &st) != 0)
        return probe_fail(what, "/proc/sys/kernel/ostype: %s", strerror(errno));
    return (st.st_uid == 65534 && st.st_gid == 65534) ||
           probe_fail(what, "the machine's root is %u:%u inside", st.st_uid, st.st_gid);
}

static bool files_cannot_be_given_away(const void *with, struct probe_text *what)
{
    (void)with;
    char path[] = "/tmp/probe-owner-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        return probe_fail(what, "no file in /tmp: %s", strerror(errno));
    unlink(path);
    long rc = fchown(fd, 4242, 4242);
    return probe_one_id() ? probe_failed(what, rc) : probe_refused(what, rc);
}

struct owner {
    const char *name;
    uid_t uid;
};

static const struct owner owners[] = {
    {"no file for the agent", 65535},
    {"no file for ids above the range", 65536},
    {"no file for the machine's users", 1879048192},
    {"no file for the last id", (uid_t)-2},
};

static bool cannot_be_owned_by(const void *with, struct probe_text *what)
{
    const struct owner *owner = with;
    char path[] = "/tmp/probe-owner-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        return probe_fail(what, "no file in /tmp: %s", strerror(errno));
    unlink(path);
    return probe_failed(what, fchown(fd, owner->uid, (gid_t)-1)) &&
           probe_failed(what, fchown(fd, (uid_t)-1, owner->uid));
}

/* A program with capabilities of its own, as the kernel keeps them with the file. */
static bool files_get_no_capabilities(const void *with, struct probe_text *what)
{
    const char *name = with;
    static const unsigned value[5] = {0x02000001, 0xffffffff, 0, 0xffffffff, 0};
    char path[] = "/tmp/probe-capable-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        return probe_fail(what, "no file in /tmp: %s", strerror(errno));
    unlink(path);
    return probe_failed(what, fsetxattr(fd, name, value, sizeof value, 0));
}

/* Also by the ids that only files are looked at with, which answer with the old one always. */
static bool file_ids_stay(const void *with, struct probe_text *what)
{
    (void)with;
    unsigned other = getuid() == 0 ? 4242 : 0;
    (void)syscall(SYS_setfsuid, other);
    (void)syscall(SYS_setfsgid, other);
    unsigned user = (unsigned)syscall(SYS_setfsuid, -1);
    unsigned group = (unsigned)syscall(SYS_setfsgid, -1);
    return (user != other && group != other) || probe_fail(what, "they are %u:%u", user, group);
}

static bool map_tells_no_host_id(const void *with, struct probe_text *what)
{
    const char *path = with;
    unsigned long inside = 0, outside = 0, count = 0;
    FILE *file = fopen(path, "re");
    int fields = file == NULL ? 0 : fscanf(file, "%lu %lu %lu", &inside, &outside, &count);
    if (file != NULL)
        fclose(file);
    unsigned long first = probe_one_id() ? getuid() : 0;
    return (fields == 3 && inside == first && outside == 0 &&
            count == (probe_one_id() ? 1 : 65536)) ||
           probe_fail(what, "%s: %lu %lu %lu", path, inside, outside, count);
}

static bool maps_cannot_be_written(const void *with, struct probe_text *what)
{
    (void)with;
    int fd = open("/proc/self/uid_map", O_WRONLY);
    return fd < 0 || probe_failed(what, write(fd, "0 0 1", 5));
}

/* The bit can be set; the mounts and no_new_privs make it worth nothing. */
static bool setuid_bit_is_worth_nothing(const void *with, struct probe_text *what)
{
    (void)with;
    static const char *const programs[] = {"/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount",
                                           "/usr/bin/newgrp"};
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
        struct stat st;
        struct statvfs fs;
        if (stat(programs[i], &st) == 0 && (st.st_mode & S_ISUID) != 0 &&
            (statvfs(programs[i], &fs) != 0 || (fs.f_flag & ST_NOSUID) == 0))
            return probe_fail(what, "%s works", programs[i]);
    }
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 || probe_fail(what, "privileges are gained");
}

/* --- scheduling ------------------------------------------------------------------------------- */

static bool no_real_time(const void *with, struct probe_text *what)
{
    (void)with;
    struct sched_param param = {.sched_priority = 1};
    return probe_refused(what, sched_setscheduler(0, SCHED_FIFO, &param));
}

static bool no_better_nice(const void *with, struct probe_text *what)
{
    (void)with;
    int now = getpriority(PRIO_PROCESS, 0);
    return probe_refused(what, setpriority(PRIO_PROCESS, 0, now - 5));
}

/* --- descriptors and environment -------------------------------------------------------------- */

static bool only_standard_descriptors(const void *with, struct probe_text *what)
{
    (void)with;
    /* The harness holds one end of a pipe; whatever else is open came from outside. */
    int pipes = 0;
    for (int fd = 3; fd < 1024; fd++) {
        struct stat st;
        if (fstat(fd, &st) != 0)
            continue;
        if (S_ISFIFO(st.st_mode) && ++pipes <= 1)
            continue;
        return probe_fail(what, "descriptor %d is open", fd);
    }
    return true;
}

static bool standard_descriptors_are_no_files(const void *with, struct probe_text *what)
{
    (void)with;
    for (int fd = 0; fd < 3; fd++) {
        struct stat st;
        if (fstat(fd, &st) == 0 && (S_ISDIR(st.st_mode) || S_ISBLK(st.st_mode)))
            return probe_fail(what, "descriptor %d is a folder or a disk", fd);
    }
    return true;
}

static bool environment_tells_nothing(const void *with, struct probe_text *what)
{
    (void)with;
    static const char *const foreign[] = {"SKERRY_TOKEN=",
                                          "SKERRY_ADDR=",
                                          "NOTIFY_SOCKET=",
                                          "LISTEN_FDS=",
                                          "DBUS_SESSION_BUS_ADDRESS=",
                                          "SSH_AUTH_SOCK=",
                                          "SUDO_USER=",
                                          "LD_PRELOAD=",
                                          "INVOCATION_ID=",
                                          "XDG_RUNTIME_DIR="};
    for (char **at = environ; *at != NULL; at++)
        for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
            if (strncmp(*at, foreign[i], strlen(foreign[i])) == 0)
                return probe_fail(what, "%s is set", foreign[i]);
    return true;
}

static bool environment_names_the_instance(const void *with, struct probe_text *what)
{
    (void)with;
    const char *instance = getenv("SKERRY_INSTANCE");
    return (instance != NULL && instance[0] != '\0') || probe_fail(what, "no SKERRY_INSTANCE");
}

void probe_add_privileges(struct probe_list *list)
{
    for (size_t i = 0; i < sizeof status_lines / sizeof status_lines[0]; i++)
        probe_add(list, "capabilities", status_lines[i].name, status_is, &status_lines[i], false);
    probe_add(list, "capabilities", "capset gains nothing", capset_gains_nothing, NULL, false);
    probe_add(list, "capabilities", "ambient gains nothing", ambient_gains_nothing, NULL, false);
    probe_add(list, "capabilities", "what is dropped stays so", privileges_stay_dropped, NULL,
              false);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        probe_add(list, "ids", ids[i].name, id_is_out_of_reach, &ids[i], false);
    probe_add(list, "ids", "groups cannot be set", groups_cannot_be_set, NULL, false);
    probe_add(list, "ids", "is in no foreign group", no_foreign_groups, NULL, false);
    probe_add(list, "ids", "root inside is nobody outside", root_inside_is_nobody_outside, NULL,
              false);
    probe_add(list, "ids", "files cannot be given away", files_cannot_be_given_away, NULL, false);
    for (size_t i = 0; i < sizeof owners / sizeof owners[0]; i++)
        probe_add(list, "ids", owners[i].name, cannot_be_owned_by, &owners[i], false);
    probe_add(list, "ids", "no file gets capabilities", files_get_no_capabilities,
              "security.capability", false);
    probe_add(list, "ids", "no file gets trusted attributes", files_get_no_capabilities,
              "trusted.overlay.opaque", false);
    probe_add(list, "ids", "ids for files stay", file_ids_stay, NULL, false);
    probe_add(list, "ids", "the map of users tells nothing", map_tells_no_host_id,
              "/proc/self/uid_map", false);
    probe_add(list, "ids", "the map of groups tells nothing", map_tells_no_host_id,
              "/proc/self/gid_map", false);
    probe_add(list, "ids", "maps cannot be written", maps_cannot_be_written, NULL, false);
    probe_add(list, "ids", "the setuid bit is worth nothing", setuid_bit_is_worth_nothing, NULL,
              false);
    probe_add(list, "ids", "no real-time scheduling", no_real_time, NULL, false);
    probe_add(list, "ids", "no better nice value", no_better_nice, NULL, false);
    probe_add(list, "descriptors", "only 0, 1 and 2 are open", only_standard_descriptors, NULL,
              false);
    probe_add(list, "descriptors", "they are no folder and no disk",
              standard_descriptors_are_no_files, NULL, false);
    probe_add(list, "descriptors", "the environment tells nothing of the machine",
              environment_tells_nothing, NULL, false);
    probe_add(list, "descriptors", "the environment names the instance",
              environment_names_the_instance, NULL, false);
}
