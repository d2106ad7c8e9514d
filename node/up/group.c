/* A control group of its own for what `skerry up` starts, where the user was given one. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/up/node.h"

#define TREE "/sys/fs/cgroup"
/* Where a runner looks for itself (sandbox/runner/cgroup_v2.c): the groups of instances come beside it. */
#define ASIDE "skerry-runner"

/* The folder of our group of version 2. */
static bool own_folder(char *out, size_t size)
{
    char line[1024];
    bool found = false;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f != NULL && !found && fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        found = strncmp(line, "0::", 3) == 0 && text_format(out, size, TREE "%s", line + 3);
    }
    if (f != NULL)
        (void)fclose(f);
    return found;
}

/* Another's group is not to be divided: systemd-run --scope gives us one where nobody else is. */
static bool alone_in(const char *folder)
{
    char path[UP_PATH_SIZE], text[64];
    if (!text_format(path, sizeof path, "%s/cgroup.procs", folder))
        return false;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return false;
    text[n] = '\0';
    char *end;
    return strtol(text, &end, 10) == getpid() && strcmp(end, "\n") == 0;
}

void up_group_enter(void)
{
    char own[UP_PATH_SIZE], path[UP_PATH_SIZE + 64];
    if (!own_folder(own, sizeof own) || access(own, W_OK) != 0 || !alone_in(own))
        return;
    (void)text_format(path, sizeof path, "%s/" ASIDE, own);
    (void)mkdir(path, 0755);
    (void)text_format(path, sizeof path, "%s/" ASIDE "/cgroup.procs", own);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        (void)!write(fd, "0", 1);
}
