/* node/api/internal.h - what the files of the API share. Everything belongs to the API's thread.
 *
 * The way of a request (node/api/request.c):
 *
 *     target parsed -> route -> Host, Origin -> token -> body -> handle -> answer -> completed
 *                                                  |                 |
 *                                                  |  small: kept whole, then `handle`
 *                                                  '- streamed: `handle` first, then `upload` by piece
 *
 * libmicrohttpd takes an answer only before or behind the body, never between. So a handler calls
 * api_answer_* or api_problem whenever it knows, and the connection is suspended until then. */
#ifndef SKERRY_NODE_API_INTERNAL_H
#define SKERRY_NODE_API_INTERNAL_H

#include <jansson.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "base/buffer.h"
#include "base/inbox.h"
#include "base/memory.h"
#include "gateway/http.h"
#include "gateway/result.h"
#include "node/api/api.h"
#include "node/api/target.h"

#define API_LISTENERS_MAX 6 /* four TCP addresses, the unix socket, and what other nodes pass on */
#define API_TARGET_LENGTH_MAX 16384u
#define API_HEADER_BYTES_MAX 65536u
#define API_PEEK_BYTES (API_HEADER_BYTES_MAX + 4096u)
#define API_BODY_BYTES_MAX (1024u * 1024u)
#define API_DISCARD_BYTES_MAX (64u * 1024u * 1024u) /* of a body behind a refusal */
#define API_OUTPUT_BYTES_MAX (256u * 1024u)         /* waiting for one client */
#define API_TEXTS_MAX 8
#define API_JSON_FLAGS (JSON_COMPACT | JSON_REAL_PRECISION(12)) /* 0.1, not 0.10000000000000001 */

struct api_request;
struct api_ask;
struct api_fd;
struct api_duplex;
struct api_port;
struct api_worker;
struct api_relay;
struct place;
struct problem_report;

struct api_listener {
    struct api *api;
    int fd;
    uv_poll_t accept; /* of `fd` */
    bool accept_open, accept_paused;
    unsigned connection_count;
    struct MHD_Daemon *daemon;
    uv_poll_t poll; /* of the daemon's epoll descriptor */
    bool poll_open;
    bool ready; /* the daemon has something to do */
    bool local; /* the unix socket */
    unsigned port;
};

enum api_connection_phase {
    API_CONNECTION_ARRIVING, /* its first head is not whole */
    API_CONNECTION_REFUSED,  /* told why; waiting for the client to close */
    API_CONNECTION_GIVEN,    /* to libmicrohttpd, which will call back */
    API_CONNECTION_SERVED,
};

/* One connection, from accept to close. */
struct api_connection {
    enum api_connection_phase phase;
    bool begun, waiting; /* ARRIVING: bytes came; it is to be looked at again */
    struct api_listener *listener;
    struct api_connection *previous, *next; /* api->connections */
    int fd;                                 /* libmicrohttpd's */
    bool trusted;                           /* a local peer that is admin without a token */
    bool local;                             /* over the unix socket, here or at the entry */
    bool relayed;                           /* another node passed it on */
    struct api_relay *relay;                /* upgraded, at another node */
    char peer[64];                          /* for the log */
    uint64_t deadline_ms;                   /* monotonic; cut then; 0: none */
    uv_poll_t poll;
    struct api_request *request;
    struct api_duplex *duplex;
    struct api_port *port;
};

struct api {
    struct api_options options;
    char node_name[64];
    char **hosts;
    char socket_path[108];
    pthread_t thread;
    uv_loop_t loop;
    struct inbox *inbox;
    uv_prepare_t prepare; /* runs libmicrohttpd before the loop waits */
    uv_timer_t mhd_timer; /* its next time-out */
    uv_timer_t sweep;     /* deadlines of connections, once a second */
    uv_timer_t arrivals;  /* heads that came in part, each 10 ms while there are some */
    uv_timer_t settle;    /* requests that wait for a root, each 5 ms while there are some */
    uv_async_t stop, event;
    bool dirty, stopping, handles_closing;
    struct api_listener listeners[API_LISTENERS_MAX];
    size_t listener_count;
    struct api_connection *connections;
    char *peek;            /* API_PEEK_BYTES, for the head that is looked at */
    struct http_head head; /* of a first request, or of another node's answer, while it is read */
    size_t asks;           /* that the control thread has not answered */
    struct api_request *settling;
    struct api_request *listening; /* streams of events */
    struct api_worker *worker;
    struct place *places;    /* node/api/join.c */
    uv_timer_t places_timer; /* four times a second while there are some */
    struct api_relay *relays;
    unsigned relay_count;
    struct api_listener *relay_listener; /* of what other nodes pass on; NULL: none do */
    uint8_t random[240]; /* for the ids of requests: one call of the kernel for 40 of them */
    size_t random_left;
    atomic_bool finished;
    uint64_t requests_total[6]; /* by status class; 0: broken */
};

