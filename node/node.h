/* node/node.h - one node: the control thread that owns registry, scheduler and runner, and how the
 * other threads of the process talk to it.
 *
 * Threads: node_run is the control thread. node_ask may be called from any thread that runs a libuv
 * loop with an inbox; the answer is delivered there. Everything else says its thread itself. */
#ifndef SKERRY_NODE_NODE_H
#define SKERRY_NODE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"
#include "base/inbox.h"
#include "base/words.h"
#include "base/workload.h"
#include "gateway/gateway.h"
#include "node/config.h"
#include "raft/registry.h"

struct node;

/* --- questions of other threads --------------------------------------------------------------- */

enum node_ask_kind {
    NODE_ASK_PROPOSE, /* command -> result */
    NODE_ASK_READ,    /* -> result.index: all that was committed before is in roots from there on */
    NODE_ASK_START,   /* workload, key: an instance, or the keyed one that there is -> id; answered
                          when it is ready */
    NODE_ASK_RUN, /* spec (ad hoc, kind command), pipes or tty -> id, descriptors; then `ended` */
    NODE_ASK_COMMAND, /* workload, of kind command, key: as RUN */
    NODE_ASK_STOP,    /* instance, reason END_KILLED -> when it has ended */
    NODE_ASK_EXTEND,  /* instance, duration_ms: its life ends so long from now */
    NODE_ASK_EXEC,    /* instance, spec.command, environment, tty or file_verb -> descriptors; then
                          `ended` */
    NODE_ASK_SOCKET,  /* instance, ipv6 -> descriptors[0], unconnected, of the instance's network */
    NODE_ASK_SIGNAL,  /* of a run or exec that is under way: `target` is its node_ask */
    NODE_ASK_RESIZE,  /* likewise, rows and columns */
    NODE_ASK_CANCEL,  /* likewise: its client left; kills the command, its `ended` still comes */
    NODE_ASK_IMPORT,  /* image or source -> descriptors[0]: write the archive there; then `ended`
                          with digest, bytes, files */
    NODE_ASK_STATS,   /* instance -> stats */
    NODE_ASK_STATUS,  /* -> status */
    NODE_ASK_EXPLAIN, /* instance or request id -> json: the time line that this node still knows */
    NODE_ASK_TRANSFER, /* node (0: whichever is most up to date): it leads when this is answered */
    NODE_ASK_COPIES,   /* workload, or name of an image -> when a second node holds its layers, or
                          after 10 s with `detail` that says where they are */
    NODE_ASK_IMAGE_GC, /* removes what no image, workload or instance names -> bytes */
};

/* Numbers as FileVerb of sandbox/runner.proto; the plain ones carry one regular file, the others a
 * tar stream. */
enum node_file_verb {
    NODE_FILE_NONE,
    NODE_FILE_READ,
    NODE_FILE_WRITE,
    NODE_FILE_READ_PLAIN,
    NODE_FILE_WRITE_PLAIN
};

struct node_usage {
    uint64_t cpu_us, memory_bytes, memory_peak_bytes, disk_bytes;
    uint64_t network_in_bytes, network_out_bytes; /* over its way out; 0 without one */
    uint32_t pids, joiners;
};

/* Made by the asker; belongs to the control thread from node_ask until `answered` (and, where
 * `ended` follows, until that). Text pointers must stay valid as long. */
struct node_ask {
    struct inbox_message message;
    struct inbox *reply_to;
    enum node_ask_kind kind;
    void *user;
    void (*answered)(struct node_ask *ask, void *loop_owner);
    void (*ended)(struct node_ask *ask,
                  void *loop_owner); /* RUN, COMMAND, EXEC, IMPORT, after `answered`
                                                               without problem */
    /* question */
    const struct registry_command *command; /* PROPOSE */
    const char *workload, *key, *instance;  /* instance: a whole id */
    const struct workload *spec;            /* RUN, EXEC (command, environment, user) */
    bool tty, no_stdin, set_user, ipv6;
    unsigned rows, columns;
    enum node_file_verb file_verb;
    const char *path;
    struct node_ask *target;
    unsigned signal;
    uint64_t duration_ms;
    uint64_t timeout_ms;    /* RUN and EXEC: 0 none */
    bool stays;             /* RUN, COMMAND and START: here or not at all; another node sent it */
    node_id refused[4];     /* RUN and START: nodes that refused it; 0: none */
    enum end_reason reason; /* CANCEL: NONE is CLIENT_GONE */
    node_id node;           /* TRANSFER */
    bool import_source;
    const char *name;       /* IMPORT: for errors; COPIES */
    const char *asked_by;   /* for explain: "POST /v1/run" */
    const char *request_id; /* or NULL */

