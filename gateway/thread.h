/* gateway/thread.h - what the files of gateway/ share: a thread, its connections, its ways to
 * instances. Nobody outside of gateway/ includes it.
 *
 *   gateway.c     the public calls, addresses, counters
 *   thread.c      the loop, listeners, routes, timers of the thread, opening and closing
 *   connection.c  the client's side: reading heads, writing, deadlines, closing
 *   handshake.c   before that, where HTTPS is spoken; what waits decrypted (gateway/tls.h)
 *   certificates.c, certificates_reload.c    what is shown there
 *   front.c       what a listener answers before any workload is looked for
 *   dispatch.c    from a head to an instance: routes, authorization, admission, asks
 *   answer.c      answers of Skerry's own
 *   admit.c       whether the request may: tokens, tickets and cookies (gateway/pass.h)
 *   forward.c     heads as they go on, in both directions
 *   join.c        the bridge between a client and code that listens
 *   tcp.c         connections to the listeners of workloads that speak no HTTP
 *   upstream.c    connections to code, here or on another node
 *   travel.c      joins of instances on other nodes: which node, and what if it refuses
 *   away.c        waiting for such a node while it restarts
 *   remote.c      streams to other nodes (gateway/remote.h)
 *   arrival.c, arrival_stream.c    joins that other nodes sent here (gateway/arrival.h)
 *   command.c     the bridge between a client and a command's pipes
 *
 * Everything here belongs to one gateway thread, but for the counters, which anybody reads. */
#ifndef SKERRY_GATEWAY_THREAD_H
#define SKERRY_GATEWAY_THREAD_H

#include <stdatomic.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/inbox.h"
#include "base/refusals.h"
#include "gateway/block.h"
#include "gateway/flow.h"
#include "gateway/gateway.h"
#include "gateway/http.h"
#include "gateway/problem.h"
#include "gateway/route.h"
#include "gateway/travel_block.h"

enum {
    THREADS_MAX = 64,
    LISTENERS_MAX = 24,
    SCRATCH_BYTES = 64 * 1024,
    TARGET_BYTES_MAX = 8 * 1024,
    ACCEPTS_PER_WAKE_MAX = 32,
    CONNECT_TIMEOUT_MS = 5000,
    /* Control answers an autopsy within 500 ms; this is for when it does not. */
    AUTOPSY_MS = 2000,
    /* What the routes do not know may have been made a moment ago: they come every 5 ms at most, and
     * a loop may be late. So long a name that is unknown is looked up again. */
    ROUTES_MS = 25,
    /* A follower hears of a commit with the next heartbeat of the leader, which comes every 50 ms. */
    ROUTES_ELSEWHERE_MS = 120,
    ROUTES_WAITING_MAX = 256,
    /* A client that closed its sending side may have left; what it asked for may still finish. */
    HALF_CLOSE_MS = 1000,
    LINGER_MS = 2000,
    LINGER_BYTES_MAX = 256 * 1024,
    INFORMATIONAL_MAX = 16,
    /* See upstream_suspect_idle. */
    SUSPECT_IDLE_MS = 50,
    SUSPECT_HELPED_MS = 20,
    SUSPECT_AGAIN_MS = 10000,
    /* So often code was seen to hold several connections before it is believed: one of them may have
     * been closed a moment before, unread. */
    PARALLEL_SEEN_MIN = 8,
    /* Below the 5 s after which node.js closes an idle connection. */
    UPSTREAM_IDLE_MS = 4000,
    SPARE_SOCKETS_IDLE_MS = 30000,
    SWEEP_MS = 1000,
    CLOSE_CHECK_MS = 2,
    CONNECTIONS_KEPT_MAX = 256,
};

enum listener_kind {
    LISTENER_PLAIN,
    LISTENER_TLS,
    LISTENER_REDIRECT, /* plain, and answers nothing but where HTTPS is */
    LISTENER_TCP,      /* a workload's own, without HTTP: tcp.c */
};

