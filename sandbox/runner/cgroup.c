#include "sandbox/runner/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <linux/magic.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/mount_lines.h"

/* --- small files ------------------------------------------------------------------------------ */

int cgroup_write(const char *folder, const char *file, const char *text, struct err *e)
{
    char path[CGROUP_PATH_SIZE + 64];
    if (!text_format(path, sizeof path, "%s/%s", folder, file))
        return err_set(e, ERR_LIMIT, "path of %s is too long", file);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    size_t length = strlen(text);
    if (write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s to %s", text, path);
    return 0;
}

int cgroup_write_u64(const char *folder, const char *file, uint64_t value, struct err *e)
{
    char text[32];
    text_format(text, sizeof text, "%" PRIu64, value);
    return cgroup_write(folder, file, text, e);
}

int cgroup_read(const char *folder, const char *file, char *out, size_t size)
{
    char path[CGROUP_PATH_SIZE + 64];
    if (!text_format(path, sizeof path, "%s/%s", folder, file))
        return -1;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, out, size - 1);
    if (n < 0)
        return -1;
    out[n] = '\0';
    return 0;
}

uint64_t cgroup_read_u64(const char *folder, const char *file)
{
    char text[64];
    return cgroup_read(folder, file, text, sizeof text) < 0 ? 0 : strtoull(text, NULL, 10);
}

uint64_t cgroup_read_key(const char *folder, const char *file, const char *key)
{
    char text[2048];
    if (cgroup_read(folder, file, text, sizeof text) < 0)
        return 0;
    size_t length = strlen(key);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
        if (strncmp(line, key, length) == 0 && line[length] == ' ')
            return strtoull(line + length + 1, NULL, 10);
    return 0;
}

int cgroup_write_disks(const char *folder, const char *file, const struct disks *disks,
                       const char *before, uint64_t value, struct err *e)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < disks->count; i++) {
        char text[64];
        text_format(text, sizeof text, "%u:%u %s%" PRIu64, disks->list[i].major,
                    disks->list[i].minor, before, value);
        rc = cgroup_write(folder, file, text, e);
    }
    return rc;
}

void cgroup_free_disks(const char *folder, const char *file, const char *text)
{
    char limits[1024], *rest = NULL;
    if (cgroup_read(folder, file, limits, sizeof limits) < 0)
        return;
    for (char *line = strtok_r(limits, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        char freed[64];
        if (text_format(freed, sizeof freed, "%.*s %s", (int)strcspn(line, " "), line, text))
            (void)cgroup_write(folder, file, freed, NULL);
    }
}

/* --- what the machine has --------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum cgroup_controller controller;
} controllers[] = {
    {"cpu", CGROUP_CPU},   {"cpuacct", CGROUP_CPUACCT}, {"memory", CGROUP_MEMORY},
    {"pids", CGROUP_PIDS}, {"freezer", CGROUP_FREEZER}, {"io", CGROUP_IO},
    {"blkio", CGROUP_IO},
};

/* `list` is separated by `separator`. */
static unsigned controllers_of(const char *list, char separator)
{
    unsigned found = 0;
    for (const char *p = list; *p != '\0';) {
        size_t length = 0;
        while (p[length] != '\0' && p[length] != separator && p[length] != '\n')
            length++;
        for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
            if (strlen(controllers[i].name) == length &&
                strncmp(controllers[i].name, p, length) == 0)
                found |= controllers[i].controller;
        p += length;
        while (*p == separator || *p == '\n')
            p++;
    }
    return found;
}

/* Our own position in the hierarchy with these controllers (0: v2), as /proc/self/cgroup says. */
static bool own_position(unsigned wanted, char *out, size_t size)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL)
        return false;
    char line[1024];
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *path = names == NULL ? NULL : strchr(names + 1, ':');
        if (path == NULL)
            continue;
        *path++ = '\0';
        names++;
        bool v2 = names[0] == '\0' && line[0] == '0';
        if (wanted == 0 ? v2 : (controllers_of(names, ',') & wanted) != 0)
            found = text_copy(out, size, path);
    }
    fclose(file);
    return found;
}

