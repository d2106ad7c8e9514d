/* node/cluster/peer_question.c - questions of other nodes.
 *
 * Each of questions_max contexts of one REP socket goes round, by itself:
 *
 *     receive (nng) --> inbox --> open the seal --> asked ... answered --> send (nng) --> receive
 *                                       \-- refused, dropped --------------------------> receive
 *
 * When all are busy, questions wait in TCP with who asks. */
#include <inttypes.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/peer_internal.h"

static void question_deliver(struct inbox_message *message, void *owner);

static void receive(struct peer_question *q)
{
    q->sending = false;
    nng_ctx_recv(q->context, q->aio);
}

/* nng's thread. */
static void question_cb(void *argument)
{
    struct peer_question *q = argument;
    int rc = nng_aio_result(q->aio);
    if (q->sending) {
        if (rc != 0)
            nng_msg_free(nng_aio_get_msg(q->aio));
        if (rc != NNG_ECLOSED && rc != NNG_ECANCELED)
            receive(q);
        return;
    }
    if (rc == 0) {
        q->body = nng_aio_get_msg(q->aio);
        q->message.deliver = question_deliver;
        /* Bounded by the contexts: each waits for its answer before it receives again. */
        if (inbox_post_always(q->rpc->inbox, &q->message))
            return;
        nng_msg_free(q->body);
        q->body = NULL;
    }
    if (rc != NNG_ECLOSED && rc != NNG_ECANCELED)
        receive(q);
}

/* --- on the loop ---------------------------------------------------------------------------------- */

static void release(struct peer_question *q)
{
    if (q->body != NULL)
        nng_msg_free(q->body);
    q->body = NULL;
}

static void reply(struct peer_question *q, enum peer_seal_kind kind, const void *payload,
                  size_t size)
{
    struct err e;
    nng_msg *body = NULL;
    struct peer_seal_content content = {.peer = q->content.peer,
                                        .kind = kind,
                                        .what = q->content.what,
                                        .answers = q->content.counter,
                                        .boot = q->content.boot,
                                        .payload = payload,
                                        .size = size};
    int rc = nng_msg_alloc(&body, size + PEER_SEAL_OVERHEAD_BYTES) != 0
                 ? err_set(&e, ERR_NO_MEMORY, "no memory")
                 : peer_seal_message(q->rpc->seal, &content, nng_msg_body(body), &e);
    release(q);
    if (rc != 0) {
        log_warn("peer", "a question of node %" PRIu64 " stays without answer: %s", q->content.peer,
                 e.msg);
        if (body != NULL)
            nng_msg_free(body);
        receive(q);
        return;
    }
    q->sending = true;
    nng_aio_set_msg(q->aio, body);
    nng_ctx_send(q->context, q->aio);
}

static void note_pipe(struct peer_rpc *rpc, node_id id, nng_pipe pipe)
{
    struct peer_pipe *p = NULL;
    HASH_FIND(hh, rpc->pipes, &id, sizeof id, p);
    if (p == NULL) {
        p = calloc(1, sizeof *p);
        if (p == NULL)
            return; /* it closes when the other side ends */
        p->id = id;
        HASH_ADD(hh, rpc->pipes, id, sizeof p->id, p);
    }
    p->pipe = pipe;
}

void peer_questions_forget(struct peer_rpc *rpc, node_id id)
{
    struct peer_pipe *p = NULL;
    HASH_FIND(hh, rpc->pipes, &id, sizeof id, p);
    if (p == NULL)
        return;
    HASH_DEL(rpc->pipes, p);
    (void)nng_pipe_close(p->pipe);
    free(p);
}

static void question_deliver(struct inbox_message *message, void *owner)
{
    struct peer_question *q = container_of(message, struct peer_question, message);
    struct peer_rpc *rpc = owner;
    if (rpc->closing) {
        release(q);
        return;
    }
    enum peer_seal_result result =
        peer_seal_open(rpc->seal, nng_msg_body(q->body), nng_msg_len(q->body), &q->content);
    if (result == PEER_SEAL_EARLIER_LIFE) {
        reply(q, PEER_SEAL_REFUSAL, NULL, 0);
    } else if (result == PEER_SEAL_OUTLIVED) {
        reply(q, PEER_SEAL_REFUSAL, PEER_SEAL_OUTLIVED_PAYLOAD, 1);
    } else if (result != PEER_SEAL_GOOD || q->content.kind != PEER_SEAL_ASK) {
        release(q);
        receive(q);
    } else {
        note_pipe(rpc, q->content.peer, nng_msg_get_pipe(q->body));
        rpc->counts.questions++;
        rpc->counts.questions_now++;
        rpc->options.asked(rpc->options.user, q);
    }
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
    return q->content.payload;
}

void peer_question_answer(struct peer_question *q, const void *payload, size_t size)
{
    assert_always(q->body != NULL && q->rpc->counts.questions_now > 0);
    q->rpc->counts.questions_now--;
    reply(q, PEER_SEAL_ANSWER, payload, size);
}