enum api_accept { API_ACCEPT_ANY, API_ACCEPT_JSON, API_ACCEPT_EVENTS, API_ACCEPT_LINES };

enum api_body {
    API_BODY_NONE,    /* what comes is thrown away */
    API_BODY_TEXT,    /* kept whole, at most API_BODY_BYTES_MAX */
    API_BODY_STREAM,  /* `handle` before it, then r->upload */
    API_BODY_COMMAND, /* TEXT if it is JSON or the connection is upgraded, else STREAM */
};
enum api_scope {
    API_SCOPE_NONE,
    API_SCOPE_WORKLOAD, /* the parameter names it */
    API_SCOPE_INSTANCE,
    API_SCOPE_QUERY, /* ?workload= */
    API_SCOPE_BODY,  /* the body: the handler asks with api_may */
    API_SCOPE_ANY,   /* nothing in particular: any token may, whatever its scope */
};

struct api_route {
    const char *method;
    const char *path; /* as in docs/openapi.yaml; at most one {parameter} */
    bool open;        /* needs no token */
    bool streams;     /* its answer has no end known before: no HEAD */
    enum token_role need;
    enum api_scope scope; /* what it is about */
    enum api_body body;
    const char *query; /* the parameters it knows, between spaces */
    void (*handle)(struct api_request *r);
};
const struct api_route *api_route_find(const char *method, const char *path, size_t length,
                                       const char **parameter, size_t *parameter_length,
                                       bool *path_known);
/* "GET, HEAD, POST": what the path takes. */
void api_route_methods(const char *path, size_t length, char *out, size_t size);

struct api_request {
    struct api *api;
    struct api_connection *connection;
    struct MHD_Connection *mhd;
    const struct api_route *route;
    char id[GATEWAY_REQUEST_ID_SIZE];
    char method[16];
    char *target;       /* decoded in place: path and query point into it */
    char *target_query; /* in it, before it is decoded; or NULL */
    char *query_text;   /* `query` points into it */
    char *path;         /* still encoded, for the log and asked_by */
    char *parameter;
    struct api_query *query;
    size_t query_count;
    enum api_accept accept;
    enum token_role role; /* what its token allows here */
    char token_id[17];    /* of its token; "": it needed none */
    bool json;            /* Content-Type */
    bool elsewhere;       /* its answer is another node's, with all its headers */
    bool upgrade;         /* to skerry-exec/1 */
    bool head, has_body;

    bool begun, begin_again, body_complete, suspended, queued, gone;
    enum api_body body_kind;
    struct buffer body;
    uint64_t received, discarded;
    /* Takes a piece of a streamed body; returns how many bytes it took. Taking less: the request
     * is suspended until api_resume. NULL: thrown away. */
    size_t (*upload)(struct api_request *r, const char *data, size_t size);
    void (*upload_end)(struct api_request *r);

    struct MHD_Response *response;
    unsigned status;
    /* Fills a streamed answer: > 0 bytes, 0: nothing now (api_resume later), or one of these. */
    ssize_t (*read)(struct api_request *r, char *out, size_t size);

    struct api_ask *ask;
    bool watched; /* a client that closes, or half-closes, ends it while it is suspended */
    void *state;  /* of the handler */
    void (*state_free)(struct api_request *r);

    /* Waiting for a root that shows what was done. */
    struct api_request *settle_next;
    bool settling;
    uint64_t settle_index;
    struct instance_id settle_instance;
    enum instance_state settle_state;
    uint64_t settle_deadline_ms;
    void (*settled)(struct api_request *r);
    struct api_request *event_previous, *event_next;
    bool event_listed;
};
#define API_READ_END (-1)
#define API_READ_BROKEN (-2)

/* --- node/api/api.c --- */
void api_dirty(struct api *api);
/* Likewise, and it is this daemon that was given work. */
void api_listener_ready(struct api_listener *l);

