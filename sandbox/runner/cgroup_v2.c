#include "sandbox/runner/cgroup.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

#define CPU_PERIOD_US 100000u
#define CPU_QUOTA_US_MIN 1000u

/* All in one write: after one that may be shared out beside processes (cpu, pids), a group that has some
 * counts as threaded and takes no memory any more, and does not say that it is the processes that are in
 * the way. */
static int enable(const char *folder, unsigned controllers, struct err *e)
{
    static const struct {
        enum cgroup_controller controller;
        const char *text;
    } all[] = {{CGROUP_CPU, "+cpu "},
               {CGROUP_MEMORY, "+memory "},
               {CGROUP_PIDS, "+pids "},
               {CGROUP_IO, "+io "}};
    char text[32] = "";
    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        size_t length = strlen(text);
        if ((controllers & all[i].controller) != 0)
            text_format(text + length, sizeof text - length, "%s", all[i].text);
    }
    return text[0] == '\0' ? 0 : cgroup_write(folder, "cgroup.subtree_control", text, e);
}

static int folder_make(char *out, const char *parent, const char *name, struct err *e)
{
    if (!text_format(out, CGROUP_PATH_SIZE, "%s/%s", parent, name))
        return err_set(e, ERR_LIMIT, "path of our groups is too long");
    if (mkdir(out, 0755) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s", out);
    return 0;
}

/* Only a group without processes may give controllers to its children. So, unless we are in the
 * root group, the runner moves into a group of its own beside those of the instances. After a
 * restart in place our own position ends in that name already. */
static int parent_prepare(struct cgroup_tree *tree, const char *own, const char *name,
                          struct err *e)
{
    static const char runner[] = "/skerry-runner";
    char base[CGROUP_PATH_SIZE], aside[CGROUP_PATH_SIZE];
    text_copy(base, sizeof base, own);
    size_t length = strlen(base), suffix = sizeof runner - 1;
    if (length > suffix && strcmp(base + length - suffix, runner) == 0)
        base[length - suffix] = '\0';
    struct err first;
    int rc = enable(base, tree->controllers, &first);
    if (rc < 0 && first.sys == EBUSY) {
        rc = folder_make(aside, base, runner + 1, e);
        if (rc == 0)
            rc = cgroup_write(aside, "cgroup.procs", "0", e);
        if (rc == 0)
            rc = enable(base, tree->controllers, e);
    } else if (rc < 0) {
        return err_set(e, first.code, "%s", first.msg);
    }
    if (rc == 0)
        rc = folder_make(tree->parent, base, name, e);
    return rc == 0 ? enable(tree->parent, tree->controllers, e) : rc;
}

static int limit_memory(const struct cgroup_group *g, const struct cgroup_limits *limits,
                        struct err *e)
{
    int rc = cgroup_write_u64(g->path, "memory.max", limits->memory_bytes, e);
    /* Absent on a kernel without swap. */
    if (rc == 0) {
        rc = cgroup_write(g->path, "memory.swap.max", "0", e);
        rc = rc == -ERR_NOT_FOUND ? 0 : rc;
    }
    /* The whole instance ends when it runs out of memory, not whichever process was picked. */
    return rc == 0 ? cgroup_write(g->path, "memory.oom.group", "1", e) : rc;
}

static int limit_cpu(const struct cgroup_group *g, const struct cgroup_limits *limits,
                     struct err *e)
{
    uint64_t quota_us = (uint64_t)limits->cpu_thousandths * CPU_PERIOD_US / 1000;
    if (quota_us < CPU_QUOTA_US_MIN)
        quota_us = CPU_QUOTA_US_MIN;
    char text[64];
    text_format(text, sizeof text, "%" PRIu64 " %u", quota_us, CPU_PERIOD_US);
    return cgroup_write(g->path, "cpu.max", text, e);
}

static int limit(const struct cgroup_group *g, const struct cgroup_limits *limits, struct err *e)
{
    int rc = 0;
    if ((g->controllers & CGROUP_MEMORY) != 0 && limits->memory_bytes > 0)
        rc = limit_memory(g, limits, e);
    if (rc == 0 && (g->controllers & CGROUP_CPU) != 0 && limits->cpu_thousandths > 0)
        rc = limit_cpu(g, limits, e);
    if (rc == 0 && (g->controllers & CGROUP_PIDS) != 0 && limits->pids > 0)
        rc = cgroup_write_u64(g->path, "pids.max", limits->pids, e);
    if (rc == 0 && (g->controllers & CGROUP_IO) != 0 && limits->io_bytes > 0)
        rc = cgroup_write_disks(g->path, "io.max", limits->disks, "rbps=", limits->io_bytes, e);
    return rc;
}

static int oom_fd(const struct cgroup_group *g)
{
    char path[CGROUP_PATH_SIZE + 32];
    text_format(path, sizeof path, "%s/memory.events", g->path);
    CLEANUP_FD int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd < 0 || inotify_add_watch(fd, path, IN_MODIFY) < 0)
        return -1;
    return steal_fd(&fd);
}

static bool oom_happened(const struct cgroup_group *g)
{
    return cgroup_read_key(g->path, "memory.events", "oom_kill") > 0;
}

static void stats(const struct cgroup_group *g, struct cgroup_stats *out)
{
    if ((g->controllers & CGROUP_MEMORY) != 0) {
        out->memory_bytes = cgroup_read_u64(g->path, "memory.current");
        out->memory_peak_bytes = cgroup_read_u64(g->path, "memory.peak"); /* from Linux 5.19 */
    }
    if ((g->controllers & CGROUP_CPU) != 0)
        out->cpu_us = cgroup_read_key(g->path, "cpu.stat", "usage_usec");
    if ((g->controllers & CGROUP_PIDS) != 0)
        out->pids = (uint32_t)cgroup_read_u64(g->path, "pids.current");
}

/* A frozen v2 group can be killed as it is. cgroup.kill is there from Linux 5.14. */
static void kill_all(const struct cgroup_group *g)
{
    (void)cgroup_write(g->path, "cgroup.kill", "1", NULL);
    if ((g->controllers & CGROUP_IO) != 0)
        cgroup_free_disks(g->path, "io.max", "rbps=max");
}

static const struct cgroup_file files[] = {
    {CGROUP_MEMORY, "memory.max"},
    {CGROUP_MEMORY, "memory.swap.max"},
    {CGROUP_MEMORY, "memory.oom.group"},
    {CGROUP_MEMORY, "memory.events"},
    {CGROUP_MEMORY, "memory.current"},
    {CGROUP_MEMORY, "memory.peak"},
    {CGROUP_CPU, "cpu.max"},
    {CGROUP_CPU, "cpu.stat"},
    {CGROUP_PIDS, "pids.max"},
    {CGROUP_PIDS, "pids.current"},
    {0, NULL},
};

const struct cgroup_backend cgroup_v2_backend = {
    .files = files,
    .parent_prepare = parent_prepare,
    .limit = limit,
    .entry = NULL,
    .oom_fd = oom_fd,
    .oom_happened = oom_happened,
    .stats = stats,
    .kill = kill_all,
};
