/* How an instance comes to be. Happy path: a blank is taken or made; the plan of its root is sent, and
 * behind it the agent's setup, which waits in the channel until the root is finished; the agent
 * answers, the node is told (instance_prepared). Any failure on the way kills
 * process 1, answers the node and forgets. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/imports.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/runner.h"
#include "sandbox/runner/state.h"

#define PREPARE_TIMEOUT_MS 5000
/* The agent, page tables and kernel objects that any instance needs beside its own program. */
#define MEMORY_OVERHEAD_BYTES (2u * 1024 * 1024)
/* Process 1. */
#define PIDS_OVERHEAD 1u
#define TCP_BYTES_MIN (2u * 1024 * 1024)
#define OPEN_FILES_MAX 16384u

/* What was asked for, or all that may be given. */
static uint64_t or_max(uint64_t asked, uint64_t max)
{
    return asked == 0 ? max : asked;
}

static int check_enforced(const struct runner *r, const Skerry__Runner__Prepare *p, struct err *e)
{
    static const struct {
        enum cgroup_limit limit;
        const char *name;
    } names[] = {{CGROUP_LIMIT_CPU, "cpus"},
                 {CGROUP_LIMIT_MEMORY, "memory"},
                 {CGROUP_LIMIT_PIDS, "pids"},
                 {CGROUP_LIMIT_IO, "io"}};
    const char *refusal = p->network != 0 ? net_egress_refusal(r->egress) : NULL;
    if (refusal != NULL)
        return err_set(e, ERR_UNSUPPORTED, "%s", refusal);
    const bool asked[] = {p->cpu_thousandths > 0, p->memory_bytes > 0, p->pids > 0,
                          p->io_bytes > 0};
    for (size_t n = 0; n < ARRAY_SIZE(names) && !p->allow_unenforced; n++)
        if (asked[n] && (r->cgroups.enforced & names[n].limit) == 0)
            return err_set(e, ERR_UNSUPPORTED,
                           "limit %s cannot be enforced here: %s; set sandbox.allow_unenforced to "
                           "run without",
                           names[n].name,
                           names[n].limit == CGROUP_LIMIT_IO
                               ? r->disks.lack
                               : "this machine gives us no control group for it");
    return 0;
}

/* A second, from each disk; 0: as many as they give. */
static uint64_t io_bytes(const struct instance *i)
{
    const struct runner *r = i->runner;
    uint64_t bytes = or_max(i->request->prepare->io_bytes, r->config.max.io_bytes);
    return bytes == BYTES_NONE || (r->cgroups.enforced & CGROUP_LIMIT_IO) == 0 ? 0 : bytes;
}

static int limits_set(struct instance *i, uint64_t disk_bytes, uint64_t inodes, struct err *e)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    const struct runner_config *c = &i->runner->config;
    uint64_t memory = or_max(p->memory_bytes, c->max.memory_bytes);
    /* What is written to a tmpfs is charged to its writer as memory. */
    const struct cgroup_limits limits = {
        .cpu_thousandths = p->cpu_thousandths,
        .memory_bytes = memory + disk_bytes + root_inode_bytes(inodes) + MEMORY_OVERHEAD_BYTES,
        .tcp_bytes = memory / 8 > TCP_BYTES_MIN ? memory / 8 : TCP_BYTES_MIN,
        .pids = (uint32_t)or_max(p->pids, c->max.pids) + PIDS_OVERHEAD,
        .io_bytes = io_bytes(i),
        .disks = &i->runner->disks,
    };
    return cgroup_limit(&i->place->cgroup, &limits, e);
}

/* --- folder, logs, pipes ----------------------------------------------------------------------- */

/* From here on a runner that comes back takes the folder for that of this instance. */
static int folder_name(struct instance *i, struct err *e)
{
    int parent = i->runner->instances_fd;
    if (renameat(parent, i->place->cgroup.name, parent, i->id) < 0)
        return err_sys(e, errno == ENOTEMPTY || errno == EEXIST ? ERR_EXISTS : ERR_IO, errno,
                       "name folder of %s", i->id);
    return 0;
}