void peer_question_drop(struct peer_question *q)
{
    assert_always(q->body != NULL && q->rpc->counts.questions_now > 0);
    q->rpc->counts.questions_now--;
    release(q);
    receive(q);
}

/* --- who may connect ------------------------------------------------------------------------------ */

static bool comes_from_private(nng_pipe pipe)
{
    nng_sockaddr from;
    struct sockaddr_storage address = {0};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (nng_pipe_get_addr(pipe, NNG_OPT_REMADDR, &from) != 0)
        return false;
    if (from.s_family == NNG_AF_INET) {
        v4.sin_addr.s_addr = from.s_in.sa_addr;
        memcpy(&address, &v4, sizeof v4);
    } else if (from.s_family == NNG_AF_INET6) {
        memcpy(&v6.sin6_addr, from.s_in6.sa_addr, sizeof v6.sin6_addr);
        memcpy(&address, &v6, sizeof v6);
    }
    return address_private(&address);
}

/* nng's thread. A connection closed before it was added is never used. */
static void pipe_cb(nng_pipe pipe, nng_pipe_ev event, void *argument)
{
    struct peer_rpc *rpc = argument;
    if (event == NNG_PIPE_EV_ADD_PRE) {
        unsigned now = __atomic_load_n(&rpc->connections, __ATOMIC_RELAXED);
        if (now >= rpc->options.connections_max || !comes_from_private(pipe))
            (void)nng_pipe_close(pipe);
    } else if (event == NNG_PIPE_EV_ADD_POST) {
        (void)__atomic_add_fetch(&rpc->connections, 1, __ATOMIC_RELAXED);
    } else if (event == NNG_PIPE_EV_REM_POST) {
        (void)__atomic_sub_fetch(&rpc->connections, 1, __ATOMIC_RELAXED);
    }
}

/* --- life ----------------------------------------------------------------------------------------- */

static int listen_at(struct peer_rpc *rpc, const char *address, struct err *e)
{
    char url[ADDRESS_TEXT_SIZE + 8];
    (void)text_format(url, sizeof url, "tcp://%s", address);
    int rc = nng_socket_set_size(rpc->listener, NNG_OPT_RECVMAXSZ,
                                 rpc->options.bytes_max + PEER_SEAL_OVERHEAD_BYTES +
                                     PEER_NNG_HEADER_BYTES);
    for (int event = NNG_PIPE_EV_ADD_PRE; rc == 0 && event < NNG_PIPE_EV_NUM; event++)
        rc = nng_pipe_notify(rpc->listener, (nng_pipe_ev)event, pipe_cb, rpc);
    if (rc == 0)
        rc = nng_listen(rpc->listener, url, NULL, 0);
    if (rc != 0)
        return err_set(e, ERR_IO, "listen for questions of other nodes on %s: %s", address,
                       nng_strerror(rc));
    return 0;
}

static int question_open(struct peer_rpc *rpc, struct peer_question *q)
{
    q->rpc = rpc;
    if (nng_ctx_open(&q->context, rpc->listener) != 0)
        return -ERR_NO_MEMORY;
    return nng_aio_alloc(&q->aio, question_cb, q) == 0 ? 0 : -ERR_NO_MEMORY;
}

int peer_questions_open(struct peer_rpc *rpc, struct err *e)
{
    char address[ADDRESS_TEXT_SIZE];
    address_format(rpc->options.address, address);
    rpc->questions = calloc(rpc->options.questions_max, sizeof *rpc->questions);
    if (rpc->questions == NULL || nng_rep0_open(&rpc->listener) != 0)
        return err_set(e, ERR_NO_MEMORY, "open peer messages: no memory");
    for (unsigned i = 0; i < rpc->options.questions_max; i++)
        if (question_open(rpc, &rpc->questions[i]) != 0)
            return err_set(e, ERR_NO_MEMORY, "open peer messages: no memory");
    int rc = listen_at(rpc, address, e);
    for (unsigned i = 0; rc == 0 && i < rpc->options.questions_max; i++)
        receive(&rpc->questions[i]);
    return rc;
}

void peer_questions_stop(struct peer_rpc *rpc)
{
    (void)nng_close(rpc->listener);
    for (unsigned i = 0; rpc->questions != NULL && i < rpc->options.questions_max; i++)
        if (rpc->questions[i].aio != NULL)
            nng_aio_stop(rpc->questions[i].aio);
}

void peer_questions_free(struct peer_rpc *rpc)
{
    for (unsigned i = 0; rpc->questions != NULL && i < rpc->options.questions_max; i++) {
        release(&rpc->questions[i]);
        if (rpc->questions[i].aio != NULL)
            nng_aio_free(rpc->questions[i].aio);
    }
    free(rpc->questions);
    struct peer_pipe *p, *next;
    HASH_ITER(hh, rpc->pipes, p, next)
    {
        HASH_DEL(rpc->pipes, p);
        free(p);
    }
}