enum phase {
    PHASE_TLS,     /* the client's handshake */
    PHASE_HEAD,    /* a request's head is awaited */
    PHASE_ROUTES,  /* it named what the routes do not know; newer ones are awaited */
    PHASE_ASK,     /* the control thread decides */
    PHASE_SOCKET,  /* a socket in the instance's network namespace is awaited */
    PHASE_JOIN,    /* bridged to code, perhaps still connecting */
    PHASE_AUTOPSY, /* the code's side broke; control says why */
    PHASE_COMMAND,
    PHASE_STREAM, /* a stream to another node is awaited */
    PHASE_GRANT,  /* that node decides */
    PHASE_AWAY,   /* that node is away: it is asked again in a moment */
    PHASE_FLUSH,  /* the answer is whole; the client must take the rest */
    PHASE_LINGER, /* closed for writing; what the client still sends is dropped */
    PHASE_CLOSING,
};

struct connection;
struct upstream;
struct command;
struct remote;
struct peer;
struct arrival;
struct tls;
struct certificates;

/* Counters: written by their thread alone, read by any. */
struct thread_counters {
    _Atomic uint64_t requests[6];
    _Atomic uint64_t problems[PROBLEM_COUNT];
    _Atomic uint64_t buckets[3][GATEWAY_BUCKETS + 1];
    _Atomic uint64_t sum_us[3];
    _Atomic uint64_t bytes_in, bytes_out;
    _Atomic uint64_t connections_accepted, connections_refused;
    _Atomic uint64_t upstream_connects, upstream_reuses;
    _Atomic uint64_t forwarded, forward_refused, streams_connects, streams_reuses, arrivals;
    _Atomic uint64_t tls_handshakes, tls_resumed, tls_failures;
    _Atomic uint64_t tcp_accepted, tcp_refused, tcp_broken;
};

static inline void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

struct listener {
    struct gateway_thread *thread;
    uv_poll_t poll;
    int fd;
    enum listener_kind kind;
    bool polling;
    /* LISTENER_TCP: */
    struct listener *next;
    unsigned port;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
};

/* The ways to one instance: connections that idle, sockets that were not connected yet. */
struct pool {
    struct gateway_thread *thread;
    struct slot_ref ref;
    uint16_t port;          /* another than the workload's: a pool of its own; 0: that one */
    bool open_only;         /* only if the code listens there for others than itself */
    bool ipv6;              /* how such a port is reached, as far as was learned */
    struct pool *next_port; /* of the same slot */
    unsigned upstream_count;
    struct pool *next_used; /* list of pools that hold something */
    bool used;
    struct upstream *idle_first, *idle_last; /* newest first */
    int spare[GATEWAY_SOCKETS_MAX];
    unsigned spare_count;
    uint64_t spare_used_ms;
    struct gateway_sockets want;
    bool want_out;
    unsigned batch;
    bool one_at_a_time;     /* the code serves one connection at a time: none is kept idle */
    bool answers_in_parts;  /* it may wait for an acknowledgement between head and body */
    unsigned parallel_seen; /* an answer was whole while another connection idled */
    uint64_t suspect_after_ms;
    struct connection *waiting_first, *waiting_last;
    unsigned waiting_count;
};

/* A connection to code. On another node's behalf `remote` is set: then it is a stream to that node, and
 * there is neither pool nor socket. */
struct upstream {
    uv_poll_t poll;
    struct gateway_thread *thread;
    struct pool *pool;
    struct remote *remote;
    struct connection *connection;  /* NULL: idle; not `connected`: it waits until it may write */
    struct upstream *newer, *older; /* in the pool's idle list */
    int fd;
    int mask; /* what is polled for */
    bool ipv6;
    bool connected;
    bool reused; /* carried a request before */
    bool keep;   /* the code lets it live */
    bool reading_stopped;
    bool sending_done; /* the client's half is closed (tunnels) */
    struct queue in;   /* an answer's head that is not whole yet */
    struct http_scan scan;
    uint64_t idle_until_ms;
    uint64_t idle_max_ms;
};

/* What becomes of a connection to code when the exchange lets go of it. */
enum upstream_end {
    UPSTREAM_BROKEN_OFF, /* within an answer, or before: nobody may use it again */
    UPSTREAM_CLOSE,      /* the answer was whole; the code wants it closed, or we do */
    UPSTREAM_KEEP,       /* it may carry the next request */
};

