/* node/cluster/enroll_io.h - one message of the join handshake in or out of a secure stream.
 *
 * Thread: the stream's. Both are called again when the stream is ready, until they are done. */
#ifndef SKERRY_NODE_CLUSTER_ENROLL_IO_H
#define SKERRY_NODE_CLUSTER_ENROLL_IO_H

#include "base/buffer.h"
#include "base/secure_stream.h"

enum enroll_io { ENROLL_IO_WAIT, ENROLL_IO_DONE, ENROLL_IO_BROKEN };

/* Reads no byte beyond the message; DONE: it is in `in`, its length first. BROKEN: the stream, or a
 * length above length_max. */
enum enroll_io enroll_receive(struct secure_stream *s, struct buffer *in, size_t length_max);
/* What was sent is taken from the front of `out`. */
enum enroll_io enroll_send(struct secure_stream *s, struct buffer *out);

#endif
