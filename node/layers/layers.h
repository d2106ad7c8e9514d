/* node/layers/layers.h - layers (images and sources) reach the node that needs them.
 *
 * A node that is to start an instance and lacks a layer asks the others for it, one after the other,
 * over a stream of its own (SECURE_IMAGE):
 *
 *     asks:     u8 version | u8 kind | 32 bytes digest | u64 skip, big-endian
 *     answers:  u8 LAYER_HERE, one lz4 frame of the archive from byte `skip` on, END
 *               or another enum layer_answer, END
 *
 * The archive is the same on every node (sandbox/runner/image_export.h), so that one that broke off goes
 * on with the next node where it was. It flows into the runner's unpacker, which takes it only if the
 * content has the digest that was asked for. Whoever needs a layer that is already on its way waits for
 * that transfer.
 *
 *     need -> list of the runner -> fetch: import pipe -> transfer thread -> import ended -> called back
 *
 * What the registry names is fetched in the background too (layers_follow): a node that dies takes no
 * workload's only copy with it.
 *
 * Threads: everything here on the control loop. Each transfer has a thread and a loop of its own, at most
 * LAYERS_FETCHES_MAX in and LAYERS_SERVES_MAX out: compression never delays a heartbeat. */
#ifndef SKERRY_NODE_LAYERS_LAYERS_H
#define SKERRY_NODE_LAYERS_LAYERS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "base/inbox.h"
#include "base/secure_stream.h"
#include "raft/registry.h"
#include "sandbox/sandbox.h"

#define LAYERS_FETCHES_MAX 2u
#define LAYERS_SERVES_MAX 4u
#define LAYERS_WAITING_MAX 1000u
#define LAYERS_PEERS_MAX 64u

struct layers;

struct layers_peer {
    node_id id;
    struct sockaddr_storage address; /* of its streams */
};

struct layers_options {
    struct secure_context *secure;
    struct sandbox *sandbox;
    struct inbox *inbox; /* of this loop; its owner does not matter */
    void *user;
    /* Living nodes but this one, the best to ask first; returns how many. */
    size_t (*peers)(void *user, struct layers_peer *out, size_t out_max);
};

int layers_open(struct layers **out, uv_loop_t *loop, const struct layers_options *options,
                struct err *e) ERR_CHECKED;
/* Transfers are broken off, those who wait are told ERR_CANCELED, then `cb`. */
void layers_close(struct layers *l, void (*cb)(void *user), void *user);

/* `error` NULL: both are in the runner's store. */
typedef void (*layers_cb)(void *user, const struct err *error);
/* Digests; NULL, "" and "host" stand for none. Never calls back out of this call. */
int layers_need(struct layers *l, const char *image, const char *source, layers_cb cb, void *user,
                struct err *e) ERR_CHECKED;
/* As layers_need, but waits for no transfer: `error` also says that one has only been begun. */
int layers_look(struct layers *l, const char *image, const char *source, layers_cb cb, void *user,
                struct err *e) ERR_CHECKED;
/* The registry changed: what its workloads and images name is to be here. */
void layers_follow(struct layers *l, struct registry_root *root);

/* An open SECURE_IMAGE stream that another node asked for. */
void layers_accept(struct layers *l, struct secure_stream *s);
/* That node was removed: what it is being given breaks off. What it gives is known by its digest. */
void layers_forget(struct layers *l, node_id id);
/* An event of the runner. False: the import was not ours. */
bool layers_import_ended(struct layers *l, const Skerry__Runner__ImportEnded *ended);
void layers_runner_gone(struct layers *l);

struct layers_counts {
    uint64_t fetched, fetch_failures, served, refused;
    uint64_t bytes_in, bytes_out; /* of archives, before compression */
};
struct layers_counts layers_counts(const struct layers *l);

#endif