/* Who works with the connection to code: join.c for a client of ours, arrival.c for one that came
 * through another node. Called by dispatch.c and upstream.c. */
struct bridge {
    void (*begin)(struct connection *c); /* it is inside x.slot */
    void (*connected)(struct connection *c);
    void (*unreachable)(struct connection *c, const char *detail);
    void (*readable)(struct connection *c);
    void (*writable)(struct connection *c);
    void (*set_deadline)(struct connection *c);
    void (*problem)(struct connection *c, const struct problem_report *report);
};

/* A join on its way to another node. */
struct travel {
    enum travel_mode mode;
    node_id node;   /* 0: it stays here */
    uint32_t tried; /* a bit for each of workload.owners */
    unsigned tries; /* of owners, without asking */
    node_id refused[4];
    unsigned refused_count;
    bool sent;  /* bytes left for the node: unless it says otherwise, the code may have run */
    bool fresh; /* not again on a stream that idled */
    uint64_t until_ms;    /* for a stream; then for an answer that comes at once */
    uint64_t alive_at_ms; /* when to look again whether the node lives */
};

/* Waiting for the one node that can serve the join. */
struct away {
    node_id owner;
    unsigned tries;
    uint64_t until_ms; /* 0: nothing was missed yet */
};

/* One request and its answer. */
struct exchange {
    enum http_method method;
    unsigned minor;
    bool keep_alive; /* the client's connection may live on */
    bool te_trailers;
    bool expect_continue;
    bool upgrade;
    bool forced;
    bool unknown;  /* forced, and not in the routes */
    uint16_t port; /* of the instance, another than the workload's; 0: that one */
    bool
        port_any; /* also one on which the code listens for itself alone: a token, or a cookie, came */
    unsigned port_tries;
    bool secure;     /* likewise: over HTTPS */
    bool has_cookie; /* while a ticket is redeemed: the browser has a good cookie all the same */
    bool counted;
    bool head_only; /* HEAD: no body may follow */
    bool accept_json, accept_events;
    struct gateway_workload workload;
    struct instance_id id;     /* joined, forced, or "" */
    struct instance_id prefer; /* of another node, to be tried first; "" when it was */
    char key[GATEWAY_KEY_LENGTH_MAX + 1];
    char request_id[GATEWAY_REQUEST_ID_SIZE];
    char asked_by[64];
    uint64_t started_us;
    uint64_t joined_us;
    enum gateway_start start;
    struct gateway_timing timing;
    uint64_t
        ends_wall_ms; /* of the instance that was joined, by life.max; UINT64_MAX: never, 0: none was */
    struct slot_ref slot;
    bool entered;
    struct gateway_ask *ask;
    struct command *command;
    struct upstream *upstream;
    struct queue head; /* the request's head as it goes on; kept until an answer comes */
    size_t head_sent;
    struct queue out; /* of its body, what waits for the code */
    size_t out_sent;  /* of that, what another node has and could still refuse */
    struct travel travel;
    struct away away;
    const char *node_name; /* of the instance's node; NULL: this one */
    struct flow up, down;  /* request body, answer body */
    bool sent_any;         /* a byte of the request went to the code */
    bool body_began;       /* a byte of the body left our hands: no retry */
    bool answered;         /* the head of the final answer is queued; raw: the code is connected */
    bool tunnel;
    bool raw; /* a tunnel from the first byte on: a join without HTTP, either side of which may end
                       before the other */
    bool down_told; /* raw: the code has ended, and the client was told */
    bool up_broken; /* the code takes no more of the request */
    bool broken;    /* the transfer must not end cleanly */
    unsigned status;
    unsigned informational;
    unsigned tries;
    enum problem autopsy_problem;
    char autopsy_detail[160];
    uint64_t request_until_ms; /* UINT64_MAX: none */
    uint64_t connect_until_ms;
    uint64_t suspected_ms; /* when idle connections were closed for its sake; 0: not */
    uint64_t progress_ms;  /* when a byte last moved */
};

