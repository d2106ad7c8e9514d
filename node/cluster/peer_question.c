/* node/cluster/peer_question.c - questions of other nodes.
 *
 *     connection --> open the seal --> asked ... answered --> the connection, if it is still there
 *                        \-- refused, dropped
 *
 * When questions_max wait for their answer, the next stay in their connections' buffers and behind
 * them in TCP, with who asks; they go on in the order in which they stalled. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/peer_internal.h"

#define BACKLOG 128
#define UNSENT_MAX (1024u * 1024u) /* answers that a connection's other side leaves unread */
#define STRANGERS_BYTES_MAX (64u * 1024u * 1024u) /* of all that have shown no key */

struct peer_question {
    struct peer_rpc *rpc;
    uint64_t connection; /* its serial */
    uint32_t request;
    struct peer_question *next, *previous; /* of those that wait */
    struct peer_seal_content content;
    uint8_t bytes[]; /* of the content's payload */
};

/* --- answering ------------------------------------------------------------------------------------ */

static void resume_cb(uv_timer_t *timer)
{
    struct peer_rpc *rpc = timer->data;
    while (rpc->stalled != NULL && rpc->counts.questions_now < rpc->options.questions_max) {
        struct peer_connection *c = rpc->stalled;
        DL_DELETE2(rpc->stalled, c, previous, next);
        c->stalled = false;
        sp_stream_resume(c->stream);
    }
}

/* Not from here: who answers is often in the call that asked. */
static void question_end(struct peer_question *q)
{
    struct peer_rpc *rpc = q->rpc;
    assert_always(rpc->counts.questions_now > 0);
    rpc->counts.questions_now--;
    DL_DELETE2(rpc->questions, q, previous, next);
    free(q);
    if (rpc->stalled != NULL && !uv_is_active((uv_handle_t *)&rpc->resume))
        (void)uv_timer_start(&rpc->resume, resume_cb, 0, 0);
}

/* Seals an answer to what `to` asked. */
static void reply(struct peer_connection *c, uint32_t request, const struct peer_seal_content *to,
                  const struct peer_seal_content *answer)
{
    struct err e;
    struct peer_seal_content content = *answer;
    struct sp_message *m = sp_message_new(answer->size + PEER_SEAL_OVERHEAD_BYTES);
    content.peer = to->peer;
    content.what = to->what;
    content.answers = to->counter;
    content.boot = to->boot;
    int rc = m == NULL ? err_set(&e, ERR_NO_MEMORY, "no memory")
                       : peer_seal_message(c->rpc->seal, &content, sp_message_bytes(m), &e);
    if (rc == 0) {
        sp_stream_send(c->stream, m, request);
        return;
    }
    log_warn("peer", "a question of node %" PRIu64 " stays without answer: %s", to->peer, e.msg);
    sp_message_free(m);
}

node_id peer_question_from(const struct peer_question *q)
{
    return q->content.peer;
}

uint16_t peer_question_what(const struct peer_question *q)
{
    return q->content.what;
}

const uint8_t *peer_question_payload(const struct peer_question *q, size_t *size)
{
    *size = q->content.size;
    return q->bytes;
}

void peer_question_answer(struct peer_question *q, const void *payload, size_t size)
{
    struct peer_connection *c = NULL;
    struct peer_seal_content answer = {.kind = PEER_SEAL_ANSWER, .payload = payload, .size = size};
    HASH_FIND(hh, q->rpc->connections, &q->connection, sizeof q->connection, c);
    if (c != NULL)
        reply(c, q->request, &q->content, &answer);
    question_end(q);
}

void peer_question_drop(struct peer_question *q)
{
    question_end(q);
}

/* --- what comes in -------------------------------------------------------------------------------- */

static void ask(struct peer_connection *c, uint32_t request,
                const struct peer_seal_content *content)
{
    struct peer_rpc *rpc = c->rpc;
    struct peer_question *q = malloc(sizeof *q + content->size);
    if (q == NULL)
        return; /* who asks hears of it by the call's timeout */
    *q = (struct peer_question){
        .rpc = rpc, .connection = c->serial, .request = request, .content = *content};
    if (content->size > 0)
        memcpy(q->bytes, content->payload, content->size);
    q->content.payload = q->bytes;
    DL_APPEND2(rpc->questions, q, previous, next);
    rpc->counts.questions++;
    rpc->counts.questions_now++;
    rpc->options.asked(rpc->options.user, q);
}

