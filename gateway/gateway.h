/* gateway/gateway.h - the HTTP/1.1 front for joins.
 *
 * N threads, each with its own libuv loop, its own listening sockets (SO_REUSEPORT) and its own
 * upstream connections. A request finds its workload or instance in the routes (an immutable root
 * published by the control thread), enters a slot by compare-and-swap (gateway/slot.h) and is
 * bridged to the code. What cannot be answered from the routes is asked of the control thread.
 *
 * HTTP is read by our own strict parser (gateway/http.h; RFC 9112, RFC 9110). Errors of Skerry's own
 * are problem+json (RFC 9457).
 *
 * Threads: gateway_open, _publish, _listen_tcp, _unlisten_tcp, _reload_certificates, _leave, _review,
 * _drain, _shut, _close: the control thread. Calls in struct gateway_calls come from gateway threads; answers may be posted from
 * any thread. */
#ifndef SKERRY_GATEWAY_GATEWAY_H
#define SKERRY_GATEWAY_GATEWAY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/domain.h"
#include "base/err.h"
#include "base/id.h"
#include "base/inbox.h"
#include "base/secure_stream.h"
#include "base/words.h"
#include "base/workload.h"
#include "gateway/slot.h"

#define GATEWAY_CANDIDATES_MAX 16
#define GATEWAY_OWNERS_MAX 16
#define GATEWAY_KEY_LENGTH_MAX 128
#define GATEWAY_REQUEST_ID_SIZE 40
#define GATEWAY_SOCKETS_MAX 64
/* So many a thread asks for at first; more when these are used up soon. */
#define GATEWAY_SOCKETS_FIRST 4

struct gateway;
struct gateway_thread;

/* Another node that has joinable instances of a workload, as far as is known here. */
struct gateway_owner {
    node_id node;
    uint32_t load; /* thousandths, by gossip: a hint */
};

/* What a request needs of a workload; copied out of the routes. */
struct gateway_workload {
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version;
    enum workload_kind kind;
    bool public_access;
    bool no_port; /* a server that never listens: nothing to join */
    bool tcp;     /* what it speaks is not HTTP */
    enum join_key_source key_source;
    char key_name[64]; /* header, query or cookie name; for JOIN_KEY_PATH its number */
    uint64_t first_byte_ms, request_ms, stream_idle_ms, queue_timeout_ms; /* DURATION_NONE: none */
    uint32_t candidate_count; /* local joinable instances of the current version, any order */
    struct slot_ref candidates[GATEWAY_CANDIDATES_MAX];
    uint32_t owner_count; /* living nodes but this one */
    struct gateway_owner owners[GATEWAY_OWNERS_MAX];
};

/* Another node, to send a join to. */
struct gateway_peer {
    struct sockaddr_storage address; /* where it takes streams */
    char name[64];                   /* for Skerry-Node */
    bool alive;                      /* by gossip; false: it may still be tried */
};

/* What a forced join finds. */
struct gateway_instance {
    enum instance_state state; /* STARTING, READY and DRAINING: `slot` if it has one here */
    enum end_reason reason;
    int exit_code;
    char detail[256];
    char ended_at[32]; /* RFC 3339 */
    bool local;        /* its owner is this node */
    node_id owner;
    bool owner_alive; /* by gossip; false: it may still be tried */
    struct slot_ref slot;
};

/* What a browser shows instead of a token (gateway/pass.h), and for what. */
#define GATEWAY_PASS_TEXT_MAX 255
struct gateway_pass_want {
    bool cookie;      /* else a ticket */
    const char *text; /* as it came */
    size_t length;
    const char *host; /* the request's, in lower case, without port */
    const struct gateway_workload *workload;
    const struct instance_id *instance; /* NULL: a join by workload */
};
/* A good ticket: its one use is asked of the control thread, then the cookie is told. */
struct gateway_pass {
    uint8_t nonce[16];
    uint64_t expires_wall_ms;
    uint64_t session_s; /* of the cookie */
    char cookie[GATEWAY_PASS_TEXT_MAX + 1];
};

enum gateway_start { GATEWAY_START_COLD, GATEWAY_START_POOL, GATEWAY_START_JOIN };

