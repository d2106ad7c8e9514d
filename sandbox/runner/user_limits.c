#include "sandbox/runner/user_limits.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

/* 128 instances are the kernel's own default for a user; 64 Ki watches are what editors and bundlers
 * ask for at most, at about 1 KiB each. */
static const char *const limits[][2] = {
    {"max_user_namespaces", "0"},     {"max_mnt_namespaces", "0"},
    {"max_pid_namespaces", "0"},      {"max_net_namespaces", "0"},
    {"max_ipc_namespaces", "0"},      {"max_uts_namespaces", "0"},
    {"max_cgroup_namespaces", "0"},   {"max_time_namespaces", "0"},
    {"max_fanotify_groups", "0"},     {"max_fanotify_marks", "0"},
    {"max_inotify_instances", "128"}, {"max_inotify_watches", "65536"},
};

int user_limits_set(int proc_sys, struct err *e)
{
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        char path[64];
        text_format(path, sizeof path, "user/%s", limits[i][0]);
        CLEANUP_FD int fd = openat(proc_sys, path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && errno == ENOENT)
            continue;
        size_t length = strlen(limits[i][1]);
        if (fd < 0 || write(fd, limits[i][1], length) != (ssize_t)length)
            return err_sys(e, ERR_IO, errno, "lower user.%s", limits[i][0]);
    }
    return 0;
}