/* The folder of our own position below a mount that may show a part of the hierarchy only. */
static bool own_folder(const struct mount_line *m, unsigned wanted, char *out, size_t size)
{
    char position[CGROUP_PATH_SIZE];
    if (!own_position(wanted, position, sizeof position))
        return false;
    const char *below = position;
    size_t root = strlen(m->root);
    if (strcmp(m->root, "/") != 0 && strncmp(position, m->root, root) == 0)
        below += root;
    if (strcmp(below, "/") == 0)
        below = "";
    return text_format(out, size, "%s%s", m->point, below) && access(out, F_OK) == 0;
}

static void tree_add(struct cgroup_host *host, const struct mount_line *m,
                     const struct cgroup_host_options *o)
{
    bool v2 = strcmp(m->type, "cgroup2") == 0;
    if (host->tree_count == CGROUP_TREES_MAX || (!v2 && strcmp(m->type, "cgroup") != 0))
        return;
    unsigned found = 0;
    char text[256];
    if (!v2)
        found = controllers_of(m->options, ',');
    else if (cgroup_read(m->point, "cgroup.controllers", text, sizeof text) == 0)
        found = controllers_of(text, ' ') & (CGROUP_CPU | CGROUP_MEMORY | CGROUP_PIDS | CGROUP_IO);
    for (size_t i = 0; i < host->tree_count; i++)
        found &= ~host->trees[i].controllers; /* mounted twice */
    if (!o->io)
        found &= ~(unsigned)CGROUP_IO;
    /* One of version 2 is entered by all or by none: not for what few ask for. */
    if (found == 0 || (v2 && found == CGROUP_IO))
        return;
    char own[CGROUP_PATH_SIZE];
    struct cgroup_tree *tree = &host->trees[host->tree_count];
    *tree = (struct cgroup_tree){.backend = v2 ? &cgroup_v2_backend : &cgroup_v1_backend,
                                 .controllers = found,
                                 .on_demand = !v2 && found == CGROUP_IO};
    const enum log_level level = o->loud ? LOG_LEVEL_WARN : LOG_LEVEL_DEBUG;
    struct err e;
    if (!own_folder(m, v2 ? 0 : found, own, sizeof own)) {
        log_line(level, "runner", "no place of our own below %s; its limits are not enforced",
                 m->point);
        return;
    }
    if (tree->backend->parent_prepare(tree, own, o->name, &e) < 0) {
        log_line(level, "runner", "limits below %s are not enforced: %s", own, e.msg);
        return;
    }
    host->tree_count++;
}

/* A kernel may have the controller without the limit. */
static bool has_file(const struct cgroup_tree *tree, const char *name)
{
    char path[CGROUP_PATH_SIZE + 64];
    return text_format(path, sizeof path, "%s/%s", tree->parent, name) && access(path, W_OK) == 0;
}

static unsigned limits_of(const struct cgroup_host *host)
{
    unsigned enforced = 0;
    for (size_t i = 0; i < host->tree_count; i++) {
        const struct cgroup_tree *tree = &host->trees[i];
        if ((tree->controllers & CGROUP_CPU) != 0)
            enforced |= CGROUP_LIMIT_CPU;
        if ((tree->controllers & CGROUP_PIDS) != 0)
            enforced |= CGROUP_LIMIT_PIDS;
        bool v2 = tree->backend == &cgroup_v2_backend;
        if ((tree->controllers & CGROUP_IO) != 0 &&
            has_file(tree, v2 ? "io.max" : "blkio.throttle.read_bps_device"))
            enforced |= CGROUP_LIMIT_IO;
        if ((tree->controllers & CGROUP_MEMORY) == 0)
            continue;
        enforced |= CGROUP_LIMIT_MEMORY;
        if (v2 || has_file(tree, "memory.kmem.tcp.limit_in_bytes"))
            enforced |= CGROUP_LIMIT_TCP_MEMORY;
    }
    return enforced;
}

