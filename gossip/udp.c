/* Happy path: datagram_cb opens a seal, steps the machine with the packet, and act() sends, calls
 * back and sets the timer. Failure modes: a datagram that cannot be believed is counted and dropped; one
 * that cannot be sent likewise, as the network might have lost it; the socket itself fails never, but
 * for reads, which libuv repeats. */
#include "gossip/udp.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

enum {
    LOG_EVERY_MS = 10000,
    DATAGRAM_BYTES_MAX = 2048, /* what is longer is not ours */
    SOCKET_BUFFER_BYTES = 512 * 1024,
};
_Static_assert(GOSSIP_PACKET_BYTES_MAX + SEAL_BYTES < DATAGRAM_BYTES_MAX, "ours must fit");

struct gossip_udp {
    struct gossip_udp_options options;
    uv_udp_t socket;
    uv_timer_t timer;
    unsigned handles; /* open ones */
    bool closing, stepping, left, impostor;
    void (*closed)(void *user);
    void *closed_user;
    struct gossip_udp_counts counts;
    uint64_t logged_ms[SEAL_REFUSAL_COUNT], unlogged[SEAL_REFUSAL_COUNT];
    char datagram[DATAGRAM_BYTES_MAX];
};

static void timer_cb(uv_timer_t *timer);

/* --- what the machine says -------------------------------------------------------------------- */

static void send_one(struct gossip_udp *u, const struct gossip_send *send)
{
    struct sockaddr_storage to;
    uint8_t sealed[GOSSIP_PACKET_BYTES_MAX + SEAL_BYTES];
    size_t size = 0;
    struct err e;
    if (!address_unpack(&to, &send->address) || !address_private(&to)) {
        u->counts.public_addresses++;
        return;
    }
    if (seal_packet(u->options.seal, send->to, send->to_boot, send->data, send->size, sealed, &size,
                    &e) != 0) {
        u->counts.send_failed++;
        return;
    }
    uv_buf_t buffer = uv_buf_init((char *)sealed, (unsigned)size);
    if (uv_udp_try_send(&u->socket, &buffer, 1, (const struct sockaddr *)&to) < 0) {
        u->counts.send_failed++;
        return;
    }
    u->counts.sent++;
    u->counts.sent_bytes += size;
}

static void act(struct gossip_udp *u, const struct gossip_actions *actions)
{
    const struct gossip_udp_options *o = &u->options;
    for (size_t i = 0; i < actions->send_count; i++)
        send_one(u, &actions->sends[i]);
    uint64_t now_ms = clock_monotonic_ms();
    uint64_t wait_ms = actions->next_ms > now_ms ? actions->next_ms - now_ms : 0;
    assert_always(uv_timer_start(&u->timer, timer_cb, wait_ms, 0) == 0);
    u->stepping = true;
    if (actions->change_count > 0 && o->changed != NULL)
        o->changed(o->user, actions->changes, actions->change_count);
    for (size_t i = 0; i < actions->sync_count && !u->closing && o->sync != NULL; i++)
        o->sync(o->user, actions->syncs[i]);
    if (actions->impostor && !u->impostor) {
        u->impostor = true;
        log_error("gossip", "another process runs under this node's id with a later boot");
        if (!u->closing && o->impostor != NULL)
            o->impostor(o->user);
    }
    if (actions->left && !u->left) {
        u->left = true;
        if (!u->closing && o->left != NULL)
            o->left(o->user);
    }
    u->stepping = false;
}

int gossip_udp_step(struct gossip_udp *u, const struct gossip_event *event, struct err *e)
{
    struct gossip_actions actions;
    assert_always(!u->stepping && !u->closing);
    int rc = gossip_step(u->options.gossip, event, clock_monotonic_ms(), &actions, e);
    act(u, &actions);
    return rc;
}

static void timer_cb(uv_timer_t *timer)
{
    struct gossip_udp *u = timer->data;
    struct gossip_event event = {.kind = GOSSIP_TICK};
    struct err e;
    if (gossip_udp_step(u, &event, &e) != 0)
        log_error("gossip", "%s", e.msg);
}

/* --- what comes ------------------------------------------------------------------------------- */

static void refuse(struct gossip_udp *u, enum seal_refusal refusal,
                   const struct sockaddr_storage *from)
{
    uint64_t now_ms = clock_monotonic_ms();
    u->unlogged[refusal]++;
    if (u->logged_ms[refusal] != 0 && now_ms - u->logged_ms[refusal] < LOG_EVERY_MS)
        return;
    char text[ADDRESS_TEXT_SIZE];
    address_format(from, text);
    log_warn("gossip", "refused %llu packets (%s), the last from %s",
             (unsigned long long)u->unlogged[refusal], seal_refusal_name(refusal), text);
    u->logged_ms[refusal] = now_ms;
    u->unlogged[refusal] = 0;
}

