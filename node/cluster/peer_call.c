/* node/cluster/peer_call.c - questions to other nodes.
 *
 * A call has a slot: a context of its peer's REQ socket and an aio, kept for the next call.
 *
 *     send (nng) --left--> receive (nng) --answer--> inbox --> open the seal --> answered
 *         \-- failed: never heard --/ \-- failed: maybe heard --/        \-- "earlier life":
 *                                                                            once more, sealed anew
 * nng is told never to send again by itself: it would not ask whether that is safe. */
#include <inttypes.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/peer_internal.h"

#define RECONNECT_MIN_MS 50
#define RECONNECT_MAX_MS 1000

static void slot_deliver(struct inbox_message *message, void *owner);

/* --- nng's threads -------------------------------------------------------------------------------- */

static unsigned remaining_ms(const struct peer_slot *slot)
{
    uint64_t now_ms = clock_monotonic_ms();
    return slot->until_ms > now_ms ? (unsigned)(slot->until_ms - now_ms) : 0;
}

static void slot_cb(void *argument)
{
    struct peer_slot *slot = argument;
    slot->result = nng_aio_result(slot->aio);
    if (slot->result == 0 && !slot->receiving) {
        slot->receiving = true;
        nng_aio_set_timeout(slot->aio, (nng_duration)remaining_ms(slot) + 1);
        nng_ctx_recv(slot->context, slot->aio);
        return;
    }
    if (slot->result != 0 && !slot->receiving)
        nng_msg_free(nng_aio_get_msg(slot->aio));
    slot->body = slot->result == 0 ? nng_aio_get_msg(slot->aio) : NULL;
    slot->message.deliver = slot_deliver;
    /* Bounded by the calls under way; the inbox closes after the last of them. */
    bool posted = inbox_post_always(slot->link->rpc->inbox, &slot->message);
    assert_always(posted);
}

/* --- links ---------------------------------------------------------------------------------------- */

static void slot_free(struct peer_slot *slot)
{
    nng_aio_free(slot->aio);
    (void)nng_ctx_close(slot->context);
    free(slot->payload);
    free(slot);
}

static void link_free(struct peer_link *link)
{
    while (link->slots != NULL) {
        struct peer_slot *slot = link->slots;
        link->slots = slot->next_slot;
        slot_free(slot);
    }
    free(link);
}

static void link_free_retired(struct peer_link *link)
{
    if (link->previous != NULL)
        link->previous->next = link->next;
    else
        link->rpc->retired = link->next;
    if (link->next != NULL)
        link->next->previous = link->previous;
    link_free(link);
}

/* Out of the table; freed with its last call, which nng ends now. */
static void link_retire(struct peer_link *link)
{
    struct peer_rpc *rpc = link->rpc;
    HASH_DEL(rpc->links, link);
    link->retired = true;
    link->next = rpc->retired;
    if (rpc->retired != NULL)
        rpc->retired->previous = link;
    rpc->retired = link;
    (void)nng_close(link->socket);
    if (link->calls == 0)
        link_free_retired(link);
}

static int link_dial(struct peer_link *link)
{
    char address[ADDRESS_TEXT_SIZE], url[ADDRESS_TEXT_SIZE + 8];
    nng_dialer dialer;
    address_format(&link->address, address);
    (void)text_format(url, sizeof url, "tcp://%s", address);
    int rc = nng_req0_open(&link->socket);
    if (rc != 0)
        return rc;
    if ((rc = nng_socket_set_size(link->socket, NNG_OPT_RECVMAXSZ,
                                  link->rpc->options.bytes_max + PEER_SEAL_OVERHEAD_BYTES +
                                      PEER_NNG_HEADER_BYTES)) != 0 ||
        (rc = nng_socket_set_ms(link->socket, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE)) !=
            0 ||
        (rc = nng_socket_set_ms(link->socket, NNG_OPT_RECONNMINT, RECONNECT_MIN_MS)) != 0 ||
        (rc = nng_socket_set_ms(link->socket, NNG_OPT_RECONNMAXT, RECONNECT_MAX_MS)) != 0 ||
        (rc = nng_dial(link->socket, url, &dialer, NNG_FLAG_NONBLOCK)) != 0)
        (void)nng_close(link->socket);
    return rc;
}

