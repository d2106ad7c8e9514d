/* node/api/calls.c - the API's view of its node, wired to the functions of node.h. */
#include <string.h>

#include "base/memory.h"
#include "node/api/api.h"
#include "node/control/control.h"

static bool ask(void *user, struct node_ask *question)
{
    return node_ask(user, question);
}

static struct registry_root *root(void *user)
{
    return node_root(user);
}

static void root_return(void *user, struct registry_root *given)
{
    node_root_return(user, given);
}

static enum problem authorize(void *user, const struct registry_root *given, const char *token,
                              size_t length, enum token_role need, const char *workload,
                              const char *instance, uint64_t wall_ms)
{
    (void)user;
    return node_authorize(given, token, length, need, workload, instance, wall_ms);
}

static enum problem ready(void *user, char *why, size_t size)
{
    return node_ready(user, why, size);
}

static bool instance_load(void *user, const struct instance_id *id, uint32_t *joiners,
                          uint32_t *max_joiners)
{
    return node_instance_load(user, id, joiners, max_joiners);
}

static size_t events(void *user, uint64_t after, struct node_event *out, size_t out_max)
{
    return node_events(user, after, out, out_max);
}

static void events_watch(void *user, void (*post)(void *user), void *post_user)
{
    node_events_watch(user, post, post_user);
}

static void logs_directory(void *user, char *out, size_t size)
{
    node_logs_directory(user, out, size);
}

static void metrics(void *user, struct node_metrics *out)
{
    node_metrics(user, out);
}

static void counters(void *user, struct gateway_counters *out, unsigned *connections)
{
    struct gateway *g = node_gateway(user);
    *out = (struct gateway_counters){0};
    *connections = 0;
    if (g == NULL)
        return; /* not opened yet */
    gateway_counters(g, out);
    *connections = gateway_connections(g);
}

static bool workload(void *user, const char *name, struct gateway_workload *out)
{
    return routes_workload_now(user, name, out);
}

/* Of the first listener for HTTPS, else of the first. */
static bool join_url(void *user, const char *label, char *out, size_t size)
{
    const struct config *c = node_config(user);
    const struct gateway *g = node_gateway(user);
    bool https = c->gateway.tls.listen.count > 0;
    unsigned port = g == NULL ? 0 : gateway_port(g, https ? c->http.count : 0);
    char at[16] = "";
    if (port != 0 && port != (https ? 443 : 80))
        (void)text_format(at, sizeof at, ":%u", port);
    return text_format(out, size, "%s://%s.%s%s/", https ? "https" : "http", label, c->domain, at);
}

static void ssh_counters(void *user, struct ssh_front_counters *out)
{
    node_ssh_counters(user, out);
}

struct api_calls api_calls_of(struct node *node)
{
    return (struct api_calls){.user = node,
                              .ask = ask,
                              .root = root,
                              .root_return = root_return,
                              .authorize = authorize,
                              .ready = ready,
                              .instance_load = instance_load,
                              .events = events,
                              .events_watch = events_watch,
                              .logs_directory = logs_directory,
                              .metrics = metrics,
                              .workload = workload,
                              .join = joins_ask,
                              .join_cancel = joins_cancel,
                              .slot_left = joins_slot_left,
                              .join_url = join_url,
                              .ssh_counters = ssh_counters,
                              .gateway_counters = counters};
}