static void take(struct gossip_udp *u, size_t size, const struct sockaddr_storage *from)
{
    struct seal_opened opened;
    struct gossip_event event = {.kind = GOSSIP_PACKET};
    struct err e;
    u->counts.received++;
    u->counts.received_bytes += size;
    if (!address_private(from) || !address_pack(&event.address, from)) {
        u->counts.public_addresses++;
        return;
    }
    enum seal_refusal refusal = seal_open(u->options.seal, (uint8_t *)u->datagram, size, &opened);
    if (refusal != SEAL_TAKEN)
        return refuse(u, refusal, from);
    event.from = opened.from;
    event.from_boot = opened.boot;
    event.data = opened.data;
    event.size = opened.size;
    if (gossip_udp_step(u, &event, &e) != 0)
        log_warn("gossip", "%s", e.msg);
}

static void alloc_cb(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct gossip_udp *u = handle->data;
    (void)suggested;
    *buffer = uv_buf_init(u->datagram, sizeof u->datagram);
}

static void datagram_cb(uv_udp_t *socket, ssize_t size, const uv_buf_t *buffer,
                        const struct sockaddr *from, unsigned flags)
{
    struct gossip_udp *u = socket->data;
    struct sockaddr_storage address = {0};
    (void)buffer;
    /* Errors are of earlier sends (ICMP), or passing. */
    if (size < 0 || from == NULL || u->closing)
        return;
    size_t length =
        from->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    memcpy(&address, from, length);
    if ((flags & UV_UDP_PARTIAL) != 0)
        size = 0; /* too long: counts as noise */
    take(u, (size_t)size, &address);
}

/* --- life ------------------------------------------------------------------------------------- */

static void handle_closed_cb(uv_handle_t *handle)
{
    struct gossip_udp *u = handle->data;
    if (--u->handles > 0)
        return;
    void (*closed)(void *user) = u->closed;
    void *user = u->closed_user;
    free(u);
    if (closed != NULL)
        closed(user);
}

void gossip_udp_close(struct gossip_udp *u, void (*cb)(void *user), void *user)
{
    assert_always(!u->closing);
    u->closing = true;
    u->closed = cb;
    u->closed_user = user;
    uv_close((uv_handle_t *)&u->socket, handle_closed_cb);
    uv_close((uv_handle_t *)&u->timer, handle_closed_cb);
}

static int bind_socket(struct gossip_udp *u, struct err *e)
{
    const struct sockaddr_storage *address = &u->options.bind;
    char text[ADDRESS_TEXT_SIZE];
    address_format(address, text);
    unsigned flags = address->ss_family == AF_INET6 ? UV_UDP_IPV6ONLY : 0;
    int rc = uv_udp_bind(&u->socket, (const struct sockaddr *)address, flags);
    if (rc == 0)
        rc = uv_udp_recv_start(&u->socket, alloc_cb, datagram_cb);
    if (rc != 0)
        return err_sys(e, rc == UV_EADDRINUSE ? ERR_EXISTS : ERR_IO, -rc, "gossip on UDP %s", text);
    /* As large as the system allows: a burst must survive a pause of the loop. */
    int bytes = SOCKET_BUFFER_BYTES;
    (void)uv_recv_buffer_size((uv_handle_t *)&u->socket, &bytes);
    return 0;
}

int gossip_udp_open(struct gossip_udp **out, uv_loop_t *loop,
                    const struct gossip_udp_options *options, struct err *e)
{
    int rc = address_check_private(&options->bind, e);
    if (rc != 0)
        return err_wrap(e, "gossip");
    struct gossip_udp *u = calloc(1, sizeof *u);
    if (u == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for gossip");
    u->options = *options;
    rc = uv_udp_init(loop, &u->socket);
    if (rc != 0) {
        free(u);
        return err_sys(e, ERR_IO, -rc, "open gossip");
    }
    assert_always(uv_timer_init(loop, &u->timer) == 0);
    u->socket.data = u->timer.data = u;
    u->handles = 2;
    rc = bind_socket(u, e);
    if (rc != 0) {
        gossip_udp_close(u, NULL, NULL);
        return rc;
    }
    /* The first step begins its time. */
    assert_always(uv_timer_start(&u->timer, timer_cb, 0, 0) == 0);
    *out = u;
    return 0;
}

void gossip_udp_counts(const struct gossip_udp *u, struct gossip_udp_counts *out)
{
    *out = u->counts;
}
