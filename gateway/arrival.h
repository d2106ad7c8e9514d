/* gateway/arrival.h - joins that other nodes sent here: the owner's side of gateway/remote.h.
 *
 * An arrival is a connection whose client is a stream. It is admitted as any other (dispatch.c), takes
 * a connection to the code from the same pools (upstream.c), and passes bytes: what the code said and
 * was told is known to the asking node alone. What a joiner may do was decided there too; here all is
 * checked that could do harm, and that the workload and instance are ours.
 *
 *     HEAD -> (ROUTES) -> ASK -> SOCKET -> JOIN -> (their END) -> HEAD
 *               |           |       `-> AUTOPSY
 *               `-----------`----------------`-> refused: FLUSH -> (their END) -> HEAD
 *                                                after a grant: RESET, LINGER -> closed
 *
 * Thread: the gateway thread that owns it, but for gateway_accept. */
#ifndef SKERRY_GATEWAY_ARRIVAL_H
#define SKERRY_GATEWAY_ARRIVAL_H

#include "gateway/thread.h"

struct acceptor;
/* What outlives a gateway that is closed while a stream is on its way to a thread. */
int acceptor_new(struct acceptor **out, struct gateway *g, struct err *e) ERR_CHECKED;
void acceptor_drop(struct acceptor *acceptor);

void arrival_deadline(struct connection *c);
void arrival_look_again(struct connection *c, bool final);
/* What is wanted of the stream. */
void arrival_update(struct connection *c);
/* For thread.c: */
void arrival_drain(struct gateway_thread *t);
void arrival_sweep(struct gateway_thread *t);
void arrival_close_all(struct gateway_thread *t);

#endif
