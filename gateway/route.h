/* gateway/route.h - where a request wants to go, read from its head alone.
 *
 * Thread: any; pure functions. Texts point into the head's bytes. */
#ifndef SKERRY_GATEWAY_ROUTE_H
#define SKERRY_GATEWAY_ROUTE_H

#include "base/domain.h"
#include "gateway/gateway.h"
#include "gateway/http.h"

enum route_kind {
    ROUTE_NOWHERE, /* neither a known host nor a known path */
    ROUTE_WORKLOAD,
    ROUTE_INSTANCE,
    ROUTE_INSTANCE_WRONG, /* what should be an instance id is none */
    ROUTE_LIVEZ,
    ROUTE_READYZ,
    ROUTE_OPTIONS, /* OPTIONS * */
};

struct route {
    enum route_kind kind;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1]; /* also for INSTANCE if one was named; or "" */
    struct instance_id instance;                 /* INSTANCE */
    struct instance_id prefer;                   /* "" none */
    uint16_t port;   /* INSTANCE: another than the workload's; 0: that one */
    bool port_wrong; /* INSTANCE_WRONG: what stands before "--" is no port */
    bool by_host;    /* a host name of its own led there, which `host` is */
    /* In lower case, without port and last point: by_host, or a NOWHERE that may be one in a moment. */
    char host[DOMAIN_TEXT_SIZE];
    struct http_text path;   /* for the code; empty or "?..." want a slash before */
    struct http_text prefix; /* what was stripped: "/w/hello"; or empty */
};

/* Which hosts there are. */
struct route_names {
    const char *domain; /* in lower case: hosts are WORKLOAD.DOMAIN, INSTANCE.DOMAIN and
                           PORT--INSTANCE.DOMAIN */
    /* Whether a host name that is not below it is that of a workload; NULL: none is. */
    bool (*named)(void *user, const char *host, size_t length,
                  char workload[WORKLOAD_NAME_LENGTH_MAX + 1]);
    void *user;
};
/* A host name of a workload's own goes before any path. */
void route_find(struct route *route, const struct http_head *head, const struct route_names *names);

/* The key of a keyed workload. PROBLEM_NONE (key may be "" if the workload takes none), or
 * _KEY_MISSING, _BAD_REQUEST with *why. */
enum problem route_key(char key[GATEWAY_KEY_LENGTH_MAX + 1], const struct route *route,
                       const struct http_head *head, const struct gateway_workload *workload,
                       const char **why);

/* The token that the request bears; length 0: none. */
struct http_text route_token(const struct http_head *head);
/* True if the field is such a token and must not be forwarded. */
bool route_is_token(const struct http_field *field);

#endif
