/* node/api/relay.h - requests about an instance of another node: carried to that node's API and back.
 *
 *     client --- entry's API ===secure stream (SECURE_API)=== owner's API --- a connection like others
 *              request by request      one request each              (one end of a socketpair)
 *
 * An instance's id names its owner. The entry reads a request as it reads all of them, and where it is
 * about an instance of another node, opens a stream to the owner, says in one small record who asks, and
 * writes the request anew: its head from what was read, so that both understand the same, and its body by
 * piece, as it comes. The answer is read as strictly (gateway/http.h) and becomes the answer of the
 * client's connection, with the owner's headers, trailers and upgrade. So requests that stay and requests
 * that travel may follow each other on one connection in any order. No direction holds more than
 * API_RELAY_BYTES and a head; whoever does not take, is not read for.
 *
 * On the owner it arrives like a new connection of a client: its token is checked there. Who is trusted
 * on the entry's unix socket is trusted by the owner, as nodes trust each other; all others need a token.
 *
 *     record:  u8 flags (1: trusted, 2: over the unix socket) | u8 length | length bytes: who, for logs
 *
 * What the registry alone can answer (an instance as it is listed, why it ended) is answered by the
 * entry when the owner cannot be reached; anything else is then 503 owner_unreachable. What was relayed is
 * never relayed again: at most one hop.
 *
 * Thread: the API's, but for api_relay_accept (node/api/api.h). */
#ifndef SKERRY_NODE_API_RELAY_H
#define SKERRY_NODE_API_RELAY_H

#include "node/api/internal.h"

#define API_RELAY_BYTES 32768u    /* of one direction */
#define API_RELAYS_MAX 256u       /* of both sides together */
#define API_RELAY_CONNECT_MS 1000 /* then the owner counts as unreachable */
#define API_RELAY_RECORD_BYTES_MAX 65u

struct api_relay;

/* For a request whose route is found: true when it is another node's, and taken care of: on its way, or a
 * problem was answered. Otherwise it is served here, now or (api_request_keep) when its owner could not be
 * reached. */
bool api_relay_begin(struct api_request *r);
/* To that node in any case, for a handler that finds out late, of a request without a body. `subject`: what
 * it is about, for messages. */
bool api_relay_to(struct api_request *r, node_id owner, const char *name, const char *subject);
/* At once. A connection that was upgraded is closed, with a reset: what came was not the whole. */
void api_relay_end(struct api_relay *relay);
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
