#include "sandbox/runner/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/adopt.h"
#include "sandbox/runner/blanks.h"
#include "sandbox/runner/imports.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/net_link.h"
#include "sandbox/runner/reaper.h"
#include "sandbox/runner/seccomp_agent.h"
#include "sandbox/runner/server.h"
#include "sandbox/runner/state.h"
#include "sandbox/shared/ids.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u /* from Linux 6.3 */
#endif

/* Three for each instance, and a few of our own. */
#define GROUPS_END_MS 1000u /* of groups whose processes were killed */
#define GROUPS_LEFT_SECONDS                                                                        \
    60u /* a runner that starts makes its groups a moment after it is known */
#define TIMERS_MAX (3 * RUNNER_INSTANCES_MAX + 64)

/* --- pieces ------------------------------------------------------------------------------------ */

static int text_replace(char **text, const char *with, struct err *e)
{
    if (with == NULL)
        return 0;
    char *copy = strdup(with);
    if (copy == NULL)
        return err_set(e, ERR_NO_MEMORY, "configuration");
    free(*text);
    *text = copy;
    return 0;
}

static int configure(struct runner *r, const struct runner_options *o, struct err *e)
{
    struct runner_config *c = &r->config;
    int rc = runner_config_load(c, o->config_path, e);
    if (rc == 0)
        rc = text_replace(&c->directory, o->directory, e);
    if (rc == 0)
        rc = text_replace(&c->socket, o->socket, e);
    if (rc < 0)
        return rc;
    if (o->node_uid >= 0)
        c->node_uid = (uid_t)o->node_uid;
    if (o->node_gid >= 0)
        c->node_gid = (gid_t)o->node_gid;
    if (o->blanks >= 0)
        c->blanks = (uint64_t)o->blanks;
    if (o->uid_base > 0)
        c->uid_base = (uint64_t)o->uid_base;
    if (o->instances_max > 0)
        c->max.instances = (uint64_t)o->instances_max;
    powers_ask(&r->powers, o->lack);
    /* Whoever serves the node is the same user, and the first one inside. */
    if (!r->powers.own_ids)
        c->node_uid = c->node_gid = 0;
    if (r->powers.own_ids && !runner_config_range_valid(c))
        return err_set(e, ERR_INVALID,
                       "%llu instances from uid %llu on: the ids must lie in %u..%u",
                       (unsigned long long)c->max.instances, (unsigned long long)c->uid_base,
                       RUNNER_UID_BASE, RUNNER_UID_END - 1);
    r->bounds = (struct request_bounds){.profiles = (const char *const *)c->profiles.items,
                                        .profile_count = c->profiles.count,
                                        /* Why not is said by who knows. */
                                        .egress = c->egress || !r->powers.egress,
                                        .io = c->io,
                                        .cpu_thousandths = c->max.cpus_thousandths,
                                        .memory_bytes = c->max.memory_bytes,
                                        .pids = c->max.pids,
                                        .disk_bytes = c->max.disk_bytes,
                                        .bandwidth_bytes = c->max.bandwidth_bytes == BYTES_NONE
                                                               ? NET_BANDWIDTH_MAX
                                                               : c->max.bandwidth_bytes,
                                        .io_bytes = c->max.io_bytes, /* none: UINT64_MAX */
                                        .log_bytes = c->logs.bytes};
    return 0;
}

