#include "sandbox/shared/userns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"

/* Ids of instances and images reach so far (sandbox/runner/config.h): who has fewer is in a namespace. */
#define MACHINE_IDS 0x7ff10000ull
#define LINE_SIZE 512

/* --- what there is -------------------------------------------------------------------------------- */

/* Of the first line of a map; false: there is none. */
static bool map_read(unsigned long long *first, unsigned long long *count)
{
    unsigned long long outside;
    FILE *f = fopen("/proc/self/uid_map", "re");
    if (f == NULL)
        return false;
    *count = 0;
    unsigned long long inside, length;
    for (bool any = false; fscanf(f, "%llu %llu %llu", &inside, &outside, &length) == 3;
         any = true) {
        if (!any)
            *first = inside;
        *count += length;
    }
    (void)fclose(f);
    return *count > 0;
}

enum userns_ids userns_ids(void)
{
    unsigned long long first = 0, count = 0;
    if (geteuid() != 0 || !map_read(&first, &count))
        return USERNS_ONE;
    return count >= MACHINE_IDS       ? USERNS_MACHINE
           : count > USERNS_RANGE_IDS ? USERNS_RANGE
                                      : USERNS_ONE;
}

bool userns_is_machine(void)
{
    return userns_ids() == USERNS_MACHINE;
}

/* --- why not -------------------------------------------------------------------------------------- */

static long setting_read(const char *path)
{
    char text[32];
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    return strtol(text, NULL, 10);
}

/* What distributions and administrators forbid it with, and the value that does. */
static const struct {
    const char *path, *name;
    long forbids, allows;
} settings[] = {
    {"/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", 0, 65536},
    {"/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", 0, 1},
    {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
     "kernel.apparmor_restrict_unprivileged_userns", 1, 0},
};

static int refusal(int sys, const char *what, struct err *e)
{
    for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
        if (setting_read(settings[i].path) == settings[i].forbids)
            return err_set(e, ERR_DENIED,
                           "this machine forbids user namespaces to ordinary users: %s is %ld. Let "
                           "root run `sysctl -w %s=%ld`, or run skerry as root",
                           settings[i].name, settings[i].forbids, settings[i].name,
                           settings[i].allows);
    if (sys == ENOSPC || sys == EUSERS)
        return err_set(e, ERR_DENIED,
                       "%s: this user has as many as it may: raise user.max_user_namespaces, or "
                       "run skerry as root",
                       what);
    char why[64];
    return err_set(
        e, ERR_DENIED,
        "%s: %s. An ordinary user needs it, and a container's filter of system calls or a "
        "chroot may be what forbids it; or run skerry as root",
        what, strerror_r(sys, why, sizeof why));
}

/* --- one id --------------------------------------------------------------------------------------- */

static int text_write(const char *path, const char *text, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length)
        return refusal(errno, "map this user in a user namespace", e);
    return 0;
}

/* A user may map its own ids by itself, if it gives up to change its groups. */
static int map_one(uid_t uid, gid_t gid, struct err *e)
{
    char users[32], groups[32];
    text_format(users, sizeof users, "0 %u 1", (unsigned)uid);
    text_format(groups, sizeof groups, "0 %u 1", (unsigned)gid);
    int rc = text_write("/proc/self/setgroups", "deny", e);
    if (rc == 0)
        rc = text_write("/proc/self/uid_map", users, e);
    return rc == 0 ? text_write("/proc/self/gid_map", groups, e) : rc;
}

/* --- a range -------------------------------------------------------------------------------------- */

struct grant {
    const char *program, *file;
    unsigned own, first;
};

/* The first line "NAME-OR-UID:FIRST:COUNT" of this user with enough ids. */
static bool range_find(const char *path, const char *name, uid_t uid, unsigned *first)
{
    char line[LINE_SIZE], number[16];
    bool found = false;
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return false;
    text_format(number, sizeof number, "%u", (unsigned)uid);
    while (!found && fgets(line, sizeof line, f) != NULL) {
        unsigned long count = 0, from = 0;
        char *colon = strchr(line, ':');
        if (colon == NULL)
            continue;
        *colon = '\0';
        if (strcmp(line, name) != 0 && strcmp(line, number) != 0)
            continue;
        found = sscanf(colon + 1, "%lu:%lu", &from, &count) == 2 && count >= USERNS_RANGE_IDS &&
                from <= UINT32_MAX - USERNS_RANGE_IDS;
        *first = (unsigned)from;
    }
    (void)fclose(f);
    return found;
}

static bool program_find(const char *name, char *path, size_t size)
{
    static const char *const folders[] = {"/usr/bin", "/bin", "/usr/local/bin"};
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++)
        if (text_format(path, size, "%s/%s", folders[i], name) && access(path, X_OK) == 0)
            return true;
    return false;
}

/* False: it has none, and *lack is why. */
static bool grants_find(struct grant grants[2], char *lack, size_t size)
{
    const struct passwd *user = getpwuid(getuid());
    const char *name = user == NULL ? "" : user->pw_name;
    char path[64];
    for (int i = 0; i < 2; i++) {
        if (!program_find(grants[i].program, path, sizeof path)) {
            text_format(lack, size, "%s is not installed: apt-get install uidmap",
                        grants[i].program);
            return false;
        }
        if (!range_find(grants[i].file, name, getuid(), &grants[i].first)) {
            text_format(lack, size,
                        "%s has no %u ids for this user; root gives it some that nobody has with "
                        "usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST %s",
                        grants[i].file, USERNS_RANGE_IDS, name[0] != '\0' ? name : "USER");
            return false;
        }
    }
    return true;
}

