/* Folders of control groups that must not stay: our own at the end, and those of runners that were killed
 * and will not come back. */
#include "sandbox/runner/cgroup.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

enum { LOOK_NS = 2000000, HASH_DIGITS = 8 };

/* Groups of instances that hold no process any more; the kernel refuses all others. */
static void remove_empty_below(const char *parent)
{
    DIR *folder = opendir(parent);
    for (struct dirent *entry = folder == NULL ? NULL : readdir(folder); entry != NULL;
         entry = readdir(folder)) {
        char path[CGROUP_PATH_SIZE];
        if (entry->d_type == DT_DIR && entry->d_name[0] == 'i' &&
            text_format(path, sizeof path, "%s/%s", parent, entry->d_name))
            (void)rmdir(path);
    }
    if (folder != NULL)
        closedir(folder);
}

/* 0, or why it stays. */
static int remove_whole(const char *parent)
{
    remove_empty_below(parent);
    return rmdir(parent) == 0 || errno == ENOENT ? 0 : errno;
}

void cgroup_host_close(struct cgroup_host *host, unsigned wait_ms)
{
    uint64_t deadline_ms = clock_monotonic_ms() + wait_ms;
    for (size_t i = 0; i < host->tree_count; i++) {
        const char *parent = host->trees[i].parent;
        int error = remove_whole(parent);
        while (error == EBUSY && clock_monotonic_ms() < deadline_ms) {
            nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
            error = remove_whole(parent);
        }
        if (error != 0 && wait_ms > 0)
            log_warn("runner", "%s stays: %s. The next runner takes it away when it is empty",
                     parent, strerror(error));
    }
    host->tree_count = 0;
}

/* "skerry-4a02fe14", "skerry-2-67ca133d": what runner.yaml's `cgroup` is by default and in `up`, and the hash
 * of a folder. Another prefix is somebody's own, and nothing beside it is touched. */
static bool is_a_runners(const char *name)
{
    size_t length = strlen(name);
    if (strncmp(name, "skerry", 6) != 0 || length < 6 + 1 + HASH_DIGITS ||
        name[length - HASH_DIGITS - 1] != '-')
        return false;
    for (size_t i = length - HASH_DIGITS; i < length; i++)
        if (!isxdigit((unsigned char)name[i]))
            return false;
    return true;
}

static bool is_old(const char *path, unsigned seconds)
{
    struct stat st;
    return stat(path, &st) == 0 && (uint64_t)st.st_ctim.tv_sec + seconds <= clock_wall_ms() / 1000;
}

static void sweep_beside(const char *parent, unsigned seconds)
{
    char beside[CGROUP_PATH_SIZE], path[CGROUP_PATH_SIZE];
    (void)text_copy(beside, sizeof beside, parent);
    char *slash = strrchr(beside, '/');
    if (slash == NULL)
        return;
    *slash = '\0';
    DIR *folder = opendir(beside);
    for (struct dirent *entry = folder == NULL ? NULL : readdir(folder); entry != NULL;
         entry = readdir(folder)) {
        if (entry->d_type != DT_DIR || !is_a_runners(entry->d_name) ||
            !text_format(path, sizeof path, "%s/%s", beside, entry->d_name) ||
            strcmp(path, parent) == 0 || !is_old(path, seconds))
            continue;
        if (remove_whole(path) == 0)
            log_info("runner", "%s was left by a runner that is gone, and is removed", path);
    }
    if (folder != NULL)
        closedir(folder);
}

void cgroup_host_sweep(const struct cgroup_host *host, unsigned seconds)
{
    for (size_t i = 0; i < host->tree_count; i++)
        sweep_beside(host->trees[i].parent, seconds);
}
