#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "node/api/internal.h"

static struct registry_root *root_take(struct api_request *r)
{
    return r->api->options.calls.root(r->api->options.calls.user);
}

static void root_give(struct api_request *r, struct registry_root *root)
{
    r->api->options.calls.root_return(r->api->options.calls.user, root);
}

/* --- reading ------------------------------------------------------------------------------------ */

struct listing {
    const struct registry_root *root;
    json_t *list;
    uint64_t current; /* version */
    uint32_t live;
};

static bool sum_live(void *user, const struct registry_workload *w)
{
    struct listing *l = user;
    l->live += w->live;
    return true;
}

static uint32_t live_of_all_versions(const struct registry_root *root, const char *name)
{
    struct listing sum = {0};
    registry_root_versions(root, name, sum_live, &sum);
    return sum.live;
}

static bool list_workload(void *user, const struct registry_workload *w)
{
    struct listing *l = user;
    json_t *item = json_pack(
        "{s:s, s:I, s:s, s:s, s:s, s:I, s:o}", "id", w->name, "version", (json_int_t)w->version,
        "kind", w->spec.kind == WORKLOAD_COMMAND ? "command" : "server", "image", w->spec.image,
        "access", w->spec.access == ACCESS_PUBLIC ? "public" : "private", "instances",
        (json_int_t)live_of_all_versions(l->root, w->name), "deployed_at",
        api_time(w->deployed_wall_ms));
    return json_array_append_new(l->list, item) == 0;
}

void api_workloads_list(struct api_request *r)
{
    struct registry_root *root = root_take(r);
    struct listing l = {.root = root, .list = json_array()};
    registry_root_workloads(root, NULL, list_workload, &l);
    root_give(r, root);
    api_answer_json(r, MHD_HTTP_OK, l.list);
}

static const struct registry_workload *workload_find(struct api_request *r,
                                                     const struct registry_root *root)
{
    const struct registry_workload *w =
        registry_root_workload(root, r->parameter, strlen(r->parameter));
    if (w == NULL)
        api_problem(r, PROBLEM_WORKLOAD_UNKNOWN, "no workload is called %.80s", r->parameter);
    return w;
}

static void workload_answer(struct api_request *r, const struct registry_root *root,
                            uint64_t version)
{
    const struct registry_workload *current = workload_find(r, root);
    if (current == NULL)
        return;
    const struct registry_workload *w =
        version == 0 ? current : registry_root_workload_version(root, current->name, version);
    if (w == NULL) {
        api_problem(r, PROBLEM_WORKLOAD_UNKNOWN, "%s has no version %llu, or not any more",
                    current->name, (unsigned long long)version);
        return;
    }
    json_t *json =
        json_pack("{s:s, s:I, s:b, s:I, s:o}", "id", w->name, "version", (json_int_t)w->version,
                  "current", w->version == current->version, "instances", (json_int_t)w->live,
                  "deployed_at", api_time(w->deployed_wall_ms));
    struct registry_usage usage;
    registry_root_workload_usage(root, w->name, &usage);
    json_t *used = api_usage_json(&usage);
    if (used != NULL) {
        (void)json_object_set_new(used, "instances", json_integer((json_int_t)usage.instances));
        (void)json_object_set_new(json, "usage", used);
    }
    /* The environment may hold secrets, which are not for those who may only join. */
    if (r->role != TOKEN_ROLE_INVOKE)
        (void)json_object_set_new(json, "spec", workload_to_json(&w->spec));
    api_answer_json(r, MHD_HTTP_OK, json);
}

void api_workload_get(struct api_request *r)
{
    uint64_t version = 0;
    if (!api_query_number(r, "version", INT64_MAX, &version))
        return;
    struct registry_root *root = root_take(r);
    workload_answer(r, root, version);
    root_give(r, root);
}

