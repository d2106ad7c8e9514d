/* node/cluster/peer_call.c - questions to other nodes.
 *
 *     waits (not connected) --> left --answer--> open the seal --> answered
 *         \-- never heard         \-- maybe heard       \-- "earlier life": once more, sealed anew
 *
 * A link has one connection; calls of it are told apart by their request id. A connection that ends
 * ends the calls that left by it, and the link connects again by itself. Nothing is sent again
 * but what the other side has said that it did not do. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/peer_internal.h"

#define TICK_MS 10u
#define CONNECT_WITHIN_MS 5000u
#define RECONNECT_MIN_MS 50u
#define RECONNECT_MAX_MS 1000u
#define UNSENT_MAX (16u * 1024u * 1024u) /* to one node */

static void link_connect(struct peer_link *link);

/* --- the end of a call ---------------------------------------------------------------------------- */

static void asking_end(struct peer_asking *a, const struct peer_answer *answer)
{
    struct peer_rpc *rpc = a->link->rpc;
    struct peer_rpc_counts *counts = &rpc->counts;
    void (*answered)(void *user, const struct peer_answer *answer) = a->call.answered;
    void *user = a->call.user;
    if (answer->error == NULL)
        counts->answered++;
    else if (answer->error->code == ERR_TIMEOUT)
        counts->timed_out++;
    else
        counts->failed++;
    counts->calls_now--;
    a->link->calls--;
    HASH_DEL(rpc->askings, a);
    sp_message_free(a->message);
    free(a->payload);
    free(a);
    answered(user, answer);
}

static void asking_fail(struct peer_asking *a, enum err_code code, bool maybe_heard,
                        const char *text)
{
    struct err error;
    (void)err_set(&error, code, "node %" PRIu64 ": %s", a->call.to, text);
    asking_end(
        a, &(struct peer_answer){.from = a->call.to, .error = &error, .maybe_heard = maybe_heard});
}

/* Calls of a link that have left, or all of them. */
static void end_calls(struct peer_link *link, bool all)
{
    struct peer_rpc *rpc = link->rpc;
    struct peer_asking *a, *next;
    HASH_ITER(hh, rpc->askings, a, next)
    {
        if (a->link != link || (!all && a->message != NULL))
            continue;
        if (rpc->closing)
            asking_fail(a, ERR_CANCELED, a->message == NULL, "this node stops");
        else
            asking_fail(a, ERR_UNAVAILABLE, a->message == NULL, "the connection ended");
    }
}

static void tick_cb(uv_timer_t *timer)
{
    struct peer_rpc *rpc = timer->data;
    struct peer_asking *a, *next;
    uint64_t now_ms = clock_monotonic_ms();
    HASH_ITER(hh, rpc->askings, a, next)
    {
        if (now_ms >= a->until_ms)
            asking_fail(a, ERR_TIMEOUT, a->message == NULL,
                        a->message == NULL ? "no answer in time" : "not connected");
    }
    if (rpc->askings == NULL)
        (void)uv_timer_stop(timer);
}

/* --- a call --------------------------------------------------------------------------------------- */

static void asking_send(struct peer_asking *a)
{
    struct peer_link *link = a->link;
    struct sp_message *m = a->message;
    if (!link->open)
        return;
    a->message = NULL;
    sp_stream_send(link->stream, m, a->request);
}

