#include "sandbox/runner/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

/* The kernel's own default; a quota below 1 ms is refused by it. */
#define CPU_PERIOD_US 100000u
#define CPU_QUOTA_US_MIN 1000u
#define IO_FILE "blkio.throttle.read_bps_device"

static int parent_prepare(struct cgroup_tree *tree, const char *own, const char *name,
                          struct err *e)
{
    if (!text_format(tree->parent, sizeof tree->parent, "%s/%s", own, name))
        return err_set(e, ERR_LIMIT, "path of our groups is too long");
    if (mkdir(tree->parent, 0755) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s", tree->parent);
    return 0;
}

static int limit_memory(const struct cgroup_group *g, const struct cgroup_limits *limits,
                        struct err *e)
{
    int rc = cgroup_write_u64(g->path, "memory.limit_in_bytes", limits->memory_bytes, e);
    if (rc < 0)
        return rc;
    /* Memory and swap together, so none may be swapped; absent without swap accounting. Raising
     * would need the other order, and limits are only ever set on a new group. */
    rc = cgroup_write_u64(g->path, "memory.memsw.limit_in_bytes", limits->memory_bytes, e);
    if (rc < 0 && rc != -ERR_NOT_FOUND)
        return rc;
    /* v1 does not count TCP buffers as memory: 64 MiB could hold 2.2 GB of them. */
    rc = cgroup_write_u64(g->path, "memory.kmem.tcp.limit_in_bytes", limits->tcp_bytes, e);
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

static int limit_cpu(const struct cgroup_group *g, const struct cgroup_limits *limits,
                     struct err *e)
{
    uint64_t quota_us = (uint64_t)limits->cpu_thousandths * CPU_PERIOD_US / 1000;
    if (quota_us < CPU_QUOTA_US_MIN)
        quota_us = CPU_QUOTA_US_MIN;
    return cgroup_write_u64(g->path, "cpu.cfs_quota_us", quota_us, e);
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
        rc = cgroup_write_disks(g->path, IO_FILE, limits->disks, "", limits->io_bytes, e);
    return rc;
}

static int oom_fd(const struct cgroup_group *g)
{
    char path[CGROUP_PATH_SIZE + 32], registration[64];
    text_format(path, sizeof path, "%s/memory.oom_control", g->path);
    CLEANUP_FD int control = open(path, O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control < 0 || event < 0)
        return -1;
    text_format(registration, sizeof registration, "%d %d", event, control);
    if (cgroup_write(g->path, "cgroup.event_control", registration, NULL) < 0)
        return -1;
    return steal_fd(&event);
}

static bool oom_happened(const struct cgroup_group *g)
{
    return cgroup_read_key(g->path, "memory.oom_control", "oom_kill") > 0;
}

static void stats(const struct cgroup_group *g, struct cgroup_stats *out)
{
    if ((g->controllers & CGROUP_MEMORY) != 0) {
        out->memory_bytes = cgroup_read_u64(g->path, "memory.usage_in_bytes");
        out->memory_peak_bytes = cgroup_read_u64(g->path, "memory.max_usage_in_bytes");
    }
    if ((g->controllers & CGROUP_CPUACCT) != 0)
        out->cpu_us = cgroup_read_u64(g->path, "cpuacct.usage") / 1000;
    if ((g->controllers & CGROUP_PIDS) != 0)
        out->pids = (uint32_t)cgroup_read_u64(g->path, "pids.current");
}

static void let_go(const struct cgroup_group *g)
{
    if ((g->controllers & CGROUP_FREEZER) != 0)
        (void)cgroup_write(g->path, "freezer.state", "THAWED", NULL);
    if ((g->controllers & CGROUP_IO) != 0)
        cgroup_free_disks(g->path, IO_FILE, "0");
}

static const struct cgroup_file files[] = {
    {CGROUP_MEMORY, "memory.limit_in_bytes"},
    {CGROUP_MEMORY, "memory.memsw.limit_in_bytes"},
    {CGROUP_MEMORY, "memory.kmem.tcp.limit_in_bytes"},
    {CGROUP_MEMORY, "memory.oom_control"},
    {CGROUP_MEMORY, "cgroup.event_control"},
    {CGROUP_MEMORY, "memory.usage_in_bytes"},
    {CGROUP_MEMORY, "memory.max_usage_in_bytes"},
    {CGROUP_CPU, "cpu.cfs_quota_us"},
    {CGROUP_CPUACCT, "cpuacct.usage"},
    {CGROUP_PIDS, "pids.max"},
    {CGROUP_PIDS, "pids.current"},
    {0, NULL},
};

const struct cgroup_backend cgroup_v1_backend = {
    .files = files,
    .parent_prepare = parent_prepare,
    .limit = limit,
    .entry = "tasks",
    .oom_fd = oom_fd,
    .oom_happened = oom_happened,
    .stats = stats,
    .kill = let_go,
};
