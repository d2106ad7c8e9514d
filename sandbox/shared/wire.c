#include "sandbox/shared/wire.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/memory.h"

/* Messages up to this size are packed on the stack. */
#define PACKED_STACK_BYTES 2048

union descriptor_control {
    char bytes[CMSG_SPACE(sizeof(int) * WIRE_DESCRIPTORS_MAX)];
    struct cmsghdr align;
};

static int send_error(struct err *e, int sys)
{
    if (sys == EAGAIN || sys == EPIPE || sys == ECONNRESET || sys == ENOTCONN)
        return err_sys(e, ERR_UNAVAILABLE, sys == EAGAIN ? EAGAIN : EPIPE, "send message");
    if (sys == EMSGSIZE)
        return err_sys(e, ERR_LIMIT, sys, "send message");
    return err_sys(e, ERR_IO, sys, "send message");
}

int wire_send_packed(int socket, const void *data, size_t length, const int *descriptors,
                     size_t descriptor_count, struct err *e)
{
    if (descriptor_count > WIRE_DESCRIPTORS_MAX)
        return err_set(e, ERR_INVALID, "message with %zu descriptors, at most %d", descriptor_count,
                       WIRE_DESCRIPTORS_MAX);
    union descriptor_control control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (descriptor_count > 0) {
        size_t bytes = sizeof(int) * descriptor_count;
        memset(&control, 0, sizeof control);
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(bytes);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(rights), descriptors, bytes);
    }
    ssize_t sent;
    do
        sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    /* SOCK_SEQPACKET takes a datagram whole or not at all. */
    return sent < 0 ? send_error(e, errno) : 0;
}

int wire_send(int socket, const ProtobufCMessage *message, const int *descriptors,
              size_t descriptor_count, struct err *e)
{
    size_t length = protobuf_c_message_get_packed_size(message);
    /* The receiver could not tell an empty datagram from the end of the connection. */
    if (length == 0)
        return err_set(e, ERR_INVALID, "message is empty");
    uint8_t packed[PACKED_STACK_BYTES];
    CLEANUP_FREE uint8_t *large = NULL;
    uint8_t *data = packed;
    if (length > sizeof packed) {
        data = large = malloc(length);
        if (large == NULL)
            return err_set(e, ERR_NO_MEMORY, "message of %zu bytes", length);
    }
    protobuf_c_message_pack(message, data);
    return wire_send_packed(socket, data, length, descriptors, descriptor_count, e);
}

/* Moves what came by SCM_RIGHTS to `descriptors`; what does not fit is closed. Returns how many
 * came in all. */
static size_t take_descriptors(struct msghdr *header, int *descriptors, size_t descriptors_max)
{
    size_t came = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (came < descriptors_max)
                descriptors[came] = fd;
            else
                memory_close(&fd);
            came++;
        }
    }
    return came;
}

static void close_all(int *descriptors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        memory_close(&descriptors[i]);
}

int wire_receive(int socket, void *data, size_t size, size_t *out_length, int *descriptors,
                 size_t descriptors_max, size_t *out_descriptor_count, struct err *e)
{
    union descriptor_control control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    ssize_t length;
    do
        length = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (length < 0 && errno == EINTR);
    if (length < 0 && errno == EAGAIN)
        return err_sys(e, ERR_UNAVAILABLE, EAGAIN, "receive message");
    if (length < 0 && errno != ECONNRESET)
        return err_sys(e, ERR_IO, errno, "receive message");
    size_t came = length < 0 ? 0 : take_descriptors(&header, descriptors, descriptors_max);
    size_t held = came < descriptors_max ? came : descriptors_max;
    if (length <= 0) {
        close_all(descriptors, held);
        if (length < 0)
            return err_sys(e, ERR_UNAVAILABLE, ECONNRESET, "receive message");
        return err_set(e, ERR_UNAVAILABLE, "the other side closed the connection");
    }
    if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || came > descriptors_max) {
        close_all(descriptors, held);
        return err_set(e, ERR_PROTOCOL, "message above %zu bytes or %zu descriptors", size,
                       descriptors_max);
    }
    *out_length = (size_t)length;
    *out_descriptor_count = came;
    return 0;
}
