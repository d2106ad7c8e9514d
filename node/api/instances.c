#include <string.h>

#include "base/clock.h"
#include "node/api/internal.h"

#define LIST_DEFAULT 1000u
#define LIST_MAX 10000u
#define EXTEND_MS_MAX (365ull * 24 * 3600 * 1000)

static struct registry_root *root_take(struct api_request *r)
{
    return r->api->options.calls.root(r->api->options.calls.user);
}

static void root_give(struct api_request *r, struct registry_root *root)
{
    r->api->options.calls.root_return(r->api->options.calls.user, root);
}

/* --- one as JSON -------------------------------------------------------------------------------- */

json_t *api_instance_json(struct api *api, const struct registry_root *root,
                          const struct registry_instance *i)
{
    const struct api_calls *calls = &api->options.calls;
    const struct registry_node *node = registry_root_node(root, i->owner);
    uint32_t joiners = 0;
    uint32_t joiners_max = 0;
    bool ended = i->state == INSTANCE_STATE_ENDED;
    bool known = !ended && calls->instance_load(calls->user, &i->id, &joiners, &joiners_max);
    if (!known) {
        const struct registry_workload *w =
            registry_root_workload_version(root, i->workload, i->version);
        joiners_max = w == NULL ? 0 : (uint32_t)w->spec.join.max_joiners;
    }
    /* How many joiners an instance of another node has is not known here. */
    bool elsewhere =
        !ended && !known && i->owner != api->options.peers.self && api->options.peers.self != 0;
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o, s:I, s:I, s:o, s:n, s:o, s:o, s:o, s:o}", "id",
                     i->id.text, "workload", i->workload, "version", (json_int_t)i->version, "node",
                     node == NULL ? "" : node->name, "state", instance_state_name(i->state),
                     "joiners", elsewhere ? json_null() : json_integer(joiners), "max_joiners",
                     (json_int_t)joiners_max, "epoch", (json_int_t)i->epoch, "key",
                     api_text_or_null(i->key), "tenant", "started_at", api_time(i->started_wall_ms),
                     "ended_at", api_time(i->ended_wall_ms), "reason",
                     ended ? json_string(end_reason_name(i->reason)) : json_null(), "exit_code",
                     ended && i->exit_code >= 0 ? json_integer(i->exit_code) : json_null());
}

static json_t *usage_json(const struct node_usage *u)
{
    return json_pack("{s:f, s:I, s:I, s:I, s:I, s:I, s:I}", "cpu_seconds", (double)u->cpu_us / 1e6,
                     "memory_bytes", (json_int_t)u->memory_bytes, "memory_peak_bytes",
                     (json_int_t)u->memory_peak_bytes, "disk_bytes", (json_int_t)u->disk_bytes,
                     "pids", (json_int_t)u->pids, "network_in_bytes",
                     (json_int_t)u->network_in_bytes, "network_out_bytes",
                     (json_int_t)u->network_out_bytes);
}

json_t *api_usage_json(const struct registry_usage *u)
{
    return json_pack("{s:f, s:f, s:I, s:f, s:I, s:I}", "wall_seconds", (double)u->wall_us / 1e6,
                     "cpu_seconds", (double)u->cpu_us / 1e6, "memory_peak_bytes",
                     (json_int_t)u->memory_peak_bytes, "memory_gib_seconds",
                     (double)u->memory_kib_ms / (1024.0 * 1024.0 * 1000.0), "network_in_bytes",
                     (json_int_t)u->network_in_bytes, "network_out_bytes",
                     (json_int_t)u->network_out_bytes);
}

static json_t *detail_json(struct api *api, const struct registry_root *root,
                           const struct registry_instance *i, const struct node_usage *usage)
{
    json_t *json = api_instance_json(api, root, i);
    json_t *more = json_pack(
        "{s:o, s:o, s:o, s:I, s:I, s:o}", "signal",
        i->signal != 0 ? json_integer(i->signal) : json_null(), "detail",
        api_text_or_null(i->detail), "asked_by", api_text_lossy(i->asked_by, strlen(i->asked_by)),
        "joins", (json_int_t)i->joins, "joiners_peak", (json_int_t)i->joiners_peak, "usage",
        usage != NULL                      ? usage_json(usage)
        : i->state == INSTANCE_STATE_ENDED ? api_usage_json(&i->usage)
                                           : json_null());
    if (json != NULL && more != NULL)
        (void)json_object_update(json, more);
    json_decref(more);
    return json;
}

/* --- finding ------------------------------------------------------------------------------------ */

const struct registry_instance *api_instance_find(struct api_request *r,
                                                  const struct registry_root *root)
{
    const struct registry_instance *i =
        registry_root_instance(root, r->parameter, strlen(r->parameter));
    if (i == NULL)
        api_problem(r, PROBLEM_INSTANCE_UNKNOWN,
                    "no instance has the id %.40s, or it ended over 24 h ago", r->parameter);
    return i;
}