static int log_make(struct instance *i, const char *suffix, struct err *e)
{
    char name[INSTANCE_ID_LENGTH_MAX + 8];
    text_format(name, sizeof name, "%s%s", i->id, suffix);
    CLEANUP_FD int fd =
        openat(i->runner->logs_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (fd < 0 || fchown(fd, 0, i->runner->config.node_gid) < 0)
        return err_sys(e, ERR_IO, errno, "make log %s", name);
    return steal_fd(&fd);
}

int instance_pipes(const struct instance *i, uint32_t uid, uint32_t gid, bool no_stdin, int *code,
                   int *node, size_t *count, struct err *e)
{
    *count = 0;
    for (int n = no_stdin ? 1 : 0; n < 3; n++) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) < 0)
            goto failed;
        int code_end = ends[n == 0 ? 0 : 1], node_end = ends[n == 0 ? 1 : 0];
        code[*count] = code_end;
        node[*count] = node_end;
        ++*count;
        /* Its user must be able to open /dev/stdout anew. */
        if (fchown(code_end, id_range_outside(i->place->ids, uid),
                   id_range_outside(i->place->ids, gid)) < 0 ||
            fcntl(node_end, F_SETFL, O_NONBLOCK) < 0)
            goto failed;
    }
    return 0;
failed:
    err_sys(e, ERR_IO, errno, "make pipes");
    while (*count > 0) {
        memory_close(&code[--*count]);
        memory_close(&node[*count]);
    }
    return -(int)e->code;
}

/* --- root -------------------------------------------------------------------------------------- */

static int layer_use(struct instance *i, const char *digest, enum image_kind kind, int *out_fd,
                     struct err *e)
{
    int rc = imports_layer_use(i->runner->imports, digest, kind, out_fd, e);
    if (rc == 0)
        text_copy(i->layers[i->layer_count++], sizeof i->layers[0], digest);
    return rc;
}

struct layers {
    int image, source;
};

static int layers_open(struct instance *i, struct root_options *options, struct layers *l,
                       struct err *e)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    int rc = 0;
    if (strcmp(p->image, "host") != 0)
        rc = layer_use(i, p->image, IMAGE_KIND_IMAGE, &l->image, e);
    if (rc == 0 && p->source[0] != '\0')
        rc = layer_use(i, p->source, IMAGE_KIND_SOURCE, &l->source, e);
    if (rc == 0 && i->layer_count > 0)
        rc = blanks_layer_map(i->runner->blanks, i->place, e);
    options->layer_map = i->place->layer_map;
    options->image_fd = l->image;
    options->source_fd = l->source;
    return rc;
}

/* `group`: a further control group to enter; -1: none. */
static int plan_tell(struct instance *i, const struct root_options *options, int group,
                     struct err *e)
{
    struct bind_plan plan;
    int descriptors[BIND_PLAN_DESCRIPTORS_MAX] = {i->folder.listener};
    size_t count = 0;
    int rc = root_plan_make(i->runner->root_base, options, &plan, descriptors + 1, &count, e);
    if (rc < 0)
        return rc;
    plan.group = group >= 0;
    descriptors[1 + count] = group;
    rc = blank_bind(&i->blank, &plan, descriptors, 1 + count + (plan.group ? 1 : 0), e);
    while (count > 0)
        memory_close(&descriptors[count--]);
    return rc;
}

