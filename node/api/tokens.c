#include <string.h>

#include "base/clock.h"
#include "node/api/internal.h"
#include "node/cluster/enroll.h"

/* Of one whose ttl was not said: it is for a machine that is being set up now. */
#define JOIN_TOKEN_TTL_MS (3600u * 1000u)

static const char *const role_names[] = {[TOKEN_ROLE_ADMIN] = "admin",
                                         [TOKEN_ROLE_DEPLOY] = "deploy",
                                         [TOKEN_ROLE_INVOKE] = "invoke",
                                         [TOKEN_ROLE_NODE] = "node"};

static json_t *token_json(const struct registry_token *t)
{
    return json_pack("{s:s, s:o, s:s, s:o, s:o, s:o, s:o}", "id", t->id, "name",
                     api_text_lossy(t->name, strlen(t->name)), "role", role_names[t->role],
                     "workload", api_text_or_null(t->workload), "instance",
                     api_text_or_null(t->instance), "created_at", api_time(t->created_wall_ms),
                     "expires_at", api_time(t->expires_wall_ms));
}

static bool list_token(void *user, const struct registry_token *t)
{
    return json_array_append_new(user, token_json(t)) == 0;
}

void api_tokens_list(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    json_t *list = json_array();
    struct registry_root *root = calls->root(calls->user);
    registry_root_tokens(root, list_token, list);
    calls->root_return(calls->user, root);
    api_answer_json(r, MHD_HTTP_OK, list);
}

static bool role_parse(const char *text, enum token_role *out)
{
    for (size_t i = 0; text != NULL && i < ARRAY_SIZE(role_names); i++)
        if (strcmp(text, role_names[i]) == 0) {
            *out = (enum token_role)i;
            return true;
        }
    return false;
}

/* Fills the token from the body, but for id and hash. */
static bool token_fill(struct api_request *r, const json_t *body, struct registry_token *t)
{
    const char *name;
    const char *role;
    const char *workload;
    const char *instance;
    const char *ttl;
    if (!api_json_text(r, body, "name", &name) || !api_json_text(r, body, "role", &role) ||
        !api_json_text(r, body, "workload", &workload) ||
        !api_json_text(r, body, "instance", &instance) || !api_json_text(r, body, "ttl", &ttl))
        return false;
    struct err e = {0};
    uint64_t ttl_ms = 0;
    struct instance_id id;
    if (!role_parse(role, &t->role))
        api_problem(r, PROBLEM_BAD_REQUEST, "role: admin, deploy, invoke or node");
    else if (name != NULL && !text_copy(t->name, sizeof(t->name), name))
        api_problem(r, PROBLEM_BAD_REQUEST, "name: longer than %zu bytes", sizeof(t->name) - 1);
    else if (workload != NULL && !workload_name_valid(workload, strlen(workload)))
        api_problem(r, PROBLEM_BAD_REQUEST, "workload: %.80s is no name of a workload", workload);
    else if (instance != NULL && !instance_id_parse(&id, instance, strlen(instance)))
        api_problem(r, PROBLEM_BAD_REQUEST, "instance: %.80s is no whole id", instance);
    else if (t->role == TOKEN_ROLE_ADMIN && (workload != NULL || instance != NULL))
        api_problem(r, PROBLEM_BAD_REQUEST, "an admin has no scope; role deploy or invoke can");
    else if (t->role == TOKEN_ROLE_DEPLOY && instance != NULL)
        api_problem(r, PROBLEM_BAD_REQUEST, "instance: only the scope of role invoke");
    else if (t->role == TOKEN_ROLE_NODE && (workload != NULL || instance != NULL))
        api_problem(r, PROBLEM_BAD_REQUEST, "a node has no scope; role deploy or invoke can");
    else if (ttl != NULL && duration_parse(&ttl_ms, ttl, false, &e) < 0)
        api_problem(r, PROBLEM_BAD_REQUEST, "ttl: %s", e.msg);
    if (r->response != NULL)
        return false;
    (void)text_copy(t->workload, sizeof(t->workload), workload == NULL ? "" : workload);
    (void)text_copy(t->instance, sizeof(t->instance), instance == NULL ? "" : instance);
    t->created_wall_ms = clock_wall_ms();
    if (ttl_ms == 0 && t->role == TOKEN_ROLE_NODE)
        ttl_ms = JOIN_TOKEN_TTL_MS;
    t->expires_wall_ms = ttl_ms == 0 ? 0 : t->created_wall_ms + ttl_ms;
    return true;
}

static void token_settled(struct api_request *r)
{
    json_t *json = token_json(&r->ask->token);
    (void)json_object_set_new(json, "token", json_string(r->ask->texts[r->ask->text_count - 1]));
    api_answer_json(r, MHD_HTTP_CREATED, json);
}

static void token_put(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, token_settled);
}

void api_token_create(struct api_request *r)
{
    json_t *body = api_body_json(r, "name role workload instance ttl");
    struct api_ask *a = body == NULL ? NULL : api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL || !token_fill(r, body, &a->token)) {
        json_decref(body);
        return;
    }
    json_decref(body);
    struct err e = {0};
    const struct api_peers *peers = &r->api->options.peers;
    char text[ENROLL_TOKEN_TEXT_SIZE];
    bool failed;
    if (a->token.role == TOKEN_ROLE_NODE && peers->join_token == NULL) {
        api_problem(r, PROBLEM_NOT_IMPLEMENTED, "this node takes no others");
        return;
    }
    if (a->token.role == TOKEN_ROLE_NODE)
        failed = peers->join_token(peers->user, &a->token, text, sizeof(text), &e) < 0;
    else
        failed = node_token_make(&a->token, text, &e) < 0;
    /* Kept for the answer only: the last text of the ask. */
    (void)api_ask_text(a, text, &failed);
    explicit_bzero(text, sizeof(text));
    if (failed) {
        api_problem(r, PROBLEM_INTERNAL, "no token could be made%s%s", e.msg[0] != '\0' ? ": " : "",
                    e.msg);
        return;
    }
    a->command.token = &a->token;
    api_ask_propose(a, REGISTRY_TOKEN_PUT, token_put);
}

void api_token_revoke(struct api_request *r)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    if (!text_copy(a->token.id, sizeof(a->token.id), r->parameter)) {
        api_problem(r, PROBLEM_NOT_FOUND, "no token has the id %.40s", r->parameter);
        return;
    }
    a->command.token = &a->token;
    api_ask_propose(a, REGISTRY_TOKEN_REVOKE, api_ask_settled_empty);
}