const struct registry_instance *api_instance_live(struct api_request *r,
                                                  const struct registry_root *root)
{
    const struct registry_instance *i = api_instance_find(r, root);
    char detail[400];
    if (i == NULL || i->state != INSTANCE_STATE_ENDED)
        return i;
    (void)text_format(detail, sizeof(detail), "instance %s has ended: %s%s%s", i->id.text,
                      end_reason_name(i->reason), i->detail[0] != '\0' ? ": " : "", i->detail);
    api_problem_of(r, &(struct api_trouble){.problem = PROBLEM_INSTANCE_GONE,
                                            .instance = i->id.text,
                                            .reason = end_reason_name(i->reason),
                                            .detail = detail});
    return NULL;
}

/* --- the list ----------------------------------------------------------------------------------- */

struct listing {
    struct api_request *r;
    const struct registry_root *root;
    json_t *list;
    const char *workload, *prefix, *after;
    enum instance_state state; /* NONE: any */
    bool all;
    size_t limit;
    struct instance_id last;
    bool more;
};

static bool list_instance(void *user, const struct registry_instance *i)
{
    struct listing *l = user;
    if (l->prefix != NULL && strncmp(i->id.text, l->prefix, strlen(l->prefix)) != 0)
        return strcmp(i->id.text, l->prefix) < 0; /* in order: nothing behind matches */
    if ((l->after != NULL && strcmp(i->id.text, l->after) <= 0) ||
        (l->workload != NULL && strcmp(i->workload, l->workload) != 0) ||
        (l->state != INSTANCE_STATE_NONE && i->state != l->state) ||
        (i->state == INSTANCE_STATE_ENDED && !l->all))
        return true;
    if (json_array_size(l->list) == l->limit) {
        l->more = true;
        return false;
    }
    l->last = i->id;
    return json_array_append_new(l->list, api_instance_json(l->r->api, l->root, i)) == 0;
}

static bool state_parse(struct api_request *r, enum instance_state *out)
{
    const char *text = api_query(r, "state");
    if (text == NULL)
        return true;
    for (int s = INSTANCE_STATE_STARTING; s < INSTANCE_STATE_COUNT; s++)
        if (strcmp(text, instance_state_name((enum instance_state)s)) == 0) {
            *out = (enum instance_state)s;
            return true;
        }
    api_problem(r, PROBLEM_BAD_REQUEST, "state=%.40s: starting, ready, draining or ended", text);
    return false;
}

void api_instances_list(struct api_request *r)
{
    struct listing l = {.r = r,
                        .workload = api_query(r, "workload"),
                        .prefix = api_query(r, "prefix"),
                        .after = api_query(r, "after")};
    uint64_t limit = LIST_DEFAULT;
    if (!api_query_flag(r, "all", &l.all) || !api_query_number(r, "limit", LIST_MAX, &limit) ||
        !state_parse(r, &l.state))
        return;
    if (limit == 0 || (l.prefix != NULL && !instance_id_prefix_valid(l.prefix, strlen(l.prefix)))) {
        api_problem(r, PROBLEM_BAD_REQUEST,
                    limit == 0 ? "limit=0: from 1 on" : "prefix: no beginning of an id");
        return;
    }
    l.limit = (size_t)limit;
    l.all = l.all || l.prefix != NULL || l.state == INSTANCE_STATE_ENDED;
    l.list = json_array();
    l.root = root_take(r);
    const char *from =
        l.prefix != NULL && (l.after == NULL || strcmp(l.prefix, l.after) > 0) ? l.prefix : l.after;
    registry_root_instances(l.root, from, list_instance, &l);
    root_give(r, (struct registry_root *)(uintptr_t)l.root);
    if (l.more)
        api_answer_json_header(r, MHD_HTTP_OK, l.list, "Skerry-Next", l.last.text);
    else
        api_answer_json(r, MHD_HTTP_OK, l.list);
}

/* --- one ---------------------------------------------------------------------------------------- */

/* Answers with the instance as the newest root has it. */
static void instance_answer(struct api_request *r, unsigned status, const char *id,
                            const struct node_usage *usage)
{
    struct registry_root *root = root_take(r);
    const struct registry_instance *i = registry_root_instance(root, id, strlen(id));
    char location[80];
    (void)text_format(location, sizeof(location), "/v1/instances/%s", id);
    if (i == NULL)
        api_problem(r, PROBLEM_INSTANCE_UNKNOWN, "instance %s is not registered any more", id);
    else if (status == MHD_HTTP_CREATED)
        api_answer_json_header(r, status, detail_json(r->api, root, i, usage), "Location",
                               location);
    else
        api_answer_json(r, status, detail_json(r->api, root, i, usage));
    root_give(r, root);
}