int cgroup_host_open(struct cgroup_host *host, const struct cgroup_host_options *options,
                     struct err *e)
{
    memset(host, 0, sizeof *host);
    FILE *file = mount_lines_open(e);
    if (file == NULL)
        return -(int)e->code;
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    struct mount_line m;
    while (mount_lines_next(file, &line, &size, &m))
        tree_add(host, &m, options);
    fclose(file);
    host->enforced = limits_of(host);
    return 0;
}

const char *cgroup_host_kind(const struct cgroup_host *host)
{
    bool v1 = false, v2 = false;
    for (size_t i = 0; i < host->tree_count; i++) {
        v1 = v1 || host->trees[i].backend == &cgroup_v1_backend;
        v2 = v2 || host->trees[i].backend == &cgroup_v2_backend;
    }
    if (v1 && v2)
        return "hybrid";
    return v1 ? "v1" : v2 ? "v2" : "none";
}

/* --- one instance ----------------------------------------------------------------------------- */

static int group_name(const struct cgroup_tree *tree, struct cgroup *out, struct err *e)
{
    struct cgroup_group *group = &out->groups[out->group_count++];
    group->backend = tree->backend;
    group->controllers = tree->controllers;
    if (!text_format(group->path, sizeof group->path, "%s/%s", tree->parent, out->name))
        return err_set(e, ERR_LIMIT, "path of group %s is too long", out->name);
    return 0;
}

int cgroup_name(const struct cgroup_host *host, struct cgroup *out, const char *name, struct err *e)
{
    out->group_count = 0;
    if (!text_copy(out->name, sizeof out->name, name))
        return err_set(e, ERR_LIMIT, "name of group %s is too long", name);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < host->tree_count; i++)
        if (!host->trees[i].on_demand)
            rc = group_name(&host->trees[i], out, e);
    return rc;
}

int cgroup_make(const struct cgroup *cgroup, struct err *e)
{
    for (size_t i = 0; i < cgroup->group_count; i++) {
        if (mkdir(cgroup->groups[i].path, 0755) == 0)
            continue;
        int rc = err_sys(e, ERR_IO, errno, "make group %s", cgroup->groups[i].path);
        while (i > 0)
            (void)rmdir(cgroup->groups[--i].path);
        return rc;
    }
    return 0;
}

void cgroup_touch(const struct cgroup *cgroup)
{
    for (size_t i = 0; i < cgroup->group_count; i++) {
        const struct cgroup_group *group = &cgroup->groups[i];
        char path[CGROUP_PATH_SIZE + 64];
        for (const struct cgroup_file *f = group->backend->files; f->name != NULL; f++)
            if ((group->controllers & f->controllers) != 0 &&
                text_format(path, sizeof path, "%s/%s", group->path, f->name))
                (void)access(path, F_OK);
    }
}

static int entry_open(const struct cgroup_group *group, struct err *e)
{
    char path[CGROUP_PATH_SIZE + 16];
    text_format(path, sizeof path, "%s/%s", group->path, group->backend->entry);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 ? err_sys(e, ERR_IO, errno, "open %s", path) : fd;
}

int cgroup_demand(const struct cgroup_host *host, struct cgroup *cgroup,
                  enum cgroup_controller controller, int *out_entry, struct err *e)
{
    *out_entry = -1;
    const struct cgroup_tree *tree = host->trees;
    while (tree < host->trees + host->tree_count &&
           (!tree->on_demand || (tree->controllers & controller) == 0))
        tree++;
    if (tree == host->trees + host->tree_count)
        return 0;
    int rc = group_name(tree, cgroup, e);
    const struct cgroup_group *group = &cgroup->groups[cgroup->group_count - 1];
    if (rc == 0 && mkdir(group->path, 0755) < 0)
        rc = err_sys(e, ERR_IO, errno, "make group %s", group->path);
    if (rc == 0)
        *out_entry = entry_open(group, e);
    return rc == 0 && *out_entry < 0 ? *out_entry : rc;
}

