/* node/api/nodes.c - nodes: which there are, whether something starts there, who leads. */
#include <string.h>

#include "base/clock.h"
#include "node/api/internal.h"

static bool member_is(const json_t *object, const char *name, const char *text)
{
    const char *value = json_string_value(json_object_get(object, name));
    return value != NULL && strcmp(value, text) == 0;
}

static json_t *find_node(const json_t *status, const char *name_or_id)
{
    size_t index;
    json_t *node;
    json_array_foreach(json_object_get(status, "nodes"), index, node)
    {
        if (member_is(node, "name", name_or_id) || member_is(node, "id", name_or_id))
            return node;
    }
    return NULL;
}

/* --- reading ------------------------------------------------------------------------------------ */

static void ask_status(struct api_request *r, void (*answered)(struct api_ask *a))
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_STATUS);
    if (a != NULL)
        (void)api_ask_send(a, answered);
}

static void nodes_answered(struct api_ask *a)
{
    if (!api_ask_refused(a->request, a))
        api_answer_json(a->request, MHD_HTTP_OK,
                        json_incref(json_object_get(a->ask.json, "nodes")));
}

void api_nodes_list(struct api_request *r)
{
    ask_status(r, nodes_answered);
}

static void node_answered(struct api_ask *a)
{
    struct api_request *r = a->request;
    if (api_ask_refused(r, a))
        return;
    json_t *node = find_node(a->ask.json, r->parameter);
    if (node != NULL)
        api_answer_json(r, MHD_HTTP_OK, json_incref(node));
    else
        api_problem(r, PROBLEM_NOT_FOUND, "no node has the name or id %.80s", r->parameter);
}

void api_node_get(struct api_request *r)
{
    ask_status(r, node_answered);
}

/* --- draining ----------------------------------------------------------------------------------- */

struct node_search {
    const char *name_or_id;
    node_id found;
};

static bool match_node(void *user, const struct registry_node *n)
{
    struct node_search *s = user;
    char id[24];
    (void)text_format(id, sizeof id, "%llu", (unsigned long long)n->id);
    if (strcmp(n->name, s->name_or_id) != 0 && strcmp(id, s->name_or_id) != 0)
        return true;
    s->found = n->id;
    return false;
}

node_id api_node_named(struct api_request *r, const char *name_or_id)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct node_search s = {.name_or_id = name_or_id};
    struct registry_root *root = calls->root(calls->user);
    registry_root_nodes(root, match_node, &s);
    calls->root_return(calls->user, root);
    if (s.found == 0)
        api_problem(r, PROBLEM_NOT_FOUND, "no node has the name or id %.80s", name_or_id);
    return s.found;
}

static void drain_settled(struct api_request *r)
{
    ask_status(r, node_answered);
}

static void drain_answered(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, drain_settled);
}

static void set_draining(struct api_request *r, bool draining)
{
    node_id id = api_node_named(r, r->parameter);
    struct api_ask *a = id == 0 ? NULL : api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    a->node.id = id;
    a->node.draining = draining;
    a->command.node = &a->node;
    api_ask_propose(a, REGISTRY_NODE_DRAIN, drain_answered);
}

void api_node_drain(struct api_request *r)
{
    set_draining(r, true);
}

void api_node_undrain(struct api_request *r)
{
    set_draining(r, false);
}

/* --- who leads ---------------------------------------------------------------------------------- */

static void transferred(struct api_ask *a)
{
    if (!api_ask_refused(a->request, a))
        api_answer_empty(a->request, MHD_HTTP_NO_CONTENT);
}

void api_raft_transfer(struct api_request *r)
{
    const char *to = api_query(r, "to");
    node_id id = to == NULL ? 0 : api_node_named(r, to);
    if (r->response != NULL)
        return;
    struct api_ask *a = api_ask_new(r, NODE_ASK_TRANSFER);
    if (a == NULL)
        return;
    a->ask.node = id;
    (void)api_ask_send(a, transferred);
}
