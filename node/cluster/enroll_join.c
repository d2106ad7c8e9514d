/* The asking side: one peer after the other, on a loop of its own, until one says yes or no for good.
 *
 *     connect --open--> send --all--> receive --answer--> close -> joined, refused,
 *        '----- failure, or the attempt's deadline -----> close -> the next peer; after the last a pause
 *
 * Only the node whose key hashes to the token's fingerprint ever sees the token. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/secure_stream.h"
#include "node/cluster/enroll.h"
#include "node/cluster/enroll_io.h"
#include "node/cluster/enroll_wire.h"
#include "node/cluster/table.h"

#define PEER_PORT_DEFAULT 7600u
#define PEERS_MAX 64u

enum { CONNECT_MS = 2000, ATTEMPT_MS = 25000, PAUSE_MS = 500 };

enum outcome { OUTCOME_NONE, OUTCOME_JOINED, OUTCOME_REFUSED, OUTCOME_LATER, OUTCOME_STRANGER };

struct joining {
    const struct enroll_join_options *options;
    struct enroll_token token;
    uv_loop_t loop;
    uv_timer_t timer; /* of an attempt, then of a pause */
    struct secure_context *secure;
    struct sockaddr_storage peers[PEERS_MAX];

    /* The attempt that is under way. */
    struct secure_stream *stream;
    bool sending, ended, closed;
    enum outcome outcome;
    struct buffer in, out;
    char words[ENROLL_WORDS_SIZE + 64];
    struct enroll_answer answer; /* when joined */
};

/* --- one attempt ---------------------------------------------------------------------------------- */

static void attempt_end(struct joining *j, enum outcome outcome, const char *words)
{
    if (j->ended)
        return;
    j->ended = true;
    j->outcome = outcome;
    (void)text_copy(j->words, sizeof j->words, words);
}

static void take_answer(struct joining *j)
{
    struct err e = {0};
    int rc = enroll_answer_read(&j->answer, (uint8_t *)j->in.data + ENROLL_LENGTH_BYTES,
                                j->in.length - ENROLL_LENGTH_BYTES, &e);
    if (rc == -ERR_UNSUPPORTED)
        attempt_end(j, OUTCOME_REFUSED, j->answer.words[0] != '\0' ? j->answer.words : e.msg);
    else if (rc != 0)
        attempt_end(j, OUTCOME_REFUSED, e.msg);
    else if (j->answer.verdict == ENROLL_REFUSED)
        attempt_end(j, OUTCOME_REFUSED, j->answer.words);
    else if (j->answer.verdict == ENROLL_LATER)
        attempt_end(j, OUTCOME_LATER, j->answer.words);
    else if (j->answer.verdict != ENROLL_JOINED)
        attempt_end(j, OUTCOME_REFUSED, "it answered another question");
    else if (strcmp(j->answer.membership.cluster_id, j->token.cluster_id) != 0)
        attempt_end(j, OUTCOME_REFUSED, "it answered for another cluster than the token's");
    else
        attempt_end(j, OUTCOME_JOINED, "");
}

static void attempt_step(struct joining *j)
{
    enum enroll_io io;
    if (j->ended)
        return;
    if (j->sending) {
        io = enroll_send(j->stream, &j->out);
        if (io == ENROLL_IO_WAIT) {
            secure_stream_want(j->stream, SECURE_WANT_WRITE);
            return;
        }
        j->sending = false;
        secure_stream_want(j->stream, SECURE_WANT_READ);
    }
    io = enroll_receive(j->stream, &j->in, ENROLL_ANSWER_BYTES_MAX);
    if (io == ENROLL_IO_DONE)
        take_answer(j);
    else if (io == ENROLL_IO_BROKEN)
        attempt_end(j, OUTCOME_LATER, "the connection ended before an answer came");
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    attempt_step(secure_stream_user(s));
}

