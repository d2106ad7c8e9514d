/* tests/lib/secure_pair.h - nodes with keys, and streams between them, on one loop. */
#ifndef SKERRY_TESTS_LIB_SECURE_PAIR_H
#define SKERRY_TESTS_LIB_SECURE_PAIR_H

#include <uv.h>

#include "base/identity.h"
#include "base/secure_stream.h"

enum { SECURE_NODES = 4 }; /* ids 1 to 4; 4 is not in the map */

struct secure_world {
    uv_loop_t loop;
    struct identity *identities[SECURE_NODES + 1];
    struct secure_context *contexts[SECURE_NODES + 1];
    bool removed[SECURE_NODES + 1];
    struct secure_listener *listener;
    struct sockaddr_storage address;
    struct secure_stream *accepted; /* the last one */
    unsigned accepted_count;
};

void secure_world_open(struct secure_world *w);
/* All streams must be closed; checks that the loop is empty. */
void secure_world_close(struct secure_world *w);
bool secure_world_key_of(void *user, node_id id, struct identity_public *out);
/* Node `id` listens on a port of 127.0.0.1. */
void secure_world_listen(struct secure_world *w, node_id id, struct secure_listen_options options);
/* Runs the loop until `done`, at most 5 s; false then. */
bool secure_world_wait(struct secure_world *w, bool (*done)(void *user), void *user);

#endif
