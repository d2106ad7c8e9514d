/* Happy path: accepted_cb makes a connection, which receives one request; it is checked, proposed as
 * REGISTRY_NODE_JOIN, answered, half-closed, and closed when the other side has closed.
 * Failure modes: whatever is wrong is counted, told in the log, answered in words when a request was
 * read, and the connection ends; one that takes too long just ends. A proposal whose outcome is not
 * known is answered with "ask again": by its key the asker is then found, if it was done. */
#include "node/cluster/enroll.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/secure_stream.h"
#include "node/cluster/enroll_internal.h"
#include "node/cluster/enroll_io.h"

enum {
    REQUEST_MS = 2000,  /* for the request to come */
    PROPOSE_MS = 20000, /* longer than the registry takes to give up */
    ANSWER_MS = 5000,   /* for the answer to be taken */
    TICK_MS = 100,
    HANDSHAKES_MAX = 8
};

enum phase { PHASE_RECEIVE, PHASE_PROPOSE, PHASE_SEND, PHASE_AWAIT_END, PHASE_CLOSED };

struct connection {
    struct enroll *n;
    struct connection *next;
    struct secure_stream *stream; /* NULL once it is closed */
    enum phase phase;
    bool proposed; /* the registry holds a pointer to this */
    uint64_t deadline_ms;
    struct buffer in, out;
    char address[ADDRESS_TEXT_SIZE]; /* from where */
    struct enroll_request request;
    struct registry_node record;
    struct registry_token token;
};

struct enroll {
    struct enroll_options options;
    char name[64];
    struct secure_context *secure;
    struct secure_listener *listener;
    uv_timer_t timer; /* deadlines, while there are connections */
    struct connection *connections;
    unsigned connection_count, open_parts;
    unsigned tries;
    uint64_t tries_ms; /* when `tries` was last refilled */
    struct refusals refusals;
    bool closing;
    void (*closed)(void *user);
};

static const char *const refusal_names[ENROLL_REFUSAL_COUNT] = {
    [ENROLL_REFUSED_FORMAT] = "format",   [ENROLL_REFUSED_PROTOCOL] = "protocol",
    [ENROLL_REFUSED_CLUSTER] = "cluster", [ENROLL_REFUSED_CLOCK] = "clock",
    [ENROLL_REFUSED_TOKEN] = "token",     [ENROLL_REFUSED_NAME] = "name",
    [ENROLL_REFUSED_ADDRESS] = "address", [ENROLL_REFUSED_FULL] = "full",
    [ENROLL_REFUSED_BUSY] = "busy",       [ENROLL_REFUSED_REGISTRY] = "registry",
};

static bool never_strangers_key(void *user, node_id id, struct identity_public *out)
{
    (void)user;
    (void)id;
    (void)out;
    return false; /* the listener takes any key; nothing else uses this context */
}

/* --- ends ----------------------------------------------------------------------------------------- */

static void part_closed(struct enroll *n)
{
    if (--n->open_parts > 0)
        return;
    void (*closed)(void *user) = n->closed;
    void *user = n->options.user;
    secure_context_free(n->secure);
    free(n);
    if (closed != NULL)
        closed(user);
}

static void connection_free(struct connection *c)
{
    struct enroll *n = c->n;
    struct connection **link = &n->connections;
    while (*link != c)
        link = &(*link)->next;
    *link = c->next;
    n->connection_count--;
    if (n->connection_count == 0)
        (void)uv_timer_stop(&n->timer);
    buffer_free(&c->in);
    if (c->out.data != NULL)
        sodium_memzero(c->out.data, c->out.capacity);
    buffer_free(&c->out);
    sodium_memzero(c, sizeof *c);
    free(c);
    part_closed(n);
}

static void stream_closed_cb(void *user)
{
    struct connection *c = user;
    c->stream = NULL;
    if (!c->proposed)
        connection_free(c);
}

static void connection_close(struct connection *c)
{
    if (c->phase == PHASE_CLOSED)
        return;
    c->phase = PHASE_CLOSED;
    secure_stream_close(c->stream, stream_closed_cb);
}