static bool message_cb(void *user, uint32_t request, uint8_t *bytes, size_t size)
{
    static const struct peer_seal_content refusal = {.kind = PEER_SEAL_REFUSAL};
    static const struct peer_seal_content outlived = {
        .kind = PEER_SEAL_REFUSAL,
        .payload = (const uint8_t *)PEER_SEAL_OUTLIVED_PAYLOAD,
        .size = 1};
    struct peer_connection *c = user;
    struct peer_rpc *rpc = c->rpc;
    struct peer_seal_content content;
    if (rpc->closing)
        return true;
    if (rpc->counts.questions_now >= rpc->options.questions_max) {
        c->stalled = true;
        DL_APPEND2(rpc->stalled, c, previous, next);
        return false;
    }
    enum peer_seal_result result = peer_seal_open(rpc->seal, bytes, size, &content);
    if (result == PEER_SEAL_EARLIER_LIFE) {
        reply(c, request, &content, &refusal);
    } else if (result == PEER_SEAL_OUTLIVED) {
        reply(c, request, &content, &outlived);
    } else if (result == PEER_SEAL_GOOD && content.kind == PEER_SEAL_ASK) {
        c->node = content.peer;
        sp_stream_trust(c->stream);
        ask(c, request, &content);
    }
    return true;
}

/* --- connections ---------------------------------------------------------------------------------- */

static void closed_cb(void *user)
{
    struct peer_connection *c = user;
    struct peer_rpc *rpc = c->rpc;
    HASH_DEL(rpc->connections, c);
    if (c->stalled)
        DL_DELETE2(rpc->stalled, c, previous, next);
    free(c);
    peer_part_closed(rpc);
}

/* The one that has been there longest and has not shown a key makes room for the next. */
static bool make_room(struct peer_rpc *rpc)
{
    struct peer_connection *c, *next;
    if (HASH_COUNT(rpc->connections) <= rpc->options.connections_max)
        return true;
    HASH_ITER(hh, rpc->connections, c, next)
    {
        if (c->node == 0 && !c->leaving && c->hh.next != NULL /* not the newest */) {
            c->leaving = true;
            sp_stream_close(c->stream);
            return true;
        }
    }
    return false;
}

static void connection_cb(uv_stream_t *listener, int status)
{
    static const struct sp_events events = {.message = message_cb, .closed = closed_cb};
    struct peer_rpc *rpc = listener->data;
    struct sockaddr_storage from;
    struct err e;
    struct peer_connection *c = status == 0 ? calloc(1, sizeof *c) : NULL;
    if (c == NULL)
        return;
    struct sp_options options = {.protocol = SP_REP,
                                 .bytes_max = rpc->options.bytes_max + PEER_SEAL_OVERHEAD_BYTES,
                                 .unsent_max = UNSENT_MAX,
                                 .budget = &rpc->budget,
                                 .events = &events,
                                 .user = c};
    c->rpc = rpc;
    if (sp_stream_accept(&c->stream, listener, &options, &e) != 0) {
        log_warn("peer", "a connection was not accepted: %s", e.msg);
        free(c);
        return;
    }
    c->serial = ++rpc->serial;
    rpc->counts.connections++;
    rpc->open_parts++;
    HASH_ADD(hh, rpc->connections, serial, sizeof c->serial, c);
    if (sp_stream_peer(c->stream, &from) && address_private(&from) && make_room(rpc))
        sp_stream_begin(c->stream);
    else
        sp_stream_close(c->stream);
}

void peer_questions_forget(struct peer_rpc *rpc, node_id id)
{
    struct peer_connection *c, *next;
    HASH_ITER(hh, rpc->connections, c, next)
    {
        if (c->node == id)
            sp_stream_close(c->stream);
    }
}

/* --- life ----------------------------------------------------------------------------------------- */

int peer_questions_open(struct peer_rpc *rpc, const struct sockaddr_storage *address, struct err *e)
{
    char text[ADDRESS_TEXT_SIZE];
    rpc->budget.max = STRANGERS_BYTES_MAX;
    (void)uv_timer_init(rpc->loop, &rpc->resume);
    rpc->resume.data = rpc;
    rpc->open_parts++;
    int rc = uv_tcp_init(rpc->loop, &rpc->listener);
    assert_always(rc == 0); /* makes no socket yet */
    rpc->listener.data = rpc;
    rpc->open_parts++;
    rc = uv_tcp_bind(&rpc->listener, (const struct sockaddr *)address, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)&rpc->listener, BACKLOG, connection_cb);
    if (rc == 0)
        return 0;
    address_format(address, text);
    return err_set(e, ERR_IO, "listen for questions of other nodes on %s: %s", text,
                   uv_strerror(rc));
}

void peer_questions_close(struct peer_rpc *rpc)
{
    struct peer_connection *c, *next;
    uv_close((uv_handle_t *)&rpc->listener, peer_handle_closed_cb);
    uv_close((uv_handle_t *)&rpc->resume, peer_handle_closed_cb);
    HASH_ITER(hh, rpc->connections, c, next)
    sp_stream_close(c->stream);
}

void peer_questions_free(struct peer_rpc *rpc)
{
    struct peer_question *q, *next;
    DL_FOREACH_SAFE2(rpc->questions, q, next, next)
    free(q);
}
