/* node/api_relay.h - requests about an instance of another node: carried to that node's API and back.
 *
 *     client --- entry's API ===secure stream (SECURE_API)=== owner's API --- a connection like others
 *               peeks at the head          bytes as they are               (one end of a socketpair)
 *
 * An instance's id names its owner. Where the first head of a connection is about an instance of
 * another node, the entry takes no byte of it: it opens a stream to the owner, says in one small record
 * who asks, and from then on moves bytes both ways, each direction with its own end and no more than
 * API_RELAY_BYTES of it in between. On the owner it arrives like a new connection of a client: its
 * token is checked there. Who is trusted on the entry's unix socket is trusted by the owner, as nodes
 * trust each other; all others need a token.
 *
 *     record:  u8 flags (1: trusted, 2: over the unix socket) | u8 length | length bytes: who, for logs
 *
 * What the registry alone can answer (an instance as it is listed, why it ended) is answered by the
 * entry when the owner cannot be reached; anything else is then 503 owner_unreachable. A relayed
 * connection serves one request and is never relayed again: at most one hop. Since only the head that
 * a connection begins with is looked at, in a cluster of several nodes every connection to the API
 * serves one request.
 *
 * Thread: the API's, but for api_relay_accept (node/api.h). */
#ifndef SKERRY_NODE_API_RELAY_H
#define SKERRY_NODE_API_RELAY_H

#include "node/api_internal.h"

#define API_RELAY_BYTES 32768u    /* of one direction */
#define API_RELAYS_MAX 256u       /* of both sides together */
#define API_RELAY_CONNECT_MS 1000 /* then the owner counts as unreachable */
#define API_RELAY_RECORD_BYTES_MAX 65u

struct api_relay;

/* For a connection whose first head is whole (in api->head): true when it is taken care of. */
bool api_relay_begin(struct api_connection *c);
/* Of another node that is there, what the route and its parameter are about; 0: nothing, or ours. */
node_id api_relay_owner(struct api *api, const struct api_route *route, const char *parameter,
                        char name[64]);
/* Whether this cluster has several nodes. */
bool api_relay_cluster(struct api *api);
/* At once; its connection, if it has one, is the caller's again. */
void api_relay_end(struct api_relay *r);
/* Of api_sweep_cb: what is late. */
void api_relay_sweep(struct api *api, uint64_t now_ms);
/* All that came from other nodes. */
void api_relay_stop(struct api *api);

/* --- the record ----------------------------------------------------------------------------------- */

struct api_relay_record {
    bool trusted, local;
    char who[64];
};
size_t api_relay_record_write(const struct api_relay_record *record,
                              uint8_t out[API_RELAY_RECORD_BYTES_MAX]);
/* How many bytes it has; 0: more must come; -1: it is none. Bytes that a terminal would obey come out
 * as '?'. */
ptrdiff_t api_relay_record_read(struct api_relay_record *out, const uint8_t *bytes, size_t length);

#endif
