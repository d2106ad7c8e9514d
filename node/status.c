/* Events, numbers and the answer of `skerry status`. */
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control.h"

void histogram_add(struct gateway_histogram *h, double seconds)
{
    size_t k = 0;
    while (k < GATEWAY_BUCKETS && seconds > gateway_bucket_bounds[k])
        k++;
    h->buckets[k]++;
    h->sum_seconds += seconds;
    h->count++;
}

/* --- events --------------------------------------------------------------------------------------- */

void events_post(struct node *n, const char *kind, const char *workload, const char *instance,
                 const char *format, ...)
{
    pthread_mutex_lock(&n->facts_mutex);
    struct node_event *event = &n->events[n->event_sequence % NODE_EVENTS_KEPT];
    event->sequence = ++n->event_sequence;
    event->wall_ms = clock_wall_ms();
    text_copy(event->kind, sizeof event->kind, kind);
    text_copy(event->workload, sizeof event->workload, workload != NULL ? workload : "");
    text_copy(event->instance, sizeof event->instance, instance != NULL ? instance : "");
    va_list args;
    va_start(args, format);
    vsnprintf(event->text, sizeof event->text, format, args);
    va_end(args);
    for (size_t k = 0; k < n->event_watcher_count; k++)
        n->event_watchers[k].post(n->event_watchers[k].user);
    pthread_mutex_unlock(&n->facts_mutex);
}

size_t node_events(struct node *n, uint64_t after, struct node_event *out, size_t out_max)
{
    size_t count = 0;
    pthread_mutex_lock(&n->facts_mutex);
    uint64_t oldest =
        n->event_sequence > NODE_EVENTS_KEPT ? n->event_sequence - NODE_EVENTS_KEPT : 0;
    for (uint64_t s = after > oldest ? after : oldest; s < n->event_sequence && count < out_max;
         s++)
        out[count++] = n->events[s % NODE_EVENTS_KEPT];
    pthread_mutex_unlock(&n->facts_mutex);
    return count;
}

void node_events_watch(struct node *n, void (*post)(void *user), void *user)
{
    pthread_mutex_lock(&n->facts_mutex);
    if (post == NULL) {
        size_t kept = 0;
        for (size_t k = 0; k < n->event_watcher_count; k++)
            if (n->event_watchers[k].user != user)
                n->event_watchers[kept++] = n->event_watchers[k];
        n->event_watcher_count = kept;
    } else {
        assert_always(n->event_watcher_count < ARRAY_SIZE(n->event_watchers));
        n->event_watchers[n->event_watcher_count].post = post;
        n->event_watchers[n->event_watcher_count++].user = user;
    }
    pthread_mutex_unlock(&n->facts_mutex);
}

void node_metrics(struct node *n, struct node_metrics *out)
{
    pthread_mutex_lock(&n->facts_mutex);
    *out = n->metrics;
    pthread_mutex_unlock(&n->facts_mutex);
}

void node_logs_directory(struct node *n, char *out, size_t size)
{
    pthread_mutex_lock(&n->facts_mutex);
    text_copy(out, size, n->logs_directory);
    pthread_mutex_unlock(&n->facts_mutex);
}

/* --- status ------------------------------------------------------------------------------------------ */

static void warn(json_t *warnings, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void warn(json_t *warnings, const char *format, ...)
{
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_array_append_new(warnings, json_string(text));
}

static json_t *warnings_of(struct node *n, const struct registry_status *r)
{
    json_t *warnings = json_array();
    const char *name = n->config->name;
    if (!r->leader)
        warn(warnings, "%s  no_quorum: the registry has no leader; nothing can start", name);
    if (!sandbox_connected(n->sandbox))
        warn(warnings,
             "%s  the runner is not reachable at %s; nothing can start, running "
             "instances can still be joined",
             name, n->config->runner_socket);
    else if (!n->reconciled)
        warn(warnings, "%s  instances are being re-adopted", name);
    if (n->hello != NULL) {
        for (size_t k = 0; k < n->hello->n_unenforced; k++)
            warn(warnings,
                 "%s  %s limits not enforced; workloads that set `%s` are refused unless "
                 "sandbox.allow_unenforced is set",
                 name, n->hello->unenforced[k], n->hello->unenforced[k]);
        for (size_t k = 0; k < n->hello->n_warnings; k++)
            warn(warnings, "%s  %s", name, n->hello->warnings[k]);
    }
    return warnings;
}

static uint32_t count_live(const struct node *n)
{
    uint32_t live = 0;
    for (const struct instance *i = n->instances_by_id; i != NULL; i = i->by_id.next)
        live += i->phase != PHASE_ENDED;
    return live;
}

json_t *status_json(struct node *n)
{
    struct registry_status r;
    registry_status(n->registry, &r);
    struct registry_root *root = registry_root(n->registry);
    bool healthy = r.leader && sandbox_connected(n->sandbox) && n->reconciled;
    char id[24];
    text_format(id, sizeof id, "%llu", (unsigned long long)n->id);
    const char *http = n->config->http.count > 0 ? n->config->http.items[0] : "";
    char api[64];
    text_copy(api, sizeof api, n->config->api);
    json_t *self = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:i, s:s, s:i, s:f, s:I, s:I, s:n}", "id", id,
        "name", n->config->name, "address", n->config->advertise, "http", http, "api", api, "state",
        "alive", "role", "voter", "leader", (int)r.leader, "instances", (int)count_live(n),
        "version", SKERRY_VERSION, "cpus", (int)n->machine.cpus, "cpus_used", n->machine.cpus_used,
        "memory_bytes", (json_int_t)n->machine.memory_bytes, "memory_used_bytes",
        (json_int_t)n->machine.memory_used_bytes, "lease_seconds");
    json_t *out =
        json_pack("{s:s, s:s, s:b, s:o, s:I, s:I, s:i, s:o, s:[o]}", "cluster", n->config->cluster,
                  "cluster_id", registry_root_cluster_id(root), "healthy", (int)healthy, "leader",
                  r.leader ? json_string(n->config->name) : json_null(), "term", (json_int_t)r.term,
                  "commit_index", (json_int_t)r.commit_index, "voters", (int)r.voters, "warnings",
                  warnings_of(n, &r), "nodes", self);
    registry_root_release(root);
    return out;
}