/* How the time went, for Server-Timing; microseconds, 0: did not happen. */
struct gateway_timing {
    uint64_t queue_us, reserve_us, sandbox_us, code_us;
};

/* A question to the control thread and its answer. Made and freed by the gateway; between `ask` and
 * its answer it belongs to the control thread. */
struct gateway_ask {
    struct inbox_message message; /* for either direction */
    struct gateway_thread *thread;
    /* Of a question that another thread than the gateway's asks: `thread` NULL. It frees the ask. */
    struct inbox *reply_to;
    void (*answered)(struct gateway_ask *ask, void *loop_owner);
    void *request;
    uint64_t number; /* never the same twice in a process: a late cancel can name it safely */

    /* question */
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version;
    char instance[INSTANCE_ID_LENGTH_MAX + 1]; /* forced: wait until it is ready, or refuse */
    char key[GATEWAY_KEY_LENGTH_MAX + 1];
    enum workload_kind kind;
    bool no_stdin; /* command: the request has no body */
    bool autopsy;  /* `instance` broke the connection before its answer began: answered within
                            500 ms with what became of it: INSTANCE_OOM, _EXITED, or _UNREACHABLE if
                            it still runs. Also asked for an `instance` that the routes do not know,
                            before a 404 or 410 is answered (then with autopsy false), and for a
                            `workload` that they do not know (then with version 0): the control
                            thread knows what the routes will show a moment later */
    /* Whether a workload has this name, and nothing else: look_again, or NOT_FOUND. "": not asked. */
    char host[DOMAIN_TEXT_SIZE];
    /* `pass` shall be used up, and nothing else: PROBLEM_NONE, or CONFLICT if it was. */
    bool redeem;
    struct gateway_pass pass;
    char request_id[GATEWAY_REQUEST_ID_SIZE];
    char asked_by[64]; /* "GET /w/hello/", cut, printable */
    uint64_t asked_us; /* monotonic */
    bool portless;     /* joins without a connection to the code: one without a port will do */
    bool forwarded;    /* another node sent it here: it is served here or refused, never sent on */
    unsigned too_late; /* of control: how often others got the last place of scale.max before it */

    /* answer */
    node_id elsewhere; /* with PROBLEM_NONE: not here, nothing was entered; forward the join to this
                          node, which may start or wait for an instance for it (the one of `id`, if that
                          is set: a key's holder). A refusal there: ask again, with it in `refused` */
    bool look_again;   /* with PROBLEM_NONE: the routes show now what they did not know when this
                             was asked (a workload): the client may come again at once */
    node_id refused[4];   /* question: nodes that refused this request; 0: none */
    enum problem problem; /* PROBLEM_NONE: granted, `slot` is entered on the request's behalf */
    enum ran ran;
    unsigned retry_after_s;
    char detail[512];
    struct instance_id id; /* granted, or the one that the problem is about; "" none */
    struct slot_ref slot;  /* server */
    enum gateway_start start;
    struct gateway_timing timing;
    int descriptors[3]; /* command: ends of stdin (or -1), stdout, stderr; now the gateway's */

    /* command: how it ended, delivered after the answer by gateway_command_ended */
    struct inbox_message ended_message;
    struct command_end ended;
};

/* Sockets made in an instance's network namespace, unconnected and non-blocking. */
struct gateway_sockets {
    struct inbox_message message;
    struct gateway_thread *thread;
    struct slot_ref slot;
    bool ipv6;
    unsigned count;
    /* answer */
    int error; /* 0 or an enum err_code */
    unsigned descriptor_count;
    int descriptors[GATEWAY_SOCKETS_MAX];
};