/* Its network has loopback only until here; nothing of it runs before that. */
static int egress_make(struct instance *i, struct err *e)
{
    struct runner *r = i->runner;
    const Skerry__Runner__Prepare *p = i->request->prepare;
    if (p->network == 0)
        return 0;
    i->egress = calloc(1, sizeof *i->egress);
    if (i->egress == NULL)
        return err_set(e, ERR_NO_MEMORY, "egress");
    int rc = net_policy_parse(i->egress, net_egress_site(r->egress), p->network_allow,
                              p->n_network_allow, p->network_deny, p->n_network_deny, e);
    if (rc < 0)
        return rc;
    i->egress->bandwidth_bytes = or_max(p->network_bandwidth, r->config.max.bandwidth_bytes);
    if (i->egress->bandwidth_bytes == BYTES_NONE)
        i->egress->bandwidth_bytes = 0;
    rc = net_egress_attach(r->egress, i->network_fd, instance_place_number(i), i->egress, e);
    return rc == 0 ? net_names_add(r->names, i->id, i->network_fd, i->egress, &i->names, e) : rc;
}

static int root_tell(struct instance *i, uint64_t disk, struct err *e)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    struct root_options options = {.uid_base = i->place->ids.first,
                                   .disk_bytes = disk,
                                   .inodes = root_inodes(disk),
                                   .layer_map = -1,
                                   .uid = p->uid,
                                   .gid = p->gid,
                                   .read_only = p->read_only,
                                   .names = p->network != 0,
                                   .hostname = p->hostname[0] != '\0' ? p->hostname : "instance"};
    struct layers layers = {-1, -1};
    CLEANUP_FD int group = -1;
    int rc = layers_open(i, &options, &layers, e);
    if (rc == 0 && io_bytes(i) != 0)
        rc = cgroup_demand(&i->runner->cgroups, &i->place->cgroup, CGROUP_IO, &group, e);
    if (rc == 0)
        rc = plan_tell(i, &options, group, e);
    if (rc == 0)
        rc = folder_name(i, e); /* the blank works meanwhile */
    memory_close(&i->folder.listener);
    memory_close(&layers.image);
    memory_close(&layers.source);
    memory_close(&i->place->layer_map); /* its mounts hold it */
    return rc;
}

/* --- setup of the agent ------------------------------------------------------------------------ */

/* Only what is missing: PATH and HOME. */
struct defaults {
    char path[80];
    char home[16];
    size_t count;
};

static bool environment_has(const Skerry__Runner__Prepare *p, const char *name)
{
    size_t length = strlen(name);
    for (size_t n = 0; n < p->n_environment; n++)
        if (strncmp(p->environment[n], name, length) == 0 && p->environment[n][length] == '=')
            return true;
    return false;
}

static char **environment_make(const Skerry__Runner__Prepare *p, struct defaults *d, size_t *count)
{
    char **list = calloc(p->n_environment + 2, sizeof *list);
    if (list == NULL)
        return NULL;
    if (p->n_environment > 0)
        memcpy(list, p->environment, p->n_environment * sizeof *list);
    *count = p->n_environment;
    /* Of the host image: /usr/local is not there, and a shell's own default would name it. */
    text_copy(d->path, sizeof d->path,
              strcmp(p->image, "host") == 0
                  ? "PATH=/usr/bin:/usr/sbin:/bin:/sbin"
                  : "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    text_copy(d->home, sizeof d->home, p->uid == 0 ? "HOME=/root" : "HOME=/tmp");
    if (!environment_has(p, "PATH"))
        list[(*count)++] = d->path;
    if (!environment_has(p, "HOME"))
        list[(*count)++] = d->home;
    return list;
}

static void setup_fill(const struct instance *i, Skerry__Agent__Setup *s)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    const struct runner *r = i->runner;
    enum seccomp_profile profile;
    assert_always(seccomp_profile_find(p->profile, &profile)); /* request.c let it in */
    s->seccomp.data = r->filters[profile].program;
    s->seccomp.len = r->filters[profile].size;
    s->uid = p->uid;
    s->gid = p->gid;
    s->directory = (char *)(uintptr_t)(p->source[0] != '\0' ? "/app" : "/");
    s->port = p->port;
    s->ready = (uint32_t)p->ready;
    /* Nothing can be waited for. */
    if (p->ready == SKERRY__RUNNER__READY__READY_LISTEN && p->port == 0)
        s->ready = SKERRY__RUNNER__READY__READY_NONE;
    if (p->healthcheck != NULL) {
        s->health_test = p->healthcheck->test;
        s->n_health_test = p->healthcheck->n_test;
        s->health_interval_ms = p->healthcheck->interval_ms;
        s->health_timeout_ms = p->healthcheck->timeout_ms;
        s->health_retries = p->healthcheck->retries;
        s->health_start_period_ms = p->healthcheck->start_period_ms;
    }
    s->life_max_ms = p->life_max_ms;
    s->drain_ms = p->drain_ms;
    s->log_bytes_max = or_max(p->log_bytes_max, r->config.logs.bytes);
    s->runner_grace_ms = r->config.grace_ms;
    s->open_files_max = OPEN_FILES_MAX;
    if ((r->cgroups.enforced & CGROUP_LIMIT_PIDS) == 0)
        s->processes_max = (uint32_t)or_max(p->pids, r->config.max.pids);
}