/* Makes the folders on the way to `path` too. */
static int folders_make(const char *path, mode_t mode, struct err *e)
{
    char part[128];
    if (!text_copy(part, sizeof part, path))
        return err_set(e, ERR_INVALID, "%s is too long", path);
    for (char *slash = strchr(part + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make folder %s", part);
        *slash = '/';
    }
    if (mkdir(part, mode) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make folder %s", part);
    return 0;
}

static int folder_open(struct runner *r, const char *name, mode_t mode, gid_t group, int *out,
                       struct err *e)
{
    if (mkdirat(r->directory_fd, name, mode) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s/%s", r->config.directory, name);
    int fd = openat(r->directory_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s/%s", r->config.directory, name);
    *out = fd;
    if (fchown(fd, 0, group) < 0 || fchmod(fd, mode) < 0)
        return err_sys(e, ERR_IO, errno, "set mode of %s/%s", r->config.directory, name);
    return 0;
}

/* The node makes its own sockets beside ours, but cannot remove ours. */
static int socket_folder_make(const struct runner *r, struct err *e)
{
    char folder[128];
    text_copy(folder, sizeof folder, r->config.socket);
    *strrchr(folder, '/') = '\0';
    if (folder[0] == '\0' || access(folder, F_OK) == 0)
        return 0;
    int rc = folders_make(folder, 0755, e);
    if (rc == 0 && (chown(folder, 0, r->config.node_gid) < 0 || chmod(folder, 01775) < 0))
        rc = err_sys(e, ERR_IO, errno, "set mode of %s", folder);
    return rc;
}

/* The lock is this process's alone: a child never holds it. */
static int lock(struct runner *r, struct err *e)
{
    r->lock_fd = openat(r->directory_fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (r->lock_fd < 0)
        return err_sys(e, ERR_IO, errno, "open the lock in %s", r->config.directory);
    int sys = lock_process(r->lock_fd);
    if (sys == EAGAIN)
        return err_set(e, ERR_CONFLICT, "another runner uses %s", r->config.directory);
    return sys == 0 ? 0 : err_sys(e, ERR_IO, sys, "lock %s", r->config.directory);
}

/* Whoever could write there could tell us what to adopt, or what to show to instances. */
static int own_folder_open(const char *path, mode_t mode, int *out, struct err *e)
{
    struct stat st;
    int rc = folders_make(path, mode, e);
    if (rc < 0)
        return rc;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(e, ERR_IO, errno, "open %s", path);
    if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return err_set(
            e, ERR_DENIED,
            "%s must belong to root, or to the user that the runner was started by, and be "
            "writable by nobody else",
            path);
    *out = steal_fd(&fd);
    return 0;
}

static int instances_folder_open(struct runner *r, struct err *e)
{
    return r->config.instances[0] == '\0'
               ? folder_open(r, "instances", 0700, 0, &r->instances_fd, e)
               : own_folder_open(r->config.instances, 0700, &r->instances_fd, e);
}

static int folders_open(struct runner *r, struct err *e)
{
    int rc = own_folder_open(r->config.directory, 0711, &r->directory_fd, e);
    if (rc < 0)
        return rc;
    int mounts = -1;
    rc = lock(r, e);
    if (rc == 0)
        rc = instances_folder_open(r, e);
    if (rc == 0)
        rc = folder_open(r, "logs", 0750, r->config.node_gid, &r->logs_fd, e);
    if (rc == 0)
        rc = folder_open(r, "mounts", 0700, 0, &mounts, e);
    memory_close(&mounts);
    return rc == 0 ? socket_folder_make(r, e) : rc;
}

/* Sealed, so that no instance can change what others execute; of mode 0111, so that none can read
 * or trace it. */
static int agent_load(struct runner *r, const struct runner_options *o, struct err *e)
{
    r->agent_fd = memfd_create("skerry-agent", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (r->agent_fd < 0 && errno == EINVAL)
        r->agent_fd = memfd_create("skerry-agent", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (r->agent_fd < 0)
        return err_sys(e, ERR_IO, errno, "make memfd");
    size_t written = 0;
    while (written < o->agent_size) {
        ssize_t n = write(r->agent_fd, o->agent + written, o->agent_size - written);
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "write the agent");
        written += (size_t)n;
    }
    if (fchmod(r->agent_fd, 0111) < 0 ||
        fcntl(r->agent_fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) <
            0)
        return err_sys(e, ERR_IO, errno, "seal the agent");
    return 0;
}

static int filters_compile(struct runner *r, struct err *e)
{
    int rc = 0;
    for (size_t n = 0; rc == 0 && n < ARRAY_SIZE(r->filters); n++) {
        rc = seccomp_filter_compile(&r->filters[n], (enum seccomp_profile)n, 0, e);
        if (rc == 0 && !r->powers.agent_id)
            rc = seccomp_agent_guard(&r->filters[n], e);
    }
    return rc;
}

/* An agent limits core files to one byte, which stands for "nowhere, no pipe either". A hard limit of
 * nothing at all cannot be raised by it, and keeps no handler of core_pattern away. */
static void core_limit_raise(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_CORE, &limit) < 0 || limit.rlim_max >= 1)
        return;
    limit = (struct rlimit){.rlim_cur = 1, .rlim_max = 1};
    if (setrlimit(RLIMIT_CORE, &limit) < 0)
        log_warn("runner", "the limit of core files is 0 and may not be raised to 1: if "
                           "kernel.core_pattern is a pipe, code that crashes starts its program");
}

/* What cannot be limited is no limit of these groups. */
static void disks_open(struct runner *r)
{
    disks_find(&r->disks, r->config.directory);
    if ((r->cgroups.enforced & CGROUP_LIMIT_IO) == 0)
        text_copy(r->disks.lack, sizeof r->disks.lack, "no control group of this machine has it");
    else if (r->disks.count == 0)
        r->cgroups.enforced &= ~(unsigned)CGROUP_LIMIT_IO;
    if (r->disks.lack[0] != '\0')
        log_warn("runner", "what instances read from disks is not limited: %s", r->disks.lack);
}

/* Two runners on one machine never share a group. */
static int groups_open(struct runner *r, struct err *e)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *p = r->config.directory; *p != '\0'; p++)
        hash = (hash ^ (uint8_t)*p) * 16777619u;
    char name[64];
    text_format(name, sizeof name, "%s-%08x", r->config.cgroup, hash);
    bool io = r->config.io || r->config.max.io_bytes != BYTES_NONE;
    const struct cgroup_host_options options = {
        .name = name, .io = io, .loud = r->powers.every_group};
    int rc = cgroup_host_open(&r->cgroups, &options, e);
    if (rc < 0)
        return rc;
    log_info("runner", "control groups: %s", cgroup_host_kind(&r->cgroups));
    if (io)
        disks_open(r);
    if (r->powers.own_ids && ids_alone(r->ids_fd))
        cgroup_host_sweep(&r->cgroups, GROUPS_LEFT_SECONDS);
    const unsigned all =
        CGROUP_LIMIT_CPU | CGROUP_LIMIT_MEMORY | CGROUP_LIMIT_PIDS | CGROUP_LIMIT_TCP_MEMORY;
    r->limits_wanted = all | (io ? CGROUP_LIMIT_IO : 0);
    powers_note_limits(&r->powers, (r->cgroups.enforced & all) != all);
    if (r->powers.note[0] != '\0')
        log_warn("runner", "%s", r->powers.note);
    else if ((r->cgroups.enforced & all) != all)
        log_warn("runner", "not every limit can be enforced on this machine (%#x of %#x)",
                 r->cgroups.enforced, all);
    return 0;
}

/* --- life -------------------------------------------------------------------------------------- */

struct signals {
    struct loop_watch watch;
    struct runner *runner;
};

static void signal_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct signals *s = container_of(watch, struct signals, watch);
    struct signalfd_siginfo info;
    if (read(watch->fd, &info, sizeof info) != (ssize_t)sizeof info)
        return;
    log_info("runner", "signal %u: ending; instances go on", info.ssi_signo);
    loop_stop(s->runner->loop);
}

static int signals_open(struct signals *s, int *out_fd, struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return err_sys(e, ERR_IO, errno, "block signals");
    *out_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (*out_fd < 0)
        return err_sys(e, ERR_IO, errno, "signalfd");
    return loop_watch_start(s->runner->loop, &s->watch, *out_fd, EPOLLIN, signal_cb, e);
}

static int open_all(struct runner *r, const struct runner_options *o, struct err *e)
{
    int rc = configure(r, o, e);
    if (rc == 0)
        rc = folders_open(r, e);
    if (rc == 0 && r->powers.own_ids)
        rc = ids_claim(r->config.uid_base, r->config.max.instances * RUNNER_UIDS_PER_INSTANCE,
                       &r->ids_fd, e);
    if (rc == 0)
        rc = state_boot_id(r->boot, e);
    if (rc == 0)
        rc = agent_load(r, o, e);
    r->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (rc == 0 && r->null_fd < 0)
        rc = err_sys(e, ERR_IO, errno, "open /dev/null");
    if (rc == 0)
        rc = filters_compile(r, e);
    if (rc == 0)
        rc = network_open(&r->network, e);
    if (rc == 0)
        rc = net_egress_open(&r->egress, r->network, &r->config, r->powers.egress, e);
    if (rc == 0)
        rc = groups_open(r, e);
    if (rc == 0) {
        char mounts[128];
        text_format(mounts, sizeof mounts, "%s/mounts", r->config.directory);
        rc = root_base_open(&r->root_base, mounts, &r->powers, e);
        if (rc == 0 && o->assume_old)
            root_base_assume_old(r->root_base);
    }
    if (rc == 0)
        rc = loop_open(&r->loop, TIMERS_MAX, e);
    if (rc == 0)
        rc = net_names_open(&r->names, r->loop, r->network, r->egress, &r->config.sandbox.resolvers,
                            e);
    if (rc == 0)
        rc = reaper_open(&r->reaper, r, e);
    if (rc == 0)
        rc = blanks_open(&r->blanks, r, e);
    if (rc == 0)
        rc = imports_open(&r->imports, r, e);
    if (rc == 0)
        rc = instances_open(&r->instances, r, e);
    return rc;
}

static void close_all(struct runner *r)
{
    size_t held = r->instances != NULL ? instances_held_count(r->instances) : 0;
    bool egress_in_use = r->instances != NULL && instances_use_egress(r->instances);
    if (r->loop != NULL)
        loop_timer_stop(r->loop, &r->egress_guard);
    server_close(r->server);
    instances_close(r->instances);
    imports_close(r->imports);
    reaper_close(r->reaper);
    blanks_close(r->blanks);
    adopt_free(r->adoption);
    net_names_close(r->names);
    cgroup_host_close(&r->cgroups, held > 0 ? 0 : GROUPS_END_MS);
    loop_close(r->loop);
    root_base_close(r->root_base);
    net_egress_close(r->egress, egress_in_use);
    network_close(r->network);
    for (size_t n = 0; n < ARRAY_SIZE(r->filters); n++)
        seccomp_filter_free(&r->filters[n]);
    int *descriptors[] = {&r->agent_fd, &r->null_fd, &r->instances_fd, &r->logs_fd,
                          &r->lock_fd,  &r->ids_fd,  &r->ready_fd,     &r->directory_fd};
    for (size_t n = 0; n < ARRAY_SIZE(descriptors); n++)
        memory_close(descriptors[n]);
    runner_config_free(&r->config);
}

/* For as long as the runner lives, if instances may have a way out at all. */
static void egress_guard_cb(struct loop_timer *timer)
{
    struct runner *r = container_of(timer, struct runner, egress_guard);
    struct err e;
    if (instances_use_egress(r->instances)) {
        net_egress_guard(r->egress);
        net_names_guard(r->names);
    }
    if (loop_timer_start(r->loop, timer, clock_boot_ms() + NET_GUARD_MS, egress_guard_cb, &e) < 0)
        log_error("runner", "egress: %s", e.msg);
}

void runner_serve(struct runner *r)
{
    struct err e;
    if (net_egress_refusal(r->egress) == NULL)
        egress_guard_cb(&r->egress_guard);
    if (server_open(&r->server, r, &e) < 0) {
        log_error("runner", "%s", e.msg);
        loop_stop(r->loop);
        return;
    }
    blanks_start(r->blanks);
    log_info("runner", "ready at %s", r->config.socket);
    if (r->ready_fd >= 0)
        (void)!write(r->ready_fd, "r", 1);
    memory_close(&r->ready_fd);
}

int runner_run(const struct runner_options *o, struct err *e)
{
    struct runner *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(e, ERR_NO_MEMORY, "runner");
    r->agent_fd = r->null_fd = r->directory_fd = r->instances_fd = r->logs_fd = r->lock_fd =
        r->ids_fd = -1;
    r->ready_fd = o->ready_fd;
    r->assume_old = o->assume_old;
    umask(022);
    memory_descriptors_raise(); /* an instance costs about five */
    core_limit_raise();
    struct signals signals = {.watch = LOOP_WATCH_STOPPED, .runner = r};
    CLEANUP_FD int signal_fd = -1;
    int rc = open_all(r, o, e);
    if (rc == 0)
        rc = signals_open(&signals, &signal_fd, e);
    if (rc == 0)
        rc = adopt_start(r, e);
    if (rc == 0)
        rc = loop_run(r->loop, e);
    if (rc == 0 && r->server == NULL)
        rc = err_set(e, ERR_IO, "the node could not be served");
    close_all(r);
    free(r);
    return rc;
}