    /* answer */
    enum problem problem;
    enum ran ran;
    unsigned retry_after_s;
    char detail[512];
    struct instance_id id;
    struct registry_result result;
    int descriptors[3]; /* stdin or -1, stdout, stderr; tty: the pty, -1, -1; now the asker's */
    struct node_usage usage;
    struct json_t *json; /* STATUS, EXPLAIN: a reference for the asker */
    uint64_t started_wall_ms;

    /* ended */
    struct inbox_message ended_message;
    struct command_end end;
    struct {
        enum problem problem;
        char digest[72];
        uint64_t bytes, files;
    } import; /* and what a COLLECT freed */
    /* The control thread's own. */
    void *control;
};

/* False when the control thread takes no more: nothing will be answered. */
bool node_ask(struct node *node, struct node_ask *ask);

/* --- reading the registry from another thread -------------------------------------------------- */

/* The newest published root, referenced; given back from the same or any thread with
 * node_root_return. Never blocks on the control thread. */
struct registry_root *node_root(struct node *node);
void node_root_return(struct node *node, struct registry_root *root);

/* Who a token is, in constant time. PROBLEM_NONE, _UNAUTHORIZED, _FORBIDDEN. `need`: the weakest
 * role that will do. `workload` and `instance` NULL: not about one. Any thread that holds `root`. */
enum problem node_authorize(const struct registry_root *root, const char *token, size_t length,
                            enum token_role need, const char *workload, const char *instance,
                            uint64_t wall_ms);

/* What the token of that id may, as above, for who was let in by it before. */
enum problem node_authorize_id(const struct registry_root *root, const char *id,
                               enum token_role need, const char *workload, const char *instance,
                               uint64_t wall_ms);

/* Whether `secret`, its 52 digits, is that of the token; in constant time, also of one that is not
 * known (NULL). */
bool node_token_matches(const struct registry_token *known, const char *secret);

/* Makes a token: `secret_text` is what its user keeps ("skt_<id>_<secret>"); `out` goes into
 * REGISTRY_TOKEN_PUT. */
#define NODE_TOKEN_TEXT_SIZE 80
int node_token_make(struct registry_token *out, char secret_text[NODE_TOKEN_TEXT_SIZE],
                    struct err *e) ERR_CHECKED;

/* --- facts for status, metrics and the API ------------------------------------------------------ */

const struct config *node_config(const struct node *node);
struct gateway *node_gateway(const struct node *node);
struct ssh_front_counters;
void node_ssh_counters(struct node *node, struct ssh_front_counters *out); /* API thread */
/* PROBLEM_NONE, or why it takes no requests, or no starts, now. Any thread. */
enum problem node_ready(const struct node *node, char *why, size_t size);
/* Live joiners and use of a local instance; false if it is not here. Any thread. */
bool node_instance_load(struct node *node, const struct instance_id *id, uint32_t *joiners,
                        uint32_t *max_joiners);

/* Events for /v1/events (SSE), kept in a bounded ring. Any thread. */
struct node_event {
    uint64_t sequence;
    uint64_t wall_ms;
    char kind[24]; /* "instance_ready", "instance_ended", "workload_deployed", ... */
    char workload[64];
    char instance[32];
    char text[160];
};
#define NODE_EVENTS_KEPT 4096
/* Copies events with a sequence above `after`, oldest first; returns how many. */
size_t node_events(struct node *node, uint64_t after, struct node_event *out, size_t out_max);
/* `post` is called (any thread) when there is a new one: wake your loop there. One per loop; `post`
 * NULL ends the watch of `user`. */
void node_events_watch(struct node *node, void (*post)(void *user), void *user);

/* Where the runner keeps the logs of instances (ID.log, ID.log.1; sandbox/log_reader.h); "" until
 * the runner was heard. Any thread. */
void node_logs_directory(struct node *node, char *out, size_t size);

/* Metrics that the control thread keeps; read from any thread. */
struct node_metrics {
    struct gateway_histogram start_seconds[3]; /* by enum gateway_start: asked to ready */
    struct gateway_histogram loop_lag_seconds; /* of the control loop */
    uint64_t starts_total, start_failures_total, oom_total;
    uint64_t ended_total[END_REASON_COUNT];
    uint32_t instances, starting, waiters;
    struct registry_status registry;
    bool runner_connected;
    double cpus_used; /* of the whole machine, as the two below */
    uint64_t memory_used_bytes, memory_bytes;
    /* What was refused at the ports for other nodes, by port. */
    uint64_t refused_questions, refused_streams, refused_gossip, refused_joins;
};
void node_metrics(struct node *node, struct node_metrics *out);

/* --- life ----------------------------------------------------------------------------------------- */

/* Runs a node until SIGTERM or SIGINT (then drains, and a second one ends at once). Returns the exit
 * code of the process. */
int node_run(const struct config *config);

#endif
