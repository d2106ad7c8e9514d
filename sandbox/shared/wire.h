/* sandbox/shared/wire.h - one protobuf-c message a SOCK_SEQPACKET datagram, with descriptors.
 *
 * Used by the node, the runner and the agent; needs libc and protobuf-c alone. Every descriptor
 * that arrives is O_CLOEXEC; more than the caller allows are closed and the datagram is refused. */
#ifndef SKERRY_SANDBOX_SHARED_WIRE_H
#define SKERRY_SANDBOX_SHARED_WIRE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "base/err.h"

#define WIRE_DESCRIPTORS_MAX 64

/* Never blocks (MSG_DONTWAIT): -ERR_UNAVAILABLE when the other side does not read or is gone, with
 * err.sys EAGAIN or EPIPE. Descriptors stay the caller's. */
int wire_send(int socket, const ProtobufCMessage *message, const int *descriptors,
              size_t descriptor_count, struct err *e) ERR_CHECKED;
/* The same for a message that is packed already. */
int wire_send_packed(int socket, const void *data, size_t length, const int *descriptors,
                     size_t descriptor_count, struct err *e) ERR_CHECKED;

/* One datagram of at most `size` bytes. 0 and *out_length: a datagram; -ERR_UNAVAILABLE with sys
 * EAGAIN: none there, with sys 0: the other side closed, with sys ECONNRESET: it closed and left
 * datagrams of ours unread, and what it sent before may be received next; -ERR_PROTOCOL: too long, or
 * more than `descriptors_max` descriptors (they are closed). */
int wire_receive(int socket, void *data, size_t size, size_t *out_length, int *descriptors,
                 size_t descriptors_max, size_t *out_descriptor_count, struct err *e) ERR_CHECKED;

#endif