static int asking_seal(struct peer_asking *a, struct err *e)
{
    struct peer_seal_content content = {.peer = a->call.to,
                                        .kind = PEER_SEAL_ASK,
                                        .what = a->call.what,
                                        .payload = a->payload,
                                        .size = a->call.size};
    a->message = sp_message_new(content.size + PEER_SEAL_OVERHEAD_BYTES);
    if (a->message == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    int rc = peer_seal_message(a->link->rpc->seal, &content, sp_message_bytes(a->message), e);
    a->counter = content.counter;
    return rc;
}

static uint32_t next_request(struct peer_rpc *rpc)
{
    struct peer_asking *a;
    do {
        rpc->request = (rpc->request + 1) | SP_REQUEST_BIT;
        HASH_FIND(hh, rpc->askings, &rpc->request, sizeof rpc->request, a);
    } while (a != NULL);
    return rpc->request;
}

static int asking_new(struct peer_asking **out, struct peer_link *link,
                      const struct peer_call *call, struct err *e)
{
    struct peer_asking *a = calloc(1, sizeof *a);
    if (a == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    a->link = link;
    a->call = *call;
    a->until_ms = clock_monotonic_ms() +
                  (call->timeout_ms == 0 ? PEER_RPC_TIMEOUT_MS_DEFAULT : call->timeout_ms);
    a->payload = malloc(call->size + 1);
    if (a->payload != NULL && call->size > 0)
        memcpy(a->payload, call->payload, call->size);
    int rc = a->payload == NULL ? err_set(e, ERR_NO_MEMORY, "no memory") : asking_seal(a, e);
    if (rc != 0) {
        sp_message_free(a->message);
        free(a->payload);
        free(a);
        return rc;
    }
    *out = a;
    return 0;
}

/* --- answers -------------------------------------------------------------------------------------- */

/* The other node has restarted since we last heard of it, and did nothing. Its new boot is known
 * now. */
static void ask_again(struct peer_asking *a)
{
    struct err e;
    if (a->again || a->link->retired || a->link->rpc->closing) {
        asking_fail(a, ERR_UNAVAILABLE, false, "it restarts");
        return;
    }
    a->again = true;
    if (asking_seal(a, &e) != 0)
        asking_fail(a, e.code, false, e.msg);
    else
        asking_send(a);
}

/* A later process has our id: to the other node this one is over. */
static void outlived(struct peer_asking *a)
{
    struct peer_rpc *rpc = a->link->rpc;
    asking_fail(a, ERR_CONFLICT, false, "it knows a later process of this node");
    if (rpc->options.outlived != NULL && !rpc->closing)
        rpc->options.outlived(rpc->options.user);
}

static bool message_cb(void *user, uint32_t request, uint8_t *bytes, size_t size)
{
    struct peer_link *link = user;
    struct peer_rpc *rpc = link->rpc;
    struct peer_asking *a = NULL;
    struct peer_seal_content content;
    HASH_FIND(hh, rpc->askings, &request, sizeof request, a);
    if (a == NULL || a->link != link || a->message != NULL)
        return true; /* too late, or never asked */
    enum peer_seal_result result = peer_seal_open(rpc->seal, bytes, size, &content);
    if (result != PEER_SEAL_GOOD || content.peer != a->call.to || content.kind == PEER_SEAL_ASK ||
        content.answers != a->counter)
        asking_fail(a, ERR_PROTOCOL, true, "what came is no answer of it to this question");
    else if (content.kind == PEER_SEAL_REFUSAL && content.size > 0)
        outlived(a);
    else if (content.kind == PEER_SEAL_REFUSAL)
        ask_again(a);
    else
        asking_end(a, &(struct peer_answer){
                          .from = content.peer, .payload = content.payload, .size = content.size});
    return true;
}

/* --- links ---------------------------------------------------------------------------------------- */

static void part_closed(struct peer_link *link)
{
    struct peer_rpc *rpc = link->rpc;
    if (--link->open_parts != 0)
        return;
    end_calls(link, true);
    free(link);
    peer_part_closed(rpc);
}

static void timer_closed_cb(uv_handle_t *handle)
{
    part_closed(container_of((uv_timer_t *)handle, struct peer_link, timer));
}

static void again_cb(uv_timer_t *timer)
{
    link_connect(container_of(timer, struct peer_link, timer));
}

static void too_long_cb(uv_timer_t *timer)
{
    sp_stream_close(container_of(timer, struct peer_link, timer)->stream);
}

static void connect_later(struct peer_link *link)
{
    (void)uv_timer_start(&link->timer, again_cb, link->wait_ms, 0);
    link->wait_ms = link->wait_ms * 2 > RECONNECT_MAX_MS ? RECONNECT_MAX_MS : link->wait_ms * 2;
}

static void opened_cb(void *user)
{
    struct peer_link *link = user;
    struct peer_asking *a, *next;
    link->open = true;
    link->wait_ms = RECONNECT_MIN_MS;
    (void)uv_timer_stop(&link->timer);
    HASH_ITER(hh, link->rpc->askings, a, next)
    {
        if (a->link == link && a->message != NULL)
            asking_send(a);
    }
}

static void closed_cb(void *user)
{
    struct peer_link *link = user;
    link->stream = NULL;
    link->open = false;
    if (!link->retired) {
        connect_later(link);
        end_calls(link, false);
    }
    part_closed(link);
}

static void link_connect(struct peer_link *link)
{
    static const struct sp_events events = {
        .opened = opened_cb, .message = message_cb, .closed = closed_cb};
    struct sp_options options = {.protocol = SP_REQ,
                                 .bytes_max =
                                     link->rpc->options.bytes_max + PEER_SEAL_OVERHEAD_BYTES,
                                 .events = &events,
                                 .user = link};
    struct err e;
    if (sp_stream_connect(&link->stream, link->rpc->loop, &link->address, &options, &e) != 0) {
        connect_later(link);
        return;
    }
    link->open_parts++;
    (void)uv_timer_start(&link->timer, too_long_cb, CONNECT_WITHIN_MS, 0);
}

/* Out of the table; its calls end, and it is freed, when its handles are closed. */
static void link_retire(struct peer_link *link)
{
    HASH_DEL(link->rpc->links, link);
    link->retired = true;
    uv_close((uv_handle_t *)&link->timer, timer_closed_cb);
    if (link->stream != NULL)
        sp_stream_close(link->stream);
}

static int link_new(struct peer_link **out, struct peer_rpc *rpc, node_id id,
                    const struct sockaddr_storage *address, struct err *e)
{
    struct peer_link *link = calloc(1, sizeof *link);
    if (link == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    link->id = id;
    link->rpc = rpc;
    link->address = *address;
    link->wait_ms = RECONNECT_MIN_MS;
    (void)uv_timer_init(rpc->loop, &link->timer);
    link->open_parts = 1;
    rpc->open_parts++;
    HASH_ADD(hh, rpc->links, id, sizeof link->id, link);
    link_connect(link);
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
        return link_new(out, rpc, id, &address, e);
    *out = link;
    return 0;
}

/* --- calls ---------------------------------------------------------------------------------------- */

int peer_rpc_call(struct peer_rpc *rpc, const struct peer_call *call, struct err *e)
{
    struct peer_link *link = NULL;
    struct peer_asking *a = NULL;
    int rc = link_find(&link, rpc, call->to, e);
    if (rc != 0)
        return rc;
    if (link->calls >= rpc->options.calls_max)
        return err_set(e, ERR_LIMIT, "%u calls to node %" PRIu64 " are under way; no more at once",
                       link->calls, call->to);
    if (link->stream != NULL && sp_stream_unsent(link->stream) > UNSENT_MAX)
        return err_set(e, ERR_LIMIT, "node %" PRIu64 " does not read what it is sent", call->to);
    rc = asking_new(&a, link, call, e);
    if (rc != 0)
        return rc;
    a->request = next_request(rpc);
    HASH_ADD(hh, rpc->askings, request, sizeof a->request, a);
    link->calls++;
    rpc->counts.calls_now++;
    rpc->counts.calls++;
    if (!uv_is_active((uv_handle_t *)&rpc->tick))
        (void)uv_timer_start(&rpc->tick, tick_cb, TICK_MS, TICK_MS);
    asking_send(a);
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

/* --- life ----------------------------------------------------------------------------------------- */

void peer_calls_open(struct peer_rpc *rpc)
{
    (void)uv_timer_init(rpc->loop, &rpc->tick);
    rpc->tick.data = rpc;
    rpc->open_parts++;
}

void peer_calls_close(struct peer_rpc *rpc)
{
    struct peer_link *link, *next;
    uv_close((uv_handle_t *)&rpc->tick, peer_handle_closed_cb);
    HASH_ITER(hh, rpc->links, link, next)
    link_retire(link);
}
