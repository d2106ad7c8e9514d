/* base/secure_handshake.c - from a socket to an open stream.
 *
 *     CONNECTING --writable--> HANDSHAKE --done--> GREETING --one byte--> OPEN
 *
 * In TLS 1.3 the asking side is done before the other has seen its certificate. So the side that was
 * asked greets with one byte when it has accepted the key, and only then the stream is open. */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <string.h>

#include "base/address.h"
#include "base/memory.h"
#include "base/secure_internal.h"

#define GREETING 1

static void settle(struct secure_stream *s, enum secure_refusal refusal)
{
    uv_timer_stop(&s->timer);
    if (s->listener != NULL) {
        secure_listener_settled(s, refusal);
        return;
    }
    if (s->server)
        return;
    if (s->phase == SECURE_OPEN) {
        s->events.opened(s, NULL);
        return;
    }
    char address[ADDRESS_TEXT_SIZE];
    address_format(&s->peer.address, address);
    s->told = true;
    (void)err_wrap(&s->error, "%s stream to %s", secure_protocol_name(s->protocol), address);
    s->events.opened(s, &s->error);
}

static void fail_handshake(struct secure_stream *s)
{
    char reason[96];
    secure_openssl_reason(reason, sizeof reason);
    bool key = SSL_get_verify_result(s->ssl) != X509_V_OK && !s->peer.known;
    if (key)
        secure_stream_fail(s, ERR_DENIED,
                           s->server ? "its key is not that of the node that it says it is"
                                     : "the key there is not that of the node that is expected");
    else
        secure_stream_fail(s, ERR_UNAVAILABLE, "no handshake: %s", reason);
    settle(s, key ? SECURE_REFUSED_KEY : SECURE_REFUSED_HANDSHAKE);
}

static void open_now(struct secure_stream *s)
{
    s->phase = SECURE_OPEN;
    settle(s, SECURE_REFUSAL_COUNT);
}

static void greet(struct secure_stream *s)
{
    static const unsigned char greeting[1] = {GREETING};
    size_t count = 0;
    ERR_clear_error();
    if (SSL_write_ex(s->ssl, greeting, 1, &count) == 1)
        open_now(s);
    else
        fail_handshake(s);
}

static void await_greeting(struct secure_stream *s)
{
    unsigned char greeting = 0;
    size_t count = 0;
    ERR_clear_error();
    int rc = SSL_read_ex(s->ssl, &greeting, 1, &count);
    if (rc == 1 && greeting == GREETING) {
        open_now(s);
    } else if (rc == 1) {
        secure_stream_fail(s, ERR_PROTOCOL, "it greeted with %u", greeting);
        settle(s, SECURE_REFUSED_HANDSHAKE);
    } else if (SSL_get_error(s->ssl, rc) != SSL_ERROR_WANT_READ) {
        char reason[96];
        secure_openssl_reason(reason, sizeof reason);
        secure_stream_fail(s, ERR_DENIED, "it refused us: %s", reason);
        settle(s, SECURE_REFUSED_HANDSHAKE);
    }
}

/* What we asked for, or nothing. */
static bool protocol_agreed(struct secure_stream *s)
{
    const unsigned char *name = NULL;
    unsigned length = 0;
    const char *wanted = secure_protocol_name(s->protocol);
    SSL_get0_alpn_selected(s->ssl, &name, &length);
    return length == strlen(wanted) && memcmp(name, wanted, length) == 0;
}

static void shake(struct secure_stream *s)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(s->ssl);
    if (rc != 1) {
        int why = SSL_get_error(s->ssl, rc);
        if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
            fail_handshake(s);
        return;
    }
    if (!s->peer.known || !protocol_agreed(s)) {
        secure_stream_fail(s, ERR_PROTOCOL, "it speaks another protocol");
        settle(s, SECURE_REFUSED_HANDSHAKE);
        return;
    }
    if (s->server) {
        greet(s);
        return;
    }
    s->phase = SECURE_GREETING;
    await_greeting(s);
}

static void connected(struct secure_stream *s)
{
    int sys = 0;
    socklen_t size = sizeof sys;
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &sys, &size) != 0)
        sys = errno;
    if (sys != 0) {
        secure_stream_fail(s, ERR_UNAVAILABLE, "%s", strerror(sys));
        settle(s, SECURE_REFUSED_HANDSHAKE);
        return;
    }
    s->phase = SECURE_HANDSHAKE;
    shake(s);
}

void secure_handshake_step(struct secure_stream *s)
{
    switch (s->phase) {
    case SECURE_CONNECTING:
        connected(s);
        break;
    case SECURE_HANDSHAKE:
        shake(s);
        break;
    case SECURE_GREETING:
        await_greeting(s);
        break;
    default:
        break;
    }
}

void secure_handshake_timeout(struct secure_stream *s)
{
    secure_stream_fail(s, ERR_TIMEOUT, "%s",
                       s->phase == SECURE_CONNECTING ? "nobody answered in time"
                                                     : "the handshake took too long");
    settle(s, SECURE_REFUSED_TIMEOUT);
}
