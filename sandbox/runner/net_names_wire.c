#include "sandbox/runner/net_names_wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"

static size_t item_size(enum names_kind kind)
{
    switch (kind) {
    case NAMES_RESOLVERS:
        return sizeof(union names_address);
    case NAMES_ADD:
        return sizeof(struct names_rule);
    case NAMES_ALLOW:
        return sizeof(uint32_t);
    case NAMES_REMOVE:
    case NAMES_CONFIRM:
        break;
    }
    return 0;
}

size_t names_message_size(const struct names_message *m)
{
    return offsetof(struct names_message, resolvers) + m->count * item_size(m->kind);
}

bool names_message_valid(const struct names_message *m, size_t size)
{
    if (size < offsetof(struct names_message, resolvers) || m->kind < NAMES_RESOLVERS ||
        m->kind > NAMES_ALLOW)
        return false;
    size_t most = m->kind == NAMES_RESOLVERS ? NAMES_RESOLVERS_MAX
                  : m->kind == NAMES_ADD     ? NET_DESTINATIONS_MAX
                  : m->kind == NAMES_ALLOW   ? NET_DNS_ADDRESSES_MAX
                                             : 0;
    return m->count <= most && size == names_message_size(m);
}

int names_message_send(int channel, const struct names_message *m, const int *descriptors,
                       size_t descriptor_count)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)m, .iov_len = names_message_size(m)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    assert_always(descriptor_count <= 2);
    if (descriptor_count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(descriptor_count * sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(descriptor_count * sizeof(int));
        memcpy(CMSG_DATA(&control.head), descriptors, descriptor_count * sizeof(int));
    }
    return sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errno : 0;
}

int names_message_receive(int channel, struct names_message *m, int descriptors[2])
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = m, .iov_len = sizeof *m};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    descriptors[0] = descriptors[1] = -1;
    ssize_t size = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != NULL && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
        memcpy(descriptors, CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 && names_message_valid(m, (size_t)size))
        return 1;
    memory_close(&descriptors[0]);
    memory_close(&descriptors[1]);
    return -1;
}

bool names_rate_take(struct names_rate *rate, unsigned per_second, unsigned burst, uint64_t now_ms)
{
    uint64_t back = now_ms > rate->at_ms ? (now_ms - rate->at_ms) * per_second : 0;
    rate->spent = rate->spent > back ? rate->spent - back : 0;
    rate->at_ms = now_ms;
    if (rate->spent + 1000 > (uint64_t)burst * 1000)
        return false;
    rate->spent += 1000;
    return true;
}