/* --- answers -------------------------------------------------------------------------------------- */

static void connection_step(struct connection *c);

static void begin_answer(struct connection *c, const struct enroll_answer *answer)
{
    buffer_init(&c->out, ENROLL_ANSWER_BYTES_MAX + ENROLL_LENGTH_BYTES);
    /* One block, so that no freed copy keeps the keys. */
    if (!buffer_reserve(&c->out, c->out.length_max) || !enroll_answer_write(answer, &c->out)) {
        connection_close(c);
        return;
    }
    c->phase = PHASE_SEND;
    c->deadline_ms = clock_monotonic_ms() + ANSWER_MS;
    connection_step(c);
}

static void refuse(struct connection *c, enum enroll_verdict verdict, enum enroll_refusal why,
                   const char *words)
{
    struct enroll_answer answer = {.major = ENROLL_PROTOCOL_MAJOR, .verdict = verdict};
    char name[TEXT_SHOWN_SIZE];
    (void)text_copy(answer.words, sizeof answer.words, words);
    refusals_note(&c->n->refusals, why, "%s at %s: %s",
                  c->request.name[0] == '\0' ? "a machine" : text_show(c->request.name, name),
                  c->address, words);
    begin_answer(c, &answer);
}

static void refuse_for_now(struct connection *c)
{
    refuse(c, ENROLL_LATER, ENROLL_REFUSED_REGISTRY, "the node that was asked starts or stops");
}

static void tell_joined(struct connection *c, node_id id)
{
    struct enroll *n = c->n;
    struct enroll_answer answer;
    struct err e = {0};
    struct registry_root *root = n->options.root(n->options.user);
    if (root == NULL) {
        refuse_for_now(c);
        return;
    }
    int rc = enroll_tell(&answer, root, id, &e);
    registry_root_release(root);
    if (rc == 0)
        begin_answer(c, &answer);
    else
        refuse(c, ENROLL_LATER, ENROLL_REFUSED_REGISTRY, e.msg);
    known_free(&answer.known);
    membership_wipe(&answer.membership);
}

static void proposed_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct connection *c = user;
    c->proposed = false;
    if (error == NULL && result->problem == PROBLEM_NONE)
        log_info("enroll", "%s at %s (version %s) is node %llu now%s", c->request.name,
                 c->request.address, c->request.version, (unsigned long long)result->node,
                 result->replaced != 0 ? ", in place of the one that had its name" : "");
    if (c->phase == PHASE_CLOSED) {
        if (c->stream == NULL)
            connection_free(c);
        return;
    }
    if (error != NULL)
        refuse(c, ENROLL_LATER, ENROLL_REFUSED_REGISTRY, error->msg);
    else if (result->problem != PROBLEM_NONE)
        refuse(c, ENROLL_REFUSED, ENROLL_REFUSED_REGISTRY, result->detail);
    else
        tell_joined(c, result->node);
}

/* --- a request ------------------------------------------------------------------------------------ */

static uint64_t wall_ms(const struct enroll *n)
{
    return n->options.wall_ms != NULL ? n->options.wall_ms() : clock_wall_ms();
}

static void propose(struct connection *c)
{
    struct enroll *n = c->n;
    struct err e = {0};
    const struct identity_public *key = secure_stream_peer_key(c->stream);
    memcpy(c->record.public_key, key->bytes, sizeof c->record.public_key);
    (void)text_copy(c->record.name, sizeof c->record.name, c->request.name);
    (void)text_copy(c->record.address, sizeof c->record.address, c->request.address);
    (void)text_copy(c->token.id, sizeof c->token.id, c->request.token_id);
    struct registry_command command = {
        .kind = REGISTRY_NODE_JOIN, .wall_ms = wall_ms(n), .node = &c->record, .token = &c->token};
    c->phase = PHASE_PROPOSE;
    c->deadline_ms = clock_monotonic_ms() + PROPOSE_MS;
    c->proposed = true;
    secure_stream_want(c->stream, 0);
    if (n->options.propose(n->options.user, &command, proposed_cb, c, &e) == 0)
        return;
    c->proposed = false;
    refuse(c, ENROLL_LATER, ENROLL_REFUSED_REGISTRY, e.msg);
}

