/* base/workload.h - the spec of what to run: design section 8's workload file.
 *
 * One table (workload.c) parses YAML and JSON, checks, fills defaults and prints. The registry keeps
 * a workload as the JSON of all its effective values.
 *
 * Durations are milliseconds; DURATION_NONE disables. */
#ifndef SKERRY_BASE_WORKLOAD_H
#define SKERRY_BASE_WORKLOAD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/fields.h"

enum workload_kind { WORKLOAD_SERVER, WORKLOAD_COMMAND };
enum workload_protocol { PROTOCOL_HTTP, PROTOCOL_TCP };
enum workload_ready { READY_LISTEN, READY_HEALTHCHECK, READY_NONE };
enum workload_access { ACCESS_PRIVATE, ACCESS_PUBLIC };
/* In the order of sandbox/runner/seccomp.h, from few system calls to many. */
enum sandbox_profile { PROFILE_STRICT, PROFILE_DEFAULT, PROFILE_RELAXED };
#define WORKLOAD_DESTINATIONS_MAX 64
enum network_mode { NETWORK_NONE, NETWORK_EGRESS };
enum placement_spread { SPREAD_NONE, SPREAD_NODE, SPREAD_ZONE };
enum join_key_source {
    JOIN_KEY_NONE,
    JOIN_KEY_HEADER,
    JOIN_KEY_QUERY,
    JOIN_KEY_COOKIE,
    JOIN_KEY_PATH
};

struct workload {
    char *id;
    int kind; /* enum workload_kind */
    char *image;
    char *source; /* in a file: a path; in the registry: "sha256:<64 hex>", or "" for none */
    struct field_list command;
    uint64_t port;                 /* 0 for command workloads and ready: none */
    int protocol;                  /* enum workload_protocol: what is spoken there */
    int ready;                     /* enum workload_ready */
    struct field_list environment; /* KEY=value */
    char *user;                    /* "1000", "1000:1000"; numbers only */
    bool read_only;
    struct {
        uint64_t tcp; /* port of every node at which it is joined; 0: none */
    } listen;
    int access; /* enum workload_access */
    struct {
        uint64_t max_joiners; /* at the same time; 0: unlimited */
        uint64_t window_ms;
        char *key; /* "header:X-Room", "query:room", "cookie:room", "path:1"; "" for none */
    } join;
    struct {
        uint64_t start_ms, first_byte_ms, request_ms, stream_idle_ms, drain_ms;
    } timeouts;
    struct {
        uint64_t idle_ms, max_ms;
    } life;
    struct {
        uint64_t idle_min, max, target_thousandths, queue, queue_timeout_ms;
    } scale;
    struct {
        struct field_list test; /* "CMD", ... or "CMD-SHELL", "..." or "NONE" */
        uint64_t interval_ms, timeout_ms, retries, start_period_ms;
    } healthcheck;
    struct {
        uint64_t cpus_thousandths, memory_bytes, pids, disk_bytes;
        uint64_t io_bytes; /* a second, read from disks; BYTES_NONE: what the node lets it */
    } limits;              /* deploy.resources.limits */
    struct {
        int mode;                      /* enum network_mode */
        struct field_list allow, deny; /* as base/destination.h; no allow: all that is not denied */
        uint64_t bandwidth_bytes;      /* a second, each way; BYTES_NONE: what the node lets it */
    } network;
    struct {
        int profile; /* enum sandbox_profile */
    } sandbox;
    struct {
        char *zone;               /* of nodes that may have it; "" any */
        struct field_list labels; /* NAME=value, all of which such a node has */
        int spread;               /* enum placement_spread */
    } placement;
};

/* Parses and checks a whole file; `name` is for errors. Either everything is right or *w is empty. */
int workload_parse(struct workload *w, const char *name, const char *text, size_t length,
                   struct err *e) ERR_CHECKED;
/* All effective values; a new reference. */
json_t *workload_to_json(const struct workload *w);
int workload_copy(struct workload *to, const struct workload *from, struct err *e) ERR_CHECKED;
void workload_free(struct workload *w);
/* "strict", "default" or "relaxed". */
const char *workload_profile_name(const struct workload *w);
/* The table, for docs and `--help`. */
const struct field_table *workload_fields(void);
enum join_key_source workload_key_source(const struct workload *w, const char **out_name);
/* "1000:1000" -> both; a missing group equals the user. False unless both are 0..65534. */
bool workload_user_parse(const char *user, uint32_t *uid, uint32_t *gid);

#endif