struct gateway_calls {
    void *user;
    /* From gateway threads, on routes that the thread holds: */
    bool (*workload)(void *user, const void *routes, const char *name, size_t length,
                     struct gateway_workload *out);
    bool (*instance)(void *user, const void *routes, const struct instance_id *id,
                     struct gateway_instance *out, struct gateway_workload *out_workload);
    /* PROBLEM_NONE, _UNAUTHORIZED or _FORBIDDEN; `token` without "Bearer ", NULL: none. `instance`
     * NULL: a join by workload. */
    enum problem (*authorize)(void *user, const void *routes, const struct gateway_workload *w,
                              const struct instance_id *instance, const char *token, size_t length);
    /* Posts to the control thread; answered exactly once with gateway_answer (also after a
     * cancel). False: the control thread takes no more (its inbox is full). */
    bool (*ask)(void *user, struct gateway_ask *ask);
    /* The client of a waiting ask, or of a running command, left, or its time is over. At most once
     * per ask. The ask may be read during the call only: control may have answered meanwhile, and
     * then it is freed before a posted message gets there. So post ask->number, not the pointer. */
    void (*cancel)(void *user, struct gateway_ask *ask, enum end_reason reason);
    /* Answered exactly once with gateway_sockets_answer. */
    bool (*sockets)(void *user, struct gateway_sockets *want);
    /* A leave that slot_leave reported something for. */
    void (*slot_left)(void *user, struct slot_ref slot, unsigned what);
    /* A thread no longer uses these routes. */
    void (*release)(void *user, const void *routes);
    /* PROBLEM_NONE: /readyz says yes; else what it says no with, and `why`. Any thread. */
    enum problem (*ready)(void *user, char *why, size_t size);
    /* How to reach node `id`; false: nobody knows. Any thread. NULL where there are no others. */
    bool (*peer)(void *user, node_id id, struct gateway_peer *out);
    /* Whose host name this is, or (without a point) alias; in lower case. NULL: there are none. */
    bool (*domain)(void *user, const void *routes, const char *name, size_t length,
                   char workload[WORKLOAD_NAME_LENGTH_MAX + 1]);
    /* PROBLEM_NONE, _UNAUTHORIZED or _FORBIDDEN (it is for something else); of a ticket `out` is filled.
     * NULL: none is good. */
    enum problem (*pass)(void *user, const void *routes, const struct gateway_pass_want *want,
                         struct gateway_pass *out);
};

/* HTTPS beside plain HTTP. Everything that it points to outlives the gateway. */
struct gateway_tls_options {
    const char *const
        *listen; /* where HTTPS is spoken; none: nowhere, and nothing else here counts */
    size_t listen_count;
    const char *const *redirect; /* plain HTTP that only sends its clients to HTTPS */
    size_t redirect_count;
    unsigned redirect_port;          /* on which they find it; 0: that of the first of `listen` */
    const char *const *certificates; /* files, each with its chain */
    const char *const *keys;         /* the n-th is that of the n-th certificate */
    size_t certificate_count;
    bool tls13_only;
    unsigned handshake_timeout_ms; /* 10000 */
};

struct gateway_options {
    const char *const *listen; /* "127.0.0.1:8080", "[::1]:8080"; port 0 picks one */
    size_t listen_count;
    unsigned threads;      /* 0: cores */
    const char *domain;    /* host names WORKLOAD.DOMAIN, INSTANCE.DOMAIN and PORT--INSTANCE.DOMAIN;
                                "localhost" */
    const char *node_name; /* Skerry-Node */
    bool trust_forwarded;  /* keep the X-Forwarded-* of a proxy before us */
    size_t header_bytes_max; /* 65536 */
    uint64_t body_bytes_max; /* UINT64_MAX: none */
    unsigned header_timeout_ms, body_timeout_ms, keepalive_timeout_ms;
    unsigned connections_max; /* in all */
    struct gateway_tls_options tls;
    const char *acme_webroot; /* below it are answers to /.well-known/acme-challenge/; NULL: none */
    node_id id;               /* of this node */
    struct secure_context *secure; /* for joins that travel; NULL: alone */
    unsigned owner_wait_ms; /* for a node that alone has an instance, while it restarts; 0: 5 s */
    struct gateway_calls calls;
};

int gateway_open(struct gateway **out, const struct gateway_options *options,
                 struct err *e) ERR_CHECKED;
/* Whether the files can be used; gateway_open does the same, later in the life of a node. */
int gateway_check_certificates(const struct gateway_tls_options *options,
                               struct err *e) ERR_CHECKED;
/* Reads the files of the certificates anew, on a thread of its own; connections from then on get
 * those. If one cannot be used, the log says why, and all stay as they were. */
