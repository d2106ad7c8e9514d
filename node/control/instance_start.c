/* The beginning of an instance: its place in the registry is asked for, and beside it its sandbox.
 * What follows is in instances.c. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/layers/layers.h"

static void reserve_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct instance *i = user;
    if (error != NULL) {
        i->problem = PROBLEM_NO_QUORUM;
        text_format(i->detail, sizeof i->detail, "%s could not be reserved: %s", instance_label(i),
                    error->msg);
    } else if (result->problem != PROBLEM_NONE) {
        i->problem = result->problem;
        i->existing = result->existing;
        text_copy(i->detail, sizeof i->detail, result->detail);
    } else {
        i->reserved = true;
        i->epoch = result->epoch;
        i->marks.reserved_us = instance_age_us(i);
        instance_note(i, "reserved", "epoch " REGISTRY_EPOCH_FORMAT " by %s",
                      REGISTRY_EPOCH_PARTS(i->epoch), i->node->config->name);
    }
    instance_unpend(i);
}

static int reserve(struct instance *i, struct err *e)
{
    struct registry_instance record = {
        .id = i->id,
        .version = i->version,
        .owner = i->node->id,
        .started_wall_ms = i->asked_wall_ms,
    };
    text_copy(record.workload, sizeof record.workload, i->name);
    text_copy(record.key, sizeof record.key, i->key);
    text_copy(record.asked_by, sizeof record.asked_by, i->asked_by);
    struct registry_command command = {
        .kind = REGISTRY_INSTANCE_RESERVE,
        .wall_ms = i->asked_wall_ms,
        .instance = &record,
    };
    if (registry_propose(i->node->registry, &command, reserve_cb, i, e) != 0)
        return -(int)(e == NULL ? ERR_INTERNAL : e->code);
    i->pending++;
    return 0;
}

static int prepare(struct instance *i, struct err *e);
static bool fetch(struct instance *i, const struct err *error);

static void prepare_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                       int *descriptors, size_t descriptor_count)
{
    struct instance *i = user;
    if (error != NULL && fetch(i, error)) {
        /* It is asked for again with all its layers. */
    } else if (error != NULL) {
        if (i->problem == PROBLEM_NONE) {
            i->problem = asks_problem_of(error);
            text_format(i->detail, sizeof i->detail, "%s could not start: %s", instance_label(i),
                        error->msg);
        }
        for (size_t k = 0; k < descriptor_count; k++)
            memory_close(&descriptors[k]);
    } else {
        i->prepared = true;
        i->marks.sandbox_us = instance_age_us(i);
        const Skerry__Runner__Prepared *p = reply->prepared;
        if (p != NULL) {
            i->blank_us = p->blank_us;
            i->bind_us = p->bind_us;
            i->agent_us = p->agent_us;
        }
        instance_note(i, "sandbox",
                      "image %s, profile %s (%.1f ms namespaces, %.1f ms root, "
                      "%.1f ms agent)",
                      i->spec->image, workload_profile_name(i->spec), (double)i->blank_us / 1e3,
                      (double)i->bind_us / 1e3, (double)i->agent_us / 1e3);
        /* With no stdin, or a pty, fewer descriptors come: they fill from the right place on. */
        size_t first = descriptor_count == 2 ? 1 : 0;
        for (size_t k = 0; k < descriptor_count; k++) {
            if (first + k < ARRAY_SIZE(i->descriptors))
                i->descriptors[first + k] = descriptors[k];
            else
                memory_close(&descriptors[k]);
        }
    }
    instance_unpend(i);
}

static uint32_t narrow_ms(uint64_t ms)
{
    return ms == DURATION_NONE ? 0 : control_narrow(ms);
}

#define ENVIRONMENT_OWN 7

/* The workload's variables and ours; ours come last and win. The texts live in `own`. */
static size_t fill_environment(const struct instance *i, char own[ENVIRONMENT_OWN][192], char **out)
{
    size_t count = 0;
    for (size_t k = 0; k < i->spec->environment.count; k++)
        out[count++] = i->spec->environment.items[k];
    size_t used = 0;
    text_format(own[used++], 192, "SKERRY_INSTANCE=%s", i->id.text);
    text_format(own[used++], 192, "SKERRY_WORKLOAD=%s", i->name);
    text_format(own[used++], 192, "SKERRY_NODE=%s", i->node->config->name);
    text_format(own[used++], 192, "SKERRY_KEY=%s", i->key);
    text_format(own[used++], 192, "SKERRY_TENANT=");
    if (i->spec->port != 0)
        text_format(own[used++], 192, "PORT=%u", (unsigned)i->spec->port);
    for (size_t k = 0; k < used; k++)
        out[count++] = own[k];
    return count;
}

