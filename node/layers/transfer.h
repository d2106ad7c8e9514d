/* node/layers/transfer.h - one layer on its way in or out, on a thread and a loop of its own.
 *
 * Thread: layer_fetch, layer_serve and layer_transfer_stop on the control loop; `done` is delivered there
 *         through its inbox, exactly once, and frees nothing: the owner calls layer_transfer_free then. */
#ifndef SKERRY_NODE_LAYERS_TRANSFER_H
#define SKERRY_NODE_LAYERS_TRANSFER_H

#include "node/layers/layers.h"

#define LAYER_ASK_VERSION 1u
#define LAYER_ASK_BYTES (1u + 1u + 32u + 8u)
/* Without a byte in either direction. */
#define LAYER_IDLE_MS 30000u

enum layer_answer {
    LAYER_HERE = 0,
    LAYER_MISSING = 1,
    LAYER_BUSY = 2, /* too many go out already, or no runner is there */
};

struct layer_ask {
    Skerry__Runner__ImportKind kind;
    char digest[72];
    uint64_t skip;
};
void layer_ask_write(uint8_t out[LAYER_ASK_BYTES], const struct layer_ask *ask);
bool layer_ask_read(struct layer_ask *out, const uint8_t in[LAYER_ASK_BYTES]);

struct layer_transfer;

struct layer_done {
    const struct err *error; /* NULL: whole */
    uint64_t bytes;          /* of the archive, moved here */
};
typedef void (*layer_done_cb)(struct layer_transfer *t, void *user, const struct layer_done *done);

/* Asks the peers in turn and writes the archive to `fd`, which it takes and closes. */
int layer_fetch(struct layer_transfer **out, struct secure_context *secure, struct inbox *inbox,
                const struct layer_ask *ask, const struct layers_peer *peers, size_t peer_count,
                int fd, layer_done_cb done, void *user, struct err *e) ERR_CHECKED;
/* Sends LAYER_HERE and what comes from `fd`. Takes both. */
int layer_serve(struct layer_transfer **out, struct secure_context *secure, struct inbox *inbox,
                struct secure_parcel *parcel, int fd, layer_done_cb done, void *user,
                struct err *e) ERR_CHECKED;
/* `done` comes soon. */
void layer_transfer_stop(struct layer_transfer *t);
void layer_transfer_free(struct layer_transfer *t);

#endif
