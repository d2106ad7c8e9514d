#include <errno.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/thread.h"
#include "gateway/tls.h"

/* The client's side where HTTPS is spoken: before its first request, and between turns of the loop.
 *
 * OpenSSL is called only when the first byte is there, so a connection of nothing costs no more than
 * one to the plain port, and is cut by the same deadline. That byte also tells whether it is TLS at
 * all: who speaks plain HTTP here is told so, in plain HTTP, and closed. */

enum {
    /* ContentType of a handshake record (RFC 8446, 5.1): the first byte of every client that is one. */
    RECORD_HANDSHAKE = 22,
    /* One costs what a dozen joins do: many that come at once are spread over turns of the loop, in each of
     * which who is connected already is served. */
    HANDSHAKES_A_TURN = 2,
};

static void begin_requests(struct connection *c)
{
    c->phase = PHASE_HEAD;
    c->head_until_ms = thread_now_ms(c->thread) + c->thread->gateway->options.header_timeout_ms;
    connection_set_deadline(c, c->head_until_ms);
    /* What came together with the last of the handshake is told by nobody any more. */
    connection_readable(c);
}

/* True: handshake may go on. */
static bool look_at_first_byte(struct connection *c)
{
    unsigned char first;
    ssize_t n;
    do
        n = recv(c->fd, &first, 1, MSG_PEEK);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0) {
        connection_close(c, n < 0);
        return false;
    }
    if (first != RECORD_HANDSHAKE) {
        count(&c->thread->counters.tls_failures, 1);
        begin_requests(c);
        return false;
    }
    c->tls = tls_new(c->thread->certificates, c->fd);
    if (c->tls == NULL)
        connection_close(c, true);
    else
        c->thread->tls_begun++;
    return c->tls != NULL;
}

static void turn_cb(uv_idle_t *idle);

static void turn_start(struct gateway_thread *t)
{
    if (!uv_is_closing((uv_handle_t *)&t->tls_turn))
        uv_idle_start(&t->tls_turn, turn_cb);
}

/* Whether this turn has room for one more; else its socket stays readable, and is told of again. */
static bool may_begin(struct gateway_thread *t)
{
    turn_start(t);
    return t->tls_begun < HANDSHAKES_A_TURN;
}

void handshake_progress(struct connection *c)
{
    struct thread_counters *counters = &c->thread->counters;
    char why[96];
    if (c->tls == NULL && (!may_begin(c->thread) || !look_at_first_byte(c)))
        return;
    switch (tls_handshake(c->tls, why, sizeof why)) {
    case TLS_DONE:
        count(&counters->tls_handshakes, 1);
        count(&counters->tls_resumed, tls_resumed(c->tls) ? 1 : 0);
        begin_requests(c);
        break;
    case TLS_FAILED:
        count(&counters->tls_failures, 1);
        log_debug("gateway", "TLS with %s failed: %s", forward_peer_text(c), why);
        connection_linger(c); /* an alert may have been said */
        break;
    default:
        connection_update(c);
        break;
    }
}

/* --- what is decrypted and was not read --------------------------------------------------------------- */

void handshake_forget_due(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    if (!c->tls_due)
        return;
    c->tls_due = false;
    if (c->due_previous != NULL)
        c->due_previous->due_next = c->due_next;
    else
        t->tls_due_first = c->due_next;
    if (c->due_next != NULL)
        c->due_next->due_previous = c->due_previous;
    else
        t->tls_due_last = c->due_previous;
    c->due_previous = c->due_next = NULL;
    t->tls_due_count--;
}

/* Each that is due now once: who still has something is due again, behind the others. */
static void turn_cb(uv_idle_t *idle)
{
    struct gateway_thread *t = container_of(idle, struct gateway_thread, tls_turn);
    t->tls_begun = 0;
    for (unsigned n = t->tls_due_count; n > 0 && t->tls_due_first != NULL; n--) {
        struct connection *c = t->tls_due_first;
        handshake_forget_due(c);
        if (!c->half_closed && !c->reading_stopped) /* else connection_update notes it again */
            connection_readable(c);
        connection_update(c);
    }
    if (t->tls_due_first == NULL)
        uv_idle_stop(idle);
}

void handshake_note_due(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    if (c->tls_due)
        return;
    c->tls_due = true;
    c->due_next = NULL;
    c->due_previous = t->tls_due_last;
    if (c->due_previous != NULL)
        c->due_previous->due_next = c;
    else
        t->tls_due_first = c;
    t->tls_due_last = c;
    t->tls_due_count++;
    turn_start(t);
}