void gateway_reload_certificates(struct gateway *g);
/* When the first of the certificates in use ends, in seconds since 1970; 0: there is none. Any thread. */
int64_t gateway_certificate_expires_s(const struct gateway *g);
/* Port of the n-th listener, for port 0: those of `listen`, of `tls.listen`, of `tls.redirect`. */
unsigned gateway_port(const struct gateway *g, size_t listener);
/* Raw TCP: connections to `address` ("127.0.0.1:30001") join the workload. The routes that know it as public
 * and of protocol: tcp are published before. */
int gateway_listen_tcp(struct gateway *g, const char *address, const char *workload,
                       struct err *e) ERR_CHECKED;
/* Takes no more connections at the port; those that are there go on. */
void gateway_unlisten_tcp(struct gateway *g, unsigned port);
/* Every thread gets the routes and releases the ones before when it has switched. `routes` must
 * stay valid until `release` was called for it by each of gateway_thread_count threads. */
void gateway_publish(struct gateway *g, const void *routes);
unsigned gateway_thread_count(const struct gateway *g);
/* A SECURE_JOIN stream that another node asked for, detached: some thread serves it from now on. */
void gateway_accept(struct gateway *g, struct secure_parcel *parcel);
/* False: it is shut, and who comes should hear so (an END that nothing was read before). */
bool gateway_accepts(const struct gateway *g);
/* The node is about to drain: joins of clients are taken as before, but each is the last of its connection;
 * those of other nodes are refused, which sends them on. */
void gateway_leave(struct gateway *g);
/* Stops accepting, answers `Connection: close`, closes idle connections; what runs goes on. */
void gateway_drain(struct gateway *g);
/* After a drain: no join of another node begins any more, and each hears that for certain, so it can go
 * elsewhere or come again. From gateway_is_shut on, gateway_connections only falls. */
void gateway_shut(struct gateway *g);
bool gateway_is_shut(const struct gateway *g);
/* A node was removed: joins from it and to it end now, not when the threads next look. */
void gateway_review(struct gateway *g);
/* Of clients, and joins of other nodes from before the drain: those of instances and keys that only this
 * node has still come. Any thread. */
unsigned gateway_old_connections(const struct gateway *g);
/* Of clients, and joins of other nodes that are under way. Any thread. */
unsigned gateway_connections(const struct gateway *g);
/* Breaks what is left and joins the threads; all asks must be answered before it returns, so the
 * control thread keeps answering from `pump` until it is done. */
void gateway_close(struct gateway *g, void (*pump)(void *user), void *user);

/* From any thread, exactly once per ask, sockets and command. */
void gateway_answer(struct gateway_ask *ask);
void gateway_sockets_answer(struct gateway_sockets *want);
void gateway_command_ended(struct gateway_ask *ask);

/* Counters for /metrics, read from any thread. Histograms are cumulative buckets in seconds. */
#define GATEWAY_BUCKETS 14
extern const double gateway_bucket_bounds[GATEWAY_BUCKETS]; /* seconds */
struct gateway_histogram {
    uint64_t buckets[GATEWAY_BUCKETS + 1];
    double sum_seconds;
    uint64_t count;
};
struct gateway_counters {
    uint64_t requests[6]; /* by status class; 0 is "broken" */
    uint64_t problems[PROBLEM_COUNT];
    struct gateway_histogram by_start[3]; /* request seconds by enum gateway_start */
    uint64_t bytes_in, bytes_out;
    uint64_t connections_accepted, connections_refused;
    uint64_t upstream_connects, upstream_reuses;
    uint64_t forwarded, forward_refused; /* joins sent to other nodes, and what these refused */
    uint64_t streams_connects, streams_reuses;
    uint64_t arrivals; /* joins that other nodes sent here */
    uint64_t tls_handshakes, tls_resumed, tls_failures;
    int64_t certificate_expires_s; /* the first of them, since 1970; 0: none is used */
    /* To listeners of workloads; not joined; broken off before both sides had ended. */
    uint64_t tcp_accepted, tcp_refused, tcp_broken;
};
void gateway_counters(const struct gateway *g, struct gateway_counters *out);

#endif
