/* tests/lib/peer_world.h - nodes that ask each other, on one loop. 1 and 2 run from the start; the others do not know
 * the key of 4. */
#ifndef SKERRY_TESTS_LIB_PEER_WORLD_H
#define SKERRY_TESTS_LIB_PEER_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "node/cluster/peer_rpc.h"
#include "node/cluster/peer_seal.h"

enum { NODES = 4, BYTES_MAX = 100000, WAIT_MS = 10000, KEPT_MAX = 64, CONNECTIONS_MAX = 8 };

struct world;

struct node_end {
    struct world *w;
    node_id id;
    struct peer_rpc *rpc;
    struct sockaddr_storage address;
    unsigned asked;
    bool keep; /* questions wait in `kept` */
    bool drop;
    struct peer_question *kept[KEPT_MAX];
    unsigned kept_count;
    bool closed;
};

struct world {
    uv_loop_t loop;
    struct identity *identities[NODES + 1];
    struct node_end ends[NODES + 1];
    bool removed[NODES + 1];
};

struct asking {
    bool ended, maybe_heard;
    enum err_code code;
    char text[200];
    size_t size;
};

void world_start(struct world *w, node_id id, uint64_t boot, const char *address);
bool world_wait_until(struct world *w, bool (*done)(void *user), void *user);
void world_stop(struct world *w, node_id id);
const char *world_address_at(unsigned host);
int world_set_up(void **state);
int world_tear_down(void **state);
int world_try_ask(struct world *w, struct asking *asking, node_id to, const void *payload,
                  size_t size, unsigned timeout_ms, struct err *e);
void world_ask(struct world *w, struct asking *asking, node_id to, const char *text,
               unsigned timeout_ms);
bool world_has_ended(void *user);
uint64_t world_refused(struct world *w, node_id at, enum peer_seal_refusal why);
/* As the options of peer_rpc_open want them; the user is a struct node_end. */
bool world_key_of(void *user, node_id id, struct identity_public *out);
bool world_address_of(void *user, node_id id, struct sockaddr_storage *out);
void world_asked_cb(void *user, struct peer_question *q);
/* Answers "<payload>!". */
void world_answer(struct peer_question *q);
bool world_has_kept(void *user);

#endif