static bool may_try(struct enroll *n)
{
    uint64_t now_ms = clock_monotonic_ms();
    uint64_t more = (now_ms - n->tries_ms) * ENROLL_TRIES_PER_SECOND / 1000;
    if (more > 0) {
        n->tries =
            more > ENROLL_TRIES_MAX - n->tries ? ENROLL_TRIES_MAX : n->tries + (unsigned)more;
        n->tries_ms = now_ms;
    }
    if (n->tries == 0)
        return false;
    n->tries--;
    return true;
}

static void take_request(struct connection *c)
{
    struct enroll *n = c->n;
    struct enroll_verdict_of verdict;
    int rc = enroll_request_read(&c->request, (uint8_t *)c->in.data + ENROLL_LENGTH_BYTES,
                                 c->in.length - ENROLL_LENGTH_BYTES, NULL);
    sodium_memzero(c->in.data, c->in.length);
    if (!may_try(n)) {
        refuse(c, ENROLL_LATER, ENROLL_REFUSED_BUSY, "too many machines ask; again in a second");
        return;
    }
    if (rc != 0) {
        enroll_check_unread(&c->request, rc, &verdict);
        refuse(c, ENROLL_REFUSED, verdict.refusal, verdict.words);
        return;
    }
    struct registry_root *root = n->options.root(n->options.user);
    if (root == NULL) {
        refuse_for_now(c);
        return;
    }
    struct enroll_asking asking = {.request = &c->request,
                                   .key = secure_stream_peer_key(c->stream),
                                   .root = root,
                                   .name = n->name,
                                   .wall_ms = wall_ms(n),
                                   .nodes_max = n->options.nodes_max};
    if (c->request.member != 0) {
        struct enroll_answer answer;
        enroll_confirm(&asking, &answer);
        registry_root_release(root);
        begin_answer(c, &answer);
        return;
    }
    enroll_check(&asking, &verdict);
    registry_root_release(root);
    sodium_memzero(c->request.secret, sizeof c->request.secret);
    if (verdict.refusal != ENROLL_REFUSAL_COUNT)
        refuse(c, ENROLL_REFUSED, verdict.refusal, verdict.words);
    else if (verdict.member != 0)
        tell_joined(c, verdict.member);
    else
        propose(c);
}

/* --- the stream ----------------------------------------------------------------------------------- */

static void await_end(struct connection *c)
{
    char byte;
    size_t count = 0;
    switch (secure_stream_read(c->stream, &byte, 1, &count)) {
    case SECURE_BLOCKED:
        secure_stream_want(c->stream, SECURE_WANT_READ);
        break;
    default:
        connection_close(c);
    }
}

static void connection_step(struct connection *c)
{
    enum enroll_io io;
    switch (c->phase) {
    case PHASE_RECEIVE:
        io = enroll_receive(c->stream, &c->in, ENROLL_REQUEST_BYTES_MAX);
        if (io == ENROLL_IO_DONE) {
            take_request(c);
        } else if (io == ENROLL_IO_BROKEN) {
            refusals_note(&c->n->refusals, ENROLL_REFUSED_FORMAT, "%s: no request came",
                          c->address);
            connection_close(c);
        }
        break;
    case PHASE_SEND:
        io = enroll_send(c->stream, &c->out);
        if (io == ENROLL_IO_WAIT) {
            secure_stream_want(c->stream, SECURE_WANT_WRITE);
        } else if (io == ENROLL_IO_BROKEN || secure_stream_end(c->stream) == SECURE_BROKEN) {
            connection_close(c);
        } else {
            c->phase = PHASE_AWAIT_END;
            await_end(c);
        }
        break;
    case PHASE_AWAIT_END:
        await_end(c);
        break;
    case PHASE_PROPOSE:
    case PHASE_CLOSED:
        break;
    }
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    connection_step(secure_stream_user(s));
}

