/* node/api/cluster.c - the cluster, why things are as they are, and the probes. */
#include <string.h>

#include "node/api/internal.h"

/* --- status ------------------------------------------------------------------------------------- */

static void ask_status(struct api_request *r, void (*answered)(struct api_ask *a))
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_STATUS);
    if (a != NULL)
        (void)api_ask_send(a, answered);
}

static void status_answered(struct api_ask *a)
{
    if (!api_ask_refused(a->request, a))
        api_answer_json(a->request, MHD_HTTP_OK, json_incref(a->ask.json));
}

void api_status(struct api_request *r)
{
    ask_status(r, status_answered);
}

static bool member_is(const json_t *object, const char *name, const char *text)
{
    const char *value = json_string_value(json_object_get(object, name));
    return value != NULL && strcmp(value, text) == 0;
}

/* --- explain ------------------------------------------------------------------------------------ */

#define EXPLAIN_ENDED_MAX 10u

struct related {
    struct api *api;
    const struct registry_root *root;
    const char *workload;
    json_t *live;
    const struct registry_instance *ended[EXPLAIN_ENDED_MAX]; /* the latest, in no order */
    size_t ended_count;
};

/* Keeps it if it ended later than the earliest of those kept. */
static void keep_latest(struct related *s, const struct registry_instance *i)
{
    size_t earliest = 0;
    if (s->ended_count < EXPLAIN_ENDED_MAX) {
        s->ended[s->ended_count++] = i;
        return;
    }
    for (size_t k = 1; k < s->ended_count; k++)
        if (s->ended[k]->ended_wall_ms < s->ended[earliest]->ended_wall_ms)
            earliest = k;
    if (i->ended_wall_ms > s->ended[earliest]->ended_wall_ms)
        s->ended[earliest] = i;
}

static bool relate(void *user, const struct registry_instance *i)
{
    struct related *s = user;
    if (strcmp(i->workload, s->workload) != 0)
        return true;
    if (i->state == INSTANCE_STATE_ENDED)
        keep_latest(s, i);
    else if (json_array_size(s->live) < 1000)
        (void)json_array_append_new(s->live, api_instance_json(s->api, s->root, i));
    return true;
}

static void add_instances(struct api_request *r, json_t *json, const char *workload)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    struct related s = {.api = r->api, .root = root, .workload = workload, .live = json_array()};
    registry_root_instances(root, NULL, relate, &s);
    for (size_t done = 0; done < s.ended_count; done++) {
        /* The latest first. */
        size_t latest = done;
        for (size_t k = done + 1; k < s.ended_count; k++)
            if (s.ended[k]->ended_wall_ms > s.ended[latest]->ended_wall_ms)
                latest = k;
        const struct registry_instance *i = s.ended[latest];
        s.ended[latest] = s.ended[done];
        (void)json_array_append_new(s.live, api_instance_json(r->api, root, i));
    }
    calls->root_return(calls->user, root);
    (void)json_object_set_new(json, "instances", s.live);
}

static void explained(struct api_ask *a)
{
    struct api_request *r = a->request;
    if (api_ask_refused(r, a))
        return;
    json_t *json = json_incref(a->ask.json);
    if (member_is(json, "kind", "workload"))
        add_instances(r, json, a->ask.instance);
    api_answer_json(r, MHD_HTTP_OK, json);
}

void api_explain(struct api_request *r)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_EXPLAIN);
    bool failed = false;
    if (a == NULL)
        return;
    a->ask.instance = api_ask_text(a, r->parameter, &failed);
    if (failed)
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    else
        (void)api_ask_send(a, explained);
}

/* --- version and probes ------------------------------------------------------------------------- */

static void version_answered(struct api_ask *a)
{
    struct api_request *r = a->request;
    const struct api_calls *calls = &r->api->options.calls;
    const char *http = NULL;
    size_t index;
    json_t *node;
    if (api_ask_refused(r, a))
        return;
    json_array_foreach(json_object_get(a->ask.json, "nodes"), index, node)
    {
        if (member_is(node, "name", r->api->node_name))
            http = json_string_value(json_object_get(node, "http"));
    }
    struct registry_root *root = calls->root(calls->user);
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:s?}", "version", SKERRY_VERSION, "api", "v1", "node",
                  r->api->node_name, "cluster", registry_root_cluster_id(root), "http", http);
    calls->root_return(calls->user, root);
    api_answer_json(r, MHD_HTTP_OK, json);
}

void api_version(struct api_request *r)
{
    ask_status(r, version_answered);
}

void api_livez(struct api_request *r)
{
    api_answer_text(r, MHD_HTTP_OK, "text/plain; charset=utf-8", "ok\n", 3);
}

void api_readyz(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    char why[256] = "";
    enum problem problem = calls->ready(calls->user, why, sizeof(why));
    if (problem == PROBLEM_NONE)
        api_answer_text(r, MHD_HTTP_OK, "text/plain; charset=utf-8", "ok\n", 3);
    else
        api_problem(r, problem, "not ready: %s", why);
}