uint64_t instance_life_bound_ms(const struct instance *i, uint64_t life_ms)
{
    uint64_t drain_ms = i->spec->timeouts.drain_ms;
    if (life_ms == DURATION_NONE || drain_ms == DURATION_NONE)
        return 0;
    return life_ms + drain_ms + CONTROL_LIFE_SLACK_MS;
}

static void fill_limits(const struct instance *i, Skerry__Runner__Prepare *p)
{
    p->cpu_thousandths = control_narrow(i->spec->limits.cpus_thousandths);
    p->memory_bytes = i->spec->limits.memory_bytes;
    p->pids = control_narrow(i->spec->limits.pids);
    p->disk_bytes = i->spec->limits.disk_bytes;
    p->io_bytes = i->spec->limits.io_bytes == BYTES_NONE ? 0 : i->spec->limits.io_bytes;
    p->life_max_ms = instance_life_bound_ms(i, i->spec->life.max_ms);
    p->drain_ms = narrow_ms(i->spec->timeouts.drain_ms);
    p->log_bytes_max = i->node->config->logs.bytes_max;
    p->allow_unenforced = i->node->config->sandbox.allow_unenforced;
}

/* The image that a workload names: "host", or the digest behind an imported name. */
static int resolve_image(struct node *n, const char *name, char out[80], struct err *e)
{
    if (strcmp(name, "host") == 0 || strncmp(name, "sha256:", 7) == 0) {
        text_copy(out, 80, name);
        return 0;
    }
    struct registry_root *root = registry_root(n->registry);
    const struct registry_image *image = registry_root_image(root, name, strlen(name));
    if (image != NULL)
        text_copy(out, 80, image->digest);
    registry_root_release(root);
    if (image == NULL)
        return err_set(e, ERR_NOT_FOUND,
                       "image %s is not imported; skerry image import %s DIR|FILE", name, name);
    return 0;
}

/* False when the workload has no health check. `shell` holds the words of CMD-SHELL. */
static bool fill_health(const struct workload *w, Skerry__Runner__Healthcheck *health,
                        char *shell[3])
{
    const struct field_list *test = &w->healthcheck.test;
    if (test->count == 0 || strcmp(test->items[0], "NONE") == 0)
        return false;
    if (strcmp(test->items[0], "CMD-SHELL") == 0 && test->count == 2) {
        shell[0] = (char *)"/bin/sh";
        shell[1] = (char *)"-c";
        shell[2] = test->items[1];
        health->n_test = 3;
        health->test = shell;
    } else {
        health->n_test = test->count - 1;
        health->test = test->items + 1;
    }
    health->interval_ms = narrow_ms(w->healthcheck.interval_ms);
    health->timeout_ms = narrow_ms(w->healthcheck.timeout_ms);
    health->retries = control_narrow(w->healthcheck.retries);
    health->start_period_ms = narrow_ms(w->healthcheck.start_period_ms);
    return true;
}

/* What the runner is asked for, as far as it can fail; before anything else is asked for. */
struct wanted {
    char image[80];
    uint32_t uid, gid;
};

static int wanted_find(const struct instance *i, struct wanted *out, struct err *e)
{
    if (resolve_image(i->node, i->spec->image, out->image, e) != 0)
        return -(int)ERR_NOT_FOUND;
    if (!workload_user_parse(i->spec->user, &out->uid, &out->gid))
        return err_set(e, ERR_INVALID, "user %s is not UID or UID:GID", i->spec->user);
    return sandbox_check(i->node->sandbox, e);
}

static int prepare(struct instance *i, struct err *e)
{
    const struct workload *w = i->spec;
    Skerry__Runner__Prepare p = SKERRY__RUNNER__PREPARE__INIT;
    struct wanted wanted;
    int rc = wanted_find(i, &wanted, e);
    if (rc != 0)
        return rc;
    CLEANUP_FREE char **environment =
        calloc(w->environment.count + ENVIRONMENT_OWN, sizeof *environment);
    if (environment == NULL)
        return err_set(e, ERR_NO_MEMORY, "start %s", instance_label(i));
    char own[ENVIRONMENT_OWN][192];
    p.id = i->id.text;
    p.image = wanted.image;
    p.source = w->source;
    p.n_command = w->command.count;
    p.command = w->command.items;
    p.n_environment = fill_environment(i, own, environment);
    p.environment = environment;
    p.uid = wanted.uid;
    p.gid = wanted.gid;
    p.read_only = w->read_only;
    p.profile = (char *)(uintptr_t)workload_profile_name(w);
    p.network = (uint32_t)w->network.mode;
    p.n_network_allow = w->network.allow.count;
    p.network_allow = w->network.allow.items;
    p.n_network_deny = w->network.deny.count;
    p.network_deny = w->network.deny.items;
    p.network_bandwidth = w->network.bandwidth_bytes == BYTES_NONE ? 0 : w->network.bandwidth_bytes;
    fill_limits(i, &p);
    bool command = w->kind == WORKLOAD_COMMAND;
    p.port = control_narrow(w->port);
    p.ready = command                         ? SKERRY__RUNNER__READY__READY_NONE
              : w->ready == READY_LISTEN      ? SKERRY__RUNNER__READY__READY_LISTEN
              : w->ready == READY_HEALTHCHECK ? SKERRY__RUNNER__READY__READY_HEALTHCHECK
                                              : SKERRY__RUNNER__READY__READY_NONE;
    p.main_pipes = command;
    p.tty = i->tty;
    p.no_stdin = i->no_stdin;
    p.rows = i->terminal_rows;
    p.columns = i->terminal_columns;
    p.hostname = i->name[0] != '\0' ? i->name : (char *)"run";
    Skerry__Runner__Healthcheck health = SKERRY__RUNNER__HEALTHCHECK__INIT;
    char *shell[3];
    if (fill_health(w, &health, shell))
        p.healthcheck = &health;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_PREPARE;
    r.prepare = &p;
    rc = sandbox_ask(i->node->sandbox, &r, prepare_cb, i, e);
    i->pending += rc == 0;
    return rc;
}

