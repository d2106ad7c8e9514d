#include <string.h>

#include "node/api/internal.h"
#include "node/control/metrics.h"

struct tally {
    const struct api *api;
    const struct registry_root *root;
    uint64_t *by_state;
};

static bool tally_instance(void *user, const struct registry_instance *i)
{
    struct tally *t = user;
    if (i->state == INSTANCE_STATE_ENDED)
        return true;
    const struct registry_node *node = registry_root_node(t->root, i->owner);
    if (node != NULL && strcmp(node->name, t->api->node_name) == 0)
        t->by_state[i->state]++;
    return true;
}

void api_metrics(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct node_metrics node;
    struct gateway_counters gateway;
    struct metrics_input in = {.version = SKERRY_VERSION,
                               .node_name = r->api->node_name,
                               .node = &node,
                               .gateway = &gateway,
                               .api_requests = r->api->requests_total};
    calls->metrics(calls->user, &node);
    calls->gateway_counters(calls->user, &gateway, &in.gateway_connections);
    if (calls->ssh_counters != NULL)
        calls->ssh_counters(calls->user, &in.ssh);
    metrics_process_read(&in.process);
    struct registry_root *root = calls->root(calls->user);
    struct tally t = {.api = r->api, .root = root, .by_state = in.instances_by_state};
    registry_root_instances(root, NULL, tally_instance, &t);
    calls->root_return(calls->user, root);

    struct buffer text;
    buffer_init(&text, METRICS_BYTES_MAX);
    if (metrics_write(&text, &in))
        api_answer_text(r, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text.data,
                        text.length);
    else
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    buffer_free(&text);
}
