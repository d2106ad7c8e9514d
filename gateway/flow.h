/* gateway/flow.h - one body on its way: read with one framing, written with another.
 *
 * Thread: the gateway thread that owns the queue's pool. */
#ifndef SKERRY_GATEWAY_FLOW_H
#define SKERRY_GATEWAY_FLOW_H

#include "base/buffer.h"
#include "gateway/block.h"
#include "gateway/http.h"

struct flow {
    enum http_body body; /* framing of the source; UNTIL_CLOSE also for a tunnel */
    bool chunked_out;
    bool done;              /* all was read and queued, with the closing chunk */
    uint64_t remaining;     /* LENGTH */
    uint64_t content_bytes; /* seen so far */
    struct http_chunked chunked;
    struct buffer trailers; /* raw, of the source */
};

/* What is added around one span of content at most: "<hex>\r\n" before, "\r\n" behind. */
#define FLOW_FRAME_BYTES_MAX 24u

void flow_begin(struct flow *flow, enum http_body body, uint64_t length, bool chunked_out);
void flow_free(struct flow *flow);
/* Takes bytes of the source and queues what they become; all of them, unless the body ends before.
 * Returns how many it took, or HTTP_REFUSED. */
ptrdiff_t flow_push(struct flow *flow, struct block_pool *pool, struct queue *to, const char *data,
                    size_t length, struct http_fault *fault);
/* How many of these bytes of the source go on just as they are, so that they need not be queued. The last ones
 * do: who has them knows that the join is over. */
size_t flow_as_is(const struct flow *flow, size_t length);
/* So many of them have. */
void flow_passed(struct flow *flow, size_t length);
/* The source closed: true if that is a clean end (UNTIL_CLOSE only). */
bool flow_source_closed(struct flow *flow, struct block_pool *pool, struct queue *to);
/* Queues the closing chunk with trailer lines ("Name: value\r\n"...). */
bool flow_last_chunk(struct block_pool *pool, struct queue *to, const char *lines, size_t length);
/* True if a trailer field may pass on. */
bool flow_trailer_passes(const struct http_field *field);

#endif