/* A client's connection. */
struct connection {
    uv_poll_t poll;
    uv_timer_t timer;
    struct gateway_thread *thread;
    const struct bridge *bridge;
    struct arrival *arrival; /* the client is another node: no socket, but a stream */
    struct tls *tls;         /* over the socket; NULL: nothing is */
    enum listener_kind kind; /* where it came in */
    bool tls_due;            /* in the list of those with decrypted bytes that wait */
    struct connection *due_previous, *due_next;
    struct peer *waits_for_peer;
    struct connection *previous, *next;           /* all of the thread */
    struct connection *wait_previous, *wait_next; /* waiters of a pool or peer, or for routes */
    struct pool *waits_for;
    bool waits_for_fresh; /* a connection that carried nothing before */
    bool waits_for_routes;
    bool routes_final; /* this look at the routes is the last for the request */
    unsigned routes_patience_ms;
    int fd;
    int mask;
    int handles; /* that are not closed yet */
    enum phase phase;
    bool half_closed;     /* the client sent FIN, and all before it was read */
    bool disconnect_seen; /* it sent FIN; what is before it was not read yet */
    bool reading_stopped;
    bool advancing;     /* connection_advance is on the stack */
    bool served_before; /* a request was answered on it */
    struct queue in;    /* bytes read and not taken */
    struct queue out;
    struct http_scan scan;
    uint64_t deadline_ms; /* UINT64_MAX: none */
    uint64_t armed_ms;    /* when the timer fires; it may be earlier than the deadline */
    uint64_t head_until_ms;
    uint64_t routes_until_ms; /* UINT64_MAX: not waiting for routes */
    uint64_t half_closed_ms;  /* when FIN was seen; 0: not */
    uint64_t write_progress_ms;
    size_t lingered_bytes;
    struct sockaddr_storage peer;
    char peer_text[48]; /* made when first needed */
    struct exchange x;
};

struct gateway_thread {
    struct gateway *gateway;
    unsigned index;
    uv_thread_t id;
    uv_loop_t loop;
    struct inbox *inbox;
    uv_timer_t sweep;
    struct listener listeners[LISTENERS_MAX];
    size_t listener_count;
    struct listener *tcp_listeners;
    struct refusals tcp_refusals;
    struct certificates *certificates; /* for connections to come; NULL: no HTTPS */
    uv_idle_t tls_turn;                /* active while a connection is due: */
    struct connection *tls_due_first, *tls_due_last;
    unsigned tls_due_count;
    unsigned tls_begun; /* handshakes, in this turn of the loop */
    const void *routes;
    bool started;
    bool draining, shut, closing, inbox_closing;
    struct inbox_message leave_message, drain_message, shut_message, close_message;
    struct block_pool blocks;
    struct connection *connections; /* open ones */
    unsigned connection_count;
    struct connection *free_connections;
    unsigned free_connection_count;
    struct upstream *free_upstreams;
    unsigned free_upstream_count;
    unsigned upstream_count; /* with an open handle */
    unsigned command_count;
    struct pool **pools; /* by slot index */
    size_t pools_size;
    struct pool *pools_used;
    struct connection *waiting_for_routes;
    unsigned waiting_for_routes_count;
    struct peer *peers; /* by node id */
    struct remote *remotes;
    struct remote *remotes_due, *remotes_overdue; /* put off in this turn of the loop; before it */
    unsigned stream_count;                        /* remotes and arrivals that are not closed yet */
    bool peers_due;
    unsigned away_count;  /* connections in PHASE_AWAY */
    uv_prepare_t prepare; /* before the loop waits: what was put off is sent */
    uv_idle_t turn;       /* it does not wait while there is any */
    struct arrival *arrivals;
    unsigned asks_out, sockets_out;
    uint64_t ask_number;
    uint64_t random[2];
    struct http_head head; /* of whatever is parsed right now */
    struct thread_counters counters;
    char scratch[SCRATCH_BYTES];
    /* What streams bring; apart, since it is taken piece by piece while `scratch` is used. */
    char stream_scratch[SCRATCH_BYTES];
};