static bool list_version(void *user, const struct registry_workload *w)
{
    struct listing *l = user;
    json_t *item = json_pack("{s:I, s:b, s:I, s:o}", "version", (json_int_t)w->version, "current",
                             w->version == l->current, "instances", (json_int_t)w->live,
                             "deployed_at", api_time(w->deployed_wall_ms));
    return json_array_append_new(l->list, item) == 0;
}

void api_workload_versions(struct api_request *r)
{
    struct registry_root *root = root_take(r);
    const struct registry_workload *w = workload_find(r, root);
    if (w != NULL) {
        struct listing l = {.list = json_array(), .current = w->version};
        registry_root_versions(root, w->name, list_version, &l);
        api_answer_json(r, MHD_HTTP_OK, l.list);
    }
    root_give(r, root);
}

/* --- declaring ---------------------------------------------------------------------------------- */

static json_t *deployed_json(const char *name, uint64_t version, bool changed, bool dry_run)
{
    return json_pack("{s:s, s:I, s:b, s:b}", "id", name, "version", (json_int_t)version, "changed",
                     changed, "dry_run", dry_run);
}

static void copied(struct api_ask *a)
{
    const struct registry_result *result = &a->ask.result;
    if (api_ask_refused(a->request, a))
        return;
    json_t *json = deployed_json(a->ask.workload, result->version, result->changed, false);
    api_warn(json, a->ask.detail);
    api_answer_json(a->request, MHD_HTTP_OK, json);
}

/* Answered when the loss of one node cannot take its layers away. */
static void deploy_settled(struct api_request *r)
{
    const struct registry_result result = r->ask->ask.result;
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    bool failed = !text_copy(name, sizeof(name), r->ask->command.name);
    struct api_ask *a = failed ? NULL : api_ask_new(r, NODE_ASK_COPIES);
    if (a != NULL) {
        a->ask.result = result;
        a->ask.workload = api_ask_text(a, name, &failed);
    }
    if (failed)
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    else if (a != NULL)
        (void)api_ask_send(a, copied);
}

static void deployed(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, deploy_settled);
}

static void dry_run_answer(struct api_request *r, const struct workload *spec, const char *json)
{
    struct registry_root *root = root_take(r);
    const struct registry_workload *w = registry_root_workload(root, spec->id, strlen(spec->id));
    bool host = strcmp(spec->image, "host") == 0 || strncmp(spec->image, "sha256:", 7) == 0;
    json_t *now = w == NULL ? NULL : workload_to_json(&w->spec);
    char *text = now == NULL ? NULL : json_dumps(now, JSON_COMPACT);
    bool changed = text == NULL || strcmp(text, json) != 0;
    if (!host && registry_root_image(root, spec->image, strlen(spec->image)) == NULL)
        api_problem(r, PROBLEM_IMAGE_UNKNOWN,
                    "image: no image is called %.100s; import it: skerry image import",
                    spec->image);
    else
        api_answer_json(
            r, MHD_HTTP_OK,
            deployed_json(spec->id, (w == NULL ? 0 : w->version) + changed, changed, true));
    free(text);
    json_decref(now);
    root_give(r, root);
}

/* Whether the token may deploy this one; a token with a scope has no say in others. More system calls
 * than code needs are a danger to all workloads of a machine, so who deploys one may not decide it. */
static bool deploy_allowed(struct api_request *r, const struct workload *spec)
{
    if (r->parameter == NULL && !api_may(r, TOKEN_ROLE_DEPLOY, spec->id))
        return false;
    if (spec->sandbox.profile != PROFILE_RELAXED || r->role == TOKEN_ROLE_ADMIN)
        return true;
    api_problem(r, PROBLEM_FORBIDDEN,
                "sandbox.profile: relaxed needs a token of role admin; strict and default do not");
    return false;
}

static bool source_check(struct api_request *r, const struct workload *spec)
{
    if (spec->source == NULL || spec->source[0] == '\0' || strncmp(spec->source, "sha256:", 7) == 0)
        return true;
    api_problem(r, PROBLEM_WORKLOAD_INVALID,
                "source: %.100s is a path; send it with POST /v1/sources and name the digest, or "
                "use `skerry deploy`",
                spec->source);
    return false;
}

