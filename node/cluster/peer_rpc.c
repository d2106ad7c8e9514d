#include "node/cluster/peer_rpc.h"

#include <stdlib.h>

#include "base/address.h"
#include "base/memory.h"
#include "node/cluster/peer_internal.h"

static void set_defaults(struct peer_rpc_options *o)
{
    if (o->questions_max == 0)
        o->questions_max = PEER_RPC_QUESTIONS_MAX_DEFAULT;
    if (o->calls_max == 0)
        o->calls_max = PEER_RPC_CALLS_MAX_DEFAULT;
    if (o->connections_max == 0)
        o->connections_max = PEER_RPC_CONNECTIONS_MAX_DEFAULT;
    if (o->bytes_max == 0)
        o->bytes_max = PEER_RPC_BYTES_MAX_DEFAULT;
}

static void all_stopped(void *owner)
{
    struct peer_rpc *rpc = owner;
    void (*cb)(void *user) = rpc->closed;
    void *user = rpc->options.user;
    peer_links_free(rpc);
    peer_questions_free(rpc);
    peer_seal_free(rpc->seal);
    free(rpc);
    if (cb != NULL)
        cb(user);
}

int peer_rpc_open(struct peer_rpc **out, uv_loop_t *loop, const struct peer_rpc_options *options,
                  struct err *e)
{
    int rc = address_check_private(options->address, e);
    if (rc != 0)
        return rc;
    struct peer_rpc *rpc = calloc(1, sizeof *rpc);
    if (rpc == NULL)
        return err_set(e, ERR_NO_MEMORY, "open peer messages: no memory");
    rpc->options = *options;
    rpc->options.address = NULL;
    rpc->loop = loop;
    set_defaults(&rpc->options);
    struct peer_seal_options seal = {.identity = options->identity,
                                     .id = options->id,
                                     .boot = options->boot,
                                     .key_of = options->key_of,
                                     .user = options->user,
                                     .bytes_max = rpc->options.bytes_max};
    rc = peer_seal_new(&rpc->seal, &seal, e);
    /* What is posted is bounded by the contexts that post. */
    if (rc == 0)
        rc = inbox_open(&rpc->inbox, loop, rpc, rpc->options.questions_max, e);
    if (rc != 0) {
        peer_seal_free(rpc->seal);
        free(rpc);
        return rc;
    }
    rpc->options.address = options->address;
    rc = peer_questions_open(rpc, e);
    rpc->options.address = NULL;
    if (rc != 0) {
        peer_rpc_close(rpc, NULL);
        return rc;
    }
    *out = rpc;
    return 0;
}

void peer_rpc_close(struct peer_rpc *rpc, void (*cb)(void *user))
{
    rpc->closing = true;
    rpc->closed = cb;
    peer_questions_stop(rpc);
    peer_links_stop(rpc);
    inbox_close(rpc->inbox, all_stopped);
}

void peer_rpc_counts(const struct peer_rpc *rpc, struct peer_rpc_counts *out)
{
    *out = rpc->counts;
    out->connections_now = __atomic_load_n(&rpc->connections, __ATOMIC_RELAXED);
}

const struct refusals *peer_rpc_refusals(const struct peer_rpc *rpc)
{
    return peer_seal_refusals(rpc->seal);
}
