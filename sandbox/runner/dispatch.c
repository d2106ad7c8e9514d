#include "sandbox/runner/dispatch.h"

#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/imports.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/runner.h"

static const struct {
    enum cgroup_limit limit;
    const char *name;
} limit_names[] = {{CGROUP_LIMIT_CPU, "cpu"},
                   {CGROUP_LIMIT_MEMORY, "memory"},
                   {CGROUP_LIMIT_PIDS, "pids"},
                   {CGROUP_LIMIT_IO, "io"},
                   {CGROUP_LIMIT_TCP_MEMORY, "tcp_memory"}};

static void hello(struct runner *r, const Skerry__Runner__Hello *h, const struct asker *asker)
{
    struct err e;
    if (h->protocol != RUNNER_PROTOCOL) {
        err_set(&e, ERR_PROTOCOL, "protocol %u: this runner speaks %d", h->protocol,
                RUNNER_PROTOCOL);
        server_answer(r->server, asker, &e, NULL, NULL, 0);
        return;
    }
    char logs[128];
    char *unenforced[ARRAY_SIZE(limit_names)];
    Skerry__Runner__HelloReply hello = SKERRY__RUNNER__HELLO_REPLY__INIT;
    text_format(logs, sizeof logs, "%s/logs", r->config.directory);
    for (size_t n = 0; n < ARRAY_SIZE(limit_names); n++)
        if ((r->limits_wanted & ~r->cgroups.enforced & limit_names[n].limit) != 0)
            unenforced[hello.n_unenforced++] = (char *)(uintptr_t)limit_names[n].name;
    hello.unenforced = unenforced;
    hello.protocol = RUNNER_PROTOCOL;
    hello.version = (char *)(uintptr_t)SKERRY_VERSION;
    hello.profiles = r->config.profiles.items;
    hello.n_profiles = r->config.profiles.count;
    hello.egress_allowed = net_egress_refusal(r->egress) == NULL;
    char *warnings[2];
    const char *egress = net_egress_warning(r->egress);
    if (r->powers.note[0] != '\0')
        warnings[hello.n_warnings++] = r->powers.note;
    if (egress != NULL)
        warnings[hello.n_warnings++] = (char *)(uintptr_t)egress;
    hello.warnings = warnings;
    hello.cgroup = (char *)(uintptr_t)cgroup_host_kind(&r->cgroups);
    hello.memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    hello.cpus = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    hello.instances_max = (uint32_t)r->config.max.instances;
    hello.logs_directory = logs;
    hello.memory_bytes_max = r->config.max.memory_bytes;
    hello.disk_bytes_max = r->config.max.disk_bytes;
    hello.cpu_thousandths_max = (uint32_t)r->config.max.cpus_thousandths;
    hello.pids_max = (uint32_t)r->config.max.pids;
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_HELLO;
    reply.hello = &hello;
    server_answer(r->server, asker, NULL, &reply, NULL, 0);
}

static void forget(struct runner *r, struct instance *i, const struct asker *asker)
{
    struct err e;
    if (i->phase != INSTANCE_ENDED) {
        err_set(&e, ERR_CONFLICT, "instance %s has not ended", i->id);
        server_answer(r->server, asker, &e, NULL, NULL, 0);
        return;
    }
    instance_free(r->instances, i);
    server_answer(r->server, asker, NULL, NULL, NULL, 0);
}

/* The id of the instance that the verb is about; NULL: about none. */
static const char *instance_of(const Skerry__Runner__Request *q)
{
    switch (q->verb_case) {
    case SKERRY__RUNNER__REQUEST__VERB_COMMIT:
        return q->commit->id;
    case SKERRY__RUNNER__REQUEST__VERB_DISCARD:
        return q->discard->id;
    case SKERRY__RUNNER__REQUEST__VERB_EXEC:
        return q->exec->id;
    case SKERRY__RUNNER__REQUEST__VERB_SIGNAL:
        return q->signal->id;
    case SKERRY__RUNNER__REQUEST__VERB_STOP:
        return q->stop->id;
    case SKERRY__RUNNER__REQUEST__VERB_SOCKETS:
        return q->sockets->id;
    case SKERRY__RUNNER__REQUEST__VERB_STATS:
        return q->stats->id;
    case SKERRY__RUNNER__REQUEST__VERB_DEADLINE:
        return q->deadline->id;
    case SKERRY__RUNNER__REQUEST__VERB_RESIZE:
        return q->resize->id;
    case SKERRY__RUNNER__REQUEST__VERB_LIFE:
        return q->life->id;
    case SKERRY__RUNNER__REQUEST__VERB_FORGET:
        return q->forget->id;
    default:
        return NULL;
    }
}

static void dispatch_instance(struct runner *r, struct instance *i,
                              const Skerry__Runner__Request *q, const struct asker *asker)
{
    switch (q->verb_case) {
    case SKERRY__RUNNER__REQUEST__VERB_COMMIT:
        instance_commit(i, q->commit->epoch, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_DISCARD:
        instance_discard(i, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_EXEC:
        instance_exec(i, q->exec, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_SIGNAL:
        instance_signal(i, q->signal, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_STOP:
        instance_stop(i, q->stop, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_SOCKETS:
        instance_sockets(i, q->sockets, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_STATS:
        instance_stats(i, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_DEADLINE:
        instance_deadline(i, q->deadline, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_RESIZE:
        instance_resize(i, q->resize, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_LIFE:
        instance_life(i, q->life, asker);
        break;
    default:
        forget(r, i, asker);
    }
}

void dispatch_request(struct runner *r, Skerry__Runner__Request **request,
                      const struct asker *asker)
{
    const Skerry__Runner__Request *q = *request;
    const char *id = instance_of(q);
    if (id != NULL) {
        struct instance *i = instance_find(r->instances, id);
        struct err e;
        if (i != NULL) {
            dispatch_instance(r, i, q, asker);
            return;
        }
        err_set(&e, ERR_NOT_FOUND, "instance %s is not held here", id);
        server_answer(r->server, asker, &e, NULL, NULL, 0);
        return;
    }
    switch (q->verb_case) {
    case SKERRY__RUNNER__REQUEST__VERB_HELLO:
        hello(r, q->hello, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_LIST:
        instances_list(r->instances, q->list_after, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_PREPARE:
        instance_prepare(r->instances, request, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM:
        imports_start(r->imports, q->import_stream, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_EXPORT_STREAM:
        imports_export(r->imports, q->export_stream, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_IMAGE_LIST:
        imports_list(r->imports, asker);
        break;
    case SKERRY__RUNNER__REQUEST__VERB_IMAGE_REMOVE:
        imports_remove(r->imports, q->image_remove->digest, asker);
        break;
    default:
        assert_always(false); /* request_parse let it pass */
    }
}
