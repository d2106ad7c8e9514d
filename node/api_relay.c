/* Relays at the entry: which connections are of another node, and the way there. */
#include "node/api_relay_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "gateway/problem.h"

/* The owner cannot be reached; no byte of the request was taken. */
static void unreachable(struct api_connection *c, const struct api_relay *r, const char *why)
{
    char detail[400];
    if (r->local_can) {
        api_connection_serve(c);
        return;
    }
    (void)text_format(
        detail, sizeof detail,
        "instance %s is on %s, which does not answer: %s. Its joiners may still reach "
        "it; skerry status tells of its node",
        r->instance, r->name, why);
    api_connection_refuse(c, &(struct problem_report){.problem = PROBLEM_OWNER_UNREACHABLE,
                                                      .instance = r->instance,
                                                      .detail = detail});
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct api_relay *r = secure_stream_user(s);
    struct api_connection *c = r->connection;
    if (error != NULL) {
        char why[256];
        struct api_relay told = *r; /* names, for the message */
        (void)text_copy(why, sizeof why, error->msg);
        log_info("api", "node %llu cannot be asked about instance %s: %s",
                 (unsigned long long)r->peer, r->instance, why);
        api_relay_end(r);
        unreachable(c, &told, why);
        return;
    }
    struct api_relay_record record = {.trusted = c->trusted, .local = c->local};
    (void)text_format(record.who, sizeof record.who, "%.48s", c->peer);
    r->up.to = api_relay_record_write(&record, (uint8_t *)r->up.bytes);
    r->phase = RELAY_OPEN;
    api_relay_pump(r);
}

static bool visit_second(void *user, const struct registry_node *node)
{
    (void)node;
    return ++*(unsigned *)user < 2;
}

bool api_relay_cluster(struct api *api)
{
    const struct api_calls *calls = &api->options.calls;
    unsigned nodes = 0;
    if (api->options.peers.self == 0)
        return false;
    struct registry_root *root = calls->root(calls->user);
    registry_root_nodes(root, visit_second, &nodes);
    calls->root_return(calls->user, root);
    return nodes > 1;
}

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
    if (route->scope != API_SCOPE_INSTANCE && route->handle != api_explain)
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

node_id api_relay_owner(struct api *api, const struct api_route *route, const char *parameter,
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

static int relay_connect(struct api_relay *r, struct err *e)
{
    const struct api_peers *peers = &r->api->options.peers;
    struct sockaddr_storage address;
    if (!peers->address(peers->user, r->peer, &address))
        return err_set(e, ERR_UNAVAILABLE, "its address is not known");
    struct secure_connect_options options = {
        .context = peers->secure,
        .address = &address,
        .protocol = SECURE_API,
        .peer = r->peer,
        .timeout_ms = API_RELAY_CONNECT_MS,
        .events = {.opened = opened_cb, .ready = api_relay_ready_cb},
        .user = r,
    };
    return secure_stream_connect(&r->stream, &r->api->loop, &options, e);
}

/* The parameter of the target, decoded; false: no route, or one without. */
static const struct api_route *route_of(const struct http_head *head, char *parameter, size_t size)
{
    const char *path = head->path.data;
    const void *query = memchr(path, '?', head->path.length);
    size_t length = query == NULL ? head->path.length : (size_t)((const char *)query - path);
    char method[16];
    const char *found = NULL;
    size_t found_length = 0;
    bool known;
    if (head->method_text.length >= sizeof method)
        return NULL;
    memcpy(method, head->method_text.data, head->method_text.length);
    method[head->method_text.length] = '\0';
    const struct api_route *route =
        api_route_find(head->method == HTTP_METHOD_HEAD ? "GET" : method, path, length, &found,
                       &found_length, &known);
    if (route == NULL || found == NULL || found_length >= size)
        return NULL;
    memcpy(parameter, found, found_length);
    parameter[found_length] = '\0';
    return api_text_decode(parameter, false) ? route : NULL;
}

bool api_relay_begin(struct api_connection *c)
{
    struct api *api = c->listener->api;
    char parameter[64], name[64];
    if (c->relayed)
        return false;
    const struct api_route *route = route_of(&api->head, parameter, sizeof parameter);
    node_id owner = route == NULL ? 0 : api_relay_owner(api, route, parameter, name);
    if (owner == 0)
        return false;
    struct api_relay *r = api->relay_count >= API_RELAYS_MAX ? NULL : api_relay_new(api, true);
    if (r == NULL) {
        api_connection_refuse(c, &(struct problem_report){
                                     .problem = PROBLEM_LIMIT_REACHED,
                                     .detail = "too many requests are under way to other nodes"});
        return true;
    }
    r->peer = owner;
    r->local_can = route->handle == api_instance_get || route->handle == api_explain;
    (void)text_copy(r->name, sizeof r->name, name);
    (void)text_copy(r->instance, sizeof r->instance, parameter);
    r->fd = c->fd;
    r->poller = &c->poll;
    r->connection = c;
    c->relay = r;
    api_connection_relay(c);
    struct err e = {0};
    if (relay_connect(r, &e) != 0) {
        struct api_relay told = *r;
        api_relay_end(r);
        unreachable(c, &told, e.msg);
    }
    return true;
}
