/* node/api/api.h - the API of a node: `/v1`, `/metrics`, `/livez`, `/readyz` (docs/openapi.yaml).
 *
 * One thread with one libuv loop, which drives libmicrohttpd by its epoll descriptor: one daemon for
 * each TCP address and one for the unix socket. Nothing here blocks that loop: what the control
 * thread knows is asked with node_ask, files are read by a worker thread, and streams go from
 * descriptor to socket as far as both are ready.
 *
 * Threads: api_open and api_close: the control thread. Everything in struct api_calls is called from
 * the API's thread and must be safe there. */
#ifndef SKERRY_NODE_API_API_H
#define SKERRY_NODE_API_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/err.h"
#include "gateway/ssh.h"
#include "node/node.h"

struct api;

/* What the API needs of its node; node/api/calls.c fills it with the functions of node.h. */
struct api_calls {
    void *user;
    bool (*ask)(void *user, struct node_ask *ask);
    struct registry_root *(*root)(void *user);
    void (*root_return)(void *user, struct registry_root *root);
    enum problem (*authorize)(void *user, const struct registry_root *root, const char *token,
                              size_t length, enum token_role need, const char *workload,
                              const char *instance, uint64_t wall_ms);
    enum problem (*ready)(void *user, char *why, size_t size);
    bool (*instance_load)(void *user, const struct instance_id *id, uint32_t *joiners,
                          uint32_t *max_joiners);
    size_t (*events)(void *user, uint64_t after, struct node_event *out, size_t out_max);
    void (*events_watch)(void *user, void (*post)(void *user), void *post_user);
    void (*logs_directory)(void *user, char *out, size_t size);
    void (*metrics)(void *user, struct node_metrics *out);
    /* A place in an instance: what the routes say of a workload, and questions as gateway threads ask
     * them (gateway/gateway.h), answered in this loop. NULL: there are none. */
    bool (*workload)(void *user, const char *name, struct gateway_workload *out);
    bool (*join)(void *user, struct gateway_ask *ask);
    void (*join_cancel)(void *user, struct gateway_ask *ask, enum end_reason reason);
    void (*slot_left)(void *user, struct slot_ref slot, unsigned what);
    /* "https://LABEL.DOMAIN:PORT/", where browsers find it; false: too long. NULL: nowhere. */
    bool (*join_url)(void *user, const char *label, char *out, size_t size);
    void (*ssh_counters)(void *user, struct ssh_front_counters *out); /* NULL: none */
    void (*gateway_counters)(void *user, struct gateway_counters *out, unsigned *connections);
};

/* How the owners of other instances are reached; see node/api/relay.h. */
struct secure_context;
struct secure_parcel;
struct api_peers {
    void *user;
    node_id self;                  /* 0: alone; nothing goes to another node */
    struct secure_context *secure; /* used on the API's thread */
    /* Where a node takes streams now; false: nobody knows. */
    bool (*address)(void *user, node_id id, struct sockaddr_storage *out);
    /* Makes a join token of this node (node/cluster/enroll.h); NULL: there are none. Any thread. */
    int (*join_token)(void *user, struct registry_token *out, char *text, size_t size,
                      struct err *e);
};

struct api_options {
    const char *const *listen; /* "127.0.0.1:8081", "[::1]:8081"; port 0 picks one */
    size_t listen_count;
    const char *socket_path; /* NULL: no unix socket */
    gid_t socket_group;      /* whose members are admins on the unix socket; (gid_t)-1: nobody's */
    const char *node_name;
    const char *domain;       /* of the node: no workload's own host name lies in it; NULL: none */
    const char *const *hosts; /* names that Host may hold over TCP, beside IP addresses and
                                 localhost */
    size_t host_count;
    unsigned connections_max;      /* of each listener; 0: 1024 */
    unsigned header_timeout_ms;    /* for a whole header block; 0: 10,000 */
    unsigned body_timeout_ms;      /* for a whole small body; 0: 30,000 */
    unsigned keepalive_timeout_ms; /* 0: 75,000 */
    unsigned idle_timeout_ms;      /* a client that neither sends nor takes; 0: 300,000 */
    uint64_t upload_bytes_max;     /* of an archive; 0: 16 GiB */
    unsigned tcp_first, tcp_last;  /* ports that workloads may have opened; 0: none */
    struct api_calls calls;
    struct api_peers peers;
};

struct api_calls api_calls_of(struct node *node);

int api_open(struct api **out, const struct api_options *options, struct err *e) ERR_CHECKED;
/* The port of the n-th TCP listener, for port 0. */
unsigned api_port(const struct api *api, size_t listener);
/* A request that another node passes on: an open SECURE_API stream, taken in any case. Any thread,
 * until api_close was called. */
void api_relay_accept(struct api *api, struct secure_parcel *parcel);
/* A node was removed: what is passed on to it or by it ends now. Likewise. */
void api_relay_review(struct api *api);
/* Ends all streams and joins the thread. What was asked must be answered before that is done, so
 * `pump` is called again and again to let the control thread go on answering; it may wait a few
 * milliseconds. After 15 s without all answers the API is left to the end of the process. Removes
 * the unix socket. */
void api_close(struct api *api, void (*pump)(void *user), void *user);

/* Every route, for the test that compares them with docs/openapi.yaml. */
struct api_route_view {
    const char *method, *path, *query; /* "GET", "/v1/workloads/{workload}", "version" */
};
size_t api_route_count(void);
struct api_route_view api_route_at(size_t index);

#endif