int cgroup_limit(const struct cgroup *cgroup, const struct cgroup_limits *limits, struct err *e)
{
    for (size_t i = 0; i < cgroup->group_count; i++) {
        int rc = cgroup->groups[i].backend->limit(&cgroup->groups[i], limits, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int cgroup_entries_open(const struct cgroup *cgroup, int *out, size_t *out_count, struct err *e)
{
    size_t count = 0;
    for (size_t i = 0; i < cgroup->group_count; i++) {
        const struct cgroup_group *group = &cgroup->groups[i];
        if (group->backend->entry == NULL)
            continue;
        int fd = entry_open(group, e);
        if (fd < 0) {
            while (count > 0)
                memory_close(&out[--count]);
            return fd;
        }
        out[count++] = fd;
    }
    *out_count = count;
    return 0;
}

int cgroup_clone_fd(const struct cgroup *cgroup)
{
    for (size_t i = 0; i < cgroup->group_count; i++)
        if (cgroup->groups[i].backend->entry == NULL)
            return open(cgroup->groups[i].path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return -1;
}

static const struct cgroup_group *group_with(const struct cgroup *cgroup, unsigned controller)
{
    for (size_t i = 0; i < cgroup->group_count; i++)
        if ((cgroup->groups[i].controllers & controller) != 0)
            return &cgroup->groups[i];
    return NULL;
}

int cgroup_oom_fd(const struct cgroup *cgroup)
{
    const struct cgroup_group *group = group_with(cgroup, CGROUP_MEMORY);
    return group == NULL ? -1 : group->backend->oom_fd(group);
}

bool cgroup_oom_happened(const struct cgroup *cgroup)
{
    const struct cgroup_group *group = group_with(cgroup, CGROUP_MEMORY);
    return group != NULL && group->backend->oom_happened(group);
}

void cgroup_stats_read(const struct cgroup *cgroup, struct cgroup_stats *out)
{
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < cgroup->group_count; i++)
        cgroup->groups[i].backend->stats(&cgroup->groups[i], out);
}

void cgroup_kill(const struct cgroup *cgroup)
{
    for (size_t i = 0; i < cgroup->group_count; i++)
        cgroup->groups[i].backend->kill(&cgroup->groups[i]);
}

/* Whoever is still in a group gets SIGKILL. True when nobody was there. */
static bool kill_members(const struct cgroup_group *group)
{
    char text[8192];
    if (cgroup_read(group->path, "cgroup.procs", text, sizeof text) < 0)
        return true;
    bool empty = true;
    for (char *p = text; *p != '\0';) {
        long pid = strtol(p, &p, 10);
        while (*p == '\n')
            p++;
        /* 0 is a process of a pid namespace that we cannot see. */
        if (pid > 1)
            (void)kill((pid_t)pid, SIGKILL);
        empty = false;
    }
    return empty;
}

int cgroup_remove(const struct cgroup *cgroup, unsigned wait_ms, struct err *e)
{
    uint64_t deadline = clock_monotonic_ms() + wait_ms;
    for (size_t i = 0; i < cgroup->group_count; i++) {
        const struct cgroup_group *group = &cgroup->groups[i];
        while (rmdir(group->path) < 0 && errno != ENOENT) {
            if (errno != EBUSY || clock_monotonic_ms() > deadline)
                return err_sys(e, ERR_IO, errno, "remove group %s", group->path);
            group->backend->kill(group);
            (void)kill_members(group);
            nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        }
    }
    return 0;
}

bool cgroup_group_restore(struct cgroup_group *group, const char *path, unsigned which, bool v2)
{
    *group = (struct cgroup_group){.backend = v2 ? &cgroup_v2_backend : &cgroup_v1_backend,
                                   .controllers = which};
    struct statfs st;
    return text_copy(group->path, sizeof group->path, path) && statfs(path, &st) == 0 &&
           st.f_type == (v2 ? CGROUP2_SUPER_MAGIC : CGROUP_SUPER_MAGIC);
}

bool cgroup_group_is_v2(const struct cgroup_group *group)
{
    return group->backend == &cgroup_v2_backend;
}