/* --- node/api/connection.c --- */
void api_accept_cb(uv_poll_t *poll, int status, int events);
void api_arrivals_cb(uv_timer_t *timer);
void api_sweep_cb(uv_timer_t *timer);
void api_connection_notify_cb(void *user, struct MHD_Connection *mhd, void **context,
                              enum MHD_ConnectionNotificationCode code);
/* Its time is over, or the API ends. */
void api_connection_cut(struct api_connection *c);
/* Of one that was upgraded: typed characters do not wait for more; libmicrohttpd may have corked it. */
void api_connection_prompt(int fd);
/* Takes the descriptor; NULL: it was closed. */
struct api_connection *api_connection_open(struct api_listener *l, int fd);

/* --- node/api/request.c --- */
void api_request_id(struct api *api, char out[GATEWAY_REQUEST_ID_SIZE]);
void *api_request_uri_cb(void *user, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result api_request_access_cb(void *user, struct MHD_Connection *mhd, const char *url,
                                      const char *method, const char *version, const char *data,
                                      size_t *size, void **request);
void api_request_completed_cb(void *user, struct MHD_Connection *mhd, void **request,
                              enum MHD_RequestTerminationCode code);
void api_request_suspend(struct api_request *r);
/* UINT64_MAX: chunked; 0: none. */
uint64_t api_request_body_length(const struct api_request *r);
/* Of a request that was to be another node's, before a byte of it went there: it is served here. */
void api_request_keep(struct api_request *r);
void api_resume(struct api_request *r);
/* The client is away, or the API stops: breaks the request off. */
void api_request_gone(struct api_request *r);

/* --- node/api/authorize.c: false: a problem was answered --- */
bool api_origin_check(struct api_request *r);
bool api_authorize(struct api_request *r);
/* Whether the token allows this on a workload that only the body names; else a problem is answered. */
bool api_may(struct api_request *r, enum token_role need, const char *workload);

/* --- node/api/parameters.c --- */
const char *api_query(const struct api_request *r, const char *name); /* the first, or NULL */
/* A parameter that is 0 or 1; false and a problem if it is something else. */
bool api_query_flag(struct api_request *r, const char *name, bool *out);
bool api_query_number(struct api_request *r, const char *name, uint64_t max, uint64_t *out);
const char *api_header(const struct api_request *r, const char *name);
/* The body as a JSON object with no member but those named (between spaces); NULL: a problem was
 * answered. */
json_t *api_body_json(struct api_request *r, const char *members);
/* A text member; NULL if it is not there. False: a problem was answered. */
bool api_json_text(struct api_request *r, const json_t *object, const char *name, const char **out);

/* --- node/api/answer.c: each ends the handler's work; the first answer counts --- */
/* `warning` into an answer that is a success all the same; "": none. */
void api_warn(json_t *json, const char *warning);
void api_answer_json(struct api_request *r, unsigned status, json_t *json /* stolen */);
void api_answer_json_header(struct api_request *r, unsigned status, json_t *json, const char *name,
                            const char *value);
void api_answer_text(struct api_request *r, unsigned status, const char *type, const char *text,
                     size_t length);
/* Takes the descriptor. */
void api_answer_file(struct api_request *r, const char *type, int fd, uint64_t size);
void api_answer_empty(struct api_request *r, unsigned status);
/* r->read fills it. Headers may be added to r->response before the handler returns. */
void api_answer_stream(struct api_request *r, const char *type);
/* Likewise, of any status and of `size` bytes; MHD_SIZE_UNKNOWN: until r->read says so. */
void api_answer_content(struct api_request *r, unsigned status, uint64_t size);
/* 101; `upgraded` gets the request. */
void api_answer_upgrade(struct api_request *r, MHD_UpgradeHandler upgraded);
void api_problem(struct api_request *r, enum problem problem, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
struct api_trouble {
    enum problem problem;
    enum ran ran;
    unsigned retry_after_s;
    const char *instance; /* or NULL */
    const char *reason;   /* why it ended, or NULL */
    const char *detail;   /* or "": the problem's title */
};
void api_problem_of(struct api_request *r, const struct api_trouble *t);
void api_header_add(struct api_request *r, const char *name, const char *value);
json_t *api_time(uint64_t wall_ms); /* RFC 3339, null for 0 */
json_t *api_text_or_null(const char *text);
/* Valid UTF-8 from any bytes: what is not becomes U+FFFD. A new reference. */
json_t *api_text_lossy(const char *bytes, size_t length);

/* --- node/api/ask.c: a question to the control thread, which may outlive its request --- */
struct api_ask {
    struct node_ask ask;
    struct api *api;
    struct api_request *request; /* NULL: left */
    struct api_duplex *duplex;
    void (*answered)(struct api_ask *a); /* `request` (or `duplex`) is there */
    void (*ended)(struct api_ask *a);
    bool in_flight; /* the control thread has it, or its command runs */
    bool canceled;
    unsigned holds;         /* asks under way whose target it is */
    struct api_ask *target; /* of a signal, resize or cancel */
    struct workload spec;
    bool has_spec;
    struct registry_command command;
    struct registry_image image;
    struct registry_token token;
    struct registry_ssh_key ssh_key;
    struct registry_domain domain;
    struct registry_node node;
    uint8_t gossip_key[REGISTRY_GOSSIP_KEY_BYTES]; /* wiped with the ask */
    char *texts[API_TEXTS_MAX];
    size_t text_count;
};
/* NULL: a problem was answered. Belongs to the request until sent. */
struct api_ask *api_ask_new(struct api_request *r, enum node_ask_kind kind);
/* A copy that lives as long as the ask; NULL for NULL. Sets *failed without memory. */
const char *api_ask_text(struct api_ask *a, const char *text, bool *failed);
/* False: refused, a problem was answered and the ask freed. */
bool api_ask_send(struct api_ask *a, void (*answered)(struct api_ask *a));
/* A NODE_ASK_PROPOSE of a->command, in which what the command is about is filled already. */
void api_ask_propose(struct api_ask *a, enum registry_command_kind kind,
                     void (*answered)(struct api_ask *a));
/* `answered` of one that has nothing to tell but that it is so: 204. */
void api_ask_settled_empty(struct api_ask *a);
/* Signal, resize or cancel for a command that is under way. */
void api_ask_about(struct api_ask *target, enum node_ask_kind kind, unsigned signal, unsigned rows,
                   unsigned columns);
void api_ask_cancel(struct api_ask *a);
/* The request or duplex lets go: cancels what is under way and frees when it may. */
void api_ask_leave(struct api_ask *a);
/* Answers the problem that the ask came back with. False if it has none. */
bool api_ask_refused(struct api_request *r, const struct api_ask *a);
/* Answers a refused registry command. */
bool api_ask_result_refused(struct api_request *r, const struct api_ask *a);
/* Waits (at most a second) until a root of at least this index, or with this instance in at least
 * this state, is published; then `settled`. */
void api_settle_index(struct api_request *r, uint64_t index, void (*settled)(struct api_request *));
void api_settle_instance(struct api_request *r, const struct instance_id *id,
                         enum instance_state state, void (*settled)(struct api_request *));
/* The route's handler; with ?consistent=1 after a strong read (node/api/read.c). */
void api_read_then_handle(struct api_request *r);
void api_settle_cancel(struct api_request *r);
void api_settle_cb(uv_timer_t *timer);

/* --- node/api/fd.c: a descriptor on the loop --- */
struct api_fd {
    uv_poll_t poll;
    int fd;
    int events;
    void *owner;
    void (*ready)(struct api_fd *f, int events);
};
/* Takes the descriptor (closed on failure, NULL). */
struct api_fd *api_fd_open(struct api *api, int fd, void *owner,
                           void (*ready)(struct api_fd *f, int events));
/* UV_READABLE | UV_WRITABLE to wait for; 0: nothing. */
void api_fd_want(struct api_fd *f, int events);
/* Closes the descriptor at once; NULL is fine. Sets *f to NULL. */
void api_fd_close(struct api_fd **f);

/* --- handlers, by file --- */
void api_workloads_list(struct api_request *r);
void api_workload_deploy(struct api_request *r);
void api_workload_get(struct api_request *r);
void api_workload_put(struct api_request *r);
void api_workload_remove(struct api_request *r);
void api_workload_versions(struct api_request *r);
void api_workload_rollback(struct api_request *r);

void api_instances_list(struct api_request *r);
void api_instance_start(struct api_request *r);
void api_instance_get(struct api_request *r);
void api_instance_stop(struct api_request *r);
void api_instance_extend(struct api_request *r);
/* What has ended used; openapi.yaml: Usage. */
json_t *api_usage_json(const struct registry_usage *usage);
json_t *api_instance_json(struct api *api, const struct registry_root *root,
                          const struct registry_instance *i);
/* The registered instance that the path names; NULL: a problem was answered. */
const struct registry_instance *api_instance_find(struct api_request *r,
                                                  const struct registry_root *root);
/* As api_instance_find, and it must not have ended. */
const struct registry_instance *api_instance_live(struct api_request *r,
                                                  const struct registry_root *root);

void api_logs_get(struct api_request *r);
void api_exec(struct api_request *r);
void api_run(struct api_request *r);
void api_files_read(struct api_request *r);
void api_files_write(struct api_request *r);

void api_images_list(struct api_request *r);
void api_image_import(struct api_request *r);
void api_image_get(struct api_request *r);
void api_image_remove(struct api_request *r);
void api_images_gc(struct api_request *r);
void api_source_send(struct api_request *r);

void api_nodes_list(struct api_request *r);
void api_node_get(struct api_request *r);
void api_node_drain(struct api_request *r);
void api_node_undrain(struct api_request *r);
void api_raft_transfer(struct api_request *r);
void api_node_remove(struct api_request *r);
/* 0: a problem was answered. */
node_id api_node_named(struct api_request *r, const char *name_or_id);

void api_keyring_list(struct api_request *r);
void api_keyring_add(struct api_request *r);
void api_keyring_use(struct api_request *r);
void api_keyring_remove(struct api_request *r);
void api_raft_snapshot(struct api_request *r);
void api_status(struct api_request *r);
void api_explain(struct api_request *r);
void api_version(struct api_request *r);
void api_livez(struct api_request *r);
void api_readyz(struct api_request *r);
void api_metrics(struct api_request *r);

void api_domains_list(struct api_request *r);
void api_domain_add(struct api_request *r);
void api_domain_remove(struct api_request *r);

void api_workload_ticket(struct api_request *r);
void api_instance_ticket(struct api_request *r);

void api_ssh_keys_list(struct api_request *r);
void api_ssh_key_add(struct api_request *r);
void api_ssh_key_remove(struct api_request *r);

void api_tokens_list(struct api_request *r);
void api_token_create(struct api_request *r);
void api_token_revoke(struct api_request *r);

void api_events(struct api_request *r);
void api_events_wake(struct api *api);
void api_events_leave(struct api_request *r);

/* --- node/api/spec.c, node/api/command.c, node/api/duplex.c --- */
/* Fills a->ask from the query or the JSON body, whose stdin goes to `input`. False: a problem was
 * answered. */
bool api_command_spec(struct api_request *r, struct api_ask *a, bool run, struct buffer *input);
/* The command of an upgraded request has begun: answers 101 and takes over ask and connection. */
void api_duplex_begin(struct api_ask *a);
/* Exit code 128 + signal, 125 where none is known. */
struct result_end api_command_end(const struct node_ask *ask);
bool api_command_end_known(const struct node_ask *ask);
void api_duplex_gone(struct api_duplex *d);

/* --- node/api/join.c --- */
void api_workload_join(struct api_request *r);
void api_instance_join(struct api_request *r);
/* A place in an instance. It is sought for a request, whose r->state_free lets go of it with
 * api_place_leave, also when the request is relayed to the node that has the place. */
struct api_place_events {
    void (*held)(void *owner);            /* at once, or later */
    void (*look)(void *owner, bool live); /* some times a second from then on; false: it ended */
};
struct place *api_place_new(struct api_request *r, const struct api_place_events *events,
                            void *owner);
/* In the instance that the path names. Where there is no place for it, a problem is answered. */
void api_place_seek_instance(struct place *p);
/* In one of the workload that the path names, with ?key= and ?again=; the first of the two says whether
 * that can be, else a problem was answered. */
bool api_place_workload(struct api_request *r, struct gateway_workload *w);
void api_place_seek_workload(struct place *p, const struct gateway_workload *w);
const char *api_place_instance(const struct place *p);
/* At any time; it is gone. */
void api_place_leave(struct place *p);

/* --- node/api/port.c --- */
void api_instance_connect(struct api_request *r);
void api_workload_connect(struct api_request *r);
void api_port_gone(struct api_port *p);

#endif