/* The time is told as late as can be: what passed before does not make the clocks differ. */
static bool request_write(struct joining *j)
{
    const struct enroll_join_options *o = j->options;
    struct enroll_request request = {.major = ENROLL_PROTOCOL_MAJOR,
                                     .wall_ms =
                                         o->wall_ms != NULL ? o->wall_ms() : clock_wall_ms()};
    memcpy(request.cluster_id, j->token.cluster_id, sizeof request.cluster_id);
    memcpy(request.token_id, j->token.id, sizeof request.token_id);
    memcpy(request.secret, j->token.secret, sizeof request.secret);
    (void)text_copy(request.name, sizeof request.name, o->name);
    (void)text_copy(request.address, sizeof request.address, o->advertise);
    (void)text_copy(request.version, sizeof request.version, SKERRY_VERSION);
    bool ok = buffer_reserve(&j->out, j->out.length_max) && enroll_request_write(&request, &j->out);
    sodium_memzero(&request, sizeof request);
    return ok;
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct joining *j = secure_stream_user(s);
    if (error != NULL) {
        attempt_end(j, error->code == ERR_DENIED ? OUTCOME_STRANGER : OUTCOME_LATER, error->msg);
        return;
    }
    if (!request_write(j)) {
        attempt_end(j, OUTCOME_LATER, "no memory");
        return;
    }
    j->sending = true;
    attempt_step(j);
}

static void late_cb(uv_timer_t *timer)
{
    attempt_end(timer->data, OUTCOME_LATER, "it did not answer in time");
}

static void stream_closed_cb(void *user)
{
    ((struct joining *)user)->closed = true;
}

static void attempt(struct joining *j, const struct sockaddr_storage *peer)
{
    struct secure_connect_options options = {.context = j->secure,
                                             .address = peer,
                                             .protocol = SECURE_ENROLL,
                                             .fingerprint = &j->token.member,
                                             .timeout_ms = CONNECT_MS,
                                             .events = {.opened = opened_cb, .ready = ready_cb},
                                             .user = j};
    struct err e = {0};
    j->sending = j->ended = j->closed = false;
    buffer_init(&j->in, ENROLL_LENGTH_BYTES + ENROLL_ANSWER_BYTES_MAX);
    buffer_init(&j->out, ENROLL_LENGTH_BYTES + ENROLL_REQUEST_BYTES_MAX);
    if (secure_stream_connect(&j->stream, &j->loop, &options, &e) != 0) {
        attempt_end(j, OUTCOME_LATER, e.msg);
        return;
    }
    (void)uv_timer_start(&j->timer, late_cb, ATTEMPT_MS, 0);
    while (!j->ended)
        uv_run(&j->loop, UV_RUN_ONCE);
    (void)uv_timer_stop(&j->timer);
    secure_stream_close(j->stream, stream_closed_cb);
    while (!j->closed)
        uv_run(&j->loop, UV_RUN_ONCE);
    if (j->out.data != NULL)
        sodium_memzero(j->out.data, j->out.capacity);
    if (j->in.data != NULL)
        sodium_memzero(j->in.data, j->in.capacity);
    buffer_free(&j->out);
    buffer_free(&j->in);
}

/* --- all peers ------------------------------------------------------------------------------------ */

static void pause_cb(uv_timer_t *timer)
{
    ((struct joining *)timer->data)->ended = true;
}

static void pause_a_moment(struct joining *j)
{
    j->ended = false;
    (void)uv_timer_start(&j->timer, pause_cb, PAUSE_MS, 0);
    while (!j->ended)
        uv_run(&j->loop, UV_RUN_ONCE);
}

/* The first that has an answer; of the others, what the last one said. */
static enum outcome ask_each(struct joining *j, char *last, size_t size)
{
    size_t strangers = 0, count = j->options->peer_count;
    for (size_t i = 0; i < count; i++) {
        attempt(j, &j->peers[i]);
        (void)text_format(last, size, "%s: %s", j->options->peers[i], j->words);
        if (j->outcome == OUTCOME_JOINED || j->outcome == OUTCOME_REFUSED)
            return j->outcome;
        strangers += j->outcome == OUTCOME_STRANGER;
    }
    return strangers == count ? OUTCOME_STRANGER : OUTCOME_LATER;
}

