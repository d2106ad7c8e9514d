/* Relays at the entry: which requests are of another node, and the way there. */
#include "node/api/relay_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "gateway/problem.h"

struct prefix_search {
    const char *prefix;
    struct instance_id found;
    unsigned count;
};

static bool match_prefix(void *user, const struct registry_instance *i)
{
    struct prefix_search *s = user;
    if (strncmp(i->id.text, s->prefix, strlen(s->prefix)) != 0)
        return false; /* in order: nothing behind matches */
    s->found = i->id;
    return ++s->count < 2;
}

/* The instance that the route is about; `explain` takes shortened ids. */
static bool about_instance(const struct registry_root *root, const struct api_route *route,
                           const char *parameter, struct instance_id *out)
{
    /* Any node makes a ticket. */
    if ((route->scope != API_SCOPE_INSTANCE && route->handle != api_explain) ||
        route->handle == api_instance_ticket)
        return false;
    if (instance_id_parse(out, parameter, strlen(parameter)))
        return true;
    struct prefix_search s = {.prefix = parameter};
    if (route->handle != api_explain || !instance_id_prefix_valid(parameter, strlen(parameter)))
        return false;
    registry_root_instances(root, parameter, match_prefix, &s);
    *out = s.found;
    return s.count == 1;
}

/* Of another node that is there, what the route and its parameter are about; 0: nothing, or ours. */
static node_id owner_of(struct api *api, const struct api_route *route, const char *parameter,
                        char name[64])
{
    const struct api_calls *calls = &api->options.calls;
    struct instance_id id;
    node_id owner = 0;
    if (api->options.peers.self == 0 || parameter == NULL)
        return 0;
    struct registry_root *root = calls->root(calls->user);
    if (about_instance(root, route, parameter, &id))
        owner = instance_id_owner(&id);
    const struct registry_node *node =
        owner == 0 || owner == api->options.peers.self ? NULL : registry_root_node(root, owner);
    const struct registry_instance *i =
        node == NULL ? NULL : registry_root_instance(root, id.text, strlen(id.text));
    /* Of one that has ended, the owner has its output and its time line; the rest is known here. */
    bool here = i != NULL && i->state == INSTANCE_STATE_ENDED && route->handle != api_logs_get &&
                route->handle != api_explain;
    if (node == NULL || here)
        owner = 0;
    else
        (void)text_copy(name, 64, node->name);
    calls->root_return(calls->user, root);
    return owner;
}

/* The owner cannot be reached; no byte of the request has left. */
static void unreachable(struct api_request *r, const struct api_relay *relay, const char *why)
{
    char detail[400];
    (void)text_format(
        detail, sizeof detail,
        "instance %s is on %s, which does not answer: %s. Its joiners may still reach "
        "it; skerry status tells of its node",
        relay->instance, relay->name, why);
    api_problem_of(r, &(struct api_trouble){.problem = PROBLEM_OWNER_UNREACHABLE,
                                            .instance = relay->instance,
                                            .detail = detail});
}

static void let_go(struct api_request *r)
{
    struct api_relay *relay = r->state;
    r->state = NULL;
    r->state_free = NULL;
    relay->request = NULL;
    api_relay_end(relay);
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct api_relay *relay = secure_stream_user(s);
    struct api_request *r = relay->request;
    if (error == NULL) {
        api_relay_ask(relay);
        return;
    }
    log_info("api", "node %llu cannot be asked about instance %s: %s",
             (unsigned long long)relay->peer, relay->instance, error->msg);
    bool here = relay->local_can;
    if (!here)
        unreachable(r, relay, error->msg);
    let_go(r);
    if (here)
        api_request_keep(r);
}

static int relay_connect(struct api_relay *relay, struct err *e)
{
    const struct api_peers *peers = &relay->api->options.peers;
    struct sockaddr_storage address;
    if (!peers->address(peers->user, relay->peer, &address))
        return err_set(e, ERR_UNAVAILABLE, "its address is not known");
    struct secure_connect_options options = {
        .context = peers->secure,
        .address = &address,
        .protocol = SECURE_API,
        .peer = relay->peer,
        .timeout_ms = API_RELAY_CONNECT_MS,
        .events = {.opened = opened_cb, .ready = api_relay_answer_ready_cb},
        .user = relay,
    };
    return secure_stream_connect(&relay->stream, &relay->api->loop, &options, e);
}

bool api_relay_begin(struct api_request *r)
{
    char name[64];
    node_id owner = r->connection->relayed ? 0 : owner_of(r->api, r->route, r->parameter, name);
    return owner != 0 && api_relay_to(r, owner, name, r->parameter);
}

bool api_relay_to(struct api_request *r, node_id owner, const char *name, const char *subject)
{
    struct api *api = r->api;
    struct err e = {0};
    r->body_kind = API_BODY_STREAM;
    struct api_relay *relay = api->relay_count >= API_RELAYS_MAX ? NULL : api_relay_new(api, true);
    if (relay == NULL) {
        api_problem(r, PROBLEM_LIMIT_REACHED, "too many requests are under way to other nodes");
        return true;
    }
    relay->peer = owner;
    relay->local_can = r->route->handle == api_instance_get || r->route->handle == api_explain;
    relay->expects = api_request_body_length(r) != 0 && api_header(r, "Expect") != NULL;
    (void)text_copy(relay->name, sizeof relay->name, name);
    (void)text_copy(relay->instance, sizeof relay->instance, subject);
    relay->request = r;
    r->state = relay;
    r->state_free = let_go;
    /* As where it is served: a client that leaves ends what streams, and commands. */
    r->watched = r->route->streams || r->route->body == API_BODY_STREAM ||
                 r->route->body == API_BODY_COMMAND;
    if (relay_connect(relay, &e) == 0)
        return true;
    bool here = relay->local_can;
    if (!here)
        unreachable(r, relay, e.msg);
    let_go(r);
    return !here;
}