struct gateway {
    struct gateway_options options;
    char *domain, *node_name;
    struct http_bounds bounds;
    struct gateway_thread *threads[THREADS_MAX];
    unsigned thread_count;
    struct sockaddr_storage addresses[LISTENERS_MAX];
    size_t listener_count;
    bool leaving, draining, shut, closing; /* the control thread's */
    unsigned accept_next;                  /* likewise */
    _Atomic unsigned threads_draining, threads_shut;
    _Atomic unsigned connections;
    _Atomic unsigned arrivals, arrivals_serving; /* streams; those with a join on them */
    _Atomic unsigned arrivals_old;               /* of these, those from before the drain */
    _Atomic unsigned running;                    /* threads */
    /* Threads that post nothing to others any more; only when all do not, inboxes may close. */
    _Atomic unsigned silent;
    unsigned https_port; /* where a redirect leads */
    _Atomic int64_t certificate_expires_s;
    _Atomic unsigned reloads_wanted; /* > 0: the thread below is at it */
    uv_thread_t reload_thread;
    bool reload_started;
    uv_mutex_t mutex; /* of `stopped` */
    uv_cond_t stopped;
};

/* --- thread.c --- */
uint64_t thread_random(struct gateway_thread *t);
static inline uint64_t thread_now_ms(const struct gateway_thread *t)
{
    return uv_now(&t->loop);
}
/* Ends the thread when it is closing and nothing is left. */
void thread_check_closed(struct gateway_thread *t);
int thread_open(struct gateway_thread **out, struct gateway *g, unsigned index,
                struct err *e) ERR_CHECKED;
/* The descriptor is the thread's from then on. */
int thread_listen(struct gateway_thread *t, int fd, enum listener_kind kind,
                  struct err *e) ERR_CHECKED;
/* A listener of a workload; likewise, also while the thread runs. False: no memory, it is closed. */
bool thread_listen_tcp(struct gateway_thread *t, int fd, unsigned port, const char *workload);
/* That of the port is closed; connections go on. */
void thread_unlisten_tcp(struct gateway_thread *t, unsigned port);
int thread_start(struct gateway_thread *t, struct err *e) ERR_CHECKED;
/* From the control thread: */
bool thread_publish(struct gateway_thread *t, const void *routes);
/* Streams of nodes that are none any more. */
void thread_review(struct gateway_thread *t);
void thread_leave(struct gateway_thread *t);
void thread_drain(struct gateway_thread *t);
void thread_shut(struct gateway_thread *t);
void thread_close(struct gateway_thread *t);
/* Waits for its end. */
void thread_free(struct gateway_thread *t);

/* --- connection.c --- */
void connection_accept(const struct listener *listener, int fd,
                       const struct sockaddr_storage *peer);
/* Its socket, or what was decrypted, has something. */
void connection_readable(struct connection *c);
/* Closes for writing, and drops what still comes, so that no RST overtakes what was said. */
void connection_linger(struct connection *c);

/* Goes on wherever it stands: the next request, or closing. */
void connection_advance(struct connection *c);
void connection_flush(struct connection *c);
/* What of this goes to the client at once, without being queued: nothing while something is, or over TLS. */
size_t connection_send_now(struct connection *c, const char *data, size_t length);
/* Moves what the client sends of the request's body into the flow, as far as `to` has room. False:
 * the connection or the exchange ended by it. */
bool connection_pump_body(struct connection *c, struct queue *to);
/* Reads ahead what no exchange wants yet, and notices that the client leaves. */
void connection_read_ahead(struct connection *c);
void connection_stop_reading(struct connection *c, bool stop);
void connection_update(struct connection *c);
void connection_set_deadline(struct connection *c, uint64_t at_ms);
/* The exchange is over: next request, or end of the connection. */
void connection_exchange_done(struct connection *c);
void connection_close(struct connection *c, bool reset);
void connection_drop_exchange(struct connection *c);
/* Lets go of whatever works for the exchange. */
void connection_abandon(struct connection *c);
void connection_drain(struct connection *c);
/* There are newer routes, or (`final`) there will be none in time. */
void connection_look_again(struct connection *c, bool final);
/* For c->routes_patience_ms since the first time for this request. */
void connection_wait_for_routes(struct connection *c);