static int ask_all(struct joining *j, struct err *e)
{
    uint64_t until_ms = clock_monotonic_ms() + j->options->timeout_ms;
    bool told = false;
    for (;;) {
        char last[sizeof j->words + ADDRESS_TEXT_SIZE];
        enum outcome outcome = ask_each(j, last, sizeof last);
        if (outcome == OUTCOME_JOINED)
            return 0;
        if (outcome == OUTCOME_REFUSED)
            return err_set(e, ERR_DENIED, "%s", last);
        if (outcome == OUTCOME_STRANGER)
            return err_set(e, ERR_DENIED,
                           "none of the peers is the node that made the token: name that one, or "
                           "make a token on a node that is named");
        if (clock_monotonic_ms() >= until_ms)
            return err_set(e, ERR_UNAVAILABLE, "%s", last);
        if (!told)
            log_info("enroll", "%s; trying again", last);
        told = true;
        pause_a_moment(j);
    }
}

/* --- the whole ------------------------------------------------------------------------------------ */

static int prepare(struct joining *j, struct err *e)
{
    const struct enroll_join_options *o = j->options;
    struct sockaddr_storage own;
    int rc = enroll_token_parse(&j->token, o->token, e);
    if (rc == 0)
        rc = known_address_check(o->advertise, &own, e);
    if (rc == 0 && !known_name_valid(o->name))
        rc = err_set(e, ERR_INVALID, "name: a-z, 0-9 and -, at most 63, no - first or last");
    if (rc == 0 && (o->peer_count == 0 || o->peer_count > PEERS_MAX))
        rc = err_set(e, ERR_INVALID, "%zu peers: name 1 to %u nodes of the cluster", o->peer_count,
                     PEERS_MAX);
    for (size_t i = 0; rc == 0 && i < o->peer_count; i++) {
        char text[ADDRESS_TEXT_SIZE];
        rc = address_parse(&j->peers[i], o->peers[i], PEER_PORT_DEFAULT, e);
        if (rc != 0)
            break;
        address_format(&j->peers[i], text);
        rc = known_address_check(text, &j->peers[i], e);
        cluster_port_shift(&j->peers[i], CLUSTER_PORT_ENROLL);
    }
    return rc;
}

static bool no_key(void *user, node_id id, struct identity_public *out)
{
    (void)user;
    (void)id;
    (void)out;
    return false; /* whom we ask is known by the fingerprint alone */
}

static void timer_closed_cb(uv_handle_t *handle)
{
    (void)handle;
}

static int run(struct joining *j, struct err *e)
{
    const struct secure_context_options secure = {.identity = j->options->identity,
                                                  .key_of = no_key};
    int rc = secure_context_open(&j->secure, &secure, e);
    if (rc != 0)
        return rc;
    assert_always(uv_loop_init(&j->loop) == 0);
    assert_always(uv_timer_init(&j->loop, &j->timer) == 0);
    j->timer.data = j;
    rc = ask_all(j, e);
    uv_close((uv_handle_t *)&j->timer, timer_closed_cb);
    uv_run(&j->loop, UV_RUN_DEFAULT);
    assert_always(uv_loop_close(&j->loop) == 0);
    secure_context_free(j->secure);
    return rc;
}

/* The list first: with a membership the node would start by it. */
static int store(const struct joining *j, struct err *e)
{
    int rc = known_save(&j->answer.known, j->options->data, e);
    return rc == 0 ? membership_save(&j->answer.membership, j->options->data, e) : rc;
}

int enroll_join(const struct enroll_join_options *options, struct membership *out, struct err *e)
{
    struct joining *j = calloc(1, sizeof *j);
    if (j == NULL)
        return err_set(e, ERR_NO_MEMORY, "join the cluster: no memory");
    j->options = options;
    int rc = prepare(j, e);
    if (rc == 0)
        rc = run(j, e);
    if (rc == 0)
        rc = store(j, e);
    if (rc == 0)
        *out = j->answer.membership;
    else
        rc = err_wrap(e, "join the cluster");
    known_free(&j->answer.known);
    sodium_memzero(j, sizeof *j);
    free(j);
    return rc;
}
