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

/* All handles and what hangs on them; then the owner hears. */
void peer_part_closed(struct peer_rpc *rpc)
{
    if (--rpc->open_parts != 0 || !rpc->closing)
        return;
    void (*cb)(void *user) = rpc->closed;
    void *user = rpc->options.user;
    peer_questions_free(rpc);
    peer_seal_free(rpc->seal);
    free(rpc);
    if (cb != NULL)
        cb(user);
}

void peer_handle_closed_cb(uv_handle_t *handle)
{
    peer_part_closed(handle->data);
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
    if (rc != 0) {
        free(rpc);
        return rc;
    }
    peer_calls_open(rpc);
    rc = peer_questions_open(rpc, options->address, e);
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
    peer_questions_close(rpc);
    peer_calls_close(rpc);
}

void peer_rpc_counts(const struct peer_rpc *rpc, struct peer_rpc_counts *out)
{
    *out = rpc->counts;
    out->connections_now = HASH_COUNT(rpc->connections);
}

const struct refusals *peer_rpc_refusals(const struct peer_rpc *rpc)
{
    return peer_seal_refusals(rpc->seal);
}