static struct api_ask *instance_ask(struct api_request *r, enum node_ask_kind kind)
{
    struct api_ask *a = api_ask_new(r, kind);
    bool failed = false;
    if (a == NULL)
        return NULL;
    a->ask.instance = api_ask_text(a, r->parameter, &failed);
    if (!failed)
        return a;
    api_problem(r, PROBLEM_INTERNAL, "out of memory");
    return NULL;
}

static void stats_answered(struct api_ask *a)
{
    /* It may have ended meanwhile, or be starting: then it has no use to tell. */
    instance_answer(a->request, MHD_HTTP_OK, a->ask.instance,
                    a->ask.problem == PROBLEM_NONE ? &a->ask.usage : NULL);
}

void api_instance_get(struct api_request *r)
{
    struct registry_root *root = root_take(r);
    const struct registry_instance *i = api_instance_find(r, root);
    bool ready =
        i != NULL && (i->state == INSTANCE_STATE_READY || i->state == INSTANCE_STATE_DRAINING);
    root_give(r, root);
    if (i == NULL)
        return;
    if (!ready) {
        instance_answer(r, MHD_HTTP_OK, r->parameter, NULL);
        return;
    }
    struct api_ask *a = instance_ask(r, NODE_ASK_STATS);
    if (a != NULL)
        (void)api_ask_send(a, stats_answered);
}

static void started_settled(struct api_request *r)
{
    instance_answer(r, MHD_HTTP_CREATED, r->ask->ask.id.text, NULL);
}

static void started(struct api_ask *a)
{
    if (!api_ask_refused(a->request, a))
        api_settle_instance(a->request, &a->ask.id, INSTANCE_STATE_READY, started_settled);
}

void api_instance_start(struct api_request *r)
{
    const char *workload;
    const char *key;
    json_t *body = api_body_json(r, "workload key");
    struct api_ask *a = body == NULL ? NULL : api_ask_new(r, NODE_ASK_START);
    if (a != NULL && api_json_text(r, body, "workload", &workload) &&
        api_json_text(r, body, "key", &key)) {
        bool failed = false;
        if (workload == NULL)
            api_problem(r, PROBLEM_BAD_REQUEST, "body: workload is missing");
        else if (key != NULL && strlen(key) > REGISTRY_KEY_LENGTH_MAX)
            api_problem(r, PROBLEM_BAD_REQUEST, "body: key is longer than %d bytes",
                        REGISTRY_KEY_LENGTH_MAX);
        else if (api_may(r, TOKEN_ROLE_INVOKE, workload)) {
            a->ask.workload = api_ask_text(a, workload, &failed);
            a->ask.key = api_ask_text(a, key, &failed);
            if (failed)
                api_problem(r, PROBLEM_INTERNAL, "out of memory");
            else
                (void)api_ask_send(a, started);
        }
    }
    json_decref(body);
}

static void changed_settled(struct api_request *r)
{
    instance_answer(r, MHD_HTTP_OK, r->parameter, NULL);
}

static void stopped(struct api_ask *a)
{
    struct instance_id id = {0};
    if (api_ask_refused(a->request, a))
        return;
    (void)text_copy(id.text, sizeof(id.text), a->request->parameter);
    api_settle_instance(a->request, &id, INSTANCE_STATE_ENDED, changed_settled);
}

/* False: it is unknown or has ended, and a problem was answered. */
static bool is_live(struct api_request *r)
{
    struct registry_root *root = root_take(r);
    bool live = api_instance_live(r, root) != NULL;
    root_give(r, root);
    return live;
}

void api_instance_stop(struct api_request *r)
{
    struct api_ask *a = is_live(r) ? instance_ask(r, NODE_ASK_STOP) : NULL;
    if (a != NULL)
        (void)api_ask_send(a, stopped);
}

static void extended(struct api_ask *a)
{
    if (!api_ask_refused(a->request, a))
        changed_settled(a->request);
}

void api_instance_extend(struct api_request *r)
{
    const char *duration = api_query(r, "for");
    struct err e = {0};
    uint64_t ms = 0;
    json_t *body = r->body.length == 0 ? json_object() : api_body_json(r, "for");
    const char *in_body = NULL;
    if (body != NULL && api_json_text(r, body, "for", &in_body)) {
        duration = in_body != NULL ? in_body : duration;
        if (duration == NULL)
            api_problem(r, PROBLEM_BAD_REQUEST, "for is missing: how long from now, as 10m");
        else if (duration_parse(&ms, duration, false, &e) < 0)
            api_problem(r, PROBLEM_BAD_REQUEST, "for: %s", e.msg);
        else if (ms > EXTEND_MS_MAX)
            api_problem(r, PROBLEM_BAD_REQUEST, "for: at most 365d");
    }
    json_decref(body);
    if (r->response != NULL || !is_live(r))
        return;
    struct api_ask *a = instance_ask(r, NODE_ASK_EXTEND);
    if (a == NULL)
        return;
    a->ask.duration_ms = ms;
    (void)api_ask_send(a, extended);
}