static void start_failed(struct instance *i, const struct err *error)
{
    if (i->problem != PROBLEM_NONE)
        return;
    i->problem = asks_problem_of(error);
    text_format(i->detail, sizeof i->detail, "%s could not start: %s", instance_label(i),
                error->msg);
}

void instance_ask_runner(struct instance *i)
{
    struct err e = {0};
    i->unasked = false;
    if (i->problem == PROBLEM_NONE && prepare(i, &e) != 0)
        start_failed(i, &e);
}

static void fetched_cb(void *user, const struct err *error)
{
    struct instance *i = user;
    struct err e = {0};
    if (error != NULL) {
        start_failed(i, error);
    } else {
        instance_note(i, "layers", "fetched from another node");
        /* It may have been given up meanwhile: then there is nobody to prepare for. */
        if (i->phase == PHASE_STARTING && i->problem == PROBLEM_NONE && prepare(i, &e) != 0)
            start_failed(i, &e);
    }
    instance_unpend(i);
}

/* True: the runner lacks a layer, and others are asked for it. */
static bool fetch(struct instance *i, const struct err *error)
{
    struct node *n = i->node;
    char image[80];
    struct err e = {0};
    if (error->code != ERR_NOT_FOUND || n->layers == NULL || i->fetching ||
        i->phase != PHASE_STARTING || resolve_image(n, i->spec->image, image, &e) != 0 ||
        layers_need(n->layers, image, i->spec->source, fetched_cb, i, &e) != 0)
        return false;
    i->fetching = true;
    i->pending++;
    return true;
}

int instance_start(struct node *n, const struct instance_request *request, struct instance **out,
                   struct err *e)
{
    struct instance *i = instance_new(n, NULL);
    if (i == NULL)
        return err_set(e, ERR_NO_MEMORY, "start an instance");
    i->handle = request->handle;
    i->asked_us = request->asked_us;
    i->asked_wall_ms = clock_wall_ms();
    i->run_ask = request->run_ask;
    i->ahead = request->ahead;
    i->tty = request->tty;
    i->no_stdin = request->no_stdin;
    i->terminal_rows = request->rows;
    i->terminal_columns = request->columns;
    text_copy(i->asked_by, sizeof i->asked_by, request->asked_by);
    if (request->workload != NULL) {
        i->workload = (struct registry_workload *)(uintptr_t)request->workload;
        map_value_hold(&i->workload->value);
        i->spec = &i->workload->spec;
        i->version = i->workload->version;
        text_copy(i->name, sizeof i->name, i->workload->name);
    } else if (workload_copy(&i->run_spec, request->run_spec, e) != 0) {
        free(i);
        return -(int)ERR_NO_MEMORY;
    } else {
        i->spec = &i->run_spec;
    }
    if (request->key != NULL)
        text_copy(i->key, sizeof i->key, request->key);
    instance_link(i);
    instance_note(i, "asked", "%s", i->asked_by);
    struct err failure = {0};
    struct wanted wanted;
    if (wanted_find(i, &wanted, &failure) != 0) {
        start_failed(i, &failure);
    } else if (reserve(i, &failure) != 0) {
        i->problem = asks_problem_of(&failure);
        text_format(i->detail, sizeof i->detail, "%s could not be reserved: %s", instance_label(i),
                    failure.msg);
    }
    /* The runner, once asked, may take our processor: so the disk, or another node, is at work before. */
    i->unasked = i->problem == PROBLEM_NONE;
    *out = i;
    steps_poke(i);
    return 0;
}