static void tick_cb(uv_timer_t *timer)
{
    struct enroll *n = container_of(timer, struct enroll, timer);
    uint64_t now_ms = clock_monotonic_ms();
    for (struct connection *c = n->connections; c != NULL; c = c->next) {
        if (c->phase == PHASE_CLOSED || now_ms < c->deadline_ms)
            continue;
        if (c->phase == PHASE_RECEIVE)
            refusals_note(&n->refusals, ENROLL_REFUSED_FORMAT, "%s: no request in %u s", c->address,
                          REQUEST_MS / 1000u);
        connection_close(c);
    }
}

static void turned_away_cb(void *user)
{
    part_closed(user);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    struct enroll *n = user;
    const struct secure_events events = {.ready = ready_cb};
    char address[ADDRESS_TEXT_SIZE];
    address_format(secure_stream_address(s), address);
    struct connection *c =
        n->connection_count < ENROLL_CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;
    if (c == NULL) {
        refusals_note(&n->refusals, ENROLL_REFUSED_BUSY, "%s: too many ask at once", address);
        n->open_parts++;
        secure_stream_set_events(s, &events, n);
        secure_stream_close(s, turned_away_cb);
        return;
    }
    c->n = n;
    c->stream = s;
    c->next = n->connections;
    c->deadline_ms = clock_monotonic_ms() + REQUEST_MS;
    memcpy(c->address, address, sizeof c->address);
    buffer_init(&c->in, ENROLL_LENGTH_BYTES + ENROLL_REQUEST_BYTES_MAX);
    n->connections = c;
    n->connection_count++;
    n->open_parts++;
    secure_stream_set_events(s, &events, c);
    secure_stream_want(s, SECURE_WANT_READ);
    (void)uv_timer_start(&n->timer, tick_cb, TICK_MS, TICK_MS);
}

/* --- life ----------------------------------------------------------------------------------------- */

static void listener_closed_cb(void *user)
{
    part_closed(user);
}

static void timer_closed_cb(uv_handle_t *handle)
{
    part_closed(handle->data);
}

void enroll_close(struct enroll *n, void (*cb)(void *user))
{
    n->closing = true;
    n->closed = cb;
    for (struct connection *c = n->connections; c != NULL; c = c->next)
        connection_close(c);
    n->timer.data = n;
    uv_close((uv_handle_t *)&n->timer, timer_closed_cb);
    secure_listener_close(n->listener, listener_closed_cb);
}

int enroll_open(struct enroll **out, uv_loop_t *loop, const struct enroll_options *options,
                struct err *e)
{
    struct sockaddr_storage address;
    int rc = address_parse(&address, options->address, 0, e);
    if (rc != 0)
        return err_wrap(e, "the join handshake");
    struct enroll *n = calloc(1, sizeof *n);
    if (n == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the join handshake: no memory");
    n->options = *options;
    (void)text_copy(n->name, sizeof n->name, options->name);
    n->refusals = (struct refusals){.subject = "enroll", .names = refusal_names};
    n->tries = ENROLL_TRIES_MAX;
    n->tries_ms = clock_monotonic_ms();
    const struct secure_context_options secure = {
        .identity = options->identity, .id = options->id, .key_of = never_strangers_key};
    rc = secure_context_open(&n->secure, &secure, e);
    if (rc == 0) {
        struct secure_listen_options listen = {.context = n->secure,
                                               .address = &address,
                                               .protocols = 1u << SECURE_ENROLL,
                                               .strangers = true,
                                               .handshakes_max = HANDSHAKES_MAX,
                                               .accepted = accepted_cb,
                                               .user = n};
        rc = secure_listener_open(&n->listener, loop, &listen, e);
    }
    if (rc != 0) {
        secure_context_free(n->secure);
        free(n);
        return err_wrap(e, "the join handshake");
    }
    (void)uv_timer_init(loop, &n->timer);
    n->open_parts = 2;
    *out = n;
    return 0;
}

const struct refusals *enroll_refusals(const struct enroll *n)
{
    return &n->refusals;
}

const struct refusals *enroll_stream_refusals(const struct enroll *n)
{
    return secure_listener_refusals(n->listener);
}