/* --- handshake.c --- */
/* Goes on with what the client's handshake waits for. */
void handshake_progress(struct connection *c);
/* There are bytes that no socket will tell of: they are read in the next turn of the loop. */
void handshake_note_due(struct connection *c);
void handshake_forget_due(struct connection *c);

/* --- certificates_reload.c --- */
/* Of connections from now on; takes over one hold. */
bool thread_certificates(struct gateway_thread *t, struct certificates *certificates);
void gateway_end_reload(struct gateway *g);

/* --- front.c --- */
enum dispatch {
    DISPATCH_READY, /* dispatch_find_instance comes next */
    DISPATCH_ANSWERED,
    DISPATCH_AGAIN, /* with newer routes; only unless c->routes_final */
};
/* DISPATCH_READY: it is for a workload. */
enum dispatch front_answer(struct connection *c, const struct http_head *head);

/* --- dispatch.c --- */
enum dispatch dispatch_request(struct connection *c, const char *data, size_t length);
void dispatch_find_instance(struct connection *c);
/* The steps of that, for who takes them in another order: */
bool dispatch_enter_candidate(struct connection *c);
/* An instance of this node and of the workload, if it has room. */
bool dispatch_enter_preferred(struct connection *c, const struct instance_id *id);
void dispatch_enter_forced(struct connection *c);
void dispatch_ask(struct connection *c);
/* Refuses what cannot be joined, whoever asks; else DISPATCH_READY. */
enum dispatch dispatch_judge_forced(struct connection *c, const struct gateway_instance *instance);
void dispatch_cancel(struct connection *c, enum end_reason reason);
void dispatch_leave_slot(struct connection *c);
/* "chat took longer than its timeouts.request of 60s" */
void dispatch_late_text(const struct connection *c, char *out, size_t size);
/* Asks why the code's side broke before it answered; `otherwise` is for when the instance lives. */
void dispatch_autopsy_begin(struct connection *c, enum problem otherwise, const char *detail);
void dispatch_autopsy_late(struct connection *c);

/* Likewise, about a ticket that shall be used; admit_redeemed follows, unless it is refused at once. */
void dispatch_ask_redeem(struct connection *c, const struct gateway_pass *pass);

/* --- admit.c --- */
/* DISPATCH_READY: it may join. `instance` NULL: by workload. */
enum dispatch admit(struct connection *c, const struct http_head *head, const struct route *route,
                    const struct instance_id *instance);
/* The ticket was used up, or not. */
void admit_redeemed(struct connection *c, const struct gateway_ask *ask);

/* --- answer.c --- */
/* To whoever asks: a client, or the node that sent it here. */
void answer_problem(struct connection *c, const struct problem_report *report);
/* To a client of ours. */
void answer_own_problem(struct connection *c, const struct problem_report *report);
void answer_problem_simple(struct connection *c, enum problem problem, enum ran ran,
                           const char *detail);
void answer_text(struct connection *c, unsigned status, const char *text);
void answer_bytes(struct connection *c, const char *data, size_t length);
/* 308, to the same path there. */
void answer_redirect(struct connection *c, struct http_text host, unsigned port,
                     struct http_text path);
/* 303, to `location`, which is x->head; `cookie` NULL: none is set. */
void answer_admitted(struct connection *c, const char *cookie, uint64_t seconds, bool secure);
void answer_options(struct connection *c);
/* Skerry-Instance, -Node, -Start, -Request-Id and Server-Timing into out[]; returns bytes. */
#define ANSWER_FIELDS_BYTES_MAX 1024u
size_t answer_fields_write(struct connection *c, char *out);
void answer_request_id(struct connection *c);
void answer_count(struct connection *c, unsigned status);

/* --- forward.c --- */
/* The client's address as text. */
const char *forward_peer_text(struct connection *c);
bool forward_request_write(struct connection *c, const struct http_head *head,
                           const struct route *route, size_t head_length);
bool forward_answer_write(struct connection *c, const struct http_head *head, size_t head_length);

/* --- tcp.c --- */
extern const struct bridge tcp_bridge;
extern const char *const tcp_refusal_names[];
/* Joins it. */
void tcp_begin(struct connection *c, const char *workload);