static int setup_send(struct instance *i, struct err *e)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    struct defaults defaults;
    Skerry__Agent__Setup setup = SKERRY__AGENT__SETUP__INIT;
    setup_fill(i, &setup);
    CLEANUP_FREE char **environment = environment_make(p, &defaults, &setup.n_environment);
    if (environment == NULL)
        return err_set(e, ERR_NO_MEMORY, "environment");
    setup.environment = environment;
    /* With pipes the main command's output is the node's; nothing goes to a log. */
    int logs[2] = {-1, -1};
    if (!p->main_pipes) {
        logs[0] = log_make(i, ".log", e);
        logs[1] = logs[0] < 0 ? -1 : log_make(i, ".log.1", e);
        if (logs[1] < 0) {
            memory_close(&logs[0]);
            return -(int)e->code;
        }
    }
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SETUP;
    message.setup = &setup;
    struct waiting *w = waiting_new(NULL);
    int rc = w == NULL ? err_set(e, ERR_NO_MEMORY, "setup")
                       : instance_ask(i, &message, logs, p->main_pipes ? 0 : 2, w, e);
    memory_close(&logs[0]);
    memory_close(&logs[1]);
    return rc;
}

/* --- the whole --------------------------------------------------------------------------------- */

static void watchdog_cb(struct loop_timer *timer)
{
    struct instance *i = container_of(timer, struct instance, watchdog);
    struct err e;
    err_set(&e, ERR_TIMEOUT, "the sandbox was not ready within %d ms", PREPARE_TIMEOUT_MS);
    instance_prepare_failed(i, &e);
}

void instance_prepare_failed(struct instance *i, const struct err *error)
{
    if (i->asker.connection != 0) {
        log_warn("runner", "%s: prepare: %s", i->id, error->msg);
        server_answer(i->runner->server, &i->asker, error, NULL, NULL, 0);
        i->asker.connection = 0;
    }
    loop_timer_stop(i->runner->loop, &i->watchdog);
    loop_watch_stop(i->runner->loop, &i->channel_watch);
    instance_kill(i, END_START_FAILED);
}

void instance_prepared(struct instance *i)
{
    uint64_t *at = i->prepared_us, now = clock_monotonic_us();
    i->phase = INSTANCE_PREPARED;
    i->told = true;
    loop_timer_stop(i->runner->loop, &i->watchdog);
    Skerry__Runner__Prepared prepared = SKERRY__RUNNER__PREPARED__INIT;
    prepared.blank_us = at[1] - at[0];
    prepared.bind_us = at[2] - at[1];
    prepared.agent_us = now - at[2];
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_PREPARED;
    reply.prepared = &prepared;
    size_t count = i->node_descriptor_count;
    i->node_descriptor_count = 0;
    server_answer(i->runner->server, &i->asker, NULL, &reply, i->node_descriptors, count);
}