/* Ports of the nodes are their operator's to give. */
static bool listen_check(struct api_request *r, const struct workload *spec)
{
    unsigned first = r->api->options.tcp_first, last = r->api->options.tcp_last;
    uint64_t port = spec->listen.tcp;
    if (port == 0 || (first != 0 && port >= first && port <= last))
        return true;
    if (first == 0)
        api_problem(r, PROBLEM_WORKLOAD_INVALID,
                    "listen.tcp: this node opens no ports for workloads; gateway: {tcp: {ports: "
                    "30000-30099}} in skerry.yaml allows some, on every node. skerry proxy needs "
                    "none");
    else
        api_problem(r, PROBLEM_WORKLOAD_INVALID,
                    "listen.tcp: %llu is not among the ports that workloads may have opened: %u to "
                    "%u, by gateway.tcp.ports in skerry.yaml",
                    (unsigned long long)port, first, last);
    return false;
}

static void deploy(struct api_request *r)
{
    struct err e = {0};
    bool dry_run = false;
    if (!api_query_flag(r, "dry_run", &dry_run))
        return;
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    if (workload_parse(&a->spec, "body", r->body.data == NULL ? "" : r->body.data, r->body.length,
                       &e) < 0) {
        api_problem(r, e.code == ERR_NO_MEMORY ? PROBLEM_INTERNAL : PROBLEM_WORKLOAD_INVALID, "%s",
                    e.msg);
        return;
    }
    a->has_spec = true;
    if (r->parameter != NULL && strcmp(r->parameter, a->spec.id) != 0) {
        api_problem(r, PROBLEM_WORKLOAD_INVALID, "id: %s in the body, %.80s in the path",
                    a->spec.id, r->parameter);
        return;
    }
    if (!deploy_allowed(r, &a->spec) || !source_check(r, &a->spec) || !listen_check(r, &a->spec))
        return;
    json_t *json = workload_to_json(&a->spec);
    char *text = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    json_decref(json);
    bool failed = text == NULL;
    if (!failed && dry_run) {
        dry_run_answer(r, &a->spec, text);
        free(text);
        return;
    }
    a->command.kind = REGISTRY_WORKLOAD_PUT;
    a->command.wall_ms = clock_wall_ms();
    a->command.name = a->spec.id;
    a->command.workload_json = api_ask_text(a, text, &failed);
    a->ask.command = &a->command;
    free(text);
    if (failed)
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    else
        (void)api_ask_send(a, deployed);
}

void api_workload_deploy(struct api_request *r)
{
    deploy(r);
}

void api_workload_put(struct api_request *r)
{
    deploy(r);
}

/* --- removing, and going back ------------------------------------------------------------------- */

static struct api_ask *named_command(struct api_request *r, enum registry_command_kind kind)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    bool failed = false;
    if (a == NULL)
        return NULL;
    a->command.kind = kind;
    a->command.wall_ms = clock_wall_ms();
    a->command.name = api_ask_text(a, r->parameter, &failed);
    a->ask.command = &a->command;
    if (!failed)
        return a;
    api_problem(r, PROBLEM_INTERNAL, "out of memory");
    return NULL;
}

void api_workload_remove(struct api_request *r)
{
    struct api_ask *a = named_command(r, REGISTRY_WORKLOAD_REMOVE);
    if (a != NULL)
        (void)api_ask_send(a, api_ask_settled_empty);
}

void api_workload_rollback(struct api_request *r)
{
    uint64_t version = 0;
    if (!api_query_number(r, "version", INT64_MAX, &version))
        return;
    struct api_ask *a = named_command(r, REGISTRY_WORKLOAD_ROLLBACK);
    if (a == NULL)
        return;
    a->command.version = version;
    (void)api_ask_send(a, deployed);
}
