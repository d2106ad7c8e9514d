/* Public keys that may join over SSH. */
#include <string.h>

#include "base/clock.h"
#include "node/api/internal.h"
#include "node/control/ssh_key.h"

static json_t *key_json(const struct registry_ssh_key *k)
{
    char type[SSH_KEY_TYPE_SIZE], fingerprint[SSH_KEY_FINGERPRINT_SIZE];
    ssh_key_kind(k, type);
    ssh_key_fingerprint(k, fingerprint);
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o}", "id", k->id, "type", type, "fingerprint",
                     fingerprint, "workload", api_text_or_null(k->workload), "name",
                     api_text_lossy(k->name, strlen(k->name)), "created_at",
                     api_time(k->created_wall_ms));
}

struct listing {
    struct api_request *r;
    const char *workload;
    json_t *list;
};

static bool list_key(void *user, const struct registry_ssh_key *k)
{
    struct listing *l = user;
    if (l->workload != NULL && strcmp(l->workload, k->workload) != 0)
        return true;
    return json_array_append_new(l->list, key_json(k)) == 0;
}

void api_ssh_keys_list(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct listing l = {.r = r, .workload = api_query(r, "workload"), .list = json_array()};
    struct registry_root *root = calls->root(calls->user);
    registry_root_ssh_keys(root, list_key, &l);
    calls->root_return(calls->user, root);
    api_answer_json(r, MHD_HTTP_OK, l.list);
}

/* --- adding ----------------------------------------------------------------------------------------- */

static void key_settled(struct api_request *r)
{
    api_answer_json(r, MHD_HTTP_CREATED, key_json(&r->ask->ssh_key));
}

static void key_put(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, key_settled);
}

/* Fills the key from the body; false: a problem was answered. */
static bool key_fill(struct api_request *r, const json_t *body, struct registry_ssh_key *k)
{
    const char *text;
    const char *name;
    const char *workload;
    struct err e = {0};
    if (!api_json_text(r, body, "key", &text) || !api_json_text(r, body, "name", &name) ||
        !api_json_text(r, body, "workload", &workload))
        return false;
    if (text == NULL)
        api_problem(r, PROBLEM_BAD_REQUEST, "key: the text of a .pub file of ssh-keygen");
    else if (ssh_key_parse(k, text, strlen(text), &e) < 0)
        api_problem(r, PROBLEM_BAD_REQUEST, "key: %s", e.msg);
    else if (name != NULL && !text_copy(k->name, sizeof(k->name), name))
        api_problem(r, PROBLEM_BAD_REQUEST, "name: longer than %zu bytes", sizeof(k->name) - 1);
    else if (!ssh_key_name(k, workload))
        api_problem(r, PROBLEM_BAD_REQUEST, "workload: %.80s is no name of a workload", workload);
    if (r->response != NULL)
        return false;
    k->created_wall_ms = clock_wall_ms();
    /* A key for every workload is as much as a role without a scope. */
    return api_may(r, TOKEN_ROLE_DEPLOY, workload);
}

static void propose(struct api_ask *a, enum registry_command_kind kind,
                    void (*answered)(struct api_ask *a))
{
    a->command.ssh_key = &a->ssh_key;
    api_ask_propose(a, kind, answered);
}

void api_ssh_key_add(struct api_request *r)
{
    json_t *body = api_body_json(r, "key name workload");
    struct api_ask *a = body == NULL ? NULL : api_ask_new(r, NODE_ASK_PROPOSE);
    bool filled = a != NULL && key_fill(r, body, &a->ssh_key);
    json_decref(body);
    if (filled)
        propose(a, REGISTRY_SSH_KEY_PUT, key_put);
}

/* --- removing --------------------------------------------------------------------------------------- */

void api_ssh_key_remove(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1] = "";
    struct registry_root *root = calls->root(calls->user);
    const struct registry_ssh_key *k =
        registry_root_ssh_key(root, r->parameter, strlen(r->parameter));
    if (k != NULL)
        (void)text_copy(workload, sizeof(workload), k->workload);
    calls->root_return(calls->user, root);
    if (!api_may(r, TOKEN_ROLE_DEPLOY, workload[0] == '\0' ? NULL : workload))
        return;
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    if (!text_copy(a->ssh_key.id, sizeof(a->ssh_key.id), r->parameter)) {
        api_problem(r, PROBLEM_NOT_FOUND, "no SSH key has the id %.40s", r->parameter);
        return;
    }
    propose(a, REGISTRY_SSH_KEY_REMOVE, api_ask_settled_empty);
}