static int main_make(struct instance *i, struct err *e)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    if (p->main_pipes && !p->tty) {
        int rc = instance_pipes(i, p->uid, p->gid, p->no_stdin, i->code_descriptors,
                                i->node_descriptors, &i->code_descriptor_count, e);
        if (rc < 0)
            return rc;
        i->node_descriptor_count = i->code_descriptor_count;
    }
    return instance_hold_main(i, e);
}

/* What the agent does not wait for is made while it makes and holds main; nothing runs before the commit,
 * and that comes after all of this. */
static int rest_make(struct instance *i, uint64_t disk, struct err *e)
{
    int rc = main_make(i, e);
    if (rc == 0 && strcmp(i->request->prepare->image, "host") == 0)
        rc = root_store_limit(i->blank.store, disk, root_inodes(disk), e);
    memory_close(&i->blank.store);
    if (rc == 0)
        rc = limits_set(i, disk, root_inodes(disk), e);
    if (rc == 0)
        rc = instance_watch_memory(i, e);
    if (rc == 0)
        rc = egress_make(i, e);
    return rc == 0 ? state_write(i, e) : rc;
}

static int prepare(struct instance *i, struct err *e)
{
    struct runner *r = i->runner;
    const Skerry__Runner__Prepare *p = i->request->prepare;
    struct spare spare;
    int rc = check_enforced(r, p, e);
    if (rc == 0)
        rc = blanks_take(r->blanks, &spare, e);
    if (rc != 0)
        return rc;
    i->place = spare.place;
    i->network_fd = spare.network_fd;
    i->folder = spare.folder;
    i->blank = spare.blank;
    i->pid = spare.blank.pid;
    i->channel = spare.blank.channel;
    i->prepared_us[1] = clock_monotonic_us();
    rc = instance_watch(i, spare.blank.pidfd, true, e);
    if (rc < 0) {
        /* Nobody would hear of its end. */
        (void)kill(i->pid, SIGKILL);
        (void)waitpid(i->pid, NULL, 0);
        return rc;
    }
    rc = loop_watch_start(r->loop, &i->channel_watch, i->channel, EPOLLIN, instance_channel_cb, e);
    if (rc == 0)
        rc = loop_timer_start(r->loop, &i->watchdog, clock_boot_ms() + PREPARE_TIMEOUT_MS,
                              watchdog_cb, e);
    uint64_t disk = or_max(p->disk_bytes, r->config.max.disk_bytes);
    if (rc == 0)
        rc = root_tell(i, disk, e);
    if (rc == 0)
        rc = setup_send(i, e);
    if (rc == 0)
        rc = rest_make(i, disk, e);
    /* A process that is gone has said why: that is read with its end. */
    if (rc < 0 && e->sys == EPIPE)
        rc = 0;
    i->prepared_us[2] = clock_monotonic_us();
    return rc;
}

void instance_prepare(struct instances *all, Skerry__Runner__Request **request,
                      const struct asker *asker)
{
    uint64_t now = clock_monotonic_us();
    const Skerry__Runner__Prepare *p = (*request)->prepare;
    struct instance *i = instance_find(all, p->id);
    struct err e;
    int rc = 0;
    if (i != NULL)
        rc = err_set(&e, ERR_EXISTS, "instance %s is held already", p->id);
    if (rc == 0)
        rc = instance_new(all, p->id, &i, &e);
    if (rc < 0) {
        struct runner *r = instances_runner(all);
        server_answer(r->server, asker, &e, NULL, NULL, 0);
        return;
    }
    i->epoch = p->epoch;
    i->uid = p->uid;
    i->gid = p->gid;
    i->request = steal_pointer(request);
    i->asker = *asker;
    i->prepared_us[0] = now;
    if (prepare(i, &e) == 0)
        return;
    instance_prepare_failed(i, &e);
    /* With a process to wait for, its end frees the instance. */
    if (i->process.watch.fd < 0)
        instance_free(all, i);
}