static int link_open(struct peer_link **out, struct peer_rpc *rpc, node_id id,
                     const struct sockaddr_storage *address, struct err *e)
{
    struct peer_link *link = calloc(1, sizeof *link);
    if (link == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    link->id = id;
    link->rpc = rpc;
    link->address = *address;
    int rc = link_dial(link);
    if (rc != 0) {
        free(link);
        return err_set(e, ERR_IO, "connect to node %" PRIu64 ": %s", id, nng_strerror(rc));
    }
    HASH_ADD(hh, rpc->links, id, sizeof link->id, link);
    *out = link;
    return 0;
}

static int link_find(struct peer_link **out, struct peer_rpc *rpc, node_id id, struct err *e)
{
    struct sockaddr_storage address;
    struct peer_link *link = NULL;
    HASH_FIND(hh, rpc->links, &id, sizeof id, link);
    if (!rpc->options.address_of(rpc->options.user, id, &address))
        return err_set(e, ERR_UNAVAILABLE, "nobody knows the address of node %" PRIu64, id);
    int rc = address_check_private(&address, e);
    if (rc != 0)
        return rc;
    if (link != NULL && !address_equal(&link->address, &address)) {
        link_retire(link);
        link = NULL;
    }
    if (link == NULL)
        return link_open(out, rpc, id, &address, e);
    *out = link;
    return 0;
}

void peer_rpc_forget(struct peer_rpc *rpc, node_id id)
{
    struct peer_link *link = NULL;
    HASH_FIND(hh, rpc->links, &id, sizeof id, link);
    if (link != NULL)
        link_retire(link);
    peer_questions_forget(rpc, id);
    peer_seal_forget(rpc->seal, id);
}

/* --- calls ---------------------------------------------------------------------------------------- */

static struct peer_slot *slot_take(struct peer_link *link)
{
    struct peer_slot *slot = link->idle;
    if (slot != NULL) {
        link->idle = slot->next;
        return slot;
    }
    slot = calloc(1, sizeof *slot);
    if (slot == NULL)
        return NULL;
    slot->link = link;
    if (nng_ctx_open(&slot->context, link->socket) != 0) {
        free(slot);
        return NULL;
    }
    if (nng_ctx_set_ms(slot->context, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE) != 0 ||
        nng_aio_alloc(&slot->aio, slot_cb, slot) != 0) {
        (void)nng_ctx_close(slot->context);
        free(slot);
        return NULL;
    }
    slot->next_slot = link->slots;
    link->slots = slot;
    return slot;
}

static void slot_give(struct peer_slot *slot)
{
    struct peer_link *link = slot->link;
    free(slot->payload);
    slot->payload = NULL;
    slot->busy = false;
    slot->next = link->idle;
    link->idle = slot;
    link->calls--;
    link->rpc->counts.calls_now--;
    if (link->retired && link->calls == 0 && !link->rpc->closing)
        link_free_retired(link);
}

/* Seals the slot's question and hands it to nng. */
static int slot_send(struct peer_slot *slot, struct err *e)
{
    nng_msg *body = NULL;
    struct peer_seal_content content = {.peer = slot->call.to,
                                        .kind = PEER_SEAL_ASK,
                                        .what = slot->call.what,
                                        .payload = slot->payload,
                                        .size = slot->call.size};
    if (nng_msg_alloc(&body, content.size + PEER_SEAL_OVERHEAD_BYTES) != 0)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    int rc = peer_seal_message(slot->link->rpc->seal, &content, nng_msg_body(body), e);
    if (rc != 0) {
        nng_msg_free(body);
        return rc;
    }
    slot->counter = content.counter;
    slot->receiving = false;
    nng_aio_set_timeout(slot->aio, (nng_duration)remaining_ms(slot) + 1);
    nng_aio_set_msg(slot->aio, body);
    nng_ctx_send(slot->context, slot->aio);
    return 0;
}

int peer_rpc_call(struct peer_rpc *rpc, const struct peer_call *call, struct err *e)
{
    struct peer_link *link = NULL;
    struct peer_slot *slot = NULL;
    int rc = link_find(&link, rpc, call->to, e);
    if (rc != 0)
        return rc;
    if (link->calls >= rpc->options.calls_max)
        return err_set(e, ERR_LIMIT, "%u calls to node %" PRIu64 " are under way; no more at once",
                       link->calls, call->to);
    slot = slot_take(link);
    if (slot == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    slot->busy = true;
    link->calls++;
    rpc->counts.calls_now++;
    slot->call = *call;
    slot->again = false;
    slot->until_ms = clock_monotonic_ms() +
                     (call->timeout_ms == 0 ? PEER_RPC_TIMEOUT_MS_DEFAULT : call->timeout_ms);
    slot->payload = call->size == 0 ? NULL : malloc(call->size);
    if (call->size > 0 && slot->payload == NULL) {
        rc = err_set(e, ERR_NO_MEMORY, "no memory");
    } else {
        if (call->size > 0)
            memcpy(slot->payload, call->payload, call->size);
        rc = slot_send(slot, e);
    }
    if (rc != 0)
        slot_give(slot);
    else
        rpc->counts.calls++;
    return rc;
}

/* --- answers -------------------------------------------------------------------------------------- */

static void slot_end(struct peer_slot *slot, const struct peer_answer *answer)
{
    struct peer_rpc_counts *counts = &slot->link->rpc->counts;
    nng_msg *body = slot->body;
    void (*answered)(void *user, const struct peer_answer *answer) = slot->call.answered;
    void *user = slot->call.user;
    if (answer->error == NULL)
        counts->answered++;
    else if (answer->error->code == ERR_TIMEOUT)
        counts->timed_out++;
    else
        counts->failed++;
    slot->body = NULL;
    slot_give(slot);
    answered(user, answer);
    if (body != NULL)
        nng_msg_free(body);
}

static void slot_fail(struct peer_slot *slot, enum err_code code, const char *text)
{
    struct err error;
    (void)err_set(&error, code, "node %" PRIu64 ": %s", slot->call.to, text);
    slot_end(slot, &(struct peer_answer){.from = slot->call.to,
                                         .error = &error,
                                         .maybe_heard = slot->receiving && code != ERR_CONFLICT});
}

static void slot_fail_nng(struct peer_slot *slot)
{
    if (slot->link->rpc->closing)
        slot_fail(slot, ERR_CANCELED, "this node stops");
    else if (slot->result == NNG_ETIMEDOUT)
        slot_fail(slot, ERR_TIMEOUT, slot->receiving ? "no answer in time" : "not connected");
    else
        slot_fail(slot, ERR_UNAVAILABLE, nng_strerror(slot->result));
}

/* The other node has restarted since we last heard of it, and did nothing. Its new boot is known
 * now. */
static void ask_again(struct peer_slot *slot)
{
    struct err e;
    nng_msg_free(slot->body);
    slot->body = NULL;
    if (slot->again || slot->link->retired || slot->link->rpc->closing) {
        slot->receiving = false;
        slot_fail(slot, ERR_UNAVAILABLE, "it restarts");
        return;
    }
    slot->again = true;
    if (slot_send(slot, &e) != 0) {
        slot->receiving = false;
        slot_fail(slot, e.code, e.msg);
    }
}

/* A later process has our id: to the other node this one is over. */
static void outlived(struct peer_slot *slot)
{
    struct peer_rpc *rpc = slot->link->rpc;
    slot->receiving = false;
    slot_fail(slot, ERR_CONFLICT, "it knows a later process of this node");
    if (rpc->options.outlived != NULL && !rpc->closing)
        rpc->options.outlived(rpc->options.user);
}

static void slot_deliver(struct inbox_message *message, void *owner)
{
    struct peer_slot *slot = container_of(message, struct peer_slot, message);
    struct peer_rpc *rpc = owner;
    struct peer_seal_content content;
    if (slot->result != 0) {
        slot_fail_nng(slot);
        return;
    }
    enum peer_seal_result result =
        peer_seal_open(rpc->seal, nng_msg_body(slot->body), nng_msg_len(slot->body), &content);
    if (result != PEER_SEAL_GOOD || content.peer != slot->call.to ||
        content.kind == PEER_SEAL_ASK || content.answers != slot->counter)
        slot_fail(slot, ERR_PROTOCOL, "what came is no answer of it to this question");
    else if (content.kind == PEER_SEAL_REFUSAL && content.size > 0)
        outlived(slot);
    else if (content.kind == PEER_SEAL_REFUSAL)
        ask_again(slot);
    else
        slot_end(slot, &(struct peer_answer){
                           .from = content.peer, .payload = content.payload, .size = content.size});
}

/* --- life ----------------------------------------------------------------------------------------- */

static void link_stop(struct peer_link *link)
{
    if (!link->retired)
        (void)nng_close(link->socket);
    for (struct peer_slot *slot = link->slots; slot != NULL; slot = slot->next_slot)
        nng_aio_stop(slot->aio);
}

/* Closing a socket ends its calls; each posts itself to the inbox. */
void peer_links_stop(struct peer_rpc *rpc)
{
    struct peer_link *link, *next;
    HASH_ITER(hh, rpc->links, link, next)
    link_stop(link);
    for (link = rpc->retired; link != NULL; link = link->next)
        link_stop(link);
}

/* One that was stopped between leaving and receiving posts nothing. */
static void link_end(struct peer_link *link)
{
    for (struct peer_slot *slot = link->slots; slot != NULL; slot = slot->next_slot)
        if (slot->busy)
            slot_fail(slot, ERR_CANCELED, "this node stops");
    link_free(link);
}

void peer_links_free(struct peer_rpc *rpc)
{
    struct peer_link *link, *next;
    HASH_ITER(hh, rpc->links, link, next)
    {
        HASH_DEL(rpc->links, link);
        link_end(link);
    }
    while (rpc->retired != NULL) {
        link = rpc->retired;
        rpc->retired = link->next;
        link_end(link);
    }
}