/* One of newuidmap and newgidmap, for the process `target`. */
static bool grant_take(const struct grant *grant, pid_t target)
{
    char path[64], pid[16], own[16], first[16], count[16];
    text_format(pid, sizeof pid, "%d", (int)target);
    text_format(own, sizeof own, "%u", grant->own);
    text_format(first, sizeof first, "%u", grant->first);
    text_format(count, sizeof count, "%u", USERNS_RANGE_IDS);
    char *const argv[] = {path,
                          pid,
                          (char *)(uintptr_t) "0",
                          own,
                          (char *)(uintptr_t) "1",
                          (char *)(uintptr_t) "1",
                          first,
                          count,
                          NULL};
    char *const environment[] = {NULL};
    int status = -1;
    if (!program_find(grant->program, path, sizeof path))
        return false;
    pid_t child = fork();
    if (child == 0) {
        execve(path, argv, environment);
        _exit(127);
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
           WEXITSTATUS(status) == 0;
}

/* These programs must be called from outside, by a process that is still the user and nothing more: a
 * helper, which waits until this one has left. */
static pid_t helper_start(const struct grant grants[2], int *go)
{
    int ends[2];
    pid_t target = getpid();
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    pid_t helper = fork();
    if (helper == 0) {
        char byte;
        (void)close(ends[1]);
        if (read(ends[0], &byte, 1) != 1)
            _exit(1);
        _exit(grant_take(&grants[0], target) && grant_take(&grants[1], target) ? 0 : 1);
    }
    (void)close(ends[0]);
    if (helper < 0)
        (void)close(ends[1]);
    else
        *go = ends[1];
    return helper;
}

/* --- entering ------------------------------------------------------------------------------------- */

static bool map_is_empty(const char *path)
{
    char byte;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, &byte, 1) == 0;
}

/* The network proves that what was made is of use: where AppArmor forbids it, the namespace can be had and
 * nothing in it. */
static int network_leave(struct err *e)
{
    return unshare(CLONE_NEWNET) == 0 ? 0 : refusal(errno, "make a network namespace", e);
}

int userns_enter(enum userns_ids *out, char *lack, size_t size, struct err *e)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    struct grant grants[2] = {{"newuidmap", "/etc/subuid", uid, 0},
                              {"newgidmap", "/etc/subgid", gid, 0}};
    pid_t helper = -1;
    CLEANUP_FD int go = -1;
    lack[0] = '\0';
    if (grants_find(grants, lack, size))
        helper = helper_start(grants, &go);
    if (unshare(CLONE_NEWUSER) < 0) {
        int sys = errno;
        memory_close(&go);
        if (helper > 0)
            (void)waitpid(helper, NULL, 0);
        return refusal(sys, "make a user namespace", e);
    }
    int status = -1;
    if (helper > 0 && (write(go, "g", 1) != 1 || waitpid(helper, &status, 0) != helper))
        status = -1;
    *out = helper > 0 && status == 0 ? USERNS_RANGE : USERNS_ONE;
    if (*out == USERNS_ONE) {
        if (lack[0] == '\0')
            text_format(lack, size,
                        "newuidmap and newgidmap refused the ids of /etc/subuid and "
                        "/etc/subgid");
        if (!map_is_empty("/proc/self/uid_map"))
            return err_set(e, ERR_DENIED,
                           "newgidmap refused what newuidmap allows: give this user the same range "
                           "in /etc/subgid as in /etc/subuid, or no range at all");
        int rc = map_one(uid, gid, e);
        if (rc != 0)
            return rc;
    }
    return network_leave(e);
}

/* What a child of userns_probe says. */
struct answer {
    int code;
    enum userns_ids ids;
    char lack[256];
    struct err error;
};

int userns_probe(enum userns_ids *out, char *lack, size_t size, struct err *e)
{
    struct answer answer = {0};
    int ends[2], status;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_sys(e, ERR_IO, errno, "make a pipe");
    CLEANUP_FD int read_end = ends[0];
    CLEANUP_FD int write_end = ends[1];
    pid_t child = fork();
    if (child < 0)
        return err_sys(e, ERR_IO, errno, "start a process");
    if (child == 0) {
        answer.code = userns_enter(&answer.ids, answer.lack, sizeof answer.lack, &answer.error);
        /* Below PIPE_BUF: whole or not at all. */
        _exit(write(write_end, &answer, sizeof answer) == (ssize_t)sizeof answer ? 0 : 1);
    }
    memory_close(&write_end);
    ssize_t n = read(read_end, &answer, sizeof answer);
    (void)waitpid(child, &status, 0);
    if (n != (ssize_t)sizeof answer)
        return err_set(e, ERR_INTERNAL, "the trial of a user namespace ended without a word");
    if (answer.code != 0) {
        if (e != NULL)
            *e = answer.error;
        return answer.code;
    }
    *out = answer.ids;
    (void)text_copy(lack, size, answer.lack);
    return 0;
}

/* --- joining -------------------------------------------------------------------------------------- */

static ino_t number_of(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

int userns_join(pid_t pid, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    CLEANUP_FD int here = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (here < 0 || fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s", here < 0 ? "/proc/self/ns/user" : path);
    /* Up to the one that lies directly below ours; no chain is longer than 32. */
    for (int level = 0; level < 32; level++) {
        CLEANUP_FD int parent = ioctl(fd, NS_GET_PARENT);
        if (parent < 0)
            return err_sys(e, ERR_IO, errno, "find the namespace of process %d", (int)pid);
        if (number_of(parent) == number_of(here)) {
            if (setns(fd, CLONE_NEWUSER) < 0)
                return err_sys(e, ERR_IO, errno, "enter the namespace of process %d", (int)pid);
            return network_leave(e);
        }
        memory_close(&fd);
        fd = steal_fd(&parent);
    }
    return err_set(e, ERR_INTERNAL, "process %d is in no namespace of this user's", (int)pid);
}