/* --- join.c --- */
extern const struct bridge join_bridge;
/* Of the bridge: */
void join_begin(struct connection *c);
void join_unreachable(struct connection *c, const char *detail);
void join_upstream_readable(struct connection *c);
/* The request may go: x.upstream is there. */
void join_connected(struct connection *c);
/* Bytes of the answer; the exchange may end by it. */
void join_take(struct connection *c, const char *data, size_t length);
/* The code closed the connection, or (`error`) it broke. */
void join_upstream_closed(struct connection *c, int error);
/* The way to the code is gone: before an answer `report` is told, within one it breaks. */
void join_failed(struct connection *c, const struct problem_report *report);
void join_upstream_writable(struct connection *c);
void join_client_readable(struct connection *c);
void join_client_writable(struct connection *c);
void join_client_closed_half(struct connection *c);
void join_deadline(struct connection *c);
void join_set_deadline(struct connection *c);
void join_abandon(struct connection *c);

/* --- upstream.c --- */
/* A connection for the exchange, or a place in the queue for a socket; goes on with the
 * bridge's `connected` or `unreachable`, now or later. `fresh`: not one that carried a request before. */
void upstream_acquire(struct connection *c, bool fresh);
void upstream_release(struct upstream *u, enum upstream_end end);
/* No more of the request comes, but the answer goes on. */
void upstream_end_sending(struct upstream *u);
void upstream_set_mask(struct upstream *u, int mask);
void upstream_stop_waiting(struct connection *c);
void upstream_sweep(struct gateway_thread *t);
void upstream_close_all(struct gateway_thread *t);
void upstream_free_all(struct gateway_thread *t);
/* Sends the request's head and what is queued of its body. */
enum queue_write upstream_flush(struct connection *c);
/* The code has the request and is silent. If it serves one connection at a time, it may be waiting
 * on one that idles in a pool, of whichever thread: those are closed. If that helped, none is kept
 * for this instance any more; if not, the code is just slow, and is left alone for a while. */
bool upstream_may_suspect(const struct connection *c);
void upstream_suspect_idle(struct connection *c);
void upstream_suspicion_ends(struct connection *c);
/* More is to come: the code shall not wait for an acknowledgement. */
void upstream_acknowledge(struct upstream *u);

/* --- travel.c --- */
/* Sends the join to `node`; goes on with join_connected, or an answer. */
void travel_to(struct connection *c, node_id node, enum travel_mode mode);
/* Likewise, to one of workload.owners that may have room; false: none is left. */
bool travel_try_owner(struct connection *c);
/* To the node of x->prefer; false: there is none to try. */
bool travel_try_preferred(struct connection *c);
/* The question and what there is of the request left for the node. */
void travel_sent(struct connection *c);
void travel_granted(struct connection *c, const struct travel_answer *answer);
void travel_refused(struct connection *c, const struct travel_answer *answer);
/* The stream broke, or there is none. `surely_not_run`: the node cannot have passed it on; `stale`: the
 * stream had idled, a fresh one may do. */
void travel_failed(struct connection *c, bool surely_not_run, bool stale, const char *detail);
void travel_abandon(struct connection *c);
void travel_deadline(struct connection *c);
void travel_set_deadline(struct connection *c);
void travel_client_closed_half(struct connection *c);

/* --- away.c --- */
/* `owner` alone can serve the join, and has refused it with `problem` or cannot be reached; nothing of it
 * reached the instance. True: it waits, and goes on by itself. False: it cannot, or not any longer. */
bool away_wait(struct connection *c, node_id owner, enum problem problem);
/* Whether a node that says so may be back in a moment. */
bool away_is(enum problem problem);
/* The node serves, or has another reason not to. */
void away_over(struct gateway_thread *t, node_id owner);
void away_stop_waiting(struct connection *c);
void away_deadline(struct connection *c);
void away_client_closed_half(struct connection *c);

/* --- command.c --- */
void command_begin(struct connection *c, struct gateway_ask *ask);
void command_client_readable(struct connection *c);
void command_client_writable(struct connection *c);
void command_deadline(struct connection *c);
void command_ended(struct gateway_ask *ask);
void command_abandon(struct connection *c, enum end_reason reason);

#endif
