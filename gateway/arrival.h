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

#include "base/record.h"
#include "gateway/thread.h"

struct arrival {
    struct connection c; /* c.in: the request, as the code gets it */
    struct secure_stream *stream;
    struct arrival *previous, *next; /* all of the thread */
    struct record_decoder decoder;
    struct travel_ask ask;
    bool serving; /* a HEAD came, and its END did not */
    bool old;     /* and it came before this node drained */
    bool granted; /* the code's connection is there; HEAD is written, or `head_due` */
    bool head_due;
    bool end_due;   /* our END of the join before, which leaves with the next HEAD */
    bool ended;     /* our END is written, or due: what still comes of the request is dropped */
    bool answering; /* a byte of the code's answer was passed on */
    bool half;      /* their END said HALF: the code is told when all was sent */
    bool our_half;  /* ours did: the code has ended, what comes of the request still goes to it */
    bool kept;      /* all of the request is still in c.in, sent or not */
    size_t in_sent; /* of c.in */
    unsigned retries;
    uint64_t head_until_ms;
};

/* --- arrival.c: a join ------------------------------------------------------------------------------ */
extern const struct bridge arrival_bridge;
/* A question came. */
void arrival_take_head(struct arrival *a, const struct record *record);
/* Sends the code what there is of the request. */
void arrival_send(struct connection *c);
/* Their END: the next join may come. */
void arrival_join_over(struct arrival *a, enum record_end how);
void arrival_set_deadline(struct connection *c);
void arrival_deadline(struct connection *c);
void arrival_look_again(struct connection *c, bool final);

/* --- arrival_stream.c ------------------------------------------------------------------------------- */
/* Whatever it does ends. */
void arrival_close(struct arrival *a);
/* Between joins: the other side hears that what it may be sending was not read, and hangs up. */
void arrival_end(struct arrival *a);
void arrival_protocol_broken(struct arrival *a, const char *why);
/* What is wanted of the stream. */
void arrival_update(struct connection *c);

/* The join on it is over, whatever way. */
void arrival_serving_ends(struct arrival *a);

/* For thread.c: */
/* Joins that are under way are old from now on. */
void arrival_note_drain(struct gateway_thread *t);
void arrival_drain(struct gateway_thread *t);
void arrival_sweep(struct gateway_thread *t);
void arrival_close_all(struct gateway_thread *t);

#endif
